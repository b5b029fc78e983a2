/**
 * The boot area of a slot: what follows the squashfs root, so that U-Boot, which reads no squashfs, finds kernel, initramfs and
 * device trees by their place. Its header tells what is there, so that the rescue can rebuild a record from the slot alone.
 *
 * ```
 * 0                      squashfs, the kernel mounts it in place and ignores what follows
 * bytes_used ↑ 4096      header, 4096 bytes
 *                        kernel, initramfs, device trees, each from a multiple of 4096; zeros between them and to the end
 * ```
 *
 * Where the firmware chooses the slot (`tryboot/bootset.ts`), one entry `fat` takes their place: the FAT that goes into the slot's boot
 * partition as it is. The entries of kernel and initramfs then say where in it those files stand, at multiples of 512.
 *
 * | offset | bytes | what of the header (little-endian, but for the CRCs) |
 * |---|---|---|
 * | 0x000 | 4 | magic `FRBA` |
 * | 0x004 | 4 | format, 1 |
 * | 0x008 | 8 | version of the release |
 * | 0x010 | 8 | bytes of the whole payload, this header's slot content |
 * | 0x018 | 4 | number of entries, at most 49 |
 * | 0x01c | 4 | zero |
 * | 0x020 | 64 | name of the release, printable ASCII, zeros behind |
 * | 0x060 | 32 | zero |
 * | 0x080 | 80 each | entry: name (64, as above), offset in the slot (8), bytes (4), CRC-32 (4, big-endian); zeros after the last |
 * | 0xffc | 4 | CRC-32 of all before it, big-endian as in a record |
 */
import { crc32 } from "node:zlib";
import type { Release } from "./content.ts";
import { SECTOR } from "./layout.ts";
import type { BootFile } from "./record.ts";

/** Bytes of the header, and what every file of the boot area is aligned to. */
export const AREA_ALIGN = 4096;
/** Most device trees one payload can hold. */
export const MAX_DEVICE_TREES = 47;

const FORMAT = 1;
const MAGIC = 0x4142_5246; // "FRBA"
const NAME_BYTES = 64;
const ENTRIES_AT = 0x80;
const ENTRY_BYTES = 80;
const CRC_AT = 0xffc;
const NAME = /^[\x21-\x7e]+$/;
/** In front of a board's name in an entry. */
const DEVICE_TREE = "dtb:";
const FAT = "fat";
/** Linux, `fs/squashfs/squashfs_fs.h`: `struct squashfs_super_block`. */
const SQUASHFS = { magic: 0x7371_7368, versionAt: 28, bytesUsedAt: 40, bytes: 96 };

/** What the header of a boot area says. */
export interface BootArea {
  version: bigint;
  name: string;
  /** Bytes of the payload it stands in. */
  payloadBytes: number;
  boot: Release["boot"];
}

/** A boot area that is missing or damaged: which disk, where, what. */
export class AreaError extends Error {
  override name = "AreaError";
}

/** What can be read at a place: a disk, a partition, a file. */
export interface Readable {
  readonly name: string;
  readonly bytes: number;
  read(offset: number, length: number): Promise<Uint8Array>;
}

/** The next multiple of 4096. */
export const aligned = (bytes: number): number => Math.ceil(bytes / AREA_ALIGN) * AREA_ALIGN;

/** A FAT that goes into a boot area, and where in it the kernel and the initramfs stand. */
export type FatFacts = FileFacts & { kernelAt: number; initramfsAt: number };

/**
 * Where everything of a payload goes, from the sizes: the header at `headerAt`, the files behind it in the order given, the end
 * at `payloadBytes`. Device trees by the `compatible` string of the board they are for.
 */
export function layOut(
  rootBytes: number,
  files: {
    kernel: FileFacts;
    initramfs: FileFacts;
    deviceTrees: Readonly<Record<string, FileFacts>>;
    fat?: FatFacts;
  },
): { headerAt: number; payloadBytes: number; boot: Release["boot"] } {
  const headerAt = aligned(rootBytes);
  let next = headerAt + AREA_ALIGN;
  const place = ({ bytes, crc32 }: FileFacts): BootFile => {
    const offset = next;
    next = aligned(next + bytes);
    return { offset, bytes, crc32 };
  };
  if (files.fat) {
    const fat = place(files.fat);
    const kernel = { ...files.kernel, offset: fat.offset + files.fat.kernelAt };
    const initramfs = { ...files.initramfs, offset: fat.offset + files.fat.initramfsAt };
    return { headerAt, payloadBytes: next, boot: { kernel, initramfs, deviceTrees: {}, fat } };
  }
  const kernel = place(files.kernel);
  const initramfs = place(files.initramfs);
  const boards = Object.keys(files.deviceTrees).sort();
  const deviceTrees = Object.fromEntries(
    boards.flatMap((board) => {
      const facts = files.deviceTrees[board];
      return facts ? [[board, place(facts)]] : [];
    }),
  );
  return { headerAt, payloadBytes: next, boot: { kernel, initramfs, deviceTrees } };
}

