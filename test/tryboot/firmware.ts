/**
 * A model of how the Raspberry Pi's firmware chooses what to start, from its documentation and from what people met; it shares no
 * code with what it judges. It is not ours to believe: only a board shows what its firmware does.
 *
 * Sources: raspberrypi/documentation (autoboot.adoc, bootflow-eeprom.adoc, device-tree.adoc), raspberrypi/linux (bcm2835_wdt.c,
 * firmware/raspberrypi.c), rpi-eeprom release notes and issues #446 #504 #575 #716 #758, firmware #1502 #1711 #2000, noobs#390.
 */
import { SECTOR } from "../../boot/layout.ts";
import type { Image } from "../crash/disk.ts";

/** What a board or its software does otherwise than it should. Absent: as documented. */
export interface Traps {
  /** The flag is kept, read back and cleared, and changes nothing (reported of a Zero 2 W). */
  flagIgnored?: boolean;
  /** The flag is not cleared before the start. */
  flagSticky?: boolean;
  /** On trial `tryboot.txt` is read, whatever `tryboot_a_b` says (rpi-eeprom#504). */
  abIgnored?: boolean;
  /** What `chosen/bootloader/partition` says, whatever was started (0 before the Pi 4, rpi-eeprom#575). */
  deviceTreePartition?: number;
  /** A warm start leaves bit 10 of PM_RSTS set: the watchdog's next reset asks for partition 32 (rpi-eeprom#758). */
  rstsBit10?: boolean;
  /** Before 2022-11-25: neither `[tryboot]` nor `tryboot_a_b`, and no way back to partition 1 (rpi-eeprom#446). */
  eepromOld?: boolean;
  /** Pi 4 revision 1.0 and 1.1: a reset goes through the power chip, and the flag is lost where the EEPROM is write-protected. */
  eepromProtected?: boolean;
  /** A partition that cannot be started is the end: whether ROMs before the Pi 4 go back to partition 1 is not documented. */
  noWayBack?: boolean;
  /** The kernel has no `/dev/vcio`, or the firmware does not know the tag. */
  noMailbox?: boolean;
  /** The kernel does not look for the word tryboot in what `reboot` was told (mainline). */
  kernelPlain?: boolean;
}

/** What the firmware came to. */
export type Outcome =
  | {
      is: "started";
      partition: number;
      /** The configuration that was read. */
      config: string;
      kernel: string;
      /** The kernel's command line. */
      words: string;
      deviceTree: { partition: number; tryboot: number; capabilities?: number };
    }
  | { is: "halted" }
  | { is: "hangs"; why: string };

/** What is told apart: the ROM of a Pi 3, the EEPROM of a Pi 4, and that of a Pi 5, which has all of the firmware. */
export type Board = "pi3" | "pi4" | "pi5";

/** A card, in memory or in a file. */
type Card = Pick<Image, "bytes" | "read">;

const POWER_ON = 0x1000;
const WATCHDOG = 0x20;
/** Bits 0, 2, 4, 6, 8 and 10 are the partition (bcm2835_wdt.c). */
const PARTITION_BITS = 0x555;

/** The firmware of one board, with what it remembers between starts. */
export class Firmware {
  readonly traps: Traps;
  readonly #board: Board;
  #flags = 0;
  #rsts = POWER_ON;

  constructor(board: Board = "pi4", traps: Traps = {}) {
    this.#board = board;
    this.traps = traps;
  }

  /** The mailbox, as `Machine.rebootFlags`. */
  rebootFlags(set?: number): number | undefined {
    if (this.traps.noMailbox) return undefined;
    if (set !== undefined) this.#flags = set;
    return this.#flags;
  }

  /** The power was gone. */
  powerOn(image: Card): Outcome {
    this.#flags = 0;
    this.#rsts = POWER_ON;
    return this.#start(image);
  }

  /** reboot(2) with what it was told; BusyBox's `reboot` can tell it nothing. */
  reboot(image: Card, told = ""): Outcome {
    const partition = Number(/^\d+/.exec(told)?.[0] ?? 0);
    if (told.includes(" tryboot") && !this.traps.kernelPlain) this.#flags |= 1;
    let bits = 0;
    for (let bit = 0; bit < 6; bit++) bits |= ((partition >> bit) & 1) << (2 * bit);
    this.#rsts = bits | WATCHDOG;
    return this.#reset(image);
  }

