/**
 * The commands this node accepted, so that none is done twice and none is forgotten: not over a restart, not over a
 * power cut.
 *
 * Invariants
 * - An id is remembered until ten minutes after its `exp`, that of a disruptive command for a day at least. One that
 *   this node made itself cannot be sent again, and is forgotten when its command has ended.
 * - Never is an id forgotten to make room: when the journal is full, new commands are refused. Each has its share (see
 *   `shareOf`), so that anybody cannot keep out those who have a key, and these not whoever stands at the node.
 * - What anybody did does not push what others did out of the last results.
 * - The file is lines that only grow, written anew when they are too many. A torn last line is a command that was never
 *   accepted.
 */
import { copyFile, mkdir, open, rename } from "node:fs/promises";
import { join } from "node:path";
import { isDeepStrictEqual } from "node:util";
import * as v from "valibot";
import { COMMAND_STATES, CommandResult, isProven, Refusal } from "../commands.ts";
import type { Log } from "../log.ts";
import { LineFile, type OpenFile, readLines, reasonOf, syncDirectory } from "./lines.ts";

const DAY_SECONDS = 86_400;
const KEEP_AFTER_EXP_SECONDS = 600;
/** Bytes of the file; it is written anew when it would grow beyond. */
const MAX_BYTES = 1_048_576;
const MOST_RESULTS = 100;
const RESULT_MAX_BYTES = 2048;
/** What the ids alone may take, so that the results and some growth always fit. */
const IDS_MAX_BYTES = MAX_BYTES - 1.5 * MOST_RESULTS * RESULT_MAX_BYTES;
const MOST_IDS = 10_000;
const MOST_WAITING = 1000;

const Entry = v.object({
  id: v.string(),
  verb: v.string(),
  who: v.string(),
  /** Unix seconds by this node's clock. */
  at: v.number(),
  exp: v.number(),
  digest: v.string(),
  durable: v.boolean(),
  /** Its id was made by this node. */
  own: v.optional(v.boolean()),
  state: v.picklist(COMMAND_STATES),
});
const Line = v.union([Entry, v.object({ finished: CommandResult })]);

/** A command that was accepted, and how it ended if it did. */
export type JournalEntry = v.InferOutput<typeof Entry>;

/** What the journal needs from the agent. */
export interface JournalOptions {
  nowSeconds: () => number;
  log: Log;
  /** Ids that fit. */
  most?: number;
  openFile?: OpenFile;
}

/** The journal of one node, open for writing. */
export class Journal {
  readonly #path: string;
  readonly #dir: string;
  readonly #options: JournalOptions;
  /** In the order of their acceptance. */
  readonly #entries = new Map<string, JournalEntry>();
  /** Oldest first. */
  readonly #results: CommandResult[] = [];
  #bytes = 0;
  #file: LineFile | undefined;
  #turn: Promise<void> = Promise.resolve();
  #waiting = 0;

  private constructor(dir: string, options: JournalOptions) {
    this.#dir = dir;
    this.#path = join(dir, "journal.jsonl");
    this.#options = options;
  }

