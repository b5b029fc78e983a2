/**
 * GPIO lines through the character device, version 2 (Linux 5.10 and later; linux/gpio.h, Documentation/userspace-api/gpio).
 * What fails throws the kernel's errno; `hal/gpio.ts` says it in our words.
 *
 * A line is ours while its file is open. Then the kernel takes it back: it becomes an input again, unless its driver
 * was told otherwise (pinctrl-bcm2835.persist_gpio_outputs=1).
 */
import { closeSync, openSync, readdirSync, readSync } from "node:fs";
import { join } from "node:path";
import type { GpioFacts, GpioUse } from "../ports.ts";
import { ioctl } from "./libc.ts";
import { EPOLL, type Watch, watch } from "./threads.ts";

/** Sizes and offsets of the kernel's structures, the same on every 64-bit machine. */
export const LAYOUT = {
  chip: { size: 68, label: 32, lines: 64 },
  info: { size: 256, name: 0, consumer: 32, offset: 64, flags: 72 },
  request: { size: 592, offsets: 0, consumer: 256, config: 288, count: 560, file: 588 },
  config: { size: 272, flags: 0, attributes: 8, id: 32, value: 40, mask: 48 },
  values: { size: 16, bits: 0, mask: 8 },
  event: { size: 48, id: 8 },
} as const;
const NAME_SIZE = 32;

/** Requests of ioctl(2). */
export const IOCTL = {
  chip: 0x8044b401,
  info: 0xc100b405,
  request: 0xc250b407,
  config: 0xc110b40d,
  get: 0xc010b40e,
  set: 0xc010b40f,
} as const;

/** `GPIO_V2_LINE_FLAG_…` */
export const FLAG = {
  used: 1 << 0,
  input: 1 << 2,
  output: 1 << 3,
  rising: 1 << 4,
  falling: 1 << 5,
  up: 1 << 8,
  down: 1 << 9,
  noBias: 1 << 10,
} as const;
/** `GPIO_V2_LINE_ATTR_ID_OUTPUT_VALUES` */
const OUTPUT_VALUES = 2;
/** `GPIO_V2_LINE_EVENT_RISING_EDGE`; a falling one is 2. */
const RISING_EDGE = 1;
/** Edges taken in one turn; more wait in the kernel, which keeps 16. */
const MOST_EDGES = 16;

const EDGES = { rising: FLAG.rising, falling: FLAG.falling, both: FLAG.rising | FLAG.falling };
const BIASES = { "pull-up": FLAG.up, "pull-down": FLAG.down, none: FLAG.noBias };

/** An open GPIO chip. */
export class GpioChip implements Disposable {
  readonly label: string;
  readonly lines: number;
  readonly #file: number;
  readonly #path: string;
  readonly #ioctl: typeof ioctl;