  /** The watchdog bit: nobody cleared what stood in PM_RSTS. */
  watchdog(image: Card): Outcome {
    this.#rsts = (this.#rsts & PARTITION_BITS) | WATCHDOG;
    return this.#reset(image);
  }

  #reset(image: Card): Outcome {
    if (this.traps.eepromProtected) this.#flags = 0;
    return this.#start(image);
  }

  #start(image: Card): Outcome {
    const { flagSticky, flagIgnored, rstsBit10 } = this.traps;
    const isTrial = (this.#flags & 1) !== 0 && !flagIgnored;
    if (!flagSticky) this.#flags = 0;
    const asked = partitionOf(this.#rsts);
    if (asked === 63) return { is: "halted" };
    if (rstsBit10 && this.#rsts & WATCHDOG) this.#rsts |= 1 << 10;
    const partitions = tableOf(image);
    const first = partitions.find((one) => this.#isFirst(one));
    if (!first) return { is: "hangs", why: "there is nothing to start from" };
    const choice = asked
      ? { partition: asked, ab: false }
      : this.#choose(first.file("autoboot.txt"), isTrial);
    const chosen = partitions[(choice.partition || first.number) - 1];
    if (chosen?.file(this.#mark)) return this.#load(first, chosen, { isTrial, ...choice });
    if (this.traps.eepromOld || this.traps.noWayBack)
      return { is: "hangs", why: `partition ${choice.partition} cannot be started` };
    return this.#load(first, first, { isTrial, ab: choice.ab });
  }

  #isFirst(partition: FatPartition): boolean {
    // The ROM knows 0x0b and 0x0c alone (firmware#1711), and wants bootcode.bin there
    return this.#board === "pi3"
      ? [0x0b, 0x0c].includes(partition.type) && partition.file("bootcode.bin") !== undefined
      : partition.isFat;
  }

  /** What makes a partition one that can be started. */
  get #mark(): string {
    return { pi3: "start.elf", pi4: "start4.elf", pi5: "config.txt" }[this.#board];
  }

  #choose(autoboot: string | undefined, isTrial: boolean): { partition: number; ab: boolean } {
    let [partition, ab, passes] = [0, false, true];
    for (const raw of (autoboot ?? "").slice(0, SECTOR).split("\n")) {
      const line = raw.slice(0, 98).trim();
      if (line.startsWith("[") && line.endsWith("]"))
        passes = line === "[all]" || (line === "[tryboot]" && isTrial && !this.traps.eepromOld);
      const equals = line.indexOf("=");
      if (!passes || equals < 0 || !isNumber(line.slice(equals + 1))) continue;
      const value = Number(line.slice(equals + 1));
      if (line.slice(0, equals) === "boot_partition") partition = value;
      if (line.slice(0, equals) === "tryboot_a_b") ab = value === 1;
    }
    return { partition, ab };
  }

  #load(
    first: FatPartition,
    chosen: FatPartition,
    { isTrial, ab }: { isTrial: boolean; ab: boolean },
  ): Outcome {
    const { abIgnored, eepromOld, deviceTreePartition } = this.traps;
    if (!chosen.file(this.#mark))
      return { is: "hangs", why: `partition ${chosen.number} has no ${this.#mark}` };
    const [loader, start] = [first.file("bootcode.bin"), chosen.file("start.elf")];
    const has = Number(/version=(\d+)/.exec(loader ?? "")?.[1]);
    const needs = Number(/needs=(\d+)/.exec(start ?? "")?.[1]);
    if (this.#board === "pi3" && !(has >= needs))
      return { is: "hangs", why: `start.elf of partition ${chosen.number} needs another bootcode.bin` };
    const name = isTrial && (!ab || abIgnored || eepromOld) ? "tryboot.txt" : "config.txt";
    const config = chosen.file(name);
    const kernel = namedIn(config, chosen);
    if (!kernel)
      return { is: "hangs", why: `partition ${chosen.number}: ${name} names a file that is not there` };
    const partition = deviceTreePartition ?? (this.#board === "pi3" ? 0 : chosen.number);
    const capabilities = this.#board === "pi3" ? {} : { capabilities: eepromOld ? 0x3b : 0x7f };
    return {
      is: "started",
      partition: chosen.number,
      config: name,
      kernel,
      words: chosen.file("cmdline.txt") ?? "",
      deviceTree: { partition, tryboot: Number(isTrial), ...capabilities },
    };
  }
}

/** The kernel that a configuration names, where it is there, and the initramfs too, if it names one. */
function namedIn(config: string | undefined, { file }: FatPartition): string | undefined {
  const kernel = /^kernel=(.*)$/m.exec(config ?? "")?.[1];
  const initramfs = /^initramfs (\S+)/m.exec(config ?? "")?.[1];
  return kernel && (!initramfs || file(initramfs)) ? file(kernel) : undefined;
}

/** `key=value` as the firmware wants it: digits and nothing else. */
const isNumber = (text: string) =>
  text.length > 0 && text.length <= 3 && [...text].every((digit) => "0123456789".includes(digit));

function partitionOf(rsts: number): number {
  let partition = 0;
  for (let bit = 0; bit < 6; bit++) partition |= ((rsts >> (2 * bit)) & 1) << bit;
  return partition;
}

/** One of the four primary partitions, as the firmware looks into it: the first name that fits counts, and nothing is checked twice. */
interface FatPartition {
  number: number;
  type: number;
  isFat: boolean;
  file(name: string): string | undefined;
}

function tableOf(image: Card): FatPartition[] {
  const sector = Buffer.from(image.read(0, SECTOR));
  if (sector.readUInt16LE(510) !== 0xaa55) return [];
  return [0, 1, 2, 3].map((row) => {
    const entry = sector.subarray(0x1be + row * 16);
    const [type, offset] = [entry.readUInt8(4), entry.readUInt32LE(8) * SECTOR];
    const bytes = entry.readUInt32LE(12) * SECTOR;
    const isThere = bytes > 0 && offset + bytes <= image.bytes;
    const read = (at: number, length: number) => Buffer.from(image.read(offset + at, length));
    const isFat =
      isThere && [0x0b, 0x0c, 0x0e].includes(type) && read(0, SECTOR).readUInt16LE(510) === 0xaa55;
    return { number: row + 1, type, isFat, file: (name) => (isFat ? fileIn(read, bytes, name) : undefined) };
  });
}

function fileIn(
  read: (at: number, length: number) => Buffer,
  bytes: number,
  name: string,
): string | undefined {
  const head = read(0, SECTOR);
  const [perCluster, reserved, tables, sectors] = [
    head[13] ?? 0,
    head.readUInt16LE(14),
    head[16] ?? 0,
    head.readUInt32LE(36),
  ];
  const clustersAt = (reserved + tables * sectors) * SECTOR;
  const size = perCluster * SECTOR;
  if (head.readUInt16LE(11) !== SECTOR || size === 0 || clustersAt >= bytes) return undefined;
  const content = (from: number): Buffer => {
    const parts: Buffer[] = [];
    for (let cluster = from; cluster >= 2 && cluster < 0x0fff_fff0 && parts.length < 4096; ) {
      const at = clustersAt + (cluster - 2) * size;
      if (at + size > bytes) break;
      parts.push(read(at, size));
      cluster = read(reserved * SECTOR + cluster * 4, 4).readUInt32LE() & 0x0fff_ffff;
    }
    return Buffer.concat(parts);
  };
  const [base = "", extension = ""] = name.toUpperCase().split(".");
  const wanted = base.padEnd(8) + extension.padEnd(3);
  const folder = content(head.readUInt32LE(44));
  for (let at = 0; at + 32 <= folder.length && folder[at] !== 0; at += 32) {
    if (((folder[at + 11] ?? 0) & 0x0f) === 0x0f || folder.toString("latin1", at, at + 11) !== wanted)
      continue;
    const cluster = folder.readUInt16LE(at + 26) + folder.readUInt16LE(at + 20) * 0x10000;
    return content(cluster).toString("latin1", 0, folder.readUInt32LE(at + 28));
  }
  return undefined;
}
