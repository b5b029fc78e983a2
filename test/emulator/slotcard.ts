/** Cards with two small whole slots, for what U-Boot makes of them. */
import { readFileSync } from "node:fs";
import { crc32 } from "node:zlib";
import { FIRST_PARTITION, RECORD_OFFSETS, SECTOR, SLOTS, type SlotName } from "../../boot/layout.ts";
import { type BootFile, type BootRecord, encodeRecord, type SlotRecord } from "../../boot/record.ts";
import { Image } from "../crash/disk.ts";
import { cached } from "./cache.ts";
import { standIn } from "./standin.ts";

const MiB = 1024 * 1024;
/** Bytes of a card. */
export const CARD_BYTES = 64 * MiB;
/** Where the partitions start, bytes. */
export const PARTITION = { boot: FIRST_PARTITION, a: 24 * MiB, b: 28 * MiB, data: 32 * MiB } as const;
/** Bytes of p1. */
export const P1_BYTES = 4 * MiB;
/** In a slot: a kernel that ends inside a sector, an initramfs that ends with one, a device tree. */
export const FILES = { kernel: 8192, initramfs: 40_960, deviceTree: 65_536 };
/** What the kernels call themselves. */
export const NAMES = { a: "kernel of a", b: "kernel of b" };
/** Bytes of an initramfs. */
export const INITRAMFS_BYTES = 4096;

/** Bytes of a slot's files, by their place in it. */
export function filesOf(slot: SlotName): Map<keyof typeof FILES, Uint8Array> {
  return new Map([
    ["kernel", standIn(NAMES[slot], 20_001)],
    ["initramfs", Buffer.alloc(INITRAMFS_BYTES, `initramfs of ${slot}, `)],
    ["deviceTree", readFileSync(cached("arm64", "bcm2837-rpi-3-b.dtb"))],
  ]);
}
/** What a record says of a file. */
export const entry = (name: keyof typeof FILES, bytes: Uint8Array): BootFile => ({
  offset: FILES[name],
  bytes: bytes.length,
  crc32: crc32(bytes),
});

/** What a record says of a slot whose files are whole. */
export function slotRecord(slot: SlotName, state: SlotRecord["state"]): SlotRecord {
  const files = Object.fromEntries(
    [...filesOf(slot)].map(([name, bytes]) => [name, entry(name, bytes)]),
  ) as Record<keyof typeof FILES, BootFile>;
  const hash = Buffer.alloc(16, slot).toString("hex");
  return { state, reason: "none", version: slot === "a" ? 4n : 5n, hash, payloadBytes: 200_000, ...files };
}

/** A node that starts from slot a, and has a good slot b. */
export const BASE: BootRecord = {
  ...{ format: 1, sequence: 10, primary: "a", confirmed: 3, reason: "built", time: 1_790_000_000, floor: 3n },
  slots: { a: slotRecord("a", "good"), b: slotRecord("b", "good") },
};
/** Slot b is on trial. */
export const trial = (triesLeft = 3, started = 0, id = 77): BootRecord => ({
  ...BASE,
  reason: "trial-armed",
  trial: { id, triesLeft, started },
  slots: { ...BASE.slots, b: slotRecord("b", "trying") },
});
/** The same record with something else about one slot. */
export const state = (record: BootRecord, slot: SlotName, change: Partial<SlotRecord>): BootRecord => ({
  ...record,
  slots: { ...record.slots, [slot]: { ...record.slots[slot], ...change } },
});

/** A card with two whole slots; the newest record in the last place, older ones before it. */
export function cardWith(record: BootRecord): Image {
  const image = new Image(CARD_BYTES);
  const table = Buffer.alloc(SECTOR);
  for (const [index, [type, offset, bytes]] of [
    [0x0c, PARTITION.boot, P1_BYTES],
    [0x83, PARTITION.a, 4 * MiB],
    [0x83, PARTITION.b, 4 * MiB],
    [0x83, PARTITION.data, 4 * MiB],
  ].entries()) {
    table[0x1be + index * 16 + 4] = type ?? 0;
    table.writeUInt32LE((offset ?? 0) / SECTOR, 0x1be + index * 16 + 8);
    table.writeUInt32LE((bytes ?? 0) / SECTOR, 0x1be + index * 16 + 12);
  }
  // p1 is marked active: U-Boot looks for its script there
  table[0x1be] = 0x80;
  table.writeUInt16LE(0xaa55, 510);
  image.write(0, table);
  for (const slot of SLOTS)
    for (const [name, bytes] of filesOf(slot)) image.write(PARTITION[slot] + FILES[name], bytes);
  for (const [place, offset] of RECORD_OFFSETS.entries())
    image.write(offset, encodeRecord({ ...record, sequence: record.sequence - 3 + place }));
  return image;
}
/** The same card with some bytes changed. */
export function but(image: Image, ...changes: [at: number, bytes: Uint8Array][]): Image {
  const copy = image.copy();
  for (const [at, bytes] of changes) copy.write(at, bytes);
  return copy;
}
/** A byte that stands nowhere by itself. */
export const wrong = Buffer.from([0xa5]);
/** Offset of a place. */
export const place = (index: number) => RECORD_OFFSETS[index] ?? 0;
/** Offset of a byte of a slot's file. */
export const inFile = (slot: SlotName, name: keyof typeof FILES, at = 0) =>
  PARTITION[slot] + FILES[name] + at;
