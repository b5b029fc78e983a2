/**
 * Where everything stands on a card that is ours, and how it is told from one that is not.
 *
 * ```
 * 0        partition table (MBR), never rewritten after the first boot
 * 4 MiB    record 0     each record alone in an erase block, so that a card that spoils one spoils no other,
 * 8 MiB    record 1     and none shares a block with what must never change
 * 12 MiB   record 2
 * 16 MiB   record 3
 * 20 MiB   p1  FAT32, firmware, U-Boot, boot.scr, rescue, provisioning
 *          p2  slot a   p3  slot b   p4  data (ext4)
 * ```
 */
import type { BlockDevice } from "../hal/ports.ts";

/** The unit of everything on the disk, bytes. */
export const SECTOR = 512;
const MiB = 1024 * 1024;

/** A bootable root. */
export const SLOTS = ["a", "b"] as const;
export type SlotName = (typeof SLOTS)[number];

/** The one that is not this one. */
export const otherSlot = (slot: SlotName): SlotName => (slot === "a" ? "b" : "a");

/** Byte offsets of the four records on the disk. */
export const RECORD_OFFSETS = [4 * MiB, 8 * MiB, 12 * MiB, 16 * MiB] as const;
/** Where the first partition starts, bytes. */
export const FIRST_PARTITION = 20 * MiB;

/** What the disk is for, by the number of the partition. */
export const PARTITIONS = { boot: 1, a: 2, b: 3, data: 4 } as const;

/** MBR types: FAT32 with LBA, Linux. */
export const FAT32_LBA = 0x0c;
export const LINUX = 0x83;
/** MBR type of the one entry that guards a GPT from programs that do not know it (UEFI specification §5.2.3). */
const GPT_GUARD = 0xee;

/** One entry of the partition table; bytes from the start of the disk. */
export interface Partition {
  /** 1 to 4. */
  number: number;
  type: number;
  offset: number;
  bytes: number;
}

/**
 * The primary partitions of an MBR; undefined where the sector is none. Empty entries are left out.
 * Source: the classical MBR, entries of 16 bytes from 0x1BE, signature 55 AA.
 */
export function readPartitions(sector: Uint8Array): Partition[] | undefined {
  if (sector.length < SECTOR || sector[510] !== 0x55 || sector[511] !== 0xaa) return undefined;
  const view = new DataView(sector.buffer, sector.byteOffset, SECTOR);
  return [1, 2, 3, 4].flatMap((number) => {
    const at = 0x1be + (number - 1) * 16;
    const type = view.getUint8(at + 4);
    const offset = view.getUint32(at + 8, true) * SECTOR;
    const bytes = view.getUint32(at + 12, true) * SECTOR;
    return type === 0 || bytes === 0 ? [] : [{ number, type, offset, bytes }];
  });
}

/** A disk laid out as above. */
export interface Card {
  boot: Partition;
  slots: Record<SlotName, Partition>;
  data: Partition;
}

/** A disk that is not ours: what it looks like, and what its owner can do. Nothing on it is touched. */
export class ForeignCard extends Error {
  override name = "ForeignCard";
}

/** The card in a disk; reads it and nothing else. Throws `ForeignCard` where it is laid out otherwise. */
export async function readCard(disk: BlockDevice): Promise<Card> {
  const found = disk.bytes < SECTOR ? undefined : readPartitions(await disk.read(0, SECTOR));
  const flaws = found ? flawsOf(found, disk.bytes) : ["it has no partition table"];
  const partition = (number: number) => found?.find((one) => one.number === number);
  const [boot, a, b, data] = [1, 2, 3, 4].map(partition);
  if (flaws.length === 0 && boot && a && b && data) return { boot, slots: { a, b }, data };
  throw new ForeignCard(`${disk.name}: ${await looks(disk, found, flaws)}; nothing on it was changed`);
}

/** What is otherwise than on a card of ours. */
function flawsOf(found: readonly Partition[], diskBytes: number): string[] {
  let end = FIRST_PARTITION;
  return Object.entries(PARTITIONS).flatMap(([name, number]) => {
    const partition = found.find((one) => one.number === number);
    if (!partition) return [`partition ${number} (${name}) is missing`];
    const flaw = flawOf(partition, end, diskBytes);
    end = Math.max(end, partition.offset + partition.bytes);
    return flaw === undefined ? [] : [`partition ${number} (${name}) ${flaw}`];
  });
}

