/**
 * The last that a line said, when it came, and what happened beside it.
 *
 * Invariants
 * - Memory for bytes and times is taken once: a line can say what it likes.
 * - A place is the number of bytes that came before it since the start. It only grows and is never reused.
 * - Whoever reads has a cursor of their own and is never waited for.
 */
import type { Item, Mark } from "./port.ts";

/** How much is kept: 23 s of 115200 baud at full rate, two to four boot logs of a Pi. */
export const RING_BYTES = 262_144;
/** Bytes that came within this of each other have the same time. */
const STAMP_MS = 20;
const MOST_STAMPS = 4096;
const MOST_MARKS = 512;
const NEWLINE = 10;

/** A mark and its place among the bytes. */
interface Placed {
  place: number;
  mark: Mark;
}

/** How much there was, of bytes and of marks. */
export interface Moment {
  end: number;
  marks: number;
}

/** What one line said. */
export class Ring {
  readonly #bytes: Uint8Array;
  /** Where a time begins to hold, and the time; a table that goes round like the bytes. */
  readonly #stampPlaces = new Float64Array(MOST_STAMPS);
  readonly #stampTimes = new Float64Array(MOST_STAMPS);
  #stamps = 0;
  #marks: Placed[] = [];
  /** Marks that were forgotten: the number of the first that is kept. */
  #forgotten = 0;
  #end = 0;

  constructor(size = RING_BYTES) {
    this.#bytes = new Uint8Array(size);
  }

