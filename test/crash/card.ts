/** A card of a few MiB with the true layout, and releases small enough to install thousands of times. */
import { createHash } from "node:crypto";
import { crc32 } from "node:zlib";
import type { Release } from "../../boot/content.ts";
import { LEAF_BYTES } from "../../boot/content.ts";
import {
  FAT32_LBA,
  FIRST_PARTITION,
  LINUX,
  RECORD_OFFSETS,
  SECTOR,
  type SlotName,
} from "../../boot/layout.ts";
import { type BootFile, encodeRecord, type SlotRecord } from "../../boot/record.ts";
import type { SlotContent } from "../../boot/slots.ts";
import { standIn } from "../emulator/standin.ts";
import { seeded } from "../fakes.ts";
import { Image } from "./disk.ts";

const MiB = 1024 * 1024;
/** Bytes of a slot: 64 leaves. */
export const SLOT_BYTES = MiB;
/** Bytes of the card; a power of two, as an emulated SD card has to be. */
export const CARD_BYTES = 64 * MiB;
/** Bytes of p1. */
export const P1_BYTES = 4 * MiB;
/** Where the slots start, bytes: as on a true card, none shares an erase block of 4 MiB with another. */
export const SLOT_OFFSETS: Record<SlotName, number> = {
  a: FIRST_PARTITION + 4 * MiB,
  b: FIRST_PARTITION + 8 * MiB,
};
/** A kernel's length: no whole sector. It is one that a real U-Boot can start. */
const KERNEL_BYTES = 18_001;
/** The board all of this is for. */
export const BOARD = "raspberrypi,3-model-b";

/** What a release puts into a slot. */
export interface Payload {
  name: string;
  bytes: Uint8Array;
  /** SHA-256 of each leaf, one after the other. */
  leaves: Uint8Array;
  content: SlotContent;
  release: Release;
}

/** Hash of a BEP 52 tree over leaves of 16 KiB: the lowest layer is filled up with zero hashes to a power of two. */
export function merkleRoot(leaves: Uint8Array): Uint8Array {
  let layer = Array.from({ length: leaves.length / 32 }, (_, leaf) =>
    leaves.subarray(leaf * 32, leaf * 32 + 32),
  );
  while (layer.length & (layer.length - 1)) layer.push(new Uint8Array(32));
  while (layer.length > 1)
    layer = Array.from({ length: layer.length / 2 }, (_, node) =>
      createHash("sha256")
        .update(layer[2 * node] ?? "")
        .update(layer[2 * node + 1] ?? "")
        .digest(),
    );
  return layer[0] ?? new Uint8Array(32);
}

/** SHA-256 of each leaf, one after the other. */
export function leavesOf(bytes: Uint8Array): Uint8Array {
  const count = Math.ceil(bytes.length / LEAF_BYTES);
  const leaves = new Uint8Array(count * 32);
  for (let leaf = 0; leaf < count; leaf++)
    leaves.set(
      createHash("sha256")
        .update(bytes.subarray(leaf * LEAF_BYTES, (leaf + 1) * LEAF_BYTES))
        .digest(),
      leaf * 32,
    );
  return leaves;
}

/** A release of `size` bytes; every fourth leaf is the same in all releases of one `family`, and some are all zero. */
export function payloadOf(version: bigint, size: number, family = 7): Payload {
  const name = `crash-${version}`;
  const common = seeded(family);
  const own = seeded(Number(version) * 7919);
  const bytes = new Uint8Array(size);
  const words = new Uint32Array(bytes.buffer, 0, Math.floor(size / 4));
  for (let at = 0; at < words.length; at++) {
    const leaf = Math.floor((at * 4) / LEAF_BYTES);
    const [shared, mine] = [common(), own()];
    words[at] = leaf % 11 === 7 ? 0 : (leaf % 4 === 2 ? shared : mine) * 2 ** 32;
  }
  bytes.set(Buffer.from("hsqs"), 0);
  const file = (offset: number, length: number): BootFile => ({
    offset,
    bytes: length,
    crc32: crc32(bytes.subarray(offset, offset + length)),
  });
  const bootAt = Math.floor((size * 3) / 4 / 4096) * 4096;
  const initramfsAt = bootAt + 5 * 4096;
  bytes.set(standIn(name, KERNEL_BYTES), bootAt);
  const files = { kernel: file(bootAt, KERNEL_BYTES), initramfs: file(initramfsAt, size - initramfsAt) };
  const leaves = leavesOf(bytes);
  const root = merkleRoot(leaves);
  return {
    name,
    bytes,
    leaves,
    content: { version, hash: Buffer.from(root).toString("hex", 0, 16), payloadBytes: size, ...files },
    release: {
      infohash: createHash("sha1").update(root).digest("hex"),
      name,
      size,
      piecesRoot: root,
      target: "crash",
      boards: [BOARD],
      channel: "stable",
      version,
      minFrom: 0n,
      floor: version > 1n ? version - 1n : 0n,
      created: 1_790_000_000,
      expires: 4_000_000_000,
      boot: { ...files, deviceTrees: {} },
      side: { bytes: leaves.length, sha256: createHash("sha256").update(leaves).digest("hex") },
      signers: ["crash"],
    },
  };
}

/** The partition table of all these cards. */
export function partitionTable(): Uint8Array {
  const sector = new Uint8Array(SECTOR);
  const view = new DataView(sector.buffer);
  const rows = [
    [FAT32_LBA, FIRST_PARTITION, P1_BYTES],
    [LINUX, SLOT_OFFSETS.a, SLOT_BYTES],
    [LINUX, SLOT_OFFSETS.b, SLOT_BYTES],
    [LINUX, FIRST_PARTITION + 12 * MiB, 4 * MiB],
  ] as const;
  for (const [index, [type, offset, bytes]] of rows.entries()) {
    const at = 0x1be + index * 16;
    view.setUint8(at + 4, type);
    view.setUint32(at + 8, offset / SECTOR, true);
    view.setUint32(at + 12, bytes / SECTOR, true);
  }
  // p1 is the active one: U-Boot looks for its script there
  view.setUint8(0x1be, 0x80);
  view.setUint16(510, 0xaa55, true);
  return sector;
}

/** A card as the image builder leaves it: slot a good, slot b empty, all four places written. */
export function cardWith(a: Payload, b?: Payload): Image {
  const image = new Image(CARD_BYTES);
  image.write(0, partitionTable());
  image.write(SLOT_OFFSETS.a, padded(a.bytes));
  if (b) image.write(SLOT_OFFSETS.b, padded(b.bytes));
  const slot = (of: Payload): SlotRecord => ({ ...of.content, state: "good", reason: "built" });
  for (const [place, offset] of RECORD_OFFSETS.entries())
    image.write(
      offset,
      encodeRecord({
        format: 1,
        sequence: place + 1,
        primary: "a",
        confirmed: 0,
        reason: "built",
        time: 0,
        floor: 0n,
        slots: {
          a: slot(a),
          b: b
            ? slot(b)
            : { state: "empty", reason: "none", version: 0n, hash: "0".repeat(32), payloadBytes: 0 },
        },
      }),
    );
  return image;
}

/** Bytes filled up with zeros to a whole sector. */
export function padded(bytes: Uint8Array): Uint8Array {
  const whole = new Uint8Array(Math.ceil(bytes.length / SECTOR) * SECTOR);
  whole.set(bytes);
  return whole;
}

/** Whether a slot holds all of a payload. */
export const slotHolds = (image: Image, slot: SlotName, payload: Payload): boolean =>
  image.holds(SLOT_OFFSETS[slot], payload.bytes);
