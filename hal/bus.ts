/** What the drivers of boards on a bus have in common: turns, tries, counters and the names of outlets. */
import { type BusCounters, HalError, type OutletId, type Supply } from "./ports.ts";

/** How often something is said before giving up: every op here has the same effect said twice. */
const TRIES = 3;

/** More than a full bus of 32 outlets and its boards, each asked at once; past that nobody reads the answers. */
const LONGEST_QUEUE = 64;

/** A bus on which nothing has happened yet. */
export function newCounters(): BusCounters {
  return { exchanges: 0, retries: 0, crcErrors: 0, timeouts: 0, otherErrors: 0 };
}

/** What an attempt gives; undefined where nobody is there to answer. */
export async function unlessAbsent<T>(attempt: () => Promise<T>): Promise<T | undefined> {
  try {
    return await attempt();
  } catch (error) {
    if (error instanceof HalError && error.code === "absent") return undefined;
    throw error;
  }
}

/** Counts an exchange on which the link itself failed, by kind. */
export function countFailure(counters: BusCounters, error: unknown): void {
  const isSilence = error instanceof HalError && (error.code === "absent" || error.code === "timeout");
  if (isSilence) counters.timeouts++;
  else counters.otherErrors++;
}

/** What a board's "powered?" means: 1 is on, 0 off; a value nobody documented is not taken for either. */
export function supplyOf(powered: number | undefined): Supply {
  if (powered === 1) return "on";
  return powered === 0 ? "off" : "unknown";
}

/** One conversation at a time, first come first served; throws `busy` when too many wait. */
export class Turns {
  readonly #bus: string;
  #waiting = 0;
  #last: Promise<unknown> = Promise.resolve();

  constructor(bus: string) {
    this.#bus = bus;
  }

  async take<T>(conversation: () => Promise<T>): Promise<T> {
    if (this.#waiting >= LONGEST_QUEUE) {
      throw new HalError("busy", `${this.#bus}: ${this.#waiting} requests are waiting already`);
    }
    this.#waiting++;
    const mine = this.#last.then(conversation, conversation);
    this.#last = mine;
    try {
      return await mine;
    } finally {
      this.#waiting--;
    }
  }
}

/** Says it again when the bus failed; a board that heard and refused is not asked again. */
export async function tried<T>(counters: BusCounters, attempt: () => Promise<T>): Promise<T> {
  for (let tries = 1; ; tries++) {
    try {
      return await attempt();
    } catch (error) {
      if (!(error instanceof HalError) || error.code === "refused" || tries === TRIES) throw error;
      counters.retries++;
    }
  }
}

/** The outlets of boards with so many Pis each, in rack order. */
export function rackOrder(boards: readonly number[], pis: number): OutletId[] {
  return boards.flatMap((board) => Array.from({ length: pis }, (_, pi): OutletId => `${board}.${pi}`));
}

/** The board and the Pi an outlet stands for; throws `absent` for one that is not on this bus. */
export function place(
  bus: string,
  outlets: readonly OutletId[],
  outlet: OutletId,
): { board: number; pi: number } {
  if (!outlets.includes(outlet)) throw new HalError("absent", `outlet ${outlet}: not on ${bus}`);
  const [board = "", pi = ""] = outlet.split(".");
  return { board: Number(board), pi: Number(pi) };
}
