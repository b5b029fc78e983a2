import type { Config } from "../config.ts";
import type { Log } from "../log.ts";
import type { Publish } from "../messages.ts";
import type { Part } from "../parts.ts";
import { payloadOf } from "./formats.ts";
import { GROUPS, type Group, isSampled, type Key } from "./metrics.ts";
import type { Sample, Sampler } from "./sampler.ts";

/** Numbers that other parts know: merged into the `main` message of their group. */
export type Extra = { [G in Group]?: () => { [K in Key<G>]?: number } };

/** The telemetry of a node, running. */
export interface Telemetry {
  part: Part;
  /** Publishes everything at least every `everySeconds` for the next `seconds`; the last call holds. */
  boost(seconds: number, everySeconds: number): void;
  /** Publishes every group that is on, now. */
  sampleNow(): void;
}

/** Before the first set: long enough for the connection, short enough for somebody who watches. */
const FIRST_MS = 1000;
/** The first sets of nodes that got their power at the same moment are spread over this. */
const FIRST_SPREAD_MS = 2000;

/**
 * Samples and publishes all groups from one loop, each at its interval. The phase is random per node, so that a
 * whole rack that boots together does not publish together. The groups `power` and `console` are published by their own services.
 */
export function telemetry(options: {
  sampler: Sampler;
  publish: Publish;
  config: Config["telemetry"];
  clock: () => { synced: boolean };
  extra: Extra;
  random?: () => number;
  log: Log;
}): Telemetry {
  const { sampler, publish, config, clock, extra, random = Math.random, log } = options;
  const intervals = intervalsOf(config);
  const dueMs = new Map<Group, number>();
  let boosted: { untilMs: number; everyMs: number } | undefined;
  let wake: (() => void) | undefined;

  function publishGroups(groups: Iterable<Group>, isFresh: boolean): void {
    const startedMs = performance.now();
    const ts = clock().synced ? Math.floor(Date.now() / 1000) : undefined;
    for (const group of groups) {
      try {
        const samples = withExtra(sampler.sample(group, isFresh), extra[group]?.());
        // `agent` is the last group of a set, so this is the cost of the whole set.
        if (group === "agent")
          withExtra(samples, { sample_seconds: Math.round((performance.now() - startedMs) * 1e3) / 1e6 });
        for (const { instance, values } of samples) publish(`tele/${group}`, instance, payloadOf(values, ts));
      } catch (error) {
        // One group's trouble must not silence the others.
        log("error", "telemetry.failed", { group, error: String(error) });
      }
    }
  }

  /** The time between two samples of a group whose interval this is. */
  function stepMs(intervalMs: number, nowMs: number): number {
    if (boosted && nowMs >= boosted.untilMs) boosted = undefined;
    return boosted ? Math.min(intervalMs, boosted.everyMs) : intervalMs;
  }

  /** Publishes what is due and says how long there is nothing to do. */
  function tick(): number {
    const nowMs = performance.now();
    const due = [...dueMs].filter(([, atMs]) => atMs <= nowMs).map(([group]) => group);
    publishGroups(due, false);
    for (const group of due) {
      const step = stepMs(intervals.get(group) ?? 0, nowMs);
      // A stopped clock or a suspended machine skips what it missed.
      const late = nowMs - (dueMs.get(group) ?? nowMs);
      dueMs.set(group, nowMs + step - (late % step));
    }
    return Math.min(...dueMs.values()) - performance.now();
  }

  return {
    async part(signal) {
      if (intervals.size === 0) return pause(undefined, signal);
      await pause(FIRST_MS + random() * FIRST_SPREAD_MS, signal);
      if (signal.aborted) return;
      publishGroups(intervals.keys(), false);
      const startMs = performance.now();
      const phase = random();
      for (const [group, intervalMs] of intervals)
        dueMs.set(group, startMs + phase * stepMs(intervalMs, startMs));
      while (!signal.aborted) await pause(tick(), signal, (wakeUp) => (wake = wakeUp));
    },
    boost(seconds, everySeconds) {
      const nowMs = performance.now();
      boosted = { untilMs: nowMs + seconds * 1000, everyMs: Math.max(1, everySeconds) * 1000 };
      for (const group of dueMs.keys()) dueMs.set(group, nowMs);
      wake?.();
    },
    sampleNow() {
      publishGroups(intervals.keys(), true);
    },
  };
}

/** Milliseconds between two samples of each group that is on; a set is taken in the order of the table. */
function intervalsOf(config: Config["telemetry"]): Map<Group, number> {
  const intervals = new Map<Group, number>();
  for (const group of GROUPS) {
    const seconds = config.groups[group] ?? config.interval_seconds;
    if (seconds > 0 && isSampled(group)) intervals.set(group, seconds * 1000);
  }
  return intervals;
}

function withExtra(samples: Sample[], extra: Record<string, number> | undefined): Sample[] {
  if (!extra || Object.keys(extra).length === 0) return samples;
  const main = samples.find(({ instance }) => instance === "main");
  if (main) Object.assign(main.values, extra);
  else samples.push({ instance: "main", values: { ...extra } });
  return samples;
}

/** Waits for the time, the signal, or a call of what `onWait` is given, whichever comes first; without a time for the other two. */
function pause(
  ms: number | undefined,
  signal: AbortSignal,
  onWait: (wakeUp: () => void) => void = () => undefined,
): Promise<void> {
  if (signal.aborted) return Promise.resolve();
  return new Promise((resolve) => {
    const wakeUp = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", wakeUp);
      resolve();
    };
    const timer = ms === undefined ? undefined : setTimeout(wakeUp, Math.max(0, ms));
    signal.addEventListener("abort", wakeUp);
    onWait(wakeUp);
  });
}
