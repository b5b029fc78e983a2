/**
 * Pi Stack boards on I²C. **The register map (`REGISTERS` in `pistack.ts`) is ours**: the published Pi Stack is not an
 * I²C device; this is for a bridge microcontroller or a re-spun board that speaks the map. Board n is at the bus's base
 * address + n, n being its DIP switches (0 to 15).
 *
 * Invariants
 * - I²C checks nothing: every block read is followed by the CRC register, and counts only if it agrees.
 * - Nothing is written to a device that did not just show the magic number: other things live on I²C buses.
 * - The argument is written before the command; the result is polled, at most `POLLS` times.
 * - Everything may be said three times: every command has the same effect twice as once.
 */
import { setTimeout as sleep } from "node:timers/promises";
import { countFailure, newCounters, place, rackOrder, tried } from "./bus.ts";
import {
  ABILITIES,
  boardError,
  crc8,
  fromBytes,
  fromCounts,
  hex,
  I2C_BUSY,
  type I2C_COMMANDS,
  I2C_MAGIC,
  I2C_SAVE,
  OPS,
  type Quantity,
  REGISTERS,
  SETTINGS,
  SETTINGS_STRIDE,
  STATUS_BITS,
} from "./pistack.ts";
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

/** A command takes as long as on RS-485: 60 polls 5 ms apart make 300 ms. */
const POLLS = 60;
const POLL_MS = 5;

/** From the magic number to the status, in one block: who it is and how it is. */
const HEAD = REGISTERS.status + 1;

type Command = (typeof I2C_COMMANDS)[number];

/** Drives the Pi Stack boards of one I²C bus. */
export function pistackI2c(link: I2cLink, bus: PowerBus): PowerController {
  return new PistackI2c(link, bus);
}

class PistackI2c implements PowerController {
  readonly driver = "pistack-i2c";
  readonly outlets: readonly OutletId[];
  readonly abilities: ReadonlySet<Ability> = ABILITIES;
  readonly counters = newCounters();
  readonly #link: I2cLink;
  readonly #bus: PowerBus;
  readonly #turns: Turns;

  constructor(link: I2cLink, bus: PowerBus) {
    this.outlets = rackOrder(bus.boards, 2);
    this.#link = link;
    this.#bus = bus;
    this.#turns = new Turns(bus.device);
  }

