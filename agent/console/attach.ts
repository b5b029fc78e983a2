/**
 * A person at a console: what they type goes to the line, what the line says comes to their screen.
 *
 * Invariants
 * - Whatever ends it, the terminal is what it was before.
 * - Nothing typed is lost in silence: what cannot be sent is said.
 */
import { setImmediate as nextTurn, setTimeout as sleep } from "node:timers/promises";
import { person } from "../power/show.ts";
import { type CliVerb, EXIT, type Exit, type Keyboard, keyboardOf } from "../terminal.ts";
import type { Ask } from "./channel.ts";
import { Escapes, escapeWord, type Key, keysHelp, Question } from "./keys.ts";
import { LogFile } from "./logfile.ts";
import { powerMenu } from "./menu.ts";
import type { WhoLine } from "./openings.ts";
import { type Item, REPLAY } from "./port.ts";
import { placeOfMarks, Screen } from "./screen.ts";
import { banner, goneWords, whoTable } from "./show.ts";
import { TAKEN_MS, Visit } from "./visit.ts";

/** Typed and not taken yet: past that the keyboard waits. Until then `~.` is heard however slow the line is. */
const WAITING_MAX = 1_048_576;
/** What was typed before `~.` has this long to get to the node. */
const LEAVE_MS = 500;
/** A file is on the line: its answer is over when nothing has come for this long, or not at all. */
const QUIET_MS = 500;
const SETTLE_MS = 5000;
/** Whoever types where they may not is told so this often at most. */
const TELL_MS = 3000;

/** How somebody attaches. */
export interface AttachFlags {
  wants: "write" | "read";
  force: boolean;
  reason: string | undefined;
  replayLines: number;
  escape: number | undefined;
  isStamped: boolean;
  /** No marks, no words of ours: the line's bytes alone. */
  isBare: boolean;
}

type Context = Parameters<CliVerb["run"]>[0];

/** Attaches to a console until the person leaves (exit 0) or the console does (exit 1). */
export async function attachTo(context: Context, name: string, flags: AttachFlags): Promise<Exit> {
  const { io } = context;
  const keyboard = keyboardOf(io);
  const { wants, force, reason, replayLines } = flags;
  const channel = await context.attach(
    { console: name, mode: wants, replay_lines: replayLines, ...(force ? { force } : {}) },
    reason === undefined ? {} : { reason },
  );
  // Before anything is shown: what comes now is not to be changed by the terminal
  await using raw = keyboard.isTerminal ? await keyboard.raw() : undefined;
  const log = new LogFile(name, (why) => screen.notice(why));
  const screen = new Screen({
    show: (bytes) => {
      log.add(bytes);
      return keyboard.show(bytes);
    },
    aside: (text) => io.err(raw ? text : text.replaceAll("\r\n", "\n")),
    marks: placeOfMarks(flags.isBare, io.isTerminal),
    isStamped: flags.isStamped,
  });
  let isGreeted = false;
  const greet = (item: Item) => {
    if (isGreeted || item.kind !== "view") return;
    isGreeted = true;
    const isThroughSsh = io.env.SSH_CONNECTION !== undefined;
    const escapes = keyboard.isTerminal ? flags.escape : undefined;
    screen.notice(banner(item.view, { mayWrite: item.mayWrite, wants, escape: escapes, isThroughSsh }));
  };
  const visit = new Visit(channel, {
    console: name,
    show: (item) => {
      greet(item);
      return screen.item(item);
    },
    signal: io.signal,
  });
  const guest = new Person({ context, flags, keyboard, screen, visit, log });
  try {
    await visit.begin();
    return await guest.stay();
  } finally {
    screen.end();
    log.end();
    await visit.leave();
  }
}

/** Who sits there. */
class Person {
  readonly #context: Context;
  readonly #flags: AttachFlags;
  readonly #keyboard: Keyboard;
  readonly #screen: Screen;
  readonly #visit: Visit;
  readonly #log: LogFile;
  readonly #left = Promise.withResolvers<undefined>();
  readonly #escapes: Escapes;
  #question: Question | undefined;
  #sent: Promise<void> = Promise.resolve();
  #waiting = 0;
  #toldAt = Number.NEGATIVE_INFINITY;

  constructor(means: {
    context: Context;
    flags: AttachFlags;
    keyboard: Keyboard;
    screen: Screen;
    visit: Visit;
    log: LogFile;
  }) {
    this.#context = means.context;
    this.#flags = means.flags;
    this.#keyboard = means.keyboard;
    this.#screen = means.screen;
    this.#visit = means.visit;
    this.#log = means.log;
    this.#escapes = new Escapes(this.#escape);
  }

