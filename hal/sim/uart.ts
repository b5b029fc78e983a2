/**
 * Serial lines of a simulated node: each ends at the UART of a simulated Pi.
 *
 *   sim:1.0          the Pi at this outlet of the node's own stack
 *   /a/path.sock     a Pi of another process (`serveUart`)
 *   anything else    a Pi of its own that is always supplied
 */
import { setTimeout as sleep } from "node:timers/promises";
import { HalError, type LineEvents, type LineSettings, type OutletId, type SerialLine } from "../ports.ts";
import { PiConsole, type Wanted } from "./console.ts";
import { BOOT_MS, HALT_MS, type HostState } from "./pi.ts";
import type { SimHost, SimStack } from "./stack.ts";
import { openUart } from "./uartwire.ts";

/** How the simulated Pis' UARTs are set. */
export const UART_BAUD = 115_200;
/** How often a paced line hands over what came: as often as a kernel's buffer of a fast USB adapter. */
const PACE_MS = 10;
/** What waits to be sent; a UART without flow control loses the rest. */
const MOST_WAITING = 262_144;
/** Without wire time a Pi boots and halts this many times as fast. */
const HASTE = 100;

/** One Pi whose software nobody else stands in for: it boots when supplied, and stops when asked. */
class UartPi implements SimHost {
  readonly console: PiConsole;
  state: HostState = "off";
  readonly #haste: number;
  readonly #report: (state: Exclude<HostState, "off">) => void;
  #timer: NodeJS.Timeout | undefined;

  constructor(options: {
    hostname: string;
    haste: number;
    say: (bytes: Uint8Array) => void;
    report: (state: Exclude<HostState, "off">) => void;
  }) {
    const { hostname, haste, say, report } = options;
    this.#haste = haste;
    this.#report = report;
    this.console = new PiConsole({
      hostname,
      bootMs: BOOT_MS / haste,
      say,
      wanted: (what) => this.#wanted(what),
    });
  }

  /** Takes up what the Pi was doing already. */
  resume(state: HostState): void {
    if (state === "starting") this.powered();
    else if (state === "stopping") this.#wanted("poweroff");
    else this.#become(state);
  }

  powered(): void {
    this.#become("starting");
    this.#then(BOOT_MS, () => this.#become("running"));
  }

  cut(): void {
    clearTimeout(this.#timer);
    this.#become("off");
  }

  signalled(): void {
    if (this.state === "running") this.#wanted("poweroff");
  }

  #wanted(what: Wanted): void {
    if (what === "reset") this.powered();
    else {
      this.#become("stopping");
      this.#then(HALT_MS, () => (what === "reboot" ? this.powered() : this.#become("halted")));
    }
  }

  #then(ms: number, next: () => void): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(next, ms / this.#haste);
    this.#timer.unref();
  }

  #become(state: HostState): void {
    this.state = state;
    this.console.became(state);
    if (state !== "off") this.#report(state);
  }
}

/** One line while it is open: a wire of a certain speed. */
class Uart implements SerialLine {
  readonly #device: string;
  readonly #pi: UartPi;
  readonly #events: LineEvents;
  readonly #isPaced: boolean;
  readonly #over: () => void;
  #settings: LineSettings;
  #waiting: Uint8Array[] = [];
  #waitingBytes = 0;
  #timer: NodeJS.Timeout | undefined;
  #isOpen = true;

  constructor(options: {
    device: string;
    pi: UartPi;
    settings: LineSettings;
    events: LineEvents;
    isPaced: boolean;
    over: () => void;
  }) {
    this.#device = options.device;
    this.#pi = options.pi;
    this.#settings = options.settings;
    this.#events = options.events;
    this.#isPaced = options.isPaced;
    this.#over = options.over;
  }

