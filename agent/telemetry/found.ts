import type { Machine } from "../../hal/ports.ts";
import type { Group, Key } from "./metrics.ts";

/** What a source needs beside the machine: memory of the last sample, and of what is slow to find out. */
export interface Surroundings {
  machine: Machine;
  /** Monotonic milliseconds. */
  nowMs: number;
  /** Instance name to mount point. */
  filesystems: Record<string, string>;
  /** How much a counter grew since this was last asked; undefined the first time and when it went backwards. */
  increase(counter: string, value: number | undefined): number | undefined;
  /** Finds something out, at most every ten minutes. */
  slow<T>(name: string, find: () => T): T;
}

/** One instance of a group as found; the sampler drops what is undefined. */
export interface Found<G extends Group> {
  instance: string;
  values: { [K in Key<G>]?: number | undefined };
}

/** In another unit; what was not found stays so. */
export function times(value: number | undefined, factor: number): number | undefined {
  return value === undefined ? undefined : value * factor;
}

/** A share, held within 0 and 1: the two counters are not read at the same instant. */
export function ratio(part: number | undefined, whole: number | undefined): number | undefined {
  if (part === undefined || whole === undefined || whole <= 0) return undefined;
  return Math.min(1, Math.max(0, part / whole));
}
