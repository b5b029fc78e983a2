/**
 * GPIO lines of Linux, by their numbers on the SoC (BCM): sysfs through onoff where the kernel still has it, the character
 * device otherwise. Two ways, one behaviour, but for this: when the agent dies, sysfs keeps an output's level and the
 * character device lets go of it, so relays belong on sysfs (`fruit doctor` says where they are not).
 */
import { existsSync, readFileSync } from "node:fs";
import type { Gpio } from "onoff";
import { type ChipLine, chipLabels, findChip, type GpioChip, type Wanted } from "./native/gpiochip.ts";
import { ioctl } from "./native/libc.ts";
import { type GpioFacts, type GpioLine, type GpioUse, HalError, type HalErrorCode } from "./ports.ts";
import {
  findSysfsChip,
  folderOf,
  openSysfsLine,
  type SysfsChip,
  type SysfsLine,
  sysfsChips,
} from "./sysfs-gpio.ts";

/** The SoC's own lines: Pi 1 to 3 and Zero, Pi 4, Pi 5 (labels of drivers/pinctrl). Expanders have others. */
const SOC = /^pinctrl-(bcm2835|bcm2711|rp1)$/;

/** Where the kernel shows its lines. */
export interface GpioKernel {
  sysfs: string;
  /** Where `gpiochip0` is. */
  dev: string;
  /** File with the machine's model, as the firmware names it. */
  model: string;
  onoff(): Promise<typeof Gpio>;
  ioctl: typeof ioctl;
}

/** This machine's own. */
const KERNEL: GpioKernel = {
  sysfs: "/sys/class/gpio",
  dev: "/dev",
  model: "/proc/device-tree/model",
  // Not before it is needed: few nodes have GPIO to do.
  onoff: async () => (await import("onoff")).Gpio,
  ioctl,
};

/** The SoC's chip; any other machine than a Pi has lines of its own on the first one. */
function wantedOf({ model }: GpioKernel): Wanted {
  const isPi = existsSync(model) && readFileSync(model, "utf8").startsWith("Raspberry Pi");
  return { label: SOC, orFirst: !isPi };
}

const chipOf = (kernel: GpioKernel) => findChip(kernel.dev, wantedOf(kernel), kernel.ioctl);
const sysfsOf = (kernel: GpioKernel) => findSysfsChip(kernel.sysfs, wantedOf(kernel));

/** Every GPIO line of the SoC, as far as the kernel tells. */
export async function listGpio(kernel = KERNEL): Promise<GpioFacts[]> {
  try {
    using chip = chipOf(kernel);
    if (chip) return Array.from({ length: chip.lines }, (_, gpio) => chip.facts(gpio));
  } catch {
    // Not for us to open: sysfs says less, and to everybody.
  }
  const { base, lines } = sysfsOf(kernel) ?? { base: 0, lines: 0 };
  return Array.from({ length: lines }, (_, gpio) => ({
    gpio,
    ...(existsSync(folderOf(kernel.sysfs, base + gpio)) ? { consumer: "sysfs" } : {}),
    direction: "unknown",
  }));
}

/** Opens one line. */
export function openGpio(gpio: number, use: GpioUse, kernel = KERNEL): Promise<GpioLine> {
  return openLine(gpio, use, kernel);
}

/** Opens one line so that a thread can drive it as well. */
export async function openLine(gpio: number, use: GpioUse, kernel = KERNEL): Promise<OpenLine> {
  const sysfs = sysfsOf(kernel);
  try {
    return new OpenLine(gpio, await open(gpio, use, kernel, sysfs));
  } catch (error) {
    throw explained(error, gpio, sysfs, kernel);
  }
}

async function open(
  gpio: number,
  use: GpioUse,
  kernel: GpioKernel,
  sysfs: SysfsChip | undefined,
): Promise<SysfsLine | ChipLine> {
  if (sysfs && !needsChip(gpio, use, kernel, sysfs)) {
    refuseBeyond(gpio, sysfs);
    return openSysfsLine(kernel.sysfs, sysfs.base + gpio, use, await kernel.onoff());
  }
  const chip = chipOf(kernel);
  if (!chip) throw new HalError("absent", `GPIO${gpio}: ${whyNoChip(kernel, sysfs)}`);
  try {
    refuseBeyond(gpio, chip);
    return chip.take(gpio, use);
  } catch (error) {
    chip[Symbol.dispose]();
    throw error;
  }
}

function whyNoChip(kernel: GpioKernel, sysfs: SysfsChip | undefined): string {
  const chips = `${kernel.dev}/gpiochip*`;
  if (sysfs) return `sysfs cannot set a pull, and there is no ${chips} of ${sysfs.label}`;
  const labels = [
    ...sysfsChips(kernel.sysfs).map(({ label }) => label),
    ...chipLabels(kernel.dev, kernel.ioctl),
  ];
  if (labels.length === 0) return `the kernel shows no GPIO lines in ${kernel.sysfs} nor ${chips}`;
  return `the kernel shows no chip of a Raspberry Pi's own lines, only ${[...new Set(labels)].join(", ")}`;
}

