/**
 * One serial line with all who are attached to it.
 *
 * Invariants
 * - Every byte goes to the ring and to the recording, whoever watches.
 * - At most one writes. While somebody else has locked its outlet, nobody but the lock's owner does.
 * - What is typed is written down nowhere; that somebody was there is.
 */
import type { LineSettings, ModemLines, OutletId } from "../../hal/ports.ts";
import { clip, Refusal } from "../commands.ts";
import type { ConsoleState } from "../messages.ts";
import { person } from "../power/show.ts";
import { FailureLimit } from "../sign/limit.ts";
import { counted, printable } from "../terminal.ts";
import { attachmentOf } from "./attachment.ts";
import { inWords, KeptLine, signalWords } from "./line.ts";
import { Paced } from "./paced.ts";
import type { Attached, Attachment, AttachOptions, Console, ListLine, Mark, Signals } from "./port.ts";
import { Reader } from "./readers.ts";
import { Recording } from "./record.ts";
import { Ring } from "./ring.ts";
import type { ConsoleOptions, OutletChange } from "./service.ts";
import { isProgram, reasoned, WriteRight } from "./writer.ts";

/** People and programs on one console at the same time. */
const MOST_READERS = 16;
/** Long enough for every UART's break detection and for SysRq. */
const BREAK_MS = 300;
/** Longest text of a mark, characters: whatever somebody gives as a reason, it fits a message. */
const MARK_MAX = 1000;

/** Breaks and changes of settings of those attached at once, and then one each so many seconds. */
const CONTROLS = { burst: 60, secondsEach: 5 };

/** Who asks without being attached; the reason stands in the mark. */
export interface Asker {
  who: string;
  reason?: string | undefined;
}

/** One console of this node. */
export class SerialConsole implements Console {
  readonly name: string;
  readonly outlet: OutletId | undefined;
  readonly ring = new Ring();
  /** Times that the line went away. */
  losses = 0;
  readonly #device: string;
  readonly #options: ConsoleOptions;
  readonly #line: KeptLine;
  readonly #controls = new FailureLimit(CONTROLS);
  readonly #right: WriteRight;
  readonly #recording: Recording | undefined;
  readonly #told: Paced<ConsoleState>;
  readonly #readers = new Set<Reader>();
  #lastNumber = 0;
  #isUp: boolean | undefined;
  #since = Date.now();
  #error: string | undefined;
  #received = 0;
  /** `performance.now()` */
  #heardAt: number | undefined;
  #sent = 0;
  /** By readers who have left. */
  #skipped = 0;
  #isOver = false;

