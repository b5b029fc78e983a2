/**
 * A pretend Raspberry Pi 4: the text of the kernel's files, so that the very parsers of the real machine run on it.
 * Numbers follow `activity` (0 idle to 1 all cores busy): load and counters are its integral, the temperature lags behind.
 * Only `/proc/self/…` is real: the agent's own cost is never pretended.
 */
import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import type { Machine, MountedRoot } from "../ports.ts";
import { chance } from "./activity.ts";

/** What makes one simulated machine differ from the next. */
export interface MachineOptions {
  /** Serial number as the firmware prints it, hex. */
  serial: string;
  seed: number;
  clockSynced: boolean;
  /** Where the root is mounted from; on no disk unless a test says so. */
  root?: MountedRoot;
  /** How busy the Pi is at a moment, 0 to 1. */
  activity: (nowMs: number) => number;
  /** The clock `activity` is asked with; the real one unless a test brings its own. */
  nowMs?: () => number;
}

/** Makes a Pi 4 that started a moment ago. */
export function simMachine(options: MachineOptions): Machine {
  const pi = new Pi4(options);
  const encoder = new TextEncoder();
  return {
    serial: options.serial,
    bootId: pi.bootId,
    read(path) {
      if (path.startsWith("/proc/self/") && path !== "/proc/self/mountinfo") return ownFile(path);
      const text = pi.file(path);
      return typeof text === "string" ? encoder.encode(text) : text;
    },
    list: (path) => LISTS[path] ?? [],
    link: (path) => LINKS[path],
    root: () => options.root,
    space: (path) => pi.space(path),
    clock: () =>
      options.clockSynced ? { synced: true, offsetSeconds: pi.clockOffset() } : { synced: false },
    throttled: () => ({ word: 0, source: "mailbox" }),
    rebootFlags: (set) => pi.rebootFlags(set),
    firmwareBuilt: () => 1_752_148_801,
    identify: () => true,
    close: () => undefined,
  };
}

const CORES = 4;
const TICKS = 100;
const MEMORY_KIB = 3_884_360;
const CARD_BYTES = 31_268_536_320;
/** Kernel and init take this long before an agent can run. */
const BOOTED_SECONDS = 14;
/** How fast the processor warms up and cools down. */
const THERMAL_SECONDS = 45;

const LISTS: Record<string, string[]> = {
  "/dev": ["vcio"],
  "/sys/class/thermal": ["cooling_device0", "thermal_zone0"],
  "/sys/class/hwmon": ["hwmon0", "hwmon1"],
};

const LINKS: Record<string, string> = {
  "/sys/class/net/eth0/device": "../../../fd580000.ethernet",
  "/sys/class/net/wlan0/device": "../../../mmc1:0001:1",
  "/sys/dev/block/179:2":
    "../../devices/platform/emmc2bus/fe340000.mmc/mmc_host/mmc0/mmc0:aaaa/block/mmcblk0/mmcblk0p2",
  "/sys/dev/block/179:3":
    "../../devices/platform/emmc2bus/fe340000.mmc/mmc_host/mmc0/mmc0:aaaa/block/mmcblk0/mmcblk0p3",
};

const MOUNTS = `21 1 179:2 / / ro,relatime shared:1 - squashfs /dev/root ro,errors=continue
22 21 0:19 / /proc rw,nosuid,nodev,noexec,relatime shared:2 - proc proc rw
23 21 0:20 / /sys rw,nosuid,nodev,noexec,relatime shared:3 - sysfs sysfs rw
24 21 0:22 / /run rw,nosuid,nodev shared:4 - tmpfs tmpfs rw,size=776872k,mode=755
25 21 179:3 / /data rw,noatime shared:5 - ext4 /dev/mmcblk0p3 rw
`;

class Pi4 {
  readonly bootId = randomUUID();
  /** Kept by the firmware until the next start. */
  #flags = 0;
  readonly #options: MachineOptions;
  readonly #nowMs: () => number;
  readonly #startMs: number;
  readonly #ambient: number;
  readonly #files: Record<string, string | Uint8Array>;
  #atMs: number;
  #activity = 0;
  /** Core-seconds since start: at work, and waiting for the card. */
  #busy = 0;
  #iowait = 0;
  #load: [number, number, number] = [0.4, 0.15, 0.05];
  #celsius: number;

  constructor(options: MachineOptions) {
    this.#options = options;
    this.#nowMs = options.nowMs ?? Date.now;
    this.#startMs = this.#nowMs();
    this.#atMs = this.#startMs;
    this.#ambient = 21 + chance(options.seed, 0) * 4;
    this.#files = standing(options.serial, this.bootId);
    // Only who runs from a card is a board that releases are for: on a desk whoever writes a card names it
    if (options.root) this.#files["/proc/device-tree/compatible"] = "raspberrypi,4-model-b\0brcm,bcm2711\0";
    this.#celsius = this.#ambient + 12;
  }

