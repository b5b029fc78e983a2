/**
 * ClusterCTRL boards (8086 Consultancy: DA, Triple, pHAT, A+6, Stack): supplies that go on and off, nothing else.
 * Facts (not code) from `burtyb/clusterhat-image` `files/usr/sbin/clusterctrl` and the boards'
 * firmware, `main.c` of i2c-tiny-usb-clusterhat.
 *
 * - Each board is a USB device that brings its own I²C bus, and answers at 0x20 on it: one bus, one board.
 * - A command's number goes into DATA0 and then the command into CMD; CMD reads 0 when it is done, and STATUS then
 *   says how it went. While it is under way the board acknowledges no write, not even a register number to read.
 * - DATA0 counts Pis from 1: our outlet `5.0` is the board's P1.
 * - It can be asked neither for a heartbeat nor to signal a Pi. It has an input to measure, but which rail that is nobody
 *   has published, so it is left out. Power-on states are stored for all its Pis at once and cannot be read back:
 *   no start policy either.
 * - The LED that `identify` lights is ALERT. Never LED_EN: on some boards that also switches Pis on.
 *
 * A *Cluster HAT* is another thing: a GPIO expander (XRA1200) at the same address, without these registers. Writing
 * commands into it could switch its Pis, so nothing is written before the registers have shown a ClusterCTRL.
 */
import { setTimeout as sleep } from "node:timers/promises";
import { countFailure, newCounters, place, rackOrder, supplyOf, tried, unlessAbsent } from "./bus.ts";
import { hex } from "./pistack.ts";
import {
  type Ability,
  type BoardReading,
  HalError,
  type I2cLink,
  type OutletId,
  type OutletReading,
  type PowerBus,
  type PowerController,
} from "./ports.ts";
import { Turns } from "./turns.ts";

/** Registers of the board: layout version, Pis, order, mode, type; then DATA7 to DATA0, CMD and STATUS. */
const ADDRESS = 0x20;
const REGISTER = { version: 0x00, data1: 0x0b, data0: 0x0c, command: 0x0d } as const;

const COMMANDS = {
  on: 0x03,
  off: 0x04,
  alertOn: 0x05,
  alertOff: 0x06,
  powerStatus: 0x0f,
  getData: 0xf2,
} as const;

/** What STATUS says of the last command; 0 is OK. */
const STATUS: ReadonlyMap<number, string> = new Map([
  [1, "not supported"],
  [2, "no such Pi"],
  [3, "unknown command"],
  [4, "should have reset"],
]);

/** Layout 2 is the published one; 1 is taken to be the one before. Models 0 to 4 are published; room is left for more: an expander reads 0x7f or 0xff there. */
const LAYOUTS: ReadonlySet<number> = new Set([1, 2]);
const MOST_TYPE = 0x0f;

/** Pis of a board whose bus does not say `pis`; the board itself is asked before every command. */
const USUAL_PIS = 4;

/** A command is done within one turn of the board's loop; only a hub cycle, which is never asked for, takes longer. */
const POLLS = 20;
const POLL_MS = 5;

/** Drives one ClusterCTRL board; throws `refused` for a bus that is configured with more. */
export function clusterctrl(link: I2cLink, bus: PowerBus): PowerController {
  const [board, ...others] = bus.boards;
  if (board === undefined || others.length > 0) {
    throw new HalError("refused", `${bus.device}: a ClusterCTRL bus has one board, not ${bus.boards.length}`);
  }
  return new ClusterCtrl(link, bus, board);
}

class ClusterCtrl implements PowerController {
  readonly driver = "clusterctrl";
  readonly outlets: readonly OutletId[];
  readonly abilities: ReadonlySet<Ability> = new Set<Ability>(["identify"]);
  readonly counters = newCounters();
  readonly #link: I2cLink;
  readonly #bus: PowerBus;
  readonly #board: number;
  readonly #turns: Turns;

  constructor(link: I2cLink, bus: PowerBus, board: number) {
    this.outlets = rackOrder([board], bus.pis ?? USUAL_PIS);
    this.#link = link;
    this.#bus = bus;
    this.#board = board;
    this.#turns = new Turns(bus.device);
  }

  async read(outlet: OutletId): Promise<OutletReading> {
    const [, powered] = await this.#do(outlet, "powerStatus");
    return { supply: supplyOf(powered) };
  }

