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
  const teller = new Teller(progress);
  const stops: (() => Promise<void>)[] = [];
  try {
    for (const line of lines) {
      const { value, stop } = await line.watch((value) => teller.changed(line, value));
      stops.push(stop);
      teller.tell(line, value);
    }
    await sleep(args.seconds * 1000, undefined, { signal }).catch(() => undefined);
  } finally {
    await Promise.allSettled(stops.map((stop) => stop()));
    teller.catchUp();
  }
  return teller.found;
}

/** Tells changes, so many a second; of a line that changes more often, how it is once the second is over. */
class Teller {
  readonly found: Followed = { changes: 0, not_told: 0 };
  readonly #progress: (text: string) => void;
  /** The latest change of each line that was not told yet. */
  readonly #latest = new Map<NamedLine, Pick<Change, "at" | "value">>();
  #second = 0;
  #told = 0;
  #skipped = 0;
  #timer: NodeJS.Timeout | undefined;

  constructor(progress: (text: string) => void) {
    this.#progress = progress;
  }

  tell(line: NamedLine, value: 0 | 1, at = new Date().toISOString()): void {
    this.#progress(changeText({ at, line: line.name, value, not_told: this.#skipped }));
    this.#skipped = 0;
  }

  changed(line: NamedLine, value: 0 | 1): void {
    this.found.changes++;
    const nowMs = performance.now();
    const second = Math.floor(nowMs / 1000);
    if (second !== this.#second) {
      this.catchUp();
      [this.#second, this.#told] = [second, 0];
    }
    if (++this.#told <= MOST_A_SECOND) {
      this.tell(line, value);
      return;
    }
    if (this.#latest.has(line)) {
      this.found.not_told++;
      this.#skipped++;
    }
    this.#latest.set(line, { at: new Date().toISOString(), value });
    this.#timer ??= setTimeout(() => this.catchUp(), 1000 - (nowMs % 1000));
  }

  catchUp(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    const latest = [...this.#latest];
    this.#latest.clear();
    for (const [line, { at, value }] of latest) this.tell(line, value, at);
  }
}
