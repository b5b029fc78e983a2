/** What the medium itself holds of a payload, a window at a time and one window ahead. */
import type { BlockDevice } from "../hal/ports.ts";
import { onDisk } from "./admit.ts";
import { LEAF_BYTES } from "./content.ts";
import { leafCount } from "./merkle.ts";

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
