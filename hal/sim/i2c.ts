/**
 * A simulated I²C bus. One whose name contains "clusterctrl" has a ClusterCTRL at 0x20 (`cluster.ts`), "clusterhat" a
 * Cluster HAT there (`expander.ts`); any other has the stack's boards, board n at `I2C_BASE` + n, with the register map of `pistack.ts`. Exchanges take no time: a block of
 * ten bytes is a millisecond at 100 kHz. Stray bytes do not exist here: the master clocks every byte.
 */
import {
  crc8,
  hex,
  I2C_COMMANDS,
  I2C_MAGIC,
  I2C_SAVE,
  opName,
  REGISTERS,
  SETTINGS,
  SETTINGS_STRIDE,
  STATUS_BITS,
  toBytes,
} from "../pistack.ts";
import { HalError, type I2cLink } from "../ports.ts";
import { CLUSTER_ADDRESS, ClusterDevice } from "./cluster.ts";
import { ExpanderDevice } from "./expander.ts";
import type { FaultName } from "./faults.ts";
import { act, ERRORS } from "./firmware.ts";
import { measure, view } from "./meter.ts";
import { FIRMWARE, HARDWARE, type SimStack } from "./stack.ts";

/** Where the simulated boards begin: their base address jumper, as every bus's `i2c_base` is unless said otherwise. */
export const I2C_BASE = 0x10;

/** A bank of registers at one address. */
export interface I2cDevice {
  /** The stack's boards behind it: their faults are its faults. */
  readonly boards: readonly number[];
  write(register: number, value: number): void;
  read(register: number, length: number): Uint8Array;
}

/** The master's end of the bus. */
export class I2cBus implements I2cLink {
  readonly #stack: SimStack;
  readonly #name: string;
  readonly #devices = new Map<number, I2cDevice>();
  /** The register that each device was last pointed at. */
  readonly #pointers = new Map<number, number>();
  #isClosed = false;

  constructor(stack: SimStack, name: string) {
    this.#stack = stack;
    this.#name = name;
    if (name.includes("clusterctrl")) this.#devices.set(CLUSTER_ADDRESS, new ClusterDevice(stack));
    else if (name.includes("clusterhat")) this.#devices.set(CLUSTER_ADDRESS, new ExpanderDevice(stack));
    else
      for (const board of stack.boards) this.#devices.set(I2C_BASE + board, new PistackDevice(stack, board));
  }

