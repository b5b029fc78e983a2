/** An open serial port: `@serialport/bindings-interface`'s port on system calls. `serial.ts` says what holds here. */
import { close, readSync, writeSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import type {
  BindingPortInterface,
  PortStatus,
  SetOptions,
  UpdateOptions,
} from "@serialport/bindings-interface";
import { ioctl, systemError } from "./libc.ts";
import { FLUSH, LINE, REQUEST, type SerialOptions, SHIFTED_OUT, setUp, Termios, unlock } from "./termios.ts";
import { EPOLL, ioctlAside, type Watch, watch } from "./threads.ts";

const EIO = 5;
const ETIMEDOUT = 110;

/** How long `drain` bears that nothing is sent at all: somebody holds the line by flow control. */
const STUCK_MS = 10_000;
/** The same before a break, which is what a person sends when nothing else helps. */
const BREAK_STUCK_MS = 1000;
/** Longest pause between two looks at what is unsent. */
const LOOK_MS = 50;
/** The last byte or FIFO leaves within this, at any speed worth waiting for. */
const SHIFT_MS = 1000;

/** Longest wait for calls that hang in an adapter's driver before the port counts as closed. */
const CLOSE_MS = 1000;

const closeFile = promisify(close);

/** What may be changed while a port is open: node-serialport changes the speed only. */
export type SerialUpdate = UpdateOptions & Partial<Omit<SerialOptions, "path" | "lock">>;

/** An open serial port. */
export class SerialPort implements BindingPortInterface {
  openOptions: Required<SerialOptions>;
  /** Undefined once closed. */
  #file: number | undefined;
  readonly #watch: Watch;
  #reading: Reading | undefined;
  #writing: Writing | undefined;
  /** Bytes that went out during a break would be lost: they wait. */
  #isInBreak = false;
  readonly #ioctlAside: typeof ioctlAside;
  /** Calls in the other thread: the file stays open until they are back. */
  readonly #asides = new Set<Promise<unknown>>();

  /** `aside` stands in for the other thread. */
  constructor(file: number, options: Required<SerialOptions>, aside = ioctlAside) {
    this.#file = file;
    this.#ioctlAside = aside;
    this.openOptions = options;
    this.#watch = watch(file, (events) => this.#ready(events));
  }

  get isOpen(): boolean {
    return this.#file !== undefined;
  }

  async close(): Promise<void> {
    const file = this.#opened();
    this.#file = undefined;
    this.#watch.close();
    this.#stop(canceled());
    const closing = this.#closeFile(file);
    // Past the limit it is closed as soon as that is safe, and held until then
    closing.catch(() => undefined);
    await Promise.race([closing, sleep(CLOSE_MS, undefined, { ref: false })]);
  }

  async read(buffer: Buffer, offset: number, length: number): Promise<{ buffer: Buffer; bytesRead: number }> {
    if (!Buffer.isBuffer(buffer)) throw new TypeError('"buffer" is not a Buffer');
    if (!Number.isInteger(offset)) throw new TypeError(`"offset" is not an integer got "${offset}"`);
    if (!Number.isInteger(length)) throw new TypeError(`"length" is not an integer got "${length}"`);
    if (length < 1 || buffer.length < offset + length) throw new Error("buffer is too small");
    this.#opened();
    if (this.#reading) throw new Error("a read is under way");
    // Waiting comes first, also where bytes are there already: a line that never falls silent would hold up the event loop
    const reading = { buffer, offset, length, ...Promise.withResolvers<number>() };
    this.#reading = reading;
    this.#arm();
    return { buffer, bytesRead: await reading.promise };
  }

  async write(buffer: Buffer): Promise<void> {
    if (!Buffer.isBuffer(buffer)) throw new TypeError('"buffer" is not a Buffer');
    this.#opened();
    if (this.#writing) throw new Error("a write is under way");
    const writing = { rest: buffer, ...Promise.withResolvers<void>() };
    this.#writing = writing;
    this.#send();
    this.#arm();
    return writing.promise;
  }

  async update(options: SerialUpdate): Promise<void> {
    if (!options || typeof options !== "object" || Array.isArray(options)) {
      throw new TypeError('"options" is not an object');
    }
    if (typeof options.baudRate !== "number") throw new TypeError('"options.baudRate" is not a number');
    const { path, lock } = this.openOptions;
    const wanted = { ...this.openOptions, ...options, path, lock };
    await this.#guarded(setUp(this.#opened(), wanted));
    this.openOptions = wanted;
  }

  async set(options: SetOptions): Promise<void> {
    if (!options || typeof options !== "object" || Array.isArray(options)) {
      throw new TypeError('"options" is not an object');
    }
    this.#opened();
    if (options.brk) await this.#beginBreak();
    else if (this.#isInBreak) await this.#endBreak();
    const before = await this.#lines().catch((error) => {
      // Lines that are not there count as up, which is what they are set to unless somebody asks
      if (isUnsupported(error) && options.dtr && options.rts) return undefined;
      throw error;
    });
    if (before === undefined) return;
    const { dtr, rts, cts, dsr } = LINE;
    const named = [dtr, rts, cts, dsr];
    const wanted = [options.dtr, options.rts, options.cts, options.dsr];
    const bits = named.reduce((all, bit, i) => (wanted[i] ? all | bit : all & ~bit), before);
    if (bits !== before) await this.#aside(REQUEST.setLines, Uint32Array.of(bits));
  }

  /** With RI, which node-serialport's own does not tell. */
  async get(): Promise<PortStatus & { ri: boolean }> {
    this.#opened();
    const bits = await this.#lines();
    const isOn = (bit: number) => (bits & bit) !== 0;
    return { cts: isOn(LINE.cts), dsr: isOn(LINE.dsr), dcd: isOn(LINE.dcd), ri: isOn(LINE.ri) };
  }

  async getBaudRate(): Promise<{ baudRate: number }> {
    const termios = new Termios();
    ioctl(this.#opened(), REQUEST.getTermios, termios.bytes, this.openOptions.path);
    return { baudRate: termios.baudRate };
  }

  async flush(): Promise<void> {
    ioctl(this.#opened(), REQUEST.flush, FLUSH.both, this.openOptions.path);
  }

  /** Resolves when the last bit has left, as far as the driver can tell. Rejects when nothing was sent for 10 s. */
  async drain(): Promise<void> {
    this.#opened();
    await this.#writing?.promise;
    await this.#sent(STUCK_MS);
    const endMs = performance.now() + SHIFT_MS;
    const register = new Uint32Array(1);
    while (performance.now() < endMs) {
      const isKnown = await this.#aside(REQUEST.shiftRegister, register).then(
        () => true,
        (error) => {
          if (!isUnsupported(error)) throw error;
        },
      );
      if (!isKnown || (register[0] ?? 0) & SHIFTED_OUT) return;
      await sleep(1);
    }
  }

  async #closeFile(file: number): Promise<void> {
    await Promise.allSettled(this.#asides);
    // Here and not with the file: closing waits for unsent bytes, and whoever opens the port again need not
    if (this.openOptions.lock) unlock(file);
    await closeFile(file);
  }

  /** The file; throws when the port is closed. */
  #opened(): number {
    if (this.#file === undefined) throw canceled();
    return this.#file;
  }

  /** Ends what is under way. */
  #stop(why: Error): void {
    const [reading, writing] = [this.#reading, this.#writing];
    this.#reading = undefined;
    this.#writing = undefined;
    reading?.reject(why);
    writing?.reject(why);
  }

  #arm(): void {
    const reads = this.#reading ? EPOLL.in : 0;
    const writes = this.#writing && !this.#isInBreak ? EPOLL.out : 0;
    if (!this.isOpen || !(reads | writes)) return;
    try {
      this.#watch.arm(reads | writes);
    } catch (error) {
      this.#stop(disconnected(error));
    }
  }

  #ready(events: number): void {
    const isHungUp = (events & (EPOLL.hup | EPOLL.err)) !== 0;
    if (isHungUp || events & EPOLL.in) this.#receive(isHungUp);
    if (isHungUp || events & EPOLL.out) this.#send();
    this.#arm();
  }

  #receive(isHungUp: boolean): void {
    const reading = this.#reading;
    if (!reading || this.#file === undefined) return;
    try {
      const { buffer, offset, length } = reading;
      const bytesRead = readSync(this.#file, buffer, offset, length, null);
      // Nothing is also what a line gives that need not have anything (vmin 0)
      if (bytesRead === 0 && !isHungUp) return;
      if (bytesRead === 0) throw systemError("read", EIO, this.openOptions.path);
      this.#reading = undefined;
      reading.resolve(bytesRead);
    } catch (error) {
      if (isNotNow(error)) return;
      this.#reading = undefined;
      reading.reject(disconnected(error));
    }
  }

  #send(): void {
    const writing = this.#writing;
    if (!writing || this.#file === undefined || this.#isInBreak) return;
    try {
      while (writing.rest.length > 0)
        writing.rest = writing.rest.subarray(writeSync(this.#file, writing.rest));
      this.#writing = undefined;
      writing.resolve();
    } catch (error) {
      if (isNotNow(error)) return;
      this.#writing = undefined;
      writing.reject(disconnected(error));
    }
  }

  async #beginBreak(): Promise<void> {
    this.#isInBreak = true;
    try {
      await this.#sent(BREAK_STUCK_MS).catch((error) => {
        if (!isOneOf(error, "ETIMEDOUT")) throw error;
        // The kernel would wait for these bytes for ever, and the thread of everybody with it
        ioctl(this.#opened(), REQUEST.flush, FLUSH.output, this.openOptions.path);
      });
      await this.#aside(REQUEST.beginBreak, 0);
    } catch (error) {
      await this.#endBreak().catch(() => undefined);
      throw error;
    }
  }

  async #endBreak(): Promise<void> {
    await this.#aside(REQUEST.endBreak, 0);
    this.#isInBreak = false;
    this.#send();
    this.#arm();
  }

  /** Waits until the kernel has given all to the hardware; throws ETIMEDOUT when for `stuckMs` it gave nothing. */
  async #sent(stuckMs: number): Promise<void> {
    const unsent = new Uint32Array(1);
    let least = Number.POSITIVE_INFINITY;
    let sinceMs = performance.now();
    for (;;) {
      ioctl(this.#opened(), REQUEST.unsent, unsent, this.openOptions.path);
      const [left = 0] = unsent;
      if (left === 0) return;
      if (left < least) {
        least = left;
        sinceMs = performance.now();
      } else if (performance.now() - sinceMs > stuckMs) {
        throw systemError("drain", ETIMEDOUT, `${this.openOptions.path}: ${left} bytes`);
      }
      await sleep(Math.min(LOOK_MS, Math.max(1, (left * 10_000) / this.openOptions.baudRate)));
    }
  }

  async #lines(): Promise<number> {
    const bits = new Uint32Array(1);
    await this.#aside(REQUEST.getLines, bits);
    return bits[0] ?? 0;
  }

  #aside(request: number, argument: Uint32Array | number): Promise<number> {
    return this.#guarded(
      this.#ioctlAside("serial", this.#opened(), request, argument, this.openOptions.path),
    );
  }

  async #guarded<T>(call: Promise<T>): Promise<T> {
    this.#asides.add(call);
    try {
      return await call;
    } finally {
      this.#asides.delete(call);
    }
  }
}

type Reading = PromiseWithResolvers<number> & { buffer: Buffer; offset: number; length: number };
type Writing = PromiseWithResolvers<void> & { rest: Buffer };

const canceled = (): Error => Object.assign(new Error("Port is not open"), { canceled: true });

/** As node-serialport's stream is told that the line is no more. */
const disconnected = (error: unknown): Error => Object.assign(error as Error, { disconnect: true });

const isOneOf = (error: unknown, ...codes: string[]): boolean =>
  codes.includes((error as NodeJS.ErrnoException).code ?? "");

const isNotNow = (error: unknown): boolean => isOneOf(error, "EAGAIN", "EINTR");

/** A driver without such a thing: each has its own word for it. */
const isUnsupported = (error: unknown): boolean => isOneOf(error, "ENOTTY", "EINVAL");
