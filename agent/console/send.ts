/** `fruit console send`: text for a line, for scripts. */
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { person } from "../power/show.ts";
import {
  CliError,
  type CliVerb,
  EXIT,
  type Exit,
  keyboardOf,
  printable,
  seconds,
  UsageError,
} from "../terminal.ts";
import type { Channel } from "./channel.ts";
import { bytesOf, Expecting, parsePattern } from "./expect.ts";
import type { Mark } from "./port.ts";
import { TAKEN_MS, Visit } from "./visit.ts";

type Context = Parameters<CliVerb["run"]>[0];

/** What a timer can wait for: 24 days. */
const LONGEST_MS = 2 ** 31 - 1;

/** What is to be sent where, and what is to come of it. */
interface Errand {
  console: string;
  bytes: Uint8Array;
  pattern: RegExp | undefined;
  timeoutMs: number;
  force: boolean;
  reason: string | undefined;
}

/**
 * Sends text: exit 0 when the line has taken it, 3 when somebody else writes. With `--expect` waits for the answer: exit 0 when
 * it came, 5 when not in time, 1 when the console ended.
 */
export async function send(context: Context): Promise<Exit> {
  const { values, positionals } = parseArgs({
    args: context.args,
    allowPositionals: true,
    options: {
      expect: { type: "string" },
      timeout: { type: "string" },
      "no-newline": { type: "boolean", default: false },
      force: { type: "boolean", default: false },
      reason: { type: "string" },
    },
  });
  const [name, text, ...others] = positionals;
  if (name === undefined || text === undefined) throw new UsageError("which console, and which text?");
  if (others.length > 0) throw new UsageError(`"${others[0]}" is one word too many; put the text in quotes`);
  if (values.timeout !== undefined && values.expect === undefined)
    throw new UsageError("--timeout goes with --expect");
  const errand: Errand = {
    console: name,
    bytes: bytesOf(values["no-newline"] ? text : `${text}\\r`),
    pattern: values.expect === undefined ? undefined : parsePattern(values.expect),
    timeoutMs: seconds("--timeout", values.timeout ?? "10s") * 1000,
    force: values.force,
    reason: values.reason,
  };
  if (errand.bytes.length === 0) throw new UsageError("there is nothing to send");
  return run(context, errand);
}

/** Attached before anything is sent, so that nothing of the answer is missed. */
async function run(context: Context, errand: Errand): Promise<Exit> {
  const { console, pattern, force, reason } = errand;
  const over = new AbortController();
  const late = lateness(errand, over.signal);
  const attaching = context.attach(
    {
      console,
      mode: "write",
      replay_lines: 0,
      ...(force ? { force } : {}),
      ...(pattern ? {} : { quiet: true }),
    },
    reason === undefined ? {} : { reason },
  );
  // Whoever gets in after that finds nobody who waits
  let leave = async (): Promise<void> =>
    void attaching.then((channel) => channel.close("left")).catch(() => undefined);
  try {
    const channel = await Promise.race([attaching, late]);
    const task = new Task(context, errand, channel);
    leave = () => task.visit.leave();
    await Promise.race([pattern ? task.expect(pattern) : task.send(), late]);
    return EXIT.done;
  } finally {
    over.abort();
    await leave();
  }
}

/** Rejects when what is expected has not come in time, all that has to happen before included; never where nothing is expected. */
async function lateness({ console, pattern, timeoutMs }: Errand, over: AbortSignal): Promise<never> {
  const limitMs = pattern ? Math.min(timeoutMs, LONGEST_MS) : LONGEST_MS;
  const isLate = await sleep(limitMs, true, { signal: over }).catch(() => false);
  if (!isLate) return new Promise(() => undefined);
  throw new CliError(
    EXIT.unconfirmed,
    `console ${console}: "${pattern?.source}" did not come within ${timeoutMs / 1000} s`,
  );
}

/** One errand at a console. */
class Task {
  readonly visit: Visit;
  readonly #errand: Errand;
  #news = Promise.withResolvers<void>();
  #expecting: Expecting | undefined;
  /** Why the node has not taken all, in its words. */
  #refused: string | undefined;

  constructor(context: Context, errand: Errand, channel: Channel) {
    const { show } = keyboardOf(context.io);
    this.#errand = errand;
    if (errand.pattern) this.#expecting = new Expecting(errand.pattern);
    this.visit = new Visit(channel, {
      console: errand.console,
      show: async (item) => {
        if (item.kind === "mark") this.#note(item.mark, context.io);
        if (item.kind === "bytes" && this.#expecting) {
          this.#expecting.add(item.bytes);
          await show(item.bytes);
        }
        this.#news.resolve();
      },
      signal: context.io.signal,
    });
  }

  /** Returns when the line has taken all. */
  async send(): Promise<void> {
    await this.#begin();
    await this.visit.send(this.#errand.bytes).catch(() => undefined);
    await this.visit.ask({ do: "who" }, TAKEN_MS);
    this.#heedRefusal("not all was sent");
  }

  /** Returns when it has come, be it the line's echo or its answer. Throws `CliError` when it cannot come any more. */
  async expect({ source }: RegExp): Promise<void> {
    const { visit } = this;
    await this.#begin();
    void visit.send(this.#errand.bytes).catch(() => undefined);
    const expected = `"${source}" did not come`;
    let why: string | undefined;
    const ended = visit.ended.then((words) => {
      why = words;
    });
    while (!this.#expecting?.look()) {
      if (why !== undefined) throw visit.problem(`${expected}: ${why}`);
      this.#heedRefusal(expected);
      if (!visit.mayWrite) throw visit.problem(`${expected}: the right to type was taken away`);
      await Promise.race([ended, this.#news.promise]);
      this.#news = Promise.withResolvers();
    }
  }

  async #begin(): Promise<void> {
    await this.visit.begin();
    refuseReading(this.visit);
  }

  #note({ kind, text }: Mark, io: Context["io"]): void {
    const [, refused] = (kind === "notice" && /^not sent: (.*)/s.exec(text)) || [];
    if (refused !== undefined) this.#refused = printable(refused);
    else if (this.#expecting && !COMINGS.includes(kind))
      io.err(`fruit: console ${this.#errand.console}: ${printable(text)}\n`);
  }

  /** Throws `CliError` where the node has refused some of it. */
  #heedRefusal(what: string): void {
    if (this.#refused === undefined) return;
    const isGone = this.visit.view?.state === "gone";
    throw this.visit.problem(`${what}: ${this.#refused}`, isGone ? EXIT.failed : EXIT.busy);
  }
}

/** Who comes and goes is nothing that a script wants to know. */
const COMINGS: readonly string[] = ["attach", "detach"];

/** Throws `CliError` where nothing could be sent. */
function refuseReading(visit: Visit): void {
  const { view, mayWrite } = visit;
  if (view?.state === "gone") throw visit.problem(`the line is gone (${view.error ?? view.device})`);
  if (mayWrite) return;
  const why = view?.writer
    ? `${person(view.writer)} writes; --force --reason TEXT takes over`
    : "you may only read there; is its outlet locked ('fruit locks')?";
  throw visit.problem(why, EXIT.busy);
}