  async read(outlet: OutletId): Promise<OutletReading> {
    const { board, pi } = this.#place(outlet);
    return this.#turns.take(async () => {
      const status = (await this.#head(board))[REGISTERS.status] ?? 0;
      const counts = await this.#block(board, REGISTERS.pis + 4 * pi, 4);
      const volts = this.#measured(counts, 0, "piVolts");
      const amperes = this.#measured(counts, 2, "piAmperes");
      return {
        supply: status & (STATUS_BITS.powered << pi) ? "on" : "off",
        heartbeat: (status & (STATUS_BITS.heartbeat << pi)) !== 0,
        volts,
        amperes,
        watts: volts * amperes,
      };
    });
  }

  async readBoard(board: number): Promise<BoardReading> {
    return this.#turns.take(async () => {
      const head = await this.#head(board);
      const input = await this.#block(board, REGISTERS.input, 6);
      const counts = await this.#block(board, REGISTERS.counts, 5);
      const inputVolts = this.#measured(input, 0, "inputVolts");
      const inputAmperes = this.#measured(input, 2, "inputAmperes");
      return {
        ...introduction(board, head),
        inputVolts,
        inputAmperes,
        inputWatts: inputVolts * inputAmperes,
        railVolts: this.#measured(input, 4, "railVolts"),
        errorCount: fromBytes(counts.subarray(0, 2)),
        bootCount: fromBytes(counts.subarray(3, 5)),
      };
    });
  }

  switch(outlet: OutletId, to: "on" | "off"): Promise<void> {
    return this.#command(outlet, to === "on" ? "on" : "forceOff");
  }

  signal(outlet: OutletId): Promise<void> {
    return this.#command(outlet, "signal");
  }

  identify(outlet: OutletId, on: boolean): Promise<void> {
    return this.#command(outlet, on ? "ledsOn" : "ledsOff");
  }

  async startPolicy(outlet: OutletId): Promise<"on" | "off"> {
    const { board, pi } = this.#place(outlet);
    return this.#turns.take(async () => {
      await this.#head(board);
      return fromBytes(await this.#block(board, startRegister(pi), 1)) === 0 ? "off" : "on";
    });
  }

  async setStartPolicy(outlet: OutletId, policy: "on" | "off"): Promise<void> {
    const { board, pi } = this.#place(outlet);
    await this.#turns.take(async () => {
      await this.#head(board);
      await this.#write(board, startRegister(pi), policy === "on" ? 1 : 0);
      await this.#run(board, pi, I2C_SAVE, "save");
    });
  }

  /** What the DIP switches can say, as far as I²C has addresses for it. */
  get addresses(): number[] {
    return Array.from({ length: Math.min(16, 0x78 - this.#bus.i2c_base) }, (_, board) => board);
  }

  /** Whatever else lives at an address does not begin with the magic number and is passed over. */
  async probe(board: number): Promise<BoardReading | undefined> {
    return this.#turns.take(async () =>
      (await this.#isThere(board)) ? introduction(board, await this.#head(board)) : undefined,
    );
  }

  close(): Promise<void> {
    return this.#link.close();
  }

  #place(outlet: OutletId): { board: number; pi: number } {
    return place(this.#bus.device, this.outlets, outlet);
  }

  /** Asked once and not counted: most addresses have nobody. */
  async #isThere(board: number): Promise<boolean> {
    try {
      const write = Uint8Array.of(REGISTERS.magic);
      const [magic] = await this.#link.exchange(this.#bus.i2c_base + board, write, 1);
      return magic === I2C_MAGIC;
    } catch (error) {
      if (error instanceof HalError && error.code === "absent") return false;
      throw error;
    }
  }

  async #command(outlet: OutletId, command: Command): Promise<void> {
    const { board, pi } = this.#place(outlet);
    await this.#turns.take(async () => {
      await this.#head(board);
      await this.#run(board, pi, OPS[command].code, command);
    });
  }

  /** The board's first registers. Throws `absent` when another kind of device answers. */
  async #head(board: number): Promise<Uint8Array> {
    const head = await this.#block(board, REGISTERS.magic, HEAD);
    if (head[0] === I2C_MAGIC) return head;
    throw new HalError("absent", `${this.#name(board)}: no Pi Stack (magic ${hex(head[0] ?? 0)})`);
  }

  /** Does it, and waits until the board says how it went. */
  async #run(board: number, pi: number, code: number, name: string): Promise<void> {
    await this.#write(board, REGISTERS.argument, pi);
    await this.#write(board, REGISTERS.command, code);
    const result = await this.#result(board, name);
    if (result !== 0) throw new HalError("refused", `${this.#name(board)}: ${name}: ${boardError(result)}`);
  }

  async #result(board: number, name: string): Promise<number> {
    for (let poll = 0; poll < POLLS; poll++) {
      if (poll > 0) await sleep(POLL_MS);
      const [result = I2C_BUSY] = await this.#block(board, REGISTERS.result, 1);
      if (result !== I2C_BUSY) return result;
    }
    this.counters.timeouts++;
    throw new HalError("timeout", `${this.#name(board)}: ${name}: still busy after ${POLLS * POLL_MS} ms`);
  }

  #write(board: number, register: number, value: number): Promise<Uint8Array> {
    return tried(this.counters, () => this.#exchange(board, [register, value], 0));
  }

  /** A block of registers that agrees with the CRC register. */
  #block(board: number, register: number, length: number): Promise<Uint8Array> {
    return tried(this.counters, async () => {
      const block = await this.#exchange(board, [register], length);
      const [crc] = await this.#exchange(board, [REGISTERS.crc], 1);
      if (crc8(block) === crc) return block;
      this.counters.crcErrors++;
      const bytes = Buffer.from(block).toString("hex");
      throw new HalError(
        "bad-reply",
        `${this.#name(board)}: CRC error in register ${hex(register)}: ${bytes}`,
      );
    });
  }

  async #exchange(board: number, write: number[], length: number): Promise<Uint8Array> {
    this.counters.exchanges++;
    try {
      const read = await this.#link.exchange(this.#bus.i2c_base + board, Uint8Array.from(write), length);
      if (read.length === length) return read;
      throw new HalError(
        "bad-reply",
        `${this.#name(board)}: ${read.length} bytes where ${length} were asked`,
      );
    } catch (error) {
      countFailure(this.counters, error);
      throw error;
    }
  }

  #measured(counts: Uint8Array, at: number, quantity: Quantity): number {
    return fromCounts(fromBytes(counts.subarray(at, at + 2)), quantity, this.#bus.hardware);
  }

  #name(board: number): string {
    return `board ${board} on ${this.#bus.device} at ${hex(this.#bus.i2c_base + board)}`;
  }
}

function introduction(board: number, head: Uint8Array): BoardReading {
  const [, firmware = 0, hardware = 0] = head;
  return { board, hardware, firmware };
}

function startRegister(pi: number): number {
  return REGISTERS.settings + SETTINGS_STRIDE * pi + SETTINGS.onAtStart;
}
