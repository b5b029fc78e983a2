/**
 * Relays on the node's own GPIO lines: one board, whose n-th outlet is the n-th line.
 *
 * - A line is opened as it is: neither direction nor level changes when an agent starts, stops or dies. Where the kernel has
 *   only the character device it lets go of a line when its program ends: `fruit doctor` says so.
 * - What is on is read from the pin at every reading. A line that nobody drives has the level of a pull: one that leaves
 *   the relay off is `off`, but of one that would switch it on nobody knows whether it does, and it is `unknown`.
 *   `gpio=17=op,dl` in config.txt drives a line from the first moment on (dl: low, dh: high).
 * - What the pin says is not yet what the relay's contact does: nothing tells of that.
 */
import { countFailure, newCounters, place, rackOrder } from "./bus.ts";
import {
  type Ability,
  type BoardReading,
  type GpioLine,
  type Hal,
  HalError,
  type OutletId,
  type OutletReading,
  type PowerBus,
  type PowerController,
} from "./ports.ts";

/** Drives one relay a line; throws `refused` for a bus that is configured with anything but one board and lines. */
export function gpioRelays(hal: Pick<Hal, "openGpio">, bus: PowerBus): PowerController {
  const [board, ...others] = bus.boards;
  if (board === undefined || others.length > 0 || !bus.lines?.length)
    throw new HalError(
      "refused",
      `gpio: one board and the lines of its relays are needed, not ${bus.boards.length} boards and ${bus.lines?.length ?? 0} lines`,
    );
  return new GpioRelays(hal, board, bus.lines, bus.active_low ?? false);
}

class GpioRelays implements PowerController {
  readonly driver = "gpio";
  readonly outlets: readonly OutletId[];
  readonly abilities: ReadonlySet<Ability> = new Set<Ability>();
  readonly counters = newCounters();
  readonly #hal: Pick<Hal, "openGpio">;
  readonly #board: number;
  readonly #lines: readonly number[];
  /** The level that switches on. */
  readonly #on: 0 | 1;
  /** Lines that are open or being opened, by their numbers. */
  readonly #open = new Map<number, Promise<GpioLine>>();
  #isClosed = false;

  constructor(hal: Pick<Hal, "openGpio">, board: number, lines: readonly number[], isActiveLow: boolean) {
    this.outlets = rackOrder([board], lines.length);
    this.#hal = hal;
    this.#board = board;
    this.#lines = lines;
    this.#on = isActiveLow ? 0 : 1;
  }

  read(outlet: OutletId): Promise<OutletReading> {
    return this.#use(outlet, async (line) => {
      if ((await line.read()) !== this.#on) return { supply: "off" };
      return { supply: (await line.direction()) === "out" ? "on" : "unknown" };
    });
  }

  async readBoard(board: number): Promise<BoardReading> {
    if (board !== this.#board) throw new HalError("absent", `board ${board}: not on these GPIO lines`);
    for (const outlet of this.outlets) await this.#use(outlet, (line) => line.read());
    return { board };
  }

  switch(outlet: OutletId, to: "on" | "off"): Promise<void> {
    return this.#use(outlet, (line) => line.write(to === "on" ? this.#on : this.#on ? 0 : 1));
  }

  async signal(outlet: OutletId): Promise<void> {
    throw lacking(outlet, "ask a Pi to shut down");
  }

  async identify(outlet: OutletId): Promise<void> {
    throw lacking(outlet, "show itself");
  }

  async startPolicy(outlet: OutletId): Promise<"on" | "off"> {
    throw lacking(outlet, "say what it does when its supply returns");
  }

  async setStartPolicy(outlet: OutletId): Promise<void> {
    throw lacking(outlet, "store what it does when its supply returns");
  }

  get addresses(): number[] {
    return [this.#board];
  }

  async probe(board: number): Promise<BoardReading | undefined> {
    // A line that the kernel lacks is a fault of this node, not a board that does not answer.
    return board === this.#board ? this.readBoard(board) : undefined;
  }

  async close(): Promise<void> {
    this.#isClosed = true;
    const open = [...this.#open.values()];
    this.#open.clear();
    await Promise.allSettled(open.map(async (line) => (await line).close()));
  }

  /** Does something with an outlet's line, which is opened when it is first needed and again after it has failed. */
  async #use<T>(outlet: OutletId, operation: (line: GpioLine) => Promise<T>): Promise<T> {
    const { pi } = place("these GPIO lines", this.outlets, outlet);
    const gpio = this.#lines[pi];
    if (gpio === undefined || this.#isClosed)
      throw new HalError("io", `outlet ${outlet}: its lines are closed`);
    this.counters.exchanges++;
    const opening = this.#open.get(gpio) ?? this.#hal.openGpio(gpio, { direction: "as-is" });
    this.#open.set(gpio, opening);
    let line: GpioLine | undefined;
    try {
      line = await opening;
      return await operation(line);
    } catch (error) {
      countFailure(this.counters, error);
      const isUseless = line === undefined || (error instanceof HalError && error.code === "io");
      if (isUseless && this.#open.get(gpio) === opening) this.#open.delete(gpio);
      if (isUseless) await line?.close().catch(() => undefined);
      throw error;
    }
  }
}

function lacking(outlet: OutletId, what: string): HalError {
  return new HalError("refused", `outlet ${outlet}: a relay cannot ${what}`);
}
