/** I²C buses of Linux, on i2c-bus. */
import { constants } from "node:fs";
import { access, realpath } from "node:fs/promises";
import { openPromisified, type PromisifiedBus } from "i2c-bus";
import { within } from "./limit.ts";
import { hex } from "./pistack.ts";
import { HalError, type HalErrorCode, type I2cLink } from "./ports.ts";
import { Turns } from "./turns.ts";

/** What of an i2c-bus a link uses. */
export type I2cBus = Pick<
  PromisifiedBus,
  | "close"
  | "i2cRead"
  | "readByte"
  | "readI2cBlock"
  | "receiveByte"
  | "sendByte"
  | "writeByte"
  | "writeI2cBlock"
>;

/** What the kernel says, as what callers decide by; everything else is `io`. Adapters differ in how they say "not acknowledged" (Documentation/i2c/fault-codes.rst). */
const CODES: Record<string, HalErrorCode> = {
  ENXIO: "absent",
  EREMOTEIO: "absent",
  ETIMEDOUT: "timeout",
  EBUSY: "busy",
  EAGAIN: "busy",
  EOPNOTSUPP: "refused",
  ENOTSUP: "refused",
};
const WORDS: Partial<Record<HalErrorCode, string>> = {
  absent: "no acknowledgement",
  refused: "the adapter cannot do this",
};

/** Adapters give up after about a second; one that does not is stuck. */
const LIMIT_MS = 5000;
/** The longest block of SMBus, and what fits in front of it: the register. */
const BLOCK_MOST = 32;

/** Opens `/dev/i2c-<n>`, by that name or by a link to it. Throws `absent` where there is none, `io`. */
export async function openI2cLink(device: string): Promise<I2cLink> {
  const path = await whereIs(device);
  const bus = /^\/dev\/i2c-(\d+)$/.exec(path)?.[1];
  if (bus === undefined)
    throw new HalError("io", `${device}: is no I²C bus; those are called /dev/i2c-<number>`);
  return i2cLink(device, () => openPromisified(Number(bus)));
}

/** A link over a bus of i2c-bus, which is opened at the first exchange. */
export function i2cLink(name: string, open: () => Promise<I2cBus>): I2cLink {
  return new Link(name, open);
}

async function whereIs(device: string): Promise<string> {
  try {
    await access(device, constants.R_OK | constants.W_OK);
    return await realpath(device);
  } catch (cause) {
    const { code, message } = cause as NodeJS.ErrnoException;
    throw new HalError(code === "ENOENT" ? "absent" : "io", `${device}: ${REMEDIES[code ?? ""] ?? message}`, {
      cause,
    });
  }
}

const REMEDIES: Record<string, string> = {
  ENOENT: "does not exist; on a Pi, put dtparam=i2c_arm=on into config.txt and load the module i2c-dev",
  EACCES: "no permission; run as root or join the group i2c",
};

class Link implements I2cLink {
  readonly #name: string;
  readonly #open: () => Promise<I2cBus>;
  readonly #turns: Turns;
  #bus: I2cBus | undefined;
  #last: Promise<unknown> = Promise.resolve();
  /** What the kernel was asked and has not answered, in time or not. */
  readonly #asked = new Set<Promise<unknown>>();
  #closing: Promise<void> | undefined;

  constructor(name: string, open: () => Promise<I2cBus>) {
    this.#name = name;
    this.#open = open;
    this.#turns = new Turns(name);
  }

  exchange(address: number, write: Uint8Array, read: number): Promise<Uint8Array> {
    const exchange = this.#turns.take(() => this.#exchange(address, write, read));
    this.#last = exchange.catch(() => undefined);
    return exchange;
  }

  close(): Promise<void> {
    this.#closing ??= this.#last.then(() => this.#drop());
    return this.#closing;
  }

