/** The slot that is written, opened so that nobody else can write there or has it mounted. */
import { type Stats, statSync } from "node:fs";
import type { Partition } from "../../boot/layout.ts";
import { type BlockDevice, type Hal, HalError, type Machine } from "../../hal/ports.ts";

/**
 * Opens one partition of a disk exclusively: by its own device, since a disk is held as long as any of its partitions is mounted;
 * of a file or a disk that has none, that stretch. Throws `HalError`: busy, naming who is there; refused where the kernel knows
 * the partition otherwise, and for a disk that cannot be read past the cache; what `Hal.openDisk` does.
 */
export async function openSlot(
  hal: Pick<Hal, "openDisk" | "machine">,
  disk: Pick<BlockDevice, "name">,
  partition: Partition,
): Promise<BlockDevice> {
  const { number, offset, bytes } = partition;
  const stats = statSync(disk.name);
  const isDisk = stats.isBlockDevice();
  const known = isDisk ? kernelPartition(hal.machine, stats, number) : undefined;
  const path = known?.path ?? disk.name;
  if (known && (known.offset !== offset || known.bytes !== bytes))
    throw new HalError(
      "refused",
      `${path} is ${known.bytes} bytes from ${known.offset}, the partition table on ${disk.name} says ${bytes} from ${offset}: start this node anew`,
    );
  const over = loopOver(hal.machine, [
    ...(known ? [{ path, from: 0, to: bytes }] : []),
    { path: disk.name, from: offset, to: offset + bytes },
  ]);
  if (over !== undefined) throw new HalError("busy", `${path} cannot be written: ${over} is set up over it`);
  const opened = await hal.openDisk(path, "exclusive").catch((error: unknown) => {
    throw mountedAt(hal.machine, path, error);
  });
  const device = known ? opened : stretch(opened, partition);
  try {
    if (isDisk) await expectPastCache(device);
    if (device.bytes === bytes) return device;
    throw new HalError("refused", `${path} has ${device.bytes} bytes, not ${bytes}: start this node anew`);
  } catch (error) {
    await device.close();
    throw error;
  }
}

/**
 * Where a process that gets no more than a partition of a card reads it: its own device, or that stretch of a file. Undefined where
 * the kernel has no device for it: whoever got the disk would get all of it.
 */
export function sliceOf(
  machine: Hal["machine"],
  disk: Pick<BlockDevice, "name">,
  { number, offset }: Partition,
): { path: string; at: number } | undefined {
  const stats = statSync(disk.name);
  if (!stats.isBlockDevice()) return { path: disk.name, at: offset };
  const known = kernelPartition(machine, stats, number);
  return known?.offset === offset ? { path: known.path, at: 0 } : undefined;
}

/** What is read back of a card must be what the card holds. */
async function expectPastCache(device: BlockDevice): Promise<void> {
  await device.readMedium(0, 4096);
  if (device.pastCache === "never")
    throw new HalError(
      "refused",
      `${device.name}: it cannot be read past the kernel's cache, so nobody could say what is on it; nothing was written`,
    );
}

/**
 * A partition as the kernel has it, found by the number of its disk, whatever names there are; undefined where it has none.
 * Source: the kernel's Documentation/ABI/stable/sysfs-block, `start` and `size` in sectors of 512 bytes.
 */
function kernelPartition(
  machine: Pick<Machine, "read" | "list">,
  { rdev }: Stats,
  number: number,
): { path: string; offset: number; bytes: number } | undefined {
  // gnu_dev_major and gnu_dev_minor of sys/sysmacros.h, as far as Linux numbers disks (32 bits)
  const disk = `/sys/dev/block/${(rdev >>> 8) & 0xfff}:${(rdev & 0xff) | ((rdev >>> 12) & 0xfff00)}`;
  const name = machine
    .list(disk)
    .find((one) => textOf(machine, `${disk}/${one}/partition`) === String(number));
  if (name === undefined) return undefined;
  const sectors = (fact: string) => Number(textOf(machine, `${disk}/${name}/${fact}`)) * 512;
  // As the kernel names it below /dev, which is not always its name in /sys
  const node = /^DEVNAME=(.+)$/m.exec(textOf(machine, `${disk}/${name}/uevent`))?.[1] ?? name;
  return { path: `/dev/${node}`, offset: sectors("start"), bytes: sectors("size") };
}

const textOf = (machine: Pick<Machine, "read">, path: string) =>
  Buffer.from(machine.read(path) ?? [])
    .toString()
    .trim();

/** A part of a disk as a disk of its own; closing it closes the disk. */
export function stretch(disk: BlockDevice, { number, offset, bytes }: Partition): BlockDevice {
  const name = `${disk.name}, partition ${number}`;
  const within = (at: number, length: number) => {
    if (at >= 0 && length >= 0 && at + length <= bytes) return offset + at;
    throw new HalError("io", `${name}: ${length} bytes at ${at} are not among its ${bytes}`);
  };
  return {
    name,
    bytes,
    get pastCache() {
      return disk.pastCache;
    },
    read: async (at, length, into) => disk.read(within(at, length), length, into),
    readMedium: async (at, length, into) => disk.readMedium(within(at, length), length, into),
    write: async (at, content) => disk.write(within(at, content.length), content),
    flush: () => disk.flush(),
    close: () => disk.close(),
  };
}

/** The loop device, if any, through which somebody else reads or writes one of these stretches: O_EXCL says nothing of it. */
function loopOver(
  machine: Pick<Machine, "read" | "list">,
  stretches: readonly { path: string; from: number; to: number }[],
): string | undefined {
  const text = (path: string) => textOf(machine, path);
  return machine.list("/sys/block").find((name) => {
    const file = text(`/sys/block/${name}/loop/backing_file`);
    const offset = Number(text(`/sys/block/${name}/loop/offset`));
    const limit = Number(text(`/sys/block/${name}/loop/sizelimit`)) || Number.POSITIVE_INFINITY;
    return stretches.some(({ path, from, to }) => path === file && offset < to && offset + limit > from);
  });
}

/** Where the partition is mounted stands in the error, where the kernel tells. */
function mountedAt(machine: Pick<Machine, "read">, path: string, error: unknown): unknown {
  if (!(error instanceof HalError) || error.code !== "busy") return error;
  const lines = Buffer.from(machine.read("/proc/self/mountinfo") ?? [])
    .toString()
    .split("\n");
  // proc_pid_mountinfo(5): the fifth field is where, the second behind the hyphen what
  const line = lines.find((one) => one.split(" - ")[1]?.split(" ")[1] === path);
  const where = line?.split(" ")[4];
  return where === undefined
    ? error
    : new HalError("busy", `${path} is mounted at ${where}`, { cause: error });
}
