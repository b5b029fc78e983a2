import { parseArgs } from "node:util";
import { hex } from "../../hal/pistack.ts";
import { HalError, type HalErrorCode, type I2cLink } from "../../hal/ports.ts";
import { openHardware } from "../hardware.ts";
import { CliError, type CliVerb, EXIT, type Exit, type Io, UsageError } from "../terminal.ts";

/** Addresses a device may have; the others are reserved (UM10204 table 4). */
const FIRST = 0x08;
const LAST = 0x77;
/** Bytes that one transfer can read. */
const MOST = 32;

/** `fruit i2c`: looks at a bus and speaks to a device, without the agent, whatever drives the boards. */
export const I2C_VERBS: readonly CliVerb[] = [
  {
    words: "i2c scan",
    synopsis: "BUS [--hal linux|sim]",
    summary: "lists who answers on an I²C bus (1 or /dev/i2c-1); each address is read once",
    needsAgent: false,
    run: ({ args, io, json }) =>
      onBus(args, io, [1, 1], async (link) => {
        const found = await scan(link, io.signal);
        if (json) io.out(`${JSON.stringify({ v: 1, devices: found })}\n`);
        else
          for (const { address, state } of found)
            io.out(`${address}${state === "taken" ? "  a driver of the kernel holds it" : ""}\n`);
        if (found.length === 0) io.err("nobody answers\n");
      }),
  },
  {
    words: "i2c get",
    synopsis: "BUS ADDRESS REGISTER [LENGTH] [--hal linux|sim]",
    summary: "reads bytes from a device's register on; numbers as 32 or 0x20",
    needsAgent: false,
    run: ({ args, io, json }) =>
      onBus(args, io, [3, 4], async (link, [address, register, length]) => {
        const device = number("ADDRESS", address, 0, 0x7f);
        const count = length === undefined ? 1 : number("LENGTH", length, 1, MOST);
        const bytes = await link.exchange(device, Uint8Array.of(byte("REGISTER", register)), count);
        if (json) io.out(`${JSON.stringify({ v: 1, bytes: [...bytes] })}\n`);
        else io.out(`${Array.from(bytes, hex).join(" ")}\n`);
      }),
  },
  {
    words: "i2c set",
    synopsis: "BUS ADDRESS REGISTER VALUE… [--hal linux|sim]",
    summary:
      "writes bytes to a device from a register on, at once, whoever uses it and past every rule of fruit power",
    needsAgent: false,
    run: ({ args, io }) =>
      onBus(args, io, [4, 3 + MOST], async (link, [address, register, ...values]) => {
        const device = number("ADDRESS", address, 0, 0x7f);
        const bytes = [byte("REGISTER", register), ...values.map((value) => byte("VALUE", value))];
        await link.exchange(device, Uint8Array.from(bytes), 0);
      }),
  },
];

/** `taken`: by a driver of the kernel, which alone may speak to it. */
type Presence = "answers" | "taken";

/** Opens the bus that the first word names, and closes it. */
async function onBus(
  args: string[],
  io: Io,
  [least, most]: [number, number],
  work: (link: I2cLink, words: string[]) => Promise<void>,
): Promise<Exit> {
  const { values: flags, positionals } = parseArgs({
    args,
    options: { hal: { type: "string" } },
    allowPositionals: true,
  });
  const [bus = "", ...words] = positionals;
  if (positionals.length < least) throw new UsageError("a word is missing");
  if (positionals.length > most) throw new UsageError(`"${positionals[most]}" is one word too many`);
  const hal = await openHardware(flags.hal, io.env);
  try {
    const link = await hal.openI2c(/^\d+$/.test(bus) ? `/dev/i2c-${bus}` : bus);
    await work(link, words).finally(() => link.close());
    return EXIT.done;
  } catch (cause) {
    if (!(cause instanceof HalError)) throw cause;
    throw new CliError(EXITS[cause.code] ?? EXIT.failed, cause.message, { cause });
  } finally {
    await hal.close();
  }
}

const EXITS: Partial<Record<HalErrorCode, Exit>> = {
  absent: EXIT.unreachable,
  timeout: EXIT.unreachable,
  io: EXIT.unreachable,
  busy: EXIT.busy,
};

/** Who answers on a bus; each address is read once. Throws `HalError` where nobody can say. */
export async function scan(link: I2cLink, signal: AbortSignal) {
  const found: { address: string; state: Presence }[] = [];
  for (let address = FIRST; address <= LAST && !signal.aborted; address++) {
    const state = await whoIs(link, address);
    if (state) found.push({ address: hex(address), state });
  }
  return found;
}

async function whoIs(link: I2cLink, address: number): Promise<Presence | undefined> {
  try {
    await link.exchange(address, new Uint8Array(), 1);
    return "answers";
  } catch (error) {
    if (!(error instanceof HalError)) throw error;
    if (error.code === "absent") return undefined;
    if (isTaken(error)) return "taken";
    throw error;
  }
}

/** The kernel refused the address itself; a bus that is busy for other reasons has nothing to say of who is there. */
function isTaken({ cause }: HalError): boolean {
  const { code, syscall } = (cause ?? {}) as NodeJS.ErrnoException;
  return code === "EBUSY" && syscall === "setAddr";
}

const byte = (name: string, text: string | undefined) => number(name, text, 0, 0xff);

function number(name: string, text = "", least: number, most: number): number {
  const value = /^(\d+|0x[0-9a-f]+)$/i.test(text) ? Number(text) : Number.NaN;
  if (value >= least && value <= most) return value;
  throw new UsageError(`${name}: "${text}" is no number from ${hex(least)} to ${hex(most)}`);
}