/** Size and CRC-32 of a file that goes into a boot area. */
export type FileFacts = Omit<BootFile, "offset">;

/** Writes the header, 4096 bytes. Throws `RangeError` for what it has no room for. */
export function encodeArea({ version, name, payloadBytes, boot }: BootArea): Uint8Array {
  const boards = Object.entries(boot.deviceTrees).sort(([a], [b]) => (a < b ? -1 : 1));
  if (boards.length > MAX_DEVICE_TREES)
    throw new RangeError(`${boards.length} device trees; a boot area has room for ${MAX_DEVICE_TREES}`);
  const entries: [string, BootFile][] = [
    ["kernel", boot.kernel],
    ["initramfs", boot.initramfs],
    ...(boot.fat ? [[FAT, boot.fat] as [string, BootFile]] : []),
    ...boards.map(([board, file]): [string, BootFile] => [DEVICE_TREE + board, file]),
  ];
  const bytes = new Uint8Array(AREA_ALIGN);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, MAGIC, true);
  view.setUint32(4, FORMAT, true);
  view.setBigUint64(0x08, version, true);
  view.setBigUint64(0x10, BigInt(payloadBytes), true);
  view.setUint32(0x18, entries.length, true);
  writeName(bytes, 0x20, name);
  for (const [index, [entry, file]] of entries.entries()) {
    const at = ENTRIES_AT + index * ENTRY_BYTES;
    writeName(bytes, at, entry);
    view.setBigUint64(at + 64, BigInt(file.offset), true);
    view.setUint32(at + 72, file.bytes, true);
    view.setUint32(at + 76, file.crc32);
  }
  view.setUint32(CRC_AT, crc32(bytes.subarray(0, CRC_AT)));
  return bytes;
}

/** The header in 4096 bytes, or why there is none. */
export function decodeArea(bytes: Uint8Array): BootArea | string {
  if (bytes.length !== AREA_ALIGN) return `${bytes.length} bytes, not ${AREA_ALIGN}`;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const magic = view.getUint32(0, true);
  if (magic !== MAGIC) return `no boot area: it begins with 0x${hex(magic)}`;
  const [stored, right] = [view.getUint32(CRC_AT), crc32(bytes.subarray(0, CRC_AT))];
  if (stored !== right) return `damaged: CRC-32 ${hex(stored)}, its bytes have ${hex(right)}`;
  const format = view.getUint32(4, true);
  if (format !== FORMAT) return `format ${format}; this agent knows ${FORMAT}`;
  const payloadBytes = Number(view.getBigUint64(0x10, true));
  const name = readName(bytes, 0x20);
  if (!Number.isSafeInteger(payloadBytes)) return `a payload of ${payloadBytes} bytes`;
  if (name === undefined) return "the name of the release is no text";
  const boot = readEntries(bytes, view);
  if (typeof boot === "string") return boot;
  const area = { version: view.getBigUint64(0x08, true), name, payloadBytes, boot };
  const why = misplaced(boot, payloadBytes);
  if (why !== undefined) return why;
  return Buffer.from(encodeArea(area)).equals(bytes) ? area : "not written as this agent would write it";
}

/**
 * Why boot files cannot stand where they are said to: outside the payload or their FAT, over each other, off their alignment, empty,
 * or before byte `from`; undefined when they can.
 */
export function misplaced(
  { fat, ...boot }: Release["boot"],
  payloadBytes: number,
  from = AREA_ALIGN,
): string | undefined {
  const room = { name: `the payload of ${payloadBytes}`, end: payloadBytes, align: AREA_ALIGN };
  const root = { what: "the root", end: from };
  const files = [
    ["the kernel", boot.kernel] as const,
    ["the initramfs", boot.initramfs] as const,
    ...Object.entries(boot.deviceTrees).map(
      ([board, file]) => [`the device tree of ${board}`, file] as const,
    ),
  ].sort(([, a], [, b]) => a.offset - b.offset);
  if (!fat) return unfit(files, root, room);
  const end = fat.offset + fat.bytes;
  const within = { name: `the FAT that ends at ${end}`, end, align: SECTOR };
  if (fat.bytes % AREA_ALIGN !== 0) return `the FAT has ${fat.bytes} bytes, no multiple of ${AREA_ALIGN}`;
  const start = { what: "what is before the FAT", end: fat.offset };
  return unfit([["the FAT", fat]], root, room) ?? unfit(files, start, within);
}