  async readBoard(board: number): Promise<BoardReading> {
    if (board !== this.#board) throw new HalError("absent", `board ${board}: not on ${this.#bus.device}`);
    return this.#turns.take(async () => {
      const { type } = await this.#introduction();
      const version = await this.#command("getData", 0);
      return { board, hardware: type, firmware: Number(version.join(".")) };
    });
  }

  async switch(outlet: OutletId, to: "on" | "off"): Promise<void> {
    await this.#do(outlet, to);
  }

  async signal(outlet: OutletId): Promise<void> {
    throw this.#lacking(outlet, "signal a Pi to shut down");
  }

  async identify(outlet: OutletId, on: boolean): Promise<void> {
    await this.#do(outlet, on ? "alertOn" : "alertOff");
  }

  async startPolicy(outlet: OutletId): Promise<"on" | "off"> {
    throw this.#lacking(outlet, "say what it does when its supply returns");
  }

  async setStartPolicy(outlet: OutletId): Promise<void> {
    throw this.#lacking(outlet, "store what it does with one outlet when its supply returns");
  }

  get addresses(): number[] {
    return [this.#board];
  }

  probe(board: number): Promise<BoardReading | undefined> {
    return unlessAbsent(() => this.readBoard(board));
  }

  close(): Promise<void> {
    return this.#link.close();
  }

  #lacking(outlet: OutletId, what: string): HalError {
    return new HalError("refused", `outlet ${outlet}: a ClusterCTRL cannot ${what}`);
  }

  /** One command about one Pi, once the board has shown that it is one and has that Pi; DATA1 and DATA0 afterwards. */
  async #do(outlet: OutletId, command: keyof typeof COMMANDS): Promise<Uint8Array> {
    const { pi } = place(this.#bus.device, this.outlets, outlet);
    return this.#turns.take(async () => {
      const { pis } = await this.#introduction();
      // The board answers OK to `on` for a Pi that it has not got.
      if (pi >= pis) throw new HalError("absent", `${this.#name()}: outlet ${outlet}: it has ${pis} Pis`);
      return this.#command(command, pi + 1);
    });
  }

  /** Throws `absent` when another kind of device answers. */
  async #introduction(): Promise<{ pis: number; type: number }> {
    const registers = await tried(this.counters, () => this.#counted([REGISTER.version], 5));
    const [layout = 0, pis = 0, , , type = 0xff] = registers;
    // An expander that does not step through its registers says one byte five times.
    const isOneByte = new Set(registers).size === 1;
    if (LAYOUTS.has(layout) && pis > 0 && type <= MOST_TYPE && !isOneByte) return { pis, type };
    const bytes = Buffer.from(registers).toString("hex");
    throw new HalError("absent", `${this.#name()}: no ClusterCTRL (registers 0 to 4 read ${bytes})`);
  }

  /**
   * Says it, waits until it is done, and returns DATA1 and DATA0. Tried as a whole: the board may have done it although
   * the acknowledgement was lost, and have overwritten DATA0, so the command alone must not be said again.
   */
  #command(command: keyof typeof COMMANDS, data0: number): Promise<Uint8Array> {
    const what = `${this.#name()}: ${command} ${data0}`;
    return tried(this.counters, async () => {
      await this.#counted([REGISTER.data0, data0], 0);
      await this.#counted([REGISTER.command, COMMANDS[command]], 0);
      const answer = await this.#answer(what);
      const [, , , status = 0] = answer;
      if (status === 0) return answer.subarray(0, 2);
      throw new HalError(
        "refused",
        `${what}: ${STATUS.get(status) ?? "an undocumented status"} (${hex(status)})`,
      );
    });
  }

  /** DATA1, DATA0, CMD and STATUS once CMD is 0. A board that does not acknowledge is still at it. */
  async #answer(what: string): Promise<Uint8Array> {
    for (let poll = 0; poll < POLLS; poll++) {
      if (poll > 0) await sleep(POLL_MS);
      try {
        const answer = await this.#exchange([REGISTER.data1], 4);
        if (answer[2] === 0) return answer;
      } catch (error) {
        if (!(error instanceof HalError)) throw error;
      }
    }
    this.counters.timeouts++;
    throw new HalError("timeout", `${what}: not done after ${POLLS * POLL_MS} ms`);
  }

  async #counted(write: number[], length: number): Promise<Uint8Array> {
    try {
      return await this.#exchange(write, length);
    } catch (error) {
      countFailure(this.counters, error);
      throw error;
    }
  }

  async #exchange(write: number[], length: number): Promise<Uint8Array> {
    this.counters.exchanges++;
    const read = await this.#link.exchange(ADDRESS, Uint8Array.from(write), length);
    if (read.length === length) return read;
    throw new HalError("bad-reply", `${this.#name()}: ${read.length} bytes where ${length} were asked`);
  }

  #name(): string {
    return `board ${this.#board} on ${this.#bus.device} at ${hex(ADDRESS)}`;
  }
}
