/** A machine made of the files in `test/golden/proc`: written after the formats that a Pi 4 with kernel 6.12 prints. */
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { type Group, METRICS } from "../agent/telemetry/metrics.ts";
import { createSampler, type Sample } from "../agent/telemetry/sampler.ts";
import type { Machine } from "../hal/ports.ts";
import { rootOf } from "../hal/root.ts";

const GOLDEN = join(import.meta.dir, "golden/proc");

/** File of the machine → file in the folder; what is not named here is content itself. */
const FROM_FOLDER: Record<string, string> = {
  "/proc/uptime": "uptime",
  "/proc/loadavg": "loadavg",
  "/proc/stat": "stat",
  "/proc/meminfo": "meminfo",
  "/proc/vmstat": "vmstat",
  "/proc/pressure/cpu": "pressure-cpu",
  "/proc/pressure/memory": "pressure-memory",
  "/proc/pressure/io": "pressure-io",
  "/proc/diskstats": "diskstats",
  "/proc/net/dev": "net-dev",
  "/proc/net/wireless": "net-wireless",
  "/proc/self/mountinfo": "mountinfo",
  "/proc/self/status": "self-status",
  "/proc/self/stat": "self-stat",
  "/proc/cpuinfo": "cpuinfo",
  "/etc/os-release": "os-release",
};

const SMALL: Record<string, string> = {
  "/proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
  "/proc/device-tree/system/linux,revision": "\x00\xc0\x31\x14",
  "/proc/sys/kernel/hostname": "rack1-c\n",
  "/proc/sys/kernel/osrelease": "6.12.31-0-rpi\n",
  "/proc/sys/kernel/arch": "aarch64\n",
  "/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1500000\n",
  "/sys/class/thermal/thermal_zone0/type": "gpu-thermal\n",
  "/sys/class/thermal/thermal_zone0/temp": "99000\n",
  "/sys/class/thermal/thermal_zone1/type": "cpu-thermal\n",
  "/sys/class/thermal/thermal_zone1/temp": "51121\n",
  "/sys/class/hwmon/hwmon0/name": "cpu_thermal\n",
  "/sys/class/hwmon/hwmon1/name": "rpi_volt\n",
  "/sys/class/hwmon/hwmon1/in0_lcrit_alarm": "1\n",
  "/sys/class/hwmon/hwmon2/name": "pwmfan\n",
  "/sys/class/hwmon/hwmon2/fan1_input": "2894\n",
  "/sys/class/hwmon/hwmon2/pwm1": "51\n",
  "/sys/block/mmcblk0/device/life_time": "0x02 0x01\n",
  "/sys/block/mmcblk0/device/pre_eol_info": "0x01\n",
  "/sys/class/net/eth0/carrier": "1\n",
  "/sys/class/net/eth0/speed": "1000\n",
  "/sys/class/net/wlan0/carrier": "1\n",
  "/sys/class/net/wlan0/speed": "-1\n",
  "/sys/fs/ext4/mmcblk0p3/errors_count": "4\n",
};

/** A machine of whose files every one can be changed or taken away. */
export class PaperMachine implements Machine {
  serial: string | undefined = "10000000abcdef01";
  readonly bootId = "5f0a1c52-5f1c-4f9c-9b6e-0d6f8a3b9c11";
  readonly files = new Map<string, Uint8Array>();
  readonly links = new Map([
    ["/sys/class/net/eth0/device", "../../../fd580000.ethernet"],
    ["/sys/class/net/wlan0/device", "../../../mmc1:0001:1"],
    ["/sys/dev/block/179:3", "../../devices/platform/mmc0/block/mmcblk0/mmcblk0p3"],
    ["/sys/dev/block/8:1", "../../devices/platform/usb/block/sda/sda1"],
  ]);
  readonly spaces = new Map([
    ["/", { sizeBytes: 188_743_680, availBytes: 0 }],
    ["/data", { sizeBytes: 29_000_000_000, availBytes: 25_000_000_000 }],
    ["/mnt/usb stick", { sizeBytes: 8_000_000_000, availBytes: 1_000_000_000 }],
  ]);
  word: number | undefined = 0x50005;
  /** The firmware's flags for the next start; undefined where its mailbox does not know them. */
  flags: number | undefined = 0;
  built: number | undefined = 1_752_148_801;
  time: { synced: boolean; offsetSeconds?: number } = { synced: true, offsetSeconds: -0.000125 };
  /** As on the real one, what `read` returned is overwritten by the next. */
  readonly #buffer = new Uint8Array(65_536);

