/**
 * The swarm child as the agent holds it: started, fed, watched, ended. Whatever it says is checked before anybody hears of it.
 *
 * Invariants
 * - One word that does not fit, too much memory, a silence: each ends it, and it is killed, not asked.
 * - What waits for it is bounded; what it has in flight, too.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { execPath } from "node:process";
import { setTimeout as sleep } from "node:timers/promises";
import { program } from "../program.ts";
import { encodeOrder, frames, type Orders, plain, type Report, readReport } from "../swarm/frames.ts";
import { FrameWriter } from "../swarm/writer.ts";

/** Bytes that may wait for the child to read them: past that it hangs, or means to. */
const WAITING_BYTES = 32 * 1024 * 1024;
/** How often its memory is looked at. */
const WATCH_MS = 250;
/** So long it may say nothing: it says how it stands every second. */
const SILENT_MS = 30_000;
/** Of what it says on standard error, the last words. */
const LAST_WORDS = 500;

/** How a child is started. */
export interface ChildStart {
  /** Whom it becomes where this process is root. */
  user: number;
  memoryMib: number;
  /** Open files it gets as 3, 4, …: for reading only, and open as long as it may be started anew. */
  files: readonly number[];
  /** Another program than this one, in tests. */
  command?: readonly string[];
  env?: Readonly<Record<string, string | undefined>>;
  /** Hears what it says; an exception ends it. */
  hear(report: Report): void | Promise<void>;
}

/** One run of the child. */
export class SwarmChild {
  readonly #process: ChildProcess;
  readonly #writer: FrameWriter;
  readonly #start: ChildStart;
  readonly #gone = Promise.withResolvers<string>();
  #why: string | undefined;
  #heardMs = performance.now();
  #lastWords = "";

  constructor(start: ChildStart) {
    this.#start = start;
    const [file = execPath, ...words] = start.command ?? [execPath, ...program(), "swarm"];
    const { PATH, LD_LIBRARY_PATH, FRUIT_DEBUG } = process.env;
    this.#process = spawn(file, [...words, "--user", `${start.user}`, "--files", `${start.files.length}`], {
      stdio: ["pipe", "pipe", "pipe", ...start.files],
      env: start.env ?? { PATH, LD_LIBRARY_PATH, FRUIT_DEBUG },
    });
    const { stdin } = this.#process;
    this.#writer = new FrameWriter(
      (bytes) =>
        new Promise((resolve, reject) => {
          if (stdin) stdin.write(bytes, (error) => (error ? reject(error) : resolve()));
          else reject(new Error("it was not started"));
        }),
      WAITING_BYTES,
    );
    stdin?.on("error", () => undefined); // whoever writes hears of it
    this.#process.on("error", (error) => this.end(error.message));
    this.#process.once("close", (code, signal) => this.#ended(signal ?? `exit code ${code}`));
    void this.#hear();
    void this.#listen();
    void this.#watch();
  }

  get pid(): number | undefined {
    return this.#process.pid;
  }

  /** Resolves with the reason when it is gone. */
  get gone(): Promise<string> {
    return this.#gone.promise;
  }

  /** Tells it something. What cannot be told ends it, so nobody needs to wait. */
  send<K extends keyof Orders>(name: K, head: Orders[K], body?: Uint8Array): void {
    this.#writer.send(encodeOrder(name, head, body)).catch((cause) => this.end(plain(cause)));
  }

  /** Ends it at once; the first reason is the one that is told. */
  end(why: string): void {
    this.#why ??= why;
    if (this.#process.pid === undefined) this.#ended(why);
    else this.#process.kill("SIGKILL");
  }

  async #hear(): Promise<void> {
    const { stdout } = this.#process;
    if (!stdout) return;
    try {
      for await (const frame of frames(stdout)) {
        this.#heardMs = performance.now();
        const report = readReport(frame);
        if (report.name === "unable") return this.end(report.head.text);
        await this.#start.hear(report);
      }
    } catch (cause) {
      this.end(plain(cause));
    }
  }

  async #listen(): Promise<void> {
    try {
      for await (const bytes of this.#process.stderr ?? [])
        this.#lastWords = `${this.#lastWords}${bytes}`.slice(-LAST_WORDS);
    } catch {
      // it is gone
    }
  }

  async #watch(): Promise<void> {
    const { memoryMib } = this.#start;
    while (this.#process.exitCode === null && this.#process.signalCode === null) {
      const mib = residentMib(this.#process.pid);
      if (mib !== undefined && mib > memoryMib)
        return this.end(`it had ${Math.round(mib)} MiB of memory, ${memoryMib} are allowed`);
      if (performance.now() - this.#heardMs > SILENT_MS)
        return this.end(`it has said nothing for ${SILENT_MS / 1000} s`);
      await sleep(WATCH_MS, undefined, { ref: false });
    }
  }

  #ended(how: string): void {
    const words = plain(this.#lastWords.trim());
    this.#gone.resolve(this.#why ?? (words === "" ? how : `${how}: ${words}`));
  }
}

/** Memory that a process has now, whatever the size of a page: proc_pid_status(5). Undefined once it is gone. */
function residentMib(pid: number | undefined): number | undefined {
  try {
    const kib = /^VmRSS:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1];
    return kib === undefined ? undefined : Number(kib) / 1024;
  } catch {
    return undefined;
  }
}
