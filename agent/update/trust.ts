/** Whom this node believes, and from when on: `DATA/trust.json`, its rotation, and what goes with a key that is revoked. */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { hashPrefix } from "../../boot/admit.ts";
import { forgetFloors, raiseFloors } from "../../boot/floors.ts";
import { Heads } from "../../boot/heads.ts";
import type { SlotName } from "../../boot/layout.ts";
import { replaceFile } from "../../boot/progress.ts";
import { signersOf } from "../../boot/release.ts";
import { follow, parseChain } from "../../boot/rotation.ts";
import { keyOf, parseTrust, type Trust } from "../../boot/trust.ts";
import { parseUpdate, readStatement, statementToSign } from "../../boot/updatefile.ts";
import { holdFolder } from "../hold.ts";
import { readTrust, readUpdate } from "../release/files.ts";
import { releasesIn } from "../release/kept.ts";

/** Where it all is. */
export const trustPaths = (dataDir: string) => ({
  trust: join(dataDir, "trust.json"),
  heads: join(dataDir, "heads.json"),
  floors: join(dataDir, "floors.json"),
});

/** What came of a chain. */
export interface Applied {
  from: number;
  trust: Trust;
  /** Ids that `trust.json` listed and does not list any more. */
  revoked: readonly string[];
}

/**
 * Brings a chain onto a node: checked as a whole, then what revoked keys had said is forgotten, then `trust.json` is replaced as a whole.
 * In this order, since a cut then leaves the old `trust.json`, from which the same chain says once more what is to be forgotten. `heads`
 * is that of the process that listens to heads; without it the file is opened. Throws `RotationError`, `CliError`.
 */
export async function applyChain(dataDir: string, chain: Uint8Array, heads?: Heads): Promise<Applied> {
  const paths = trustPaths(dataDir);
  const links = parseChain(chain);
  await readTrust(paths.trust); // a folder without one is no node's, and stays as it is
  using _ = holdFolder(join(dataDir, "boot"), "trust");
  const own = await readTrust(paths.trust);
  const { trust, text, gone } = follow(own, links);
  await (heads ?? (await Heads.open(paths.heads))).forget(trust, gone.head);
  await forgetFloors(paths.floors, trust, gone.release);
  if (text !== undefined) await replaceFile(paths.trust, text);
  const listed = new Set(trust.signers.map(keyOf));
  const revoked = own.signers.filter((one) => !listed.has(keyOf(one))).map(({ id }) => id);
  return { from: own.version, trust, revoked };
}

/**
 * A slot with this content has become good: those who signed it count for nothing older from now on. Nothing happens where the update
 * file or `trust.json` is missing, as after a wipe of the data: the record has its own floor.
 */
export async function raiseSignerFloors(dataDir: string, slot: SlotName, hash: string): Promise<void> {
  const paths = trustPaths(dataDir);
  const text = await readFile(paths.trust, "utf8").catch(() => undefined);
  const path = join(releasesIn(dataDir), `${slot}.fruit`);
  const bytes = await readUpdate(path).catch(() => undefined);
  if (text === undefined || bytes === undefined) return;
  const trust = parseTrust(text);
  const file = parseUpdate(bytes);
  if (hashPrefix(file.info.piecesRoot) !== hash) return;
  const { target, version } = readStatement(statementToSign(file));
  const keys = signersOf(file, trust).map(keyOf);
  await raiseFloors(paths.floors, { keys, target, version }, trust);
}
