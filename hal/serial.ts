/**
 * Serial lines of Linux, on node-serialport's stream: consoles, and half-duplex buses at 9600 baud 8N1.
 *
 * Invariants
 * - Who opens a port has it alone: a second one is told `busy`.
 * - Closing changes no control line, so that an agent that stops resets no board and takes no bus.
 * - Whatever a port is asked ends with the port.
 */
import { setTimeout as sleep } from "node:timers/promises";
import type { BindingInterface } from "@serialport/bindings-interface";
import { within } from "./limit.ts";
import { shortenLatency } from "./native/serial-latency.ts";
import {
  HalError,
  type LineEvents,
  type LineSettings,
  type ModemLines,
  type SerialLine,
  type SerialLink,
} from "./ports.ts";
import { openPort, type Port, type PortOptions } from "./serial-stream.ts";
import { Turns } from "./turns.ts";

/** How long a write waits for a line that takes nothing. */
const TAKE_MS = 10_000;

/** How long bytes that were taken may hold up a change of settings, or the end. */
const LEAVE_MS = 1000;

/** Opens a console's line. */
export async function openLine(
  device: string,
  settings: LineSettings,
  events: LineEvents,
): Promise<SerialLine> {
  const port = await openPort(device, optionsOf(settings), {
    heard: (chunk) => events.bytes(chunk),
    gone: (error) => events.gone(error),
  });
  return new ConsoleLine(port, settings);
}

/**
 * Opens a half-duplex bus at 9600 baud 8N1. With `rts` the line is driven so from before the first bit until the last
 * one has left, by the driver's word where it gives one and by the clock where not: to within 1 to 2 ms, more over USB.
 * The kernel raises RTS while it opens a port. Adapters that turn the bus around by themselves need none of it.
 * `binding` stands in for the runtime's own.
 */
export async function openSerialLink(
  device: string,
  options: { rts?: "high" | "low" | undefined } = {},
  binding?: BindingInterface,
): Promise<SerialLink> {
  const link = new HalfDuplexLink(options.rts);
  await link.open(device, binding);
  return link;
}

/** What each of our words is in node-serialport's. */
function optionsOf(settings: LineSettings): PortOptions {
  return {
    baudRate: settings.baud,
    dataBits: settings.data_bits,
    parity: settings.parity,
    stopBits: settings.stop_bits,
    rtscts: settings.flow === "rtscts",
    xon: settings.flow === "xonxoff",
    xoff: settings.flow === "xonxoff",
  };
}

class ConsoleLine implements SerialLine {
  readonly #port: Port;
  #settings: LineSettings;
  readonly #writes: Turns;
  readonly #controls: Turns;
  /** What the kernel was given last, and has perhaps not taken. */
  #taking: Promise<void> = Promise.resolve();
  readonly #closed = new AbortController();

  constructor(port: Port, settings: LineSettings) {
    this.#port = port;
    this.#settings = settings;
    this.#writes = new Turns(port.device);
    this.#controls = new Turns(port.device);
  }

  write(bytes: Uint8Array): Promise<void> {
    return this.#writes.take(async () => {
      // A second's worth at a time: so "took nothing" can be told from "takes its time"
      const most = Math.max(1, Math.floor(this.#settings.baud / 10));
      for (let at = 0; at < bytes.length; at += most) {
        await this.#taken();
        // A copy: after a timeout the kernel may still take it, when the array is somebody else's again
        this.#taking = this.#port.write(Buffer.from(bytes.subarray(at, at + most)));
        await this.#taken();
      }
    });
  }

  sendBreak(ms: number): Promise<void> {
    return this.#controls.take(async () => {
      await this.#port.set({ brk: true });
      await sleep(ms, undefined, { signal: this.#closed.signal }).catch(() => undefined);
      await this.#port.set({ brk: false });
    });
  }

  setLines(lines: { dtr?: boolean; rts?: boolean }): Promise<void> {
    return this.#controls.take(() => this.#port.set(lines));
  }

