/**
 * The side file of a release: the SHA-256 of every leaf of its payload, so that each can be checked before it is written, and
 * the index of its chunks (`chunks.ts`), so that a node finds in its slots what they have of it.
 *
 * | offset | bytes | what (little-endian) |
 * |---|---|---|
 * | 0 | 4 | magic `FRSD` |
 * | 4 | 4 | format, 1 |
 * | 8 | 8 | bytes of the payload |
 * | 16 | 8 | bytes of the chunk index, 0 for none |
 * | 24 | 8 | zero |
 * | 32 | 32 each | SHA-256 of the leaves, in order |
 * | … | | chunk index |
 *
 * Invariants
 * - Nothing of it is given out unless the whole file had the size and SHA-256 that the release signs, and its leaves that root.
 * - It is never in memory as a whole: a window is read again when it is asked for, and must be what it was at the first reading;
 *   the index, too.
 */
import { createHash, hash } from "node:crypto";
import type { Readable } from "./area.ts";
import { CHUNKS_ALG, ChunkError, ChunkIndex, mostIndexBytes } from "./chunks.ts";
import type { Release } from "./content.ts";
import { HASH_BYTES, leafCount, MerkleTree } from "./merkle.ts";

/** Bytes in front of the first leaf's hash. */
export const SIDE_HEADER_BYTES = 32;
/** Hashes that are read at once: 64 KiB of the side file, 32 MiB of the payload. */
export const WINDOW_LEAVES = 2048;
/** Windows in memory: one for what comes in order, the others for peers that ask for what they like. */
const WINDOWS_MOST = 4;

const FORMAT = 1;
const MAGIC = 0x4453_5246; // "FRSD"

/** A side file that does not belong to its release, or no longer says what it said. */
export class SideError extends Error {
  override name = "SideError";
}

/** The header of a side file. The hashes of `leafCount(payloadBytes)` leaves follow it. */
export function encodeSideHeader(payloadBytes: number, indexBytes = 0): Uint8Array {
  const bytes = new Uint8Array(SIDE_HEADER_BYTES);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, MAGIC, true);
  view.setUint32(4, FORMAT, true);
  view.setBigUint64(8, BigInt(payloadBytes), true);
  view.setBigUint64(16, BigInt(indexBytes), true);
  return bytes;
}

/** Reads a whole side file once and checks it against its release. Throws `SideError`. */
export async function openSide(
  file: Readable,
  release: Pick<Release, "size" | "piecesRoot" | "side" | "chunks">,
): Promise<Side> {
  const { bytes, sha256 } = release.side;
  if (file.bytes !== bytes)
    throw new SideError(`${file.name}: ${file.bytes} bytes; the side file of this release has ${bytes}`);
  const leaves = leafCount(release.size);
  const hashesEnd = SIDE_HEADER_BYTES + leaves * HASH_BYTES;
  if (hashesEnd > bytes)
    throw new SideError(
      `${file.name}: ${bytes} bytes cannot hold the ${leaves} hashes of a payload of ${release.size}`,
    );
  const { chunks } = release;
  if (chunks && chunks.bytes !== bytes - hashesEnd)
    throw new SideError(
      `${file.name}: its chunk index has ${bytes - hashesEnd} bytes; the release names ${chunks.bytes}`,
    );
  const header = await file.read(0, SIDE_HEADER_BYTES);
  const expected = encodeSideHeader(release.size, bytes - hashesEnd);
  if (!Buffer.from(header).equals(expected))
    throw new SideError(`${file.name}: its header is not that of a payload of ${release.size} bytes`);
  const whole = createHash("sha256").update(header);
  const tree = new MerkleTree();
  const windows: Uint8Array[] = [];
  for (let first = 0; first < leaves; first += WINDOW_LEAVES) {
    const window = await readWindow(file, first, leaves);
    whole.update(window);
    windows.push(hash("sha256", window, "buffer"));
    for (let at = 0; at < window.length; at += HASH_BYTES) tree.add(window.subarray(at, at + HASH_BYTES));
  }
  const index = createHash("sha256");
  for (let at = hashesEnd; at < bytes; ) {
    const part = await file.read(at, Math.min(WINDOW_LEAVES * HASH_BYTES, bytes - at));
    whole.update(part);
    index.update(part);
    at += part.length;
  }
  const found = whole.digest("hex");
  if (found !== sha256)
    throw new SideError(`${file.name}: its SHA-256 is ${found}; the release names ${sha256}`);
  if (!Buffer.from(tree.root()).equals(release.piecesRoot))
    throw new SideError(`${file.name}: its hashes do not make the root that the release names`);
  const isKnown = chunks?.alg === CHUNKS_ALG;
  return new Side(
    file,
    release.size,
    windows,
    isKnown ? { at: hashesEnd, sha256: index.digest() } : undefined,
  );
}

