/** How far an install is, for whoever asks: a file in memory that the agent publishes, and lines for whoever started it. */
import { mkdirSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Step } from "../../boot/install.ts";
import { lasting } from "../terminal.ts";

/** The file is written so often at most. */
const WRITE_MS = 500;
/** Somebody who looks on hears so often. */
const SAY_MS = 10_000;

/** What is done before there is a writer, and what a writer calls writing where the bytes come from peers. */
export type Phase = Step["phase"] | "finding" | "metadata" | "downloading";

const PHASES: Record<Phase, string> = {
  finding: "looking for peers that have its update file",
  metadata: "fetching its side file",
  downloading: "downloading",
  checking: "checking what an earlier run has written",
  indexing: "looking at what a slot holds",
  copying: "copying what the slots hold of it",
  writing: "writing",
  "reading-back": "reading back from the medium",
  staged: "staged",
};

/** Follows one install from its first step to its end. */
export class Running implements Disposable {
  readonly #file: string;
  #version: bigint | undefined;
  /** What else is known of it, for the file. */
  #facts: object = {};
  readonly #say: (line: string) => void;
  readonly #nowMs: () => number;
  #phase: Phase | undefined;
  #of = 0;
  #isFar = false;
  /** When the phase began, with how many bytes, and how many there are now. */
  #beganMs = 0;
  #beganAt = 0;
  #bytes = 0;
  #wroteMs = Number.NEGATIVE_INFINITY;
  #saidMs = 0;

  constructor(options: {
    /** Where the agent looks for `update.json`. */
    runDir: string;
    /** Where it is known from the beginning. */
    version?: bigint;
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

  /** It is known now what is installed. */
  begins(version: bigint): void {
    this.#version = version;
  }

  /** Something before the first step of a writer; from now on writing is downloading. */
  turn(phase: "finding" | "metadata"): void {
    this.#turn(phase, 0, 0, this.#nowMs());
    this.around({});
  }

  /** Where bytes come from, and from how many; goes into the file with whatever is known. */
  around(facts: { peers?: number; bytes_from_peers?: number; bytes_from_web?: number }): void {
    this.#isFar = true;
    this.#facts = { ...this.#facts, ...facts };
    if (this.#phase !== undefined) this.#tell(this.#nowMs());
  }

  /** Takes a step of the writer. */
  step({ phase: named, bytes, of, from }: Step): void {
    const phase = named === "writing" && this.#isFar ? "downloading" : named;
    const nowMs = this.#nowMs();
    if (phase !== this.#phase) this.#turn(phase, bytes, of, nowMs);
    this.#bytes = bytes;
    if (from) this.#facts = { ...this.#facts, bytes_from_slots: from.slots };
    this.#tell(nowMs);
  }

  #tell(nowMs: number): void {
    if (nowMs - this.#wroteMs < WRITE_MS) return;
    this.#wroteMs = nowMs;
    const [bytes, of] = [this.#bytes, this.#of];
    const { rate, seconds } = this.#pace(nowMs, of);
    this.#write({ bytes_done: bytes, bytes_total: of, rate, eta_s: seconds, ...this.#facts });
    if (nowMs - this.#saidMs < SAY_MS || rate === null) return;
    this.#saidMs = nowMs;
    const left = seconds === null ? "" : `, ${lasting(seconds)} left`;
    this.#say(`  ${Math.floor((bytes / of) * 100)} %, ${megabytes(rate)} MB/s${left}\n`);
  }

  [Symbol.dispose](): void {
    rmSync(this.#file, { force: true });
  }

  #turn(phase: Phase, bytes: number, of: number, nowMs: number): void {
    if (this.#phase !== undefined) {
      const { rate } = this.#pace(nowMs, of);
      const seconds = (nowMs - this.#beganMs) / 1000;
      this.#say(`  done in ${lasting(seconds)}${rate === null ? "" : ` (${megabytes(rate)} MB/s)`}\n`);
    }
    if (phase !== "staged") this.#say(`${PHASES[phase]}${of > 0 ? `: ${megabytes(of)} MB` : ""}\n`);
    [this.#phase, this.#of] = [phase, of];
    this.#bytes = this.#beganAt = bytes;
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
    const version = this.#version === undefined ? {} : { version: String(this.#version) };
    const document = { phase: this.#phase, ...version, ...facts, pid: process.pid };
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
