/** The update file that is kept for a slot, `DATA/releases/SLOT.fruit`: what an install believed before it wrote there. */
import { join } from "node:path";
import { hashPrefix } from "../../boot/admit.ts";
import type { SlotName } from "../../boot/layout.ts";
import type { Statement } from "../../boot/statement.ts";
import { parseUpdate, readSignature, readStatement } from "../../boot/updatefile.ts";
import { readUpdate } from "./files.ts";

/** Where they are kept, with their side files. */
export const releasesIn = (dataDir: string) => join(dataDir, "releases");

/** What it says. Whether the slot still holds that is another matter. */
export interface KeptRelease {
  /** Of the content, as in a record. */
  hash: string;
  payloadBytes: number;
  /** What all who signed it state; undefined where they do not state the same: nothing is certain then. */
  stated<T extends bigint | number | string>(of: (statement: Statement) => T): T | undefined;
}

/** Reads it; undefined where there is none, or none that can be read. */
export async function keptRelease(dataDir: string, slot: SlotName): Promise<KeptRelease | undefined> {
  try {
    const { info, signatures } = parseUpdate(await readUpdate(join(releasesIn(dataDir), `${slot}.fruit`)));
    const statements = () =>
      [...signatures].map(([id, one]) => readStatement(readSignature(id, one).statement));
    return {
      hash: hashPrefix(info.piecesRoot),
      payloadBytes: info.length,
      stated: (of) => {
        try {
          const [first, ...more] = statements().map(of);
          return more.every((one) => one === first) ? first : undefined;
        } catch {
          return undefined;
        }
      },
    };
  } catch {
    return undefined;
  }
}
