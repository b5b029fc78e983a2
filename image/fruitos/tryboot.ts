/** What only a card has on which the firmware chooses the slot: boot sets, and a sector of autoboot.txt that stands alone. */
import { closeSync, openSync, readSync } from "node:fs";
import { FAT32_LBA, SECTOR, type SlotName } from "../../boot/layout.ts";
import { AUTOBOOT } from "../../boot/tryboot/autoboot.ts";
import { fillBootSet } from "../../boot/tryboot/bootset.ts";
import { Fat } from "../../boot/tryboot/fat.ts";
import { readTrybootCard } from "../../boot/tryboot/layout.ts";
import { checkBootSet, findAutoboot } from "../../boot/tryboot/sector.ts";
import { openDisk } from "../../hal/disk.ts";
import { ALIGNMENT, writeAt } from "./card.ts";
import { fatBytesOf, makeFat } from "./filesystems.ts";
import { INITRAMFS, KERNEL } from "./models.ts";
import { BuildError } from "./tools.ts";
import type { Content } from "./tree.ts";

/** Makes a boot set that is as large as it must be, and finds kernel and initramfs in it. */
export async function makeBootSet(
  path: string,
  options: { id: number; time: number; files: ReadonlyMap<string, Content> },
): Promise<{ path: string; kernelAt: number; initramfsAt: number }> {
  const bytes = Math.ceil(fatBytesOf(options.files) / ALIGNMENT) * ALIGNMENT;
  await makeFat(path, { ...options, bytes, label: "FRUIT-SLOT" });
  const disk = await openDisk(path, "read");
  try {
    const fat = await Fat.open(disk, { number: 1, type: FAT32_LBA, offset: 0, bytes });
    const { entries } = await fat.root();
    const placeOf = (wanted: string) => {
      const clusters = fat.chain(entries.find(({ name }) => name === wanted)?.cluster ?? 0, wanted);
      const [first = 0] = clusters;
      if (clusters.every((cluster, index) => cluster === first + index)) return fat.offsetOf(first);
      throw new BuildError(`${path}: ${wanted} is in pieces`);
    };
    return { path, kernelAt: placeOf(KERNEL), initramfsAt: placeOf(INITRAMFS) };
  } finally {
    await disk.close();
  }
}

/**
 * Moves autoboot.txt to the beginning of the partition's last 4 MiB, and marks what else is there as bad: nobody writes where a power
 * cut could take the sector along. Source: Microsoft, "FAT: General Overview of On-Disk Format" 1.03.
 */
export async function setApart(path: string): Promise<void> {
  const disk = await openDisk(path, "read");
  const fat = await Fat.open(disk, { number: 1, type: FAT32_LBA, offset: 0, bytes: disk.bytes }).finally(() =>
    disk.close(),
  );
  const fd = openSync(path, "r+");
  const read = (at: number, length: number) => {
    const bytes = Buffer.alloc(length);
    readSync(fd, bytes, 0, length, at);
    return bytes;
  };
  try {
    const head = read(0, SECTOR);
    const [reserved, copies, table] = [head.readUInt16LE(14), head[16] ?? 0, head.readUInt32LE(36) * SECTOR];
    const put = (cluster: number, ...values: number[]) => {
      const bytes = Buffer.alloc(values.length * 4);
      for (const [index, value] of values.entries()) bytes.writeUInt32LE(value, index * 4);
      for (let copy = 0; copy < copies; copy++)
        writeAt(fd, bytes, reserved * SECTOR + copy * table + cluster * 4);
    };
    const entryAt = fat
      .chain(head.readUInt32LE(44), "the root folder")
      .flatMap((cluster) =>
        Array.from({ length: fat.clusterBytes / 32 }, (_, row) => fat.offsetOf(cluster) + row * 32),
      )
      .find((at) => read(at, 11).toString("latin1") === "AUTOBOOTTXT");
    if (entryAt === undefined) throw new BuildError(`${path}: no ${AUTOBOOT} in its root folder`);
    const entry = read(entryAt, 32);
    const old = entry.readUInt16LE(20) * 0x1_0000 + entry.readUInt16LE(26);
    const area = disk.bytes - ALIGNMENT;
    const own = 2 + Math.ceil((area - fat.offsetOf(2)) / fat.clusterBytes);
    for (let cluster = own; cluster <= fat.lastCluster; cluster++)
      if (fat.next(cluster) !== 0)
        throw new BuildError(`${path}: its last 4 MiB are in use: it is too small`);
    const content = read(fat.offsetOf(old), fat.clusterBytes);
    writeAt(fd, new Uint8Array(content.length), fat.offsetOf(old));
    writeAt(fd, content, fat.offsetOf(own));
    put(old, 0);
    put(own, LAST, ...Array.from({ length: fat.lastCluster - own }, () => BAD));
    entry.writeUInt16LE(own >>> 16, 20);
    entry.writeUInt16LE(own & 0xffff, 26);
    writeAt(fd, entry, entryAt);
    const freeAt = head.readUInt16LE(48) * SECTOR + 488;
    const free = Buffer.alloc(4);
    free.writeUInt32LE(read(freeAt, 4).readUInt32LE() - (fat.lastCluster - own));
    writeAt(fd, free, freeAt);
  } finally {
    closeSync(fd);
  }
}

const LAST = 0x0fff_ffff;
const BAD = 0x0fff_fff7;

/** Fills the boot partitions of a card's slots from their payloads, as an install does, and looks at it all as a node would. */
export async function finishTrybootCard(path: string, slots: readonly SlotName[]): Promise<void> {
  const disk = await openDisk(path, "write");
  try {
    const card = await readTrybootCard(disk);
    for (const slot of slots) await fillBootSet(disk, card.slots[slot], slot);
    const { signs } = await findAutoboot(disk, card.selector);
    const places = [card.selector, ...slots.map((slot) => card.slots[slot].boot)];
    const problems = await Promise.all(places.map((place) => checkBootSet(disk, place)));
    const [problem] = [...signs, ...problems.filter((one) => one !== undefined)];
    if (problem !== undefined) throw new BuildError(problem);
  } finally {
    await disk.close();
  }
}
