/** The slot that is written, opened so that nobody else can write there or has it mounted. */
import type { Partition } from "../../boot/layout.ts";
import { type BlockDevice, type Hal, HalError, type Machine } from "../../hal/ports.ts";

/**
 * Opens one partition of a disk exclusively: by its own device, since a disk is held as long as any of its partitions is mounted;
 * of a file, which has none, that stretch. Throws `HalError`: busy, naming who is there, and what `Hal.openDisk` does.
 */
export async function openSlot(
  hal: Pick<Hal, "openDisk" | "machine">,
  disk: Pick<BlockDevice, "name">,
  partition: Partition,
): Promise<BlockDevice> {
  const path = partitionPath(disk.name, partition.number);
  const over = loopOver(hal.machine, [
    { path, from: 0, to: partition.bytes },
    { path: disk.name, from: partition.offset, to: partition.offset + partition.bytes },
  ]);
  if (over !== undefined) throw new HalError("busy", `${path} cannot be written: ${over} is set up over it`);
  const device = await hal.openDisk(path, "exclusive").catch((error: unknown) => {
    if (error instanceof HalError && error.code === "absent") return undefined;
    throw mountedAt(hal.machine, path, error);
  });
  if (!device) return stretch(await hal.openDisk(disk.name, "exclusive"), partition);
  if (device.bytes === partition.bytes) return device;
  await device.close();
  throw new HalError(
    "refused",
    `${path} has ${device.bytes} bytes, the partition table on ${disk.name} says ${partition.bytes}: start this node anew`,
  );
}

/** As the kernel names partitions: with a `p` between two numbers. */
const partitionPath = (disk: string, number: number) => `${disk}${/\d$/.test(disk) ? "p" : ""}${number}`;

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
  const text = (path: string) =>
    Buffer.from(machine.read(path) ?? [])
      .toString()
      .trim();
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
