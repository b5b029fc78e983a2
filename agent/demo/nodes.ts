import { type ChildProcess, spawn } from "node:child_process";
import { closeSync, openSync } from "node:fs";
import { execPath } from "node:process";
import { setTimeout as sleep } from "node:timers/promises";
import type { OutletId } from "../../hal/ports.ts";
import { PiConsole, type Wanted } from "../../hal/sim/console.ts";
import type { SimHost } from "../../hal/sim/stack.ts";
import { serveUart } from "../../hal/sim/uartwire.ts";
import { program } from "../program.ts";

/** How long a simulated Pi needs from power to its agent's start, milliseconds: a real one needs about half a minute. */
const BOOT_MS = 2500;

/** What a simulated Pi tells the boards about itself. */
export type Report = (outlet: OutletId, state: "starting" | "running" | "stopping" | "halted") => void;

/**
 * One Pi of the demo: its supply starts and kills a real agent process. Cutting the supply is SIGKILL, so the broker
 * finds out the way it would in a rack, by the connection's end; a shutdown signal is SIGTERM. Its UART says what goes with it.
 */
export class DemoPi implements SimHost {
  readonly node: string;
  readonly #outlet: OutletId;
  readonly #config: string;
  readonly #logFile: string;
  readonly #report: Report;
  readonly #console: PiConsole;
  #say: (bytes: Uint8Array) => void = () => undefined;
  #child: ChildProcess | undefined;
  #booting: AbortController | undefined;

  constructor(options: { node: string; outlet: OutletId; config: string; logFile: string; report: Report }) {
    this.node = options.node;
    this.#outlet = options.outlet;
    this.#config = options.config;
    this.#logFile = options.logFile;
    this.#report = options.report;
    this.#console = new PiConsole({
      hostname: options.node,
      bootMs: BOOT_MS,
      say: (bytes) => this.#say(bytes),
      wanted: (what) => this.#wanted(what),
    });
  }

  /** Lets the node that has its console reach its UART at this path. */
  async serveConsole(path: string, signal: AbortSignal): Promise<void> {
    this.#say = await serveUart(path, this.#console, signal);
  }

  powered(): void {
    const booting = new AbortController();
    this.#booting?.abort();
    this.#booting = booting;
    this.#become("starting");
    void sleep(BOOT_MS, undefined, { signal: booting.signal })
      .then(() => this.start())
      .catch(() => undefined);
  }

  cut(): void {
    this.#kill();
    this.#console.became("off");
  }

  signalled(): void {
    this.#shutDown(() => this.#become("halted"));
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
    this.#become("running");
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
  /** What somebody typed at its console. */
  #wanted(what: Wanted): void {
    if (what === "poweroff") this.signalled();
    else if (what === "reboot") this.#shutDown(() => this.powered());
    else {
      this.#kill();
      this.powered();
    }
  }

  #kill(): void {
    this.#booting?.abort();
    this.#child?.kill("SIGKILL");
    this.#child = undefined;
  }

  /** Ends its agent, then does what comes after; not where the supply was cut or came back meanwhile. */
  #shutDown(then: () => void): void {
    this.#booting?.abort();
    this.#booting = new AbortController();
    const { signal } = this.#booting;
    this.#become("stopping");
    const child = this.#child;
    this.#child = undefined;
    if (!child || child.exitCode !== null) then();
    else {
      child.once("exit", () => signal.aborted || then());
      child.kill("SIGTERM");
    }
  }

  #become(state: Parameters<Report>[1]): void {
    this.#report(this.#outlet, state);
    this.#console.became(state);
  }
}
