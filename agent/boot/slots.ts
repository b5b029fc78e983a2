/** The slots of this node while the agent runs: what this start is, and what follows from it. */
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { ForeignCard, otherSlot, type SlotName } from "../../boot/layout.ts";
import type { BootRecord } from "../../boot/record.ts";
import { Refusal } from "../commands.ts";
import { Store } from "../store.ts";
import { raiseSignerFloors } from "../update/trust.ts";
import { Baseline } from "./baseline.ts";
import { type OpenCard, openWithin, timely } from "./card.ts";
import { deviceFacts, hasAround } from "./checks.ts";
import { asAsked } from "./health.ts";
import { History } from "./history.ts";
import { Keeper, type OldSlot, onPaper } from "./keeper.ts";
import { uptimeOf, wordOf } from "./kernel.ts";
import { readMarks } from "./marks.ts";
import { Quarantine } from "./quarantine.ts";
import { rebootUntil } from "./reboot.ts";
import { lookForRot } from "./rot.ts";
import type { BootOptions } from "./service.ts";
import { settle } from "./settle.ts";
import { forgetStart, LoopBreaker, spentIn } from "./starts.ts";
import { type BootStatus, stateOf, statusOf } from "./status.ts";
import { Trying } from "./trying.ts";
import { judge, type Verdict } from "./verdict.ts";

/** How often a card that could not be used is tried again. */
const RETRY_MS = 30_000;
/** How often the record is looked at, and what works is written down. */
const ROUND_MS = 20_000;
/** Longest that a last mark may hold up the end of the agent. */
const LAST_MS = 200;

/** All that is open while a card can be used. */
export interface Kept {
  card: OpenCard;
  keeper: Keeper;
  history: History;
  quarantine: Quarantine;
  baseline: Baseline;
}

/** The slots of one node. `run` it once. */
export class Slots {
  readonly options: BootOptions;
  readonly #nowMs: () => number;
  readonly #startedMs: number;
  /** What `nowMs` was when the machine started. */
  readonly #bootedMs: number;
  readonly #dir: string;
  readonly #loops: LoopBreaker;
  #kept: Kept | undefined;
  #closing: AsyncDisposableStack | undefined;
  #record: BootRecord | undefined;
  #verdict: Verdict | undefined;
  #trying: Trying | undefined;
  #status: BootStatus | undefined;
  #problem = "the agent has not looked at its card yet; try again";
  #hasNone = false;
  #said = "";
  #saying: Promise<unknown> = Promise.resolve();
  #reboot = Promise.withResolvers<string>();
  /** This agent has the node start anew by itself, which a loop may be made of. */
  #isOrdered = false;

  constructor(options: BootOptions) {
    this.options = options;
    this.#nowMs = options.nowMs ?? (() => performance.now());
    this.#startedMs = this.#nowMs();
    this.#bootedMs = this.#startedMs - uptimeOf(options.hal.machine) * 1000;
    this.#dir = join(options.dataDir, "boot");
    this.#loops = new LoopBreaker(this.#dir, options);
  }

  /** As it was last looked at; undefined where there are no slots. */
  get status(): BootStatus | undefined {
    return this.#status;
  }

