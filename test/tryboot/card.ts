/** A card laid out for tryboot, made in memory: a small writer of FAT32 and partition tables, for tests alone. */
import { crc32 } from "node:zlib";
import { encodeArea, layOut } from "../../boot/area.ts";
import { RECORD_OFFSETS, SECTOR, SLOTS, type SlotName } from "../../boot/layout.ts";
import { type BootRecord, encodeRecord, FORMAT } from "../../boot/record.ts";
import { makeAutoboot } from "../../boot/tryboot/autoboot.ts";
import { Image } from "../crash/disk.ts";
import { squashfs } from "../releases.ts";

const MiB = 1024 * 1024;

/** Where the partitions of the test card stand, bytes. */
export const PLACES = {
  selector: { offset: 20 * MiB, bytes: 16 * MiB },
  boot: { a: { offset: 36 * MiB, bytes: MiB / 4 }, b: { offset: 37 * MiB, bytes: MiB / 4 } },
  extended: { offset: 38 * MiB, bytes: 6 * MiB },
  root: { a: { offset: 39 * MiB, bytes: MiB / 2 }, b: { offset: 41 * MiB, bytes: MiB / 2 } },
  data: { offset: 43 * MiB, bytes: MiB },
  disk: 44 * MiB,
  /** The cluster of autoboot.txt, at the start of an area of its own. */
  autoboot: 28 * MiB,
} as const;

/** A file of a FAT; `at` asks for a place, bytes from the start of the partition. */
export interface FatFile {
  name: string;
  content: string | Uint8Array;
  at?: number;
}

/** A FAT32 as `mkfs.fat -F 32 -s 1` lays it out: clusters of one sector, two tables. */
export function makeFat(bytes: number, files: readonly FatFile[]): Uint8Array {
  if (files.length > 16) throw new RangeError("the root folder has one cluster, for 16 names");
  const tableSectors = Math.ceil(((bytes / SECTOR + 2) * 4) / SECTOR);
  const clustersAt = (RESERVED + 2 * tableSectors) * SECTOR;
  const disk = new Uint8Array(bytes);
  const view = new DataView(disk.buffer);
  putHead(view, tableSectors);
  const setNext = (cluster: number, next: number) => {
    for (const table of [0, 1])
      view.setUint32((RESERVED + table * tableSectors) * SECTOR + cluster * 4, next, true);
  };
  for (const [cluster, next] of [0x0fff_fff8, LAST, LAST].entries()) setNext(cluster, next);
  let free = 3;
  for (const [index, { name, content, at }] of files.entries()) {
    const data = typeof content === "string" ? Buffer.from(content, "latin1") : content;
    const count = Math.ceil(data.length / SECTOR);
    const first = at === undefined ? free : (at - clustersAt) / SECTOR + 2;
    if (at === undefined) free += count;
    disk.set(data, clustersAt + (first - 2) * SECTOR);
    for (let cluster = first; cluster < first + count; cluster++)
      setNext(cluster, cluster === first + count - 1 ? LAST : cluster + 1);
    putEntry(view, clustersAt + index * 32, { short: shortName(name), cluster: first, bytes: data.length });
  }
  return disk;
}

const RESERVED = 32;
const LAST = 0x0fff_ffff;

function putHead(view: DataView, tableSectors: number): void {
  const disk = new Uint8Array(view.buffer);
  for (const at of [0, 6 * SECTOR]) {
    disk.set([0xeb, 0x58, 0x90], at);
    disk.set(Buffer.from("mkfs.fat"), at + 3);
    view.setUint16(at + 11, SECTOR, true);
    view.setUint8(at + 13, 1);
    view.setUint16(at + 14, RESERVED, true);
    view.setUint8(at + 16, 2);
    view.setUint8(at + 21, 0xf8);
    view.setUint32(at + 32, disk.length / SECTOR, true);
    view.setUint32(at + 36, tableSectors, true);
    view.setUint32(at + 44, 2, true);
    view.setUint16(at + 48, 1, true);
    view.setUint16(at + 50, 6, true);
    disk.set([0x80, 0, 0x29, 1, 2, 3, 4], at + 64);
    disk.set(Buffer.from("NO NAME    FAT32   "), at + 71);
    view.setUint16(at + 510, 0xaa55, true);
  }
  view.setUint32(SECTOR, 0x4161_5252, true);
  view.setUint32(SECTOR + 484, 0x6141_7272, true);
  view.setUint32(SECTOR + 488, 0xffff_ffff, true);
  view.setUint32(SECTOR + 492, 0xffff_ffff, true);
  view.setUint16(SECTOR + 510, 0xaa55, true);
}

