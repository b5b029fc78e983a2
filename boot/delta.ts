/**
 * What a new release has in common with what the slots hold is copied, so that only the rest has to come from elsewhere.
 *
 * Invariants
 * - The writer's own check decides: a leaf that is put together wrongly is not taken, and costs nothing but the looking. An index
 *   that lies, a medium that rots and a slot that is written while it is read are all the same to it.
 * - Leaf after leaf, in order, so that pieces become whole early; what the writer has is neither read nor written.
 * - In memory are two chunks, and the indexes.
 */
import { type BlockDevice, HalError } from "../hal/ports.ts";
import { BLOCK, onDisk } from "./admit.ts";
import { Chunker, ChunkIndex } from "./chunks.ts";
import { LEAF_BYTES } from "./content.ts";
import { type Leaves, WrongLeaf } from "./leaf.ts";
import { hashLeaf } from "./merkle.ts";
import { type Pace, paced } from "./readback.ts";
import type { SlotWriter } from "./writer.ts";

/** A slot that may hold chunks of a release. */
export interface Held {
  device: Pick<BlockDevice, "name" | "bytes" | "readMedium">;
  /** Of what it holds, or once held. */
  index: ChunkIndex;
}

/** After so many places that cannot be read a medium is left alone: each may have cost seconds. */
const UNREADABLE_MOST = 8;

/**
 * Brings the writer every leaf it needs that can be made of chunks in `held`, the best place first, or that is all zeros; without
 * an index of the release those of zeros only. Throws what the writer throws, and what the signal says.
 */
export async function copyHeld(
  writer: SlotWriter,
  release: { leaves: Leaves; index: ChunkIndex | undefined },
  held: readonly Held[],
  signal: AbortSignal,
): Promise<void> {
  const chunks = release.index && new HeldChunks(release.index, held);
  const zeros = new Uint8Array(LEAF_BYTES);
  const zerosHash = hashLeaf(zeros);
  for (let leaf = 0; leaf < writer.count; leaf++) {
    if (!writer.needs(leaf)) continue;
    signal.throwIfAborted();
    const blank = zeros.subarray(0, writer.size - leaf * LEAF_BYTES);
    const ofZeros = blank.length < LEAF_BYTES ? hashLeaf(blank) : zerosHash;
    if (Buffer.from(await release.leaves.hash(leaf)).equals(ofZeros)) await writer.put(leaf, blank, "zeros");
    else await chunks?.copy(writer, leaf);
  }
}

/** Makes the index of the first `bytes` of a slot that nobody has kept one of, past the cache and no faster than the pace. */
export async function indexOf(
  slot: Pick<BlockDevice, "name" | "bytes" | "readMedium">,
  bytes: number,
  pace: Pace,
  signal: AbortSignal,
  report: (bytes: number) => void = () => undefined,
): Promise<ChunkIndex> {
  const chunker = new Chunker();
  let done = 0;
  for await (const piece of paced(slot, { offset: 0, bytes: slot.bytes }, bytes, pace, signal)) {
    chunker.update(piece);
    done += piece.length;
    report(done);
  }
  return new ChunkIndex(chunker.end(), bytes);
}

/** Where a chunk may be found. */
interface Place {
  held: Held;
  start: number;
}

/** The chunks of a release that slots hold. */
class HeldChunks {
  readonly #index: ChunkIndex;
  /** By the key of a chunk: where it has not been looked for in vain, the best place first. */
  readonly #places = new Map<string, Place[]>();
  readonly #unreadable = new Map<Held, number>();
  /** Those read last: a leaf has parts of two at most, since none is shorter than a leaf, and those are neighbours. */
  readonly #read: ({ chunk: number; bytes: Uint8Array; place: Place } | undefined)[] = [];
  readonly #memory: (Uint8Array | undefined)[] = [];
  readonly #leaf = new Uint8Array(LEAF_BYTES);

  constructor(index: ChunkIndex, held: readonly Held[]) {
    this.#index = index;
    for (let chunk = 0; chunk < index.count; chunk++) this.#places.set(index.key(chunk), []);
    for (const one of held)
      for (let chunk = 0; chunk < one.index.count; chunk++) {
        const places = this.#places.get(one.index.key(chunk));
        // One place in each slot will do
        if (places && places.at(-1)?.held !== one) places.push({ held: one, start: one.index.start(chunk) });
      }
  }

  /** Brings a leaf, if all of it is there. */
  async copy(writer: SlotWriter, leaf: number): Promise<void> {
    const from = leaf * LEAF_BYTES;
    const to = Math.min(from + LEAF_BYTES, this.#index.size);
    const first = this.#index.at(from);
    const last = this.#index.at(to - 1);
    while (await this.#gather(from, to, first, last)) {
      try {
        return await writer.put(leaf, this.#leaf.subarray(0, to - from), "slots");
      } catch (cause) {
        if (!(cause instanceof WrongLeaf)) throw cause;
      }
      // Nothing wrong with the chunks: then the index is not that of the leaves
      if (!this.#dropWrong(first, last)) return;
    }
  }

  /** Puts a leaf together; whether all of it is there. */
  async #gather(from: number, to: number, first: number, last: number): Promise<boolean> {
    for (let chunk = first; chunk <= last; chunk++) if (this.#placesOf(chunk).length === 0) return false;
    for (let chunk = first; chunk <= last; chunk++) {
      const bytes = await this.#bytesOf(chunk);
      if (!bytes) return false;
      const start = this.#index.start(chunk);
      this.#leaf.set(bytes.subarray(Math.max(from - start, 0), to - start), Math.max(start - from, 0));
    }
    return true;
  }

  /** Bytes of a chunk, as the first place that can be read has them. */
  async #bytesOf(chunk: number): Promise<Uint8Array | undefined> {
    const read = this.#read[chunk % 2];
    if (read?.chunk === chunk) return read.bytes;
    this.#read[chunk % 2] = undefined;
    const places = this.#placesOf(chunk);
    for (let [place] = places; place; [place] = places) {
      const bytes = await this.#readPlace(place, this.#index.length(chunk), chunk % 2);
      if (bytes) {
        this.#read[chunk % 2] = { chunk, bytes, place };
        return bytes;
      }
      places.shift();
    }
    return undefined;
  }

  async #readPlace({ held, start }: Place, length: number, which: number): Promise<Uint8Array | undefined> {
    const failures = this.#unreadable.get(held) ?? 0;
    if (failures >= UNREADABLE_MOST) return undefined;
    const from = start - (start % BLOCK);
    const memory = this.#memory[which];
    try {
      const read = await held.device.readMedium(from, onDisk(start + length) - from, memory);
      this.#memory[which] = memory && memory.length > read.length ? memory : read;
      return read.subarray(start - from, start - from + length);
    } catch (cause) {
      if (!(cause instanceof HalError)) throw cause;
      this.#unreadable.set(held, failures + 1);
      return undefined;
    }
  }

  /** Of the chunks of a leaf that was wrong, no longer looks where another was; whether there was one. */
  #dropWrong(first: number, last: number): boolean {
    let isWrong = false;
    for (let chunk = first; chunk <= last; chunk++) {
      const read = this.#read[chunk % 2];
      if (read?.chunk !== chunk || this.#index.isRight(chunk, read.bytes)) continue;
      const places = this.#placesOf(chunk);
      // Its neighbour may have the same bytes, and have been there first
      if (places[0] === read.place) places.shift();
      this.#read[chunk % 2] = undefined;
      isWrong = true;
    }
    return isWrong;
  }

  #placesOf(chunk: number): Place[] {
    return this.#places.get(this.#index.key(chunk)) ?? [];
  }
}
