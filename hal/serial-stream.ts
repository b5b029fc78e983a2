/**
 * One open serial port: node-serialport's stream, with promises for its callbacks and one end for its many.
 *
 * The stream says `error` and `close` in any order, keeps a write that comes too late for ever, and hands on the reason
 * of an end only sometimes: here whatever is under way rejects when the port ends, with the reason.
 */
import { setTimeout as sleep } from "node:timers/promises";
import type { BindingInterface, SetOptions } from "@serialport/bindings-interface";
import { SerialPortStream } from "@serialport/stream";
import { isBun } from "./native/runtime.ts";
import { serialBinding } from "./native/serial.ts";
import type { SerialOptions } from "./native/termios.ts";
import { HalError, type HalErrorCode, type ModemLines } from "./ports.ts";

/** More than the kernel hands out at once, which is 4 KiB. */
const READ_SIZE = 16 * 1024;

/** How a port is set up, in node-serialport's words. */
export type PortOptions = Pick<
  SerialOptions,
  "baudRate" | "dataBits" | "parity" | "stopBits" | "rtscts" | "xon" | "xoff"
>;

/** What an open port tells; nothing after `close`. */
export interface PortEvents {
  /** Bytes as they came. */
  heard(chunk: Uint8Array): void;
  /** Said once; nothing comes any more. */
  gone(error: HalError): void;
}

/** The native half: ours under Bun, node-serialport's own under Node, which is no part of the executable. */
async function bindingOfRuntime(): Promise<BindingInterface> {
  if (isBun) return serialBinding as BindingInterface;
  const name = "@serialport/bindings-cpp";
  return (await import(name)).autoDetect();
}

/** Opens a port for this program alone. Throws `absent`, `busy` or `io`. */
export async function openPort(
  device: string,
  options: PortOptions,
  events: PortEvents,
  given?: BindingInterface,
): Promise<Port> {
  const binding = given ?? (await bindingOfRuntime());
  // hupcl: DTR and RTS stay as they are when we leave, so that the far side does not notice
  const settings = { ...options, lock: true, hupcl: false };
  const stream = new SerialPortStream({
    ...settings,
    binding,
    path: device,
    highWaterMark: READ_SIZE,
    autoOpen: false,
  });
  const port = new Port(device, stream, events);
  await new Promise<void>((resolve, reject) => {
    stream.open((error) => (error ? reject(cannotOpen(device, error)) : resolve()));
  });
  return port;
}

/** An open port. Everything it is asked rejects with a HalError, at the latest when the port ends. */
export class Port {
  readonly device: string;
  readonly #stream: SerialPortStream;
  readonly #events: PortEvents;
  /** Lines as the kernel sets them when it opens a port. */
  #lines: SetOptions = { dtr: true, rts: true, brk: false };
  /** Why nothing more can be asked. */
  #over: HalError | undefined;
  #closing: Promise<void> | undefined;
  /** What is under way, to be rejected at the end. */
  readonly #waiting = new Set<(error: HalError) => void>();

