/** How far an install is, for whoever asks: a file in memory that the agent publishes, and lines for whoever started it. */
import { mkdirSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Step } from "../../boot/install.ts";
import { lasting } from "../terminal.ts";

/** The file is written so often at most. */
const WRITE_MS = 500;
/** Somebody who looks on hears so often. */
const SAY_MS = 10_000;

const PHASES: Record<Step["phase"], string> = {
  checking: "checking what an earlier run has written",
  writing: "writing",
  "reading-back": "reading back from the medium",
  staged: "staged",
};

/** Follows one install from its first step to its end. */
export class Running implements Disposable {
  readonly #file: string;
  readonly #version: bigint;
  readonly #say: (line: string) => void;
  readonly #nowMs: () => number;
  #phase: Step["phase"] | undefined;
  /** When the phase began, with how many bytes, and how many there are now. */
  #beganMs = 0;
  #beganAt = 0;
  #bytes = 0;
  #wroteMs = Number.NEGATIVE_INFINITY;
  #saidMs = 0;

  constructor(options: {
    /** Where the agent looks for `update.json`. */
    runDir: string;
    version: bigint;
    /** Shows a line to whoever looks on. */
    say: (line: string) => void;
    /** Milliseconds that only ever pass. */
    nowMs?: () => number;
  }) {
    this.#file = join(options.runDir, "update.json");
    this.#version = options.version;
    this.#say = options.say;
    this.#nowMs = options.nowMs ?? (() => performance.now());
    try {
      mkdirSync(options.runDir, { recursive: true });
    } catch {
      // Not fruitos: then nobody looks for it there
    }
  }

  /** Takes a step of the writer. */
  step({ phase, bytes, of }: Step): void {
    const nowMs = this.#nowMs();
    if (phase !== this.#phase) this.#turn(phase, bytes, of, nowMs);
    this.#bytes = bytes;
    if (nowMs - this.#wroteMs < WRITE_MS) return;
    this.#wroteMs = nowMs;
    const { rate, seconds } = this.#pace(nowMs, of);
    this.#write({ bytes_done: bytes, bytes_total: of, rate, eta_s: seconds });
    if (nowMs - this.#saidMs < SAY_MS || rate === null) return;
    this.#saidMs = nowMs;
    const left = seconds === null ? "" : `, ${lasting(seconds)} left`;
    this.#say(`  ${Math.floor((bytes / of) * 100)} %, ${megabytes(rate)} MB/s${left}\n`);
  }

  [Symbol.dispose](): void {
    rmSync(this.#file, { force: true });
  }

  #turn(phase: Step["phase"], bytes: number, of: number, nowMs: number): void {
    if (this.#phase !== undefined) {
      const { rate } = this.#pace(nowMs, of);
      const seconds = (nowMs - this.#beganMs) / 1000;
      this.#say(`  done in ${lasting(seconds)}${rate === null ? "" : ` (${megabytes(rate)} MB/s)`}\n`);
    }
    if (phase !== "staged") this.#say(`${PHASES[phase]}: ${megabytes(of)} MB\n`);
    this.#phase = phase;
    this.#beganAt = bytes;
    [this.#beganMs, this.#saidMs, this.#wroteMs] = [nowMs, nowMs, Number.NEGATIVE_INFINITY];
  }

  /** Bytes a second since the phase began, and what is left at that. */
  #pace(nowMs: number, of: number): { rate: number | null; seconds: number | null } {
    const elapsedMs = nowMs - this.#beganMs;
    const rate = elapsedMs > 0 ? ((this.#bytes - this.#beganAt) / elapsedMs) * 1000 : 0;
    if (rate <= 0) return { rate: null, seconds: null };
    return { rate: Math.round(rate), seconds: Math.ceil((of - this.#bytes) / rate) };
  }

  /** Whole or not at all; it is in memory and need not be flushed. */
  #write(facts: object): void {
    const document = { phase: this.#phase, version: String(this.#version), ...facts, pid: process.pid };
    try {
      writeFileSync(`${this.#file}.new`, `${JSON.stringify(document)}\n`);
      renameSync(`${this.#file}.new`, this.#file);
    } catch {
      // Nobody waits for it
    }
  }
}

/** Bytes as people and makers of cards count them. */
export const megabytes = (bytes: number) => (bytes / 1e6).toFixed(1);
