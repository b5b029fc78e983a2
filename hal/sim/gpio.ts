/**
 * Simulated GPIO lines: those of a Pi's 40-pin header, in memory. Relays hang on the first four of `RELAY_LINES`, one for
 * each of the stack's first outlets in rack order; the firmware has made outputs of them that match the supplies. All
 * other lines are inputs with the pulls of BCM2835 ARM Peripherals, table 6-31.
 */
import {
  type GpioFacts,
  type GpioLine,
  type GpioUse,
  HalError,
  type Heart,
  type OutletId,
} from "../ports.ts";
import type { SimStack } from "./stack.ts";

/** Lines with a relay, in the order of the outlets behind them. */
export const RELAY_LINES: readonly number[] = [17, 27, 22, 23];

const LINES = 28;
/** GPIO0 to 8 are pulled up when nobody says otherwise, the others down. */
const PULLED_UP = 8;
/** Levels that are remembered of each line. */
const MOST_LEVELS = 1000;

interface Pin {
  isOutput: boolean;
  /** What it is driven to while it is an output. */
  driven: 0 | 1;
  /** What somebody outside drives it to while it is an input. */
  outside: 0 | 1 | undefined;
  pull: 0 | 1;
  relay: OutletId | undefined;
  consumer: string | undefined;
  failure: HalError | undefined;
  watch: { edge: "rising" | "falling" | "both"; happened: (value: 0 | 1) => void } | undefined;
  levels: { atMs: number; level: 0 | 1 }[];
}

/** The lines; tests reach into them from outside. */
export class SimGpio {
  readonly #stack: SimStack;
  readonly #pins: Pin[];