/** Writes a name into a folder; `short` has eleven characters. */
export function putEntry(
  view: DataView,
  at: number,
  { short, cluster, bytes }: { short: string; cluster: number; bytes: number },
): void {
  new Uint8Array(view.buffer, view.byteOffset).set(Buffer.from(short, "latin1"), at);
  view.setUint8(at + 11, 0x20);
  view.setUint16(at + 20, bytes > 0 ? cluster >>> 16 : 0, true);
  view.setUint16(at + 26, bytes > 0 ? cluster & 0xffff : 0, true);
  view.setUint32(at + 28, bytes, true);
}

/** `autoboot.txt` as eleven characters. */
export function shortName(name: string): string {
  const [base = "", extension = ""] = name.toUpperCase().split(".");
  return base.padEnd(8) + extension.padEnd(3);
}

/** A partition table with entries of type, offset and bytes; `from` is what offsets count from. */
export function makeTable(
  entries: readonly { type: number; offset: number; bytes: number }[],
  from = 0,
): Uint8Array {
  const sector = new Uint8Array(SECTOR);
  const view = new DataView(sector.buffer);
  for (const [index, { type, offset, bytes }] of entries.entries()) {
    const at = 0x1be + index * 16;
    sector[at + 4] = type;
    view.setUint32(at + 8, (offset - from) / SECTOR, true);
    view.setUint32(at + 12, bytes / SECTOR, true);
  }
  view.setUint16(510, 0xaa55, true);
  return sector;
}

/** The files of a boot set of system `system`; its `config.txt` is told apart by it too. */
export function bootSet(system: string, extra: readonly FatFile[] = []): FatFile[] {
  const config = `[all]\n# ${system}\narm_64bit=1\nkernel=kernel8.img\n`;
  return [
    { name: "start.elf", content: "start needs=3" },
    { name: "start4.elf", content: "start" },
    { name: "config.txt", content: config },
    { name: "tryboot.txt", content: config },
    { name: "kernel8.img", content: `kernel of ${system}` },
    { name: "initrd.img", content: `initramfs of ${system}` },
    { name: "cmdline.txt", content: "console=tty1 fruit.slot=a panic=10\n" },
    ...extra,
  ];
}

/** What a slot of system `system` holds, byte for byte: a payload, and its boot set as it is in slot a. */
export function systemOf(
  system: string,
  extra: readonly FatFile[] = [],
): { boot: Uint8Array; root: Uint8Array } {
  const boot = makeFat(PLACES.boot.a.bytes, bootSet(system, extra));
  const fat = Buffer.from(boot);
  const facts = (bytes: Uint8Array) => ({ bytes: bytes.length, crc32: crc32(bytes) });
  const [kernel, initramfs] = [Buffer.from(`kernel of ${system}`), Buffer.from(`initramfs of ${system}`)];
  const base = squashfs(2000, system.length);
  const laid = layOut(base.length, {
    ...{ kernel: facts(kernel), initramfs: facts(initramfs), deviceTrees: {} },
    fat: { ...facts(boot), kernelAt: fat.indexOf(kernel), initramfsAt: fat.indexOf(initramfs) },
  });
  const root = new Uint8Array(PLACES.root.a.bytes);
  root.set(base);
  root.set(encodeArea({ version: 2n, name: system, ...laid }), laid.headerAt);
  root.set(boot, laid.boot.fat?.offset);
  return { boot, root };
}