  constructor(path: string, call: typeof ioctl) {
    this.#path = path;
    this.#ioctl = call;
    this.#file = openSync(path, "r+");
    const chip = new DataView(new ArrayBuffer(LAYOUT.chip.size));
    try {
      call(this.#file, IOCTL.chip, chip, path);
    } catch (error) {
      closeSync(this.#file);
      throw error;
    }
    this.label = text(chip, LAYOUT.chip.label);
    this.lines = chip.getUint32(LAYOUT.chip.lines, true);
  }

  /** What the kernel says of a line. */
  facts(gpio: number): GpioFacts {
    const info = new DataView(new ArrayBuffer(LAYOUT.info.size));
    info.setUint32(LAYOUT.info.offset, gpio, true);
    this.#ioctl(this.#file, IOCTL.info, info, `${this.#path} line ${gpio}`);
    const flags = info.getUint32(LAYOUT.info.flags, true);
    const name = text(info, LAYOUT.info.name);
    const consumer = text(info, LAYOUT.info.consumer) || (flags & FLAG.used ? "the kernel" : "");
    return {
      gpio,
      ...(name ? { name } : {}),
      ...(consumer ? { consumer } : {}),
      direction: flags & FLAG.output ? "out" : "in",
    };
  }

  /** Takes a line. The chip stays open with it, and is closed with it. */
  take(gpio: number, use: GpioUse): ChipLine {
    const request = new DataView(new ArrayBuffer(LAYOUT.request.size));
    request.setUint32(LAYOUT.request.offsets, gpio, true);
    new Uint8Array(request.buffer).set(Buffer.from("fruit"), LAYOUT.request.consumer);
    configure(
      request,
      LAYOUT.request.config,
      flagsOf(use),
      use.direction === "out" ? use.initial : undefined,
    );
    request.setUint32(LAYOUT.request.count, 1, true);
    this.#ioctl(this.#file, IOCTL.request, request, `${this.#path} line ${gpio}`);
    return new ChipLine(this, gpio, use, request.getInt32(LAYOUT.request.file, true), this.#ioctl);
  }

  [Symbol.dispose](): void {
    closeSync(this.#file);
  }
}

/** A line that was taken. */
export class ChipLine {
  /** How a thread drives it: `ioctl` of this request with `struct gpio_v2_line_values`. */
  readonly drive: { file: number; request: number };
  readonly #chip: GpioChip;
  readonly #gpio: number;
  readonly #use: GpioUse;
  readonly #file: number;
  readonly #ioctl: typeof ioctl;
  #watch: Watch | undefined;
  #isOutput: boolean;

  constructor(chip: GpioChip, gpio: number, use: GpioUse, file: number, call: typeof ioctl) {
    this.#chip = chip;
    this.#gpio = gpio;
    this.#use = use;
    this.#file = file;
    this.#ioctl = call;
    // Of one that was opened as it is the kernel takes no level, output or not, before it is configured as one.
    this.#isOutput = use.direction === "out";
    this.drive = { file, request: IOCTL.set };
  }

  read(): 0 | 1 {
    const values = valuesOf(0);
    this.#ioctl(this.#file, IOCTL.get, values, `line ${this.#gpio}`);
    return (values.getUint32(LAYOUT.values.bits, true) & 1) as 0 | 1;
  }

  isOutput(): boolean {
    return this.#chip.facts(this.#gpio).direction === "out";
  }

  write(value: 0 | 1): void {
    if (this.#isOutput) {
      this.#ioctl(this.#file, IOCTL.set, valuesOf(value), `line ${this.#gpio}`);
      return;
    }
    this.#configure(FLAG.output, value);
    this.#isOutput = true;
  }

  /** Calls back at each edge; what it throws is its own matter and ends nothing. */
  onEdge(happened: (value: 0 | 1) => void): void {
    this.#watch?.close();
    const events = new Uint8Array(MOST_EDGES * LAYOUT.event.size);
    const tell = (value: 0 | 1) => {
      try {
        happened(value);
      } catch {
        // Nobody here could do anything about it, and the next edge is another
      }
    };
    const news = watch(this.#file, (ready) => {
      // Without an edge to read, the chip is gone: whoever reads the line next is told.
      if ((ready & EPOLL.in) === 0) return news.close();
      try {
        const length = readSync(this.#file, events);
        for (const value of edgesIn(events.subarray(0, length))) tell(value);
        news.arm(EPOLL.in);
      } catch {
        news.close();
      }
    });
    this.#watch = news;
    news.arm(EPOLL.in);
  }

  close(): void {
    this.#watch?.close();
    try {
      // Where outputs persist, the kernel would leave it driven.
      if (this.#use.direction === "in" && this.#isOutput) this.#configure(FLAG.input | FLAG.noBias);
    } finally {
      closeSync(this.#file);
      this.#chip[Symbol.dispose]();
    }
  }

  #configure(flags: number, level?: 0 | 1): void {
    const config = new DataView(new ArrayBuffer(LAYOUT.config.size));
    configure(config, 0, flags, level);
    this.#ioctl(this.#file, IOCTL.config, config, `line ${this.#gpio}`);
  }
}

/** The levels after the edges in what a line's file gave; what is no whole event is ignored. */
export function edgesIn(bytes: Uint8Array): (0 | 1)[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  return Array.from({ length: Math.floor(bytes.length / LAYOUT.event.size) }, (_, i) =>
    view.getUint32(i * LAYOUT.event.size + LAYOUT.event.id, true) === RISING_EDGE ? 1 : 0,
  );
}

/** Which chip is meant: the one with such a label, else the first where that is good enough. */
export interface Wanted {
  label: RegExp;
  orFirst: boolean;
}

/**
 * The chip that is meant, whatever its number (a Pi 5's was 4 for a while). Undefined where there is none; throws where
 * one was not to be opened.
 */
export function findChip(folder: string, wanted: Wanted, call: typeof ioctl = ioctl): GpioChip | undefined {
  let first: GpioChip | undefined;
  try {
    for (const path of chipsIn(folder)) {
      const chip = new GpioChip(path, call);
      if (wanted.label.test(chip.label)) {
        first?.[Symbol.dispose]();
        return chip;
      }
      if (first || !wanted.orFirst) chip[Symbol.dispose]();
      else first = chip;
    }
    return first;
  } catch (error) {
    first?.[Symbol.dispose]();
    throw error;
  }
}

/** The labels of all chips, for an error that names them. */
export function chipLabels(folder: string, call: typeof ioctl = ioctl): string[] {
  return chipsIn(folder).map((path) => {
    using chip = new GpioChip(path, call);
    return chip.label;
  });
}

const chipsIn = (folder: string) =>
  namesIn(folder)
    .filter((name) => /^gpiochip\d+$/.test(name))
    .map((name) => join(folder, name));

/** Names in a folder, sorted; none where it does not exist. */
export function namesIn(folder: string): string[] {
  try {
    return readdirSync(folder).sort();
  } catch {
    return [];
  }
}

function flagsOf(use: GpioUse): number {
  if (use.direction === "as-is") return 0;
  if (use.direction === "out") return FLAG.output;
  return FLAG.input | (use.edge ? EDGES[use.edge] : 0) | (use.bias ? BIASES[use.bias] : 0);
}

/** Fills a `struct gpio_v2_line_config`; a level is set together with the direction, so that no other is seen between. */
function configure(view: DataView, at: number, flags: number, level: 0 | 1 | undefined): void {
  view.setUint32(at + LAYOUT.config.flags, flags, true);
  if (level === undefined) return;
  view.setUint32(at + LAYOUT.config.attributes, 1, true);
  view.setUint32(at + LAYOUT.config.id, OUTPUT_VALUES, true);
  view.setUint32(at + LAYOUT.config.value, level, true);
  view.setUint32(at + LAYOUT.config.mask, 1, true);
}

/** `struct gpio_v2_line_values` of the one line of a request. */
function valuesOf(value: 0 | 1): DataView {
  const values = new DataView(new ArrayBuffer(LAYOUT.values.size));
  values.setUint32(LAYOUT.values.bits, value, true);
  values.setUint32(LAYOUT.values.mask, 1, true);
  return values;
}

/** A name as the kernel has it, up to its NUL. */
function text(view: DataView, at: number): string {
  return Buffer.from(view.buffer, view.byteOffset + at, NAME_SIZE)
    .toString()
    .replace(/\0.*$/s, "");
}