  constructor() {
    for (const [path, name] of Object.entries(FROM_FOLDER))
      this.files.set(path, readFileSync(join(GOLDEN, name)));
    for (const [path, text] of Object.entries(SMALL)) this.write(path, text);
  }

  write(path: string, text: string): this {
    this.files.set(path, Buffer.from(text, "latin1"));
    return this;
  }

  /** Replaces the text of one file by what `change` makes of it. */
  edit(path: string, change: (text: string) => string): this {
    return this.write(path, change(Buffer.from(this.files.get(path) ?? []).toString("latin1")));
  }

  read(path: string): Uint8Array | undefined {
    const content = this.files.get(path);
    if (!content) return undefined;
    this.#buffer.set(content);
    return this.#buffer.subarray(0, content.length);
  }

  list(path: string): string[] {
    const names = [...this.files.keys()]
      .filter((file) => file.startsWith(`${path}/`))
      .map((file) => file.slice(path.length + 1).split("/")[0] ?? "");
    return [...new Set(names)].sort();
  }

  link(path: string): string | undefined {
    return this.links.get(path);
  }

  root() {
    return rootOf(this);
  }

  space(path: string) {
    return this.spaces.get(path);
  }

  clock() {
    return this.time;
  }

  throttled() {
    return this.word === undefined ? undefined : { word: this.word, source: "mailbox" as const };
  }

  rebootFlags(set?: number): number | undefined {
    if (this.flags !== undefined && set !== undefined) this.flags = set;
    return this.flags;
  }

  firmwareBuilt() {
    return this.built;
  }

  identify(): boolean {
    return false;
  }

  close(): void {}
}

/** Every file of the folder is used by the machine above; a stray one tests nothing. */
export function strayFiles(): string[] {
  return readdirSync(GOLDEN).filter((name) => !Object.values(FROM_FOLDER).includes(name));
}

const FILESYSTEMS = {
  root: "/",
  data: "/data",
  usb: "/mnt/usb stick",
  tmp: "/data/tmp",
  ghost: "/data/logs",
};

/** A sampler of a machine with a clock in hand, 60 s later at each sample. */
export function minutely(machine: PaperMachine = new PaperMachine(), stepMs = 60_000) {
  let nowMs = 1_000_000;
  const real = createSampler(machine, { filesystems: FILESYSTEMS, nowMs: () => nowMs });
  return {
    machine,
    sample(group: Group, fresh?: boolean) {
      nowMs += stepMs;
      return real.sample(group, fresh);
    },
    /** The values of one instance; none is an empty set. */
    values(group: Group, instance = "main") {
      return this.sample(group).find((sample) => sample.instance === instance)?.values ?? {};
    },
  };
}

const SIGNED = ["temp_celsius", "clock_offset_seconds", "signal_dbm"];
/** Ratios that may well be above one. */
const OPEN = ["life_used_ratio", "cpu_ratio"];

/** Throws unless these are what a consumer can rely on: known names, plain numbers, nothing negative that cannot be. */
export function expectSound(group: Group, samples: Sample[]): void {
  for (const { instance, values } of samples) {
    if (!/^[A-Za-z0-9_.-]+$/.test(instance))
      throw new Error(`${group}: instance ${JSON.stringify(instance)}`);
    for (const [key, value] of Object.entries(values)) {
      if (!Object.hasOwn(METRICS[group].keys, key)) throw new Error(`${group}.${key} is not in the table`);
      if (!isSound(key, value)) throw new Error(`${group}.${key} is ${value}`);
    }
  }
}

function isSound(key: string, value: number): boolean {
  const least = SIGNED.includes(key) ? -Number.MAX_VALUE : 0;
  const most = key.endsWith("_ratio") && !OPEN.includes(key) ? 1 : Number.MAX_VALUE;
  return value >= least && value <= most;
}
