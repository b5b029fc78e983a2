/** What the medium itself holds of a payload, a window at a time and one window ahead. */
import { setTimeout as sleep } from "node:timers/promises";
import { within } from "../hal/limit.ts";
import { type BlockDevice, HalError } from "../hal/ports.ts";
import { hashPrefix, onDisk } from "./admit.ts";
import { LEAF_BYTES } from "./content.ts";
import { LeafHasher, leafCount, MerkleTree } from "./merkle.ts";

/** Bytes read at once; two of these are in memory. */
const WINDOW_BYTES = 1024 * 1024;
const LEAVES_A_WINDOW = WINDOW_BYTES / LEAF_BYTES;

/** Leaves `from` up to `to`, without it, and their bytes up to the end of their last block; the memory is used again. */
export interface Window {
  from: number;
  to: number;
  bytes: Uint8Array;
}

/** The windows of a payload that hold a wanted leaf, read past the cache in their order. Throws `HalError`, and what the signal says. */
export async function* windows(
  device: BlockDevice,
  size: number,
  isWanted: (leaf: number) => boolean,
  signal: AbortSignal,
): AsyncGenerator<Window> {
  const wanted = windowsWith(leafCount(size), isWanted);
  const memory: (Uint8Array | undefined)[] = [];
  const ask = async (turn: number): Promise<Window | undefined> => {
    const from = wanted[turn];
    if (from === undefined) return undefined;
    const to = Math.min(from + LEAVES_A_WINDOW, leafCount(size));
    const length = onDisk(Math.min(to * LEAF_BYTES, size)) - from * LEAF_BYTES;
    const bytes = await device.readMedium(from * LEAF_BYTES, length, memory[turn % 2]);
    memory[turn % 2] = bytes;
    return { from, to, bytes };
  };
  let next = ask(0);
  try {
    for (let turn = 0; turn < wanted.length; turn++) {
      const window = await next;
      next = ask(turn + 1);
      next.catch(() => undefined); // told when its turn comes
      signal.throwIfAborted();
      if (window) yield window;
    }
  } finally {
    // Nobody may close the device under it
    await next.catch(() => undefined);
  }
}

function windowsWith(count: number, isWanted: (leaf: number) => boolean): number[] {
  const wanted: number[] = [];
  for (let leaf = 0; leaf < count; leaf++) {
    if (!isWanted(leaf)) continue;
    const from = leaf - (leaf % LEAVES_A_WINDOW);
    wanted.push(from);
    leaf = from + LEAVES_A_WINDOW - 1;
  }
  return wanted;
}

/** How a long read leaves the disk to others. */
export interface Pace {
  /** Bytes read at once: whole blocks. */
  bytes: number;
  /** Longest wait for one answer, ms. */
  limitMs: number;
  /** Rest after a piece that took so long, ms. */
  restMs(tookMs: number): number;
}

/**
 * The first `size` bytes of a stretch of a disk, read past the cache, piece after piece; each is overwritten by the next, and no other is
 * in memory. Throws `HalError`, and what the signal says.
 */
export async function* paced(
  disk: Pick<BlockDevice, "name" | "readMedium">,
  { offset, bytes }: { offset: number; bytes: number },
  size: number,
  pace: Pace,
  signal: AbortSignal,
): AsyncGenerator<Uint8Array> {
  let memory: Uint8Array | undefined;
  for (let at = 0; at < size; at += pace.bytes) {
    signal.throwIfAborted();
    const began = performance.now();
    const length = Math.min(pace.bytes, size - at);
    const late = () =>
      new HalError(
        "timeout",
        `${disk.name}: no answer at byte ${offset + at} within ${pace.limitMs / 1000} s`,
      );
    // Whole blocks of the medium; what follows a payload is still the slot's
    const read = disk.readMedium(offset + at, Math.min(onDisk(length), bytes - at), memory);
    memory = await within(pace.limitMs, read, late);
    yield memory.subarray(0, length);
    await sleep(pace.restMs(performance.now() - began), undefined, { signal });
  }
}

/** The content hash, as a record keeps it, of the first `size` bytes of a stretch of a disk. Reads and throws as `paced` does. */
export async function readHash(
  disk: Pick<BlockDevice, "name" | "readMedium">,
  stretch: { offset: number; bytes: number },
  size: number,
  pace: Pace,
  signal: AbortSignal,
): Promise<string> {
  const tree = new MerkleTree();
  const hasher = new LeafHasher((leaf) => tree.add(leaf));
  for await (const piece of paced(disk, stretch, size, pace, signal)) hasher.update(piece);
  hasher.end();
  return hashPrefix(tree.root());
}
