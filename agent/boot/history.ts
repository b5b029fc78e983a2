/** What this node booted, tried, kept and gave up, with cause and evidence: a chained log (`record/chained.ts`) in `DATA/boot/history.jsonl`. */
import * as v from "valibot";
import { failpoint } from "../../boot/failpoint.ts";
import { SLOTS } from "../../boot/layout.ts";
import { verifyChain } from "../record/chain.ts";
import { CHAINED, type ChainKind, ChainLog, type ChainOptions, tailChain } from "../record/chained.ts";

/** What can have happened to announcements and releases before one was in a slot. */
const OF_UPDATES = ["announced", "waits", "refused", "fetched"] as const;

/** What can have happened. */
export const HAPPENINGS = [
  "installed",
  "armed",
  "started",
  "confirmed",
  "failed",
  "rolled-back",
  "quarantined",
  "released",
  "fallen-back",
  "dropped",
  "withdrawn",
  ...OF_UPDATES,
  "log.torn",
  "log.lost",
] as const;

const Line = v.looseObject({
  ...CHAINED,
  /** A newer agent's words too: an older one must not take its lines for torn ones. */
  what: v.string(),
  slot: v.optional(v.picklist(SLOTS)),
  version: v.optional(v.string()),
  /** First 16 bytes of the content hash, hex. */
  hash: v.optional(v.string()),
  trial: v.optional(v.number()),
  /** Which start of a trial, from 1. */
  attempt: v.optional(v.number()),
  /** Why, as in the record, or in a person's words. */
  cause: v.optional(v.string()),
  /** Who, where it was a person. */
  by: v.optional(v.string()),
  evidence: v.optional(v.array(v.string())),
});
/** One line as it stands in the file. */
export type HistoryLine = v.InferOutput<typeof Line>;
/** What the caller knows of a line. */
export type Happening = { what: (typeof HAPPENINGS)[number] } & Pick<
  HistoryLine,
  "slot" | "version" | "hash" | "trial" | "attempt" | "cause" | "by" | "evidence"
>;

/** The history among the chained logs. */
export const HISTORY: ChainKind<HistoryLine> = {
  name: "history",
  schema: Line,
  note: (what, facts) => ({ what: `log.${what}`, evidence: [JSON.stringify(facts)] }),
};

const TEXT_MAX = 500;
const EVIDENCE_MOST = 32;
/** So far back it is looked whether something was written down already. */
export const LOOK_BACK = 200;

/** The history, open for writing. */
export class History {
  readonly #log: ChainLog<HistoryLine>;
  #isClosed = false;

  private constructor(log: ChainLog<HistoryLine>) {
    this.#log = log;
  }

  static async open(dir: string, options: ChainOptions): Promise<History> {
    return new History(await ChainLog.open(dir, HISTORY, options));
  }

  /** Adds a line, on the disk when this resolves. Throws what the system says, and the history is as before. */
  async add({ cause, by, evidence, ...happening }: Happening): Promise<void> {
    const fields = {
      ...happening,
      cause: clip(cause),
      by: clip(by),
      evidence: evidence?.slice(0, EVIDENCE_MOST).map((line) => clip(line)),
    };
    // The log would open its file anew, and nobody close it
    if (this.#isClosed) throw new Error("the history is closed: the agent stops");
    await this.#log.append(fields, { durable: true });
    failpoint("history.appended");
  }

  /** The same unless a line says it already, by all the facts that are given but cause, evidence and who: what a power cut interrupted is told once. */
  async addOnce(happening: Happening): Promise<boolean> {
    const { cause: _, evidence: __, by: ___, ...key } = happening;
    const isSame = (line: HistoryLine) =>
      Object.entries(key).every(([name, value]) => line[name as keyof HistoryLine] === value);
    if ((await this.tail(LOOK_BACK)).some(isSame)) return false;
    await this.add(happening);
    return true;
  }

  /** What happened to a slot last: what was only heard of counts for nothing. */
  async last(): Promise<HistoryLine | undefined> {
    const lines = await this.tail(LOOK_BACK);
    return lines.findLast(({ what }) => !OF_UPDATES.some((one) => one === what));
  }

  /** The newest `n` lines, oldest first. */
  tail(n: number): Promise<HistoryLine[]> {
    return this.#log.tail(n);
  }

  close(): Promise<void> {
    this.#isClosed = true;
    return this.#log.close();
  }
}

/** The newest `n` lines on disk, oldest first, and what is wrong with the chain; nothing where there is no history. */
export async function readHistory(
  dir: string,
  n: number,
): Promise<{ lines: HistoryLine[]; problems: string[] }> {
  try {
    const { problems } = await verifyChain(dir, HISTORY);
    return {
      lines: await tailChain(dir, HISTORY, n),
      problems: problems.map(({ file, line, why }) => `${file} line ${line}: ${why}`),
    };
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return { lines: [], problems: [] };
    throw error;
  }
}

function clip(text: string | undefined): string | undefined {
  return text === undefined || text.length <= TEXT_MAX ? text : `${text.slice(0, TEXT_MAX)}…`;
}
