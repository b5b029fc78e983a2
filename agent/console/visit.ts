/** A person's stay at a console, whatever way leads there: what they are shown, what they send and what they ask. */
import { setTimeout as sleep } from "node:timers/promises";
import type { ConsoleState } from "../messages.ts";
import { ANSWER_MS, CliError, EXIT, type Exit } from "../terminal.ts";
import type { Ask, Channel, Message } from "./channel.ts";
import type { Item } from "./port.ts";

/** A node that has let somebody in goes on speaking until it has said how things are. */
const SILENCE_MS = 15_000;
const SILENT = `the node has said nothing for ${SILENCE_MS / 1000} s`;
/** Until a line has taken what is under way of a file or an errand: 64 KiB at 1200 baud. */
export const TAKEN_MS = 600_000;
/** Typed bytes travel in small pieces: whoever leaves leaves little behind that is still to be written. */
const PIECE = 1024;

type Answer = Extract<Message, { kind: "answer" }>;

/** One stay. `show` is waited for before the next item is taken. */
export class Visit {
  /** The console as last told. */
  view: ConsoleState | undefined;
  mayWrite = false;
  /** Resolves with why, in words for a person; also when the signal aborts. */
  readonly ended: Promise<string>;
  readonly #channel: Channel;
  readonly #console: string;
  readonly #show: (item: Item) => void | Promise<void>;
  readonly #begun = Promise.withResolvers<void>();
  readonly #asked = new Map<number, (answer: Answer) => void>();
  #lastAsked = 0;
  #heardAt = performance.now();
  /** What came is being shown: the node waits for us. */
  #isShowing = false;

  constructor(
    channel: Channel,
    options: { console: string; show(item: Item): void | Promise<void>; signal: AbortSignal },
  ) {
    const { console, show, signal } = options;
    this.#channel = channel;
    this.#console = console;
    this.#show = show;
    this.ended = Promise.race([channel.ended, interrupted(signal)]);
    channel.receive((message) => this.#hear(message));
  }

  /** Milliseconds since anything came and was shown. */
  get quietMs(): number {
    return this.#isShowing ? 0 : performance.now() - this.#heardAt;
  }

  /** Waits for the first view: all that was to be replayed has been shown then. Throws `CliError` when it ended before, or nothing comes any more. */
  async begin(): Promise<void> {
    const over = new AbortController();
    const why = await Promise.race([this.#begun.promise, this.ended, this.#silence(over.signal)]);
    over.abort();
    if (why !== undefined) throw this.problem(why, why === SILENT ? EXIT.unreachable : EXIT.failed);
  }

  /** What is to be said where it ends before it may. */
  problem(why: string, exit: Exit = EXIT.failed): CliError {
    return new CliError(exit, `console ${this.#console}: ${why}`);
  }

  /** Sends what was typed; resolves when there is room for more. Rejects when the stay has ended. */
  async send(bytes: Uint8Array): Promise<void> {
    for (let at = 0; at < bytes.length; at += PIECE)
      await this.#channel.send({ kind: "bytes", bytes: bytes.subarray(at, at + PIECE) });
  }

  /**
   * Asks for something, and resolves with its result once all that was sent before has been dealt with.
   * Throws `CliError` with the node's words where it was refused, and when no answer comes.
   */
  async ask(ask: Ask, limitMs = ANSWER_MS): Promise<unknown> {
    const n = ++this.#lastAsked;
    const { promise, resolve } = Promise.withResolvers<Answer>();
    this.#asked.set(n, resolve);
    const over = new AbortController();
    try {
      const sent = this.#channel.send({ kind: "ask", n, ask }).then(
        () => promise,
        () => this.ended,
      );
      const limit = sleep(limitMs, `no answer within ${limitMs / 1000} s`, { signal: over.signal });
      const answer = await Promise.race([sent, this.ended, limit]);
      if (typeof answer === "string") throw this.problem(answer);
      if (answer.refused !== undefined) throw new CliError(EXIT.refused, answer.refused);
      return answer.result;
    } finally {
      over.abort();
      this.#asked.delete(n);
    }
  }

  /** Whoever is about to give the right to type back has it no more, even before the node has said so. */
  giveUp(): void {
    if (this.mayWrite && this.view) this.view = { ...this.view, writer: null };
    this.mayWrite = false;
  }

  /** Goes; resolves when the last words are out. */
  async leave(): Promise<void> {
    this.#channel.close("left");
    await this.#channel.ended;
  }

  async #hear(message: Message): Promise<void> {
    this.#heardAt = performance.now();
    if (message.kind === "answer") this.#asked.get(message.n)?.(message);
    if (message.kind === "view") {
      this.view = message.view;
      this.mayWrite = message.mayWrite;
    }
    if (message.kind === "bytes" || message.kind === "mark" || message.kind === "view")
      await this.#shown(message);
    if (message.kind === "view") this.#begun.resolve();
  }

  /** Whoever reads slowly, in a pager, is waited for. */
  async #shown(item: Item): Promise<void> {
    this.#isShowing = true;
    try {
      await this.#show(item);
    } finally {
      this.#isShowing = false;
      this.#heardAt = performance.now();
    }
  }

  /** Resolves when nothing has come for too long; at once when the wait is over. */
  async #silence(over: AbortSignal): Promise<string> {
    while (!over.aborted && this.quietMs < SILENCE_MS)
      await sleep(SILENCE_MS - this.quietMs, undefined, { signal: over }).catch(() => undefined);
    return SILENT;
  }
}

function interrupted(signal: AbortSignal): Promise<string> {
  return new Promise((resolve) => {
    signal.addEventListener("abort", () => resolve("interrupted"), { once: true });
    if (signal.aborted) resolve("interrupted");
  });
}