  change(settings: Partial<LineSettings>): Promise<void> {
    return this.#writes.take(async () => {
      const wanted = { ...this.#settings, ...settings };
      // Bytes that were written before go out as they were meant to, unless somebody holds them
      const held = () => new HalError("timeout", `${this.#port.device}: what was written does not leave`);
      await within(LEAVE_MS, this.#port.drain(), held).catch(() => undefined);
      await this.#port.update(optionsOf(wanted));
      this.#settings = wanted;
    });
  }

  modemLines(): Promise<ModemLines> {
    return this.#port.get();
  }

  close(): Promise<void> {
    this.#closed.abort();
    return this.#port.close(LEAVE_MS);
  }

  #taken(): Promise<void> {
    return within(TAKE_MS, this.#taking, () => {
      const { device } = this.#port;
      return new HalError("timeout", `${device}: took nothing for ${TAKE_MS / 1000} s (flow control?)`);
    });
  }
}

/** 8N1: ten bits a byte. */
const BUS_BAUD = 9600;
const BYTE_MS = 10_000 / BUS_BAUD;

/** How much longer than its time on the wire a request may take to leave. */
const SEND_MS = 1000;

/** More than any exchange brings in its time at this speed: who says more is noise, and need not be listened to. */
const HEARD_MAX = 4096;

class HalfDuplexLink implements SerialLink {
  readonly #rts: "high" | "low" | undefined;
  #port: Port | undefined;
  #isBusy = false;
  #heard: (chunk: Uint8Array) => void = () => undefined;

  constructor(rts: "high" | "low" | undefined) {
    this.#rts = rts;
  }

  async open(device: string, binding?: BindingInterface): Promise<void> {
    const events = { heard: (chunk: Uint8Array) => this.#heard(chunk), gone: () => undefined };
    const port = await openPort(device, { baudRate: BUS_BAUD }, events, binding);
    await shortenLatency(device);
    try {
      if (this.#rts) await port.set({ rts: this.#rts !== "high" });
    } catch (error) {
      await port.close();
      throw error;
    }
    this.#port = port;
  }

  async exchange(
    write: Uint8Array,
    isWhole: (collected: Uint8Array) => boolean,
    limitMs: number,
  ): Promise<Uint8Array> {
    const port = this.#port;
    if (!port) throw new HalError("io", "the bus is not open");
    if (this.#isBusy) throw new HalError("busy", `${port.device}: an exchange is under way`);
    this.#isBusy = true;
    try {
      return await this.#exchange(port, Buffer.from(write), isWhole, limitMs);
    } finally {
      this.#isBusy = false;
      this.#heard = () => undefined;
    }
  }

  async close(): Promise<void> {
    await this.#port?.close();
  }

  async #exchange(
    port: Port,
    write: Buffer,
    isWhole: (collected: Uint8Array) => boolean,
    limitMs: number,
  ): Promise<Uint8Array> {
    await port.flush();
    let collected: Uint8Array = new Uint8Array();
    let finish = () => {};
    const isOver = () => collected.length >= HEARD_MAX || isWhole(collected);
    this.#heard = (chunk) => {
      collected = Buffer.concat([collected, chunk]);
      if (isOver()) finish();
    };
    // The kernel takes a request at once, and the wire its time
    const endMs = performance.now() + write.length * BYTE_MS + limitMs;
    if (write.length > 0) await this.#send(port, write);
    let limit: NodeJS.Timeout | undefined;
    await port.wait((done) => {
      finish = done;
      limit = setTimeout(done, Math.max(0, endMs - performance.now()));
      if (isOver()) done();
    });
    clearTimeout(limit);
    return collected;
  }

  async #send(port: Port, write: Buffer): Promise<void> {
    const wireMs = write.length * BYTE_MS;
    const late = () => new HalError("io", `${port.device}: does not send`);
    if (!this.#rts) return within(SEND_MS, port.write(write), late);
    const sends = this.#rts === "high";
    await port.set({ rts: sends });
    try {
      await within(SEND_MS, port.write(write), late);
      const takenMs = performance.now();
      await within(wireMs + SEND_MS, port.drain(), late);
      // Not every driver knows what is left in its adapter
      const restMs = takenMs + wireMs - performance.now();
      if (restMs > 0) await sleep(Math.ceil(restMs));
    } finally {
      await port.set({ rts: !sends });
    }
  }
}
