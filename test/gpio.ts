/** Two kernels with GPIO lines, played in this process: sysfs as a folder of files, the character device at its ioctls. */
import { constants, openSync, readFileSync, readlinkSync, rmSync, writeFileSync, writeSync } from "node:fs";
import { createRequire } from "node:module";
import { basename, join } from "node:path";
import type { Gpio } from "onoff";
import type { GpioKernel } from "../hal/gpio.ts";
import { FLAG, IOCTL, LAYOUT } from "../hal/native/gpiochip.ts";
import { type Buffered, ioctl, systemError } from "../hal/native/libc.ts";
import { scratch, until } from "./node.ts";

const ERRNO = { EPERM: 1, EBUSY: 16, EINVAL: 22 };

/** onoff itself, on another root, with an epoll that tells an edge when a test does. */
export function onoffAt(root: string): { Line: typeof Gpio; edge(number: number): void } {
  const path = Bun.resolveSync("onoff", import.meta.dir);
  const source = readFileSync(path, "utf8").replace("'/sys/class/gpio/'", JSON.stringify(`${root}/`));
  const waiting = new Map<number, () => void>();
  class Epoll {
    static EPOLLPRI = 2;
    readonly #told: () => void;
    constructor(told: () => void) {
      this.#told = told;
    }
    add(file: number): void {
      waiting.set(file, this.#told);
    }
    remove(file: number): void {
      waiting.delete(file);
    }
  }
  const real = createRequire(path);
  const found = { exports: {} as { Gpio: typeof Gpio } };
  const ask = (name: string) => (name === "epoll" ? { Epoll } : real(name));
  new Function("require", "module", source)(ask, found);
  return {
    Line: found.exports.Gpio,
    edge: (number) => {
      for (const [file, told] of waiting)
        if (readlinkSync(`/proc/self/fd/${file}`) === join(root, `gpio${number}`, "value")) told();
    },
  };
}

/** A folder that does what /sys/class/gpio does, a moment later. */
export class FakeSysfs implements AsyncDisposable {
  readonly root: string;
  readonly base: number;
  readonly #folder = scratch();
  readonly #stop = new AbortController();
  readonly #running: Promise<void>;
  #turns = 0;

  constructor(label = "pinctrl-bcm2711", base = 512) {
    this.root = this.#folder.path;
    this.base = base;
    // As on a Pi 4: an expander of the firmware comes first, and the numbers are not its
    this.#chip("gpiochip570", { base: 570, label: "raspberrypi-exp-gpio", ngpio: 8 });
    this.#chip(`gpiochip${base}`, { base, label, ngpio: 58 });
    for (const file of ["export", "unexport"]) this.put(file, "");
    this.#running = this.#run();
  }

  get(path: string): string {
    return readFileSync(join(this.root, path), "utf8");
  }

  put(path: string, text: string): void {
    writeFileSync(join(this.root, path), text);
  }

  /** Exports a line as somebody did before. */
  export(gpio: number, files: { direction: string; value: string; edge?: string }): void {
    const folder = `gpio${this.base + gpio}`;
    Bun.spawnSync(["mkdir", join(this.root, folder)]);
    for (const [file, text] of Object.entries({ active_low: "0", edge: "none", ...files }))
      this.put(join(folder, file), `${text}\n`);
  }

  /** A file of a line; undefined while it is not exported. */
  line(gpio: number, file: string): string | undefined {
    try {
      return this.get(`gpio${this.base + gpio}/${file}`);
    } catch {
      return undefined;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    await this.#running;
    this.#folder[Symbol.dispose]();
  }

  #chip(name: string, facts: Record<string, string | number>): void {
    Bun.spawnSync(["mkdir", join(this.root, name)]);
    for (const [file, fact] of Object.entries(facts)) this.put(join(name, file), `${fact}\n`);
  }

  /** Resolves when the kernel has seen all that was written until now. */
  async settled(): Promise<void> {
    const turn = this.#turns;
    await until("two turns of the kernel", () => this.#turns >= turn + 2);
  }

  async #run(): Promise<void> {
    for (; !this.#stop.signal.aborted; this.#turns++) {
      const [wanted, unwanted] = [this.#asked("export"), this.#asked("unexport")];
      if (wanted !== undefined) this.export(wanted - this.base, { direction: "in", value: "0" });
      if (unwanted !== undefined) rmSync(join(this.root, `gpio${unwanted}`), { recursive: true });
      for (const name of new Bun.Glob("gpio[0-9]*/direction").scanSync(this.root)) this.#drive(name);
      await Bun.sleep(1);
    }
  }

  #asked(file: "export" | "unexport"): number | undefined {
    const text = this.get(file);
    if (text === "") return undefined;
    this.put(file, "");
    return Number(text);
  }

  #drive(file: string): void {
    const direction = this.get(file);
    if (direction !== "high" && direction !== "low") return;
    this.put(file.replace("direction", "value"), direction === "high" ? "1\n" : "0\n");
    this.put(file, "out\n");
  }
}

/** A line of a chip as the kernel keeps it. */
export interface FakeLine {
  name: string;
  consumer: string;
  flags: number;
  level: 0 | 1;
  /** Everything that was done to it: `input`, `output 1`, `as it is`. */
  done: string[];
  /** The file that it was given away with. */
  file: number | undefined;
}

/** `/dev/gpiochip*` and what ioctl(2) does on them. */
export class FakeChips implements Disposable {
  readonly dev: string;
  readonly lines: FakeLine[];
  readonly #folder = scratch();
  readonly #label: string;

  constructor(label = "pinctrl-rp1", lines = 54) {
    this.dev = this.#folder.path;
    this.#label = label;
    this.#folder.file("gpiochip0", "");
    this.#folder.file("gpiochip4", "");
    this.lines = Array.from({ length: lines }, (_, gpio) => ({
      name: `GPIO${gpio}`,
      consumer: "",
      flags: FLAG.input,
      level: 0,
      done: [],
      file: undefined,
    }));
  }

