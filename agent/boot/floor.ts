import type { SlotName } from "../../boot/layout.ts";
import type { Machine } from "../../hal/ports.ts";
import { keptRelease } from "../release/kept.ts";

/** What a root says of the release that it is; `image/fruitos/root.ts` writes it. */
const INSIDE = "/etc/fruit/release.json";

/**
 * What the version floor becomes once a slot is good: as its release says, which was believed when it was installed and is kept as
 * `DATA/releases/SLOT.fruit`. 0, which raises nothing, where that file is missing or is about other content.
 */
export async function floorOf(dataDir: string, slot: SlotName, hash: string): Promise<bigint> {
  const kept = await keptRelease(dataDir, slot);
  return kept?.hash === hash ? (kept.stated(({ floor }) => floor) ?? 0n) : 0n;
}

/**
 * The version floor that the running root states of itself, which was signed with it: it counts where the release's update file was
 * lost. 0 where it states none, or what cannot be: /etc lasts across slots, and what a person has put there is of another release.
 */
export function floorInside(machine: Pick<Machine, "read">, version: bigint): bigint {
  try {
    const said = JSON.parse(Buffer.from(machine.read(INSIDE) ?? "{}").toString());
    if (said.version !== String(version) || !/^\d{1,20}$/.test(said.floor)) return 0n;
    const floor = BigInt(said.floor);
    return floor <= version ? floor : 0n;
  } catch {
    return 0n;
  }
}
