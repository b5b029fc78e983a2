/**
 * The stack seen through a ClusterCTRL: one board whose P1, P2, … are the stack's outlets in rack order. Registers and
 * commands are facts from `burtyb/clusterhat-image` `files/usr/sbin/clusterctrl`; what the real firmware answers to
 * ADC and USB questions is left out: they are "not supported" here.
 */
import type { I2cDevice } from "./i2c.ts";
import type { SimStack } from "./stack.ts";

/** Where every ClusterCTRL and every Cluster HAT answers. */
export const CLUSTER_ADDRESS = 0x20;

const REGISTER = { order: 0x02, data1: 0x0b, data0: 0x0c, command: 0x0d, status: 0x0e };
const STATUS = { ok: 0, notSupported: 1, noSuchPi: 2, unknown: 3 };
const ORDER = 20;
const LAYOUT = 1;
const TYPE = 0;
const FIRMWARE = [1, 6];

/** The ClusterCTRL's registers and what writing a command does. Commands are done as they are written. */
export class ClusterDevice implements I2cDevice {
  readonly boards: readonly number[];
  readonly #stack: SimStack;
  readonly #bank = new Uint8Array(256);

  constructor(stack: SimStack) {
    this.boards = stack.boards;
    this.#stack = stack;
    this.#bank.set([LAYOUT, stack.outlets.length, ORDER, 0, TYPE]);
  }

  write(register: number, value: number): void {
    if (register === REGISTER.command) this.#bank[REGISTER.status] = this.#command(value);
    else if (register > 0x04 && register < REGISTER.command) this.#bank[register] = value;
  }

  read(register: number, length: number): Uint8Array {
    return Uint8Array.from({ length }, (_, i) => this.#bank[register + i] ?? 0);
  }

  /** Does it; CMD stays 0, which says done. */
  #command(code: number): number {
    if (this.boards.some((board) => this.#stack.faults.board("error-reply", board)))
      return STATUS.notSupported;
    const command = COMMANDS[code];
    if (!command) return STATUS.unknown;
    return command(this.#stack, this.#bank);
  }
}

type Command = (stack: SimStack, bank: Uint8Array) => number;

/** A command about the Pi whose number, from 1, is in DATA0. */
const aboutPi =
  (does: (stack: SimStack, outlet: SimStack["outlets"][number], bank: Uint8Array) => void): Command =>
  (stack, bank) => {
    const outlet = stack.outlets[(bank[REGISTER.data0] ?? 0) - 1];
    if (!outlet) return STATUS.noSuchPi;
    does(stack, outlet, bank);
    return STATUS.ok;
  };

/** ALERT is one LED for the whole ClusterCTRL: here it is all boards' LEDs. */
const alert =
  (on: boolean): Command =>
  (stack) => {
    for (const board of stack.boards) stack.setLeds(board, on);
    return STATUS.ok;
  };

const COMMANDS: Readonly<Record<number, Command>> = {
  3: aboutPi((stack, outlet) => stack.on(outlet)),
  4: aboutPi((stack, outlet) => stack.cut(outlet)),
  5: alert(true),
  6: alert(false),
  // GET_PSTATUS
  15: aboutPi((stack, outlet, bank) => {
    bank[REGISTER.data0] = Number(stack.pi(outlet).supply);
  }),
  // GET_DATA: the firmware's version is all there is
  242: (_, bank) => {
    if (bank[REGISTER.data0] !== 0) return STATUS.notSupported;
    bank.set(FIRMWARE, REGISTER.data1);
    return STATUS.ok;
  },
  // SAVE_POS: what is on now is on at start
  245: (stack) => {
    for (const outlet of stack.outlets) stack.set(outlet, "onAtStart", Number(stack.pi(outlet).supply));
    for (const board of stack.boards) stack.store(board);
    return STATUS.ok;
  },
};
