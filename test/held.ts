/** Slots that hold a release of which the next has most. */
import { createHash } from "node:crypto";
import { ChunkIndex } from "../boot/chunks.ts";
import { LEAF_BYTES } from "../boot/content.ts";
import type { Held } from "../boot/delta.ts";
import { hashLeaf, leafCount } from "../boot/merkle.ts";
import type { SlotWriter } from "../boot/writer.ts";
import { chunksOf, noise, sideOf } from "./releases.ts";
import { MemoryDisk, type Payload, payload } from "./slot.ts";

const MiB = 1024 * 1024;

/** Bytes as the payload of a release. */
export function payloadOf(bytes: Uint8Array): Payload & { index: ChunkIndex; bytes: Uint8Array } {
  const leaf = (number: number) => bytes.subarray(number * LEAF_BYTES, (number + 1) * LEAF_BYTES);
  const root = sideOf(bytes).root;
  const { release } = payload(16);
  const infohash = createHash("sha1").update(root).digest("hex");
  return {
    bytes,
    leaf,
    leaves: { count: leafCount(bytes.length), hash: async (number) => hashLeaf(leaf(number)) },
    release: { ...release, infohash, size: bytes.length, piecesRoot: root },
    index: new ChunkIndex(chunksOf(bytes), bytes.length),
  };
}

/** A slot that holds these bytes, and counts what is read of it. */
export async function slotWith(bytes: Uint8Array, name = "slot a") {
  const disk = new MemoryDisk(4 * MiB, name);
  const whole = new Uint8Array(Math.ceil(bytes.length / 4096) * 4096);
  whole.set(bytes);
  await disk.write(0, whole);
  await disk.flush();
  const read: { offset: number; length: number }[] = [];
  const device: Held["device"] = {
    name,
    bytes: disk.bytes,
    readMedium: (offset, length, into) => {
      read.push({ offset, length });
      return disk.readMedium(offset, length, into);
    },
  };
  return { disk, read, held: { device, index: new ChunkIndex(chunksOf(bytes), bytes.length) } };
}

/** Leaves that a writer has yet to get. */
export function open(writer: SlotWriter): number[] {
  return Array.from({ length: writer.count }, (_, leaf) => leaf).filter((leaf) => writer.needs(leaf));
}

/** Leaves with bytes of chunks of which nothing is known. */
export function unknown(fresh: ReturnType<typeof payloadOf>, ...known: ChunkIndex[]): number[] {
  const keys = new Set(known.flatMap((one) => Array.from({ length: one.count }, (_, at) => one.key(at))));
  const leaves = new Set<number>();
  for (let chunk = 0; chunk < fresh.index.count; chunk++) {
    if (keys.has(fresh.index.key(chunk))) continue;
    const [from, to] = [fresh.index.start(chunk), fresh.index.start(chunk + 1)];
    for (let leaf = Math.floor(from / LEAF_BYTES); leaf * LEAF_BYTES < to; leaf++) leaves.add(leaf);
  }
  return [...leaves];
}

export async function fill(writer: SlotWriter, { leaf }: Payload): Promise<void> {
  for (const number of open(writer)) await writer.put(number, leaf(number));
}

/** A release, and the next: something put in, something changed, something taken out. */
export const OLD = noise(3 * MiB - 5000, 1);
export const NEW = payloadOf(
  Buffer.concat([
    OLD.subarray(0, 700_000),
    noise(1234, 8),
    OLD.subarray(700_000, 1_500_000),
    noise(90_000, 9),
    OLD.subarray(1_600_000),
  ]),
);
