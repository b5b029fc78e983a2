/** An emulated Pi with a card in it and somebody who sits at its console: for what waits for a person, for one start of it. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { until } from "../node.ts";
import { emulator, plugNetwork } from "./fruitos.ts";
import { LIMITS } from "./limits.ts";
import { Line } from "./line.ts";
import { Monitor } from "./monitor.ts";

/** A Pi that is switched on, and off at its first reset. */
export class Seat implements AsyncDisposable {
  readonly #folder: string;
  readonly #console: Line;
  readonly #monitor: Monitor;
  readonly #process: Bun.Subprocess;

  private constructor(card: string, parts: { folder: string; console: Line; monitor: Line }) {
    this.#folder = parts.folder;
    this.#console = parts.console;
    this.#monitor = new Monitor(parts.monitor);
    this.#process = Bun.spawn(emulator(card, parts), { stdio: ["ignore", "ignore", "ignore"] });
  }

  /** Switches it on. */
  static async on(card: string): Promise<Seat> {
    const folder = mkdtempSync(join(tmpdir(), "fruit-seat-"));
    const line = (name: string) => Line.on(join(folder, name));
    const [console, monitor] = await Promise.all([line("console"), line("monitor")]);
    return new Seat(card, { folder, console, monitor });
  }

  /** Waits until the console says something; what was said before the last typed line is forgotten. */
  async hears(what: RegExp, limitMs = LIMITS.boot): Promise<RegExpExecArray> {
    const text = () => this.#console.text.replaceAll("\r", "");
    const found = await until(`${what}`, () => what.exec(text()) ?? undefined, limitMs).catch((cause) => {
      throw new Error(`${what}: not on the console\n…${text().slice(-3000)}`, { cause });
    });
    return found;
  }

  /** Types a line, and waits for what comes of it. */
  types(line: string, what: RegExp, limitMs = LIMITS.command): Promise<RegExpExecArray> {
    this.#console.forget();
    this.#console.write(`${line}\n`);
    return this.hears(what, limitMs);
  }

  /** Plugs a network adapter into its USB socket. */
  async plug(): Promise<void> {
    await plugNetwork(this.#monitor);
  }

  /** Cuts its power. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#process.kill("SIGKILL");
    await this.#process.exited;
    this.#console[Symbol.dispose]();
    this.#monitor.line[Symbol.dispose]();
    rmSync(this.#folder, { recursive: true, force: true });
  }
}
