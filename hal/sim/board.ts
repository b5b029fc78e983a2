/** One simulated board's controller: what it keeps beside its Pis, as plain data. */
import { newPi, type PiState } from "./pi.ts";

/** One board, as the stack keeps it and writes it to its state file. */
export interface BoardState {
  /** High nibble of the address, in use and in the EEPROM. */
  prefix: number;
  storedPrefix: number;
  leds: boolean;
  bootCount: number;
  /** The error buffer is a ring: where the next code goes, and how many it holds. */
  errors: number[];
  errorPointer: number;
  errorsKept: number;
  errorCount: number;
  pis: [PiState, PiState];
}

/** How many codes the error buffer holds: ours, the real depth is not published. */
export const ERROR_DEPTH = 16;

/** What a board logs when it starts: "boot ok" of `error_codes.py`. */
const BOOTED = 0x0f;

/** A board that was never powered. */
export function newBoard(number: number): BoardState {
  return {
    prefix: number & 0xf0,
    storedPrefix: number & 0xf0,
    leds: false,
    bootCount: 0,
    errors: Array<number>(ERROR_DEPTH).fill(0),
    errorPointer: 0,
    errorsKept: 0,
    errorCount: 0,
    pis: [newPi(), newPi()],
  };
}

/** Puts a code into the error buffer. */
export function logCode(state: BoardState, code: number): void {
  state.errors[state.errorPointer] = code;
  state.errorPointer = (state.errorPointer + 1) % ERROR_DEPTH;
  state.errorsKept = Math.min(ERROR_DEPTH, state.errorsKept + 1);
}

/** The codes in the error buffer, oldest first. */
export function codes({ errors, errorPointer, errorsKept }: Readonly<BoardState>): number[] {
  const kept = Math.min(ERROR_DEPTH, errorsKept);
  const first = errorPointer + ERROR_DEPTH - kept;
  return Array.from({ length: kept }, (_, i) => errors[(first + i) % ERROR_DEPTH] ?? 0);
}

/** The controller starts: settings from its EEPROM, one boot more. What it does with the supplies is the stack's. */
export function restart(state: BoardState): void {
  state.bootCount = Math.min(0xffff, state.bootCount + 1);
  state.prefix = state.storedPrefix;
  state.leds = false;
  for (const pi of state.pis) pi.live = { ...pi.stored };
  logCode(state, BOOTED);
}
