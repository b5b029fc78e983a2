/**
 * The Pi Stack board's language: what both drivers say and what a simulated board answers.
 *
 * Request: `[op][board][len][args…][crc]`. Reply: `[status][0xFF][len][data…][crc]`; status 0 is OK, 1 an error
 * with one code byte. `len` counts every byte but the CRC; numbers of several bytes are big-endian. A reply names
 * neither the board nor the op, so there is one request at a time. Facts (not code) from the reference driver,
 * `fruit-testbed/PiStack-interface` `commands.py`, `comms.py`, `error_codes.py` and `conversions.py`.
 */
import type { Ability } from "./ports.ts";

/** One op of the board: its code and how many bytes of arguments and of reply data it has. */
export interface Op {
  readonly code: number;
  readonly args: number;
  /** Bytes of data in an OK reply; `readErrors` answers this many or more. */
  readonly reply: number;
}

/** Every published op. A `pi` argument is 0 or 1; times are one byte in a unit that is not documented. */
export const OPS = {
  softwareVersion: { code: 0x02, args: 0, reply: 1 },
  hardwareVersion: { code: 0x03, args: 0, reply: 1 },
  ledsOn: { code: 0x04, args: 0, reply: 0 },
  ledsOff: { code: 0x05, args: 0, reply: 0 },
  rgbLed: { code: 0x06, args: 3, reply: 0 },
  setPrefix: { code: 0x07, args: 1, reply: 0 },
  prefix: { code: 0x08, args: 0, reply: 1 },
  fullId: { code: 0x09, args: 0, reply: 1 },
  inputVolts: { code: 0x0a, args: 0, reply: 2 },
  inputAmperes: { code: 0x0b, args: 0, reply: 2 },
  railVolts: { code: 0x0c, args: 0, reply: 2 },
  piVolts: { code: 0x0d, args: 1, reply: 2 },
  piAmperes: { code: 0x0e, args: 1, reply: 2 },
  heartbeat: { code: 0x0f, args: 1, reply: 1 },
  powered: { code: 0x10, args: 1, reply: 1 },
  on: { code: 0x11, args: 1, reply: 0 },
  off: { code: 0x12, args: 1, reply: 0 },
  forceOff: { code: 0x13, args: 1, reply: 0 },
  heartbeatTime: { code: 0x14, args: 1, reply: 1 },
  setHeartbeatTime: { code: 0x15, args: 2, reply: 0 },
  heartbeatDelay: { code: 0x16, args: 1, reply: 1 },
  setHeartbeatDelay: { code: 0x17, args: 2, reply: 0 },
  offDelay: { code: 0x18, args: 1, reply: 1 },
  setOffDelay: { code: 0x19, args: 2, reply: 0 },
  signalOffDelay: { code: 0x1a, args: 1, reply: 1 },
  setSignalOffDelay: { code: 0x1b, args: 2, reply: 0 },
  readErrors: { code: 0x1c, args: 0, reply: 1 },
  clearErrors: { code: 0x1d, args: 0, reply: 0 },
  errorCount: { code: 0x1e, args: 0, reply: 2 },
  clearCounts: { code: 0x1f, args: 0, reply: 0 },
  errorPointer: { code: 0x20, args: 0, reply: 1 },
  signal: { code: 0x21, args: 1, reply: 0 },
  onAtStart: { code: 0x22, args: 1, reply: 1 },
  setOnAtStart: { code: 0x23, args: 2, reply: 0 },
  signalWidth: { code: 0x24, args: 1, reply: 1 },
  setSignalWidth: { code: 0x25, args: 2, reply: 0 },
  inputWatts: { code: 0x26, args: 0, reply: 4 },
  railWatts: { code: 0x27, args: 0, reply: 4 },
  piWatts: { code: 0x28, args: 1, reply: 4 },
  bootCount: { code: 0x29, args: 0, reply: 2 },
} as const satisfies Record<string, Op>;

/** The name of an op, as errors and the simulator say it. */
export type OpName = keyof typeof OPS;

/** The op a code stands for; undefined for a code nobody published. */
export function opName(code: number): OpName | undefined {
  return (Object.keys(OPS) as OpName[]).find((name) => OPS[name].code === code);
}

