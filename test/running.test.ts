/** Which slot runs: the kernel's own words about the mounted root, against the card's partitions. */
import { expect, test } from "bun:test";
import type { Card } from "../boot/layout.ts";
import { runningSlot } from "../boot/running.ts";
import { openLinux } from "../hal/linux.ts";
import type { MountedRoot } from "../hal/ports.ts";
import { rootOf } from "../hal/root.ts";
import { openSim } from "../hal/sim/hal.ts";
import { seeded } from "./fakes.ts";

const SECTOR = 512;
/** The kernel of a machine with these mounts; each block device has a link and its files. */
function kernel(
  mounts: string,
  devices: Record<string, { link: string; files: Record<string, number> }> = {},
) {
  return {
    read: (path: string) => {
      if (path === "/proc/self/mountinfo") return Buffer.from(mounts);
      const [, device = "", file = ""] = /^\/sys\/dev\/block\/([^/]+)\/(.+)$/.exec(path) ?? [];
      const value = devices[device]?.files[file];
      return value === undefined ? undefined : Buffer.from(`${value}\n`);
    },
    link: (path: string) => devices[path.replace("/sys/dev/block/", "")]?.link,
  };
}
const partition = (disk: string, name: string, number: number, start: number, size = 1000) => ({
  link: `../../devices/somewhere/block/${disk}/${name}`,
  files: { partition: number, start, size },
});
const whole = (name: string) => ({ link: `../../devices/virtual/block/${name}`, files: { size: 64 } });
const SLOT_B = partition("mmcblk0", "mmcblk0p3", 3, 90_112);
const at = (disk: string, sector: number, sectors = 1000): MountedRoot => ({
  disk: `/dev/${disk}`,
  offset: sector * SECTOR,
  bytes: sectors * SECTOR,
});

test.each<{
  what: string;
  mounts: string;
  devices?: Parameters<typeof kernel>[1];
  root: MountedRoot | undefined;
}>([
  {
    what: "a squashfs on a card",
    mounts:
      "27 1 179:3 / / ro,noatime shared:1 - squashfs /dev/root ro\n31 27 179:4 / /data rw - ext4 /dev/mmcblk0p4 rw",
    devices: { "179:3": SLOT_B },
    root: at("mmcblk0", 90_112),
  },
  {
    what: "a USB disk",
    mounts: "27 1 8:2 / / ro - squashfs /dev/sda2 ro",
    devices: { "8:2": partition("sda", "sda2", 2, 2048) },
    root: at("sda", 2048),
  },
  {
    what: "an NVMe disk, whose device numbers are the kernel's to give",
    mounts: "27 1 259:2 / / ro - squashfs /dev/nvme0n1p2 ro",
    devices: { "259:2": partition("nvme0n1", "nvme0n1p2", 2, 4096) },
    root: at("nvme0n1", 4096),
  },
  {
    what: "a virtual disk",
    mounts: "27 1 254:3 / / ro - squashfs /dev/vda3 ro",
    devices: { "254:3": partition("vda", "vda3", 3, 2 ** 33) },
    root: at("vda", 2 ** 33),
  },
  {
    what: "a loop device, which is a disk without partitions",
    mounts: "27 1 7:0 / / ro - squashfs /dev/loop0 ro",
    devices: { "7:0": whole("loop0") },
    root: at("loop0", 0, 64),
  },
  {
    what: "a partition of a loop device",
    mounts: "27 1 259:9 / / ro - squashfs /dev/loop0p3 ro",
    devices: { "259:9": partition("loop0", "loop0p3", 3, 128) },
    root: at("loop0", 128),
  },
  {
    what: "an overlay whose lower layer is in sight",
    mounts:
      "27 1 0:31 / / rw - overlay overlay rw,lowerdir=/media/root\\040ro,upperdir=/run/up,workdir=/run/work\n" +
      "28 27 179:3 / /media/root\\040ro ro - squashfs /dev/mmcblk0p3 ro",
    devices: { "179:3": SLOT_B },
    root: at("mmcblk0", 90_112),
  },
  {
    what: "an overlay of two layers: the lowest counts",
    mounts:
      "27 1 0:31 / / rw - overlay overlay rw,lowerdir=/etc/extra:/rom,upperdir=/run/up,workdir=/run/work\n" +
      "28 27 179:3 / /rom ro - squashfs /dev/mmcblk0p3 ro\n29 27 8:1 / /etc/extra ro - ext4 /dev/sda1 ro",
    devices: { "179:3": SLOT_B, "8:1": partition("sda", "sda1", 1, 64) },
    root: at("mmcblk0", 90_112),
  },
  {
    what: "an overlay whose lower layer is out of sight (a container)",
    mounts: "27 1 0:31 / / rw - overlay overlay rw,lowerdir=/var/lib/docker/l/X,upperdir=/u,workdir=/w",
    root: undefined,
  },
  { what: "memory", mounts: "1 1 0:2 / / rw - rootfs rootfs rw", root: undefined },
  { what: "a network", mounts: "27 1 0:20 / / rw - nfs 10.0.0.1:/root rw", root: undefined },
  {
    what: "one mounted over another: the last one shows",
    mounts: "20 1 0:2 / / rw - rootfs rootfs rw\n27 20 179:3 / / ro - squashfs /dev/root ro",
    devices: { "179:3": SLOT_B },
    root: at("mmcblk0", 90_112),
  },
  {
    what: "a device the kernel says no more of",
    mounts: "27 1 179:3 / / ro - squashfs x ro",
    root: undefined,
  },
  { what: "no mounts at all", mounts: "", root: undefined },
])("$what", ({ mounts, devices, root }) => {
  expect(rootOf(kernel(mounts, devices))).toEqual(root as MountedRoot);
});

