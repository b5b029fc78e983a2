/** A system that is installed over another, as far as that has it. */
import { hash } from "node:crypto";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { Chunker, ChunkIndex } from "../../boot/chunks.ts";
import { LEAF_BYTES } from "../../boot/content.ts";
import { copyHeld } from "../../boot/delta.ts";
import { LeafHasher, MerkleTree } from "../../boot/merkle.ts";
import { SlotWriter } from "../../boot/writer.ts";
import { openDisk } from "../../hal/disk.ts";
import type { BlockDevice } from "../../hal/ports.ts";
import { sparse } from "../loop.ts";
import { peakMib } from "../node.ts";
import { MemoryProgress, MemorySwitch, payload } from "../slot.ts";

const MiB = 1024 * 1024;
/** Blocks of RAUC's adaptive update ("block-hash-index"). */
const BLOCK = 4096;

/** What came of it; bytes, and the seconds of the copying alone. */
export interface Over {
  size: number;
  chunks: number;
  /** Of chunks that the old one has not. */
  changed: number;
  /** In leaves that the copying left open. */
  fetched: number;
  /** In blocks of 4 KiB that the old one has nowhere. */
  blocks: number;
  seconds: number;
  /** How much higher the peak of this process's memory is afterwards. */
  grownMib: number;
}

/** Copies what one file has of another into a third, fetches the rest, and has all of it read back. */
export async function installOver(folder: string, from: string, to: string): Promise<Over> {
  const signal = new AbortController().signal;
  await using open = new AsyncDisposableStack();
  const opened = async (path: string, how: "read" | "exclusive") => {
    const disk = await openDisk(path, how);
    open.defer(() => disk.close());
    return disk;
  };
  const [old, fresh] = [await opened(from, "read"), await opened(to, "read")];
  const size = fresh.bytes;
  const slot = await opened(sparse(join(folder, "slot"), size + MiB), "exclusive");
  const [before, after] = [await describe(old), await describe(fresh)];
  const writer = await SlotWriter.open({
    ...{ boot: new MemorySwitch(), slot: "b", device: slot, leaves: after.leaves },
    release: { ...payload(16).release, size, piecesRoot: after.root },
    progress: new MemoryProgress(),
    ...{ compatible: ["raspberrypi,3-model-b"], now: 1_800_000_000, signal },
  });
  // proc(5), clear_refs: from now on the peak is counted anew
  writeFileSync("/proc/self/clear_refs", "5");
  const memory = peakMib(process.pid) ?? 0;
  const startedMs = performance.now();
  await copyHeld(writer, after, [{ device: old, index: before.index }], signal);
  const seconds = (performance.now() - startedMs) / 1000;
  const grownMib = (peakMib(process.pid) ?? 0) - memory;
  let fetched = 0;
  for (let leaf = 0; leaf < writer.count; leaf++) {
    if (!writer.needs(leaf)) continue;
    const bytes = await fresh.read(leaf * LEAF_BYTES, Math.min(LEAF_BYTES, size - leaf * LEAF_BYTES));
    await writer.put(leaf, bytes);
    fetched += bytes.length;
  }
  await writer.finish();
  const known = new Set(Array.from({ length: before.index.count }, (_, chunk) => before.index.key(chunk)));
  let changed = 0;
  for (let chunk = 0; chunk < after.index.count; chunk++)
    if (!known.has(after.index.key(chunk))) changed += after.index.length(chunk);
  const blocks = after.blocks.filter((block) => !before.blockSet.has(block)).length * BLOCK;
  return { size, chunks: after.index.count, changed, fetched, blocks, seconds, grownMib };
}

/** What a release says of a payload, and the hashes of its blocks. */
async function describe(disk: BlockDevice) {
  const chunker = new Chunker();
  const hashes: Uint8Array[] = [];
  const blocks: string[] = [];
  const tree = new MerkleTree();
  const leaves = new LeafHasher((leaf) => {
    hashes.push(leaf);
    tree.add(leaf);
  });
  for (let at = 0; at < disk.bytes; at += MiB) {
    const piece = await disk.read(at, Math.min(MiB, disk.bytes - at));
    chunker.update(piece);
    leaves.update(piece);
    for (let block = 0; block < piece.length; block += BLOCK)
      blocks.push(hash("sha256", piece.subarray(block, block + BLOCK), "base64"));
  }
  leaves.end();
  const index = new ChunkIndex(chunker.end(), disk.bytes);
  const hashOf = async (leaf: number) => hashes[leaf] ?? new Uint8Array(32);
  const blockSet = new Set(blocks);
  return { index, root: tree.root(), leaves: { count: hashes.length, hash: hashOf }, blocks, blockSet };
}