  async exchange(address: number, write: Uint8Array, read: number): Promise<Uint8Array> {
    const { faults } = this.#stack;
    const where = `${this.#name} at ${hex(address)}`;
    if (this.#isClosed) throw new HalError("io", `${this.#name}: is closed`);
    if (faults.board("dead-bus")) throw new HalError("io", `${where}: SDA is held low`);
    const device = this.#devices.get(address);
    const silent = new HalError("absent", `${where}: no acknowledgement`);
    if (!device || device.boards.some((board) => faults.board("silent-board", board))) throw silent;
    const isLost = this.#strikes("drop", device);
    if (isLost && faults.draw() < 0.5) throw silent;
    if (this.#strikes("delay", device))
      throw new HalError("timeout", `${where}: SCL is held low for too long`);
    const start = write[0] ?? this.#pointers.get(address) ?? 0;
    this.#pointers.set(address, start);
    for (const [i, value] of write.subarray(1).entries()) device.write((start + i) & 0xff, value);
    if (isLost) throw silent;
    const bytes = device.read(start, read);
    if (read > 0 && this.#strikes("short", device)) bytes.fill(0xff, Math.floor(faults.draw() * read));
    if (read > 0 && this.#strikes("crc", device)) {
      const bit = Math.floor(faults.draw() * read * 8);
      bytes[bit >> 3] = (bytes[bit >> 3] ?? 0) ^ (1 << (bit & 7));
    }
    return bytes;
  }

  async close(): Promise<void> {
    this.#isClosed = true;
  }

  #strikes(fault: FaultName, device: I2cDevice): boolean {
    const board = device.boards.find((number) => this.#stack.faults.board(fault, number));
    return board !== undefined && this.#stack.faults.strikes(fault, board);
  }
}

/** One Pi Stack board on I²C. Commands are done as they are written. */
class PistackDevice implements I2cDevice {
  readonly boards: readonly number[];
  readonly #stack: SimStack;
  readonly #board: number;
  #argument = 0;
  #result = 0;
  #crc = 0;

  constructor(stack: SimStack, board: number) {
    this.boards = [board];
    this.#stack = stack;
    this.#board = board;
  }

  write(register: number, value: number): void {
    if (register === REGISTERS.prefix) this.#stack.setPrefix(this.#board, value);
    if (register === REGISTERS.argument) this.#argument = value;
    if (register === REGISTERS.command) {
      this.#result = this.#command(value);
      if (this.#result !== 0) this.#stack.error(this.#board, this.#result);
    }
    for (const pi of [0, 1]) {
      const offset = register - REGISTERS.settings - pi * SETTINGS_STRIDE;
      const setting = SETTING_NAMES.find((name) => SETTINGS[name] === offset);
      if (setting) this.#stack.set(`${this.#board}.${pi}`, setting, value);
    }
  }

  read(register: number, length: number): Uint8Array {
    if (register === REGISTERS.crc) return Uint8Array.from({ length }, (_, i) => (i === 0 ? this.#crc : 0));
    const bank = this.#bank();
    const block = Uint8Array.from({ length }, (_, i) => bank[register + i] ?? 0);
    this.#crc = crc8(block);
    return block;
  }

  #command(code: number): number {
    if (this.#stack.faults.board("error-reply", this.#board)) return ERRORS.notImplemented;
    if (code === I2C_SAVE) {
      this.#stack.store(this.#board);
      return 0;
    }
    const name = opName(code);
    const command = I2C_COMMANDS.find((known) => known === name);
    if (!command) return ERRORS.unknown;
    if (this.#argument > 1) return ERRORS.pi;
    act(this.#stack, command, this.#board, this.#argument);
    return 0;
  }

  /** Every register as it reads now. */
  #bank(): Uint8Array {
    const bank = new Uint8Array(256);
    const board = this.#stack.board(this.#board);
    const counts = measure(this.#stack, this.#board);
    const rails = counts.pis.reduce((sum, pi) => sum + pi.watts, 0);
    bank.set([I2C_MAGIC, FIRMWARE, HARDWARE, this.#stack.address(this.#board), board.prefix]);
    let status = board.errorCount > 0 ? STATUS_BITS.errors : 0;
    bank[REGISTERS.argument] = this.#argument;
    bank[REGISTERS.result] = this.#result;
    bank.set([counts.volts, counts.amperes, counts.rail].flatMap(word), REGISTERS.input);
    bank.set([counts.watts, rails].flatMap(long), REGISTERS.watts);
    bank.set([...word(board.errorCount), board.errorPointer, ...word(board.bootCount)], REGISTERS.counts);
    for (const [pi, read] of counts.pis.entries()) {
      const { supply, cutAt, live } = this.#stack.pi(`${this.#board}.${pi}`);
      const { heartbeat } = view(this.#stack, `${this.#board}.${pi}`);
      status |=
        ((supply ? STATUS_BITS.powered : 0) |
          (heartbeat ? STATUS_BITS.heartbeat : 0) |
          (cutAt !== null ? STATUS_BITS.shuttingDown : 0)) <<
        pi;
      bank.set([read.volts, read.amperes].flatMap(word), REGISTERS.pis + 4 * pi);
      bank.set(long(read.watts), REGISTERS.watts + 8 + 4 * pi);
      for (const name of SETTING_NAMES)
        bank[REGISTERS.settings + SETTINGS_STRIDE * pi + SETTINGS[name]] = live[name];
    }
    bank[REGISTERS.status] = status;
    return bank;
  }
}

const SETTING_NAMES = Object.keys(SETTINGS) as (keyof typeof SETTINGS)[];
const word = (value: number): number[] => [...toBytes(value, 2)];
const long = (value: number): number[] => [...toBytes(value, 4)];