test("any list of mounts has an answer", () => {
  const random = seeded(5);
  const words = [
    "/",
    "-",
    "overlay",
    "lowerdir=",
    "/rom",
    ":",
    ",",
    "\\040",
    "\\",
    "179:3",
    "0:1",
    "\n",
    " ",
    "27",
    "",
  ];
  for (let round = 0; round < Number(process.env.FRUIT_FUZZ ?? 5_000); round++) {
    let text = "27 1 0:31 / / rw - overlay overlay rw,lowerdir=";
    for (let word = 0; word < 12; word++) text += words[Math.floor(random() * words.length)];
    const root = rootOf(kernel(text, { "179:3": SLOT_B }));
    if (root) expect(root).toEqual(at("mmcblk0", 90_112));
  }
});

const CARD: Card = {
  boot: { number: 1, type: 12, offset: 20 * 2 ** 20, bytes: 1 },
  slots: {
    a: { number: 2, type: 0x83, offset: 1000 * SECTOR, bytes: 1 },
    b: { number: 3, type: 0x83, offset: 2000 * SECTOR, bytes: 1 },
  },
  data: { number: 4, type: 0x83, offset: 3000 * SECTOR, bytes: 1 },
};
test.each<{ what: string; root: MountedRoot | undefined; slot: "a" | "b" | undefined }>([
  { what: "slot a", root: at("mmcblk0", 1000), slot: "a" },
  { what: "slot b", root: at("mmcblk0", 2000), slot: "b" },
  { what: "the data partition", root: at("mmcblk0", 3000), slot: undefined },
  { what: "the same place on another disk", root: at("sda", 2000), slot: undefined },
  { what: "nearly slot b", root: at("mmcblk0", 2001), slot: undefined },
  { what: "the rescue, in memory", root: undefined, slot: undefined },
])("$what runs from $slot", ({ root, slot }) => {
  expect(runningSlot(root, "/dev/mmcblk0", CARD)).toBe(slot as "a");
});

test("this machine has an answer, and the simulated one that which it was given", async () => {
  const { machine } = openLinux();
  const root = machine.root();
  if (root)
    expect(root).toEqual({
      disk: expect.stringMatching(/^\/dev\//),
      offset: expect.any(Number),
      bytes: expect.any(Number),
    });
  machine.close();
  const options = { seed: 1, boards: [1], wireTime: false, faults: [], clockSynced: true };
  expect(openSim(options).machine.root()).toBeUndefined();
  expect(openSim({ ...options, root: at("mmcblk0", 1) }).machine.root()).toEqual(at("mmcblk0", 1));
});
