/**
 * Linux's I²C buses, played at the kernel's boundary: opening, reading and writing `/dev/i2c-<n>`, and ioctl(2), whose
 * structures are read from memory as the kernel would and checked field by field (drivers/i2c/i2c-dev.c).
 */
import { toArrayBuffer } from "bun:ffi";
import { readFileSync } from "node:fs";
import type * as Package from "i2c-bus";
import { type I2cKernel, i2cNative } from "../hal/native/i2c.ts";
import { addressOf, type Buffered, systemError } from "../hal/native/libc.ts";

const ERRNO = {
  ENOENT: 2,
  EIO: 5,
  ENXIO: 6,
  EBADF: 9,
  EAGAIN: 11,
  EBUSY: 16,
  ENODEV: 19,
  EINVAL: 22,
  ENOTTY: 25,
  EOPNOTSUPP: 95,
  ETIMEDOUT: 110,
  EREMOTEIO: 121,
};
export type Failure = keyof typeof ERRNO;

/** linux/i2c.h */
const FUNC_I2C = 0x00000001;
const FUNC_SMBUS = 0x0fff0000;
const BLOCK_MOST = 32;

/** A device with 256 registers and a pointer that moves on, as an EEPROM is one (and as QEMU's smbus-eeprom behaves). */
export class Device {
  readonly registers = new Uint8Array(256);
  pointer = 0;
  readonly quicks: number[] = [];

  take(bytes: Iterable<number>): void {
    for (const byte of bytes) this.registers[this.pointer++ & 0xff] = byte;
  }

  give(length: number): Uint8Array {
    return Uint8Array.from({ length }, () => this.registers[this.pointer++ & 0xff] ?? 0);
  }
}

/** One open file of a bus. */
interface Opened {
  bus: number;
  address: number;
}

export class SimKernel implements I2cKernel {
  readonly devices = new Map<number, Device>();
  /** Addresses that a driver of the kernel holds. */
  readonly taken = new Set<number>();
  /** Answers of SMBus transfers to a device that are no success. */
  readonly failures = new Map<number, Failure>();
  /** What was done, in the kernel's order: `smbus 0x48`, `rdwr 0x7c`, `slave 0x48`, `open`, `close` … */
  readonly log: string[] = [];
  readonly files = new Map<number, Opened>();
  /** False for an adapter like i801, which speaks SMBus only. */
  hasPlain = true;
  #last: Promise<unknown> = Promise.resolve();
  #lastFile = 1_000_000;
  /** What must stay in memory meanwhile. */
  readonly #kept = new Set<unknown>();
  readonly #buses: readonly number[];

  constructor(...buses: number[]) {
    this.#buses = buses;
  }

  device(address: number): Device {
    const device = new Device();
    this.devices.set(address, device);
    return device;
  }

  ioctl(file: number, request: number, argument: Buffered | number): number {
    this.#kept.add(argument);
    try {
      return this.#ioctl(file, request, typeof argument === "number" ? argument : addressOf(argument));
    } finally {
      this.#kept.delete(argument);
    }
  }

