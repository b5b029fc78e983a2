/**
 * JSON lines that only grow, each with the hash of the line before: the audit log and the history of what the node booted.
 *
 * Invariants
 * - `prev` is the SHA-256 of the previous line's bytes without its newline; the first line's is 64 zeros. The chain runs
 *   across files: `NAME.jsonl` is the newest, `NAME.3.jsonl` the oldest; beyond that the oldest lines go.
 * - A line is whole or absent. What a power cut left of one is kept in `NAME.torn`, and the log says so.
 *
 * The chain shows accidents and clumsy hands, and `NAME.head` those at its newest line.
 */
import { createHash } from "node:crypto";
import { appendFile, mkdir, readdir, rename, stat, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import * as v from "valibot";
import { readHead, writeHead } from "./head.ts";
import { LineFile, type OpenFile, readLines, syncDirectory } from "./lines.ts";

/** `prev` of the first line there ever was. */
export const GENESIS = "0".repeat(64);

/** Files kept, the current one included. */
export const CHAIN_FILES = 4;

const MAX_BYTES = 262_144;
const MOST_WAITING = 1000;

/** The keys that every chained line has; its log adds its own. */
export const CHAINED = {
  seq: v.pipe(v.number(), v.integer(), v.minValue(1)),
  boot: v.string(),
  ts: v.string(),
  clock: v.string(),
  prev: v.pipe(v.string(), v.regex(/^[0-9a-f]{64}$/)),
};

/** One kind of log. */
export interface ChainKind<Line extends ChainedLine> {
  /** First word of its files' names. */
  name: string;
  schema: v.GenericSchema<unknown, Line>;
  /** How the log itself says what it found: an end that was torn, or lines that were lost. */
  note(what: "torn" | "lost", facts: object): object;
}

/** What stands in every line. */
export interface ChainedLine {
  seq: number;
  boot: string;
  ts: string;
  clock: string;
  prev: string;
}

/** The newest line; publishing it makes a later cut visible. */
export interface ChainHead {
  seq: number;
  sha256: string;
}

/** How a log is kept. */
export interface ChainOptions {
  /** Id of this boot of the machine. */
  boot: string;
  clock: () => "synced" | "unsynced";
  /** Of one file. */
  maxBytes?: number;
  /** The current one included. */
  files?: number;
  openFile?: OpenFile;
}

interface Torn {
  bytes: number;
  sha256: string;
  file: string;
}

/** A log, open for writing. */
export class ChainLog<Line extends ChainedLine> {
  readonly #dir: string;
  readonly #kind: ChainKind<Line>;
  readonly #options: ChainOptions;
  #file: LineFile | undefined;
  #head: ChainHead | undefined;
  /** Put aside, and not yet said in the log. */
  #torn: Torn | undefined;
  /** The note of the newest line and where the log ends instead: lines were lost, or changed; not yet said in the log. */
  #lost: { noted: ChainHead; found: number } | undefined;
  #turn: Promise<void> = Promise.resolve();
  #waiting = 0;

  private constructor(dir: string, kind: ChainKind<Line>, options: ChainOptions) {
    this.#dir = dir;
    this.#kind = kind;
    this.#options = options;
  }

  /** Opens the log in a directory, made if need be. On a disk that is full it opens too, and every append fails until there is room. */
  static async open<Line extends ChainedLine>(
    dir: string,
    kind: ChainKind<Line>,
    options: ChainOptions,
  ): Promise<ChainLog<Line>> {
    await mkdir(dir, { recursive: true, mode: 0o700 });
    const log = new ChainLog(dir, kind, options);
    await log.#ready().catch(() => undefined); // append tries again, and says why not
    return log;
  }

  /** Whether so many lines wait already that no other is taken. */
  get isFull(): boolean {
    return this.#waiting >= MOST_WAITING;
  }

  /** Adds a line; when `durable` it is on the disk afterwards. Throws what the system says, and the log is as before. */
  async append(fields: object, { durable }: { durable: boolean }): Promise<void> {
    if (this.isFull)
      throw new Error(`${MOST_WAITING} lines wait for the ${this.#kind.name} log; try again later`);
    this.#waiting++;
    const turn = this.#turn.then(async () => this.#add(await this.#ready(), fields, durable));
    this.#turn = turn.catch(() => undefined);
    await turn.finally(() => this.#waiting--);
  }

  /** Undefined while nothing was ever written. */
  head(): ChainHead | undefined {
    return this.#head;
  }

  /** The newest `n` lines, oldest first. */
  tail(n: number): Promise<Line[]> {
    return tailChain(this.#dir, this.#kind, n);
  }

  async close(): Promise<void> {
    await this.#turn;
    await this.#file?.sync().catch(() => undefined);
    if (this.#file && this.#head) await this.#note(this.#head);
    await this.#file?.close();
    this.#file = undefined;
  }

  async #add(file: LineFile, fields: object, durable: boolean): Promise<void> {
    const line = this.#compose(fields);
    const isFull =
      file.size > 0 && file.size + Buffer.byteLength(line) + 1 > (this.#options.maxBytes ?? MAX_BYTES);
    await (isFull ? await this.#rotate(file) : file).append(line, durable);
    this.#head = { seq: (this.#head?.seq ?? 0) + 1, sha256: sha256(line) };
    if (durable) await this.#note(this.#head);
  }

  /** Only a second look at what is on the disk already: without room for the note the line still stands. */
  async #note(head: ChainHead): Promise<void> {
    await writeHead(this.#dir, this.#kind.name, head).catch(() => undefined);
  }

  #compose(fields: object): string {
    return JSON.stringify({
      seq: (this.#head?.seq ?? 0) + 1,
      boot: this.#options.boot,
      ts: new Date().toISOString(),
      clock: this.#options.clock(),
      ...fields,
      prev: this.#head?.sha256 ?? GENESIS,
    });
  }

  async #ready(): Promise<LineFile> {
    const file = this.#file ?? (await this.#open());
    this.#file = file;
    if (this.#torn) {
      await this.#add(file, this.#kind.note("torn", this.#torn), true);
      this.#torn = undefined;
    }
    if (this.#lost) {
      await this.#add(this.#file, this.#kind.note("lost", this.#lost), true);
      this.#lost = undefined;
    }
    return this.#file;
  }

  async #open(): Promise<LineFile> {
    const path = join(this.#dir, fileName(this.#kind.name, 0));
    this.#torn = (await this.#putTornAside(path)) ?? this.#torn;
    this.#head = await lastOf(this.#dir, this.#kind);
    const noted = await readHead(this.#dir, this.#kind.name);
    const { seq = 0, sha256: newest = GENESIS } = this.#head ?? {};
    // What a torn end took with it is said already.
    if (noted && !this.#torn && (noted.seq > seq || (noted.seq === seq && noted.sha256 !== newest)))
      this.#lost = { noted, found: seq };
    return LineFile.open(path, this.#options.openFile);
  }

  async #putTornAside(path: string): Promise<Torn | undefined> {
    const { lines, rest } = await readLines(path);
    // After a power cut blocks of zeros may hold newlines' places: from the end, everything up to a whole line is torn.
    let whole = lines.length;
    while (whole > 0 && !parseLine(this.#kind, lines[whole - 1])) whole--;
    const keep = lines.slice(0, whole).reduce((sum, line) => sum + line.length + 1, 0);
    const torn = Buffer.concat([...lines.slice(whole).flatMap((line) => [line, Buffer.from("\n")]), rest]);
    if (torn.length === 0) return undefined;
    const file = `${this.#kind.name}.torn`;
    const evidence = join(this.#dir, file);
    const size = await stat(evidence).then(
      (found) => found.size,
      () => 0,
    );
    const isFull = size + torn.length > (this.#options.maxBytes ?? MAX_BYTES);
    await (isFull ? writeFile : appendFile)(evidence, torn, { mode: 0o600, flush: true });
    await truncate(path, keep);
    return { bytes: torn.length, sha256: sha256(torn), file };
  }

  /** Moves every file one number up; the one that has the highest goes. A cut between two renames loses nothing else. */
  async #rotate(full: LineFile): Promise<LineFile> {
    const { name } = this.#kind;
    await full.sync();
    this.#file = undefined;
    await full.close();
    const present = new Set((await listFiles(this.#dir, name)).map(({ number }) => number));
    // A number that is free, after a cut, takes the one below it, and nothing has to go.
    let free = 1;
    while (present.has(free) && free < (this.#options.files ?? CHAIN_FILES) - 1) free++;
    for (let number = free; number > 0; number--)
      await rename(join(this.#dir, fileName(name, number - 1)), join(this.#dir, fileName(name, number)));
    await syncDirectory(this.#dir);
    this.#file = await LineFile.open(join(this.#dir, fileName(name, 0)), this.#options.openFile);
    return this.#file;
  }
}

/** The newest `n` lines of a log on disk, oldest first; lines that are none are left out (`verifyChain` names them). */
export async function tailChain<Line extends ChainedLine>(
  dir: string,
  kind: ChainKind<Line>,
  n: number,
): Promise<Line[]> {
  const found: Line[] = [];
  for (const { name } of (await listFiles(dir, kind.name)).reverse()) {
    if (found.length >= n) break;
    const { lines } = await readLines(join(dir, name));
    found.unshift(...lines.map((line) => parseLine(kind, line)).filter((line) => line !== undefined));
  }
  return n > 0 ? found.slice(-n) : [];
}

/** The files of a log, oldest first. */
export async function listFiles(dir: string, log: string): Promise<{ name: string; number: number }[]> {
  const names = await readdir(dir);
  return names
    .flatMap((name) => {
      const match = new RegExp(`^${log}(?:\\.([1-9]\\d{0,3}))?\\.jsonl$`).exec(name);
      return match ? [{ name, number: Number(match[1] ?? 0) }] : [];
    })
    .sort((a, b) => b.number - a.number);
}

/** Reads one line; undefined when it is none. */
export function parseLine<Line extends ChainedLine>(
  { schema }: ChainKind<Line>,
  bytes: Buffer | undefined,
): Line | undefined {
  if (!bytes || bytes.length === 0) return undefined;
  try {
    const parsed = v.safeParse(schema, JSON.parse(bytes.toString("utf8")));
    return parsed.success ? parsed.output : undefined;
  } catch {
    return undefined;
  }
}

/** The hash a following line carries as `prev`, hex. */
export function sha256(bytes: Uint8Array | string): string {
  return createHash("sha256").update(bytes).digest("hex");
}

async function lastOf<Line extends ChainedLine>(
  dir: string,
  kind: ChainKind<Line>,
): Promise<ChainHead | undefined> {
  for (const { name } of (await listFiles(dir, kind.name)).reverse()) {
    const { lines } = await readLines(join(dir, name));
    for (const bytes of lines.reverse()) {
      const line = parseLine(kind, bytes);
      if (line) return { seq: line.seq, sha256: sha256(bytes) };
    }
  }
  return undefined;
}

const fileName = (log: string, number: number) => (number === 0 ? `${log}.jsonl` : `${log}.${number}.jsonl`);