  /** Only somebody who types can mean an escape: in a file it is text. */
  get #escape(): number | undefined {
    return this.#keyboard.isTerminal ? this.#flags.escape : undefined;
  }

  /** Until they leave, or the console does. */
  async stay(): Promise<Exit> {
    const over = new AbortController();
    try {
      const why = await Promise.race([this.#visit.ended, this.#left.promise, this.#listen(over.signal)]);
      if (why === undefined) return await this.#go();
      this.#screen.end();
      this.#context.io.err(
        `fruit: console ${this.#visit.view?.name}: ${why}${this.#keyboard.isTerminal ? "\r\n" : "\n"}`,
      );
      return EXIT.failed;
    } finally {
      over.abort();
      this.#question?.cancel();
    }
  }

  /** Reads what is typed to its end. */
  async #listen(signal: AbortSignal): Promise<undefined> {
    // Whoever only reads from the start has nothing to say, and a file is not to be read for nobody
    if (!this.#keyboard.isTerminal && this.#flags.wants === "read") return this.#left.promise;
    for await (const chunk of this.#keyboard.read(signal)) {
      await this.#typed(chunk);
      while (this.#waiting > WAITING_MAX) await this.#sent;
    }
    // Somebody's terminal does not end: it went away
    if (!this.#keyboard.isTerminal) await this.#settle();
    return undefined;
  }

  async #typed(chunk: Uint8Array): Promise<void> {
    let line: number[] = [];
    for (const byte of chunk) {
      const question = this.#question;
      if (question) {
        question.add(byte);
        // What is typed on belongs to the next question, if there is one
        if (question.isOver) await nextTurn();
        continue;
      }
      const said = this.#escapes.add(byte);
      if (typeof said !== "string") {
        line.push(...said);
        continue;
      }
      this.#send(line);
      line = [];
      void this.#press(said).catch((error) => this.#screen.notice(String(error?.message ?? error)));
    }
    this.#send(line);
  }

  #send(typed: readonly number[]): void {
    if (typed.length === 0 || this.#isRefused()) return;
    this.#waiting += typed.length;
    this.#sent = this.#sent
      // That the channel has ended is told by the channel
      .then(() => this.#visit.send(Uint8Array.from(typed)).catch(() => undefined))
      .then(() => {
        this.#waiting -= typed.length;
      });
  }

  /** What was typed before gets to the node before, and what is typed after after it. */
  async #askInTurn(ask: Ask): Promise<void> {
    const asked = this.#sent.then(() => ({ answer: this.#visit.ask(ask) }));
    this.#sent = asked.then(() => undefined);
    await (await asked).answer;
  }

  /** Whether nothing may be typed now; a person is told, and of a file that goes nowhere it is an error. */
  #isRefused(): boolean {
    const { mayWrite, view } = this.#visit;
    const why = mayWrite ? goneWords(view) : `${view?.writer ? person(view.writer) : "nobody"} writes`;
    if (why === undefined) return false;
    if (!this.#keyboard.isTerminal)
      throw this.#visit.problem(`not all was sent: ${why}`, mayWrite ? EXIT.failed : EXIT.busy);
    if (performance.now() - this.#toldAt < TELL_MS) return true;
    this.#toldAt = performance.now();
    const way = mayWrite || this.#escape === undefined ? "" : `; ${escapeWord(this.#escape)}f takes over`;
    this.#screen.notice(`not sent: ${why}${way}`);
    return true;
  }

  async #press(key: Key): Promise<void> {
    const { view } = this.#visit;
    const tell = (lines: string) => this.#screen.say(lines);
    switch (key) {
      case ".":
        this.#left.resolve(undefined);
        return;
      case "?":
        tell(keysHelp(this.#escape ?? 0));
        return;
      case "t":
        this.#screen.isStamped = !this.#screen.isStamped;
        this.#screen.notice(`time stamps ${this.#screen.isStamped ? "on" : "off"}`);
        return;
      case "w":
        tell(whoTable((await this.#visit.ask({ do: "who" })) as WhoLine[], Date.now()));
        return;
      case "B":
        await this.#askInTurn({ do: "break" });
        return;
      case "d":
        // What is typed on would be refused by the node, in other words
        this.#visit.giveUp();
        await this.#askInTurn({ do: "release" });
        return;
      case "r":
        await this.#askInTurn({ do: "replay", lines: this.#flags.replayLines || REPLAY.lines });
        return;
      case "f": {
        const from = view?.writer ? ` from ${person(view.writer)}` : "";
        const reason = await this.#ask(`why do you take over${from}? `, false);
        if (reason !== undefined) await this.#askInTurn({ do: "takeover", reason });
        return;
      }
      case "l":
        this.#screen.notice(await this.#log.toggle((question) => this.#ask(question, false)));
        return;
      case "p":
        return this.#power(view?.outlet);
    }
  }

  async #power(outlet: string | undefined): Promise<void> {
    if (outlet === undefined) throw new Error("this console has no outlet in the node's configuration");
    const act = await powerMenu({
      outlet,
      send: this.#context.send,
      signal: this.#context.io.signal,
      ask: (text, isKey) => this.#ask(text, isKey),
      say: (lines) => this.#screen.say(lines),
    });
    // Meanwhile the console is there: what the power does is seen on it
    await act?.();
  }

  async #ask(text: string, isKey: boolean): Promise<string | undefined> {
    using _held = this.#screen.hold();
    const question = new Question(text, { echo: (typed) => this.#screen.echo(typed), isKey });
    this.#question = question;
    try {
      return await question.answer;
    } finally {
      this.#question = undefined;
    }
  }

  /** Waits until the line has taken a file, and then for what it says to that. */
  async #settle(): Promise<void> {
    await this.#sent;
    await this.#visit.ask({ do: "who" }, TAKEN_MS);
    const until = performance.now() + SETTLE_MS;
    while (this.#visit.quietMs < QUIET_MS && performance.now() < until)
      await sleep(QUIET_MS - this.#visit.quietMs);
  }

  async #go(): Promise<Exit> {
    const limit = new AbortController();
    await Promise.race([this.#sent, sleep(LEAVE_MS, undefined, { signal: limit.signal })]).catch(
      () => undefined,
    );
    limit.abort();
    if (this.#keyboard.isTerminal) this.#screen.notice("left");
    return EXIT.done;
  }
}
