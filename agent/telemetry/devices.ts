/** The groups that have one instance a device: storage, mounted file systems, network and wireless interfaces. */
import type { Machine } from "../../hal/ports.ts";
import { Cursor, numberOf, textOf } from "./cursor.ts";
import { type Found, ratio, type Surroundings, times } from "./found.ts";
import { mountsOf } from "./mounts.ts";

/** diskstats counts in 512-byte sectors whatever the device's own are. */
const SECTOR = 512;
const COLON = 0x3a;

/** Whole devices only: partitions would count every byte twice, loop and RAM disks none that wears anything. */
const WHOLE_DISK = /^(mmcblk\d+|sd[a-z]+|vd[a-z]+|nvme\d+n\d+)$/;

/** `disk/<device>` from /proc/diskstats and the eMMC's own registers. */
export function disk({ machine, slow }: Surroundings): Found<"disk">[] {
  const found: Found<"disk">[] = [];
  const cursor = new Cursor(machine.read("/proc/diskstats") ?? new Uint8Array());
  while (cursor.line()) {
    const instance = cursor.pass(2).word();
    if (instance === undefined || !WHOLE_DISK.test(instance)) continue;
    const reads = cursor.number();
    const sectorsRead = cursor.pass(1).number();
    const writes = cursor.pass(1).number();
    const sectorsWritten = cursor.pass(1).number();
    const busyMs = cursor.pass(2).number();
    found.push({
      instance,
      values: {
        reads_total: reads,
        read_bytes_total: times(sectorsRead, SECTOR),
        writes_total: writes,
        written_bytes_total: times(sectorsWritten, SECTOR),
        busy_seconds_total: times(busyMs, 1e-3),
      },
    });
  }
  for (const { instance, values } of found)
    Object.assign(
      values,
      slow(`disk ${instance}`, () => wear(machine, instance)),
    );
  return found;
}

/** JEDEC eMMC 5.0: life_time is two steps of 10 % in hex (type A, type B; 0x0b is past its life), 0 says nothing. */
function wear(machine: Machine, device: string): Found<"disk">["values"] {
  const life = textOf(machine.read(`/sys/block/${device}/device/life_time`))
    ?.split(" ")
    .map(Number)
    .filter((step) => step >= 1 && step <= 11);
  const preEol = Number(textOf(machine.read(`/sys/block/${device}/device/pre_eol_info`)));
  return {
    life_used_ratio: life?.length ? Math.max(...life) / 10 : undefined,
    pre_eol: preEol >= 1 && preEol <= 3 ? preEol : undefined,
  };
}

/** `fs/<name>` from the mount table, statfs and ext4's own record of errors. */
export function fs({ machine, filesystems, slow }: Surroundings): Found<"fs">[] {
  const mounts = mountsOf(machine.read("/proc/self/mountinfo"), filesystems);
  return [...mounts].map(([instance, mount]) => {
    const space = slow(`fs ${instance}`, () => machine.space(mount.path));
    const device = slow(`fs ${mount.device}`, () =>
      machine.link(`/sys/dev/block/${mount.device}`)?.split("/").at(-1),
    );
    return {
      instance,
      values: {
        size_bytes: space?.sizeBytes,
        avail_bytes: space?.availBytes,
        readonly: mount.isReadonly ? 1 : 0,
        ext4_errors_total:
          mount.type === "ext4" && device
            ? numberOf(machine.read(`/sys/fs/ext4/${device}/errors_count`))
            : undefined,
      },
    };
  });
}

/** `net/<interface>` from /proc/net/dev and the interface's sysfs folder. */
export function net({ machine, slow }: Surroundings): Found<"net">[] {
  const found: Found<"net">[] = [];
  const cursor = new Cursor(machine.read("/proc/net/dev") ?? new Uint8Array());
  while (cursor.line()) {
    const instance = cursor.word(COLON);
    if (instance === undefined || !isInterface(instance)) continue;
    const [rxBytes, rxPackets, rxErrors, rxDropped] = four(cursor);
    const [txBytes, txPackets, txErrors, txDropped] = four(cursor.pass(4));
    found.push({
      instance,
      values: {
        rx_bytes_total: rxBytes,
        rx_packets_total: rxPackets,
        rx_errors_total: rxErrors,
        rx_dropped_total: rxDropped,
        tx_bytes_total: txBytes,
        tx_packets_total: txPackets,
        tx_errors_total: txErrors,
        tx_dropped_total: txDropped,
      },
    });
  }
  return found.filter(({ instance, values }) => {
    if (!slow(`net ${instance}`, () => hasHardware(machine, instance))) return false;
    values.carrier = numberOf(machine.read(`/sys/class/net/${instance}/carrier`));
    values.speed_bits = times(numberOf(machine.read(`/sys/class/net/${instance}/speed`)), 1e6);
    return true;
  });
}

/** A name that is a topic level as well; also keeps the heading's words out. */
function isInterface(name: string): boolean {
  return /^[A-Za-z0-9_.-]{1,15}$/.test(name) && name !== "lo";
}

/** Bridges, tunnels and container ends come and go and count traffic twice; `eth0` inside a container has no device. */
function hasHardware(machine: Machine, name: string): boolean {
  return machine.link(`/sys/class/net/${name}/device`) !== undefined || /^(eth|wlan)\d+$/.test(name);
}

/** `wifi/<interface>` from /proc/net/wireless, which kernels without wireless extensions lack. */
export function wifi({ machine }: Surroundings): Found<"wifi">[] {
  const found: Found<"wifi">[] = [];
  const cursor = new Cursor(machine.read("/proc/net/wireless") ?? new Uint8Array());
  while (cursor.line()) {
    const instance = cursor.word(COLON);
    if (instance === undefined || !isInterface(instance)) continue;
    const quality = cursor.pass(1).number();
    const level = cursor.number();
    // -256 is "no value", and a driver that counts otherwise than in dBm shows no minus.
    if (level === undefined || level >= 0 || level <= -200) continue;
    // cfg80211's wireless extensions scale link quality to 70.
    found.push({ instance, values: { signal_dbm: level, quality_ratio: ratio(quality, 70) } });
  }
  return found;
}

function four(cursor: Cursor): (number | undefined)[] {
  return [cursor.number(), cursor.number(), cursor.number(), cursor.number()];
}
