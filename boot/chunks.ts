/**
 * Content-defined chunks, `gear64k-1`: a payload is cut where its bytes say so, so that what an insertion has moved is cut again
 * where it was, and a node finds in its old slot what a new release has of it.
 *
 * How it is cut
 * - A sum of 32 bits runs along: twice itself plus `gear[byte]`, modulo 2^32. It depends on the last 32 bytes and nothing before.
 * - `gear[n]` is the first four bytes, little-endian, of the SHA-256 of `fruit gear64k-1 n`, n in decimal.
 * - A chunk ends behind the first byte, from its 16,384th on, at which the sum, as a signed integer, is below -2^31 + 87,381: one
 *   place in 49,152, so that chunks of noise are 64 KiB in the mean. After 262,144 bytes it ends in any case.
 *
 * The index, at the end of a side file: 20 bytes a chunk, in order. Where one begins is the sum of the lengths before it.
 *
 * | offset | bytes | what |
 * |---|---|---|
 * | 0 | 4 | length, little-endian |
 * | 4 | 16 | first bytes of its SHA-256 |
 *
 * Invariant: an index says where to look, no more. What is found there counts once the leaves it makes have the signed hashes.
 */
import { createHash, hash } from "node:crypto";

/** The name of this way to cut, as a statement has it. */
export const CHUNKS_ALG = "gear64k-1";
/** Bytes of a chunk; the last one of a payload may be shorter. */
export const CHUNK_BYTES = { least: 16_384, most: 262_144 } as const;
/** Bytes of one chunk in an index. */
export const ENTRY_BYTES = 20;

/** Bytes that the sum depends on. */
const REACH = 32;
/** The sum below which a chunk ends: -2^31 + 2^32 / 49,152. */
const CUT_BELOW = -0x8000_0000 + 87_381;
const LENGTH_BYTES = 4;

/** An index that is none of its payload. */
export class ChunkError extends Error {
  override name = "ChunkError";
}

/** What each byte adds to the sum. */
export function gearTable(): Int32Array {
  return Int32Array.from({ length: 256 }, (_, byte) =>
    hash("sha256", `fruit ${CHUNKS_ALG} ${byte}`, "buffer").readInt32LE(),
  );
}

/** Cuts a payload that arrives in portions of any size, and makes the index of it. */
export class Chunker {
  readonly #gear = gearTable();
  readonly #entries: Uint8Array[] = [];
  #hash = createHash("sha256");
  /** Bytes of the chunk so far. */
  #length = 0;
  #sum = 0;

  update(bytes: Uint8Array): void {
    for (let from = 0; from < bytes.length; ) {
      const { to, isEnd } = this.#look(bytes, from);
      this.#hash.update(bytes.subarray(from, to));
      this.#length += to - from;
      from = to;
      if (isEnd) this.#cut();
    }
  }

  /** The payload is over: its index. */
  end(): Buffer {
    if (this.#length > 0) this.#cut();
    return Buffer.concat(this.#entries);
  }

  /** How far the chunk goes among these bytes, and whether it ends there. */
  #look(bytes: Uint8Array, from: number): { to: number; isEnd: boolean } {
    const gear = this.#gear;
    const begin = from - this.#length;
    const to = Math.min(bytes.length, begin + CHUNK_BYTES.most);
    const least = Math.min(to, begin + CHUNK_BYTES.least - 1);
    let sum = this.#sum;
    // What is further back than it reaches need not be looked at
    let at = Math.max(from, begin + CHUNK_BYTES.least - REACH);
    for (; at < least; at++) sum = ((sum << 1) + (gear[bytes[at] ?? 0] ?? 0)) | 0;
    for (; at < to; at++) {
      sum = ((sum << 1) + (gear[bytes[at] ?? 0] ?? 0)) | 0;
      if (sum < CUT_BELOW) return { to: at + 1, isEnd: true };
    }
    this.#sum = sum;
    return { to, isEnd: to - begin === CHUNK_BYTES.most };
  }

  #cut(): void {
    const entry = Buffer.alloc(ENTRY_BYTES);
    entry.writeUInt32LE(this.#length);
    this.#hash.digest().copy(entry, LENGTH_BYTES, 0, ENTRY_BYTES - LENGTH_BYTES);
    this.#entries.push(entry);
    this.#hash = createHash("sha256");
    this.#length = 0;
    this.#sum = 0;
  }
}

/** The chunks of one payload. */
export class ChunkIndex {
  /** Bytes of the payload. */
  readonly size: number;
  /** As it stands in a side file. */
  readonly bytes: Buffer;
  readonly #starts: Float64Array;

  /** Throws `ChunkError` unless these are the chunks of a payload of `size` bytes. */
  constructor(bytes: Uint8Array, size: number) {
    this.size = size;
    this.bytes = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const count = bytes.length / ENTRY_BYTES;
    if (!Number.isInteger(count) || count < 1 || bytes.length > mostIndexBytes(size))
      throw new ChunkError(
        `a chunk index of ${bytes.length} bytes; that of ${size} has whole entries of ${ENTRY_BYTES}, ${mostIndexBytes(size)} bytes at most`,
      );
    this.#starts = new Float64Array(count);
    let next = 0;
    for (let chunk = 0; chunk < count; chunk++) {
      const length = this.length(chunk);
      const least = chunk === count - 1 ? 1 : CHUNK_BYTES.least;
      if (length < least || length > CHUNK_BYTES.most)
        throw new ChunkError(
          `chunk ${chunk} has ${length} bytes; ${least} to ${CHUNK_BYTES.most} are possible there`,
        );
      this.#starts[chunk] = next;
      next += length;
    }
    if (next !== size)
      throw new ChunkError(`its ${count} chunks have ${next} bytes; the payload has ${size}`);
  }

  /** How many there are. */
  get count(): number {
    return this.#starts.length;
  }

  /** Its first byte in the payload. */
  start(chunk: number): number {
    return this.#starts[chunk] ?? this.size;
  }

  /** Its bytes. */
  length(chunk: number): number {
    return this.bytes.readUInt32LE(chunk * ENTRY_BYTES);
  }

  /** What chunks of the same bytes have in common, and no others: its length and its hash. */
  key(chunk: number): string {
    return this.bytes.toString("latin1", chunk * ENTRY_BYTES, (chunk + 1) * ENTRY_BYTES);
  }

  /** Whether these are its bytes. */
  isRight(chunk: number, bytes: Uint8Array): boolean {
    const sum = hash("sha256", bytes, "buffer");
    const at = chunk * ENTRY_BYTES;
    const length = ENTRY_BYTES - LENGTH_BYTES;
    return (
      bytes.length === this.length(chunk) &&
      sum.compare(this.bytes, at + LENGTH_BYTES, at + ENTRY_BYTES, 0, length) === 0
    );
  }

  /** The chunk that a byte of the payload is in. */
  at(offset: number): number {
    let [low, high] = [0, this.count];
    while (high - low > 1) {
      const middle = (low + high) >>> 1;
      if (this.start(middle) <= offset) low = middle;
      else high = middle;
    }
    return low;
  }
}

/** Bytes that the index of a payload has at most. */
export const mostIndexBytes = (size: number) => Math.ceil(size / CHUNK_BYTES.least) * ENTRY_BYTES;
