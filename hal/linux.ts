/** Opens the real machine. What a board, kernel or permission lacks is absent, never an error. */
import { closeSync, openSync, readdirSync, readlinkSync, readSync, statfsSync, writeFileSync } from "node:fs";
import { openDisk } from "./disk.ts";
import { listGpio, openGpio } from "./gpio.ts";
import { openHeart } from "./heart.ts";
import { openI2cLink } from "./i2c.ts";
import { kernelClock, mailbox } from "./native/libc.ts";
import type { Hal, Machine, MountedRoot } from "./ports.ts";
import { rootOf } from "./root.ts";
import { openLine, openSerialLink } from "./serial.ts";

/** The hardware of the node this runs on. */
export function openLinux(): Hal {
  const machine = new LinuxMachine();
  return {
    kind: "linux",
    machine,
    openSerial: (device, options) => openSerialLink(device, options),
    openLine: (device, settings, events) => openLine(device, settings, events),
    openI2c: (device) => openI2cLink(device),
    listGpio: () => listGpio(),
    openGpio: (gpio, use) => openGpio(gpio, use),
    openHeart: (gpio, times) => openHeart(gpio, times),
    openDisk: (path, how) => openDisk(path, how),
    close: async () => machine.close(),
  };
}

/** Firmware mailbox property "get throttled"; a request of 0 leaves its sticky bits as they are. */
const GET_THROTTLED = 0x00030046;
/** Firmware mailbox properties, raspberrypi/linux:include/soc/bcm2835/raspberrypi-firmware.h. */
const GET_FIRMWARE_REVISION = 0x00000001;
const GET_REBOOT_FLAGS = 0x00030064;
const SET_REBOOT_FLAGS = 0x00038064;
/** Declared deprecated, and gone on newer kernels: second choice. */
const THROTTLED_FILE = "/sys/devices/platform/soc/soc:firmware/get_throttled";

class LinuxMachine implements Machine {
  readonly serial: string | undefined;
  readonly bootId: string;
  readonly #files = new KernelFiles();
  /** The LED while it blinks for somebody, and what drove it before. */
  #led: { path: string; before: string } | undefined;

  constructor() {
    this.serial = this.#readSerial();
    this.bootId = this.#text("/proc/sys/kernel/random/boot_id") ?? "unknown";
  }

  read(path: string): Uint8Array | undefined {
    return this.#files.read(path);
  }

  list(path: string): string[] {
    try {
      return readdirSync(path).sort();
    } catch {
      return [];
    }
  }

  link(path: string): string | undefined {
    try {
      return readlinkSync(path);
    } catch {
      return undefined;
    }
  }

  root(): MountedRoot | undefined {
    return rootOf(this);
  }

  space(path: string): { sizeBytes: number; availBytes: number } | undefined {
    try {
      const { blocks, bavail, bsize } = statfsSync(path);
      return { sizeBytes: blocks * bsize, availBytes: bavail * bsize };
    } catch {
      return undefined;
    }
  }

  clock(): { synced: boolean; offsetSeconds?: number } {
    // A clock that cannot be asked about is one that nobody vouches for.
    return kernelClock() ?? { synced: false };
  }

  throttled(): { word: number; source: "mailbox" | "sysfs" } | undefined {
    const word = mailbox(GET_THROTTLED);
    if (word !== undefined) return { word, source: "mailbox" };
    const text = this.#text(THROTTLED_FILE);
    return text && /^[0-9a-f]{1,8}$/i.test(text)
      ? { word: Number.parseInt(text, 16), source: "sysfs" }
      : undefined;
  }

  rebootFlags(set?: number): number | undefined {
    // What the answer to the setting says is an echo: only asking again shows that it was kept
    if (set !== undefined && mailbox(SET_REBOOT_FLAGS, set) === undefined) return undefined;
    return mailbox(GET_REBOOT_FLAGS);
  }

