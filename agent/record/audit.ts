/**
 * Who asked for what and what came of it: JSON lines that only grow, each with the hash of the line before.
 *
 * Invariants
 * - `prev` is the SHA-256 of the previous line's bytes without its newline; the first line's is 64 zeros. The chain runs
 *   across files: `audit.jsonl` is the newest, `audit.3.jsonl` the oldest; beyond that the oldest lines go.
 * - A line is whole or absent. What a power cut left of one is kept in `audit.torn`, and the log says so.
 * - What cannot be recorded is not done: a failed append is a refusal.
 *
 * The chain shows accidents and clumsy hands, and `audit.head` those at its newest line. Somebody who writes all of it anew is shown by the head that the node
 * publishes and others remember (`fruit audit verify --head`).
 */
import { createHash } from "node:crypto";
import { appendFile, mkdir, readdir, rename, stat, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import * as v from "valibot";
import { Refusal } from "../commands.ts";
import { readHead, writeHead } from "./head.ts";
import { LineFile, type OpenFile, readLines, reasonOf, syncDirectory } from "./lines.ts";

/** `prev` of the first line there ever was. */
export const GENESIS = "0".repeat(64);

/** Files kept, the current one included. */
export const AUDIT_FILES = 4;

const MAX_BYTES = 262_144;
const ARGS_MAX_BYTES = 2048;
const TEXT_MAX = 500;
const MOST_WAITING = 1000;

/** What the caller knows of a line. */
export interface AuditEntry {
  id?: string;
  /** The door it came by, or `agent`. */
  src: string;
  who: string;
  verb: string;
  args?: unknown;
  reason?: string;
  decision: "allowed" | "refused";
  code?: string;
  outcome?: string;
  duration_s?: number;
}

const Line = v.looseObject({
  seq: v.pipe(v.number(), v.integer(), v.minValue(1)),
  boot: v.string(),
  ts: v.string(),
  clock: v.string(),
  id: v.optional(v.string()),
  src: v.string(),
  who: v.string(),
  verb: v.string(),
  args: v.optional(v.unknown()),
  reason: v.optional(v.string()),
  decision: v.string(),
  code: v.optional(v.string()),
  outcome: v.optional(v.string()),
  duration_s: v.optional(v.number()),
  prev: v.pipe(v.string(), v.regex(/^[0-9a-f]{64}$/)),
});
/** One line as it stands in the file. */
export type AuditLine = v.InferOutput<typeof Line>;

/** The newest line; publishing it makes a later cut visible. */
export interface AuditHead {
  seq: number;
  sha256: string;
}

/** How a log is kept. */
export interface AuditOptions {
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

/** The log of one node, open for writing. */
export class Audit {
  readonly #dir: string;
  readonly #options: AuditOptions;
  #file: LineFile | undefined;
  #head: AuditHead | undefined;
  /** Put aside, and not yet said in the log. */
  #torn: Torn | undefined;
  /** The note of the newest line and where the log ends instead: lines were lost, or changed; not yet said in the log. */
  #lost: { noted: AuditHead; found: number } | undefined;
  #turn: Promise<void> = Promise.resolve();
  #waiting = 0;

  private constructor(dir: string, options: AuditOptions) {
    this.#dir = dir;
    this.#options = options;
  }

  /** Opens the log in a directory, made if need be. On a disk that is full it opens too, and every append is a refusal until there is room. */
  static async open(dir: string, options: AuditOptions): Promise<Audit> {
    await mkdir(dir, { recursive: true, mode: 0o700 });
    const audit = new Audit(dir, options);
    await audit.#ready().catch(() => undefined); // append tries again, and says why not
    return audit;
  }

  /** Adds a line; when `durable` it is on the disk afterwards. Throws `Refusal` audit, and the log is as before. */
  async append(entry: AuditEntry, { durable }: { durable: boolean }): Promise<void> {
    if (this.#waiting >= MOST_WAITING)
      throw new Refusal("audit", `${MOST_WAITING} lines wait for the audit log; try again later`);
    this.#waiting++;
    const turn = this.#turn.then(() => this.#write(entry, durable));
    this.#turn = turn.catch(() => undefined);
    try {
      await turn;
    } catch (cause) {
      throw new Refusal("audit", `${this.#dir}: the audit log cannot be written: ${reasonOf(cause)}`);
    } finally {
      this.#waiting--;
    }
  }

  /** Undefined while nothing was ever written. */
  head(): AuditHead | undefined {
    return this.#head;
  }

  /** The newest `n` lines, oldest first. */
  tail(n: number): Promise<AuditLine[]> {
    return tailAudit(this.#dir, n);
  }

  async close(): Promise<void> {
    await this.#turn;
    await this.#file?.sync().catch(() => undefined);
    if (this.#file && this.#head) await this.#note(this.#head);
    await this.#file?.close();
    this.#file = undefined;
  }

  async #write(entry: AuditEntry, durable: boolean): Promise<void> {
    await this.#add(await this.#ready(), entry, durable);
  }

  async #add(file: LineFile, entry: AuditEntry, durable: boolean): Promise<void> {
    const line = this.#compose(entry);
    const isFull =
      file.size > 0 && file.size + Buffer.byteLength(line) + 1 > (this.#options.maxBytes ?? MAX_BYTES);
    await (isFull ? await this.#rotate(file) : file).append(line, durable);
    this.#head = { seq: (this.#head?.seq ?? 0) + 1, sha256: sha256(line) };
    if (durable) await this.#note(this.#head);
  }

  /** Only a second look at what is on the disk already: without room for the note the line still stands. */
  async #note(head: AuditHead): Promise<void> {
    await writeHead(this.#dir, head).catch(() => undefined);
  }

  #compose(entry: AuditEntry): string {
    return JSON.stringify({
      seq: (this.#head?.seq ?? 0) + 1,
      boot: this.#options.boot,
      ts: new Date().toISOString(),
      clock: this.#options.clock(),
      id: clip(entry.id),
      src: clip(entry.src),
      who: clip(entry.who),
      verb: clip(entry.verb),
      args: bounded(entry.args),
      reason: clip(entry.reason),
      decision: entry.decision,
      code: clip(entry.code),
      outcome: clip(entry.outcome),
      duration_s: entry.duration_s,
      prev: this.#head?.sha256 ?? GENESIS,
    });
  }

  async #ready(): Promise<LineFile> {
    const file = this.#file ?? (await this.#open());
    this.#file = file;
    const own = { src: "agent", who: "agent", decision: "allowed" } as const;
    if (this.#torn) {
      await this.#add(file, { ...own, verb: "audit.torn", args: this.#torn, outcome: "kept" }, true);
      this.#torn = undefined;
    }
    if (this.#lost) {
      await this.#add(this.#file, { ...own, verb: "audit.lost", args: this.#lost }, true);
      this.#lost = undefined;
    }
    return this.#file;
  }

  async #open(): Promise<LineFile> {
    const path = join(this.#dir, fileName(0));
    this.#torn = (await this.#putTornAside(path)) ?? this.#torn;
    this.#head = await lastOf(this.#dir);
    const noted = await readHead(this.#dir);
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
    while (whole > 0 && !parseAuditLine(lines[whole - 1])) whole--;
    const keep = lines.slice(0, whole).reduce((sum, line) => sum + line.length + 1, 0);
    const torn = Buffer.concat([...lines.slice(whole).flatMap((line) => [line, Buffer.from("\n")]), rest]);
    if (torn.length === 0) return undefined;
    const evidence = join(this.#dir, "audit.torn");
    const size = await stat(evidence).then(
      (found) => found.size,
      () => 0,
    );
    const isFull = size + torn.length > (this.#options.maxBytes ?? MAX_BYTES);
    await (isFull ? writeFile : appendFile)(evidence, torn, { mode: 0o600, flush: true });
    await truncate(path, keep);
    return { bytes: torn.length, sha256: sha256(torn), file: "audit.torn" };
  }

  /** Moves every file one number up; the one that has the highest goes. A cut between two renames loses nothing else. */
  async #rotate(full: LineFile): Promise<LineFile> {
    await full.sync();
    this.#file = undefined;
    await full.close();
    const present = new Set((await listFiles(this.#dir)).map(({ number }) => number));
    // A number that is free, after a cut, takes the one below it, and nothing has to go.
    let free = 1;
    while (present.has(free) && free < (this.#options.files ?? AUDIT_FILES) - 1) free++;
    for (let number = free; number > 0; number--)
      await rename(join(this.#dir, fileName(number - 1)), join(this.#dir, fileName(number)));
    await syncDirectory(this.#dir);
    this.#file = await LineFile.open(join(this.#dir, fileName(0)), this.#options.openFile);
    return this.#file;
  }
}

/** The newest `n` lines of a log on disk, oldest first; lines that are none are left out (`verifyAudit` names them). */
export async function tailAudit(dir: string, n: number): Promise<AuditLine[]> {
  const found: AuditLine[] = [];
  for (const { name } of (await listFiles(dir)).reverse()) {
    if (found.length >= n) break;
    const { lines } = await readLines(join(dir, name));
    found.unshift(...lines.map(parseAuditLine).filter((line) => line !== undefined));
  }
  return n > 0 ? found.slice(-n) : [];
}

/** The files of a log, oldest first. */
export async function listFiles(dir: string): Promise<{ name: string; number: number }[]> {
  const names = await readdir(dir);
  return names
    .flatMap((name) => {
      const match = /^audit(?:\.([1-9]\d{0,3}))?\.jsonl$/.exec(name);
      return match ? [{ name, number: Number(match[1] ?? 0) }] : [];
    })
    .sort((a, b) => b.number - a.number);
}

/** Reads one line; undefined when it is none. */
export function parseAuditLine(bytes: Buffer | undefined): AuditLine | undefined {
  if (!bytes || bytes.length === 0) return undefined;
  try {
    const parsed = v.safeParse(Line, JSON.parse(bytes.toString("utf8")));
    return parsed.success ? parsed.output : undefined;
  } catch {
    return undefined;
  }
}

/** The hash a following line carries as `prev`, hex. */
export function sha256(bytes: Uint8Array | string): string {
  return createHash("sha256").update(bytes).digest("hex");
}

async function lastOf(dir: string): Promise<AuditHead | undefined> {
  for (const { name } of (await listFiles(dir)).reverse()) {
    const { lines } = await readLines(join(dir, name));
    for (const bytes of lines.reverse()) {
      const line = parseAuditLine(bytes);
      if (line) return { seq: line.seq, sha256: sha256(bytes) };
    }
  }
  return undefined;
}

const fileName = (number: number) => (number === 0 ? "audit.jsonl" : `audit.${number}.jsonl`);

/** Senders choose these words, so that they must not choose the length of a line. */
function clip(text: string | undefined): string | undefined {
  return text === undefined || text.length <= TEXT_MAX ? text : `${text.slice(0, TEXT_MAX)}…`;
}

function bounded(args: unknown): unknown {
  const text = JSON.stringify(args) ?? "";
  return text.length <= ARGS_MAX_BYTES
    ? args
    : { cut: true, bytes: Buffer.byteLength(text), sha256: sha256(text) };
}
