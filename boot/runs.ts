/**
 * Leaves that come in any order, gathered into runs that a card writes well.
 *
 * Invariants
 * - What the medium already holds is not written again: a block of 4096 bytes is the unit.
 * - Memory is bounded: so many runs and no more; whoever brings a leaf waits for one.
 * - Leaf 0 never goes through here: it is written last, by itself.
 */
import type { BlockDevice } from "../hal/ports.ts";
import { BLOCK, onDisk } from "./admit.ts";
import { LEAF_BYTES } from "./content.ts";
import { leafCount } from "./merkle.ts";
import { Bits } from "./progress.ts";

/** Bytes written at once, where all of them changed: far above what SD cards program at a time, and 128 KiB. */
const RUN_BYTES = 512 * 1024;
const LEAVES_A_RUN = RUN_BYTES / LEAF_BYTES;
/** Runs that may be half filled: leaves of a swarm come in pieces, from several peers. */
const OPEN_MOST = 8;
/** Runs on their way to the card; one more is filled meanwhile. More would only make others wait for the card. */
const WRITING_MOST = 2;

interface Run {
  /** Its place in the payload, in runs. */
  number: number;
  bytes: Uint8Array;
  leaves: Bits;
}

/** The runs of one payload on their way into a slot. */
export class Runs {
  /** Bytes that were written: the slot did not hold them already. */
  written = 0;
  readonly #device: BlockDevice;
  readonly #size: number;
  /** Told which leaves the kernel has. */
  readonly #arrived: (leaf: number) => void;
  /** Those being filled, the oldest first. */
  readonly #open = new Map<number, Run>();
  readonly #writing = new Set<Promise<void>>();
  /** Those that are full, until the kernel has them. */
  readonly #leaving = new Set<Run>();
  /** Memory to be used again. */
  readonly #spare: Uint8Array[] = [];
  readonly #compared: Uint8Array[] = [];
  #failure: Error | undefined;

  constructor(device: BlockDevice, size: number, arrived: (leaf: number) => void) {
    this.#device = device;
    this.#size = size;
    this.#arrived = arrived;
  }

  /** Takes a leaf over; its bytes are the caller's again when this resolves. Throws what went wrong with an earlier one. */
  async put(leaf: number, bytes: Uint8Array): Promise<void> {
    this.#check();
    const number = Math.floor(leaf / LEAVES_A_RUN);
    const run = this.#open.get(number) ?? (await this.#begin(number));
    const at = (leaf % LEAVES_A_RUN) * LEAF_BYTES;
    run.bytes.set(bytes, at);
    run.bytes.fill(0, at + bytes.length, at + onDisk(bytes.length));
    run.leaves.add(leaf % LEAVES_A_RUN);
    if (run.leaves.count === this.#wanted(number)) await this.#send(run);
  }

  /** A copy of a leaf that was put and that the kernel has not got yet. */
  held(leaf: number): Uint8Array | undefined {
    const number = Math.floor(leaf / LEAVES_A_RUN);
    const index = leaf % LEAVES_A_RUN;
    for (const run of [...this.#open.values(), ...this.#leaving])
      if (run.number === number && run.leaves.has(index)) {
        const from = index * LEAF_BYTES;
        return run.bytes.slice(from, from + Math.min(LEAF_BYTES, this.#size - leaf * LEAF_BYTES));
      }
    return undefined;
  }

  /** Resolves when the kernel has all that was put, half filled runs too. */
  async drain(): Promise<void> {
    for (const run of [...this.#open.values()]) await this.#send(run);
    await this.settle();
  }

  /** Resolves when nothing is on its way. */
  async settle(): Promise<void> {
    while (this.#writing.size > 0) await Promise.race(this.#writing);
    this.#check();
  }

  async #begin(number: number): Promise<Run> {
    const [oldest] = this.#open.values();
    if (oldest && this.#open.size >= OPEN_MOST) await this.#send(oldest);
    const bytes = this.#spare.pop() ?? new Uint8Array(RUN_BYTES);
    const run = { number, bytes, leaves: new Bits(LEAVES_A_RUN) };
    this.#open.set(number, run);
    return run;
  }

  /** How many leaves a run has when it is full. */
  #wanted(number: number): number {
    const left = leafCount(this.#size) - number * LEAVES_A_RUN;
    return Math.min(LEAVES_A_RUN, left) - (number === 0 ? 1 : 0);
  }

  async #send(run: Run): Promise<void> {
    this.#open.delete(run.number);
    this.#leaving.add(run);
    while (this.#writing.size >= WRITING_MOST) await Promise.race(this.#writing);
    this.#check();
    const writing = this.#write(run)
      .catch((cause) => {
        this.#failure ??= cause;
      })
      .finally(() => {
        this.#writing.delete(writing);
        this.#leaving.delete(run);
        this.#spare.push(run.bytes);
      });
    this.#writing.add(writing);
  }

  async #write({ number, bytes, leaves }: Run): Promise<void> {
    const start = number * RUN_BYTES;
    const most = Math.min(RUN_BYTES, onDisk(this.#size) - start);
    for (const [from, to] of stretches(LEAVES_A_RUN, (leaf) => leaves.has(leaf))) {
      const end = Math.min(to * LEAF_BYTES, most);
      await this.#writeChanged(start, bytes, from * LEAF_BYTES, end);
      for (let leaf = from; leaf < to; leaf++) this.#arrived(number * LEAVES_A_RUN + leaf);
    }
  }

  /** Of these bytes of a run, what the slot does not hold yet. */
  async #writeChanged(start: number, bytes: Uint8Array, from: number, end: number): Promise<void> {
    const memory = this.#compared.pop();
    // Of the medium itself: what the cache holds may never have got there
    const read = await this.#device.readMedium(start + from, end - from, memory);
    const held = asBuffer(read);
    const isSame = (block: number) => {
      const at = from + block * BLOCK;
      return held.compare(bytes, at, at + BLOCK, block * BLOCK, (block + 1) * BLOCK) === 0;
    };
    for (const [first, last] of stretches((end - from) / BLOCK, (block) => !isSame(block))) {
      const part = bytes.subarray(from + first * BLOCK, from + last * BLOCK);
      await this.#device.write(start + from + first * BLOCK, part);
      this.written += part.length;
    }
    this.#compared.push(memory && memory.length > read.length ? memory : read);
  }

  #check(): void {
    if (this.#failure) throw this.#failure;
  }
}

const asBuffer = ({ buffer, byteOffset, byteLength }: Uint8Array) =>
  Buffer.from(buffer, byteOffset, byteLength);

/** The stretches of neighbours, `[from, to)`, among so many, for which something holds. */
export function* stretches(length: number, holds: (index: number) => boolean): Generator<[number, number]> {
  for (let from = 0; from < length; from++) {
    if (!holds(from)) continue;
    let to = from + 1;
    while (to < length && holds(to)) to++;
    yield [from, to];
    from = to;
  }
}
