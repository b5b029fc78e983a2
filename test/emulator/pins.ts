/** The pins of a GPIO controller from outside, by QEMU's test protocol (docs: tests/qtest/libqtest): driven, and watched as they change. */

import { within } from "./limits.ts";
import type { Line } from "./line.ts";

/** A change of a pin that the machine drives, as the host saw it. */
export interface PinChange {
  pin: number;
  level: 0 | 1;
  /** `performance.now()`. */
  atMs: number;
}

/** Pins of one controller. */
export class Pins {
  readonly line: Line;
  readonly changes: PinChange[] = [];
  /** Questions that have no answer yet, in their order. */
  readonly #asked: ((answer: string) => void)[] = [];
  #rest = "";

  constructor(line: Line) {
    this.line = line;
    line.read((chunk) => {
      const lines = (this.#rest + chunk.toString()).split("\n");
      this.#rest = lines.pop() ?? "";
      for (const text of lines) this.#hear(text.trim());
    });
  }

  /** From now on what the controller at `path` drives stands in `changes`. */
  async watch(path: string, outputs?: string): Promise<void> {
    await this.#ask(outputs ? `irq_intercept_out ${path} ${outputs}` : `irq_intercept_out ${path}`);
  }

  /** Drives an input of the controller at `path`. */
  async drive(path: string, pin: number, level: 0 | 1, inputs = "unnamed-gpio-in"): Promise<void> {
    await this.#ask(`set_irq_in ${path} ${inputs} ${pin} ${level}`);
  }

  async #ask(question: string): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<string>();
    this.#asked.push(resolve);
    this.line.write(`${question}\n`);
    const answer = await within(question, promise);
    if (!answer.startsWith("OK")) throw new Error(`${question}: ${answer}`);
  }

  #hear(text: string): void {
    const [, way, pin] = /^IRQ (raise|lower) (\d+)$/.exec(text) ?? [];
    if (way) this.changes.push({ pin: Number(pin), level: way === "raise" ? 1 : 0, atMs: performance.now() });
    else this.#asked.shift()?.(text);
  }
}
