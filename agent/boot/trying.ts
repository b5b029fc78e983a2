/** The trial that this start is: its checks, what it leaves behind, and how it ends for the slot. */
import { setTimeout as sleep } from "node:timers/promises";
import type { SlotName } from "../../boot/layout.ts";
import type { BootRecord } from "../../boot/record.ts";
import { readThrough } from "./card.ts";
import { checksOf } from "./checks.ts";
import { onPaper } from "./keeper.ts";
import { wordOf } from "./kernel.ts";
import { appendMark, readMarks } from "./marks.ts";
import { isOf } from "./plan.ts";
import type { BootOptions } from "./service.ts";
import type { Kept } from "./slots.ts";
import { type CheckState, Trial, type TrialEnd } from "./trial.ts";

/** What a trial needs to know; times are milliseconds of `nowMs`. */
export interface TryingOptions {
  options: BootOptions;
  slot: SlotName;
  record: BootRecord;
  kept: Kept;
  dir: string;
  nowMs: () => number;
  /** When this agent, and when this machine, was started. */
  startedMs: number;
  bootedMs: number;
  /** What works now. */
  facts(): string[];
  changed(): void;
  trouble(error: unknown): void;
}

/** How it ended: the slot is good, it has failed and the node goes down, or the agent was told to stop. */
export type Ending = "good" | "failed" | "stopped";

/** One slot on trial, in one start. */
export class Trying {
  readonly slot: SlotName;
  readonly #all: TryingOptions;
  readonly #trial: Trial;
  readonly #byHand = new AbortController();
  #ending: Ending = "stopped";
  #begun: Promise<void> = Promise.resolve();

  constructor(all: TryingOptions) {
    const { options, nowMs, bootedMs, changed } = all;
    this.slot = all.slot;
    this.#all = all;
    this.#trial = new Trial({
      checks: this.#checks(),
      boot: options.hal.machine.bootId,
      deadlineMs: bootedMs + options.config.deadline_seconds * 1000,
      settleMs: options.config.settle_seconds * 1000,
      everyMs: options.config.check_seconds * 1000,
      nowMs,
      log: options.log,
      changed,
    });
  }

  /** For `boot.status`. */
  get progress(): { left_s: number; checks: CheckState[] } {
    return { left_s: Math.floor(this.#trial.leftMs / 1000), checks: this.#trial.states };
  }

  /** Checks that are not good now. */
  get missing(): CheckState[] {
    return this.#trial.states.filter(({ state }) => state !== "good");
  }

  /** A person has decided, and the record says so. */
  end(ending: Ending): void {
    this.#ending = ending;
    this.#byHand.abort();
  }

  /** Leaves word that the agent was reached, and of the deadline. */
  begin(): Promise<void> {
    this.#begun = this.#begin();
    return this.#begun;
  }

  /** The trial's beginning was told, or could not be: what a person decides is told after it. */
  async begun(): Promise<void> {
    await this.#begun.catch(() => undefined);
  }

  /** To its end, and into the record. */
  async run(signal: AbortSignal): Promise<Ending> {
    const stop = AbortSignal.any([signal, this.#byHand.signal]);
    const end = await this.#decide(await this.#trial.run(stop), stop);
    if (end.is === "passed") return "good";
    if (end.is === "failed") {
      await this.#fail(end.reason);
      return "failed";
    }
    if (this.#byHand.signal.aborted) return this.#ending;
    await this.#mark("stopped");
    return "stopped";
  }

  /** Passed means that the record says so: until the deadline that is tried again. */
  async #decide(end: TrialEnd, signal: AbortSignal): Promise<TrialEnd> {
    if (end.is !== "passed") return end;
    const { kept, options, trouble } = this.#all;
    const evidence = this.#trial.states.map(({ name, message }) => `${name}: ${message}`);
    while (!signal.aborted && this.#trial.leftMs > 0) {
      try {
        await kept.keeper.confirm(this.slot, evidence);
        return end;
      } catch (error) {
        trouble(error);
      }
      await sleep(options.config.check_seconds * 1000, undefined, { signal }).catch(() => undefined);
    }
    return signal.aborted ? { is: "stopped" } : { is: "failed", reason: "deadline" };
  }

  /** The slot is given up; the node goes down even where that could not be written. */
  async #fail(reason: "check-failed" | "fatal-check" | "deadline"): Promise<void> {
    const { kept, record, trouble } = this.#all;
    const { states } = this.#trial;
    // What is on the medium is not what was signed: the card's fault
    const isCard = states.some(({ name, state }) => name === "slot" && state === "bad");
    const why = isCard ? "files-damaged" : reason;
    await kept.keeper.fail(this.slot, why, states, record.trial?.started ?? 1).catch(trouble);
    kept.keeper.expire(0);
  }

  async #begin(): Promise<void> {
    const { kept, record, options } = this.#all;
    kept.keeper.expire(options.config.deadline_seconds);
    await this.#mark("agent");
    await kept.keeper.begun(record, this.slot);
  }

  async #mark(what: "agent" | "stopped"): Promise<void> {
    const { record, options, dir } = this.#all;
    const { id: trial, started: attempt } = record.trial ?? { id: 0, started: 0 };
    const boot = options.hal.machine.bootId;
    await onPaper(appendMark(dir, { trial, attempt, boot, what })).catch((error) =>
      options.log("error", "boot.not-written", { error: String(error) }),
    );
  }

  #checks() {
    const { options, kept, slot, record, dir, nowMs, startedMs, facts } = this.#all;
    const { card, keeper } = kept;
    const { machine } = options.hal;
    return checksOf({
      config: options.config,
      boot: machine.bootId,
      machine,
      socket: options.socket,
      dir,
      baseline: keeper.plan?.baseline ?? [],
      facts,
      upSeconds: () => (nowMs() - startedMs) / 1000,
      marks: () => readMarks(dir),
      planProblem: () => {
        const { plan } = keeper;
        if (!plan || plan.slot !== slot || !isOf(plan, record))
          return `${dir}/trial.json does not say what this trial is measured by`;
        const started = wordOf(machine, "fruit.trial");
        return started === undefined || Number(started) === record.trial?.id
          ? undefined
          : `the kernel was started for trial ${started}, the record speaks of ${record.trial?.id}`;
      },
      readSlot: (signal) => readThrough(card, slot, record.slots[slot], signal),
    });
  }
}
