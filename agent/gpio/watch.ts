import { setTimeout as sleep } from "node:timers/promises";
import type { Call } from "../commands.ts";
import type { NamedLine } from "./line.ts";

/** Changes that are told in a second; a line that chatters must not flood whoever listens. */
const MOST_A_SECOND = 20;

/** What `gpio.watch` ends with. */
export interface Followed {
  changes: number;
  not_told: number;
}

/** One change as it is told: a line of text that a program can take apart again. */
export interface Change {
  at: string;
  line: string;
  value: 0 | 1;
  /** Changes before this one that were left out. */
  not_told?: number;
}

/** `2026-11-23T07:00:00.123Z door 1`, with `(5 not told)` behind where some were left out. */
export function changeText({ at, line, value, not_told }: Change): string {
  return `${at} ${line} ${value}${not_told ? ` (${not_told} not told)` : ""}`;
}

/** What `changeText` made; undefined for other text. */
export function parseChange(text: string): Change | undefined {
  const [, at, line, value, left] = /^(\S+Z) ([a-z0-9-]+) ([01])(?: \((\d+) not told\))?$/.exec(text) ?? [];
  if (at === undefined || line === undefined) return undefined;
  return {
    at,
    line,
    value: value === "1" ? 1 : 0,
    ...(left === undefined ? {} : { not_told: Number(left) }),
  };
}

/** Tells how lines are and then each change, until the time is over or the agent stops. */
export async function followChanges(
  lines: readonly NamedLine[],
  { args, progress, signal }: Pick<Call<{ seconds: number }>, "args" | "progress" | "signal">,
): Promise<Followed> {
  const found: Followed = { changes: 0, not_told: 0 };
  let [second, told, skipped] = [0, 0, 0];
  const tell = (line: NamedLine, value: 0 | 1) => {
    progress(changeText({ at: new Date().toISOString(), line: line.name, value, not_told: skipped }));
    skipped = 0;
  };
  const changed = (line: NamedLine, value: 0 | 1) => {
    found.changes++;
    const now = Math.floor(performance.now() / 1000);
    if (now !== second) [second, told] = [now, 0];
    if (++told <= MOST_A_SECOND) return tell(line, value);
    found.not_told++;
    skipped++;
  };
  const stops: (() => Promise<void>)[] = [];
  try {
    for (const line of lines) {
      const { value, stop } = await line.watch((value) => changed(line, value));
      stops.push(stop);
      tell(line, value);
    }
    await sleep(args.seconds * 1000, undefined, { signal }).catch(() => undefined);
  } finally {
    await Promise.allSettled(stops.map((stop) => stop()));
  }
  return found;
}