  constructor(stack: SimStack) {
    this.#stack = stack;
    this.#pins = Array.from({ length: LINES }, (_, gpio) => {
      const relay = stack.outlets[RELAY_LINES.indexOf(gpio)];
      return {
        isOutput: relay !== undefined,
        driven: relay !== undefined && stack.pi(relay).supply ? 1 : 0,
        outside: undefined,
        pull: gpio <= PULLED_UP ? 1 : 0,
        relay,
        consumer: undefined,
        failure: undefined,
        watch: undefined,
        levels: [],
      };
    });
  }

  /** What the kernel says of all lines. */
  list(): GpioFacts[] {
    return this.#pins.map(({ isOutput, consumer }, gpio) => ({
      gpio,
      name: ["ID_SDA", "ID_SCL"][gpio] ?? `GPIO${gpio}`,
      ...(consumer === undefined ? {} : { consumer }),
      direction: isOutput ? "out" : "in",
    }));
  }

  /** The level of a line now. */
  level(gpio: number): 0 | 1 {
    const { isOutput, driven, outside, pull, relay } = this.#pin(gpio);
    if (!isOutput) return outside ?? pull;
    return relay === undefined ? driven : this.#stack.pi(relay).supply ? 1 : 0;
  }

  /** The changes of a line's level, oldest first, with `performance.now()`. */
  levels(gpio: number): readonly { atMs: number; level: 0 | 1 }[] {
    return this.#pin(gpio).levels;
  }

  /** Somebody outside drives a line, or lets go of it. */
  outside(gpio: number, level: 0 | 1 | undefined): void {
    this.#change(gpio, (pin) => {
      pin.outside = level;
    });
  }

  /** Somebody else has a line, or no longer has it. */
  takenBy(gpio: number, consumer: string | undefined): void {
    this.#pin(gpio).consumer = consumer;
  }

  /** Everything about a line fails, or no longer does. */
  fail(gpio: number, failure: HalError | undefined): void {
    this.#pin(gpio).failure = failure;
  }

  /** Opens a line as the kernel would. */
  open(gpio: number, use: GpioUse): GpioLine {
    const pin = this.#pin(gpio);
    this.#tryPin(gpio);
    if (pin.consumer !== undefined) throw new HalError("busy", `GPIO${gpio}: is taken by ${pin.consumer}`);
    pin.consumer = "fruit";
    if (use.direction === "in") this.#input(gpio, use.bias);
    if (use.direction === "out") this.#drive(gpio, use.initial);
    const whileOpen = async <T>(operation: () => T): Promise<T> => {
      if (pin.consumer !== "fruit") throw new HalError("io", `GPIO${gpio}: is closed`);
      this.#tryPin(gpio);
      return operation();
    };
    return {
      gpio,
      read: () => whileOpen(() => this.level(gpio)),
      direction: () => whileOpen(() => (pin.isOutput ? "out" : "in")),
      write: (value) => whileOpen(() => this.#drive(gpio, value)),
      onEdge: (happened) => {
        if (use.direction !== "in" || !use.edge)
          throw new HalError("io", `GPIO${gpio}: was not opened for edges`);
        pin.watch = { edge: use.edge, happened };
      },
      close: async () => {
        pin.watch = undefined;
        pin.consumer = undefined;
        if (use.direction === "in") this.#input(gpio, undefined);
      },
    };
  }

  /** A heart on the event loop: here nobody asks what becomes of it when that is busy. */
  heart(gpio: number, times: { everyMs: number; highMs: number; deadMs: number }): Heart {
    const line = this.open(gpio, { direction: "out", initial: 0 });
    let aliveMs = performance.now();
    let failure: unknown;
    let timer: NodeJS.Timeout;
    const beat = async (level: 0 | 1) => {
      const isDead = performance.now() - aliveMs >= times.deadMs;
      timer = setTimeout(() => void beat(level ? 0 : 1), level ? times.highMs : times.everyMs - times.highMs);
      timer.unref();
      if (level === 0 || !isDead)
        await line.write(level).catch((error) => {
          failure ??= error;
        });
    };
    void beat(1);
    return {
      alive: () => {
        if (failure) throw failure;
        aliveMs = performance.now();
      },
      close: async () => {
        clearTimeout(timer);
        await line.write(0).finally(() => line.close());
      },
    };
  }

  #pin(gpio: number): Pin {
    const pin = this.#pins[gpio];
    if (!pin) throw new HalError("absent", `GPIO${gpio}: the simulated Pi has GPIO0 to GPIO${LINES - 1}`);
    return pin;
  }

  /** Throws what is wrong with a line: its own failure, or what the stack's faults mean for a relay. */
  #tryPin(gpio: number): void {
    const { failure, relay } = this.#pin(gpio);
    if (failure) throw failure;
    if (relay === undefined) return;
    const { faults } = this.#stack;
    const board = Number(relay.split(".")[0]);
    if (faults.board("dead-bus")) throw new HalError("io", `GPIO${gpio}: EIO`);
    if (faults.board("silent-board", board)) throw new HalError("absent", `GPIO${gpio}: its chip is gone`);
    if (faults.strikes("drop", board)) throw new HalError("timeout", `GPIO${gpio}: its chip does not answer`);
  }

  #input(gpio: number, bias: "pull-up" | "pull-down" | "none" | undefined): void {
    this.#change(gpio, (pin) => {
      pin.isOutput = false;
      if (bias === "pull-up" || bias === "pull-down") pin.pull = bias === "pull-up" ? 1 : 0;
    });
  }

  #drive(gpio: number, level: 0 | 1): void {
    const { relay } = this.#pin(gpio);
    if (relay !== undefined && this.#stack.faults.board("error-reply", Number(relay.split(".")[0])))
      throw new HalError("io", `GPIO${gpio}: EPERM`);
    this.#change(gpio, (pin) => {
      pin.isOutput = true;
      pin.driven = level;
      if (relay === undefined || (level === 1) === this.#stack.pi(relay).supply) return;
      if (level) this.#stack.on(relay);
      else this.#stack.cut(relay);
    });
  }

  /** Does it, and tells of the edge where there was one: also of one that we made ourselves. */
  #change(gpio: number, does: (pin: Pin) => void): void {
    const pin = this.#pin(gpio);
    const before = this.level(gpio);
    does(pin);
    const level = this.level(gpio);
    if (level === before) return;
    pin.levels.push({ atMs: performance.now(), level });
    if (pin.levels.length > MOST_LEVELS) pin.levels.shift();
    const { watch } = pin;
    if (watch && (watch.edge === "both" || (watch.edge === "rising") === (level === 1)))
      watch.happened(level);
  }
}