/** `end` is where the partitions before it end. */
function flawOf({ number, type, offset, bytes }: Partition, end: number, diskBytes: number) {
  const right = number === PARTITIONS.boot ? FAT32_LBA : LINUX;
  if (type !== right) return `has type ${hex(type)}, not ${hex(right)}`;
  if (number === PARTITIONS.boot && offset !== FIRST_PARTITION)
    return `starts at byte ${offset}, not ${FIRST_PARTITION}`;
  if (offset < end) return "overlaps what is before it";
  return offset + bytes > diskBytes ? `ends behind the disk's ${diskBytes} bytes` : undefined;
}

/** What a disk that is not ours looks like, and what to do. */
async function looks(
  disk: BlockDevice,
  found: readonly Partition[] | undefined,
  flaws: readonly string[],
): Promise<string> {
  if (await hasRecords(disk))
    return `once one of ours, but ${flaws.join(", ")}; copy what its data partition holds, if it can still be read, and write an image to it anew`;
  if (!found) return "no partition table; write an image made by 'bun run image' to it";
  if (found.some(({ type }) => type === GPT_GUARD))
    return "a GUID partition table, which a Pi 3 and older cannot start from; write an image made by 'bun run image' to it, or to another card";
  const labels = new Map<number, string>();
  for (const partition of found) labels.set(partition.number, await labelOf(disk, partition));
  const is = (number: number, ...names: string[]) => names.includes(labels.get(number) ?? "");
  const [, second, third] = [1, 2, 3].map((number) => found.find((one) => one.number === number));
  if (is(1, "FRUITOS") || (second && third && second.bytes === third.bytes && is(1, "FAT") && is(4, "btrfs")))
    return "FruitOS of 2018 (boot, two roots, data), whose U-Boot takes the roots in turn; it has no room for records and cannot be taken over: copy /data and fruit.json from it, and write an image made by 'bun run image' to another card";
  if (is(1, "boot", "bootfs") && is(2, "rootfs"))
    return "Raspberry Pi OS (boot, one root): there is no second slot; the agent runs on it without updates of the system, or write an image made by 'bun run image' to another card";
  const seen = found.map(({ number }) => `p${number} ${labels.get(number)}`).join(", ");
  return `not a card of ours (${seen}): ${flaws.join(", ")}; write an image made by 'bun run image' to another card`;
}

async function hasRecords(disk: BlockDevice): Promise<boolean> {
  for (const offset of RECORD_OFFSETS)
    if ((await bytesAt(disk, offset, 4)).toString("latin1") === "FRUB") return true;
  return false;
}

/** The name in a file system, or what kind it is. Sources: FAT specification §3.1 and §3.3, ext4's and btrfs's on-disk formats. */
async function labelOf(disk: BlockDevice, { type, offset }: Partition): Promise<string> {
  const start = await bytesAt(disk, offset, 2048);
  if (start.length === 2048 && start.readUInt16LE(510) === 0xaa55)
    for (const at of [82, 54])
      if (start.toString("latin1", at, at + 3) === "FAT")
        return name(start.subarray(at - 11, at)).replace("NO NAME", "") || "FAT";
  if (start.length === 2048 && start.readUInt16LE(1024 + 0x38) === 0xef53)
    return name(start.subarray(1024 + 0x78, 1024 + 0x88)) || "ext4";
  if (start.toString("latin1", 0, 4) === "hsqs") return "squashfs";
  if ((await bytesAt(disk, offset + 0x10040, 8)).toString("latin1") === "_BHRfS_M") return "btrfs";
  return `of type ${hex(type)}`;
}

/** What can be read of it; nothing where the disk ends or fails. */
async function bytesAt(disk: BlockDevice, offset: number, length: number): Promise<Buffer> {
  if (offset + length > disk.bytes) return Buffer.alloc(0);
  return Buffer.from(await disk.read(offset, length).catch(() => new Uint8Array()));
}

/** A name as a person may see it: what could move a terminal's cursor is left out. */
const name = (bytes: Uint8Array) =>
  Buffer.from(bytes)
    .toString("latin1")
    .replace(/[^ -~]/g, "")
    .trim();
const hex = (byte: number) => `0x${byte.toString(16).padStart(2, "0")}`;
