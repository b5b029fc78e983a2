/** The driver `sim`: the stack itself as a controller, with nothing between, for agents that need boards and no bus. */
import { newCounters, place, rackOrder } from "../bus.ts";
import { ABILITIES, boardError } from "../pistack.ts";
import {
  type Ability,
  type BoardReading,
  type BusCounters,
  HalError,
  type OutletId,
  type OutletReading,
  type PowerController,
} from "../ports.ts";
import { view, viewBoard } from "./meter.ts";
import { FIRMWARE, HARDWARE, type SimStack } from "./stack.ts";

/** Makes the stack the controller of `boards`; boards it has not got are silent, as on a bus. */
export function simController(stack: SimStack, boards: readonly number[]): PowerController {
  return new SimController(stack, boards);
}

class SimController implements PowerController {
  readonly driver = "sim";
  readonly outlets: readonly OutletId[];
  readonly abilities: ReadonlySet<Ability> = ABILITIES;
  readonly counters: BusCounters = newCounters();
  readonly #stack: SimStack;

  constructor(stack: SimStack, boards: readonly number[]) {
    this.#stack = stack;
    this.outlets = rackOrder(boards, 2);
  }

  async read(outlet: OutletId): Promise<OutletReading> {
    this.#reach(outlet);
    const { heartbeat, volts, amperes } = view(this.#stack, outlet);
    return {
      supply: this.#stack.pi(outlet).supply ? "on" : "off",
      heartbeat,
      volts,
      amperes,
      watts: volts * amperes,
    };
  }

  async readBoard(board: number): Promise<BoardReading> {
    this.#reachBoard(board);
    const { inputVolts, inputAmperes, railVolts } = viewBoard(this.#stack, board);
    const { bootCount, errorCount } = this.#stack.board(board);
    return {
      board,
      hardware: HARDWARE,
      firmware: FIRMWARE,
      inputVolts,
      inputAmperes,
      inputWatts: inputVolts * inputAmperes,
      railVolts,
      bootCount,
      errorCount,
    };
  }

  async switch(outlet: OutletId, to: "on" | "off"): Promise<void> {
    this.#reach(outlet);
    if (to === "on") this.#stack.on(outlet);
    else this.#stack.cut(outlet);
  }

  async signal(outlet: OutletId): Promise<void> {
    this.#reach(outlet);
    this.#stack.signal(outlet);
  }

  async identify(outlet: OutletId, on: boolean): Promise<void> {
    this.#stack.setLeds(this.#reach(outlet), on);
  }

  async startPolicy(outlet: OutletId): Promise<"on" | "off"> {
    this.#reach(outlet);
    return this.#stack.pi(outlet).live.onAtStart === 0 ? "off" : "on";
  }

  async setStartPolicy(outlet: OutletId, policy: "on" | "off"): Promise<void> {
    const board = this.#reach(outlet);
    this.#stack.set(outlet, "onAtStart", policy === "on" ? 1 : 0);
    this.#stack.store(board);
  }

  get addresses(): readonly number[] {
    return this.#stack.boards;
  }

  async probe(board: number): Promise<BoardReading | undefined> {
    return this.#isSilent(board) ? undefined : this.readBoard(board);
  }

  async close(): Promise<void> {}

  #reach(outlet: OutletId): number {
    const { board } = place("sim", this.outlets, outlet);
    this.#reachBoard(board);
    return board;
  }

  /** The faults of a bus that mean something without one. */
  #reachBoard(board: number): void {
    const { faults } = this.#stack;
    this.counters.exchanges++;
    if (!this.#stack.boards.includes(board) || this.#isSilent(board) || faults.strikes("drop", board)) {
      this.counters.timeouts++;
      throw new HalError("timeout", `board ${board} on sim: no answer`);
    }
    if (faults.board("error-reply", board)) {
      throw new HalError("refused", `board ${board} on sim: ${boardError(0x15)}`);
    }
  }

  #isSilent(board: number): boolean {
    return this.#stack.faults.board("dead-bus") || this.#stack.faults.board("silent-board", board);
  }
}
