/**
 * Real U-Boot on the emulated Pi 3, with stand-ins for kernels: what it boots from a card, with which arguments, and what it
 * writes. One emulator runs one card after another.
 *
 * The emulated clock runs as fast as instructions do (`-icount`): U-Boot's own waits, the two seconds for a key among them,
 * cost next to nothing. It is Debian's stock build, byte for byte.
 */
import { closeSync, ftruncateSync, mkdtempSync, openSync, readFileSync, rmSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { $ } from "bun";
import { FIRST_PARTITION, RECORD_OFFSETS, SECTOR, type SlotName } from "../../boot/layout.ts";
import { bootScript } from "../../image/bootscript.ts";
import { until } from "../node.ts";
import { cached } from "./cache.ts";
import { LIMITS } from "./limits.ts";
import { Line } from "./line.ts";
import { Monitor } from "./monitor.ts";
import { standIn } from "./standin.ts";

const MiB = 1024 * 1024;
const ENV = { ...process.env, PATH: `${process.env.PATH}:/usr/sbin:/sbin` };

/** The most that is looked at of an initramfs, bytes. */
const HEAD_BYTES = 65_536;

/** What boot.scr is made of. */
export const BOOT_COMMANDS = join(import.meta.dir, "../../boot/uboot/boot.cmd");

/** What a card holds; `test/crash/disk.ts` makes them. What is not named is zero. */
export interface Card {
  bytes: number;
  written(): Iterable<{ offset: number; bytes: Uint8Array }>;
}

/** The kernel's command line as the firmware leaves it in its device tree. */
export const FIRMWARE_ARGS = "console=ttyS1,115200 firmware.says=so";

/** What came of one start. */
export interface Booted {
  /** `nothing`: it gave up, for a while or for good. */
  booted: SlotName | "rescue" | "nothing";
  /** Name of the stand-in that was started. */
  kernel: string;
  /** The kernel's command line. */
  bootargs: string;
  initramfs: { bytes: number; head: Uint8Array };
  /** The four places afterwards. */
  recordsAfter: Uint8Array[];
  /** Byte offsets of sectors outside the four places that are not as they were. */
  changedElsewhere: number[];
  consoleText: string;
  ms: number;
}

/** What is otherwise than usual: a Pi 3 B with a good card. */
export interface Treatment {
  /** A Pi 3 A+ has 512 MiB. */
  board?: "3-b" | "3-a-plus";
  /** The firmware hands no device tree over. */
  isTreeMissing?: boolean;
  /** Sectors whose writes are lost, or `all` of them. QEMU knows no write protection of SD cards; this is what one comes to. */
  deaf?: readonly number[] | "all";
}

/** A FAT partition as the image builder makes it, as far as U-Boot looks: boot.scr and, if not left out, the rescue. */
export async function bootPartition(bytes: number, isRescueThere = true): Promise<Uint8Array> {
  const folder = mkdtempSync(join(tmpdir(), "fruit-boot-"));
  try {
    const fat = join(folder, "fat");
    await Bun.write(join(folder, "boot.scr"), bootScript(readFileSync(BOOT_COMMANDS, "utf8")));
    await Bun.write(join(folder, "rescue/Image"), standIn("rescue"));
    await Bun.write(join(folder, "rescue/initramfs"), "initramfs of the rescue");
    await $`truncate -s ${bytes} ${fat} && mkfs.fat -i 0f0f0f0f --invariant ${fat}`.env(ENV).quiet();
    await $`mcopy -i ${fat} ${join(folder, "boot.scr")} ::/`.quiet();
    if (isRescueThere) await $`mcopy -s -i ${fat} ${join(folder, "rescue")} ::/`.quiet();
    return readFileSync(fat);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** The stand-in's line, U-Boot's console, the emulator's monitor. */
interface Lines {
  channel: Line;
  console: Line;
  monitor: Line;
}

interface Emulator {
  monitor: Monitor;
  process: Bun.Subprocess<"ignore", "ignore", "pipe">;
  /** Rejects when it ends. */
  ended: Promise<never>;
}

/** What a kernel is given. */
type Chosen = Pick<Booted, "bootargs" | "initramfs">;

/** An emulator that starts cards of one size. */
export class UBoot implements AsyncDisposable {
  readonly #folder: string;
  readonly #bytes: number;
  readonly #treatment: Treatment;
  readonly #file: number;
  readonly #lines: Lines;
  #emulator: Emulator | undefined;

  private constructor(folder: string, bytes: number, treatment: Treatment, lines: Lines) {
    this.#folder = folder;
    this.#bytes = bytes;
    this.#treatment = treatment;
    this.#lines = lines;
    this.#file = openSync(this.#card, "w+");
  }

  /** Makes it ready for cards of `bytes` bytes, a power of two. */
  static async for(bytes: number, treatment: Treatment = {}): Promise<UBoot> {
    const folder = mkdtempSync(join(tmpdir(), "fruit-uboot-"));
    const line = (name: string) => Line.on(join(folder, name));
    const [channel, console, monitor] = [await line("channel"), await line("console"), await line("monitor")];
    return new UBoot(folder, bytes, treatment, { channel, console, monitor });
  }

  /** Starts a copy of a card; `boot`, if given, is written over its p1. */
  async run(card: Card, boot?: Uint8Array): Promise<Booted> {
    const startMs = performance.now();
    const before = this.#insert(card, boot);
    this.#emulator ??= this.#start();
    const { kernel, chosen } = await Promise.race([this.#boot(this.#emulator), this.#emulator.ended]);
    const after = readFileSync(this.#card);
    const [, slot] = /fruit\.slot=(a|b)/.exec(chosen?.bootargs ?? "") ?? [];
    return {
      booted: chosen === undefined ? "nothing" : slot === "a" || slot === "b" ? slot : "rescue",
      kernel,
      bootargs: chosen?.bootargs ?? "",
      initramfs: chosen?.initramfs ?? { bytes: 0, head: new Uint8Array() },
      recordsAfter: RECORD_OFFSETS.map((offset) => after.subarray(offset, offset + SECTOR)),
      changedElsewhere: differences(before, after).filter(
        (at) => !RECORD_OFFSETS.some((place) => place === at),
      ),
      consoleText: this.#lines.console.text.replaceAll("\r", ""),
      ms: performance.now() - startMs,
    };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#emulator?.process.kill("SIGKILL");
    await this.#emulator?.process.exited;
    for (const line of Object.values(this.#lines)) line[Symbol.dispose]();
    closeSync(this.#file);
    rmSync(this.#folder, { recursive: true, force: true });
  }

  get #card(): string {
    return join(this.#folder, "sd.img");
  }

  /** Puts the card in, while the emulator stands still; returns its bytes. */
  #insert(card: Card, boot: Uint8Array | undefined): Buffer {
    const before = Buffer.alloc(this.#bytes);
    ftruncateSync(this.#file, 0);
    ftruncateSync(this.#file, before.length);
    for (const { offset, bytes } of [
      ...card.written(),
      ...(boot ? [{ offset: FIRST_PARTITION, bytes: boot }] : []),
    ]) {
      before.set(bytes, offset);
      writeSync(this.#file, bytes, 0, bytes.length, offset);
    }
    return before;
  }

  /** From power on to what a kernel, if there is one, was given; the emulator stands still again afterwards. */
  async #boot({ monitor }: Emulator): Promise<{ kernel: string; chosen?: Chosen }> {
    this.#lines.channel.forget();
    this.#lines.console.forget();
    await monitor.ask("system_reset");
    await monitor.ask("cont");
    const outcome = until("a kernel, or that there is none", () => this.#outcome(), LIMITS.boot);
    const { name, tree } = await outcome.catch((cause) => {
      throw new Error(`${cause.message}; the console said\n${this.#lines.console.text}`, { cause });
    });
    const chosen = tree === undefined ? undefined : await this.#chosen(tree);
    await monitor.ask("stop");
    return { kernel: name, ...(chosen ? { chosen } : {}) };
  }

  #start(): Emulator {
    const { board = "3-b", isTreeMissing = false, deaf = [] } = this.#treatment;
    const where = deaf === "all" ? [[]] : deaf.map((sector) => [`sector=${sector}`]);
    const faults = where.flatMap((sector, index) =>
      ["event=none", "iotype=write", "once=off", ...sector].map((rule) => `inject-error.${index}.${rule}`),
    );
    const image = ["image.driver=raw", "image.file.driver=file", `image.file.filename=${this.#card}`];
    const drive =
      faults.length > 0 ? ["driver=blkdebug", ...image, ...faults] : ["format=raw", `file=${this.#card}`];
    const socket = (id: string, { path }: Line) => ["-chardev", `socket,id=${id},path=${path},server=off`];
    const args = [
      ...[
        "-M",
        board === "3-b" ? "raspi3b" : "raspi3ap",
        "-nodefaults",
        "-display",
        "none",
        "-S",
        "-icount",
        "shift=8,sleep=off",
      ],
      ...["-kernel", cached("arm64", "u-boot.bin"), "-append", FIRMWARE_ARGS],
      ...(isTreeMissing ? [] : ["-dtb", cached("arm64", `bcm2837-rpi-${board}.dtb`)]),
      ...["-drive", ["if=sd", ...drive].join(",")],
      ...[...socket("channel", this.#lines.channel), "-serial", "chardev:channel"],
      ...[...socket("console", this.#lines.console), "-serial", "chardev:console"],
      ...[...socket("monitor", this.#lines.monitor), "-mon", "chardev=monitor,mode=control"],
    ];
    // The machine goes with whoever started it, however that ends
    const process = Bun.spawn(["setpriv", "--pdeathsig", "KILL", "qemu-system-aarch64", ...args], {
      stdin: "ignore",
      stdout: "ignore",
      stderr: "pipe",
    });
    const ended = process.exited.then(async (code) => {
      throw new Error(`the emulator ended with ${code}: ${await new Response(process.stderr).text()}`);
    });
    // Nobody may be waiting when it is killed
    ended.catch(() => undefined);
    return { monitor: new Monitor(this.#lines.monitor), process, ended };
  }

  /** The stand-in that has spoken and where its device tree is; no tree where there will be none; undefined while that is open. */
  #outcome(): { name: string; tree?: number } | undefined {
    const said = this.#lines.console.text;
    // It has reset itself, or waits at its prompt
    if (said.split("\nU-Boot 20").length > 2 || /U-Boot> $/.test(said)) return { name: "" };
    const heard = this.#lines.channel.heard;
    // Builds that take their console from the device tree have it on the same line
    const start = heard.indexOf("stand-in ");
    const end = start < 0 ? -1 : heard.indexOf("\n", start);
    if (end < 0 || heard.length < end + 9) return undefined;
    const name = heard.toString("latin1", start + "stand-in ".length, end);
    return { name, tree: Number(heard.readBigUInt64LE(end + 1)) };
  }

  /** What the device tree's /chosen says, and the initramfs it names. */
  async #chosen(tree: number): Promise<Chosen> {
    // Devicetree specification §5.2: offsets of the structure and of the strings at 8 and 12, their sizes at 36 and 32
    const header = await this.#memory(tree, 40);
    const structure = await this.#memory(tree + header.readUInt32BE(8), header.readUInt32BE(36));
    const strings = await this.#memory(tree + header.readUInt32BE(12), header.readUInt32BE(32));
    const property = (name: string) => propertyOf(structure, strings, "chosen", name);
    const [start = 0, end = 0] = ["linux,initrd-start", "linux,initrd-end"].map((name) => {
      const value = property(name);
      return value === undefined ? 0 : Number(BigInt(`0x${value.toString("hex")}`));
    });
    return {
      bootargs: property("bootargs")?.toString("latin1").replace("\0", "") ?? "",
      initramfs: { bytes: end - start, head: await this.#memory(start, Math.min(end - start, HEAD_BYTES)) },
    };
  }

  /** Memory of the machine, by its stand-in. */
  async #memory(from: number, length: number): Promise<Buffer> {
    const { channel } = this.#lines;
    channel.forget();
    const request = Buffer.alloc(8);
    request.writeUInt32LE(from, 0);
    request.writeUInt32LE(length, 4);
    channel.write(request);
    await until(`${length} bytes of memory`, () => channel.heard.length >= length, LIMITS.event);
    return Buffer.from(channel.heard);
  }
}

/** Starts one card in an emulator of its own. */
export async function runUBoot(card: Card, boot?: Uint8Array, treatment: Treatment = {}): Promise<Booted> {
  await using emulator = await UBoot.for(card.bytes, treatment);
  return await emulator.run(card, boot);
}

/** Offsets of the sectors that differ. */
function differences(before: Buffer, after: Buffer): number[] {
  const found: number[] = [];
  for (let block = 0; block < before.length; block += MiB) {
    if (before.compare(after, block, block + MiB, block, block + MiB) === 0) continue;
    for (let at = block; at < block + MiB; at += SECTOR)
      if (before.compare(after, at, at + SECTOR, at, at + SECTOR) !== 0) found.push(at);
  }
  return found;
}

/** A property of a node below the root. Tokens are those of the devicetree specification §5.4.1. */
function propertyOf(structure: Buffer, strings: Buffer, node: string, name: string): Buffer | undefined {
  const [BEGIN, END, PROPERTY] = [1, 2, 3];
  const path: string[] = [];
  const text = (of: Buffer, at: number) => of.toString("latin1", at, of.indexOf(0, at));
  for (let at = 0; at < structure.length; ) {
    const token = structure.readUInt32BE(at);
    at += 4;
    if (token === BEGIN) {
      const called = text(structure, at);
      path.push(called);
      at += Math.ceil((called.length + 1) / 4) * 4;
    } else if (token === END) path.pop();
    else if (token === PROPERTY) {
      const length = structure.readUInt32BE(at);
      const value = structure.subarray(at + 8, at + 8 + length);
      if (path.join("/") === `/${node}` && text(strings, structure.readUInt32BE(at + 4)) === name)
        return value;
      at += 8 + Math.ceil(length / 4) * 4;
    }
  }
  return undefined;
}