/** What a board's error code means, in words for a person (`error_codes.py`). */
export const BOARD_ERRORS: ReadonlyMap<number, string> = new Map([
  [0x02, "not the id of this board"],
  [0x0f, "booted"],
  [0x10, "request too short"],
  [0x11, "request failed its CRC"],
  [0x12, "unknown op"],
  [0x13, "wrong number of arguments"],
  [0x14, "no such Pi"],
  [0x15, "op not provided"],
  [0x20, "its serial port is not readable"],
  [0x21, "request too long"],
  [0x22, "request shorter than its length says"],
  [0x23, "reply does not fit its buffer"],
  [0x30, "too many errors for its buffer"],
  [0x40, "its stored settings fail their CRC"],
  [0x41, "its stored errors fail their CRC"],
  [0x42, "flash: erase not prepared"],
  [0x43, "flash: erase failed"],
  [0x44, "flash: write not prepared"],
  [0x45, "flash: write failed"],
  [0x46, "flash: read back differs"],
  [0x47, "flash: not blank"],
  [0x48, "flash: comparison failed"],
]);

/** What a Pi Stack can do with the newest firmware. */
export const ABILITIES: ReadonlySet<Ability> = new Set<Ability>([
  "signal",
  "identify",
  "start-policy",
  "boot-count",
  "heartbeat",
  "measure",
]);

/** A board's error code as a message says it: `no such Pi (0x14)`. */
export function boardError(code: number): string {
  return `${BOARD_ERRORS.get(code) ?? "an undocumented error"} (${hex(code)})`;
}

/** The errors an older firmware answers to an op it has not got. */
export const LACKING: ReadonlySet<number> = new Set([0x12, 0x15]);

/** The first byte of a reply. */
export const STATUS = { ok: 0x00, error: 0x01 } as const;

/** The address of the master: the second byte of every reply. */
export const MASTER = 0xff;

/** CRC-8/MAXIM: polynomial 0x31 reflected (0x8C), initial 0; 0xA1 over "123456789". */
export function crc8(bytes: Uint8Array): number {
  let crc = 0;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >> 1) ^ 0x8c : crc >> 1;
  }
  return crc;
}

/** What the master sends: one op to one board, with its arguments. */
export function requestFrame(op: OpName, board: number, args: readonly number[] = []): Uint8Array {
  return sealed([OPS[op].code, board, 3 + args.length, ...args]);
}

/** What a board answers when all is well. */
export function replyFrame(data: ArrayLike<number> = []): Uint8Array {
  return sealed([STATUS.ok, MASTER, 3 + data.length, ...Array.from(data)]);
}

/** What a board answers when it cannot do it; `code` is one of `BOARD_ERRORS`. */
export function errorFrame(code: number): Uint8Array {
  return sealed([STATUS.error, MASTER, 4, code]);
}

/** A byte as people write it: `0x0a`. */
export function hex(byte: number): string {
  return `0x${byte.toString(16).padStart(2, "0")}`;
}

function sealed(body: number[]): Uint8Array {
  return Uint8Array.of(...body, crc8(Uint8Array.from(body)));
}

/** What a board measures: volts and amperes as 16-bit counts, watts as 32-bit products of two counts. */
export type Quantity =
  | "inputVolts"
  | "inputAmperes"
  | "inputWatts"
  | "railVolts"
  | "railWatts"
  | "piVolts"
  | "piAmperes"
  | "piWatts";

const VOLTS_PER_COUNT = 3.3 / 65535;
const INPUT_DIVIDER = 112 / 12; // 100 kΩ over 12 kΩ
const INPUT_AMPERES = 1 / 20 / 0.039; // gain 20 over 0.039 Ω
const RAIL_DIVIDER = 7.2 / 3.9; // 3.3 kΩ over 3.9 kΩ
const PI_DIVIDER_V2 = 5 / 3; // 2 kΩ over 3 kΩ
const PI_AMPERES = 100 / (0.05 * 3300); // ZXCT1009, 0.05 Ω shunt, 3.3 kΩ load

