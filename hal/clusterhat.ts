/**
 * Cluster HAT v2 (8086 Consultancy): four Pi Zeros whose supplies are four pins of a GPIO expander at 0x20.
 * Written without the hardware at hand; nothing here was measured. Facts (not code) and where they are from:
 *
 * - `burtyb/clusterhat-image` `files/usr/sbin/clusterctrl` and `xra1200.py`: address, registers, high is on, IN tells
 *   what is on. Pins that are all inputs mean that nobody has set up the HAT since its power came: P1 to P4 are then as
 *   the POS jumper has them, off by default. A ClusterCTRL's order is 1 to 255.
 * - clusterhat.com "setup-control": pins 0 to 3 are P1 to P4, 4 the LEDs' supply, 5 the USB hub, 6 ALERT, 7 the EEPROM's
 *   write protection; the expander is an XRA1200P or a PCA9554.
 * - PCA9554 data sheets (NXP 6.1, TI SCPS128): IN is the level of a pin, input or output; OUT is what was written, and
 *   reaches a pin once it is an output; a 0 in DIR makes an output. After a reset OUT and DIR are all ones and PIR, which
 *   inverts IN, is 0. Of the XRA1200's own only extracts were seen; its SPI twin's (XRA1402) table says the same.
 * - 8086.support FAQ 116: on v2.0 to v2.2 a reboot of a Pi 4 resets the expander and cuts the Pis' supplies (users say so
 *   of v2.3 too). FAQ 116 and 118 contradict each other on which way the POS jumper works: an input that is high is
 *   `unknown` here.
 *
 * What this driver makes of it:
 * - It writes one bit of OUT and then, if need be, the same bit of DIR: a pin never drives what was not asked. The hub,
 *   whose polarity differs by version, the LEDs' supply and the write protection stay as found. 8086's `clusterctrl`
 *   sets them up only while all pins are inputs: where they are needed, have it run before the first command.
 * - The bus has no checksum, and a wrong bit of OUT is another Pi's supply: a register is believed when it reads the
 *   same twice, and what was written is read back. Turns are taken within this process only; nobody else may write.
 * - A ClusterCTRL is told by register 2, where it has its order and an expander PIR: nothing is written unless it is 0.
 */
import { countFailure, newCounters, place, rackOrder, tried, unlessAbsent } from "./bus.ts";
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

const ADDRESS = 0x20;
const REGISTER = { IN: 0x00, OUT: 0x01, PIR: 0x02, DIR: 0x03 } as const;
type Register = keyof typeof REGISTER;

const PIS = 4;
const ALERT = 1 << 6;

/** Drives one Cluster HAT; throws `refused` for a bus that is configured with more. */
export function clusterhat(link: I2cLink, bus: PowerBus): PowerController {
  const [board, ...others] = bus.boards;
  if (board === undefined || others.length > 0) {
    throw new HalError("refused", `${bus.device}: a Cluster HAT bus has one board, not ${bus.boards.length}`);
  }
  return new ClusterHat(link, bus, board);
}

class ClusterHat implements PowerController {
  readonly driver = "clusterhat";
  readonly outlets: readonly OutletId[];
  readonly abilities: ReadonlySet<Ability> = new Set<Ability>(["identify"]);
  readonly counters = newCounters();
  readonly #link: I2cLink;
  readonly #bus: PowerBus;
  readonly #board: number;
  readonly #turns: Turns;

  constructor(link: I2cLink, bus: PowerBus, board: number) {
    this.outlets = rackOrder([board], PIS);
    this.#link = link;
    this.#bus = bus;
    this.#board = board;
    this.#turns = new Turns(bus.device);
  }

  async read(outlet: OutletId): Promise<OutletReading> {
    const pin = this.#pin(outlet);
    return this.#turn(async () => {
      const isInput = ((await this.#read("DIR")) & pin) !== 0;
      const isHigh = ((await this.#read("IN")) & pin) !== 0;
      if (!isHigh) return { supply: "off" };
      return { supply: isInput ? "unknown" : "on" };
    });
  }

  async readBoard(board: number): Promise<BoardReading> {
    if (board !== this.#board) throw new HalError("absent", `board ${board}: not on ${this.#bus.device}`);
    return this.#turn(async () => ({ board }));
  }

  async switch(outlet: OutletId, to: "on" | "off"): Promise<void> {
    await this.#drive(this.#pin(outlet), to === "on");
  }

  async signal(outlet: OutletId): Promise<void> {
    throw this.#lacking(outlet, "signal a Pi to shut down");
  }

  async identify(outlet: OutletId, on: boolean): Promise<void> {
    this.#pin(outlet);
    await this.#drive(ALERT, on);
  }

  async startPolicy(outlet: OutletId): Promise<"on" | "off"> {
    throw this.#lacking(outlet, "say what it does when its supply returns");
  }

  async setStartPolicy(outlet: OutletId): Promise<void> {
    throw this.#lacking(outlet, "store what it does when its supply returns (its POS jumper says so)");
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
    return new HalError("refused", `outlet ${outlet}: a Cluster HAT cannot ${what}`);
  }

  /** The bit of an outlet's Pi; throws `absent` for one that is not here. */
  #pin(outlet: OutletId): number {
    return 1 << place(this.#bus.device, this.outlets, outlet).pi;
  }

  /** A conversation that nobody interrupts, with an expander; throws `absent` when another kind of device answers. */
  #turn<T>(conversation: () => Promise<T>): Promise<T> {
    return this.#turns.take(async () => {
      const polarity = await this.#read("PIR");
      if (polarity === 0) return conversation();
      throw new HalError("absent", `${this.#name()}: no Cluster HAT (register 2 reads ${hex(polarity)})`);
    });
  }

  /** Makes one pin high or low, and an output. In this order: a fresh OUT is all ones, and would switch on. */
  #drive(pin: number, high: boolean): Promise<void> {
    return this.#turn(async () => {
      const out = await this.#read("OUT");
      await this.#write("OUT", high ? out | pin : out & ~pin);
      const directions = await this.#read("DIR");
      if (directions & pin) await this.#write("DIR", directions & ~pin);
    });
  }

  #read(register: Register): Promise<number> {
    return tried(this.counters, () => this.#believed(register));
  }

  /** Says the same value again when it did not arrive: one that is read anew might have lost others' bits. */
  #write(register: Register, value: number): Promise<void> {
    return tried(this.counters, async () => {
      await this.#exchange([REGISTER[register], value], 0);
      const held = await this.#believed(register);
      if (held !== value) throw this.#failedCheck(`${register} reads ${hex(held)} after ${hex(value)}`);
    });
  }

  async #believed(register: Register): Promise<number> {
    const [first = 0] = await this.#exchange([REGISTER[register]], 1);
    const [second = 0] = await this.#exchange([REGISTER[register]], 1);
    if (first === second) return first;
    throw this.#failedCheck(`${register} reads ${hex(first)} and then ${hex(second)}`);
  }

  #failedCheck(what: string): HalError {
    this.counters.crcErrors++;
    return new HalError("bad-reply", `${this.#name()}: ${what}`);
  }

  async #exchange(write: number[], length: number): Promise<Uint8Array> {
    this.counters.exchanges++;
    try {
      const read = await this.#link.exchange(ADDRESS, Uint8Array.from(write), length);
      if (read.length === length) return read;
      throw new HalError("bad-reply", `${this.#name()}: ${read.length} bytes where ${length} were asked`);
    } catch (error) {
      countFailure(this.counters, error);
      throw error;
    }
  }

  #name(): string {
    return `board ${this.#board} on ${this.#bus.device} at ${hex(ADDRESS)}`;
  }
}
