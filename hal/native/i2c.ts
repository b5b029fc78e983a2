/**
 * The native half of the package i2c-bus, as `bindings("i2c.node")` gives it: the functions that i2c-bus.js calls, in
 * their synchronous and callback forms, over ioctl(2). Requests and structures are those of linux/i2c-dev.h and
 * linux/i2c.h on 64-bit Linux, little-endian.
 *
 * Every file of i2c-bus has one device's address, set once, and the callback forms run one after the other in one
 * thread: the address is set before whatever is asked for after it, and two devices on one bus cannot mix.
 */
import { addressOf, type Buffered, ioctl, systemError } from "./libc.ts";
import { ioctlAside } from "./threads.ts";

/** What of the kernel this needs; a test plays it. */
export interface I2cKernel {
  /** Throws `systemError`. */
  ioctl(file: number, request: number, argument: Buffered | number): number;
  /** The same off the event loop, in the order of the calls. Keeps `argument` and `holding` in memory. */
  ioctlAside(
    file: number,
    request: number,
    argument: Buffered | number,
    about: string,
    holding: readonly Buffered[],
  ): Promise<number>;
}

/** ioctl requests: linux/i2c-dev.h. */
const REQUEST = { slave: 0x0703, slaveForce: 0x0706, funcs: 0x0705, rdwr: 0x0707, smbus: 0x0720 };

/** What an adapter can do, by the names i2c-bus uses: linux/i2c.h. */
const FUNCS = {
  I2C_FUNC_I2C: 0x00000001,
  I2C_FUNC_10BIT_ADDR: 0x00000002,
  I2C_FUNC_PROTOCOL_MANGLING: 0x00000004,
  I2C_FUNC_SMBUS_PEC: 0x00000008,
  I2C_FUNC_SMBUS_BLOCK_PROC_CALL: 0x00008000,
  I2C_FUNC_SMBUS_QUICK: 0x00010000,
  I2C_FUNC_SMBUS_READ_BYTE: 0x00020000,
  I2C_FUNC_SMBUS_WRITE_BYTE: 0x00040000,
  I2C_FUNC_SMBUS_READ_BYTE_DATA: 0x00080000,
  I2C_FUNC_SMBUS_WRITE_BYTE_DATA: 0x00100000,
  I2C_FUNC_SMBUS_READ_WORD_DATA: 0x00200000,
  I2C_FUNC_SMBUS_WRITE_WORD_DATA: 0x00400000,
  I2C_FUNC_SMBUS_PROC_CALL: 0x00800000,
  I2C_FUNC_SMBUS_READ_BLOCK_DATA: 0x01000000,
  I2C_FUNC_SMBUS_WRITE_BLOCK_DATA: 0x02000000,
  I2C_FUNC_SMBUS_READ_I2C_BLOCK: 0x04000000,
  I2C_FUNC_SMBUS_WRITE_I2C_BLOCK: 0x08000000,
};

/** Direction and kind of an SMBus transfer: linux/i2c.h. The kernel takes I2C blocks of any length since 2.6.23. */
const WRITE = 0;
const READ = 1;
const KIND = { quick: 0, byte: 1, byteData: 2, wordData: 3, block: 5, i2cBlock: 8 };
/** I2C_SMBUS_BLOCK_MAX */
const BLOCK_MOST = 32;
const EINVAL = 22;
const EMSGSIZE = 90;

/** One call, ready to be made. */
interface Call {
  request: number;
  argument: Buffered | number;
  /** Memory that `argument` points to, what is read first; needed until the answer is taken from it. */
  holding: readonly DataView[];
  /** What the callback gets after `null` once the kernel has answered, the first of it being the synchronous result. */
  answer(held: readonly DataView[]): unknown[];
}

type Callback = (error: Error | null, ...answer: unknown[]) => void;

const nothing = () => [];

/** The calls by name; each becomes `<name>Sync(file, …)` and `<name>Async(file, …, callback)`. */
const CALLS = {
  setAddr: (address: number, isForced: boolean): Call => ({
    request: isForced ? REQUEST.slaveForce : REQUEST.slave,
    argument: address,
    holding: [],
    answer: nothing,
  }),
  i2cFuncs: (): Call => {
    const bits = memory(8);
    return {
      request: REQUEST.funcs,
      argument: bits,
      holding: [bits],
      answer: () => [bits.getUint32(0, true)],
    };
  },
  deviceId,
  readByte: (command: number) => smbus(READ, command, KIND.byteData, (data) => [data.getUint8(0)]),
  readWord: (command: number) => smbus(READ, command, KIND.wordData, (data) => [data.getUint16(0, true)]),
  receiveByte: () => smbus(READ, 0, KIND.byte, (data) => [data.getUint8(0)]),
  sendByte: (byte: number) => smbus(WRITE, byte, KIND.byte, nothing),
  writeQuick: (bit: number) => smbus(bit, 0, KIND.quick, nothing),
  writeByte: (command: number, byte: number) =>
    smbus(WRITE, command, KIND.byteData, nothing, (data) => data.setUint8(0, byte)),
  writeWord: (command: number, word: number) =>
    smbus(WRITE, command, KIND.wordData, nothing, (data) => data.setUint16(0, word, true)),
  readBlock: (command: number, buffer: Uint8Array) =>
    smbus(READ, command, KIND.block, (data) => takeBlock(data, buffer)),
  readI2cBlock: (command: number, length: number, buffer: Uint8Array) =>
    smbus(
      READ,
      command,
      KIND.i2cBlock,
      (data) => takeBlock(data, buffer),
      (data) => data.setUint8(0, bounded(length)),
    ),
  writeBlock: (command: number, length: number, buffer: Uint8Array) =>
    smbus(WRITE, command, KIND.block, () => [length, buffer], putBlock(length, buffer)),
  writeI2cBlock: (command: number, length: number, buffer: Uint8Array) =>
    smbus(WRITE, command, KIND.i2cBlock, () => [length, buffer], putBlock(length, buffer)),
};

