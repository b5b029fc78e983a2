/** A payload, its update file and a keep in memory that judges each leaf. */
import { createHash } from "node:crypto";
import type { Keep } from "../../agent/swarm/engine.ts";
import { encodeBencode } from "../../boot/bencode.ts";
import { LEAF_BYTES } from "../../boot/content.ts";
import { seeded } from "../fakes.ts";

/** What a swarm shares in a test. */
export interface Payload {
  bytes: Buffer;
  pieceBytes: number;
  update: Buffer;
  infohash: string;
}

const hash = (algorithm: "sha1" | "sha256", bytes: Uint8Array) =>
  createHash(algorithm).update(bytes).digest();

/** Random bytes, the same for the same seed. */
export function payload(size: number, pieceBytes: number, seed = 1): Payload {
  const random = seeded(seed);
  const bytes = Buffer.alloc(size);
  // One random leaf, told apart by its number: a generator for each byte would take seconds
  const noise = Buffer.from(Array.from({ length: LEAF_BYTES }, () => Math.floor(random() * 256)));
  for (let at = 0; at < size; at += LEAF_BYTES) {
    noise.copy(bytes, at, 0, Math.min(LEAF_BYTES, size - at));
    if (at + 8 <= size) bytes.writeUInt32BE(at / LEAF_BYTES, at);
  }
  const pieces: Buffer[] = [];
  for (let at = 0; at < size; at += pieceBytes)
    pieces.push(hash("sha1", bytes.subarray(at, at + pieceBytes)));
  const info = encodeBencode({
    length: size,
    name: `payload-${seed}`,
    "piece length": pieceBytes,
    pieces: Buffer.concat(pieces),
  });
  const update = Buffer.concat([Buffer.from("d4:info"), info, Buffer.from("e")]);
  return { bytes, pieceBytes, update, infohash: hash("sha1", info).toString("hex") };
}

/** Keeps right leaves in memory, and counts what it was told. */
export class MemoryKeep implements Keep {
  readonly bytes: Buffer;
  readonly #whole: Payload;
  readonly #there: Uint8Array;
  /** Wrong leaves it was offered. */
  wrong = 0;
  /** Pieces it was offered. */
  puts = 0;
  /** Thrown by `put` and `get` while set. */
  failure: Error | undefined;

  /** `has`: the leaves that are there from the start. */
  constructor(whole: Payload, has: (leaf: number) => boolean = () => false) {
    this.#whole = whole;
    this.bytes = Buffer.alloc(whole.bytes.length);
    this.#there = new Uint8Array(Math.ceil(whole.bytes.length / LEAF_BYTES));
    for (const leaf of this.#there.keys()) if (has(leaf)) this.give(leaf);
  }

  get count(): number {
    return this.#there.reduce((sum, one) => sum + one, 0);
  }

  /** A leaf from elsewhere. */
  give(leaf: number): void {
    this.#there[leaf] = 1;
    this.#whole.bytes.copy(this.bytes, leaf * LEAF_BYTES, leaf * LEAF_BYTES, (leaf + 1) * LEAF_BYTES);
  }

  has(leaf: number): boolean {
    return this.#there[leaf] === 1;
  }

  async put(piece: number, bytes: Uint8Array): Promise<readonly number[]> {
    if (this.failure) throw this.failure;
    this.puts++;
    const wrong: number[] = [];
    for (let at = 0; at < bytes.length; at += LEAF_BYTES) {
      const from = piece * this.#whole.pieceBytes + at;
      const right = this.#whole.bytes.subarray(from, Math.min(from + LEAF_BYTES, this.#whole.bytes.length));
      if (right.equals(bytes.subarray(at, at + LEAF_BYTES))) this.give(from / LEAF_BYTES);
      else wrong.push(from / LEAF_BYTES);
    }
    this.wrong += wrong.length;
    return wrong;
  }

  async get(at: number, length: number): Promise<Uint8Array> {
    if (this.failure) throw this.failure;
    for (let leaf = Math.floor(at / LEAF_BYTES); leaf * LEAF_BYTES < at + length; leaf++)
      if (!this.has(leaf)) throw new Error(`leaf ${leaf} is not there`);
    return this.bytes.subarray(at, at + length);
  }
}