  constructor(name: string, config: ConsoleOptions["config"][string], options: ConsoleOptions) {
    this.name = name;
    this.outlet = config.outlet as OutletId | undefined;
    this.#options = options;
    const { device, record, writer_idle_seconds, baud, data_bits, parity, stop_bits, flow } = config;
    const { hal, kernelConsoles, outlets, alarm } = options;
    this.#device = device;
    this.#line = new KeptLine({
      device,
      settings: { baud, data_bits, parity, stop_bits, flow },
      hal,
      kernelConsoles,
      events: {
        bytes: (chunk) => this.#heard(chunk),
        up: () => this.#up(),
        gone: (why, isFinal) => this.#gone(why, isFinal),
      },
    });
    this.#right = new WriteRight({
      console: name,
      outlet: this.outlet,
      idleSeconds: writer_idle_seconds,
      lockOf: (outlet) => outlets.lockOf(outlet),
      mark: (kind, text) => this.mark(kind, text),
      changed: () => this.#changed(),
    });
    this.#told = new Paced(
      () => this.state,
      (state) => options.publish("state/console", name, state),
    );
    if (record) this.#recording = new Recording({ name, config: record, ring: this.ring, alarm });
  }

  get state(): ConsoleState {
    const { holder } = this.#right;
    return {
      v: 1,
      name: this.name,
      device: this.#device,
      baud: this.settings.baud,
      ...(this.outlet === undefined ? {} : { outlet: this.outlet }),
      state: this.#isUp ? "up" : "gone",
      ...(this.#error === undefined ? {} : { error: this.#error }),
      writer: holder?.who ?? null,
      readers: [...this.#readers].filter((reader) => reader !== holder && !reader.isQuiet).length,
      since: new Date(this.#since).toISOString(),
    };
  }

  /** As `console.list` tells of it. */
  async listLine(): Promise<ListLine> {
    const recorded = await this.#recording?.bytes();
    const heardAt = this.#heardAt;
    return {
      ...this.state,
      ...(heardAt === undefined ? {} : { idle_seconds: Math.round((performance.now() - heardAt) / 1000) }),
      kept_bytes: this.ring.end - this.ring.start,
      ...(recorded === undefined ? {} : { record_bytes: recorded }),
    };
  }

  get settings(): Readonly<LineSettings> {
    return this.#line.settings;
  }

  get signals(): Readonly<Signals> {
    return this.#line.signals;
  }

  modemLines(): Promise<ModemLines | undefined> | undefined {
    return this.#line.modemLines();
  }

  get attached(): readonly Attached[] {
    return [...this.#readers].map((reader) => reader.told);
  }

  /** What `tele/console` says. */
  get numbers() {
    const skipped = [...this.#readers].reduce((sum, reader) => sum + reader.skipped, this.#skipped);
    return {
      up: this.#isUp ? 1 : 0,
      rx_bytes_total: this.#received,
      tx_bytes_total: this.#sent,
      skipped_bytes_total: skipped,
      readers: this.#readers.size,
    };
  }

  /** Keeps the line open and everybody served until the signal aborts. */
  async part(signal: AbortSignal): Promise<void> {
    const stopped = new Promise<void>((resolve) => {
      signal.addEventListener("abort", () => resolve(), { once: true });
      if (signal.aborted) resolve();
    });
    const kept = this.#line.keep(signal);
    await stopped;
    this.#isOver = true;
    for (const reader of [...this.#readers]) this.#sendAway(reader, "the agent stops");
    this.#told.close();
    await Promise.all([kept, this.#recording?.close()]);
  }

  attach(options: AttachOptions): Attachment {
    this.admit(options);
    const { who, door, quiet = false } = options;
    const reader: Reader = new Reader(options, ++this.#lastNumber, {
      ring: this.ring,
      view: () => ({ kind: "view", view: this.state, mayWrite: this.#right.holder === reader }),
      failed: (why) => this.#sendAway(reader, why),
    });
    this.#readers.add(reader);
    const note = this.#right.seat(reader);
    const writes = this.#right.holder === reader;
    const others = this.#others(reader);
    if (!quiet) {
      this.mark(
        "attach",
        `${person(who)} attached and ${writes ? "writes" : "reads"}${others && `; also here: ${others}`}`,
      );
      this.#changed();
      const message = `${person(who)} attached to console ${this.name}`;
      this.#options.tell("console.attached", { console: this.name, who, door, writes, message });
    }
    if (note) reader.note(note);
    // The command of everybody else is on record already
    if (isProgram(reader)) this.#audit(reader, "console.attach");
    // Nothing is shown before whoever attaches has what this returns
    queueMicrotask(() => reader.begin());
    return attachmentOf(reader, {
      line: this.#line,
      right: this.#right,
      sent: (bytes) => {
        this.#sent += bytes;
      },
      sendBreak: () => this.#break({ who }),
      change: (settings) => this.#change({ who }, settings),
      setLines: (signals) => this.#setLines({ who }, signals),
      audit: (verb, facts) => this.#audit(reader, verb, facts),
      leave: (why) => this.#leave(reader, why),
      controls: this.#controls,
    });
  }

  /** Throws the `Refusal` that `attach` would. */
  admit({ who, force }: Pick<AttachOptions, "who" | "force">): void {
    if (this.#isOver) throw new Refusal("stopping", "the agent stops");
    if (this.#readers.size >= MOST_READERS)
      throw new Refusal(
        "busy",
        `console ${this.name}: ${MOST_READERS} are attached; see 'fruit console who', or send one away with 'fruit console kick'`,
      );
    if (force !== undefined) this.#right.refuseLocked(who);
  }

  /** Sends a break for somebody who is not attached; refused while another writes (`WriteRight.refuseBusy`). */
  async sendBreak(asker: Asker): Promise<void> {
    this.#requireFree(asker);
    await this.#break(asker);
  }

  /** Changes the line's settings in the same way. False when they are so already. */
  async change(asker: Asker, settings: Partial<LineSettings>): Promise<boolean> {
    this.#requireFree(asker);
    return this.#change(asker, settings);
  }

  #requireFree({ who }: Asker): void {
    this.#right.refuseLocked(who);
    this.#right.refuseBusy(who);
  }

  async #break({ who, reason }: Asker): Promise<void> {
    await this.#line.open.sendBreak(BREAK_MS);
    this.mark("break", `break by ${person(who)}${reasoned(reason)}`);
  }

  async #setLines({ who, reason }: Asker, signals: Partial<Signals>): Promise<boolean> {
    const before = signalWords(this.signals);
    const after = signalWords({ ...this.signals, ...signals });
    if (after === before) return false;
    await this.#line.setSignals(signals);
    this.mark("settings", `${before} became ${after} by ${person(who)}${reasoned(reason)}`);
    return true;
  }

  async #change({ who, reason }: Asker, settings: Partial<LineSettings>): Promise<boolean> {
    const before = inWords(this.settings);
    if (inWords({ ...this.settings, ...settings }) === before) return false;
    await this.#line.change(settings);
    const after = inWords(this.settings);
    this.mark("settings", `${before} became ${after} by ${person(who)}${reasoned(reason)}`);
    this.#changed();
    return true;
  }

  /** Sends away who has this number (`who` lists them) or name; false when nobody has. Throws `Refusal` when several go by the name. */
  kick(whom: string, { who, reason }: Asker): boolean {
    const readers = [...this.#readers];
    const numbered = readers.filter(({ number }) => String(number) === whom);
    const named = readers.filter((reader) => reader.who === whom || person(reader.who) === whom);
    const [victim, ...others] = numbered.length > 0 ? numbered : named;
    if (!victim) return false;
    if (others.length > 0)
      throw new Refusal(
        "bad-args",
        `console ${this.name}: ${clip(whom)} is attached ${named.length} times; name the number: ${listed(named)}`,
      );
    this.mark("notice", `${person(who)} sends ${person(victim.who)} away${reasoned(reason)}`);
    this.#sendAway(victim, `${person(who)} sent you away${reasoned(reason)}`);
    return true;
  }

  /** Something happened to its outlet. */
  outletChanged({ kind, what, lost }: OutletChange): void {
    this.mark(kind, kind === "power" ? `power: ${what}` : what);
    if (kind === "lock") this.#right.heedLocks(lost);
  }

  /** Tells everybody and the recording. */
  mark(kind: Mark["kind"], text: string): void {
    this.ring.mark({ at: Date.now(), kind, text: printable(clip(text, MARK_MAX)) });
    this.#wake();
  }

  #heard(chunk: Uint8Array): void {
    this.#received += chunk.length;
    this.#heardAt = performance.now();
    this.ring.push(chunk, Date.now());
    this.#wake();
  }

  #wake(): void {
    for (const reader of this.#readers) reader.wake();
    this.#recording?.wake();
  }

  #up(): void {
    this.#isUp = true;
    this.#since = Date.now();
    this.#error = undefined;
    this.mark("line", `${this.#device} is open, ${inWords(this.settings)}`);
    this.#options.alarm(`console-${this.name}`, null);
    this.#changed();
  }

  #gone(why: string, isFinal: boolean): void {
    const wasUp = this.#isUp;
    if (wasUp) this.losses++;
    if (why !== this.#error)
      this.#options.log("warn", "console.gone", { console: this.name, device: this.#device, error: why });
    this.#isUp = false;
    this.#error = why;
    if (wasUp !== false) {
      this.#since = Date.now();
      this.mark("line", `gone: ${why}`);
    }
    this.#options.alarm(`console-${this.name}`, {
      severity: isFinal ? "critical" : "warning",
      message: `console ${this.name}: ${why}${isFinal ? "" : "; it is tried again until it is there"}`,
    });
    this.#changed();
  }

  #sendAway(reader: Reader, why: string): void {
    this.#leave(reader, why);
    reader.options.ended(why);
  }

  #leave(reader: Reader, why: string): void {
    if (!this.#readers.delete(reader)) return;
    reader.isGone = true;
    this.#skipped += reader.skipped;
    const isNews = !reader.isQuiet || this.#right.holder === reader;
    this.#right.leave(reader);
    const { who, options, bytesIn, bytesOut } = reader;
    const others = this.#others(reader);
    if (!reader.isQuiet) this.mark("detach", `${person(who)} detached${others && `; still here: ${others}`}`);
    else if (bytesIn > 0)
      this.mark("notice", `${person(who)} sent ${counted(bytesIn, "byte")}${reasoned(options.reason)}`);
    if (isNews) this.#changed();
    const duration_s = Math.round((Date.now() - reader.since) / 1000);
    const facts = { bytes_in: bytesIn, bytes_out: bytesOut, why: printable(why) };
    const message = `${person(who)} detached from console ${this.name}`;
    const { door } = options;
    if (!reader.isQuiet)
      this.#options.tell("console.detached", {
        console: this.name,
        who,
        door,
        ...facts,
        duration_s,
        message,
      });
    this.#audit(reader, "console.session", facts, duration_s);
  }

  #audit({ options }: Reader, verb: string, facts: object = {}, duration_s?: number): void {
    const { door: src, who } = options;
    const args = { console: this.name, ...facts };
    const lasted = duration_s === undefined ? {} : { duration_s };
    this.#options.audit({ src, who, verb, args, decision: "allowed", ...lasted });
  }

  #others(reader: Reader): string {
    const others = [...this.#readers].filter((other) => other !== reader);
    return others.map((other) => person(other.who)).join(", ");
  }

  #changed(): void {
    for (const reader of this.#readers) reader.viewChanged();
    this.#told.changed();
  }
}

/** `3 (local:bob, socket), 5 (local:bob, mqtt)`. */
function listed(readers: readonly Reader[]): string {
  return readers.map(({ number, who, options }) => `${number} (${who}, ${options.door})`).join(", ");
}