  ioctlAside(
    file: number,
    request: number,
    argument: Buffered | number,
    about: string,
    holding: readonly Buffered[],
  ): Promise<number> {
    if (about === "") throw new Error("a call aside that does not say what it is");
    const value = typeof argument === "number" ? argument : addressOf(argument);
    const held = holding.map(addressOf);
    // One after the other, never at once, as the thread does it
    const call = this.#last.then(() => new Promise((resolve) => setImmediate(resolve)));
    const kept = [argument, ...holding];
    this.#kept.add(kept);
    const answer = call
      .then(() => this.#ioctl(file, request, value, held))
      .finally(() => this.#kept.delete(kept));
    this.#last = answer.catch(() => undefined);
    return answer;
  }

  /** What i2c-bus uses of `node:fs`. */
  get fs() {
    return {
      openSync: (path: string) => this.#open(path),
      closeSync: (file: number) => this.#close(file),
      readSync: (file: number, buffer: Uint8Array, offset: number, length: number) =>
        this.#read(file, buffer.subarray(offset, offset + length)),
      writeSync: (file: number, buffer: Uint8Array, offset: number, length: number) =>
        this.#write(file, buffer.subarray(offset, offset + length)),
      open: (path: string, _: string, done: Done) => later(done, () => [this.#open(path)]),
      close: (file: number, done: Done) => later(done, () => [this.#close(file)]),
      read: (file: number, buffer: Buffer, offset: number, length: number, _: number, done: Done) =>
        later(done, () => [this.#read(file, buffer.subarray(offset, offset + length)), buffer]),
      write: (file: number, buffer: Buffer, offset: number, length: number, _: number, done: Done) =>
        later(done, () => [this.#write(file, buffer.subarray(offset, offset + length)), buffer]),
    };
  }

  #open(path: string): number {
    const bus = Number(/^\/dev\/i2c-(\d+)$/.exec(path)?.[1]);
    if (!this.#buses.includes(bus)) throw systemError("open", ERRNO.ENOENT, path);
    this.files.set(++this.#lastFile, { bus, address: 0 });
    this.log.push("open");
    return this.#lastFile;
  }

  #close(file: number): void {
    if (!this.files.delete(file)) throw systemError("close", ERRNO.EBADF);
    this.log.push("close");
  }

  #opened(file: number): Opened {
    const opened = this.files.get(file);
    if (!opened) throw systemError("ioctl", ERRNO.EBADF);
    return opened;
  }

  #ioctl(file: number, request: number, value: number, held?: readonly number[]): number {
    const opened = this.#opened(file);
    if (request === 0x0703 || request === 0x0706) {
      if (value < 0 || value > 0x7f) throw systemError("ioctl", ERRNO.EINVAL);
      if (request === 0x0703 && this.taken.has(value)) throw systemError("ioctl", ERRNO.EBUSY);
      opened.address = value;
      this.log.push(`${request === 0x0703 ? "slave" : "force"} ${hex(value)}`);
      return 0;
    }
    if (request === 0x0705) {
      const bits = memory(value, 8);
      bits.setBigUint64(0, BigInt(this.hasPlain ? FUNC_I2C | FUNC_SMBUS : FUNC_SMBUS), true);
      return 0;
    }
    if (request === 0x0707) return this.#rdwr(memory(value, 16), held);
    if (request === 0x0720) return this.#smbus(opened, memory(value, 16), held);
    throw systemError("ioctl", ERRNO.ENOTTY);
  }

  /** i2cdev_ioctl_smbus() */
  #smbus({ address }: Opened, args: DataView, held?: readonly number[]): number {
    const direction = args.getUint8(0);
    const command = args.getUint8(1);
    const kind = args.getUint32(4, true);
    const at = Number(args.getBigUint64(8, true));
    if (args.getUint16(2) !== 0) throw new Error("padding is not empty");
    if (direction > 1) throw systemError("ioctl", ERRNO.EINVAL);
    if (held && !held.includes(at)) throw new Error("nobody keeps the memory of the data");
    const device = this.#transfer("smbus", address);
    if (kind === 0) return device.quicks.push(direction) && 0;
    if (kind === 1 && direction === 0) {
      device.pointer = command;
      return 0;
    }
    const data = memory(at, BLOCK_MOST + 2);
    if (kind !== 1) device.pointer = command;
    if (direction === 1) read(device, kind, data);
    else device.take(written(kind, data));
    return 0;
  }

  /** i2cdev_ioctl_rdwr() with what a device id is asked by (UM10204 §3.1.17). */
  #rdwr(args: DataView, held?: readonly number[]): number {
    if (!this.hasPlain) throw systemError("ioctl", ERRNO.EOPNOTSUPP);
    const messages = Number(args.getBigUint64(0, true));
    const count = args.getUint32(8, true);
    const [write, back] = Array.from({ length: count }, (_, n) => {
      const message = memory(messages + 16 * n, 16);
      const at = Number(message.getBigUint64(8, true));
      if (held && !(held.includes(messages) && held.includes(at))) throw new Error("nobody keeps a message");
      return {
        address: message.getUint16(0, true),
        flags: message.getUint16(2, true),
        bytes: memory(at, message.getUint16(4, true)),
      };
    });
    if (count !== 2 || write?.flags !== 0 || back?.flags !== 1) throw systemError("ioctl", ERRNO.EINVAL);
    if (write.address !== 0x7c || back.address !== 0x7c) throw systemError("ioctl", ERRNO.ENXIO);
    const about = write.bytes.getUint8(0) >> 1;
    if (!this.devices.has(about) || back.bytes.byteLength !== 3) throw systemError("ioctl", ERRNO.ENXIO);
    this.log.push(`rdwr ${hex(about)}`);
    // Manufacturer 5 (Analog Devices), product 0x9ab: the top bit of a byte is no sign.
    for (const [n, byte] of [0x00, 0x59, 0xab].entries()) back.bytes.setUint8(n, byte);
    return 2;
  }

  #read(file: number, buffer: Uint8Array): number {
    buffer.set(this.#plain(file).give(buffer.length));
    return buffer.length;
  }

  #write(file: number, bytes: Uint8Array): number {
    const device = this.#plain(file);
    device.pointer = bytes[0] ?? 0;
    device.take(bytes.subarray(1));
    return bytes.length;
  }

  #plain(file: number): Device {
    if (!this.hasPlain) throw systemError("read", ERRNO.EOPNOTSUPP);
    return this.#transfer("plain", this.#opened(file).address);
  }

  #transfer(kind: string, address: number): Device {
    this.log.push(`${kind} ${hex(address)}`);
    const failure = this.failures.get(address);
    if (failure) throw systemError("ioctl", ERRNO[failure]);
    const device = this.devices.get(address);
    if (!device) throw systemError("ioctl", ERRNO.ENXIO);
    return device;
  }
}

/** The package i2c-bus as installed, its native part and its files being this kernel's. */
export function packageOn(kernel: SimKernel): typeof Package {
  const native = i2cNative(kernel);
  return load(Bun.resolveSync("i2c-bus", import.meta.dir), {
    fs: kernel.fs,
    bindings: () => native,
  }) as typeof Package;
}

/** Runs a CommonJS file with what it shall get for some of the names it requires. */
export function load(file: string, given: Record<string, unknown>, console: unknown = globalThis.console) {
  const module = { exports: {} as unknown };
  const requires = (name: string) => given[name] ?? require(name);
  const run = new Function("require", "module", "console", readFileSync(file, "utf8"));
  run(requires, module, console);
  return module.exports;
}

type Done = (error: unknown, ...answer: unknown[]) => void;

function later(done: Done, work: () => unknown[]): void {
  setImmediate(() => {
    let answer: unknown[];
    try {
      answer = work();
    } catch (error) {
      done(error);
      return;
    }
    done(null, ...answer);
  });
}

/** The bytes of a write, by the kind of transfer; a block is stored with its length in front. */
function written(kind: number, data: DataView): Uint8Array {
  const from = (start: number, length: number) =>
    new Uint8Array(data.buffer, data.byteOffset + start, length);
  const length = data.getUint8(0);
  if (kind === 2) return from(0, 1);
  if (kind === 3) return from(0, 2);
  if (kind !== 5 && kind !== 8) throw systemError("ioctl", ERRNO.EINVAL);
  if (length > BLOCK_MOST) throw systemError("ioctl", ERRNO.EINVAL);
  return kind === 5 ? from(0, length + 1) : from(1, length);
}

function read(device: Device, kind: number, data: DataView): void {
  const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  if (kind === 1 || kind === 2) bytes.set(device.give(1));
  else if (kind === 3) bytes.set(device.give(2));
  else if (kind === 5)
    bytes.set(device.give(1 + (device.registers[device.pointer] ?? 0)).subarray(0, bytes.length));
  else if (kind === 8 && data.getUint8(0) <= BLOCK_MOST) bytes.set(device.give(data.getUint8(0)), 1);
  else throw systemError("ioctl", ERRNO.EINVAL);
}

function memory(at: number, length: number): DataView {
  if (at === 0) throw systemError("ioctl", ERRNO.EINVAL);
  return new DataView(toArrayBuffer(at as never, 0, length));
}

const hex = (value: number) => `0x${value.toString(16).padStart(2, "0")}`;
