/**
 * Pi Stack boards on their own bus, RS-485 at 9600 baud 8N1, in the published protocol (`pistack.ts`).
 *
 * Invariants
 * - One request in flight: a reply names neither the board nor the op it answers.
 * - A reply counts only whole, with a good CRC and the length its op calls for; bytes before it are skipped, so a late
 *   reply of another length is never taken for the answer. One of the same length cannot be told apart: the link drops
 *   what is unread before each request, and after a request without an answer the next other one waits `LATE_MS`.
 * - Everything may be said three times: reads change nothing, and `on`, `forceOff`, the shutdown signal, the LEDs and
 *   the start policy have the same effect twice as once.
 */
import { countFailure, newCounters, place, rackOrder, supplyOf, tried } from "./bus.ts";
import {
  ABILITIES,
  boardError,
  crc8,
  fromBytes,
  fromCounts,
  LACKING,
  MASTER,
  OPS,
  type OpName,
  type Quantity,
  requestFrame,
  STATUS,
} from "./pistack.ts";
import {
  type Ability,
  type BoardReading,
  HalError,
  type OutletId,
  type OutletReading,
  type PowerBus,
  type PowerController,
  type SerialLink,
} from "./ports.ts";
import { Turns } from "./turns.ts";

/** The reference driver waits 300 ms for a reply; ten bytes each way take 20. */
const LIMIT_MS = 300;

/** How long the reply of an unanswered request is still waited for before anything else is asked. Ours. */
const LATE_MS = 400;

/** Errors that say our request arrived damaged: it was not done, and is worth saying again. */
const MISHEARD: ReadonlySet<number> = new Set([0x10, 0x11, 0x20, 0x21, 0x22]);

/** What a board said: the data of an OK, or the code of an error. */
export type Reply = { data: Uint8Array } | { error: number };

/** The first whole reply in what was collected, good CRC and so many bytes of data or an error; undefined while there is none. */
export function findReply(collected: Uint8Array, dataLength: number): Reply | undefined {
  for (let at = 0; at + 4 <= collected.length; at++) {
    const frame = frameAt(collected, at);
    if (!frame || crc8(frame) !== 0) continue;
    const data = frame.subarray(3, -1);
    if (frame[0] === STATUS.ok && data.length === dataLength) return { data };
    if (frame[0] === STATUS.error && data.length === 1) return { error: data[0] ?? 0 };
    // Whole and sound, but no answer to this: a late reply. Nothing inside it is a frame of its own.
    at += frame.length - 1;
  }
  return undefined;
}

/** What looks like a frame at this place, CRC included and not yet checked; undefined where none can be or it is incomplete. */
function frameAt(collected: Uint8Array, at: number): Uint8Array | undefined {
  const [status = 0xff, address, length = 0] = collected.subarray(at, at + 3);
  if (status > STATUS.error || address !== MASTER || length < 3) return undefined;
  const frame = collected.subarray(at, at + length + 1);
  return frame.length === length + 1 ? frame : undefined;
}

/** Drives the Pi Stack boards of one RS-485 bus. */
export function pistackRs485(link: SerialLink, bus: PowerBus): PowerController {
  return new PistackRs485(link, bus);
}

class PistackRs485 implements PowerController {
  readonly driver = "pistack-rs485";
  readonly outlets: readonly OutletId[];
  // What the newest firmware can do: nothing may be asked before the agent wants it. Older ones refuse by method.
  readonly abilities: ReadonlySet<Ability> = ABILITIES;
  readonly counters = newCounters();
  readonly #link: SerialLink;
  readonly #bus: PowerBus;
  readonly #turns: Turns;
  /** A request of late was not answered: its reply may yet come. */
  #isOwed = false;

  constructor(link: SerialLink, bus: PowerBus) {
    this.outlets = rackOrder(bus.boards, 2);
    this.#link = link;
    this.#bus = bus;
    this.#turns = new Turns(bus.device);
  }

