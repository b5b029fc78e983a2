/**
 * The side file of a release: the SHA-256 of every leaf of its payload, so that each can be checked before it is written, and
 * room for the chunk index.
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
 * - It is never in memory as a whole: a window is read again when it is asked for, and must be what it was at the first reading.
 */
import { createHash, hash } from "node:crypto";
import type { Readable } from "./area.ts";
import type { Release } from "./content.ts";
import { HASH_BYTES, leafCount, MerkleTree } from "./merkle.ts";

/** Bytes in front of the first leaf's hash. */
export const SIDE_HEADER_BYTES = 32;
/** Hashes that are read at once: 64 KiB of the side file, 32 MiB of the payload. */
export const WINDOW_LEAVES = 2048;

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
  release: Pick<Release, "size" | "piecesRoot" | "side">,
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
  const header = await file.read(0, SIDE_HEADER_BYTES);
  const expected = encodeSideHeader(release.size, bytes - hashesEnd);
  if (!Buffer.from(header).equals(expected))
    throw new SideError(`${file.name}: its header is not that of a payload of ${release.size} bytes`);
  const whole = createHash("sha256").update(header);
  const tree = new MerkleTree();
  const seen: Uint8Array[] = [];
  for (let first = 0; first < leaves; first += WINDOW_LEAVES) {
    const window = await readWindow(file, first, leaves);
    whole.update(window);
    seen.push(hash("sha256", window, "buffer"));
    for (let at = 0; at < window.length; at += HASH_BYTES) tree.add(window.subarray(at, at + HASH_BYTES));
  }
  for (let at = hashesEnd; at < bytes; ) {
    const part = await file.read(at, Math.min(WINDOW_LEAVES * HASH_BYTES, bytes - at));
    whole.update(part);
    at += part.length;
  }
  const found = whole.digest("hex");
  if (found !== sha256)
    throw new SideError(`${file.name}: its SHA-256 is ${found}; the release names ${sha256}`);
  if (!Buffer.from(tree.root()).equals(release.piecesRoot))
    throw new SideError(`${file.name}: its hashes do not make the root that the release names`);
  return new Side(file, leaves, seen);
}

/** The checked hashes of a payload's leaves, by number. */
export class Side {
  /** Number of leaves. */
  readonly count: number;
  readonly #file: Readable;
  /** SHA-256 of each window as it was checked. */
  readonly #seen: readonly Uint8Array[];
  #window: { number: number; bytes: Uint8Array } | undefined;

  constructor(file: Readable, leaves: number, seen: readonly Uint8Array[]) {
    this.#file = file;
    this.count = leaves;
    this.#seen = seen;
  }

  /** SHA-256 of one leaf. Throws `SideError` where the file is no longer what was checked, `RangeError` beyond the last leaf. */
  async hash(leaf: number): Promise<Uint8Array> {
    if (!Number.isInteger(leaf) || leaf < 0 || leaf >= this.count)
      throw new RangeError(`there is no leaf ${leaf}; the last is ${this.count - 1}`);
    const number = Math.floor(leaf / WINDOW_LEAVES);
    const bytes = this.#window?.number === number ? this.#window.bytes : await this.#load(number);
    const at = (leaf % WINDOW_LEAVES) * HASH_BYTES;
    return bytes.subarray(at, at + HASH_BYTES);
  }

  async #load(number: number): Promise<Uint8Array> {
    const bytes = await readWindow(this.#file, number * WINDOW_LEAVES, this.count);
    const seen = this.#seen[number];
    if (!seen || !Buffer.from(hash("sha256", bytes, "buffer")).equals(seen))
      throw new SideError(
        `${this.#file.name}: the hashes from leaf ${number * WINDOW_LEAVES} on are no longer what was checked`,
      );
    this.#window = { number, bytes };
    return bytes;
  }
}

function readWindow(file: Readable, first: number, leaves: number): Promise<Uint8Array> {
  const count = Math.min(WINDOW_LEAVES, leaves - first);
  return file.read(SIDE_HEADER_BYTES + first * HASH_BYTES, count * HASH_BYTES);
}
