/**
 * What the agent does to slots and what it writes down about it. The record on the card decides; history, quarantine and the
 * trial's own record follow it, and are brought up to it at every start.
 */
import { mkdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { failpoint } from "../../boot/failpoint.ts";
import { otherSlot, type SlotName } from "../../boot/layout.ts";
import type { BootRecord, Reason } from "../../boot/record.ts";
import type { BootSwitch } from "../../boot/switch.ts";
import { within } from "../../hal/limit.ts";
import type { Machine } from "../../hal/ports.ts";
import type { Log } from "../log.ts";
import type { Tell } from "../messages.ts";
import type { Store } from "../store.ts";
import { floorInside } from "./floor.ts";
import { type Happening, type History, type HistoryLine, LOOK_BACK } from "./history.ts";
import { clearMarks } from "./marks.ts";
import { loadPlan, type Plan, savePlan } from "./plan.ts";
import { MOST_ROUNDS, type Quarantine } from "./quarantine.ts";
import { clearStarts } from "./starts.ts";
import type { CheckState } from "./trial.ts";
import type { Cause, Verdict } from "./verdict.ts";

/** What the keeper works with. */
export interface KeeperOptions {
  boot: BootSwitch;
  history: History;
  quarantine: Quarantine;
  store: Store;
  /** The folder of history, marks and the rest. */
  dir: string;
  runDir: string;
  clock: () => { synced: boolean };
  machine: Pick<Machine, "read">;
  /** Who signed what has become good counts for nothing older. */
  raiseSignerFloors(slot: SlotName, hash: string): Promise<void>;
  tell: Tell;
  log: Log;
}

/** What the old slot knows of a trial that failed for want of what is around it. */
export interface OldSlot {
  /** Whether it has now what these checks, by this yardstick, did not find. */
  has(checks: readonly string[], baseline: readonly string[]): Promise<boolean>;
  /** It has run for so long that what it has now says nothing of that moment. */
  isLate: boolean;
}

/** Longest wait for the data folder: what hangs there must not keep a node from giving up what is bad. */
const PAPER_MS = 10_000;

/** What is written in the data folder, within its time. */
export const onPaper = <T>(work: Promise<T>) =>
  within(PAPER_MS, work, () => new Error(`the data folder takes nothing within ${PAPER_MS / 1000} s`));

/** Keeps the slots of one node. */
export class Keeper {
  readonly #options: KeeperOptions;
  #plan: Plan | undefined;

  constructor(options: KeeperOptions) {
    this.#options = options;
    this.#plan = loadPlan(options.store);
  }

  get plan(): Plan | undefined {
    return this.#plan;
  }

  /** Has the next start try the other slot. `plan` is written down first: without it the trial could not be confirmed. */
  async arm(plan: Plan, tries: number): Promise<BootRecord> {
    const { boot, dir } = this.#options;
    await clearMarks(dir);
    await this.#keep(plan);
    failpoint("trial.before-arm");
    const record = await boot.armTrial(plan.slot, tries);
    failpoint("trial.armed");
    const armed = { ...plan, ...(record.trial ? { trial: record.trial.id } : {}) };
    await this.#keep(armed);
    await this.#write({ what: "armed", ...about(armed), by: plan.by });
    return record;
  }

  /** A trial begins in this start. */
  async begun(record: BootRecord, slot: SlotName): Promise<void> {
    const { trial } = record;
    if (!trial) return;
    // The power went between arming and noting which trial it is
    if (
      this.#plan?.slot === slot &&
      this.#plan.hash === record.slots[slot].hash &&
      this.#plan.trial === undefined
    )
      await this.#keep({ ...this.#plan, trial: trial.id });
    const facts = { ...factsOf(record, slot), trial: trial.id, attempt: Math.max(1, trial.started) };
    const isNew = await this.#writeOnce({ what: "started", ...facts });
    if (isNew)
      this.#options.tell("boot.trial.started", {
        ...facts,
        tries_left: trial.triesLeft,
        message: `trying version ${facts.version} in slot ${slot}, try ${facts.attempt}`,
      });
  }

  /** The slot on trial has become good. */
  async confirm(
    slot: SlotName,
    evidence: string[],
    by?: { who: string; reason?: string },
  ): Promise<BootRecord> {
    const { boot, machine } = this.#options;
    const planned = this.#plan?.slot === slot ? BigInt(this.#plan.floor) : 0n;
    const before = await boot.read();
    const inside = floorInside(machine, before.slots[slot].version);
    const floor = planned > inside ? planned : inside;
    failpoint("trial.before-confirm");
    // What took the card too long to answer may have been done since
    const record = before.primary === slot ? before : await boot.setPrimary(slot, { floor });
    failpoint("trial.confirmed");
    await this.#startAfresh();
    await this.confirmed(record, slot, evidence, by);
    return record;
  }

  /** Tells of a confirmed trial whatever was not told yet. */
  async confirmed(
    record: BootRecord,
    slot: SlotName,
    evidence: string[],
    by?: { who: string; reason?: string },
  ): Promise<void> {
    const { quarantine, tell, raiseSignerFloors } = this.#options;
    this.#decided();
    const facts = { ...factsOf(record, slot), trial: record.confirmed };
    await onPaper(raiseSignerFloors(slot, facts.hash)).catch((error) => this.#unwritten(error));
    const isNew = await this.#writeOnce({
      what: "confirmed",
      ...facts,
      evidence,
      ...(by ? { by: by.who, ...(by.reason ? { cause: by.reason } : {}) } : {}),
    });
    if (isNew)
      tell("boot.trial.confirmed", {
        ...facts,
        message: `version ${facts.version} in slot ${slot} is good`,
      });
    await quarantine.lift(record.slots[slot].hash).catch((error) => this.#unwritten(error));
    await this.#keep(undefined).catch((error) => this.#unwritten(error));
  }

  /** The slot on trial has failed, says the slot itself. The record first: whatever happens then, it is not started again. */
  async fail(slot: SlotName, reason: Reason, states: readonly CheckState[], attempt: number): Promise<void> {
    const { boot } = this.#options;
    const plan = this.#plan;
    const wrong = states.filter(({ state }) => state !== "good");
    const evidence = wrong.map(({ name, state, message }) => `${name} ${state}: ${message}`);
    if (plan) {
      const failed = { attempt, checks: wrong.map(({ name }) => name), evidence };
      await this.#keep({ ...plan, failed }).catch((error) => this.#unwritten(error));
    }
    failpoint("trial.before-fail");
    const record = await boot.setState(slot, { to: "failed", reason });
    failpoint("trial.failed");
    await this.#tellFailed(record, slot, { reason, evidence }, plan?.trial);
  }

  /** Tells in the old slot of a trial that failed, and draws the consequences. False while its plan has to be kept. */
  async settleFailed(
    record: BootRecord,
    { slot, cause, plan }: Extract<Verdict, { is: "failed" }>,
    old: OldSlot,
  ): Promise<boolean> {
    const { boot, tell } = this.#options;
    const { reason, evidence } = cause;
    const known =
      record.slots[slot].reason === reason ? record : await boot.setState(slot, { to: "failed", reason });
    const facts = factsOf(known, slot);
    const trial = plan?.trial === undefined ? {} : { trial: plan.trial };
    await this.#tellFailed(known, slot, { reason, evidence }, plan?.trial);
    const runs = known.slots[known.primary].version;
    const isNew = await this.#writeOnce({ what: "rolled-back", ...facts, ...trial, cause: reason, evidence });
    if (isNew)
      tell("boot.rolled-back", {
        ...facts,
        ...trial,
        reason,
        evidence,
        message: `back to version ${runs} in slot ${known.primary}: version ${facts.version} failed (${reason})`,
      });
    const isRound = cause.blame === "round" || cause.blame === "suspect";
    if (isNew && isRound)
      await this.#options.quarantine.addRound(facts.hash).catch((error) => this.#unwritten(error));
    const isOver = await this.#blame(known, slot, cause, { plan, old });
    if (isOver && plan) await this.#keep(undefined).catch((error) => this.#unwritten(error));
    return isOver;
  }

  /** The primary slot was damaged, or its starts led to nothing: U-Boot or the initramfs took the other. */
  async fallenBack(record: BootRecord, slot: SlotName, cause: Cause, old: OldSlot): Promise<void> {
    const { reason, evidence, blame } = cause;
    // Which trial had made it good: the same content may be installed again, and give way again
    const facts = { ...factsOf(record, slot), ...(record.confirmed > 0 ? { trial: record.confirmed } : {}) };
    const isNew = await this.#writeOnce({ what: "fallen-back", ...facts, cause: reason, evidence });
    const why = reason === "starts-spent" ? "was started again and again and never stayed up" : "is damaged";
    if (isNew)
      this.#options.tell("boot.rolled-back", {
        ...facts,
        reason,
        evidence,
        message: `slot ${slot} (version ${facts.version}) ${why}; this node starts from slot ${record.primary}`,
      });
    // Becoming good clears what trials have counted, so that the history counts
    const isProof = blame === "round" && (await this.#fallsOf(facts.hash)) >= MOST_ROUNDS;
    await this.#blame(record, slot, isProof ? { ...cause, blame: "quarantine" } : cause, {
      plan: undefined,
      old,
    });
  }

  /** How often a content was good and has then led to nothing. */
  async #fallsOf(hash: string): Promise<number> {
    const lines = await onPaper(this.#options.history.tail(LOOK_BACK)).catch(() => []);
    const isFall = (line: HistoryLine) => line.what === "fallen-back" && line.cause === "starts-spent";
    return lines.filter((line) => isFall(line) && line.hash === hash).length;
  }

  /** A whole release stands in the other slot. */
  async installed(record: BootRecord): Promise<void> {
    const slot = otherSlot(record.primary);
    if (record.slots[slot].state === "staged")
      await this.#writeOnce({ what: "installed", ...factsOf(record, slot) });
  }

  /** A person goes back: off the slot on trial, or to the other good one. */
  async rollBack(
    record: BootRecord,
    from: SlotName,
    by: { who: string; reason: string },
    what: "rolled-back" | "dropped" = "rolled-back",
  ): Promise<BootRecord> {
    const { boot } = this.#options;
    const isPrimary = from === record.primary;
    failpoint("trial.before-fail");
    const next = isPrimary
      ? await boot.setPrimary(otherSlot(from), { reason: "by-hand" })
      : await boot.setState(from, { to: "failed", reason: "by-hand" });
    failpoint("trial.failed");
    this.#decided();
    await this.#startAfresh();
    await this.#write({
      what,
      ...factsOf(record, from),
      ...(record.trial ? { trial: record.trial.id } : {}),
      cause: by.reason,
      by: by.who,
    });
    await this.#keep(undefined).catch((error) => this.#unwritten(error));
    return next;
  }

  /** A person wants a content tried again that was not to be. */
  async release(slot: SlotName, record: BootRecord, by: { who: string; reason: string }): Promise<void> {
    const { quarantine } = this.#options;
    const facts = factsOf(record, slot);
    if (quarantine.of(facts.hash))
      await this.#write({ what: "released", ...facts, by: by.who, cause: by.reason });
    await quarantine.lift(facts.hash);
  }

  async #blame(
    record: BootRecord,
    slot: SlotName,
    { blame, reason, evidence, lacks }: Cause,
    { plan, old }: { plan: Plan | undefined; old: OldSlot },
  ): Promise<boolean> {
    const { quarantine } = this.#options;
    const facts = factsOf(record, slot);
    if (blame === "none" || blame === "round") return true;
    if (blame === "suspect") {
      if (plan?.trial === undefined || (lacks && old.isLate)) return true;
      if (lacks && !(await old.has(lacks, plan.baseline))) return false;
      const isAgain = await quarantine.suspect(facts.hash, plan.trial, lacks ?? [reason]);
      if (!isAgain) return true;
    }
    await this.quarantine(record, slot, reason, evidence);
    return true;
  }

  /** What a slot holds is not tried again by itself. */
  async quarantine(record: BootRecord, slot: SlotName, reason: string, evidence: string[]): Promise<void> {
    const { quarantine, tell, clock } = this.#options;
    const facts = factsOf(record, slot);
    const at = clock().synced ? { at: new Date().toISOString() } : {};
    await quarantine.add(facts.hash, { version: facts.version, reason, evidence, ...at });
    if (await this.#writeOnce({ what: "quarantined", ...facts, cause: reason, evidence }))
      tell("boot.quarantined", {
        ...facts,
        reason,
        message: `version ${facts.version} (${facts.hash}) is not tried again by itself`,
      });
  }

  /** One line of the history; where it cannot be written the log says so. */
  note(happening: Happening): Promise<void> {
    return this.#write(happening);
  }

  async #tellFailed(
    record: BootRecord,
    slot: SlotName,
    { reason, evidence }: { reason: Reason; evidence: string[] },
    trial: number | undefined,
  ): Promise<void> {
    const facts = { ...factsOf(record, slot), ...(trial === undefined ? {} : { trial }) };
    const isNew = await this.#writeOnce({ what: "failed", ...facts, cause: reason, evidence });
    if (isNew)
      this.#options.tell("boot.trial.failed", {
        ...facts,
        reason,
        evidence,
        message: `version ${facts.version} in slot ${slot} failed: ${reason}${evidence[0] ? `: ${evidence[0]}` : ""}`,
      });
  }

  /** What was started in vain before is not held against the slot that is started from now on. */
  async #startAfresh(): Promise<void> {
    await onPaper(clearStarts(this.#options.dir)).catch((error) => this.#unwritten(error));
  }

  /** There is no deadline any more. */
  #decided(): void {
    rmSync(join(this.#options.runDir, "trial"), { force: true });
  }

  /** Tells the watchdog feeder by when the trial is decided, in seconds of uptime; 0: the node is to be started anew. */
  expire(uptimeSeconds: number): void {
    const { runDir, log } = this.#options;
    try {
      mkdirSync(runDir, { recursive: true, mode: 0o755 });
      writeFileSync(join(runDir, "trial"), `${Math.floor(uptimeSeconds)}\n`);
    } catch (error) {
      log("error", "boot.no-deadline", { error: String(error) });
    }
  }

  async #keep(plan: Plan | undefined): Promise<void> {
    this.#plan = plan;
    await onPaper(savePlan(this.#options.store, plan));
  }

  /** A history that cannot be written must not keep a node from starting well, or from giving up what is bad. */
  async #writeOnce(happening: Happening): Promise<boolean> {
    try {
      return await onPaper(this.#options.history.addOnce(happening));
    } catch (error) {
      this.#unwritten(error);
      return true;
    }
  }

  async #write(happening: Happening): Promise<void> {
    await onPaper(this.#options.history.add(happening)).catch((error) => this.#unwritten(error));
  }

  #unwritten(error: unknown): void {
    this.#options.log("error", "boot.not-written", {
      error: error instanceof Error ? error.message : String(error),
    });
  }
}

/** What a line of the history says of a slot. */
function factsOf({ slots }: BootRecord, slot: SlotName): { slot: SlotName; version: string; hash: string } {
  const { version, hash } = slots[slot];
  return { slot, version: String(version), hash };
}

function about({ slot, version, hash, trial }: Plan) {
  return { slot, version, hash, ...(trial === undefined ? {} : { trial }) };
}
