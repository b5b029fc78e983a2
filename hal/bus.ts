/** What the drivers of boards on a bus have in common: tries, counters and the names of outlets. */
import { type BusCounters, HalError, type OutletId, type Supply } from "./ports.ts";

/** How often something is said before giving up: every op here has the same effect said twice. */
const TRIES = 3;

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

/** The line to the boards could not be opened: at once it is no use to try again. Never `absent`, which says that a board does not answer. */
export class OpenFailure extends HalError {
  constructor({ code, message }: HalError, options: ErrorOptions) {
    super(code === "absent" || code === "timeout" ? "io" : code, message, options);
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

/** Says it again when the bus failed; a board that heard and refused is not asked again, nor anybody on a line that does not open. */
export async function tried<T>(counters: BusCounters, attempt: () => Promise<T>): Promise<T> {
  for (let tries = 1; ; tries++) {
    try {
      return await attempt();
    } catch (error) {
      const isFinal =
        !(error instanceof HalError) || error instanceof OpenFailure || error.code === "refused";
      if (isFinal || tries === TRIES) throw error;
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
