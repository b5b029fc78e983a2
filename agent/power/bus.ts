import { setTimeout as sleep } from "node:timers/promises";
import { HalError, type PowerController } from "../../hal/ports.ts";
import { Refusal } from "../commands.ts";

/** Longest an operation may hold the bus: every driver gives up far earlier, so this names a driver that hangs. */
const LIMIT_MS = 10_000;

/** A scan asks 255 boards that mostly do not answer. */
export const SCAN_LIMIT_MS = 180_000;

interface Job {
  what: string;
  limitMs: number;
  /** Never rejects: the asker gets the error. */
  begin(): Promise<void>;
  refuse(error: Error): void;
}

/**
 * The queue in front of one bus of boards (rule P15).
 *
 * Invariants
 * - One operation at a time; one that hangs keeps the bus, since the wire is still its own.
 * - Lines (an outlet, a board) take turns, so that nobody waits behind all the polls of another.
 * - Urgent operations go first.
 * - No more than `depth` operations wait; the next is refused.
 */
export class Bus {
  readonly name: string;
  readonly controller: PowerController;
  readonly #depth: number;
  readonly #lines = new Map<string, Job[]>();
  readonly #urgent: Job[] = [];
  #isWorking = false;
  #overdue: string | undefined;

  constructor(name: string, controller: PowerController, depth = 16 + 4 * controller.outlets.length) {
    this.name = name;
    this.controller = controller;
    this.#depth = depth;
  }

  /** Operations that wait for their turn. */
  get waiting(): number {
    return this.#jobs().length;
  }

  /** Runs one operation when its turn comes. Throws what the driver throws, `Refusal` busy, or `HalError` timeout. */
  do<T>(
    line: string,
    what: string,
    operation: (controller: PowerController) => Promise<T>,
    { urgent = false, limitMs = LIMIT_MS }: { urgent?: boolean; limitMs?: number } = {},
  ): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      if (this.#overdue !== undefined) return reject(this.#hangs(this.#overdue));
      // An emergency is still let in when polls have filled the queue.
      if (this.waiting >= this.#depth * (urgent ? 2 : 1))
        return reject(
          new Refusal("busy", `${this.name}: ${this.waiting} operations wait already; try again shortly`),
        );
      const job: Job = {
        what: `${what} ${line}`,
        limitMs,
        begin: () => operation(this.controller).then(resolve, reject),
        refuse: reject,
      };
      if (urgent) this.#urgent.push(job);
      else this.#lines.set(line, [...(this.#lines.get(line) ?? []), job]);
      void this.#work();
    });
  }

  #jobs(): Job[] {
    return [...this.#urgent, ...[...this.#lines.values()].flat()];
  }

  #next(): Job | undefined {
    const urgent = this.#urgent.shift();
    if (urgent) return urgent;
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
    for (let job = this.#next(); job; job = this.#next()) await this.#perform(job);
    this.#isWorking = false;
  }

  async #perform(job: Job): Promise<void> {
    const over = new AbortController();
    const ended = job.begin().then(() => over.abort());
    await Promise.race([
      ended,
      sleep(job.limitMs, undefined, { signal: over.signal }).catch(() => undefined),
    ]);
    if (over.signal.aborted) return;
    this.#overdue = job.what;
    const waiting = this.#jobs();
    this.#urgent.length = 0;
    this.#lines.clear();
    for (const refused of [job, ...waiting]) refused.refuse(this.#hangs(job.what));
    await ended;
    this.#overdue = undefined;
  }

  #hangs(what: string): HalError {
    return new HalError("timeout", `${this.name}: "${what}" does not end and holds the bus`);
  }
}
