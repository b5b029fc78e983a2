/** What is new in a release, beside another: the one that this node runs, or one in hand. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { SLOTS } from "../../boot/layout.ts";
import type { Statement } from "../../boot/statement.ts";
import { parseUpdate, readStatement, statementToSign, type UpdateFile } from "../../boot/updatefile.ts";
import type { Machine } from "../../hal/ports.ts";
import { slotsData, wordOf } from "../boot/kernel.ts";
import { asUsage, readUpdate } from "./files.ts";
import { releasesIn } from "./kept.ts";

/** A release that another is held against. */
export interface Against {
  /** How a person knows it. */
  what: string;
  file: UpdateFile;
  stated: Statement;
}

/** What is not the same, for a person and for programs. Versions are decimal text. */
export interface Difference {
  against: string;
  version: { from: string; to: string };
  size: { from: number; to: number };
  /** Nothing has to be fetched. */
  is_same_payload: boolean;
  /** Boot files with other content. */
  changed: string[];
}

/** The release of a file that was named, otherwise the one in the slot that this node runs from; undefined on a machine that runs from none. */
export async function comparedWith(
  path: string | undefined,
  machine: Pick<Machine, "read"> = { read: readOrNothing },
  dataDir = slotsData(machine, ""),
): Promise<Against | undefined> {
  if (path !== undefined)
    return asUsage(async () => statedOf(parseUpdate(await readUpdate(path)), path), path);
  const slot = SLOTS.find((name) => name === wordOf(machine, "fruit.slot"));
  if (!slot) return undefined;
  try {
    const kept = parseUpdate(await readUpdate(join(releasesIn(dataDir), `${slot}.fruit`)));
    return statedOf(kept, `slot ${slot}, which runs`);
  } catch {
    return undefined; // what was built into the card has no update file
  }
}

/** What is not the same. */
export function differenceOf(file: UpdateFile, stated: Statement, against: Against): Difference {
  const old = against.stated;
  const files = ({ boot }: Statement) =>
    new Map([
      ["kernel", boot.kernel.crc32],
      ["initramfs", boot.initramfs.crc32],
      ...(boot.fat ? [["boot set", boot.fat.crc32] as const] : []),
      ...Object.entries(boot.deviceTrees).map(
        ([board, { crc32 }]) => [`device tree of ${board}`, crc32] as const,
      ),
    ]);
  const [before, after] = [files(old), files(stated)];
  return {
    against: against.what,
    version: { from: String(old.version), to: String(stated.version) },
    size: { from: old.size, to: stated.size },
    is_same_payload: Buffer.from(file.info.piecesRoot).equals(against.file.info.piecesRoot),
    changed: [...new Set([...before.keys(), ...after.keys()])].filter(
      (name) => before.get(name) !== after.get(name),
    ),
  };
}

function statedOf(file: UpdateFile, what: string): Against {
  const stated = readStatement(statementToSign(file));
  return { what: `${file.info.name} (${what})`, file, stated };
}

function readOrNothing(path: string): Uint8Array | undefined {
  try {
    return readFileSync(path);
  } catch {
    return undefined;
  }
}
