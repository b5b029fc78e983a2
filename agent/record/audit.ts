/**
 * Who asked for what and what came of it: a chained log (`chained.ts`).
 *
 * Invariants
 * - What cannot be recorded is not done: a failed append is a refusal.
 *
 * Somebody who writes all of it anew is shown by the head that the node publishes and others remember
 * (`fruit audit verify --head`).
 */
import * as v from "valibot";
import { Refusal } from "../commands.ts";
import {
  CHAIN_FILES,
  CHAINED,
  type ChainHead,
  type ChainKind,
  ChainLog,
  type ChainOptions,
  sha256,
  tailChain,
} from "./chained.ts";
import { reasonOf } from "./lines.ts";

/** Files kept, the current one included. */
export const AUDIT_FILES = CHAIN_FILES;

const ARGS_MAX_BYTES = 2048;
const TEXT_MAX = 500;

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
  ...CHAINED,
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
});
/** One line as it stands in the file. */
export type AuditLine = v.InferOutput<typeof Line>;
/** The newest line; publishing it makes a later cut visible. */
export type AuditHead = ChainHead;
/** How a log is kept. */
export type AuditOptions = ChainOptions;

/** The audit log among the chained ones. */
export const AUDIT: ChainKind<AuditLine> = {
  name: "audit",
  schema: Line,
  note: (what, facts) => ({
    src: "agent",
    who: "agent",
    verb: `audit.${what}`,
    args: facts,
    decision: "allowed",
    ...(what === "torn" ? { outcome: "kept" } : {}),
  }),
};

/** The log of one node, open for writing. */
export class Audit {
  readonly #dir: string;
  readonly #log: ChainLog<AuditLine>;

  private constructor(dir: string, log: ChainLog<AuditLine>) {
    this.#dir = dir;
    this.#log = log;
  }

  /** Opens the log in a directory, made if need be. On a disk that is full it opens too, and every append is a refusal until there is room. */
  static async open(dir: string, options: AuditOptions): Promise<Audit> {
    return new Audit(dir, await ChainLog.open(dir, AUDIT, options));
  }

  /** Adds a line; when `durable` it is on the disk afterwards. Throws `Refusal` audit, and the log is as before. */
  async append(entry: AuditEntry, how: { durable: boolean }): Promise<void> {
    try {
      await this.#log.append(fieldsOf(entry), how);
    } catch (cause) {
      throw new Refusal("audit", `${this.#dir}: the audit log cannot be written: ${reasonOf(cause)}`);
    }
  }

  /** Undefined while nothing was ever written. */
  head(): AuditHead | undefined {
    return this.#log.head();
  }

  /** The newest `n` lines, oldest first. */
  tail(n: number): Promise<AuditLine[]> {
    return this.#log.tail(n);
  }

  close(): Promise<void> {
    return this.#log.close();
  }
}

/** The newest `n` lines of an audit log on disk, oldest first. */
export function tailAudit(dir: string, n: number): Promise<AuditLine[]> {
  return tailChain(dir, AUDIT, n);
}

function fieldsOf(entry: AuditEntry): object {
  return {
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
  };
}

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
