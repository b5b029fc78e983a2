/**
 * Every call of the package i2c-bus in its three forms, as a conversation with one device that has 256 registers:
 * against the simulated kernel in `i2c.test.ts`, and in a guest with a real one (`guest/i2c.ts`).
 */
import type { I2CBus } from "i2c-bus";

/** A call without the device's address, which is its first argument. */
export interface BusCall {
  name: string;
  args: (number | Buffer)[];
  gives?: number;
  /** What the buffer among the arguments holds afterwards. */
  fills?: number[];
  /** Plain I²C: an adapter that speaks SMBus only (i801) cannot do it. */
  isPlain?: true;
}

const block = (length: number, from = 1) => Buffer.from(Array.from({ length }, (_, n) => (from + n) & 0xff));

/** In an order in which each can be told from a call that did nothing; made anew for each form, because buffers are filled. */
export function busCalls(from: number): BusCall[] {
  const full = [...block(32, from + 7)];
  return [
    { name: "writeQuick", args: [0] },
    { name: "writeByte", args: [0x10, from] },
    { name: "readByte", args: [0x10], gives: from },
    { name: "writeByte", args: [0xff, 0xff] },
    { name: "readByte", args: [0xff], gives: 0xff },
    { name: "sendByte", args: [0x10] },
    { name: "receiveByte", args: [], gives: from },
    { name: "writeWord", args: [0x20, 0xbe00 + from] },
    { name: "readWord", args: [0x20], gives: 0xbe00 + from },
    { name: "readByte", args: [0x21], gives: 0xbe },
    { name: "writeI2cBlock", args: [0x30, 5, block(10, from)] },
    {
      name: "readI2cBlock",
      args: [0x30, 5, Buffer.alloc(7)],
      gives: 5,
      fills: [...block(5, from), 0, 0],
    },
    { name: "writeI2cBlock", args: [0x40, 32, Buffer.from(full)] },
    { name: "readI2cBlock", args: [0x40, 32, Buffer.alloc(32)], gives: 32, fills: full },
    { name: "writeBlock", args: [0x80, 3, block(3, from)] },
    { name: "readBlock", args: [0x80, Buffer.alloc(5)], gives: 3, fills: [...block(3, from), 0, 0] },
    { name: "i2cWrite", args: [3, Buffer.from([0x90, from, 0x77])], isPlain: true },
    { name: "i2cWrite", args: [1, Buffer.from([0x90])], isPlain: true },
    { name: "i2cRead", args: [2, Buffer.alloc(3)], gives: 2, fills: [from, 0x77, 0], isPlain: true },
  ];
}

/** The three ways to make a call; each resolves with what a read gave, or undefined. */
export const FORMS: Record<string, (bus: I2CBus, name: string, args: unknown[]) => Promise<unknown>> = {
  synchronous: async (bus, name, args) => method(bus, `${name}Sync`)(...args),
  callback: (bus, name, args) =>
    new Promise((resolve, reject) => {
      method(bus, name)(...args, (error: unknown, answer: unknown) =>
        error === null || error === undefined ? resolve(answer) : reject(error),
      );
    }),
  promise: async (bus, name, args) => {
    const answer = await method(bus.promisifiedBus(), name)(...args);
    const { bytesRead, bytesWritten } = Object(answer);
    return bytesRead ?? bytesWritten ?? answer;
  },
};

function method(of: object, name: string): (...args: unknown[]) => unknown {
  const found = (of as Record<string, unknown>)[name];
  if (typeof found !== "function") throw new Error(`i2c-bus has no ${name}`);
  return found.bind(of) as (...args: unknown[]) => unknown;
}

/** What a call did wrong; undefined when it did what it should. */
export async function problemOf(
  form: keyof typeof FORMS,
  bus: I2CBus,
  address: number,
  { name, args, gives, fills }: BusCall,
): Promise<string | undefined> {
  const what = `${name} ${form}`;
  try {
    const answer = await FORMS[form]!(bus, name, [address, ...args]);
    if (gives !== undefined && answer !== gives) return `${what}: ${answer} instead of ${gives}`;
    const buffer = args.find((arg) => Buffer.isBuffer(arg));
    if (fills && buffer?.compare(Buffer.from(fills)) !== 0) return `${what}: ${buffer?.toString("hex")}`;
    return undefined;
  } catch (error) {
    return `${what}: ${error}`;
  }
}