  firmwareBuilt(): number | undefined {
    return mailbox(GET_FIRMWARE_REVISION) || undefined;
  }

  identify(on: boolean): boolean {
    const led = this.#led ?? this.#findLed();
    if (!led) return false;
    try {
      writeFileSync(`${led.path}/trigger`, on ? "timer" : led.before);
    } catch {
      return false;
    }
    this.#led = on ? led : undefined;
    return true;
  }

  close(): void {
    if (this.#led) this.identify(false);
    this.#files.close();
  }

  /** `ACT` on current kernels, `led0` on older ones. */
  #findLed(): { path: string; before: string } | undefined {
    for (const name of ["ACT", "led0"]) {
      const path = `/sys/class/leds/${name}`;
      const before = /\[(.+?)\]/.exec(this.#text(`${path}/trigger`) ?? "")?.[1];
      if (before) return { path, before };
    }
    return undefined;
  }

  #readSerial(): string | undefined {
    const serial =
      this.#text("/proc/device-tree/serial-number") ??
      /^Serial\s*:\s*([0-9a-f]+)$/m.exec(this.#text("/proc/cpuinfo") ?? "")?.[1];
    return serial && /^[0-9a-f]{1,16}$/i.test(serial) && !/^0+$/.test(serial)
      ? serial.toLowerCase()
      : undefined;
  }

  #text(path: string): string | undefined {
    const bytes = this.#files.read(path);
    return bytes && Buffer.from(bytes).toString().replace(/\0.*$/s, "").trim();
  }
}

/** The most files that stay open; more than a Pi's telemetry needs, far less than a process may have. */
const OPEN_MOST = 64;
/** What a read may grow to; longer files are cut, which their parsers bear. */
const READ_MOST = 1024 * 1024;

/** Kernel files that stay open and are read anew from their beginning, into one buffer. */
class KernelFiles {
  /** In the order of last use. */
  readonly #open = new Map<string, number>();
  #buffer = new Uint8Array(16 * 1024);

  read(path: string): Uint8Array | undefined {
    // Only the kernel's files may stay open: any other could be replaced under its name.
    const mayStay = path.startsWith("/proc/") || path.startsWith("/sys/");
    const kept = this.#open.get(path);
    if (kept !== undefined) {
      const content = this.#readFrom(kept, path);
      this.#open.delete(path);
      if (content) {
        this.#open.set(path, kept);
        return content;
      }
      // Its device has vanished, and may have come back as another.
      closeSync(kept);
    }
    const file = openOrNothing(path);
    if (file === undefined) return undefined;
    const content = this.#readFrom(file, path);
    if (content && mayStay) this.#keep(path, file);
    else closeSync(file);
    return content;
  }

  close(): void {
    for (const file of this.#open.values()) closeSync(file);
    this.#open.clear();
  }

  #keep(path: string, file: number): void {
    this.#open.set(path, file);
    if (this.#open.size <= OPEN_MOST) return;
    const [oldest] = this.#open;
    if (!oldest) return;
    closeSync(oldest[1]);
    this.#open.delete(oldest[0]);
  }

  #readFrom(file: number, path: string): Uint8Array | undefined {
    // A sysfs attribute is at most one page and comes whole; /proc gives its lists a page at a time.
    const isWhole = path.startsWith("/sys/");
    let length = 0;
    try {
      while (length < READ_MOST) {
        const got = readSync(file, this.#buffer, length, this.#buffer.length - length, length);
        length += got;
        if (got === 0 || isWhole) break;
        if (length === this.#buffer.length && length < READ_MOST) this.#grow();
      }
    } catch {
      return undefined;
    }
    return this.#buffer.subarray(0, length);
  }

  #grow(): void {
    const larger = new Uint8Array(this.#buffer.length * 2);
    larger.set(this.#buffer);
    this.#buffer = larger;
  }
}

function openOrNothing(path: string): number | undefined {
  try {
    return openSync(path, "r");
  } catch {
    return undefined;
  }
}