  line(gpio: number): FakeLine {
    const line = this.lines[gpio];
    if (!line) throw new Error(`no line ${gpio}`);
    return line;
  }

  /** Whether the line's file is still open. */
  isHeld(gpio: number): boolean {
    const { file } = this.line(gpio);
    try {
      return file !== undefined && readlinkSync(`/proc/self/fd/${file}`) === join(this.dev, `line${gpio}`);
    } catch {
      return false;
    }
  }

  /** Edges as the kernel queues them. */
  edges(gpio: number, levels: readonly (0 | 1)[]): void {
    const bytes = new Uint8Array(levels.length * LAYOUT.event.size);
    const view = new DataView(bytes.buffer);
    for (const [i, level] of levels.entries())
      view.setUint32(i * LAYOUT.event.size + LAYOUT.event.id, level ? 1 : 2, true);
    writeSync(this.line(gpio).file ?? -1, bytes);
  }

  readonly ioctl = (file: number, request: number, argument: Buffered | number): number => {
    const view = argument as DataView;
    if (request === IOCTL.chip) return this.#chip(file, view);
    if (request === IOCTL.info) return this.#info(this.#at(view.getUint32(LAYOUT.info.offset, true)), view);
    if (request === IOCTL.request) return this.#request(view);
    const line = this.lines.find((one) => one.file === file);
    // Not a line: the thread of a heart in a test that has real files
    if (!line) return ioctl(file, request, argument);
    if (request === IOCTL.config) return configure(line, view, 0);
    if (request === IOCTL.set) return set(line, view);
    view.setUint32(LAYOUT.values.bits, line.level, true);
    return 0;
  };

  [Symbol.dispose](): void {
    this.#folder[Symbol.dispose]();
  }

  #at(gpio: number): FakeLine {
    const line = this.lines[gpio];
    if (!line) throw systemError("ioctl", ERRNO.EINVAL);
    return line;
  }

  #chip(file: number, view: DataView): number {
    const isOurs = basename(readlinkSync(`/proc/self/fd/${file}`)) === "gpiochip4";
    put(view, LAYOUT.chip.label, isOurs ? this.#label : "gpio-brcmstb");
    view.setUint32(LAYOUT.chip.lines, isOurs ? this.lines.length : 32, true);
    return 0;
  }

  #info(line: FakeLine, view: DataView): number {
    put(view, LAYOUT.info.name, line.name);
    put(view, LAYOUT.info.consumer, line.consumer);
    view.setUint32(LAYOUT.info.flags, line.flags | (line.consumer ? FLAG.used : 0), true);
    return 0;
  }

  #request(view: DataView): number {
    const gpio = view.getUint32(LAYOUT.request.offsets, true);
    const line = this.#at(gpio);
    if (view.getUint32(LAYOUT.request.count, true) !== 1) throw systemError("ioctl", ERRNO.EINVAL);
    if (line.consumer && (line.consumer !== "fruit" || this.isHeld(gpio)))
      throw systemError("ioctl", ERRNO.EBUSY);
    configure(line, view, LAYOUT.request.config);
    line.consumer = Buffer.from(view.buffer, LAYOUT.request.consumer, 32).toString().replace(/\0.*/s, "");
    const fifo = join(this.dev, `line${gpio}`);
    Bun.spawnSync(["mkfifo", fifo]);
    line.file = openSync(fifo, constants.O_RDWR | constants.O_NONBLOCK);
    view.setInt32(LAYOUT.request.file, line.file, true);
    return 0;
  }
}

function put(view: DataView, at: number, text: string): void {
  new Uint8Array(view.buffer).set(Buffer.from(text), at);
}

/** As linereq_set_config of drivers/gpio/gpiolib-cdev.c: a line without a direction is left as it is. */
function configure(line: FakeLine, view: DataView, at: number): number {
  const flags = view.getUint32(at + LAYOUT.config.flags, true);
  if (flags & FLAG.output) {
    const hasLevel = view.getUint32(at + LAYOUT.config.attributes, true) === 1;
    const isLevel = view.getUint32(at + LAYOUT.config.id, true) === 2;
    if (!hasLevel || !isLevel || view.getUint32(at + LAYOUT.config.mask, true) !== 1)
      throw systemError("ioctl", ERRNO.EINVAL);
    line.level = (view.getUint32(at + LAYOUT.config.value, true) & 1) as 0 | 1;
    line.done.push(`output ${line.level}`);
  } else line.done.push(flags & FLAG.input ? "input" : "as it is");
  if (flags !== 0) line.flags = flags;
  return 0;
}

/** As linereq_set_values: an input has no level to set. */
function set(line: FakeLine, view: DataView): number {
  if (!(line.flags & FLAG.output)) throw systemError("ioctl", ERRNO.EPERM);
  line.level = (view.getUint32(LAYOUT.values.bits, true) & 1) as 0 | 1;
  line.done.push(`level ${line.level}`);
  return 0;
}

/** A kernel of the two, or of one where the other is not there. */
export function kernelOf(parts: {
  sysfs?: FakeSysfs;
  chips?: FakeChips;
  Line?: typeof Gpio;
  model?: string;
}): GpioKernel {
  const { sysfs, chips, Line, model } = parts;
  return {
    sysfs: sysfs?.root ?? "/nowhere/gpio",
    dev: chips?.dev ?? "/nowhere",
    model: model ?? "/nowhere/model",
    onoff: async () => Line ?? onoffAt(sysfs?.root ?? "").Line,
    ioctl: chips?.ioctl ?? ioctl,
  };
}
