/** What the simulated boards can see and measure: in volts and amperes, and in the counts of their converters. */
import { toCounts } from "../pistack.ts";
import type { OutletId } from "../ports.ts";
import { isHealthy } from "./pi.ts";
import { HARDWARE, type SimStack } from "./stack.ts";
import { electricity, SOURCE_OHMS } from "./supply.ts";

/** What an outlet's board can see of its Pi now. */
export interface OutletView {
  heartbeat: boolean;
  volts: number;
  amperes: number;
}

/** What a board can measure of itself now. */
export interface BoardView {
  inputVolts: number;
  inputAmperes: number;
  railVolts: number;
}

/** What the converters of one outlet read; the watts are the product, as published. */
export interface PiCounts {
  volts: number;
  amperes: number;
  watts: number;
}

/** What the converters of one board read; the watts are the product, as published. */
export interface BoardCounts {
  volts: number;
  amperes: number;
  watts: number;
  rail: number;
  pis: [PiCounts, PiCounts];
}

/** Looks at an outlet as its board does. */
export function view(stack: SimStack, outlet: OutletId): OutletView {
  const pi = stack.pi(outlet);
  const amperes = stack.amperes(outlet);
  const power = electric(stack).boards[stack.outlets.indexOf(outlet) >> 1];
  return {
    heartbeat: isHealthy(pi, stack.now()) && !stack.faults.outlet("no-heartbeat", outlet),
    volts: pi.supply && power ? power.piVolts(amperes) : 0,
    amperes,
  };
}

/** Looks at a board's own supply as it does. */
export function viewBoard(stack: SimStack, board: number): BoardView {
  const { inputVolts, boards } = electric(stack);
  const power = boards[stack.boards.indexOf(board)];
  return { inputVolts, inputAmperes: power?.inputAmperes ?? 0, railVolts: power?.railVolts ?? 0 };
}

/** Reads all converters of a board. */
export function measure(stack: SimStack, board: number): BoardCounts {
  const { inputVolts, inputAmperes, railVolts } = viewBoard(stack, board);
  const volts = toCounts(inputVolts, "inputVolts", HARDWARE);
  const amperes = toCounts(inputAmperes, "inputAmperes", HARDWARE);
  const rail = toCounts(railVolts, "railVolts", HARDWARE);
  const pis: [PiCounts, PiCounts] = [measurePi(stack, `${board}.0`), measurePi(stack, `${board}.1`)];
  return { volts, amperes, watts: volts * amperes, rail, pis };
}

function measurePi(stack: SimStack, outlet: OutletId): PiCounts {
  const seen = view(stack, outlet);
  const volts = toCounts(seen.volts, "piVolts", HARDWARE);
  const amperes = toCounts(seen.amperes, "piAmperes", HARDWARE);
  return { volts, amperes, watts: volts * amperes };
}

function electric(stack: SimStack): ReturnType<typeof electricity> {
  const drawn = stack.boards.map((board) => [stack.amperes(`${board}.0`), stack.amperes(`${board}.1`)]);
  return electricity(drawn, stack.faults.board("weak-supply") ? SOURCE_OHMS * 5 : SOURCE_OHMS);
}