/** The first of some files, in their order, that does not stand behind the one before it and in its room. */
function unfit(
  files: readonly (readonly [what: string, file: BootFile])[],
  start: { what: string; end: number },
  room: { name: string; end: number; align: number },
): string | undefined {
  let before = start;
  for (const [what, { offset, bytes }] of files) {
    if (bytes === 0) return `${what} is empty`;
    if (offset % room.align !== 0)
      return `${what} is at byte ${offset}, which is no multiple of ${room.align}`;
    if (offset < before.end) return `${what} begins at byte ${offset}, inside ${before.what}`;
    if (offset + bytes > room.end) return `${what} ends at byte ${offset + bytes}, outside ${room.name}`;
    before = { what, end: offset + bytes };
  }
  return undefined;
}

/** Finds the boot area behind the squashfs that begins at byte `from` of a disk, or of a payload. Throws `AreaError`. */
export async function findArea(
  disk: Readable,
  from = 0,
  limit = disk.bytes - from,
): Promise<BootArea & { offset: number }> {
  const where = `${disk.name}: byte ${from}`;
  if (limit < SQUASHFS.bytes) throw new AreaError(`${where}: ${limit} bytes are no payload`);
  const used = squashfsBytes(await disk.read(from, SQUASHFS.bytes));
  if (used === undefined) throw new AreaError(`${where}: no squashfs begins there`);
  const offset = aligned(used);
  if (offset + AREA_ALIGN > limit)
    throw new AreaError(
      `${where}: the squashfs of ${used} bytes leaves no room for a boot area within ${limit}`,
    );
  const area = decodeArea(await disk.read(from + offset, AREA_ALIGN));
  if (typeof area === "string") throw new AreaError(`${disk.name}: byte ${from + offset}: ${area}`);
  const why = misplaced(area.boot, area.payloadBytes, offset + AREA_ALIGN);
  if (why !== undefined) throw new AreaError(`${disk.name}: byte ${from + offset}: ${why}`);
  if (area.payloadBytes > limit)
    throw new AreaError(`${where}: the payload has ${area.payloadBytes} bytes, ${limit} are there`);
  return { ...area, offset };
}

/** How long the squashfs is that begins with these bytes, or undefined where none does. */
export function squashfsBytes(superblock: Uint8Array): number | undefined {
  if (superblock.length < SQUASHFS.bytes) return undefined;
  const view = new DataView(superblock.buffer, superblock.byteOffset, superblock.byteLength);
  if (view.getUint32(0, true) !== SQUASHFS.magic || view.getUint16(SQUASHFS.versionAt, true) !== 4)
    return undefined;
  const used = Number(view.getBigUint64(SQUASHFS.bytesUsedAt, true));
  return Number.isSafeInteger(used) && used >= SQUASHFS.bytes ? used : undefined;
}

function readEntries(bytes: Uint8Array, view: DataView): Release["boot"] | string {
  const count = view.getUint32(0x18, true);
  if (count < 2 || count > MAX_DEVICE_TREES + 2) return `${count} entries, not 2 to ${MAX_DEVICE_TREES + 2}`;
  const files = new Map<string, BootFile>();
  for (let index = 0; index < count; index++) {
    const at = ENTRIES_AT + index * ENTRY_BYTES;
    const name = readName(bytes, at);
    if (name === undefined) return `the name of entry ${index} is no text`;
    const offset = Number(view.getBigUint64(at + 64, true));
    files.set(name, { offset, bytes: view.getUint32(at + 72, true), crc32: view.getUint32(at + 76) });
  }
  const { kernel, initramfs, [FAT]: fat, ...rest } = Object.fromEntries(files);
  if (!kernel || !initramfs) return `no ${kernel ? "initramfs" : "kernel"} among its entries`;
  const strange = Object.keys(rest).find((name) => !name.startsWith(DEVICE_TREE));
  if (strange !== undefined) return `an entry "${strange}" is unknown`;
  const deviceTrees = Object.entries(rest).map(([name, file]) => [name.slice(DEVICE_TREE.length), file]);
  return { kernel, initramfs, deviceTrees: Object.fromEntries(deviceTrees), ...(fat ? { fat } : {}) };
}

function writeName(bytes: Uint8Array, at: number, name: string): void {
  if (name.length > NAME_BYTES || !NAME.test(name))
    throw new RangeError(
      `"${name}": a name here is 1 to ${NAME_BYTES} printable ASCII characters without a space`,
    );
  bytes.set(Buffer.from(name), at);
}

function readName(bytes: Uint8Array, at: number): string | undefined {
  const field = Buffer.from(bytes.subarray(at, at + NAME_BYTES)).toString("latin1");
  const name = field.replace(/\0.*$/s, "");
  return NAME.test(name) ? name : undefined;
}

const hex = (word: number) => word.toString(16).padStart(8, "0");