/**
 * The chunk index at the end of a side file that nobody has checked, as one that is kept for a slot: good enough to say where to look.
 * Undefined where it has none. Throws `SideError` or `ChunkError` for what is no side file of a payload of `most` bytes or less.
 */
export async function uncheckedIndex(file: Readable, most: number): Promise<ChunkIndex | undefined> {
  if (file.bytes < SIDE_HEADER_BYTES)
    throw new SideError(`${file.name}: ${file.bytes} bytes are no side file`);
  const header = Buffer.from(await file.read(0, SIDE_HEADER_BYTES));
  const size = Number(header.readBigUInt64LE(8));
  const bytes = Number(header.readBigUInt64LE(16));
  const at = SIDE_HEADER_BYTES + leafCount(size) * HASH_BYTES;
  if (size > most || !header.equals(encodeSideHeader(size, bytes)) || at + bytes !== file.bytes)
    throw new SideError(`${file.name}: its header is not that of a side file of ${file.bytes} bytes`);
  if (bytes === 0) return undefined;
  return new ChunkIndex(await file.read(at, Math.min(bytes, mostIndexBytes(size) + 1)), size);
}

/** The checked hashes of a payload's leaves, by number, and its chunks. */
export class Side {
  /** Number of leaves. */
  readonly count: number;
  readonly #file: Readable;
  readonly #size: number;
  /** SHA-256 of each window as it was checked. */
  readonly #seen: readonly Uint8Array[];
  /** Where the chunk index begins, and its SHA-256 as it was checked. */
  readonly #index: { at: number; sha256: Uint8Array } | undefined;
  /** Those in memory, the first read first. */
  readonly #windows = new Map<number, Uint8Array>();

  constructor(
    file: Readable,
    size: number,
    seen: readonly Uint8Array[],
    index?: { at: number; sha256: Uint8Array },
  ) {
    this.#file = file;
    this.#size = size;
    this.count = leafCount(size);
    this.#seen = seen;
    this.#index = index;
  }

  /** SHA-256 of one leaf. Throws `SideError` where the file is no longer what was checked, `RangeError` beyond the last leaf. */
  async hash(leaf: number): Promise<Uint8Array> {
    if (!Number.isInteger(leaf) || leaf < 0 || leaf >= this.count)
      throw new RangeError(`there is no leaf ${leaf}; the last is ${this.count - 1}`);
    const number = Math.floor(leaf / WINDOW_LEAVES);
    const bytes = this.#windows.get(number) ?? (await this.#load(number));
    const at = (leaf % WINDOW_LEAVES) * HASH_BYTES;
    return bytes.subarray(at, at + HASH_BYTES);
  }

  /**
   * The chunks of the payload, read anew each time; undefined where its release names none, or another way to cut. Throws `ChunkError`
   * where whoever signed it has signed nonsense, `SideError` as `hash` does.
   */
  async chunks(): Promise<ChunkIndex | undefined> {
    if (!this.#index) return undefined;
    const { at, sha256 } = this.#index;
    const length = this.#file.bytes - at;
    if (length > mostIndexBytes(this.#size))
      throw new ChunkError(
        `${this.#file.name}: a chunk index of ${length} bytes is too long for its payload`,
      );
    const bytes = await this.#file.read(at, length);
    if (!hash("sha256", bytes, "buffer").equals(sha256))
      throw new SideError(`${this.#file.name}: its chunk index is no longer what was checked`);
    return new ChunkIndex(bytes, this.#size);
  }

  async #load(number: number): Promise<Uint8Array> {
    const bytes = await readWindow(this.#file, number * WINDOW_LEAVES, this.count);
    const seen = this.#seen[number];
    if (!seen || !Buffer.from(hash("sha256", bytes, "buffer")).equals(seen))
      throw new SideError(
        `${this.#file.name}: the hashes from leaf ${number * WINDOW_LEAVES} on are no longer what was checked`,
      );
    const [oldest] = this.#windows.keys();
    if (oldest !== undefined && this.#windows.size >= WINDOWS_MOST) this.#windows.delete(oldest);
    this.#windows.set(number, bytes);
    return bytes;
  }
}

function readWindow(file: Readable, first: number, leaves: number): Promise<Uint8Array> {
  const count = Math.min(WINDOW_LEAVES, leaves - first);
  return file.read(SIDE_HEADER_BYTES + first * HASH_BYTES, count * HASH_BYTES);
}