/** Volts, amperes or watts of one count (`conversions.py`). Only the Pis' voltage depends on the hardware version: the published watts do not. */
export function perCount(quantity: Quantity, hardware: 2 | 3): number {
  switch (quantity) {
    case "inputVolts":
      return VOLTS_PER_COUNT * INPUT_DIVIDER;
    case "inputAmperes":
      return VOLTS_PER_COUNT * INPUT_AMPERES;
    case "inputWatts":
      return VOLTS_PER_COUNT ** 2 * INPUT_DIVIDER * INPUT_AMPERES;
    case "railVolts":
      return VOLTS_PER_COUNT * RAIL_DIVIDER;
    case "piVolts":
      return VOLTS_PER_COUNT * (hardware === 2 ? PI_DIVIDER_V2 : RAIL_DIVIDER);
    case "piAmperes":
      return VOLTS_PER_COUNT * PI_AMPERES;
    case "railWatts":
    case "piWatts":
      return VOLTS_PER_COUNT ** 2 * RAIL_DIVIDER * PI_AMPERES;
  }
}

/** Volts, amperes or watts from a board's count. */
export function fromCounts(counts: number, quantity: Quantity, hardware: 2 | 3): number {
  return counts * perCount(quantity, hardware);
}

/** The count a board reports for so many volts, amperes or watts: rounded, and held within what its bytes can say. */
export function toCounts(value: number, quantity: Quantity, hardware: 2 | 3): number {
  const most = quantity.endsWith("Watts") ? 0xffff_ffff : 0xffff;
  return Math.min(most, Math.max(0, Math.round(value / perCount(quantity, hardware))));
}

/** A big-endian number from a board's bytes. */
export function fromBytes(bytes: Uint8Array): number {
  return bytes.reduce((number, byte) => number * 256 + byte, 0);
}

/** A number as so many big-endian bytes. */
export function toBytes(value: number, length: number): Uint8Array {
  return Uint8Array.from({ length }, (_, i) => Math.floor(value / 256 ** (length - 1 - i)) % 256);
}

/**
 * Registers of a Pi Stack reached over I²C. **This map is ours**: no published Pi Stack has I²C control; it is for a
 * bridge microcontroller or a re-spun board. A read starts at the written register and goes upwards; numbers are
 * big-endian; unassigned registers read 0.
 */
export const REGISTERS = {
  /** Reads `I2C_MAGIC`. */
  magic: 0x00,
  softwareVersion: 0x01,
  hardwareVersion: 0x02,
  boardId: 0x03,
  prefix: 0x04,
  /** Bits of `STATUS_BITS`. */
  status: 0x05,
  /** Written with an op's code (`I2C_COMMANDS`) or `I2C_SAVE`: does it to the Pi in `argument`. */
  command: 0x06,
  /** The Pi's index, written before the command. */
  argument: 0x07,
  /** Of the last command: 0, a code of `BOARD_ERRORS`, or `I2C_BUSY`, which the write of a command itself sets. */
  result: 0x08,
  /** Volts, amperes of the input, volts of the 5 V rail: three 16-bit counts. */
  input: 0x10,
  /** Volts and amperes of Pi 0, then of Pi 1: four 16-bit counts. */
  pis: 0x18,
  /** Watts of the input, the 5 V rail, Pi 0 and Pi 1: four 32-bit counts. */
  watts: 0x20,
  /** Six settings of Pi 0 (`SETTINGS`); Pi 1's are 8 higher. They last only once saved. */
  settings: 0x30,
  /** Error count (2 bytes), error pointer (1), boot count (2). */
  counts: 0x40,
  /** CRC-8 of the block read last, this register's own excepted: I²C has no check of its own. */
  crc: 0xff,
} as const;

/** Bits of the status register; Pi 1's are one higher, but for `errors`. */
export const STATUS_BITS = {
  powered: 0x01,
  heartbeat: 0x04,
  shuttingDown: 0x10,
  errors: 0x80,
} as const;

/** Offsets within a Pi's settings. */
export const SETTINGS = {
  heartbeatTime: 0,
  heartbeatDelay: 1,
  offDelay: 2,
  signalOffDelay: 3,
  onAtStart: 4,
  signalWidth: 5,
} as const;

/** How far Pi 1's settings are above Pi 0's. */
export const SETTINGS_STRIDE = 8;

/** The ops whose codes the command register takes. */
export const I2C_COMMANDS = [
  "ledsOn",
  "ledsOff",
  "on",
  "off",
  "forceOff",
  "clearErrors",
  "clearCounts",
  "signal",
] as const satisfies readonly OpName[];

/** Command that stores the settings registers in the EEPROM: explicit, so that a slip locks nobody out for good. */
export const I2C_SAVE = 0xf0;

/** What the magic register reads. */
export const I2C_MAGIC = 0x50;

/** What the result register reads while a command is under way. */
export const I2C_BUSY = 0xfe;
