import { setTimeout as sleep } from "node:timers/promises";
import { HalError, type PowerController } from "../../hal/ports.ts";
import { Refusal } from "../commands.ts";

/** Longest an operation may hold the bus: every driver gives up far earlier, so this names a driver that hangs. */
const LIMIT_MS = 10_000;

/** What goes beside a reading may make it this much longer; a board that is silent uses it up at once. */
const GUEST_MS = 200;

/**
 * Who goes first. Emergencies; then switching with the readings it decides by and is confirmed by; then everybody who only looks,
 * in turns by line. Each has its own bound, so that no flood of readings keeps anybody from switching.
 */
type Lane = "emergency" | "switching" | "reading";

/** How an operation waits for the bus. */
export interface Turn {
  lane?: Lane;
  /** Whoever waits is told to stop: what has not begun is left out, what has begun is not waited for. */
  signal?: AbortSignal | undefined;
}

interface Job {
  what: string;
  lane: Lane;
  /** Time that operations beside it took, milliseconds. */
  guestMs: number;
  /** Never rejects: the asker gets the error. */
  begin(): Promise<void>;
  refuse(error: Error): void;
}

/**
 * The queue in front of one bus of boards (rule P15).
 *
 * Invariants
 * - One operation at a time, but for what goes `beside`; one that hangs keeps the bus, since the wire is still its own.
 * - Lanes go in order; within the readings lines (an outlet, a board) take turns, so that nobody waits behind all the polls of another.
 * - No more than `depth` operations wait in a lane; the next is refused.
 */
export class Bus {
  readonly name: string;
  readonly controller: PowerController;
  readonly #depth: number;
  readonly #emergency: Job[] = [];
  readonly #switching: Job[] = [];
  /** Readings by line, in the order of their turns. */
  readonly #lines = new Map<string, Job[]>();
  #current: Job | undefined;
  #isWorking = false;
  #overdue: string | undefined;

  constructor(name: string, controller: PowerController, depth = 16 + 4 * controller.outlets.length) {
    this.name = name;
    this.controller = controller;
    this.#depth = depth;
  }

  /** Readings that wait for their turn. */
  get waiting(): number {
    return this.#readings().length;
  }

  /**
   * Runs one operation when its turn comes. Throws what the driver throws, `Refusal` busy, `HalError` timeout, or AbortError.
   */
  async do<T>(
    line: string,
    what: string,
    operation: (controller: PowerController) => Promise<T>,
    { lane = "reading", signal }: Turn = {},
  ): Promise<T> {
    signal?.throwIfAborted();
    if (this.#overdue !== undefined) throw this.#hangs(this.#overdue);
    const { promise, resolve, reject } = Promise.withResolvers<T>();
    const stop = () => reject(signal?.reason);
    this.#queue(lane, line, {
      what: `${what} ${line}`,
      lane,
      guestMs: 0,
      begin: async () => {
        if (signal?.aborted) return;
        try {
          resolve(await operation(this.controller));
        } catch (error) {
          reject(error);
        }
      },
      refuse: reject,
    });
    signal?.addEventListener("abort", stop);
    void this.#work();
    try {
      return await promise;
    } finally {
      signal?.removeEventListener("abort", stop);
    }
  }

  /**
   * Runs an operation between two exchanges of a reading that holds the bus, which the driver keeps apart: for what no
   * reading depends on (an LED), so that a person does not wait for a poll. Only one at a time and for `GUEST_MS` of a
   * reading in all, and never in front of a switch: otherwise it queues like a reading.
   */
  async beside<T>(
    line: string,
    what: string,
    operation: (controller: PowerController) => Promise<T>,
    turn: Turn = {},
  ): Promise<T> {
    const host = this.#current;
    const isUrgent = this.#emergency.length + this.#switching.length > 0;
    if (host?.lane !== "reading" || host.guestMs >= GUEST_MS || isUrgent || this.#overdue !== undefined)
      return this.do(line, what, operation, turn);
    turn.signal?.throwIfAborted();
    const spentMs = host.guestMs;
    host.guestMs = Number.POSITIVE_INFINITY; // no second one meanwhile
    const over = new AbortController();
    const startedMs = performance.now();
    const limit = sleep(LIMIT_MS, undefined, { signal: over.signal }).then(() => {
      throw this.#hangs(`${what} ${line}`);
    });
    limit.catch(() => undefined);
    try {
      return await Promise.race([operation(this.controller), limit]);
    } finally {
      over.abort();
      host.guestMs = spentMs + performance.now() - startedMs;
    }
  }

  #queue(lane: Lane, line: string, job: Job): void {
    const ahead = { emergency: this.#emergency, switching: this.#switching, reading: this.#readings() }[lane];
    if (ahead.length >= this.#depth)
      throw new Refusal("busy", `${this.name}: ${ahead.length} operations wait already; try again shortly`);
    if (lane === "reading") this.#lines.set(line, [...(this.#lines.get(line) ?? []), job]);
    else ahead.push(job);
  }

  #readings(): Job[] {
    return [...this.#lines.values()].flat();
  }

  #next(): Job | undefined {
    const first = this.#emergency.shift() ?? this.#switching.shift();
    if (first) return first;
    for (const [line, [job, ...rest]] of this.#lines) {
      // To the end of the round: a map keeps the order in which keys were added.
      this.#lines.delete(line);
      if (rest.length > 0) this.#lines.set(line, rest);
      return job;
    }
    return undefined;
  }

  async #work(): Promise<void> {
    if (this.#isWorking) return;
    this.#isWorking = true;
    for (let job = this.#next(); job; job = this.#next()) {
      this.#current = job;
      await this.#perform(job);
    }
    this.#current = undefined;
    this.#isWorking = false;
  }

  async #perform(job: Job): Promise<void> {
    const over = new AbortController();
    const ended = job.begin().then(() => over.abort());
    await Promise.race([ended, sleep(LIMIT_MS, undefined, { signal: over.signal }).catch(() => undefined)]);
    if (over.signal.aborted) return;
    this.#overdue = job.what;
    const waiting = [...this.#emergency.splice(0), ...this.#switching.splice(0), ...this.#readings()];
    this.#lines.clear();
    for (const refused of [job, ...waiting]) refused.refuse(this.#hangs(job.what));
    await ended;
    this.#overdue = undefined;
  }

  #hangs(what: string): HalError {
    return new HalError("timeout", `${this.name}: "${what}" does not end and holds the bus`);
  }
}