  /** The Pi sends. */
  send(bytes: Uint8Array): void {
    if (!this.#isOpen) return;
    if (!this.#isPaced) this.#events.bytes(this.#asHeard(bytes));
    else if (this.#waitingBytes + bytes.length <= MOST_WAITING) {
      this.#waiting.push(bytes);
      this.#waitingBytes += bytes.length;
      this.#timer ??= setTimeout(() => this.#pace(), PACE_MS).unref();
    }
  }

  /** Pulls the adapter out. */
  unplug(): void {
    if (!this.#isOpen) return;
    this.#end();
    this.#events.gone(new HalError("io", `${this.#device}: unplugged`));
  }

  async write(bytes: Uint8Array): Promise<void> {
    this.#reach();
    if (this.#isPaced) await sleep((bytes.length * 10_000) / this.#settings.baud, undefined, { ref: false });
    this.#reach();
    this.#pi.console.typed(this.#asHeard(bytes));
  }

  async sendBreak(ms: number): Promise<void> {
    this.#reach();
    if (this.#isPaced) await sleep(ms, undefined, { ref: false });
    this.#reach();
    this.#pi.console.broke();
  }

  async setLines(): Promise<void> {
    this.#reach();
  }

  async change(settings: Partial<LineSettings>): Promise<void> {
    this.#reach();
    this.#settings = { ...this.#settings, ...settings };
  }

  async close(): Promise<void> {
    if (this.#isOpen) this.#end();
  }

  #end(): void {
    this.#isOpen = false;
    clearTimeout(this.#timer);
    this.#over();
  }

  #reach(): void {
    if (!this.#isOpen) throw new HalError("io", `${this.#device}: is closed`);
  }

  /** As much as the wire carries in the time; the rest waits. */
  #pace(): void {
    this.#timer = undefined;
    const all = Buffer.concat(this.#waiting);
    const most = Math.ceil((UART_BAUD / 10_000) * PACE_MS);
    const now = new Uint8Array(all.subarray(0, most));
    this.#waiting = all.length > most ? [all.subarray(most)] : [];
    this.#waitingBytes = all.length - now.length;
    if (this.#waiting.length > 0) this.#timer = setTimeout(() => this.#pace(), PACE_MS).unref();
    this.#events.bytes(this.#asHeard(now));
  }

  /** Two ends that do not agree on their speed hear rubbish. */
  #asHeard(bytes: Uint8Array): Uint8Array {
    return this.#settings.baud === UART_BAUD ? bytes : bytes.map((byte) => (byte ^ 0xa5) | 0x80);
  }
}

/** All lines of one simulated node. */
export class SimUarts {
  readonly #stack: SimStack;
  readonly #isPaced: boolean;
  readonly #pis = new Map<string, UartPi>();
  readonly #open = new Map<string, Uart>();
  readonly #unplugged = new Set<string>();

  constructor(stack: SimStack, isPaced: boolean) {
    this.#stack = stack;
    this.#isPaced = isPaced;
  }

  /** As `Hal.openLine`. */
  async open(device: string, settings: LineSettings, events: LineEvents): Promise<SerialLine> {
    if (this.#unplugged.has(device)) throw new HalError("absent", `${device}: no such device`);
    if (device.endsWith(".sock")) return openUart(device, events);
    if (this.#open.has(device)) throw new HalError("busy", `${device}: is open already`);
    const pi = this.#pi(device);
    const over = () => void this.#open.delete(device);
    const uart = new Uart({ device, pi, settings, events, isPaced: this.#isPaced, over });
    this.#open.set(device, uart);
    // After whoever opens it has it
    if (pi.state === "off") setTimeout(() => this.#begin(device, pi), 0).unref();
    return uart;
  }

  /** Pulls the adapter out: the line is gone, and cannot be opened. */
  unplug(device: string): void {
    this.#unplugged.add(device);
    this.#open.get(device)?.unplug();
  }

  /** Puts it in again. */
  plug(device: string): void {
    this.#unplugged.delete(device);
  }

  async close(): Promise<void> {
    for (const uart of [...this.#open.values()]) await uart.close();
    for (const pi of this.#pis.values()) pi.cut();
  }

  #pi(device: string): UartPi {
    const known = this.#pis.get(device);
    if (known) return known;
    const outlet = outletOf(device);
    // Throws where there is no such outlet
    if (outlet) this.#stack.pi(outlet);
    const pi = new UartPi({
      hostname: outlet ? `pi${outlet.replace(".", "-")}` : "raspberrypi",
      haste: this.#isPaced ? 1 : HASTE,
      say: (bytes) => this.#open.get(device)?.send(bytes),
      report: (state) => outlet && this.#stack.report(outlet, state),
    });
    this.#pis.set(device, pi);
    return pi;
  }

  /** The Pi goes on with what the stack says that it does. */
  #begin(device: string, pi: UartPi): void {
    const outlet = outletOf(device);
    if (!outlet) pi.powered();
    else {
      const { host, boots } = this.#stack.pi(outlet);
      this.#stack.attach(outlet, pi);
      if (boots) pi.resume(host);
    }
  }
}

function outletOf(device: string): OutletId | undefined {
  return /^sim:(\d+\.\d+)$/.exec(device)?.[1] as OutletId | undefined;
}
