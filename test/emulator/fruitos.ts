/**
 * fruitos on an emulated Pi 3, as it would run: the card that `bun run image` makes, U-Boot from it, the kernel and the root of a
 * slot, restarts without end. What is a test's own in it stands in `test/rootfs/`.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { $ } from "bun";
import { PARTITIONS, readPartitions, SLOTS, type SlotName } from "../../boot/layout.ts";
import { HASH_BYTES, LeafHasher, leafCount, merkleRoot } from "../../boot/merkle.ts";
import type { BootRecord } from "../../boot/record.ts";
import { readRecords } from "../../boot/records.ts";
import { openDisk } from "../../hal/disk.ts";
import { until } from "../node.ts";
import { cached } from "./cache.ts";
import { LIMITS } from "./limits.ts";
import { Line } from "./line.ts";
import type { Ran } from "./machine.ts";
import { Monitor } from "./monitor.ts";

/** The steps of a start, as the console tells them. */
const PHASES = [
  ["reset", /U-Boot 20\d\d/],
  ["kernel", /Starting kernel/],
  ["initramfs", /fruit: slot ([ab])( on trial)?.*: \/dev\//],
  ["usb", /start: waiting for usb0/],
  ["ready", /^ready\r?$/m],
] as const;
type Phase = (typeof PHASES)[number][0];

/** One start, and when it came how far: milliseconds since it began. */
export interface Start {
  slot?: SlotName;
  isTrial: boolean;
  atMs: Partial<Record<Phase, number>>;
  beganMs: number;
}

/** The command of an emulated Pi 3 with this card in it; it ends at a reset. Its network is `net0`, with what `net` says of it. */
export function emulator(
  card: string,
  { console, monitor }: { console: Line; monitor: Line },
  net?: string,
): string[] {
  const chardev = (id: string, { path }: Line) => ["-chardev", `socket,id=${id},path=${path},server=off`];
  return [
    ...["setpriv", "--pdeathsig", "KILL", "qemu-system-aarch64"],
    // One thread: cores that wait for Linux spin, and would take the time of the one that works
    ...["-M", "raspi3b", "-accel", "tcg,thread=single", "-nodefaults", "-display", "none", "-no-reboot"],
    ...["-kernel", cached("arm64", "u-boot.bin"), "-dtb", cached("arm64", "bcm2837-rpi-3-b.dtb")],
    // What the firmware makes of cmdline.txt
    ...["-append", "console=ttyS1,115200"],
    // What the machine was told is written is with this kernel, in its order: killing the emulator loses none of it
    ...["-drive", `file=${card},format=raw,if=sd,cache=writeback`],
    ...["-netdev", ["user,id=net", ...(net === undefined ? [] : [net])].join(",")],
    ...["-serial", "null", ...chardev("console", console), "-serial", "chardev:console"],
    ...[...chardev("monitor", monitor), "-mon", "chardev=monitor,mode=control"],
  ];
}

/** Plugs the network adapter into its USB socket; QEMU's DHCP gives the machine 10.0.2.15. */
export const plugNetwork = (monitor: Monitor) =>
  monitor.ask("device_add", { driver: "usb-net", id: "net0", netdev: "net" });

/** A copy of a card; what was nothing but zeros costs nothing. */
export async function copyCard(from: string, to: string): Promise<string> {
  await $`cp --sparse=always --reflink=auto ${from} ${to}`.quiet();
  return to;
}

/** An emulated Pi with a card in it, switched on. */
export class Fruitos implements AsyncDisposable {
  readonly card: string;
  /** Every start since it was switched on. */
  readonly starts: Start[] = [];
  readonly #folder: string;
  readonly #console: Line;
  readonly #monitor: Monitor;
  readonly #sockets: { console: Line; monitor: Line };
  readonly #brokerPort: number;
  /** Restarted with every reset: what the emulator's USB controller knew of the start before confuses the next one. */
  #process: Bun.Subprocess;
  #isOff = false;
  #said = "";
  /** Where in `#said` the newest start begins, and how far it was looked through. */
  #from = 0;
  #phase = 0;
  #steps = 0;

  private constructor(
    card: string,
    brokerPort: number,
    parts: { folder: string; console: Line; monitor: Line },
  ) {
    this.card = card;
    this.#brokerPort = brokerPort;
    this.#folder = parts.folder;
    this.#console = parts.console;
    this.#sockets = parts;
    this.#process = this.#spawn();
    this.#monitor = new Monitor(parts.monitor);
    parts.console.read((chunk) => this.#hear(chunk.toString("latin1")));
  }

  /** Switches it on. What listens on `brokerPort` of this machine is 10.0.2.100:1883 to the Pi. */
  static async on(card: string, brokerPort: number): Promise<Fruitos> {
    const folder = mkdtempSync(join(tmpdir(), "fruit-pi-"));
    const [console, monitor] = await Promise.all([
      Line.on(join(folder, "console")),
      Line.on(join(folder, "monitor")),
    ]);
    return new Fruitos(card, brokerPort, { folder, console, monitor });
  }

  /** Neither switched off nor broken down. */
  get isOn(): boolean {
    return !this.#isOff && !this.#process.exitCode && this.#process.signalCode === null;
  }

  /** Everything that the console has said. */
  get said(): string {
    return this.#said;
  }

  /** The start that goes on. */
  get start(): Start | undefined {
    return this.starts.at(-1);
  }

  /** Waits until a start that is such, not one of the first `after`, has come so far. */
  reached(
    phase: Phase,
    isIt: (start: Start) => boolean = () => true,
    { after = 0, limitMs = LIMITS.boot }: { after?: number; limitMs?: number } = {},
  ): Promise<Start> {
    return this.#alive(`${phase} of such a start`, limitMs, () =>
      this.starts.slice(after).find((start) => start.atMs[phase] !== undefined && isIt(start)),
    );
  }

  /** Runs a shell script in it to its end. */
  async run(script: string, limitMs = LIMITS.command): Promise<Ran> {
    const { start } = this;
    if (start?.atMs.ready === undefined) throw new Error(`${script}: it is not ready`);
    const number = ++this.#steps;
    const from = this.#said.length;
    this.#console.write(`${number} ${Buffer.from(script).toString("base64")}\n`);
    const answer = new RegExp(`done ${number} (\\d+) =(\\S*) =(\\S*)\\.`);
    const [, exit, out = "", err = ""] = await this.#alive(script, limitMs, () => {
      if (this.start !== start) throw new Error("it started again meanwhile");
      return answer.exec(this.#said.slice(from)) ?? undefined;
    });
    const text = (base64: string) => Buffer.from(base64, "base64").toString();
    return { exit: Number(exit), out: text(out), err: text(err) };
  }

  /** Runs a script that must succeed and returns what it printed. */
  async output(script: string, limitMs = LIMITS.command): Promise<string> {
    const { exit, out, err } = await this.run(script, limitMs);
    if (exit !== 0) throw new Error(`${script}: exit ${exit}\n${out}${err}`);
    return out;
  }

  /** Cuts its power. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#isOff = true;
    this.#process.kill("SIGKILL");
    await this.#process.exited;
    this.#console[Symbol.dispose]();
    this.#monitor.line[Symbol.dispose]();
    rmSync(this.#folder, { recursive: true, force: true });
  }

  #hear(text: string): void {
    this.#said += text;
    for (;;) {
      const rest = this.#said.slice(this.#from);
      const reset = /U-Boot 20\d\d/.exec(rest);
      const [phase, words] = PHASES[this.#phase] ?? [];
      const found = words?.exec(rest);
      // A start may end at any phase
      const [name, match] =
        phase !== undefined && found && (!reset || found.index <= reset.index)
          ? [phase, found]
          : (["reset", reset] as const);
      if (!match) return;
      this.#from += match.index + match[0].length;
      this.#note(name, match);
    }
  }

  #note(phase: Phase, match: RegExpExecArray): void {
    const now = performance.now();
    if (phase === "reset") this.starts.push({ isTrial: false, atMs: {}, beganMs: now });
    const start = this.start;
    if (!start) return;
    start.atMs[phase] = now - start.beganMs;
    this.#phase = PHASES.findIndex(([name]) => name === phase) + 1;
    if (phase === "initramfs") {
      start.isTrial = match[2] !== undefined;
      const slot = SLOTS.find((name) => name === match[1]);
      if (slot) start.slot = slot;
    }
    if (phase === "usb") void this.#plug();
  }

  #spawn(): Bun.Subprocess {
    const net = `guestfwd=tcp:10.0.2.100:1883-cmd:socat - TCP:127.0.0.1:${this.#brokerPort}`;
    return Bun.spawn(emulator(this.card, this.#sockets, net), {
      stdio: ["ignore", "ignore", "ignore"],
      onExit: (_, code) => {
        if (code === 0 && !this.#isOff) this.#process = this.#spawn();
      },
    });
  }

  /** Later than the start, since the kernel's dwc2 does not find again in this machine what U-Boot has found. */
  async #plug(): Promise<void> {
    await plugNetwork(this.#monitor).catch((error: Error) => {
      if (this.isOn) this.#said += `\nthe emulator: ${error.message}\n`;
    });
  }

  async #alive<T>(what: string, limitMs: number, look: () => T | undefined | false): Promise<T> {
    try {
      return await until(
        what,
        () => {
          const found = look();
          if (!found && !this.isOn) throw new Error("it is off");
          return found;
        },
        limitMs,
      );
    } catch (cause) {
      const tail = this.#said.slice(-3000).replaceAll("\r", "");
      throw new Error(`${what}: ${cause instanceof Error ? cause.message : cause}\n…${tail}`, { cause });
    }
  }
}

