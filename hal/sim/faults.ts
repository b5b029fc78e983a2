/**
 * What can be wrong with the simulated stack, by name. Faults of a frame strike by chance, with `FAULT_ODDS`, from
 * the seed: the same exchanges in the same order meet the same faults. The others hold while they are on.
 */
import { HalError, type OutletId } from "../ports.ts";
import { chance } from "./activity.ts";

/** Every fault and what it does, one line each, as help texts print them. */
export const FAULTS = {
  crc: "frames are corrupted at random, a bit at a time, on the way there or back",
  drop: "frames are lost at random; half of them replies to a command that was carried out",
  delay: "replies are late at random by up to 0.6 s, perhaps into the next exchange",
  stray: "rubbish arrives at random before a reply (RS-485)",
  short: "replies are truncated at random",
  "silent-board": "the board's controller answers nothing and does nothing; supplies stay as they are",
  "dead-bus": "nobody on the bus can be reached",
  "error-reply": "the board answers every command with an error and does nothing",
  hang: "the Pi ignores the shutdown signal",
  "no-heartbeat": "the board sees no heartbeat of the Pi",
  "stuck-on": "the board acknowledges off, and the supply stays on",
  "stuck-off": "the board acknowledges on, and the supply stays off",
  "wont-boot": "the Pi takes power and never starts (from its next power on)",
  "weak-supply": "the 12 V supply sags five times as much under load",
} as const satisfies Record<string, string>;

/** The name of a fault. */
export type FaultName = keyof typeof FAULTS;

/** The smallest thing a fault can be limited to; a fault of the stack takes no target. */
const SCOPE: Record<FaultName, "stack" | "board" | "outlet"> = {
  crc: "board",
  drop: "board",
  delay: "board",
  stray: "board",
  short: "board",
  "silent-board": "board",
  "dead-bus": "stack",
  "error-reply": "board",
  hang: "outlet",
  "no-heartbeat": "outlet",
  "stuck-on": "outlet",
  "stuck-off": "outlet",
  "wont-boot": "outlet",
  "weak-supply": "stack",
};

/** How often a fault of a frame strikes. */
export const FAULT_ODDS = 0.25;

/** Which faults are on, and where. */
export class Faults {
  readonly #outlets: readonly OutletId[];
  readonly #seed: number;
  readonly #on = new Map<FaultName, Set<OutletId>>();
  #draws = 0;

  /** `initial` as in a configuration: `crc`, `silent-board:0`, `hang:0.1`. */
  constructor(outlets: readonly OutletId[], seed: number, initial: readonly string[]) {
    this.#outlets = outlets;
    this.#seed = seed;
    for (const fault of initial) {
      const colon = fault.indexOf(":");
      if (colon < 0) this.set(fault, true);
      else this.set(fault.slice(0, colon), true, fault.slice(colon + 1));
    }
  }

  /** Switches a fault on or off, everywhere or for one board (`0`) or outlet (`0.1`). Throws on a name or target it does not know. */
  set(name: string, on: boolean, target?: string): void {
    if (!isFault(name))
      throw new HalError("refused", `sim: no fault "${name}"; there are ${Object.keys(FAULTS).join(", ")}`);
    const struck = this.#on.get(name) ?? new Set();
    this.#on.set(name, struck);
    for (const outlet of this.#resolve(name, target)) {
      if (on) struck.add(outlet);
      else struck.delete(outlet);
    }
  }

  /** Whether a fault holds for a board (or, without one, anywhere). */
  board(name: FaultName, board?: number): boolean {
    const struck = [...(this.#on.get(name) ?? [])];
    return struck.some((outlet) => board === undefined || outlet.startsWith(`${board}.`));
  }

  /** Whether a fault holds for an outlet. */
  outlet(name: FaultName, outlet: OutletId): boolean {
    return this.#on.get(name)?.has(outlet) ?? false;
  }

  /** Whether a fault of frames strikes this one. Draws only while the fault is on, so that one fault does not change another's dice. */
  strikes(name: FaultName, board: number): boolean {
    return this.board(name, board) && this.draw() < FAULT_ODDS;
  }

  /** The next number in 0..1 of the seed's sequence. */
  draw(): number {
    return chance(this.#seed, this.#draws++);
  }

  #resolve(name: FaultName, target: string | undefined): readonly OutletId[] {
    if (target === undefined) return this.#outlets;
    const scope = SCOPE[name];
    if (scope === "stack")
      throw new HalError("refused", `sim: fault ${name}:${target}: ${name} is of the whole stack; no target`);
    const boards = [...new Set(this.#outlets.map((outlet) => outlet.slice(0, outlet.indexOf("."))))];
    const places = scope === "board" ? boards : [...boards, ...this.#outlets];
    if (!places.includes(target))
      throw new HalError(
        "refused",
        `sim: fault ${name}:${target}: no such target; there are ${places.join(", ")}`,
      );
    return this.#outlets.filter((outlet) => outlet === target || outlet.startsWith(`${target}.`));
  }
}

function isFault(name: string): name is FaultName {
  return Object.hasOwn(FAULTS, name);
}
