/**
 * What a person's screen shows of a console, in a file of theirs as well: the same bytes.
 *
 * Invariants
 * - What a file had stays: it is added to, and the first line added says when, and of which console.
 * - A disk that takes no more ends the log and not the stay.
 */
import { appendFileSync, closeSync, constants, fstatSync, openSync } from "node:fs";
import { resolve } from "node:path";
import { printable } from "../terminal.ts";
import { markLine } from "./text.ts";

const { O_APPEND, O_CREAT, O_NOCTTY, O_NONBLOCK, O_WRONLY } = constants;
/** At once: a pipe that nobody reads would hold up the whole program. */
const HOW = O_APPEND | O_CREAT | O_NOCTTY | O_NONBLOCK | O_WRONLY;

/** The log of one stay, when there is one. */
export class LogFile {
  readonly #console: string;
  readonly #failed: (why: string) => void;
  readonly #append: (file: number, bytes: Uint8Array | string) => void;
  #open: { file: number; path: string } | undefined;

  /** `failed` is told once why a log has ended; a test's `append` may fail where a full disk does. */
  constructor(
    console: string,
    failed: (why: string) => void,
    append: (file: number, bytes: Uint8Array | string) => void = appendFileSync,
  ) {
    this.#console = console;
    this.#failed = failed;
    this.#append = append;
  }

  /** Ends the log, or begins one in the file that is asked for. Resolves with what a person is to be told. Throws what the kernel says of the file. */
  async toggle(ask: (question: string) => Promise<string | undefined>): Promise<string> {
    const ended = this.end();
    if (ended !== undefined) return `log ${ended} is closed`;
    const name = await ask("log to which file, which is added to? ");
    if (name === undefined) return "no log";
    return `what is shown is added to ${this.begin(name)}`;
  }

  /** Begins one, and returns where. Throws what the kernel says of the file, and leaves it as it was then. */
  begin(name: string): string {
    this.end();
    const path = resolve(name);
    // Who sees a console may see passwords
    const file = openSync(path, HOW, 0o600);
    try {
      const found = fstatSync(file);
      if (!found.isFile()) throw new Error(`${path}: is no plain file`);
      const text = printable(`log of console ${this.#console}`);
      this.#append(
        file,
        `${found.size > 0 ? "\n" : ""}${markLine({ at: Date.now(), kind: "notice", text })}`,
      );
    } catch (error) {
      closeSync(file);
      throw error;
    }
    this.#open = { file, path };
    return path;
  }

  /** What is shown now. */
  add(bytes: Uint8Array): void {
    if (this.#open === undefined) return;
    try {
      this.#append(this.#open.file, bytes);
    } catch (error) {
      const path = this.end();
      this.#failed(`log ${path} is closed: ${(error as Error).message}`);
    }
  }

  /** Closes it, and returns where it was; undefined when there was none. */
  end(): string | undefined {
    const open = this.#open;
    this.#open = undefined;
    if (open) closeSync(open.file);
    return open?.path;
  }
}