/** First 16 bytes of the content hash of what is read, hex. */
export async function hashOf(
  read: (from: number, length: number) => Promise<Uint8Array>,
  payloadBytes: number,
): Promise<string> {
  const hashes = Buffer.alloc(leafCount(payloadBytes) * HASH_BYTES);
  let leaf = 0;
  const hasher = new LeafHasher((hash) => hashes.set(hash, leaf++ * HASH_BYTES));
  for (let at = 0; at < payloadBytes; at += CHUNK)
    hasher.update(await read(at, Math.min(CHUNK, payloadBytes - at)));
  hasher.end();
  return Buffer.from(merkleRoot(hashes)).toString("hex").slice(0, 32);
}

const CHUNK = 4 << 20;

/** Looks at the card of a Pi that is off: the record that counts, and the slots whose every byte is what it says. */
export async function lookAtCard(card: string): Promise<{ record: BootRecord; whole: SlotName[] }> {
  const disk = await openDisk(card, "read");
  try {
    const { newest } = await readRecords(disk, "cache");
    if (!newest) throw new Error(`${card}: no valid record`);
    const { record } = newest;
    const partitions = readPartitions(await disk.read(0, 512)) ?? [];
    const whole: SlotName[] = [];
    for (const slot of SLOTS) {
      const { payloadBytes, hash } = record.slots[slot];
      const partition = partitions.find(({ number }) => number === PARTITIONS[slot]);
      if (!partition || payloadBytes === 0) continue;
      if ((await hashOf((from, length) => disk.read(partition.offset + from, length), payloadBytes)) === hash)
        whole.push(slot);
    }
    return { record, whole };
  } finally {
    await disk.close();
  }
}
