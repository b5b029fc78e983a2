import { setTimeout as sleep } from "node:timers/promises";
import { type GpioLine, type Hal, HalError } from "../../hal/ports.ts";
import { Turns } from "../../hal/turns.ts";
import { Refusal } from "../commands.ts";
import type { Config } from "../config.ts";

/** What a line is worth: 1 is active, whatever level that is. */
export type Value = 0 | 1;

/** How a pulse went. */
export interface Pulsed {
  /** What it was before, and is again. */
  value: Value;
  /** The agent stopped before it was over. */
  isCut: boolean;
}

/**
 * One line that the configuration names.
 *
 * Invariants
 * - An input is open only while somebody reads or watches it. An output stays open once it was touched: where the kernel
 *   has no sysfs, closing it would let go of its level.
 * - A pulse ends at the level it began with, unless the agent is killed (SIGKILL) in the middle of it: through sysfs the
 *   line then keeps that level until somebody sets it, through the character device the kernel lets go of it.
 * - Changes of an output follow each other; while it is pulsed it is not set.
 */
export class NamedLine {
  readonly name: string;
  readonly gpio: number;
  readonly isOutput: boolean;
  readonly isActiveLow: boolean;
  /** Shortest and longest pulse, milliseconds. */
  readonly pulseMs: { min: number; max: number };
  readonly #config: Config["gpio"][string];
  readonly #hal: Pick<Hal, "openGpio">;
  /** Opening and closing of an input, changes of an output. */
  readonly #turns: Turns;
  readonly #watchers = new Set<(value: Value) => void>();
  #watched: GpioLine | undefined;
  #held: Promise<GpioLine> | undefined;
  #isPulsing = false;

  constructor(name: string, config: Config["gpio"][string], hal: Pick<Hal, "openGpio">) {
    this.name = name;
    this.gpio = config.gpio;
    this.isOutput = config.direction === "out";
    this.isActiveLow = config.active_low;
    this.pulseMs = { min: config.pulse_min_ms, max: config.pulse_max_ms };
    this.#config = config;
    this.#hal = hal;
    this.#turns = new Turns(`gpio ${name}`);
  }

  async get(): Promise<Value> {
    if (this.isOutput) return this.#output(async (line) => this.#value(await line.read()));
    return this.#turns.take(async () => {
      if (this.#watched) return this.#value(await this.#watched.read());
      const line = await this.#open();
      try {
        return this.#value(await line.read());
      } finally {
        await line.close();
      }
    });
  }

  /** Drives it and reads it back. Throws `Refusal` for an input, and while it is pulsed. */
  async set(value: Value): Promise<Value> {
    this.#refuse("set");
    return this.#turns.take(() =>
      this.#output(async (line) => {
        await line.write(this.#level(value));
        return this.#value(await line.read());
      }),
    );
  }

  /** Makes it the opposite for a while; it is back when this settles, also when the signal aborts. */
  async pulse(ms: number, signal: AbortSignal): Promise<Pulsed> {
    this.#refuse("pulse");
    this.#isPulsing = true;
    try {
      // After a `set` that is under way: what it sets is what the pulse returns to.
      return await this.#turns.take(async () => {
        const before = await this.#output((line) => line.read());
        try {
          await this.#output((line) => line.write(before ? 0 : 1));
          await sleep(ms, undefined, { signal }).catch(() => undefined);
        } finally {
          await this.#back(before);
        }
        return { value: this.#value(before), isCut: signal.aborted };
      });
    } finally {
      this.#isPulsing = false;
    }
  }

  /** Tells every change until told to stop; `value` is how it is now. */
  async watch(changed: (value: Value) => void): Promise<{ value: Value; stop(): Promise<void> }> {
    if (this.isOutput) throw new Refusal("bad-args", `${this.name}: is an output; it changes when it is set`);
    const value = await this.#turns.take(async () => {
      this.#watched ??= await this.#openWatched();
      const value = this.#value(await this.#watched.read());
      this.#watchers.add(changed);
      return value;
    });
    return { value, stop: () => this.#turns.take(() => this.#unwatch(changed)) };
  }

  async close(): Promise<void> {
    const lines = await Promise.allSettled([this.#held, this.#watched]);
    await Promise.allSettled(
      lines.map((line) => (line.status === "fulfilled" ? line.value?.close() : undefined)),
    );
  }

  async #openWatched(): Promise<GpioLine> {
    const line = await this.#open("both");
    try {
      line.onEdge((level) => {
        for (const tell of this.#watchers) tell(this.#value(level));
      });
      return line;
    } catch (error) {
      await line.close();
      throw error;
    }
  }

  async #unwatch(changed: (value: Value) => void): Promise<void> {
    this.#watchers.delete(changed);
    if (this.#watchers.size > 0) return;
    const line = this.#watched;
    this.#watched = undefined;
    await line?.close();
  }

  #refuse(what: string): void {
    if (!this.isOutput)
      throw new Refusal("bad-args", `${this.name}: is an input; to ${what} it, say "direction": "out"`);
    if (this.#isPulsing) throw new Refusal("busy", `${this.name}: is being pulsed; wait until it is over`);
  }

  #open(edge?: "both"): Promise<GpioLine> {
    const { bias } = this.#config;
    return this.#said(
      this.#hal.openGpio(this.gpio, {
        direction: "in",
        ...(edge ? { edge } : {}),
        ...(bias === undefined ? {} : { bias }),
      }),
    );
  }

  /** Does something with the output, which is opened as it is, and anew after it has failed. */
  async #output<T>(operation: (line: GpioLine) => Promise<T>): Promise<T> {
    const opening = this.#held ?? this.#said(this.#hal.openGpio(this.gpio, { direction: "as-is" }));
    this.#held = opening;
    const drop = () => {
      if (this.#held === opening) this.#held = undefined;
    };
    const line = await opening.catch((error) => {
      drop();
      throw error;
    });
    try {
      return await operation(line);
    } catch (error) {
      if (error instanceof HalError && error.code === "io") {
        drop();
        await line.close().catch(() => undefined);
      }
      throw error;
    }
  }

  /** A level must not stay because one write, or somebody's reading meanwhile, failed: the line is opened anew for it. */
  async #back(level: 0 | 1): Promise<void> {
    const write = () => this.#output((line) => line.write(level));
    await write().catch(write);
  }

  /** A line that somebody else has is refused, by name. */
  async #said(opening: Promise<GpioLine>): Promise<GpioLine> {
    try {
      return await opening;
    } catch (error) {
      if (error instanceof HalError && error.code === "busy")
        throw new Refusal("busy", `${this.name}: ${error.message}`);
      throw error;
    }
  }

  #value(level: 0 | 1): Value {
    return this.isActiveLow ? this.#level(level) : level;
  }

  /** The level of a value, which is also the value of a level. */
  #level(value: Value): 0 | 1 {
    return this.isActiveLow ? (value ? 0 : 1) : value;
  }
}
