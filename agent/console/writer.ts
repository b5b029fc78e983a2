/** The right to write on a console: who has it, how it changes hands, and why it is not to be had. */
import type { OutletId } from "../../hal/ports.ts";
import { Refusal } from "../commands.ts";
import type { Lock } from "../messages.ts";
import { lockedBy } from "../power/locks.ts";
import { clockTime, person } from "../power/show.ts";
import type { Mark } from "./port.ts";
import type { Reader } from "./readers.ts";

/** What the right depends on, and who hears that it changed. */
interface WriteOptions {
  console: string;
  outlet: OutletId | undefined;
  /** A writer who typed nothing for so long loses it; 0: never. */
  idleSeconds: number;
  lockOf: (outlet: OutletId) => Lock | undefined;
  mark: (kind: Mark["kind"], text: string) => void;
  changed: () => void;
}

/** Held by one reader at a time, or by nobody. */
export class WriteRight {
  readonly #options: WriteOptions;
  #holder: Reader | undefined;
  /** `performance.now()` */
  #heldSince = 0;
  #idle: NodeJS.Timeout | undefined;

  constructor(options: WriteOptions) {
    this.#options = options;
  }

  get holder(): Reader | undefined {
    return this.#holder;
  }

  /** Gives somebody who attaches what they want, as far as it is to be had; returns what they must be told where it is not. */
  seat(reader: Reader): string | undefined {
    const { wants, force, who } = reader.options;
    if (wants === "read" || isProgram(reader)) return undefined;
    const lock = this.#foreignLock(who);
    if (lock) return `you read: outlet ${lock.outlet} is ${lockedBy(lock, Date.now())}`;
    if (this.#holder && force === undefined) return `you read: ${this.#busyWords(this.#holder)}`;
    this.seize(reader, force);
    return undefined;
  }

  /** Gives it to a reader, whoever has it. */
  seize(reader: Reader, reason: string | undefined): void {
    const before = this.#holder;
    if (before === reader) return;
    if (before) {
      before.writesSince = undefined;
      this.#options.mark(
        "takeover",
        `${person(reader.who)} took over from ${person(before.who)}${reasoned(reason)}`,
      );
    }
    this.#holder = reader;
    reader.writesSince = Date.now();
    this.#heldSince = performance.now();
    this.#watchIdle(reader);
    this.#options.changed();
  }

  /** Gives it to a reader who asks for it; returns who had it. Throws `Refusal` where somebody else has locked the outlet. */
  takeOver(reader: Reader, reason: string): Reader | undefined {
    this.refuseLocked(reader.who);
    const before = this.#holder;
    this.seize(reader, reason);
    if (!before) this.#options.mark("takeover", `${person(reader.who)} writes now${reasoned(reason)}`);
    return before;
  }

  /** Makes the writer a reader. */
  demote(why: string): void {
    const holder = this.#holder;
    if (!holder) return;
    this.leave(holder);
    this.#options.mark("takeover", `${person(holder.who)} only reads now: ${why}`);
    this.#options.changed();
  }

  /** The reader does not want it any more. */
  leave(reader: Reader): void {
    if (this.#holder !== reader) return;
    reader.writesSince = undefined;
    this.#holder = undefined;
    clearTimeout(this.#idle);
  }

  /** A lock came or went; `lost` is whose was taken away. */
  heedLocks(lost: string | undefined): void {
    const holder = this.#holder;
    if (!holder) return;
    const lock = this.#foreignLock(holder.who);
    if (lock) this.demote(`outlet ${lock.outlet} is ${lockedBy(lock, Date.now())}`);
    else if (lost === holder.who) this.demote("the lock was taken away");
  }

  /** Throws `Refusal` where a reader has not the right; programs that cannot ask for it get it here when nobody has it. */
  require(reader: Reader): void {
    this.refuseLocked(reader.who);
    if (this.#holder === reader) return;
    if (this.#holder) throw this.#busy(this.#holder);
    if (reader.options.wants === "read" || !isProgram(reader))
      throw new Refusal(
        "busy",
        `console ${this.#options.console}: you only read; nobody writes, so take over with ~f`,
      );
    this.seize(reader, undefined);
    this.#options.mark("takeover", `${person(reader.who)} writes now`);
  }

  /**
   * Throws `Refusal` busy when somebody writes, unless whoever asks is known to be the same: a key is, while a local name is
   * what somebody calls themselves. A local writer gives the right back first.
   */
  refuseBusy(who: string): void {
    const holder = this.#holder;
    if (holder && !(who.startsWith("key:") && holder.who === who))
      throw this.#busy(holder, "; whoever it is can give the right back with ~d");
  }

  /** Throws `Refusal` locked, in power's own words, when somebody else has locked the outlet. */
  refuseLocked(who: string): void {
    const lock = this.#foreignLock(who);
    if (lock) throw new Refusal("locked", `outlet ${lock.outlet}: ${lockedBy(lock, Date.now())}`);
  }

  #foreignLock(who: string): Lock | undefined {
    const { outlet, lockOf } = this.#options;
    const lock = outlet === undefined ? undefined : lockOf(outlet);
    return lock && lock.owner !== who ? lock : undefined;
  }

  #busy(holder: Reader, wayOut = ""): Refusal {
    return new Refusal("busy", `console ${this.#options.console}: ${this.#busyWords(holder)}${wayOut}`);
  }

  #busyWords(holder: Reader): string {
    const writer = person(holder.who);
    const since = clockTime(new Date(holder.writesSince ?? holder.since).toISOString(), Date.now());
    return `${writer} writes since ${since}; ask ${writer}, or take over with ~f or 'fruit console ${this.#options.console} --force --reason TEXT'`;
  }

  /** A writer who has left without leaving must not keep others out for ever. */
  #watchIdle(holder: Reader): void {
    clearTimeout(this.#idle);
    const { idleSeconds } = this.#options;
    if (idleSeconds === 0) return;
    const leftMs = () => idleSeconds * 1000 - Math.min(holder.idleMs, performance.now() - this.#heldSince);
    this.#idle = setTimeout(
      () => {
        if (leftMs() > 0) this.#watchIdle(holder);
        else this.demote(`typed nothing for ${idleSeconds} s`);
      },
      Math.max(1, leftMs()),
    );
    this.#idle.unref();
  }
}

/** ` (kernel test)`, or nothing. */
export function reasoned(reason: string | undefined): string {
  return reason ? ` (${reason})` : "";
}

/** Whether somebody came by a door that cannot ask for the right to write. */
export function isProgram({ options: { door } }: Pick<Reader, "options">): boolean {
  return door === "raw" || door === "rfc2217";
}