  /** Place of the oldest byte that is kept. */
  get start(): number {
    return Math.max(0, this.#end - this.#bytes.length);
  }

  /** Place of the next byte. */
  get end(): number {
    return this.#end;
  }

  /** Marks ever made. */
  get marks(): number {
    return this.#forgotten + this.#marks.length;
  }

  get now(): Moment {
    return { end: this.end, marks: this.marks };
  }

  /** Takes what came at a time, Unix milliseconds. */
  push(chunk: Uint8Array, at: number): void {
    if (chunk.length === 0) return;
    this.#stamp(at);
    const size = this.#bytes.length;
    const kept = chunk.subarray(Math.max(0, chunk.length - size));
    const to = (this.#end + chunk.length - kept.length) % size;
    const first = kept.subarray(0, size - to);
    this.#bytes.set(first, to);
    this.#bytes.set(kept.subarray(first.length), 0);
    this.#end += chunk.length;
  }

  /** Sets a mark at the end. */
  mark(mark: Mark): void {
    this.#marks.push({ place: this.#end, mark });
    if (this.#marks.length <= MOST_MARKS) return;
    this.#marks.shift();
    this.#forgotten++;
  }

  /** Bytes of their own between two places that are kept. */
  slice(from: number, to: number): Uint8Array {
    const size = this.#bytes.length;
    const copy = new Uint8Array(to - from);
    const first = this.#bytes.subarray(from % size, Math.min(size, (from % size) + copy.length));
    copy.set(first);
    copy.set(this.#bytes.subarray(0, copy.length - first.length), first.length);
    return copy;
  }

  /** Where the last so many lines begin; what stands after the last newline is a line too. */
  linesBack(lines: number): number {
    if (lines <= 0) return this.#end;
    let place = this.#end;
    if (place > this.start && this.#bytes[(place - 1) % this.#bytes.length] === NEWLINE) place--;
    for (let line = 0; line < lines; line++) {
      const before = this.#newlineBefore(place);
      if (before === undefined) return this.start;
      place = before;
    }
    return place + 1;
  }

  /** The mark with this number, or the oldest after it. */
  markFrom(number: number): (Placed & { number: number }) | undefined {
    const index = Math.max(0, number - this.#forgotten);
    const placed = this.#marks[index];
    return placed && { ...placed, number: this.#forgotten + index };
  }

  /** The number of the first mark at a place or after it. */
  markAt(place: number): number {
    const index = this.#marks.findIndex((one) => one.place >= place);
    return index < 0 ? this.marks : this.#forgotten + index;
  }

  /** When the byte at a place came, where that is still known, and up to where the same holds. */
  timeAt(place: number): { at: number | undefined; until: number } {
    const oldest = Math.max(0, this.#stamps - MOST_STAMPS);
    let low = oldest;
    let high = this.#stamps;
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((this.#stampPlaces[middle % MOST_STAMPS] ?? 0) <= place) low = middle + 1;
      else high = middle;
    }
    return {
      at: low === oldest ? undefined : this.#stampTimes[(low - 1) % MOST_STAMPS],
      until: low === this.#stamps ? this.#end : (this.#stampPlaces[low % MOST_STAMPS] ?? this.#end),
    };
  }

  #stamp(at: number): void {
    const last = this.#stamps > 0 ? (this.#stampTimes[(this.#stamps - 1) % MOST_STAMPS] ?? 0) : -Infinity;
    // A clock that was set back is news too
    if (at >= last && at - last < STAMP_MS) return;
    this.#stampPlaces[this.#stamps % MOST_STAMPS] = this.#end;
    this.#stampTimes[this.#stamps % MOST_STAMPS] = at;
    this.#stamps++;
  }

  #newlineBefore(place: number): number | undefined {
    const size = this.#bytes.length;
    const { start } = this;
    if (place <= start) return undefined;
    // The run of bytes that lie side by side and end before the place; then the one before it
    const runStart = Math.max(start, place - 1 - ((place - 1) % size));
    const found = this.#bytes.lastIndexOf(NEWLINE, (place - 1) % size);
    if (found >= runStart % size) return runStart + found - (runStart % size);
    return runStart > start ? this.#newlineBefore(runStart) : undefined;
  }
}

/** Longest run of bytes that is handed over at once. */
const MOST_BYTES = 16_384;

/**
 * How far somebody has read. Of what comes while they do not read, `limit` bytes wait; then the oldest are skipped, and a
 * mark in their place says how many.
 */
export class Cursor {
  readonly #ring: Ring;
  readonly #limit: number;
  #place: number;
  #mark: number;
  /** Where things stood when it was made, or rewound: what came before was asked for, and may take its time. */
  #live: Moment;
  #skipped = 0;
  #unsaid = 0;

  constructor(ring: Ring, from: number, limit: number) {
    this.#ring = ring;
    this.#limit = limit;
    this.#place = from;
    this.#live = ring.now;
    this.#mark = from < ring.end ? ring.markAt(from) : ring.marks;
  }

  /** Whether it still reads what had come before it was made, or rewound. */
  get isReplaying(): boolean {
    return !this.hasSeen(this.#live);
  }

  /** Whether it has shown all that there was at a moment. */
  hasSeen({ end, marks }: Moment): boolean {
    this.#skip();
    return this.#place >= end && this.#mark >= marks;
  }

  /** Bytes that were never shown, by now. */
  get skipped(): number {
    this.#skip();
    return this.#skipped;
  }

  /** Bytes that wait. */
  get waiting(): number {
    this.#skip();
    return this.#ring.end - this.#place;
  }

  /** Whether there is anything to show. */
  get isBehind(): boolean {
    return this.waiting > 0 || this.#unsaid > 0 || this.#mark < this.#ring.marks;
  }

  /** Reads on from an earlier place; never from a later one, which would lose what waits. */
  rewind(to: number): void {
    this.#place = Math.min(this.#place, to);
    this.#live = this.#ring.now;
    this.#mark = Math.min(this.#mark, this.#ring.markAt(to));
  }

  /** What comes next; undefined when all was read. */
  next(): Item | undefined {
    const ring = this.#ring;
    this.#skip();
    if (this.#unsaid > 0) return { kind: "mark", mark: this.#skipMark() };
    const next = ring.markFrom(this.#mark);
    if (next && next.place <= this.#place) {
      this.#mark = next.number + 1;
      return { kind: "mark", mark: next.mark };
    }
    if (this.#place === ring.end) return undefined;
    const { at, until } = ring.timeAt(this.#place);
    const to = Math.min(until, this.#place + MOST_BYTES, next?.place ?? ring.end);
    const bytes = ring.slice(this.#place, to);
    this.#place = to;
    return { kind: "bytes", bytes, ...(at === undefined ? {} : { at }) };
  }

  #skip(): void {
    const { start, end } = this.#ring;
    const floor = end - this.#live.end > this.#limit ? Math.max(start, end - this.#limit) : start;
    const missed = floor - this.#place;
    if (missed <= 0) return;
    this.#place = floor;
    this.#skipped += missed;
    this.#unsaid += missed;
  }

  #skipMark(): Mark {
    const text = `${this.#unsaid} bytes skipped`;
    this.#unsaid = 0;
    return { at: Date.now(), kind: "skipped", text };
  }
}