  /**
   * Four exchanges, about 45 ms. Watts are volts times amperes: op 0x28 would be a fifth, older firmware has not got
   * it, and its published scale takes no account of hardware 2's divider.
   */
  async read(outlet: OutletId): Promise<OutletReading> {
    const { board, pi } = this.#place(outlet);
    const supply = supplyOf(fromBytes(await this.#ask("powered", board, pi)));
    const heartbeat = fromBytes(await this.#ask("heartbeat", board, pi)) === 1;
    const volts = await this.#measure("piVolts", board, pi);
    const amperes = await this.#measure("piAmperes", board, pi);
    return { supply, heartbeat, volts, amperes, watts: volts * amperes };
  }

  async readBoard(board: number): Promise<BoardReading> {
    const versions = await this.#versions(board);
    const inputVolts = await this.#measure("inputVolts", board);
    const inputAmperes = await this.#measure("inputAmperes", board);
    const railVolts = await this.#measure("railVolts", board);
    const errorCount = fromBytes(await this.#ask("errorCount", board));
    const reading = {
      ...versions,
      inputVolts,
      inputAmperes,
      inputWatts: inputVolts * inputAmperes,
      railVolts,
      errorCount,
    };
    const bootCount = await this.#request("bootCount", board);
    // Older firmware has no such op: nothing is wrong, the count is not there.
    if ("error" in bootCount && LACKING.has(bootCount.error)) return reading;
    return { ...reading, bootCount: fromBytes(dataOf(bootCount, "bootCount", board)) };
  }

  async switch(outlet: OutletId, to: "on" | "off"): Promise<void> {
    const { board, pi } = this.#place(outlet);
    // Not the board's own `off`, which asks the Pi first: asking, waiting and saying so is done above this driver.
    await this.#ask(to === "on" ? "on" : "forceOff", board, pi);
  }

  async signal(outlet: OutletId): Promise<void> {
    const { board, pi } = this.#place(outlet);
    await this.#ask("signal", board, pi);
  }

  async identify(outlet: OutletId, on: boolean): Promise<void> {
    await this.#ask(on ? "ledsOn" : "ledsOff", this.#place(outlet).board);
  }

  async startPolicy(outlet: OutletId): Promise<"on" | "off"> {
    const { board, pi } = this.#place(outlet);
    return fromBytes(await this.#ask("onAtStart", board, pi)) === 0 ? "off" : "on";
  }

  async setStartPolicy(outlet: OutletId, policy: "on" | "off"): Promise<void> {
    const { board, pi } = this.#place(outlet);
    await this.#ask("setOnAtStart", board, pi, policy === "on" ? 1 : 0);
  }

  /** The sixteen DIP addresses of prefix 0 and of each prefix configured. */
  get addresses(): number[] {
    const prefixes = new Set([0, ...this.#bus.boards.map((board) => board & 0xf0)]);
    return [...prefixes]
      .flatMap((prefix) => Array.from({ length: 16 }, (_, dip) => prefix + dip))
      .filter((address) => address !== MASTER);
  }

  /** Asked once at first and not counted: silence, for 300 ms, is what an address nobody has answers. */
  async probe(board: number): Promise<BoardReading | undefined> {
    const isWhole = (collected: Uint8Array) => findReply(collected, 1) !== undefined;
    const heard = await this.#turns.take(() =>
      this.#link.exchange(requestFrame("hardwareVersion", board), isWhole, LIMIT_MS),
    );
    if (heard.length === 0) return undefined;
    try {
      return await this.#versions(board);
    } catch (error) {
      if (!(error instanceof HalError) || error.code === "io") throw error;
      // Two boards set to one address talk at once and nobody understands them: the address is all there is to say.
      return error.code === "timeout" ? undefined : { board };
    }
  }

  close(): Promise<void> {
    return this.#link.close();
  }

  #place(outlet: OutletId): { board: number; pi: number } {
    return place(this.#bus.device, this.outlets, outlet);
  }

  async #versions(board: number): Promise<BoardReading> {
    const hardware = fromBytes(await this.#ask("hardwareVersion", board));
    const firmware = fromBytes(await this.#ask("softwareVersion", board));
    return { board, hardware, firmware };
  }

  async #measure(quantity: Quantity & OpName, board: number, ...args: number[]): Promise<number> {
    return fromCounts(fromBytes(await this.#ask(quantity, board, ...args)), quantity, this.#bus.hardware);
  }

  async #ask(op: OpName, board: number, ...args: number[]): Promise<Uint8Array> {
    return dataOf(await this.#request(op, board, ...args), op, board);
  }

  /** One request and its reply, in turn, tried up to three times. */
  #request(op: OpName, board: number, ...args: number[]): Promise<Reply> {
    return this.#turns.take(async () => {
      await this.#listenOut();
      return tried(this.counters, () => this.#exchange(op, board, args));
    });
  }

  /** Lets what an unanswered request may still bring pass by, so that it answers no other one. */
  async #listenOut(): Promise<void> {
    if (!this.#isOwed) return;
    this.#isOwed = false;
    await this.#link.exchange(new Uint8Array(), () => false, LATE_MS);
  }

  async #exchange(op: OpName, board: number, args: number[]): Promise<Reply> {
    const length = OPS[op].reply;
    const whole = (collected: Uint8Array) => findReply(collected, length) !== undefined;
    this.counters.exchanges++;
    let heard: Uint8Array;
    try {
      heard = await this.#link.exchange(requestFrame(op, board, args), whole, LIMIT_MS);
    } catch (error) {
      countFailure(this.counters, error);
      throw error;
    }
    const reply = findReply(heard, length);
    if (reply && !("error" in reply && MISHEARD.has(reply.error))) return reply;
    throw this.#failure(heard, reply, `board ${board} on ${this.#bus.device}: ${op}`);
  }

  /** Counts why there is no answer, and says it. */
  #failure(heard: Uint8Array, reply: Reply | undefined, where: string): HalError {
    if (reply && "error" in reply) {
      this.counters.crcErrors++;
      return new HalError("bad-reply", `${where}: ${boardError(reply.error)}`);
    }
    if (heard.length === 0) {
      this.#isOwed = true;
      this.counters.timeouts++;
      return new HalError("timeout", `${where}: no answer within ${LIMIT_MS} ms`);
    }
    const isDamaged = Array.from(heard.keys()).some((at) => {
      const frame = frameAt(heard, at);
      return frame !== undefined && crc8(frame) !== 0;
    });
    if (isDamaged) this.counters.crcErrors++;
    else this.counters.otherErrors++;
    this.#isOwed ||= !isDamaged;
    const bytes = Buffer.from(heard.subarray(0, 32)).toString("hex");
    return new HalError(
      "bad-reply",
      `${where}: ${isDamaged ? "CRC error in" : "no whole answer in"} ${bytes}`,
    );
  }
}

function dataOf(reply: Reply, op: OpName, board: number): Uint8Array {
  if ("data" in reply) return reply.data;
  throw new HalError("refused", `board ${board}: ${op}: ${boardError(reply.error)}`);
}
