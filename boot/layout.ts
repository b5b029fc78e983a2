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
