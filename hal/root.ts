/** Which partition the root file system is on, told by the kernel: what the boot loader said is not asked. */
import type { Machine, MountedRoot } from "./ports.ts";

const SECTOR = 512;
/** Overlays on overlays that are looked through; the kernel itself stacks two (FILESYSTEM_MAX_STACK_DEPTH). */
const DEPTH_MOST = 4;

interface Mount {
  device: string;
  point: string;
  kind: string;
  options: string;
}

/** The partition under `/`; undefined where it is on none that the kernel can name: memory, a network, a file system of many disks. */
export function rootOf(machine: Pick<Machine, "read" | "link">): MountedRoot | undefined {
  const device = deviceOf(mountsOf(text(machine, "/proc/self/mountinfo") ?? ""));
  const link = device === undefined ? undefined : machine.link(`/sys/dev/block/${device}`);
  if (device === undefined || link === undefined) return undefined;
  // …/block/mmcblk0/mmcblk0p2 is a partition of mmcblk0, …/block/mmcblk0 the whole of it
  const [name = "", parent = ""] = link.split("/").reverse();
  const number = (file: string) => Number(text(machine, `/sys/dev/block/${device}/${file}`) ?? Number.NaN);
  const [start, size, partition] = [number("start"), number("size"), number("partition")];
  if (!Number.isInteger(size)) return undefined;
  if (!Number.isInteger(partition)) return { disk: `/dev/${name}`, offset: 0, bytes: size * SECTOR };
  if (!Number.isInteger(start)) return undefined;
  return { disk: `/dev/${parent}`, offset: start * SECTOR, bytes: size * SECTOR };
}

/** The lines of mountinfo (proc(5)): `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`. */
function mountsOf(mountinfo: string): Mount[] {
  return mountinfo.split("\n").flatMap((line) => {
    const [before, after] = line.split(" - ");
    const [, , device, , point] = before?.split(" ") ?? [];
    const [kind, , options] = after?.split(" ") ?? [];
    if (device === undefined || point === undefined || kind === undefined) return [];
    return [{ device, point: unescaped(point), kind, options: options ?? "" }];
  });
}

/** `major:minor` under `/`; of an overlay, that of its lowest layer. */
function deviceOf(mounts: readonly Mount[]): string | undefined {
  let path = "/";
  let above: Mount | undefined;
  for (let depth = 0; depth < DEPTH_MOST; depth++) {
    const mount = mountOf(mounts, path, above);
    if (!mount) return undefined;
    if (mount.kind !== "overlay") return mount.device.startsWith("0:") ? undefined : mount.device;
    const [, layers] = /(?:^|,)lowerdir=((?:\\.|[^,])*)/.exec(mount.options) ?? [];
    const lowest = layers?.split(/(?<!\\):+/).at(-1);
    if (lowest === undefined) return undefined;
    path = unescaped(lowest).replace(/\\(.)/g, "$1");
    above = mount;
  }
  return undefined;
}

/** The mount that shows at a path; the last one made of several. A layer whose own mount is not in sight has none. */
function mountOf(mounts: readonly Mount[], path: string, above: Mount | undefined): Mount | undefined {
  const holds = ({ point }: Mount) => path === point || path.startsWith(point === "/" ? "/" : `${point}/`);
  const found = mounts
    .filter((mount) => mount !== above && holds(mount))
    .reduce<Mount | undefined>(
      (best, mount) => (best && best.point.length > mount.point.length ? best : mount),
      undefined,
    );
  // What shows under the overlay's own root is the overlay
  return above && found?.point === "/" ? undefined : found;
}

/** Blanks, tabs, newlines and backslashes stand as octal numbers (proc(5)). */
const unescaped = (word: string) =>
  word.replace(/\\([0-7]{3})/g, (_, digits) => String.fromCharCode(Number.parseInt(digits, 8)));

function text(machine: Pick<Machine, "read">, path: string): string | undefined {
  const bytes = machine.read(path);
  return bytes && Buffer.from(bytes).toString().trim();
}
