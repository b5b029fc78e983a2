/**
 * Starts of a good slot, one boot id a line in `DATA/boot/starts.a` and `.b`, until one has been healthy for long enough; the initramfs
 * adds them too, for a system that does not come as far as its agent. Many in a row are a loop: nothing is then tried or installed by
 * itself, and the watchdog is fed whatever happens, so that a person can log in. Ten in a row are too many: the initramfs has the
 * other slot take over where it can (`image/rootfs/initramfs/lib/fruit/starts.sh`), and leaves them in `DATA/boot/spent.a` and `.b`.
 */
import { mkdirSync, rmSync, writeFileSync } from "node:fs";
import { appendFile, readFile, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { SLOTS, type SlotName } from "../../boot/layout.ts";
import type { BootOptions } from "./service.ts";

/** Starts that are written down; the initramfs has the same number. */
export const STARTS_MOST = 1000;

const listOf = (dir: string, slot: SlotName) => join(dir, `starts.${slot}`);

/** Notes this start, once for each boot of the machine. Returns how many there were without health in between, this one included. */
export async function countStart(dir: string, slot: SlotName, boot: string): Promise<number> {
  const lines = await startsIn(dir, slot);
  if (lines.includes(boot)) return lines.length;
  if (lines.length < STARTS_MOST)
    await appendFile(listOf(dir, slot), `${boot}\n`, { mode: 0o600, flush: true });
  return lines.length + 1;
}

/** Starts of a slot since the last healthy one; none where the file cannot be read. */
export const startsIn = (dir: string, slot: SlotName) => bootsIn(listOf(dir, slot));

/** Starts of a slot that the initramfs last had give way to the other. */
export const spentIn = (dir: string, slot: SlotName) => bootsIn(join(dir, `spent.${slot}`));

async function bootsIn(file: string): Promise<string[]> {
  const text = await readFile(file, "utf8").catch(() => "");
  return [...new Set(text.split("\n").filter((line) => /^[\w-]{1,64}$/.test(line)))];
}

/** This start was a healthy one, or what is started from now on is something else: neither slot has anything against it. */
export async function clearStarts(dir: string): Promise<void> {
  for (const slot of SLOTS)
    for (const file of [listOf(dir, slot), join(dir, `dead.${slot}`)]) await rm(file, { force: true });
}

/** This start ends in an orderly way: it was none in vain. */
export async function forgetStart(dir: string, boot: string): Promise<void> {
  for (const slot of SLOTS) {
    const lines = await startsIn(dir, slot);
    if (!lines.includes(boot)) continue;
    const file = listOf(dir, slot);
    const rest = lines.filter((line) => line !== boot);
    await writeFile(`${file}.new`, rest.map((line) => `${line}\n`).join(""), { mode: 0o600, flush: true });
    await rename(`${file}.new`, file);
  }
}

/** Notices a loop, and its end. */
export class LoopBreaker {
  readonly #dir: string;
  readonly #options: Pick<BootOptions, "config" | "alarm" | "log" | "hal">;
  #starts: number | undefined;

  constructor(dir: string, options: Pick<BootOptions, "config" | "alarm" | "log" | "hal">) {
    this.#dir = dir;
    this.#options = options;
  }

  /** Starts in a row, while they are a loop. */
  get starts(): number | undefined {
    return this.#starts;
  }

  /** Counts this start of a slot; with too many of them the alarm is raised and the feeder told. */
  async count(slot: SlotName): Promise<void> {
    const { config, alarm, log, hal } = this.#options;
    const starts = await countStart(this.#dir, slot, hal.machine.bootId).catch((error) => {
      log("error", "boot.not-written", { error: String(error) });
      return 0;
    });
    if (starts < config.loop_starts) return alarm("reboot-loop", null);
    this.#starts = starts;
    const message = `this node was started ${starts} times without staying up for ${config.healthy_seconds} s; nothing is tried or installed by itself, and it stays up to be looked at`;
    log("error", "boot.loop", { starts });
    alarm("reboot-loop", { severity: "critical", message });
    try {
      mkdirSync(config.run_dir, { recursive: true, mode: 0o755 });
      writeFileSync(join(config.run_dir, "loop"), `${message}\n`);
    } catch (error) {
      log("error", "boot.loop-not-told", { error: String(error) });
    }
  }

  /** Up for so long without a crash, this start was a healthy one. */
  async recover(upMs: number): Promise<void> {
    const { config, alarm } = this.#options;
    if (upMs < config.healthy_seconds * 1000) return;
    await clearStarts(this.#dir);
    rmSync(join(config.run_dir, "loop"), { force: true });
    this.#starts = undefined;
    alarm("reboot-loop", null);
  }
}