  constructor(device: string, stream: SerialPortStream, events: PortEvents) {
    this.device = device;
    this.#stream = stream;
    this.#events = events;
    stream.on("data", (chunk: Buffer) => {
      if (!this.#closing) events.heard(chunk);
    });
    // One that was canceled has its reason in the `close` that follows
    stream.on("error", (error: SerialError) => {
      if (!error.canceled) this.#end(error);
    });
    // Without an argument it is the stream that ended, and the port will
    stream.on("close", (...reasons: (Error | null)[]) => {
      if (reasons.length > 0) this.#end(reasons[0]);
    });
  }

  /** Resolves when the kernel has taken all of it. One at a time. */
  write(bytes: Buffer): Promise<void> {
    return this.wait((done) => this.#stream.write(bytes, undefined, done));
  }

  /** Drops what is unread and unsent. */
  flush(): Promise<void> {
    return this.wait((done) => this.#stream.flush(done));
  }

  /** Resolves when what was written has left. */
  drain(): Promise<void> {
    return this.wait((done) => this.#stream.drain(done));
  }

  /** Sets the control lines that are named and leaves the other. One at a time. */
  async set(wanted: { brk?: boolean; dtr?: boolean; rts?: boolean }): Promise<void> {
    const lines = { ...this.#lines, ...wanted };
    await this.wait((done) => this.#stream.set(lines, done));
    this.#lines = lines;
  }

  /** The control lines that come in. Rejects `refused` where the driver has none. */
  async get(): Promise<ModemLines> {
    let lines = { cts: false, dsr: false, dcd: false, ri: false };
    await this.wait((done) =>
      this.#stream.get((error, status) => {
        lines = { ...lines, ...status };
        done(error);
      }),
    );
    return { cts: lines.cts, dsr: lines.dsr, dcd: lines.dcd, ri: lines.ri };
  }

  /** Changes how the line talks. */
  async update(options: PortOptions): Promise<void> {
    if (!isBun && Object.keys(options).length > 1) {
      throw new HalError("refused", `${this.device}: only the speed can be changed while it is open`);
    }
    await this.wait((done) => this.#stream.update(options, done));
  }

  /** Starts something and waits until it says that it is done, or the port has ended. */
  wait(start: (done: (error?: Error | null) => void) => void): Promise<void> {
    return new Promise((resolve, reject) => {
      if (this.#over) return reject(this.#over);
      this.#waiting.add(reject);
      start((error) => {
        // The end has the reason, and is near
        if (error && !this.#stream.isOpen) return;
        this.#waiting.delete(reject);
        if (error) reject(this.#failure(error));
        else resolve();
      });
    });
  }

  /** Ends it; what was written has `leaveMs` to leave, and is dropped then. Never throws. */
  close(leaveMs = 0): Promise<void> {
    this.#closing ??= this.#close(leaveMs);
    return this.#closing;
  }

  async #close(leaveMs: number): Promise<void> {
    // The kernel would hold the port for unsent bytes, up to 30 s
    const leaving = this.drain().then(() => true);
    const hasLeft = await Promise.race([leaving, sleep(leaveMs, false, { ref: false })]).catch(() => true);
    if (!hasLeft) await this.flush().catch(() => undefined);
    this.#end(new Error("is closed"));
    if (this.#stream.isOpen) await new Promise<void>((resolve) => this.#stream.close(() => resolve()));
  }

  #end(reason: Error | null | undefined): void {
    if (this.#over) return;
    this.#over = this.#failure(reason ?? new Error("closed"));
    for (const reject of this.#waiting) reject(this.#over);
    this.#waiting.clear();
    if (!this.#closing) this.#events.gone(this.#over);
  }

  #failure(error: SerialError): HalError {
    const { device } = this;
    if (this.#closing !== undefined) return new HalError("io", `${device}: is closed`);
    const words = (code: HalErrorCode, text: string) =>
      new HalError(code, `${device}: ${text} (${kernelWord(error)})`, { cause: error });
    if (error.code === "ETIMEDOUT") return words("timeout", "sends nothing");
    if (error.code === "ENOTTY" || error.code === "EINVAL")
      return words("refused", "its driver refuses that");
    return words("io", "unplugged or hung up");
  }
}

/** What a binding adds to its errors. */
interface SerialError extends NodeJS.ErrnoException {
  canceled?: boolean;
}

/** `EIO: i/o error`, without the call and the path that Node adds. */
const kernelWord = ({ message }: Error): string => message.split(", ", 1)[0] ?? message;

/** Why a port was not opened, and what to do. */
const OPEN_FAILURES: Record<string, [HalErrorCode, string]> = {
  ENOENT: ["absent", "not there: unplugged, or it has another name (see /dev/serial/by-path)"],
  ENXIO: ["absent", "there is no hardware behind it"],
  ENODEV: ["absent", "there is no hardware behind it"],
  EBUSY: ["busy", "another program holds it"],
  EAGAIN: ["busy", "another program holds it"],
  EACCES: ["io", "not allowed: run as root, or as a member of the group that owns it (dialout)"],
  ENOTTY: ["io", "is no serial line"],
  EISDIR: ["io", "is no serial line"],
};

function cannotOpen(device: string, error: NodeJS.ErrnoException): HalError {
  const [code, words] = OPEN_FAILURES[error.code ?? ""] ?? ["io", "cannot be opened"];
  return new HalError(code, `${device}: ${words} (${kernelWord(error)})`, { cause: error });
}
