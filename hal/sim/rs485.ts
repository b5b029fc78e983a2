/**
 * A simulated RS-485 wire with the stack's boards on it. Bytes take their true time when asked for, or none; faults
 * happen on the way. No broadcast: an address nobody has is silence.
 */
import { setTimeout as sleep } from "node:timers/promises";
import { HalError, type SerialLink } from "../ports.ts";
import { answer } from "./firmware.ts";
import type { SimStack } from "./stack.ts";

/** 9600 baud, 8N1: ten bits a byte. */
export const BYTE_MS = 10_000 / 9600;

/** From the last byte of a request to the first of its reply. Ours: the boards' own was never published. */
export const TURNAROUND_MS = 2;

/** The longest that fault `delay` holds a reply back. */
const DELAY_MS = 600;

/** Replies under way at most: beyond that the oldest are lost. */
const MOST_LATE = 8;

/** Bytes on their way to the master: when the first one is there, by the stack's clock. */
interface Arrival {
  atMs: number;
  bytes: Uint8Array;
}

/** The master's end of the wire. */
export class Rs485Link implements SerialLink {
  readonly #stack: SimStack;
  readonly #name: string;
  readonly #byteMs: number;
  readonly #turnaroundMs: number;
  /** Replies that nobody has collected yet. */
  #arrivals: Arrival[] = [];
  #state: "idle" | "busy" | "closed" = "idle";
  #wireMs = 0;

  constructor(stack: SimStack, name: string, wireTime: boolean) {
    this.#stack = stack;
    this.#name = name;
    this.#byteMs = wireTime ? BYTE_MS : 0;
    this.#turnaroundMs = wireTime ? TURNAROUND_MS : 0;
  }

  /** Milliseconds that all exchanges have spent on the wire: bytes there and back, turnaround, and silence waited out. */
  get wireMs(): number {
    return this.#wireMs;
  }

  async exchange(
    write: Uint8Array,
    isWhole: (collected: Uint8Array) => boolean,
    limitMs: number,
  ): Promise<Uint8Array> {
    if (this.#state === "closed") throw new HalError("io", `${this.#name}: is closed`);
    if (this.#state === "busy") throw new HalError("busy", `${this.#name}: an exchange is under way`);
    this.#state = "busy";
    try {
      return await this.#exchange(write, isWhole, limitMs);
    } finally {
      if (this.#state === "busy") this.#state = "idle";
    }
  }

  async close(): Promise<void> {
    this.#state = "closed";
  }

  async #exchange(
    write: Uint8Array,
    isWhole: (collected: Uint8Array) => boolean,
    limitMs: number,
  ): Promise<Uint8Array> {
    const startedAt = performance.now();
    const startMs = this.#stack.now();
    const sentMs = startMs + write.length * this.#byteMs;
    this.#arrivals = this.#arrivals.filter((late) => late.atMs > startMs).slice(-MOST_LATE);
    this.#arrivals.push(...this.#deliver(write, sentMs));
    this.#arrivals.sort((a, b) => a.atMs - b.atMs);
    const { collected, endMs } = this.#collect(isWhole, sentMs, limitMs);
    if (this.#byteMs > 0) {
      this.#wireMs += endMs - startMs;
      // One wait for all bytes, rounded up: timers know whole milliseconds, and a wire is never early.
      const restMs = endMs - startMs - (performance.now() - startedAt);
      if (restMs > 0) await sleep(Math.ceil(restMs));
    }
    return collected;
  }

  /** Takes what arrives, byte by byte, until it is whole or the limit has passed. What comes later stays on its way. */
  #collect(
    isWhole: (collected: Uint8Array) => boolean,
    sentMs: number,
    limitMs: number,
  ): { collected: Uint8Array; endMs: number } {
    const collected: number[] = [];
    for (let next = this.#arrivals[0]; next && next.atMs <= sentMs + limitMs; next = this.#arrivals[0]) {
      this.#arrivals.shift();
      for (const [i, byte] of next.bytes.entries()) {
        collected.push(byte);
        const soFar = Uint8Array.from(collected);
        if (isWhole(soFar)) return { collected: soFar, endMs: next.atMs + i * this.#byteMs };
      }
    }
    return { collected: Uint8Array.from(collected), endMs: sentMs + limitMs };
  }

  /** Brings a frame to the board it is addressed to, and the board's reply on its way back. */
  #deliver(frame: Uint8Array, sentMs: number): Arrival[] {
    const { faults } = this.#stack;
    const board = this.#stack.boards.find((number) => this.#stack.address(number) === frame[1]);
    if (board === undefined || faults.board("dead-bus") || faults.board("silent-board", board)) return [];
    const isLost = faults.strikes("drop", board);
    if (isLost && faults.draw() < 0.5) return []; // on the way there
    const isFlipped = faults.strikes("crc", board);
    const isFlippedThere = isFlipped && faults.draw() < 0.5;
    let reply = answer(this.#stack, board, isFlippedThere ? this.#flip(frame) : frame);
    if (isLost) return [];
    if (isFlipped && !isFlippedThere) reply = this.#flip(reply);
    if (faults.strikes("short", board))
      reply = reply.subarray(0, 1 + Math.floor(faults.draw() * (reply.length - 1)));
    const delayMs = faults.strikes("delay", board) ? faults.draw() * DELAY_MS : 0;
    if (faults.strikes("stray", board)) {
      const stray = Array.from({ length: 1 + Math.floor(faults.draw() * 3) }, () => faults.draw() * 256);
      reply = Uint8Array.from([...stray, ...reply]);
    }
    return [{ atMs: sentMs + this.#turnaroundMs + delayMs + this.#byteMs, bytes: reply }];
  }

  /** A copy with one bit wrong. */
  #flip(frame: Uint8Array): Uint8Array {
    const bit = Math.floor(this.#stack.faults.draw() * frame.length * 8);
    return frame.map((byte, i) => (i === bit >> 3 ? byte ^ (1 << (bit & 7)) : byte));
  }
}
