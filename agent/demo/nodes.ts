import { type ChildProcess, spawn } from "node:child_process";
import { closeSync, openSync } from "node:fs";
import { argv, execPath } from "node:process";
import { setTimeout as sleep } from "node:timers/promises";
import type { OutletId } from "../../hal/ports.ts";
import type { SimHost } from "../../hal/sim/stack.ts";

/** How long a simulated Pi needs from power to its agent's start, milliseconds: a real one needs about half a minute. */
const BOOT_MS = 2500;

/** What a simulated Pi tells the boards about itself. */
export type Report = (outlet: OutletId, state: "starting" | "running" | "stopping" | "halted") => void;

/**
 * One Pi of the demo: its supply starts and kills a real agent process. Cutting the supply is SIGKILL, so the broker
 * finds out the way it would in a rack, by the connection's end; a shutdown signal is SIGTERM.
 */
export class DemoPi implements SimHost {
  readonly node: string;
  readonly #outlet: OutletId;
  readonly #config: string;
  readonly #logFile: string;
  readonly #report: Report;
  #child: ChildProcess | undefined;
  #booting: AbortController | undefined;

  constructor(options: { node: string; outlet: OutletId; config: string; logFile: string; report: Report }) {
    this.node = options.node;
    this.#outlet = options.outlet;
    this.#config = options.config;
    this.#logFile = options.logFile;
    this.#report = options.report;
  }

  powered(): void {
    const booting = new AbortController();
    this.#booting = booting;
    this.#report(this.#outlet, "starting");
    void sleep(BOOT_MS, undefined, { signal: booting.signal })
      .then(() => this.start())
      .catch(() => undefined);
  }

  cut(): void {
    this.#booting?.abort();
    this.#child?.kill("SIGKILL");
    this.#child = undefined;
  }

  signalled(): void {
    this.#report(this.#outlet, "stopping");
    this.#booting?.abort();
    const child = this.#child;
    this.#child = undefined;
    if (!child || child.exitCode !== null) this.#report(this.#outlet, "halted");
    else {
      child.once("exit", () => this.#report(this.#outlet, "halted"));
      child.kill("SIGTERM");
    }
  }

  /** Starts the agent without waiting for a boot. Attached: when the demo dies, however it dies, its agents end. */
  start(): void {
    const log = openSync(this.#logFile, "a");
    const child = spawn(
      execPath,
      [...program(), "agent", "--hal", "sim", "--attached", "--config", this.#config],
      {
        // Its input is ours: when the demo dies, however it dies, its agents end.
        stdio: ["pipe", "ignore", log],
        env: { PATH: process.env.PATH, LD_LIBRARY_PATH: process.env.LD_LIBRARY_PATH },
      },
    );
    closeSync(log);
    this.#child = child;
    this.#report(this.#outlet, "running");
    // An agent that dies by itself is started again, as the init of a Pi would.
    child.once("exit", () => {
      if (this.#child === child) this.powered();
    });
  }

  /** Ends it for good; resolves when the process is gone. */
  async stop(): Promise<void> {
    this.#booting?.abort();
    const child = this.#child;
    this.#child = undefined;
    if (!child || child.exitCode !== null || child.signalCode !== null) return;
    const gone = new Promise<void>((resolve) => child.once("exit", () => resolve()));
    child.kill("SIGTERM");
    const timer = setTimeout(() => child.kill("SIGKILL"), 3000);
    await gone;
    clearTimeout(timer);
  }
}

/** The words before the verb that start this same program: none in a compiled executable, the script in sources. */
export function program(): string[] {
  const script = argv[1];
  return script && !script.startsWith("/$bunfs/") ? [script] : [];
}