/** The object that i2c-bus.js calls, over this kernel. Its errors have the kernel's `code` and `errno` and the call's name as `syscall`. */
export function i2cNative(kernel: I2cKernel): Record<string, unknown> {
  const native: Record<string, unknown> = { ...FUNCS };
  for (const [name, prepare] of Object.entries(CALLS) as [string, (...args: unknown[]) => Call][]) {
    native[`${name}Sync`] = (file: number, ...args: unknown[]) => {
      try {
        const { request, argument, holding, answer } = prepare(...args);
        kernel.ioctl(file, request, argument);
        return answer(holding)[0];
      } catch (cause) {
        throw named(cause, `${name}Sync`);
      }
    };
    native[`${name}Async`] = async (file: number, ...args: unknown[]) => {
      const callback = args.pop() as Callback;
      // A callback's own error is its caller's and not one of this promise
      const tell = (...words: Parameters<Callback>) => process.nextTick(callback, ...words);
      try {
        const { request, argument, holding, answer } = prepare(...args);
        await kernel.ioctlAside(file, request, argument, name, holding);
        tell(null, ...answer(holding));
      } catch (cause) {
        tell(named(cause, name));
      }
    };
  }
  return native;
}

/** What i2c-bus gets under Bun. */
export const I2C = i2cNative({ ioctl, ioctlAside: (...call) => ioctlAside("i2c", ...call) });

/** Memory of its own, which stays where it is. */
const memory = (length: number) => new DataView(new ArrayBuffer(length));

/** An SMBus transfer: struct i2c_smbus_ioctl_data with the union i2c_smbus_data it points to. */
function smbus(
  direction: number,
  command: number,
  kind: number,
  answer: (data: DataView) => unknown[],
  fill: (data: DataView) => void = nothing,
): Call {
  // One byte of length, the block, and one for a checksum.
  const data = memory(BLOCK_MOST + 2);
  fill(data);
  const argument = memory(16);
  argument.setUint8(0, direction);
  argument.setUint8(1, command);
  argument.setUint32(4, kind, true);
  argument.setBigUint64(8, BigInt(addressOf(data)), true);
  return { request: REQUEST.smbus, argument, holding: [data], answer: ([held = data]) => answer(held) };
}

/** Reads a device's 24-bit id (UM10204 §3.1.17): its address is written to 0x7c, then three bytes are read. struct i2c_rdwr_ioctl_data. */
function deviceId(address: number): Call {
  const RESERVED = 0x7c;
  const asked = memory(1);
  asked.setUint8(0, address << 1);
  const id = memory(3);
  const messages = memory(32);
  for (const [at, direction, bytes] of [
    [0, WRITE, asked],
    [16, READ, id],
  ] as const) {
    messages.setUint16(at, RESERVED, true);
    messages.setUint16(at + 2, direction, true);
    messages.setUint16(at + 4, bytes.byteLength, true);
    messages.setBigUint64(at + 8, BigInt(addressOf(bytes)), true);
  }
  const argument = memory(16);
  argument.setBigUint64(0, BigInt(addressOf(messages)), true);
  argument.setUint32(8, 2, true);
  const answer = () => [id.getUint16(0) * 256 + id.getUint8(2)];
  return { request: REQUEST.rdwr, argument, holding: [id, messages, asked], answer };
}

function takeBlock(data: DataView, buffer: Uint8Array): unknown[] {
  const length = data.getUint8(0);
  // The device says how long its block is
  if (length > BLOCK_MOST || length > buffer.length)
    throw systemError("ioctl", EMSGSIZE, `${length} bytes for a buffer of ${buffer.length}`);
  buffer.set(new Uint8Array(data.buffer, 1, length));
  return [length, buffer];
}

function putBlock(length: number, buffer: Uint8Array): (data: DataView) => void {
  return (data) => {
    data.setUint8(0, bounded(length));
    new Uint8Array(data.buffer).set(buffer.subarray(0, length), 1);
  };
}

function bounded(length: number): number {
  if (length > BLOCK_MOST) throw systemError("ioctl", EINVAL, `a block of ${length} bytes`);
  return length;
}

/** The same error as one of the call that a program made. */
function named(cause: unknown, syscall: string): Error {
  const { errno, message } = cause as NodeJS.ErrnoException;
  if (errno === undefined) return cause as Error;
  const about = /, ioctl (.*)$/.exec(message)?.[1];
  return systemError(syscall, -errno, about === syscall ? "" : about);
}
