/** When the turn of one node is, in a release that goes round wave by wave. */
import { createHash } from "node:crypto";
import type { Release } from "./content.ts";

/**
 * From when on a node takes a release by itself, Unix seconds; undefined where no wave reaches it, and 0 where there are none. The same
 * node gets the same answer whenever it asks; of another release it comes in another wave, so that not the same always go first.
 */
export function turnOf(
  { infohash, rollout }: Pick<Release, "infohash" | "rollout">,
  node: string,
): number | undefined {
  if (!rollout) return 0;
  const drawn = createHash("sha256").update(`${infohash} ${node}`).digest();
  const [place, delay] = [drawn.readUIntBE(0, 6), drawn.readUIntBE(6, 6)].map((number) => number / 2 ** 48);
  const wave = rollout.waves.find(({ percent }) => (place ?? 1) * 100 < percent);
  if (!wave) return undefined;
  return rollout.from + wave.hours * 3600 + Math.floor((delay ?? 0) * rollout.jitterSeconds);
}
