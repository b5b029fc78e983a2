/** The whole card as a sparse file: partition table, records, partitions. */
import { createHash } from "node:crypto";
import { closeSync, openSync, readSync, statSync, truncateSync, writeSync } from "node:fs";
import {
  FAT32_LBA,
  FIRST_PARTITION,
  LINUX,
  PARTITIONS,
  type Partition,
  RECORD_OFFSETS,
  SECTOR,
} from "../../boot/layout.ts";
import { type BootRecord, encodeRecord } from "../../boot/record.ts";
import { EXTENDED_LBA, TRYBOOT_PARTITIONS } from "../../boot/tryboot/layout.ts";
import { BuildError } from "./tools.ts";

/** Partitions start at multiples of this, an erase block of a card. */
export const ALIGNMENT = 4 << 20;
/** What is read at once, and the unit in which nothing but zeros is left a hole. */
export const CHUNK = 4 << 20;

/** Sizes of the partitions, bytes. */
export interface Sizes {
  boot: number;
  slot: number;
  data: number;
}

/** The four partitions of a card of these sizes. */
export const partitionsOf = ({ boot, slot, data }: Sizes): Partition[] =>
  laidOut(FIRST_PARTITION, 0, [
    [PARTITIONS.boot, FAT32_LBA, boot],
    [PARTITIONS.a, LINUX, slot],
    [PARTITIONS.b, LINUX, slot],
    [PARTITIONS.data, LINUX, data],
  ]);

/** The seven of a card of tryboot, whose first three have the same size; in front of each logical one is room for its table. */
export function trybootPartitionsOf({ boot: bytes, slot, data }: Sizes): Partition[] {
  const { selector, boot, extended, root, data: last } = TRYBOOT_PARTITIONS;
  const primary = laidOut(FIRST_PARTITION, 0, [
    [selector, FAT32_LBA, bytes],
    [boot.a, FAT32_LBA, bytes],
    [boot.b, FAT32_LBA, bytes],
  ]);
  const offset = endOf(primary);
  const logical = laidOut(offset, ALIGNMENT, [
    [root.a, LINUX, slot],
    [root.b, LINUX, slot],
    [last, LINUX, data],
  ]);
  return [
    ...primary,
    { number: extended, type: EXTENDED_LBA, offset, bytes: endOf(logical) - offset },
    ...logical,
  ];
}

const endOf = (partitions: readonly Partition[]) =>
  Math.max(...partitions.map(({ offset, bytes }) => offset + bytes));

/** Partitions of number, type and size one behind the other, with a gap in front of each. */
function laidOut(
  from: number,
  gap: number,
  wanted: readonly (readonly [number: number, type: number, bytes: number])[],
): Partition[] {
  let offset = from;
  return wanted.map(([number, type, bytes]) => {
    if (bytes <= 0 || bytes % ALIGNMENT !== 0)
      throw new BuildError(`partition ${number} has ${bytes} bytes, not a multiple of ${ALIGNMENT}`);
    const partition = { number, type, offset: offset + gap, bytes };
    offset += gap + bytes;
    return partition;
  });
}

/** The tables of a card by their offsets: that in the first sector, and one in front of each logical partition. `id` is its disk signature. */
export function partitionTables(partitions: readonly Partition[], id: number): [number, Uint8Array][] {
  const logical = partitions.filter(({ number }) => number > 4);
  const first = tableOf(partitions.filter(({ number }) => number <= 4));
  new DataView(first.buffer).setUint32(0x1b8, id, true);
  const start = partitions.find(({ type }) => type === EXTENDED_LBA)?.offset ?? 0;
  return [
    [0, first],
    ...logical.map((own, index): [number, Uint8Array] => {
      const at = own.offset - ALIGNMENT;
      const next = logical[index + 1];
      // The link counts from the start of the extended partition, its own from here
      const from = next && next.offset - ALIGNMENT;
      const link = next && { type: 0x05, offset: (from ?? 0) - start, bytes: ALIGNMENT + next.bytes };
      const rows = [{ ...own, number: 1, offset: ALIGNMENT }, ...(link ? [{ ...link, number: 2 }] : [])];
      return [at, tableOf(rows, false)];
    }),
  ];
}