  /** Reads what was accepted before. On a disk that is full it opens too, and accepts nothing until there is room. */
  static async open(dir: string, options: JournalOptions): Promise<Journal> {
    await mkdir(dir, { recursive: true, mode: 0o700 });
    const journal = new Journal(dir, options);
    await journal.#read();
    try {
      await journal.#rewrite();
    } catch (cause) {
      options.log("error", "journal.unwritable", { file: journal.#path, error: reasonOf(cause) });
    }
    return journal;
  }

  /** What is known of an id; undefined when it was never accepted, or so long ago that its command has expired. */
  seen(id: string): JournalEntry | undefined {
    return this.#entries.get(id);
  }

  /** Remembers a command before it runs; a `durable` one is on the disk afterwards. Throws `Refusal`: duplicate, replay, busy, disk. */
  async accept(command: Omit<JournalEntry, "at" | "state">): Promise<void> {
    const seen = this.#entries.get(command.id);
    if (seen && seen.digest !== command.digest)
      throw new Refusal("replay", `id ${command.id} was already used by another command`);
    if (seen) throw new Refusal("duplicate", `id ${command.id} was already accepted and is ${seen.state}`);
    const entry: JournalEntry = { ...command, at: this.#options.nowSeconds(), state: "accepted" };
    this.#refuseFull(entry);
    this.#keep(entry); // before the first wait: the same id arriving meanwhile is a duplicate
    try {
      await this.#write(entry, entry.durable);
    } catch (cause) {
      this.#forget(entry);
      if (cause instanceof Refusal) throw cause;
      throw new Refusal("disk", `${this.#path}: the command cannot be recorded: ${reasonOf(cause)}`);
    }
  }

  /** Records how a command ended, as durably as it was accepted. Throws what the disk says; memory knows all the same. */
  async finish(id: string, result: CommandResult): Promise<void> {
    const entry = this.#entries.get(id);
    if (!entry) return;
    const finished = bounded(result);
    this.#end(finished);
    await this.#write({ finished }, entry.durable);
  }

  /** How a command ended, or that it was accepted; undefined when its id is not known any more. */
  result(id: string): CommandResult | undefined {
    const entry = this.#entries.get(id);
    if (!entry) return undefined;
    const { verb, state, who } = entry;
    const ended = state === "accepted" ? undefined : this.#results.findLast((result) => result.id === id);
    return ended ?? { id, verb, state, by: who };
  }

  /** Commands that were accepted and never finished: after a restart, those that it interrupted. */
  unfinished(): JournalEntry[] {
    return [...this.#entries.values()].filter(({ state }) => state === "accepted");
  }

  /** How the last commands ended, newest first; at most 100 are known. */
  last(n: number): CommandResult[] {
    return this.#results.toReversed().slice(0, n);
  }

  /** Resolves when everything is written. */
  async close(): Promise<void> {
    await this.#turn;
    await this.#file?.close();
    this.#file = undefined;
  }

  #refuseFull(entry: JournalEntry): void {
    const share = shareOf(entry);
    const most = (this.#options.most ?? MOST_IDS) * share;
    const isFull = () => this.#entries.size + 1 > most || this.#bytes + weight(entry) > IDS_MAX_BYTES * share;
    if (isFull()) this.#forgetExpired();
    if (isFull())
      throw new Refusal(
        "busy",
        `the journal is full: it remembers ${this.#entries.size} commands until they expire; try again later`,
      );
  }

  #keep(entry: JournalEntry): void {
    this.#forget(entry);
    this.#entries.set(entry.id, entry);
    this.#bytes += weight(entry);
  }

  #forget(entry: JournalEntry): void {
    const known = this.#entries.get(entry.id);
    if (known && this.#entries.delete(entry.id)) this.#bytes -= weight(known);
  }

  #end(result: CommandResult): void {
    const entry = this.#entries.get(result.id);
    if (entry) entry.state = result.state;
    if (entry?.own) this.#forget(entry);
    this.#results.push(result);
    if (this.#results.length <= MOST_RESULTS) return;
    const anybodys = this.#results.findIndex(({ by }) => by === undefined || !isProven(by));
    this.#results.splice(Math.max(anybodys, 0), 1);
  }

  #forgetExpired(): void {
    const now = this.#options.nowSeconds();
    for (const entry of [...this.#entries.values()])
      if (entry.state !== "accepted" && forgetAt(entry) <= now) this.#forget(entry);
  }

  async #read(): Promise<void> {
    const { lines, rest } = await readLines(this.#path);
    const { log } = this.#options;
    const bad: number[] = [];
    for (const [index, line] of lines.entries()) {
      const record = parseRecord(line);
      if (!record) bad.push(index + 1);
      else if ("finished" in record) this.#endAgain(record.finished);
      else this.#keep(record);
    }
    if (rest.length > 0) log("warn", "journal.torn", { file: this.#path, bytes: rest.length });
    if (bad.length === 0) return;
    const copy = `${this.#path}.bad`;
    await copyFile(this.#path, copy);
    log("error", "journal.unreadable", { file: this.#path, lines: bad.slice(0, 10), copied: copy });
  }

  /** A result stands twice when the file was written anew between the two; the same id may also have come again, much later. */
  #endAgain(result: CommandResult): void {
    const known = this.#results.findIndex((one) => isDeepStrictEqual(one, result));
    if (known >= 0) this.#results.splice(known, 1);
    this.#end(result);
  }

  /** One record after the other; memory has it already, so that writing anew writes it too. */
  async #write(record: JournalEntry | { finished: CommandResult }, durable: boolean): Promise<void> {
    if (this.#waiting >= MOST_WAITING)
      throw new Refusal("busy", `${MOST_WAITING} records wait for the journal; try again later`);
    const line = JSON.stringify(record);
    const turn = this.#turn.then(() =>
      this.#file && this.#file.size + Buffer.byteLength(line) + 1 <= MAX_BYTES
        ? this.#file.append(line, durable)
        : this.#rewrite(),
    );
    this.#turn = turn.catch(() => undefined);
    this.#waiting++;
    try {
      await turn;
    } finally {
      this.#waiting--;
    }
  }

  /** The file without what is over, in place of the old one at once or not at all. */
  async #rewrite(): Promise<void> {
    this.#forgetExpired();
    // Results first: an id that came again must not end with what became of it the first time.
    const records = [...this.#results.map((finished) => ({ finished })), ...this.#entries.values()];
    const temporary = `${this.#path}.new`;
    const handle = await open(temporary, "w", 0o600);
    try {
      await handle.writeFile(records.map((record) => `${JSON.stringify(record)}\n`).join(""));
      await handle.sync();
    } finally {
      await handle.close();
    }
    const old = this.#file;
    this.#file = undefined; // should one of the next steps fail, the next record writes anew
    await old?.close();
    await rename(temporary, this.#path);
    await syncDirectory(this.#dir);
    this.#file = await LineFile.open(this.#path, this.#options.openFile);
  }
}

/**
 * Unix seconds after which an id means nothing. A day for what disrupts, because a node whose clock is wrong does not
 * see that a command expired; at most a day for what is harmless, because its `exp` may be anything then.
 */
function forgetAt({ at, exp, durable }: JournalEntry): number {
  const expired = exp + KEEP_AFTER_EXP_SECONDS;
  return durable ? Math.max(expired, at + DAY_SECONDS) : Math.min(expired, at + DAY_SECONDS);
}

/**
 * How full the journal may be for it: half when anybody could have sent it, more with a key, and most of that for what
 * disrupts. The last tenth is for commands whose ids go when they end: the local socket's, and those of `set`, of which
 * few are under way at once.
 */
function shareOf({ own, who, durable }: JournalEntry): number {
  if (own) return 1;
  if (!isProven(who)) return 0.5;
  return durable ? 0.9 : 0.75;
}

function parseRecord(line: Buffer): v.InferOutput<typeof Line> | undefined {
  try {
    const parsed = v.safeParse(Line, JSON.parse(line.toString("utf8")));
    return parsed.success ? parsed.output : undefined;
  } catch {
    return undefined;
  }
}

/** Bytes that an entry takes in the file, rather more than less. */
function weight({ id, verb, who, digest }: JournalEntry): number {
  return 140 + id.length + verb.length + who.length + digest.length;
}

/** A long answer was sent when it was made; what is remembered of it is how it ended. */
function bounded(result: CommandResult): CommandResult {
  if (JSON.stringify(result).length <= RESULT_MAX_BYTES) return result;
  const { result: _, message, ...rest } = result;
  return { ...rest, ...(message === undefined ? {} : { message: message.slice(0, 500) }) };
}
