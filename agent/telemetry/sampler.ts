import type { Machine } from "../../hal/ports.ts";
import type { Surroundings } from "./found.ts";
import type { Group } from "./metrics.ts";
import { SOURCES } from "./sources.ts";

/** One message's worth of numbers. */
export interface Sample {
  instance: string;
  values: Record<string, number>;
}

/** Reads the groups of one machine; remembers what ratios are made of. */
export interface Sampler {
  /** What there is of a group now. `fresh` also asks for what is otherwise asked every ten minutes. */
  sample(group: Group, fresh?: boolean): Sample[];
}

/** The numbers that may be below zero; anywhere else that is nonsense and left out. */
const SIGNED: ReadonlySet<string> = new Set(["temp_celsius", "clock_offset_seconds", "signal_dbm"]);

const SLOW_MS = 600_000;
/** More slow facts than devices a Pi can have: interface names of containers that come and go are forgotten. */
const SLOW_MOST = 256;

/**
 * Makes a sampler. `nowMs` is a monotonic clock, `filesystems` maps instance names to mount points.
 * A ratio needs two samples of its group, so the first has none.
 */
export function createSampler(
  machine: Machine,
  options: { filesystems: Record<string, string>; nowMs: () => number },
): Sampler {
  const counters = new Map<string, number>();
  const found = new Map<string, { value: unknown; atMs: number }>();

  function increase(counter: string, value: number | undefined): number | undefined {
    if (value === undefined) return undefined;
    const before = counters.get(counter);
    counters.set(counter, value);
    return before === undefined || value < before ? undefined : value - before;
  }

  return {
    sample(group, isFresh = false) {
      const nowMs = options.nowMs();
      const slow: Surroundings["slow"] = <T>(name: string, find: () => T): T => {
        const known = found.get(name);
        // The name alone decides what is found under it.
        if (known && !isFresh && nowMs - known.atMs < SLOW_MS) return known.value as T;
        if (found.size >= SLOW_MOST) found.clear();
        const value = find();
        found.set(name, { value, atMs: nowMs });
        return value;
      };
      const { filesystems } = options;
      return SOURCES[group]({ machine, nowMs, filesystems, increase, slow }).flatMap(publishable);
    },
  };
}

/** Nothing leaves here that is not a number a consumer can use; an instance without any leaves nothing. */
function publishable(found: { instance: string; values: Record<string, number | undefined> }): Sample[] {
  const kept: Record<string, number> = {};
  for (const [key, value] of Object.entries(found.values)) {
    // Absurdly long numbers and what was computed with them.
    if (value === undefined || !Number.isFinite(value)) continue;
    if (value < 0 && !SIGNED.has(key)) continue;
    // Microseconds and parts per million are finer than any source; more digits only fill messages.
    kept[key] = Math.round(value * 1e6) / 1e6;
  }
  return Object.keys(kept).length > 0 ? [{ instance: found.instance, values: kept }] : [];
}
