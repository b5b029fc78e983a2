/** Scripted links: they play a conversation, and fail when something else is said or a line is left unsaid. */
import { jest } from "bun:test";
import {
  type BoardReading,
  HalError,
  type I2cLink,
  type PowerController,
  type SerialLink,
} from "../hal/ports.ts";

/** Bytes from their usual notation, `0A 04 03 B3`. */
export function bytes(notation: string): Uint8Array {
  return Uint8Array.from(Buffer.from(notation.replaceAll(" ", ""), "hex"));
}

/** The usual notation of bytes, as failures print it. */
export function notation(data: Uint8Array): string {
  return Array.from(data, (byte) => byte.toString(16).padStart(2, "0")).join(" ");
}

/** A random number in [0, 1) at each call, the same ones for the same seed (mulberry32). */
export function seeded(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** The HalError a promise fails with; anything else fails the test. */
export async function failure(promise: Promise<unknown>): Promise<HalError> {
  const caught = await promise.then(
    () => undefined,
    (error: unknown) => error,
  );
  if (!(caught instanceof HalError)) throw new Error(`expected a HalError, got ${caught}`);
  return caught;
}

/** Lets the fake clock run, a millisecond at a time, while a promise is waited for. */
export async function passing<T>(promise: Promise<T>): Promise<T> {
  let isOver = false;
  const watched = promise.finally(() => {
    isOver = true;
  });
  watched.catch(() => {});
  for (let turn = 0; turn < 10_000 && !isOver; turn++) {
    await Promise.resolve();
    jest.advanceTimersByTime(1);
  }
  return watched;
}

/** One exchange on a serial bus: what must be written, and what then arrives, piece by piece; nothing is silence. */
export interface SerialLine {
  write: string;
  pieces?: string[];
  fails?: Error;
}

/** One exchange on an I²C bus. */
export interface I2cLine {
  device: number;
  write: string;
  read?: string;
  fails?: Error;
}

abstract class Playback<Line extends { fails?: Error }> {
  readonly #lines: Line[];
  #said = 0;
  #mistake: Error | undefined;

  constructor(lines: Line[]) {
    this.#lines = lines;
  }

  /** The line that must come now; throws what the line says, or that this is not it. */
  protected next(said: string, expected: (line: Line) => string): Line {
    const line = this.#lines[this.#said++];
    const due = line && expected(line);
    if (due !== said) {
      this.#mistake ??= shown(`line ${this.#said}: said ${said}, expected ${due ?? "nothing more"}`);
      throw this.#mistake;
    }
    if (line?.fails) throw line.fails;
    return line as Line;
  }

  async close(): Promise<void> {}

  [Symbol.dispose](): void {
    if (this.#mistake) throw this.#mistake;
    const left = this.#lines.length - this.#said;
    if (left > 0) throw shown(`${left} of ${this.#lines.length} lines were left unsaid`);
  }
}

/** An error that is printed where it arises: the one thrown by `using` hides behind what failed before it. */
function shown(message: string): Error {
  process.stderr.write(`${message}\n`);
  return new Error(message);
}

/** A scripted serial bus. A piece that arrives after the reply was whole is left unread, and dropped. */
export class PlaybackSerial extends Playback<SerialLine> implements SerialLink {
  /** How often the limit was waited out, and the limits given. */
  readonly waitedMs: number[] = [];
  /** What nobody collected, in the usual notation. */
  readonly dropped: string[] = [];
  #isBusy = false;

  async exchange(
    write: Uint8Array,
    isWhole: (collected: Uint8Array) => boolean,
    limitMs: number,
  ): Promise<Uint8Array> {
    if (this.#isBusy) throw new Error("a second request while one is in flight");
    this.#isBusy = true;
    try {
      const line = this.next(notation(write), (line) => notation(bytes(line.write)));
      const pieces = [...(line.pieces ?? [])];
      let collected: Uint8Array = new Uint8Array();
      while (pieces.length > 0 && !isWhole(collected)) {
        await Promise.resolve();
        collected = Buffer.concat([collected, bytes(pieces.shift() ?? "")]);
      }
      if (!isWhole(collected)) this.waitedMs.push(limitMs);
      this.dropped.push(...pieces);
      return collected;
    } finally {
      this.#isBusy = false;
    }
  }
}

/** A scripted I²C bus. */
export class PlaybackI2c extends Playback<I2cLine> implements I2cLink {
  async exchange(device: number, write: Uint8Array, read: number): Promise<Uint8Array> {
    const said = (device: number, write: Uint8Array, read: number) =>
      `${read} bytes of 0x${device.toString(16)} after ${notation(write)}`;
    const line = this.next(said(device, write, read), (line) =>
      // A line that fails says nothing of how much was to be read.
      said(line.device, bytes(line.write), line.fails ? read : bytes(line.read ?? "").length),
    );
    await Promise.resolve();
    return bytes(line.read ?? "");
  }
}

/** Who answers on a bus, address by address. */
export async function scan(power: PowerController): Promise<BoardReading[]> {
  const found: BoardReading[] = [];
  for (const address of power.addresses) {
    const reading = await power.probe(address);
    if (reading) found.push(reading);
  }
  return found;
}