/** One table; a row is the number of its partition. */
function tableOf(partitions: readonly Partition[], hasActive = true): Uint8Array {
  const sector = new Uint8Array(SECTOR);
  const view = new DataView(sector.buffer);
  for (const { number, type, offset, bytes } of partitions) {
    const at = 0x1be + (number - 1) * 16;
    if ((offset + bytes) / SECTOR > 0xffff_ffff)
      throw new BuildError(
        `partition ${number} ends at byte ${offset + bytes}, past what a partition table can say`,
      );
    view.setUint8(at, hasActive && number === PARTITIONS.boot ? 0x80 : 0);
    // Cylinders, heads and sectors say "ask the numbers below", as every tool writes it since cards outgrew them
    sector.set([0xfe, 0xff, 0xff], at + 1);
    view.setUint8(at + 4, type);
    sector.set([0xfe, 0xff, 0xff], at + 5);
    view.setUint32(at + 8, offset / SECTOR, true);
    view.setUint32(at + 12, bytes / SECTOR, true);
  }
  sector.set([0x55, 0xaa], 510);
  return sector;
}

/** Four bytes of a hash, for ids that must be there and mean nothing. */
export function idOf(text: string): number {
  return createHash("sha256").update(text).digest().readUInt32BE() || 1;
}

/** Writes the card; `contents` are files by the number of the partition. The four records are the same but for their numbers, 1 to 4. */
export function writeCard(
  out: string,
  options: {
    partitions: readonly Partition[];
    id: number;
    record: BootRecord;
    contents: Readonly<Record<number, string>>;
  },
): void {
  const { partitions, id, record, contents } = options;
  const fd = openSync(out, "w");
  try {
    truncateSync(out, endOf(partitions));
    for (const [offset, table] of partitionTables(partitions, id)) writeAt(fd, table, offset);
    for (const [index, offset] of RECORD_OFFSETS.entries())
      writeAt(fd, encodeRecord({ ...record, sequence: index + 1 }), offset);
    for (const { number, offset, bytes } of partitions) {
      const file = contents[number];
      if (file !== undefined) copyInto(fd, file, offset, bytes);
    }
  } finally {
    closeSync(fd);
  }
}

function copyInto(fd: number, file: string, offset: number, room: number): void {
  const { size } = statSync(file);
  if (size > room) throw new BuildError(`${file} has ${size} bytes, its partition ${room}`);
  for (const [at, chunk] of chunksOf(file)) {
    // In 64 KiB pieces, so that holes stay holes
    for (let from = 0; from < chunk.length; from += 65_536) {
      const piece = chunk.subarray(from, from + 65_536);
      if (!isZero(piece)) writeAt(fd, piece, offset + at + from);
    }
  }
}

/** Writes all of `bytes` at an offset. */
export function writeAt(fd: number, bytes: Uint8Array, offset: number): void {
  for (let at = 0; at < bytes.length; ) at += writeSync(fd, bytes, at, bytes.length - at, offset + at);
}

/** A file piece by piece, with where each starts. The array is used again for the next. */
export function* chunksOf(file: string, length = CHUNK): Generator<[number, Buffer]> {
  const fd = openSync(file, "r");
  const buffer = Buffer.allocUnsafe(length);
  try {
    for (let at = 0; ; ) {
      let got = 0;
      while (got < length) {
        const more = readSync(fd, buffer, got, length - got, at + got);
        if (more === 0) break;
        got += more;
      }
      if (got === 0) return;
      yield [at, buffer.subarray(0, got)];
      at += got;
    }
  } finally {
    closeSync(fd);
  }
}

const ZEROS = Buffer.alloc(CHUNK);

/** Whether these bytes, at most `CHUNK`, are all zero. */
export const isZero = (bytes: Buffer): boolean => bytes.equals(ZEROS.subarray(0, bytes.length));
