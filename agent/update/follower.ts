/**
 * Brings this node to what is announced: looks, decides (`desire.ts`), and does one thing at a time.
 *
 * Invariants
 * - While something is under way it is looked on: what is withdrawn or overtaken meanwhile is broken off.
 * - What fails is tried again, later each time; another release, or a person's word, is tried at once.
 */
import { setTimeout as sleep } from "node:timers/promises";
import type { Log } from "../log.ts";
import { reasonOf } from "../record/lines.ts";
import { type Desire, desire, type Facts } from "./desire.ts";

/** What can be done about a release. Each throws why it could not, and can be asked for again. */
export interface Hands {
  /** All that the decision depends on, as it is now. */
  facts(): Promise<Facts>;
  /** Brings its update file here, and finds out what is thought of it. */
  learn(infohash: string, signal: AbortSignal): Promise<void>;
  /** Brings it into the other slot. */
  fetch(infohash: string, signal: AbortSignal): Promise<void>;
  /** Has the next start try it. */
  try(infohash: string): Promise<void>;
  /** Nobody tries it any more. */
  drop(infohash: string): Promise<void>;
  /** Leaves the trial. */
  rollBack(infohash: string): Promise<void>;
}

/** How a follower is made. */
export interface FollowerOptions {
  hands: Hands;
  lookMs: number;
  /** Told when what is wanted has changed, or what is announced: by code or release. */
  changed(wanted: Desire, facts: Facts): void;
  log: Log;
  /** Milliseconds that only ever pass. */
  nowMs?: () => number;
}

/** After a failure: this at first, twice as long each time, and at most. */
const REST_MS = { least: 15_000, most: 3_600_000 };

/** Something under way. */
interface Task {
  desire: Desire;
  stop: AbortController;
  ended: Promise<void>;
}

/** Follows announcements until its signal says so. `run` it once. */
export class Follower {
  readonly #options: FollowerOptions;
  readonly #nowMs: () => number;
  #wanted: Desire | undefined;
  #facts: Facts | undefined;
  #task: Task | undefined;
  /** What failed last, why, and when it is tried again. */
  #failure: { of: string; why: string; restMs: number; untilMs: number } | undefined;
  #wake = Promise.withResolvers<void>();

  constructor(options: FollowerOptions) {
    this.#options = options;
    this.#nowMs = options.nowMs ?? (() => performance.now());
  }

  /** What was last decided, and upon what; undefined before the first look. */
  get wanted(): { desire: Desire; facts: Facts } | undefined {
    return this.#wanted && this.#facts ? { desire: this.#wanted, facts: this.#facts } : undefined;
  }

  /** What is under way. */
  get doing(): Desire | undefined {
    return this.#task?.desire;
  }

  /** Why the last thing failed, and in how many seconds it is tried again. */
  get failure(): { why: string; inSeconds: number } | undefined {
    if (!this.#failure) return undefined;
    const { why, untilMs } = this.#failure;
    return { why, inSeconds: Math.max(0, Math.ceil((untilMs - this.#nowMs()) / 1000)) };
  }

  /** Looks now: something was announced. With `anew` what failed is tried at once: somebody has asked for it. */
  wake(anew = false): void {
    if (anew) this.#failure = undefined;
    this.#wake.resolve();
  }

  async run(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      this.#wake = Promise.withResolvers();
      await this.#look().catch((error) =>
        this.#options.log("error", "update.look-failed", { error: reasonOf(error) }),
      );
      await this.#rest(signal);
    }
    await this.#breakOff("the agent stops");
  }

  async #look(): Promise<void> {
    const facts = await this.#options.hands.facts();
    const wanted = desire(facts);
    const isOther = facts.head?.infohash !== this.#facts?.head?.infohash;
    const isNew = isOther || wanted.code !== this.#wanted?.code || wanted.infohash !== this.#wanted?.infohash;
    [this.#facts, this.#wanted] = [facts, wanted];
    if (isNew) this.#options.changed(wanted, facts);
    if (this.#task && isOver(this.#task.desire, wanted))
      await this.#breakOff(wanted.because[0] ?? wanted.code);
    if (this.#task || wanted.what === "nothing" || wanted.infohash === undefined) return;
    if (this.#failure?.of === nameOf(wanted) && this.#nowMs() < this.#failure.untilMs) return;
    this.#begin(wanted, wanted.infohash);
  }

  #begin(wanted: Desire, infohash: string): void {
    const stop = new AbortController();
    const task: Task = {
      desire: wanted,
      stop,
      ended: this.#do(wanted, infohash, stop.signal)
        .then(() => {
          this.#failure = undefined;
        })
        .catch((error) => {
          if (!stop.signal.aborted) this.#failed(wanted, error);
        })
        .finally(() => {
          if (this.#task === task) this.#task = undefined;
          this.wake();
        }),
    };
    this.#task = task;
  }

  async #do({ what }: Desire, infohash: string, signal: AbortSignal): Promise<void> {
    const { hands } = this.#options;
    switch (what) {
      case "learn":
        return hands.learn(infohash, signal);
      case "fetch":
        return hands.fetch(infohash, signal);
      case "try":
        return hands.try(infohash);
      case "drop":
        return hands.drop(infohash);
      case "roll-back":
        return hands.rollBack(infohash);
      case "nothing":
        return;
    }
  }

  #failed(wanted: Desire, error: unknown): void {
    const of = nameOf(wanted);
    const before = this.#failure?.of === of ? this.#failure.restMs : REST_MS.least / 2;
    const restMs = Math.min(before * 2, REST_MS.most);
    const why = reasonOf(error);
    this.#failure = { of, why, restMs, untilMs: this.#nowMs() + restMs };
    this.#options.log("warn", "update.failed", {
      what: wanted.what,
      infohash: wanted.infohash,
      why,
      rest_s: restMs / 1000,
    });
  }

  async #breakOff(why: string): Promise<void> {
    const task = this.#task;
    if (!task) return;
    this.#options.log("info", "update.broken-off", {
      what: task.desire.what,
      infohash: task.desire.infohash,
      why,
    });
    task.stop.abort(new Error(why));
    await task.ended;
  }

  async #rest(signal: AbortSignal): Promise<void> {
    const late = new AbortController();
    const stop = AbortSignal.any([signal, late.signal]);
    await Promise.race([
      this.#wake.promise,
      sleep(this.#options.lookMs, undefined, { signal: stop }).catch(() => undefined),
    ]);
    late.abort();
  }
}

const nameOf = ({ what, infohash }: Desire) => `${what} ${infohash}`;

/** Whether what is under way is no longer to be gone on with. A bad moment is no reason: what has begun is safe from power cuts. */
function isOver(doing: Desire, wanted: Desire): boolean {
  if (wanted.what === "drop" || wanted.what === "roll-back") return nameOf(doing) !== nameOf(wanted);
  if (wanted.infohash !== undefined) return wanted.infohash !== doing.infohash;
  return ["withdrawn", "runs-withdrawn", "up-to-date", "refused", "no-slots"].includes(wanted.code);
}
