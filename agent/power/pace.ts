import { setTimeout as sleep } from "node:timers/promises";
import type { BoardReading } from "../../hal/ports.ts";
import { Refusal } from "../commands.ts";
import type { Config } from "../config.ts";
import { guarded, isGuarded, lowWords, tooLow } from "./volts.ts";

/** How long a sagging supply may take to recover before the next outlet is refused. */
const SAG_LIMIT_MS = 10_000;
const LOOK_AGAIN_MS = 250;
/** A current that still grew by more than this since the last look is an inrush. */
const SETTLED_RATIO = 1.1;
const SETTLED_AMPERES = 0.1;

type Limits = Pick<Config["power"], "stagger_seconds" | "input_volts_min" | "rail_volts_min">;

/**
 * Lets outlets come on one after the other (rule P9), since they share a supply.
 * The next one waits for `stagger_seconds` since the last, for the guarded voltages to be back, and for the current to have settled.
 */
export class Pace {
  readonly #limits: Limits;
  #turn: Promise<unknown> = Promise.resolve();
  #lastOnAt = Number.NEGATIVE_INFINITY;
  #lowSince: number | undefined;

  constructor(limits: Limits) {
    this.#limits = limits;
  }

  /** Runs `switchOn` when its turn comes. Throws `Refusal` rule.P10 when a voltage stays low, AbortError when told to stop. */
  async next(
    readInput: () => Promise<BoardReading>,
    switchOn: () => Promise<void>,
    signal: AbortSignal,
  ): Promise<void> {
    const before = this.#turn;
    const mine = (async () => {
      await before.catch(() => undefined);
      await this.#wait(readInput, signal);
      signal.throwIfAborted();
      this.#lastOnAt = performance.now();
      await switchOn();
    })();
    this.#turn = mine;
    await mine;
  }

  async #wait(readInput: () => Promise<BoardReading>, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    const rest = this.#lastOnAt + this.#limits.stagger_seconds * 1000 - performance.now();
    if (rest > 0) await sleep(rest, undefined, { signal });
    if (!isGuarded(this.#limits)) return;
    let last: BoardReading | undefined;
    for (const startedAt = performance.now(); ; await sleep(LOOK_AGAIN_MS, undefined, { signal })) {
      const input = await readInput();
      const now = performance.now();
      const voltages = guarded(input, this.#limits);
      if (voltages.length === 0) return;
      const low = tooLow(voltages);
      if (low) {
        // Those behind it have seen the same sag: they need not wait for it once more.
        this.#lowSince ??= now;
        if (now - this.#lowSince >= SAG_LIMIT_MS) throw new Refusal("rule.P10", lowWords(low, "stays"));
      } else {
        this.#lowSince = undefined;
        const isAlone = startedAt - this.#lastOnAt >= SAG_LIMIT_MS;
        if (isAlone || isSettled(input, last) || now - startedAt >= SAG_LIMIT_MS) return;
      }
      last = input;
    }
  }
}

function isSettled(input: BoardReading, last: BoardReading | undefined): boolean {
  if (input.inputAmperes === undefined) return true;
  if (last?.inputAmperes === undefined) return false;
  return input.inputAmperes <= last.inputAmperes * SETTLED_RATIO + SETTLED_AMPERES;
}
