/**
 * GPIO lines through sysfs, on onoff (Documentation/ABI/obsolete/sysfs-gpio). A line stays exported, and an output keeps
 * its level, when whoever drove it ends: what a relay needs. What fails throws the kernel's errno.
 * A program that is killed (SIGKILL) in the middle of a pulse or a beat therefore leaves that level: a heartbeat line is
 * low again as soon as the agent runs, which opens it low; a pulsed line stays until somebody sets it.
 *
 * onoff takes global numbers: those of the SoC's own lines begin at its chip's `base`, 512 since Linux 6.6.
 */
import {
  accessSync,
  closeSync,
  constants,
  existsSync,
  readdirSync,
  readFileSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { Gpio } from "onoff";
import type { Wanted } from "./native/gpiochip.ts";
import type { GpioUse } from "./ports.ts";

/** A line that was just exported is there by then, udev's permissions included. */
const EXPORT_MS = 1000;
const LOOK_MS = 5;

/** Where the lines of a chip begin among all that the kernel has. */
export interface SysfsChip {
  label: string;
  base: number;
  lines: number;
}

/** All chips that sysfs shows, by their numbers; none where the kernel has no GPIO in sysfs. */
export function sysfsChips(root: string): SysfsChip[] {
  const names = existsSync(root) ? readdirSync(root) : [];
  return names
    .filter((name) => /^gpiochip\d+$/.test(name))
    .map((name) => {
      const fact = (file: string) => readFileSync(join(root, name, file), "utf8").trim();
      return { label: fact("label"), base: Number(fact("base")), lines: Number(fact("ngpio")) };
    })
    .sort((a, b) => a.base - b.base);
}

/** The chip that is meant; the first is the one with the lowest numbers. */
export function findSysfsChip(root: string, { label, orFirst }: Wanted): SysfsChip | undefined {
  const chips = sysfsChips(root);
  const found = chips.find((chip) => label.test(chip.label));
  return found ?? (orFirst ? chips[0] : undefined);
}

/** The folder of a line while it is exported. */
export function folderOf(root: string, number: number): string {
  return join(root, `gpio${number}`);
}

/** Exports a line if nobody has yet, and sets it up. `Line` is onoff's `Gpio`. */
export async function openSysfsLine(
  root: string,
  number: number,
  use: GpioUse,
  Line: typeof Gpio,
): Promise<SysfsLine> {
  const folder = folderOf(root, number);
  const isNew = !existsSync(folder);
  if (isNew) writeFileSync(join(root, "export"), String(number));
  try {
    await usable(folder);
    const before = readFileSync(join(folder, "direction"), "utf8").trim() === "out" ? "out" : "in";
    // As it is: onoff passes over what it fails to set up on a line that was exported already.
    const line = new SysfsLine(new Line(number, before, "none", { reconfigureDirection: false }), use, isNew);
    try {
      line.setUp();
    } catch (error) {
      closeSync(line.drive.file);
      throw error;
    }
    return line;
  } catch (error) {
    if (isNew) writeFileSync(join(root, "unexport"), String(number));
    throw error;
  }
}

/** Resolves when the files of a line may be read and written. */
async function usable(folder: string): Promise<void> {
  const endMs = performance.now() + EXPORT_MS;
  for (;;) {
    try {
      for (const file of ["value", "direction"])
        accessSync(join(folder, file), constants.R_OK | constants.W_OK);
      return;
    } catch (error) {
      if (performance.now() >= endMs) throw error;
      await sleep(LOOK_MS);
    }
  }
}

/** A line that is open. */
export class SysfsLine {
  /** How a thread drives it: writing `0` or `1` to this file. */
  readonly drive: { file: number };
  readonly #line: Gpio;
  readonly #use: GpioUse;
  readonly #isNew: boolean;

  constructor(line: Gpio, use: GpioUse, isNew: boolean) {
    this.#line = line;
    this.#use = use;
    this.#isNew = isNew;
    // onoff's own: it has no other way to end a line than to unexport it, which lets go of an output.
    this.drive = { file: (line as unknown as { _valueFd: number })._valueFd };
  }

  setUp(): void {
    // Levels are those of the pin.
    if (this.#line.activeLow()) this.#line.setActiveLow(false);
    if (this.#use.direction === "as-is") return;
    this.#quiet();
    if (this.#use.direction === "out") this.#output(this.#use.initial);
    else this.#line.setDirection("in");
    if (this.#use.direction === "in" && this.#use.edge) this.#line.setEdge(this.#use.edge);
  }

  read(): Promise<0 | 1> {
    return this.#line.read();
  }

  isOutput(): boolean {
    return this.#line.direction() !== "in";
  }

  async write(value: 0 | 1): Promise<void> {
    if (this.isOutput()) {
      await this.#line.write(value);
      return;
    }
    this.#quiet();
    this.#output(value);
  }

  onEdge(happened: (value: 0 | 1) => void): void {
    this.#line.unwatchAll();
    this.#line.watch((error, value) => {
      if (!error) happened(value);
    });
  }

  close(): void {
    this.#line.unwatchAll();
    try {
      if (this.#use.direction !== "in") return;
      this.#quiet();
      this.#line.setDirection("in");
    } finally {
      if (this.#use.direction === "in" && this.#isNew) this.#line.unexport();
      else closeSync(this.drive.file);
    }
  }

  /** Direction and level in one write, so that no other level is seen between. */
  #output(level: 0 | 1): void {
    this.#line.setDirection(level ? "high" : "low");
  }

  /** The kernel refuses to make an output of a line that tells edges (EIO). A line that cannot tell any has no such file. */
  #quiet(): void {
    try {
      if (this.#line.edge() !== "none") this.#line.setEdge("none");
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
    }
  }
}