  async #exchange(address: number, write: Uint8Array, read: number): Promise<Uint8Array> {
    if (this.#closing !== undefined) throw new HalError("io", `${this.#name}: is closed`);
    const where = `${this.#name} at ${hex(address)}`;
    const say = formOf(write.length, read);
    if (!say)
      throw new HalError(
        "refused",
        `${where}: ${write.length} bytes to write and ${read} to read do not fit into one transfer`,
      );
    try {
      this.#bus ??= await this.#open();
      return await within(LIMIT_MS, this.#ask(say(this.#bus, address, write, read)), late);
    } catch (cause) {
      // i2c-bus keeps the file to which the kernel refused the address, and would talk to address 0 through it.
      if ((cause as NodeJS.ErrnoException).syscall === "setAddr") await this.#drop();
      throw halError(where, cause);
    }
  }

  async #ask<T>(call: Promise<T>): Promise<T> {
    this.#asked.add(call);
    try {
      return await call;
    } finally {
      this.#asked.delete(call);
    }
  }

  /** Lets go of the bus. Its files stay open until the last call on them is back: their numbers could be others' by then. */
  async #drop(): Promise<void> {
    const bus = this.#bus;
    this.#bus = undefined;
    if (this.#asked.size === 0) return bus?.close();
    void Promise.allSettled(this.#asked)
      .then(() => bus?.close())
      .catch(() => undefined);
  }
}

const late = () => new HalError("timeout", `the kernel does not answer within ${LIMIT_MS / 1000} s`);

type Form = (bus: I2cBus, address: number, write: Uint8Array, read: number) => Promise<Uint8Array>;

/**
 * How that many bytes are written and read in one transfer; undefined where i2c-bus has no way. The SMBus forms put the
 * same bits on the wire as plain I²C would, and work with adapters that can do nothing else.
 */
function formOf(writes: number, reads: number): Form | undefined {
  if (reads > BLOCK_MOST || writes > BLOCK_MOST + 1) return undefined;
  if (reads === 0) return WRITES[Math.min(writes, WRITES.length - 1)];
  if (writes === 0) return reads === 1 ? receive : receiveMany;
  if (writes === 1) return reads === 1 ? readRegister : readRegisters;
  return undefined;
}

const NOTHING = new Uint8Array();

/** By how much is written: nothing (no transfer), one byte, a register, a block. */
const WRITES: readonly (Form | undefined)[] = [
  undefined,
  async (bus, address, [byte = 0]) => {
    await bus.sendByte(address, byte);
    return NOTHING;
  },
  async (bus, address, [register = 0, byte = 0]) => {
    await bus.writeByte(address, register, byte);
    return NOTHING;
  },
  async (bus, address, write) => {
    const [register = 0, ...block] = write;
    await bus.writeI2cBlock(address, register, block.length, Buffer.from(block));
    return NOTHING;
  },
];

const receive: Form = async (bus, address) => Uint8Array.of(await bus.receiveByte(address));

const receiveMany: Form = async (bus, address, _, length) => {
  const { bytesRead, buffer } = await bus.i2cRead(address, length, Buffer.alloc(length));
  return Uint8Array.from(buffer.subarray(0, bytesRead));
};

const readRegister: Form = async (bus, address, [register = 0]) =>
  Uint8Array.of(await bus.readByte(address, register));

const readRegisters: Form = async (bus, address, [register = 0], length) => {
  const { bytesRead, buffer } = await bus.readI2cBlock(address, register, length, Buffer.alloc(length));
  return Uint8Array.from(buffer.subarray(0, bytesRead));
};

function halError(where: string, cause: unknown): HalError {
  if (cause instanceof HalError) return new HalError(cause.code, `${where}: ${cause.message}`, { cause });
  const { code, syscall, message } = cause as NodeJS.ErrnoException;
  if (code === "EBUSY" && syscall === "setAddr")
    return new HalError("busy", `${where}: a driver of the kernel holds this address`, { cause });
  const kind = CODES[code ?? ""] ?? "io";
  const words = WORDS[kind];
  return new HalError(kind, `${where}: ${words ? `${words} (${message})` : message}`, { cause });
}