/** A boot set as it is in a slot. */
function ofSlot(boot: Uint8Array, slot: SlotName): Uint8Array {
  const own = Buffer.from(boot);
  own.write(slot, own.indexOf("fruit.slot=") + "fruit.slot=".length);
  return own;
}

/** The record of a new card: a is good, b holds nothing. */
export const FRESH: BootRecord = {
  format: FORMAT,
  sequence: 1,
  primary: "a",
  confirmed: 0,
  reason: "built",
  time: 0,
  floor: 1n,
  slots: {
    a: { state: "good", reason: "none", version: 1n, hash: "a".repeat(32), payloadBytes: MiB },
    b: { state: "empty", reason: "none", version: 0n, hash: "0".repeat(32), payloadBytes: 0 },
  },
};

/** Both slots hold system `old`, `record` is in the first place, the firmware starts from `primary`. */
export function makeCard(
  options: { selector?: readonly FatFile[]; record?: BootRecord; a?: string; b?: string } = {},
): Image {
  const { record = FRESH, a = "old", b = "" } = options;
  const image = new Image(PLACES.disk);
  const { selector, boot, root, extended, data } = PLACES;
  image.write(
    0,
    makeTable([
      { type: 0x0c, ...selector },
      { type: 0x0c, ...boot.a },
      { type: 0x0c, ...boot.b },
      { type: 0x0f, ...extended },
    ]),
  );
  const links = [extended.offset, root.b.offset - MiB, data.offset - MiB];
  for (const [index, place] of [root.a, root.b, data].entries()) {
    const [at = 0, next] = [links[index], links[index + 1]];
    const table = makeTable([{ type: 0x83, ...place }], at);
    if (next !== undefined) {
      const link = makeTable(
        [
          { type: 0, offset: 0, bytes: 0 },
          { type: 0x05, offset: next, bytes: 2 * MiB },
        ],
        extended.offset,
      );
      table.set(link.subarray(0x1ce, 0x1de), 0x1ce);
    }
    image.write(at, table);
  }
  image.write(selector.offset, makeFat(selector.bytes, options.selector ?? selectorFiles(record.primary)));
  for (const slot of SLOTS) {
    const system = { a, b }[slot];
    if (system) putSystem(image, slot, systemOf(system));
  }
  image.write(RECORD_OFFSETS[0], encodeRecord(record));
  return image;
}

/** What stands on the first partition. */
export function selectorFiles(primary: SlotName): FatFile[] {
  return [
    { name: "bootcode.bin", content: "bootcode version=5" },
    { name: "start.elf", content: "start needs=3" },
    { name: "start4.elf", content: "start" },
    { name: "config.txt", content: "kernel=rescue.img\n" },
    { name: "tryboot.txt", content: "kernel=rescue.img\n" },
    { name: "rescue.img", content: "kernel of rescue" },
    { name: "autoboot.txt", content: makeAutoboot(primary), at: PLACES.autoboot - PLACES.selector.offset },
  ];
}

/** Writes a system into a slot. */
export function putSystem(
  disk: { write(offset: number, bytes: Uint8Array): unknown },
  slot: SlotName,
  { boot, root }: ReturnType<typeof systemOf>,
): void {
  disk.write(PLACES.root[slot].offset, root);
  disk.write(PLACES.boot[slot].offset, ofSlot(boot, slot));
}

const WHOLE: Record<string, ReturnType<typeof systemOf>> = {};

/** Which of some systems a slot holds, byte for byte; undefined where it is none of them whole. */
export function wholeSystem(image: Image, slot: SlotName, systems: readonly string[]): string | undefined {
  const held = (place: { offset: number; bytes: number }) =>
    Buffer.from(image.read(place.offset, place.bytes));
  const [boot, root] = [held(PLACES.boot[slot]), held(PLACES.root[slot])];
  return systems.find((system) => {
    WHOLE[system] ??= systemOf(system);
    const want = WHOLE[system];
    return boot.equals(ofSlot(want.boot, slot)) && root.equals(want.root);
  });
}
