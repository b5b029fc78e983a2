/**
 * A console's line, kept open: opened when the agent starts, opened again whenever it is gone.
 *
 * Invariants
 * - One attempt at a time, 1 s after the line was lost, then ever later up to 30 s; a line that stayed for a while is tried
 *   for quickly again.
 * - The kernel's own console is never opened: its log and its login would be taken for a neighbour's.
 */
import { realpath } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { within } from "../../hal/limit.ts";
import { type Hal, HalError, type LineSettings, type ModemLines, type SerialLine } from "../../hal/ports.ts";
import { reasonOf } from "../record/lines.ts";
import type { Signals } from "./port.ts";

const FIRST_PAUSE_MS = 1000;
const LONGEST_PAUSE_MS = 30_000;
/** A line that stayed so long was not lost for the same reason as before. */
const STEADY_MS = 30_000;
/** A driver that does not let go must not hold up the agent's end. */
const CLOSE_MS = 500;
/** A driver that has not opened a line by then hangs; it is still waited for. */
const OPEN_MS = 10_000;
/** Somebody waits to be told the modem lines: a driver that says nothing until then is not waited for. */
const MODEM_MS = 1000;

/** What is told of the line. */
interface KeptEvents {
  bytes(chunk: Uint8Array): void;
  up(): void;
  /** Said at each failed attempt; `isFinal` where there will be no other. */
  gone(why: string, isFinal: boolean): void;
}

/** What a line is made of. */
interface KeptOptions {
  device: string;
  settings: LineSettings;
  hal: Pick<Hal, "openLine">;
  /** As /dev names. */
  kernelConsoles: readonly string[];
  events: KeptEvents;
}

/** One console's line. */
export class KeptLine {
  readonly #options: KeptOptions;
  #settings: LineSettings;
  #signals: Signals = { dtr: true, rts: true };
  #line: SerialLine | undefined;
  /** Its driver has said that it has no modem lines. */
  #isMute = false;
  /** Whoever asks for the modem lines meanwhile gets the same answer. */
  #asked: Promise<ModemLines> | undefined;
  #why = "it was not opened yet";

  constructor(options: KeptOptions) {
    this.#options = options;
    this.#settings = options.settings;
  }

  /** How it talks, or will when it is back. */
  get settings(): Readonly<LineSettings> {
    return this.#settings;
  }

  get signals(): Readonly<Signals> {
    return this.#signals;
  }

  /** Throws `HalError` io while the line is gone. */
  get open(): SerialLine {
    if (this.#line) return this.#line;
    throw new HalError("io", `${this.#options.device} is gone: ${this.#why}`);
  }

  /** Changes some settings; they hold until the agent ends, also when the line comes back. */
  async change(settings: Partial<LineSettings>): Promise<void> {
    await this.open.change(settings);
    this.#settings = { ...this.#settings, ...settings };
  }

  /** Sets DTR or RTS; they hold like settings. */
  async setSignals(signals: Partial<Signals>): Promise<void> {
    await this.open.setLines(signals);
    this.#signals = { ...this.#signals, ...signals };
  }

  /** How the far side holds its control lines now, or undefined when the driver does not say; undefined at once where nobody can tell. */
  modemLines(): Promise<ModemLines | undefined> | undefined {
    const line = this.#line;
    if (!line?.modemLines || this.#isMute) return undefined;
    this.#asked ??= line.modemLines().finally(() => {
      this.#asked = undefined;
    });
    const late = () => new HalError("timeout", `${this.#options.device}: its driver does not answer`);
    return within(MODEM_MS, this.#asked, late).catch((error) => {
      if (error instanceof HalError && error.code === "refused" && line === this.#line) this.#isMute = true;
      return undefined;
    });
  }

  /** Keeps the line open until the signal aborts. */
  async keep(signal: AbortSignal): Promise<void> {
    let pauseMs = FIRST_PAUSE_MS;
    while (!signal.aborted) {
      const refused = await this.#refused();
      if (refused !== undefined) return this.#lost(refused, true);
      const startedAt = performance.now();
      const why = await this.#hold(signal);
      if (signal.aborted) break;
      this.#lost(why, false);
      if (performance.now() - startedAt >= STEADY_MS) pauseMs = FIRST_PAUSE_MS;
      await sleep(pauseMs, undefined, { signal }).catch(() => undefined);
      pauseMs = Math.min(2 * pauseMs, LONGEST_PAUSE_MS);
    }
  }

  #lost(why: string, isFinal: boolean): void {
    this.#why = why;
    this.#options.events.gone(why, isFinal);
  }

  /** Why it must not be opened at all. A name in /dev/serial/by-path is a link, and may lead to another line each time. */
  async #refused(): Promise<string | undefined> {
    const { device, kernelConsoles } = this.#options;
    // Where the kernel has none there is nothing to find out
    const target = kernelConsoles.length > 0 ? await realpath(device).catch(() => device) : device;
    if (target !== "/dev/console" && !kernelConsoles.includes(target)) return undefined;
    const name = target === device ? device : `${device} (${target})`;
    return `${name} is the kernel's own console and is not opened; name another device, or take it out of the kernel's command line (console=), then start the agent again`;
  }

  /** Opens the line and holds it while it lives; resolves with why it does not. */
  async #hold(signal: AbortSignal): Promise<string> {
    const { device, hal, events } = this.#options;
    const over = Promise.withResolvers<HalError | undefined>();
    const stop = () => over.resolve(undefined);
    signal.addEventListener("abort", stop, { once: true });
    let isOver = false;
    const opening = hal.openLine(
      device,
      { ...this.#settings },
      {
        bytes: (chunk) => {
          if (!isOver) events.bytes(chunk);
        },
        gone: over.resolve,
      },
    );
    const slow = setTimeout(
      () => this.#lost(`${device} was not opened within ${OPEN_MS / 1000} s: its driver hangs`, false),
      OPEN_MS,
    );
    try {
      const line = await Promise.race([opening, over.promise.then(() => undefined)]);
      clearTimeout(slow);
      if (line) {
        // Opening has raised both
        const { dtr, rts } = this.#signals;
        if (!(dtr && rts)) await line.setLines({ ...this.#signals });
        this.#line = line;
        this.#isMute = false;
        events.up();
      }
      return (await over.promise)?.message ?? "the agent stops";
    } catch (error) {
      return reasonOf(error);
    } finally {
      clearTimeout(slow);
      isOver = true;
      this.#line = undefined;
      signal.removeEventListener("abort", stop);
      // Also one that opens only now
      const closed = opening.then((line) => line.close()).catch(() => undefined);
      await Promise.race([closed, sleep(CLOSE_MS)]);
    }
  }
}

const PARITY = { none: "N", even: "E", odd: "O" } as const;

/** `115200 8N1`, with the flow control where there is any. */
export function inWords({ baud, data_bits, parity, stop_bits, flow }: LineSettings): string {
  return `${baud} ${data_bits}${PARITY[parity]}${stop_bits}${flow === "none" ? "" : ` ${flow}`}`;
}

/** `DTR on, RTS off`. */
export function signalWords({ dtr, rts }: Signals): string {
  return `DTR ${dtr ? "on" : "off"}, RTS ${rts ? "on" : "off"}`;
}
