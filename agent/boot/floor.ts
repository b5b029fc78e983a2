import { readFile } from "node:fs/promises";
import { join } from "node:path";
import type { SlotName } from "../../boot/layout.ts";
import { parseUpdate, readSignature, readStatement } from "../../boot/updatefile.ts";

/**
 * What the version floor becomes once a slot is good: as its release says, which was believed when it was installed and is kept as
 * `DATA/releases/SLOT.fruit`. 0, which raises nothing, where that file is missing or is about other content.
 */
export async function floorOf(dataDir: string, slot: SlotName, hash: string): Promise<bigint> {
  try {
    const { info, signatures } = parseUpdate(await readFile(join(dataDir, "releases", `${slot}.fruit`)));
    if (!Buffer.from(info.piecesRoot).toString("hex").startsWith(hash)) return 0n;
    const floors = [...signatures].map(([id, one]) => readStatement(readSignature(id, one).statement).floor);
    // Those that were believed state the same; where others do not, nothing is certain
    return floors.every((floor) => floor === floors[0]) ? (floors[0] ?? 0n) : 0n;
  } catch {
    return 0n;
  }
}
