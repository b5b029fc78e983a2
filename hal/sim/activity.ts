/**
 * How busy a simulated Pi is. A pure function of seed and wall time, so that the node that reports its load and the
 * board that measures its current agree without talking, in one process or in two.
 */

/** A number in 0..1 that is the same for the same pair: the only source of chance in the simulator. */
export function chance(seed: number, index: number): number {
  let h = Math.imul(seed ^ 0x9e3779b9, 0x85ebca6b) ^ Math.imul((index | 0) + 0x165667b1, 0xc2b2ae35);
  h = Math.imul(h ^ (h >>> 16), 0x7feb352d);
  h = Math.imul(h ^ (h >>> 15), 0x846ca68b);
  return ((h ^ (h >>> 16)) >>> 0) / 2 ** 32;
}

/** Shift work, jobs and requests: milliseconds of each, and its share of the load. */
const RHYTHMS = [
  { periodMs: 1_200_000, share: 0.5 },
  { periodMs: 60_000, share: 0.3 },
  { periodMs: 7_000, share: 0.2 },
];

/** The load of the Pi with this seed, 0 (idle) to 1 (all cores busy), over wall time in milliseconds. */
export function activity(seed: number): (nowMs: number) => number {
  return (nowMs) => {
    const load = RHYTHMS.reduce((sum, { periodMs, share }, rhythm) => {
      const at = nowMs / periodMs;
      const step = Math.floor(at);
      const from = chance(seed + rhythm * 7919, step);
      const to = chance(seed + rhythm * 7919, step + 1);
      const t = at - step;
      return sum + share * (from + (to - from) * t * t * (3 - 2 * t));
    }, 0);
    return load ** 2; // Pis idle more than they work
  };
}
