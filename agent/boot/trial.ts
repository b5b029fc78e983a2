/**
 * The trial of a slot, while it runs: looks at every check again and again, until all of them have been good for long enough, one
 * that is fatal has said no, or the deadline has passed.
 *
 * Invariants
 * - Only reports of this boot count; a check that has not reported is not good, whatever the reason.
 * - Time is that of a clock that only ever passes.
 */
import { setTimeout as sleep } from "node:timers/promises";
import { within } from "../../hal/limit.ts";
import type { Log } from "../log.ts";

/** What a check says, once. */
export interface Report {
  /** The boot of the machine it was looked at in. */
  boot: string;
  isGood: boolean;
  /** What was found, for people. */
  message: string;
}

/** One check. A `look` that throws has not run. */
export interface Check {
  name: string;
  /** Its no ends the trial at once. */
  isFatal: boolean;
  /** Longest wait for one look; without it the deadline is the limit. */
  limitMs?: number;
  look(signal: AbortSignal): Promise<Report>;
}

/** How a check stands. */
export interface CheckState {
  name: string;
  /** `waiting`: it has not reported in this boot yet; `not-run`: it could not be looked at. */
  state: "waiting" | "good" | "bad" | "not-run";
  message: string;
  fatal: boolean;
  /** Seconds without a break. */
  good_for_s?: number;
}

/** How a trial ends; `stopped` decides nothing. */
export type TrialEnd =
  | { is: "passed" }
  | { is: "failed"; reason: "check-failed" | "fatal-check" | "deadline" }
  | { is: "stopped" };

/** What a trial is made of; times are milliseconds of `nowMs`. */
export interface TrialOptions {
  checks: readonly Check[];
  boot: string;
  deadlineMs: number;
  settleMs: number;
  everyMs: number;
  nowMs: () => number;
  log: Log;
  /** A check stands otherwise than before. */
  changed(): void;
}

interface Standing {
  state: CheckState["state"];
  message: string;
  goodSinceMs?: number;
}

/** One trial; `run` it once. */
export class Trial {
  readonly #options: TrialOptions;
  readonly #standing: Map<string, Standing>;
  readonly #end = Promise.withResolvers<TrialEnd>();

  constructor(options: TrialOptions) {
    this.#options = options;
    this.#standing = new Map(
      options.checks.map(({ name }) => [name, { state: "waiting", message: "has not reported yet" }]),
    );
  }

  /** How every check stands, in their order. */
  get states(): CheckState[] {
    const now = this.#options.nowMs();
    return this.#options.checks.map(({ name, isFatal }) => {
      const { state = "waiting", message = "", goodSinceMs } = this.#standing.get(name) ?? {};
      const good = goodSinceMs === undefined ? {} : { good_for_s: Math.floor((now - goodSinceMs) / 1000) };
      return { name, state, message, fatal: isFatal, ...good };
    });
  }

  /** Whether every check is good now, settled or not. */
  get isGood(): boolean {
    return this.states.every(({ state }) => state === "good");
  }

  /** Milliseconds until the deadline. */
  get leftMs(): number {
    return Math.max(0, this.#options.deadlineMs - this.#options.nowMs());
  }

  async run(signal: AbortSignal): Promise<TrialEnd> {
    const over = new AbortController();
    const stop = AbortSignal.any([signal, over.signal]);
    signal.addEventListener("abort", () => this.#end.resolve({ is: "stopped" }), { once: true });
    if (signal.aborted) this.#end.resolve({ is: "stopped" });
    for (const check of this.#options.checks) void this.#watch(check, stop);
    void this.#expire(stop);
    try {
      return await this.#end.promise;
    } finally {
      over.abort();
    }
  }

  async #watch(check: Check, signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      const found = await this.#look(check, signal);
      if (signal.aborted) return;
      this.#note(check, found);
      if (check.isFatal && found.state === "bad") this.#end.resolve({ is: "failed", reason: "fatal-check" });
      if (this.#hasPassed()) this.#end.resolve({ is: "passed" });
      await sleep(this.#options.everyMs, undefined, { signal }).catch(() => undefined);
    }
  }

  async #look(check: Check, signal: AbortSignal): Promise<Pick<Standing, "state" | "message">> {
    const { limitMs } = check;
    try {
      const looking = check.look(signal);
      const report = await (limitMs === undefined
        ? looking
        : within(limitMs, looking, () => new Error(`no answer within ${limitMs / 1000} s`)));
      if (report.boot !== this.#options.boot)
        return { state: "not-run", message: `its report is of another boot, ${report.boot}` };
      return { state: report.isGood ? "good" : "bad", message: report.message };
    } catch (error) {
      return { state: "not-run", message: error instanceof Error ? error.message : String(error) };
    }
  }

  #note({ name }: Check, found: Pick<Standing, "state" | "message">): void {
    const before = this.#standing.get(name);
    const { nowMs, log, changed } = this.#options;
    const goodSinceMs = found.state === "good" ? { goodSinceMs: before?.goodSinceMs ?? nowMs() } : {};
    this.#standing.set(name, { ...found, ...goodSinceMs });
    if (before?.state === found.state) return;
    log(found.state === "good" ? "info" : "warn", "boot.check", { check: name, ...found });
    changed();
  }

  #hasPassed(): boolean {
    const { nowMs, settleMs, deadlineMs } = this.#options;
    const now = nowMs();
    return (
      now < deadlineMs &&
      [...this.#standing.values()].every(
        ({ goodSinceMs }) => goodSinceMs !== undefined && now - goodSinceMs >= settleMs,
      )
    );
  }

  /** Ends the trial at its deadline: a check that said no, or silence. */
  async #expire(signal: AbortSignal): Promise<void> {
    while (!signal.aborted && this.leftMs > 0)
      await sleep(Math.min(this.leftMs, 1000), undefined, { signal }).catch(() => undefined);
    if (signal.aborted) return;
    const isBad = [...this.#standing.values()].some(({ state }) => state === "bad");
    this.#end.resolve({ is: "failed", reason: isBad ? "check-failed" : "deadline" });
  }
}