/**
 * Whether only the character device will do: sysfs cannot set a pull. `none` is no reason to fail where sysfs is all
 * there is, or has the line already: it is then as the firmware left it.
 */
function needsChip(gpio: number, use: GpioUse, kernel: GpioKernel, { base }: SysfsChip): boolean {
  if (use.direction !== "in" || use.bias === undefined) return false;
  if (use.bias !== "none") return true;
  if (existsSync(folderOf(kernel.sysfs, base + gpio))) return false;
  try {
    using chip = chipOf(kernel);
    return chip !== undefined;
  } catch {
    return false;
  }
}

function refuseBeyond(gpio: number, { label, lines }: Pick<GpioChip, "label" | "lines">): void {
  if (gpio >= lines)
    throw new HalError("absent", `GPIO${gpio}: ${label} has ${lines} lines, GPIO0 to GPIO${lines - 1}`);
}

/** What the kernel's refusals mean, and what to do. */
const MEANINGS: Record<string, [code: HalErrorCode, words: string]> = {
  ENODEV: ["absent", "the kernel has no such line"],
  ENOENT: ["absent", "the kernel does not show the line"],
  EACCES: [
    "io",
    "no permission; run as root, or as a member of the group of /dev/gpiochip0 and /sys/class/gpio",
  ],
  EPERM: [
    "io",
    "no permission; run as root, or as a member of the group of /dev/gpiochip0 and /sys/class/gpio",
  ],
};

function explained(cause: unknown, gpio: number, sysfs: SysfsChip | undefined, kernel: GpioKernel): HalError {
  if (cause instanceof HalError) return cause;
  const { code = "", message } = cause as NodeJS.ErrnoException;
  if (code === "EBUSY")
    return new HalError("busy", `GPIO${gpio}: is taken by ${consumerOf(gpio, sysfs, kernel)}`, { cause });
  const [meaning, words] = MEANINGS[code] ?? ["io", message];
  return new HalError(meaning, `GPIO${gpio}: ${words}`, { cause });
}

function consumerOf(gpio: number, sysfs: SysfsChip | undefined, kernel: GpioKernel): string {
  try {
    using chip = chipOf(kernel);
    const { consumer } = chip?.facts(gpio) ?? {};
    if (consumer === "sysfs")
      return `somebody who exported it in ${kernel.sysfs} (give it back: echo ${(sysfs?.base ?? 0) + gpio} > ${kernel.sysfs}/unexport)`;
    if (consumer) return consumer;
  } catch {
    // Who it is stands nowhere else.
  }
  return "a driver of the kernel, or another program";
}

/** A line in our words: what fails is a `HalError`, and nothing reaches the kernel once it is closed. */
export class OpenLine implements GpioLine {
  readonly gpio: number;
  readonly #line: SysfsLine | ChipLine;
  #isClosed = false;
  /** What the kernel was asked and has not answered. */
  readonly #doing = new Set<Promise<unknown>>();

  constructor(gpio: number, line: SysfsLine | ChipLine) {
    this.gpio = gpio;
    this.#line = line;
  }

  /** How a thread drives it: an `ioctl` of this request, or, without one, writing `0` or `1` to the file. */
  get drive(): { file: number; request?: number } {
    return this.#line.drive;
  }

  read(): Promise<0 | 1> {
    return this.#do("read", () => this.#line.read());
  }

  direction(): Promise<"in" | "out"> {
    return this.#do("read its direction", () => (this.#line.isOutput() ? "out" : "in"));
  }

  write(value: 0 | 1): Promise<void> {
    return this.#do(`write ${value}`, () => this.#line.write(value));
  }

  onEdge(happened: (value: 0 | 1) => void): void {
    if (this.#isClosed) throw this.#failed("wait for edges", "it is closed");
    try {
      this.#line.onEdge(happened);
    } catch (cause) {
      throw this.#failed("wait for edges", cause);
    }
  }

  async close(): Promise<void> {
    if (this.#isClosed) return;
    this.#isClosed = true;
    await Promise.allSettled(this.#doing);
    try {
      this.#line.close();
    } catch (cause) {
      throw this.#failed("close", cause);
    }
  }

  async #do<T>(what: string, operation: () => T | Promise<T>): Promise<T> {
    // The number of its file may be another file's by now.
    if (this.#isClosed) throw this.#failed(what, "it is closed");
    const doing = (async () => operation())();
    this.#doing.add(doing);
    try {
      return await doing;
    } catch (cause) {
      throw this.#failed(what, cause);
    } finally {
      this.#doing.delete(doing);
    }
  }

  #failed(what: string, cause: unknown): HalError {
    const why = cause instanceof Error ? cause.message : String(cause);
    return new HalError("io", `GPIO${this.gpio}: cannot ${what}: ${why}`, { cause });
  }
}