  /** What can be worked with. Throws `Refusal` with the way out where there is nothing. */
  get kept(): Kept {
    if (this.#kept && this.#record) return this.#kept;
    throw new Refusal(this.#hasNone ? "no-slots" : "busy", this.#problem);
  }

  /** The trial that this start is, while it is undecided. */
  get trying(): Trying | undefined {
    return this.#trying;
  }

  /** Starts in a row without health, while they are a loop. */
  get loop(): number | undefined {
    return this.#loops.starts;
  }

  /** Why nothing is begun in this start yet, or any more. */
  get unrest(): string | undefined {
    if (this.#isOrdered) return "This node is about to start anew.";
    const leftMs = this.options.config.healthy_seconds * 1000 - (this.#nowMs() - this.#bootedMs);
    return leftMs > 0 ? `This start has to stay well for ${Math.ceil(leftMs / 1000)} s more.` : undefined;
  }

  /** The yardstick as it is now. */
  get facts(): string[] {
    return this.#kept?.baseline.facts ?? [];
  }

  /** Starts this node anew, a moment later. */
  reboot(why: string): void {
    this.#isOrdered = true;
    this.#reboot.resolve(why);
  }

  /** Reads the record anew and says how things are. Throws what the card says. */
  async look(): Promise<BootStatus> {
    const { card, keeper } = this.#needed;
    this.#record = await card.boot.read();
    await keeper.installed(this.#record);
    return this.#say(this.#record);
  }

  async run(signal: AbortSignal): Promise<void> {
    const rebooting = this.#reboot.promise.then((why) =>
      rebootUntil(why, { ...this.options, command: this.options.config.reboot_command }, signal),
    );
    const stopped = new Promise<void>((resolve) => {
      if (signal.aborted) resolve();
      signal.addEventListener("abort", () => resolve(), { once: true });
    });
    const living = this.#live(signal);
    await Promise.race([living, stopped]);
    await Promise.race([rebooting, stopped]);
    // A last mark, and the files; a card that hangs is not waited for
    const ending = living.then(() => Promise.all([this.#close(), this.#forget()]));
    await Promise.race([ending, sleep(LAST_MS, undefined, { ref: false })]);
  }

  async #live(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      try {
        if (!(await this.#open(signal))) return;
        this.options.alarm("boot-card", null);
        await this.#start(signal);
        return;
      } catch (error) {
        if (signal.aborted) return;
        if (error instanceof ForeignCard) return this.#refuse(error.message);
        this.#trouble(error);
      }
      await this.#recover();
      this.#expireBlind();
      await sleep(RETRY_MS, undefined, { signal }).catch(() => undefined);
    }
  }

  /** Opens card and papers. False on a machine without slots. */
  async #open(signal: AbortSignal): Promise<boolean> {
    if (this.#kept) return true;
    const { options } = this;
    // Closed again when something is missing, or the agent has stopped meanwhile: a card may take long to open
    await using opened = new AsyncDisposableStack();
    const card = await openWithin(options.open(), (late) => late?.disk.close());
    if (!card) {
      this.#refuse("this machine does not run from a card with slots; build one with 'bun run image'");
      return false;
    }
    opened.defer(() => card.disk.close());
    this.#tellLost();
    mkdirSync(this.#dir, { recursive: true, mode: 0o700 });
    const store = new Store(this.#dir, options.log);
    const opening = History.open(this.#dir, {
      boot: options.hal.machine.bootId,
      clock: () => (options.clock().synced ? "synced" : "unsynced"),
    });
    const history = await openWithin(opening, (late) => late.close());
    opened.defer(() => history.close());
    const quarantine = new Quarantine(store);
    const boot = timely(card.boot, card.disk.name);
    const keeper = new Keeper({
      ...{ boot, history, quarantine, store, dir: this.#dir },
      ...{ runDir: options.config.run_dir, clock: options.clock, tell: options.tell, log: options.log },
      machine: options.hal.machine,
      raiseSignerFloors: (slot, hash) => raiseSignerFloors(options.dataDir, slot, hash),
    });
    const baseline = new Baseline(store, this.#nowMs);
    signal.throwIfAborted();
    this.#closing = opened.move();
    this.#kept = { card: { ...card, boot }, keeper, history, quarantine, baseline };
    return true;
  }

  /** The initramfs leaves word when the data partition could not be used. */
  #tellLost(): void {
    const { hal, config, dataDir, alarm } = this.options;
    if (!hal.machine.list(config.run_dir).includes("data-lost")) return;
    const message = `the data partition cannot be used: ${dataDir} is in memory, and what is written there is lost at the next start`;
    alarm("data-lost", { severity: "critical", message });
  }

  /** Finds out what this start is, and lives it. */
  async #start(signal: AbortSignal): Promise<void> {
    const { options } = this;
    const { card, keeper } = this.#needed;
    this.#record = await card.boot.settle();
    const { current } = card.boot;
    if (current === undefined) {
      options.log("info", "boot.no-slot", { disk: card.disk.name });
      return this.#stay(signal);
    }
    const marks = await onPaper(readMarks(this.#dir));
    const { bootId: boot } = options.hal.machine;
    const spent = await onPaper(spentIn(this.#dir, otherSlot(current)));
    const verdict = judge({ record: this.#record, current, plan: keeper.plan, marks, boot, spent });
    this.#verdict = verdict;
    options.log("info", "boot.start", { slot: current, is: verdict.is });
    if (verdict.is === "on-trial") {
      if (!(await this.#try(verdict.slot, this.#record, signal))) return;
    } else {
      await this.#loops.count(current);
      await this.#settle(verdict, this.#record);
    }
    await this.#stay(signal);
  }

  get #needed(): Kept {
    if (!this.#kept) throw new Error(this.#problem);
    return this.#kept;
  }

  /** Does what follows from a verdict; what is left of it is looked at again. */
  async #settle(verdict: Verdict, record: BootRecord): Promise<void> {
    const { keeper, card } = this.#needed;
    const { options } = this;
    this.#verdict = await settle(verdict, {
      ...{ keeper, record, kind: card.boot.kind, isLoop: this.#loops.starts !== undefined },
      ...{ old: this.#old, alarm: options.alarm, log: options.log },
      reboot: (why) => this.reboot(why),
    });
    this.#record = await card.boot.read();
  }

  /** What this slot has, of what one on trial did not find. */
  get #old(): OldSlot {
    const { config, hal } = this.options;
    const around = { config, machine: hal.machine, dir: this.#dir, facts: () => this.seen() };
    return {
      has: (checks, baseline) => hasAround(checks, { ...around, baseline }),
      isLate: this.#nowMs() - this.#bootedMs >= config.deadline_seconds * 1000,
    };
  }

  /** Runs the trial this start is. True once the slot is good. */
  async #try(slot: SlotName, record: BootRecord, signal: AbortSignal): Promise<boolean> {
    const { config, dataDir } = this.options;
    const asked = onPaper(asAsked(config, dataDir, slot, record.slots[slot].hash)).catch(() => config);
    const options = { ...this.options, config: await asked };
    this.#trying = new Trying({
      ...{ options, slot, record, dir: this.#dir, kept: this.#needed },
      ...{ nowMs: this.#nowMs, startedMs: this.#startedMs, bootedMs: this.#bootedMs },
      facts: () => this.seen(),
      changed: () => void this.#say(record).catch(() => undefined),
      trouble: (error) => this.#trouble(error),
    });
    const beginning = this.#trying.begin();
    await this.#say(record);
    await beginning;
    const end = await this.#trying.run(signal);
    if (end === "good") {
      this.#trying = undefined;
      return true;
    }
    if (end === "failed") {
      await this.look().catch(() => undefined);
      this.reboot(`the trial of slot ${slot} has failed`);
    }
    return false;
  }

  /** What works now, as facts. */
  seen(): string[] {
    const { options } = this;
    return [
      ...(options.isBrokerReached() ? ["broker"] : []),
      ...(options.clock().synced ? ["clock"] : []),
      ...(options.isStackBeating() ? ["stack"] : []),
      ...options.buses().map((bus) => `bus:${bus}`),
      ...deviceFacts(options.hal.machine),
    ];
  }

  /** The life of a good slot: what works is written down, and what a person or an install changed is seen. */
  async #stay(signal: AbortSignal): Promise<void> {
    const { baseline, card } = this.#needed;
    const { options } = this;
    const version = () => String(this.#record?.slots[card.boot.current ?? "a"].version ?? "");
    const hours = card.boot.current === undefined ? 0 : options.config.audit_hours;
    const reading = lookForRot({ card, hours, alarm: options.alarm, log: options.log }, signal);
    while (!signal.aborted) {
      await this.#recover();
      try {
        await this.look();
        const verdict = this.#verdict;
        if (verdict?.is === "failed" && this.#record) {
          // What has been installed there since is another matter
          const isStill = this.#record.slots[verdict.slot].state === "failed";
          if (isStill) await this.#settle(verdict, this.#record);
          else this.#verdict = { is: "good" };
        }
        if (card.boot.current !== undefined && card.boot.current === this.#record?.primary) {
          baseline.observe(this.seen(), version());
          await baseline.save(options.hal.machine.bootId);
        }
        options.alarm("boot-card", null);
      } catch (error) {
        this.#trouble(error);
      }
      await sleep(Math.min(ROUND_MS, options.config.healthy_seconds * 1000), undefined, { signal }).catch(
        () => undefined,
      );
    }
    await reading;
  }

  /** Up for long enough is healthy, whatever is the matter with the card: a slot must not be lost for want of room on the data. */
  async #recover(): Promise<void> {
    const recovering = this.#loops.recover(this.#nowMs() - this.#startedMs);
    await onPaper(recovering).catch((error) => this.#unwritten(error));
  }

  #unwritten(error: unknown): void {
    this.options.log("error", "boot.not-written", { error: String(error) });
  }

  /** Publishes how things are, where they are otherwise than before; one after the other, so that what is older never comes last. */
  #say(record: BootRecord): Promise<BootStatus> {
    const saying = this.#saying.then(() => this.#tell(record));
    this.#saying = saying.catch(() => undefined);
    return saying;
  }

  async #tell(record: BootRecord): Promise<BootStatus> {
    const { card, history, quarantine } = this.#needed;
    const { publish, alarm } = this.options;
    const { kind, current } = card.boot;
    const other = record.slots[otherSlot(current ?? record.primary)];
    const status = statusOf({
      ...{ kind, current, disk: card.disk.name },
      record,
      last: await onPaper(history.last()).catch(() => undefined),
      loop: this.#loops.starts,
      against: quarantine.against(other.hash),
      trial: this.#trying?.progress,
    });
    const failed = other.state === "failed" && other.reason !== "by-hand";
    const message = `version ${other.version} failed (${other.reason}); this node runs version ${record.slots[record.primary].version} from slot ${record.primary}; 'fruit boot explain' says more`;
    const isHome = current === record.primary;
    alarm("boot-failed", failed && isHome ? { severity: "warning", message } : null);
    const state = stateOf(status);
    const text = JSON.stringify(state);
    if (state && text !== this.#said) publish("state/boot", "main", state);
    [this.#status, this.#said] = [status, text];
    return status;
  }

  #refuse(why: string): void {
    this.#problem = why;
    this.#hasNone = true;
    this.options.log("info", "boot.no-slots", { why });
  }

  #trouble(error: unknown): void {
    const why = error instanceof Error ? error.message : String(error);
    this.#problem = why;
    this.options.log("error", "boot.card", { error: why });
    this.options.alarm("boot-card", {
      severity: "critical",
      message: `the card's slots cannot be looked after: ${why}`,
    });
  }

  /** A trial of which nothing can be read ends at its deadline all the same: it is never confirmed. */
  #expireBlind(): void {
    const { machine } = this.options.hal;
    if (wordOf(machine, "fruit.trial") === undefined || this.#verdict) return;
    if (this.#nowMs() - this.#bootedMs >= this.options.config.deadline_seconds * 1000)
      this.reboot("this start is a trial, and nothing of it can be read");
  }

  /** Who is told to end has not crashed. */
  async #forget(): Promise<void> {
    if (this.#isOrdered) return;
    await forgetStart(this.#dir, this.options.hal.machine.bootId).catch((error) => this.#unwritten(error));
  }

  async #close(): Promise<void> {
    this.#kept = undefined;
    await this.#closing?.disposeAsync();
  }
}