  file(path: string): string | Uint8Array | undefined {
    this.#advance();
    return this.#changing(path) ?? this.#files[path];
  }

  space(path: string): { sizeBytes: number; availBytes: number } | undefined {
    this.#advance();
    if (path === "/") return { sizeBytes: 188_743_680, availBytes: 0 };
    if (path === "/data")
      return {
        sizeBytes: Math.floor(CARD_BYTES * 0.94),
        availBytes: Math.round(CARD_BYTES * 0.8 - this.#written()),
      };
    return undefined;
  }

  rebootFlags(set?: number): number {
    if (set !== undefined) this.#flags = set >>> 0;
    return this.#flags;
  }

  /** Wanders by some hundred microseconds, as under NTP over a household line. */
  clockOffset(): number {
    this.#advance();
    return Math.sin(this.#seconds() / 97 + this.#options.seed) * 3e-4;
  }

  #changing(path: string): string | undefined {
    const up = this.#seconds();
    const idle = Math.max(0, up * CORES - this.#busy - this.#iowait);
    switch (path) {
      case "/proc/uptime":
        return `${up.toFixed(2)} ${idle.toFixed(2)}\n`;
      case "/proc/loadavg":
        return `${this.#load.map((load) => load.toFixed(2)).join(" ")} ${1 + Math.round(this.#activity * CORES)}/118 ${
          900 + Math.floor(up / 4)
        }\n`;
      case "/proc/stat":
        return this.#stat(idle);
      case "/proc/meminfo":
        return this.#meminfo();
      case "/proc/vmstat":
        return `nr_free_pages 842113\npgfault ${Math.floor(up * 310)}\noom_kill 0\n`;
      case "/proc/pressure/cpu":
        return stalled(this.#busy * 0.06, 0);
      case "/proc/pressure/io":
        return stalled(this.#iowait * 0.8, this.#iowait * 0.5);
      case "/proc/pressure/memory":
        return stalled(0, 0);
      case "/proc/diskstats":
        return this.#diskstats();
      case "/proc/net/dev":
        return this.#interfaces();
      case "/proc/net/wireless":
        return this.#wireless();
      case "/sys/class/thermal/thermal_zone0/temp":
        // The sensor's step is 0.487 °C.
        return `${Math.round(Math.round(this.#celsius / 0.487) * 487)}\n`;
      case "/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq":
        return `${this.#activity > 0.3 ? 1_800_000 : this.#activity > 0.1 ? 1_200_000 : 600_000}\n`;
      default:
        return undefined;
    }
  }

  #stat(idle: number): string {
    const ticks = (seconds: number) => Math.floor(seconds * TICKS);
    const user = this.#busy * 0.7;
    const kernel = this.#busy * 0.28;
    const soft = this.#busy * 0.02;
    const row = (name: string, share: number) =>
      `${name} ${[user, 0, kernel, idle, this.#iowait, 0, soft, 0, 0, 0].map((s) => ticks(s * share)).join(" ")}\n`;
    const cores = Array.from({ length: CORES }, (_, core) => row(`cpu${core}`, 1 / CORES)).join("");
    const bootTime = Math.floor(this.#startMs / 1000 - BOOTED_SECONDS);
    return `${row("cpu ", 1)}${cores}intr ${ticks(this.#seconds() * 3)} 0 0 0\nctxt ${ticks(this.#seconds() * 5)}\nbtime ${bootTime}\nprocesses ${900 + Math.floor(this.#seconds() / 4)}\nprocs_running 1\nprocs_blocked 0\n`;
  }

  #meminfo(): string {
    const available = Math.round(MEMORY_KIB * (0.9 - 0.35 * this.#activity));
    const row = (key: string, kib: number) => `${`${key}:`.padEnd(16)}${String(kib).padStart(8)} kB\n`;
    return `${row("MemTotal", MEMORY_KIB)}${row("MemFree", Math.round(available * 0.7))}${row("MemAvailable", available)}${row("Buffers", 21_408)}${row("SwapTotal", 0)}${row("SwapFree", 0)}`;
  }

  /** Bytes that went to the card: logs and state, more while busy. */
  #written(): number {
    return 2_000_000 + this.#seconds() * 900 + this.#busy * 40_000;
  }

  #diskstats(): string {
    const sectors = Math.floor(this.#written() / 512);
    const reads = 4_200 + Math.floor(this.#busy * 3);
    const busyMs = Math.floor(this.#iowait * 1000) + 5_200;
    const card = (minor: number, name: string) =>
      ` 179      ${minor} ${name} ${reads} 1800 ${reads * 62} 9120 ${Math.floor(sectors / 24)} 900 ${sectors} 41200 0 ${busyMs} 50320 0 0 0 0 0 0\n`;
    return `   1       0 ram0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n   7       0 loop0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n${card(0, "mmcblk0")}${card(1, "mmcblk0p1")}${card(2, "mmcblk0p2")}${card(3, "mmcblk0p3")}`;
  }

  #interfaces(): string {
    const received = Math.floor(80_000 + this.#seconds() * 420 + this.#busy * 9_000);
    const sent = Math.floor(42_000 + this.#seconds() * 310 + this.#busy * 4_000);
    const row = (name: string, rx: number, tx: number) =>
      `${`${name}:`.padStart(7)} ${rx} ${Math.floor(rx / 410)} 0 0 0 0 0 12 ${tx} ${Math.floor(tx / 320)} 0 0 0 0 0 0\n`;
    return `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
${row("lo", 5_120, 5_120)}${row("eth0", received, sent)}${row("wlan0", Math.floor(received / 40), Math.floor(sent / 60))}`;
  }

  #wireless(): string {
    const level = -58 + Math.round(Math.sin(this.#seconds() / 31 + this.#options.seed) * 4);
    return `Inter-| sta-|   Quality        |   Discarded packets               | Missed | WE
 face | tus | link level noise |  nwid  crypt   frag  retry   misc | beacon | 22
 wlan0: 0000   ${level + 110}.  ${level}.  -256        0      0      0      0      3        0
`;
  }

  #seconds(): number {
    return BOOTED_SECONDS + (this.#atMs - this.#startMs) / 1000;
  }

  /** Brings the integrals up to now. */
  #advance(): void {
    const nowMs = this.#nowMs();
    const seconds = (nowMs - this.#atMs) / 1000;
    if (!(seconds > 0)) return;
    this.#atMs = nowMs;
    const asked = this.#options.activity(nowMs);
    this.#activity = Number.isFinite(asked) ? Math.min(1, Math.max(0, asked)) : 0;
    this.#busy += seconds * CORES * Math.min(1, 0.012 + this.#activity * 0.95);
    this.#iowait += seconds * CORES * 0.004 * (0.3 + this.#activity);
    const running = this.#activity * CORES;
    this.#load = [60, 300, 900].map((window, index) =>
      toward(this.#load[index] ?? 0, running, seconds / window),
    ) as [number, number, number];
    const settled = this.#ambient + 16 + this.#activity * 33;
    this.#celsius = toward(this.#celsius, settled, seconds / THERMAL_SECONDS);
  }
}

/** The files that stay the same while the machine runs. */
function standing(serial: string, bootId: string): Record<string, string | Uint8Array> {
  const padded = serial.padStart(16, "0");
  return {
    "/proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
    "/proc/device-tree/serial-number": `${padded}\0`,
    "/proc/device-tree/system/linux,revision": Uint8Array.of(0x00, 0xc0, 0x31, 0x14),
    "/proc/device-tree/chosen/bootloader/version": "cd866525580337c0aee4b25880e1f5f9f674fb24\0",
    "/proc/device-tree/chosen/bootloader/build-timestamp": Uint8Array.of(0x63, 0xc1, 0x44, 0x2c),
    "/proc/device-tree/chosen/bootloader/rsts": Uint8Array.of(0x00, 0x00, 0x10, 0x00),
    "/proc/device-tree/chosen/bootloader/capabilities": Uint8Array.of(0x00, 0x00, 0x00, 0x7f),
    "/proc/cpuinfo": `processor\t: 0\nBogoMIPS\t: 108.00\n\nRevision\t: c03114\nSerial\t\t: ${padded}\nModel\t\t: Raspberry Pi 4 Model B Rev 1.4\n`,
    "/proc/sys/kernel/random/boot_id": `${bootId}\n`,
    "/proc/sys/kernel/osrelease": "6.12.31-0-rpi\n",
    "/proc/sys/kernel/arch": "aarch64\n",
    "/proc/sys/kernel/hostname": `pi${serial.replace(/^0+/, "")}\n`,
    "/etc/os-release": 'ID=alpine\nVERSION_ID=3.22.1\nPRETTY_NAME="Alpine Linux v3.22"\n',
    "/proc/self/mountinfo": MOUNTS,
    "/sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "/sys/class/hwmon/hwmon0/name": "cpu_thermal\n",
    "/sys/class/hwmon/hwmon1/name": "rpi_volt\n",
    "/sys/class/hwmon/hwmon1/in0_lcrit_alarm": "0\n",
    "/sys/class/net/eth0/carrier": "1\n",
    "/sys/class/net/eth0/speed": "1000\n",
    "/sys/class/net/wlan0/carrier": "1\n",
    "/sys/fs/ext4/mmcblk0p3/errors_count": "0\n",
  };
}

/** Exponential approach over `steps` time constants. */
function toward(from: number, to: number, steps: number): number {
  return to + (from - to) * Math.exp(-steps);
}

function stalled(some: number, full: number): string {
  const row = (name: string, seconds: number) =>
    `${name} avg10=0.00 avg60=0.00 avg300=0.00 total=${Math.floor(seconds * 1e6)}\n`;
  return row("some", some) + row("full", full);
}

function ownFile(path: string): Uint8Array | undefined {
  try {
    return readFileSync(path);
  } catch {
    return undefined;
  }
}
