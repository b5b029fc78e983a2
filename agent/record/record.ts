/**
 * What is written down of commands: in the audit log for people, in the journal for this node after a restart.
 *
 * Invariants
 * - What cannot be recorded is not done.
 * - What somebody answers for is in the audit log before it runs, and again when it has ended.
 * - Nobody fills the log with refusals, and nobody hides others' by filling theirs: each key, each door, and all that is
 *   anonymous together have lines of their own. Beyond them lines are counted, and the count is written with the next.
 * - What anybody may do (identify, `set`) is written as long as these lines last, and always when it changed power. The
 *   journal has it before it runs in any case.
 */

import {
  accountOf,
  type Caller,
  type CommandResult,
  clip,
  isProven,
  type Refusal,
  type Request,
  type Tier,
} from "../commands.ts";
import type { Log } from "../log.ts";
import { SignatureRefusal } from "../sign/envelope.ts";
import { FailureLimit } from "../sign/limit.ts";
import type { Audit } from "./audit.ts";
import type { Journal } from "./journal.ts";

/** Lines at once, and seconds until one more. */
const SOMEBODYS = { burst: 60, secondsEach: 10 };
/** At this pace the log holds about ten days of nothing but noise. */
const ANYBODYS = { burst: 60, secondsEach: 600 };
const TEXT_MAX = 500;

/** A request as a refusal needs it; a door may not have understood the rest. */
export type Refused = Pick<Request, "id" | "verb" | "args" | "reason"> & {
  caller: Pick<Caller, "who" | "door">;
};

/** Where it is written. */
export interface RecordOptions {
  journal: Journal;
  audit: Audit;
  log: Log;
  /** Seconds by a clock that does not jump. */
  nowSeconds?: () => number;
}

/** Writes for the one table. */
export class CommandRecord {
  readonly #options: RecordOptions;
  readonly #somebodys: FailureLimit;
  readonly #anybodys: FailureLimit;
  /** What ran, apart from what was refused: a refusal must not make something run unwritten. */
  readonly #anybodysRuns: FailureLimit;
  /** By account, since its last line. */
  readonly #unwritten = new Map<string, number>();

  constructor(options: RecordOptions) {
    this.#options = options;
    const clock = options.nowSeconds === undefined ? {} : { nowSeconds: options.nowSeconds };
    this.#somebodys = new FailureLimit({ ...SOMEBODYS, ...clock });
    this.#anybodys = new FailureLimit({ ...ANYBODYS, ...clock });
    this.#anybodysRuns = new FailureLimit({ ...ANYBODYS, ...clock });
  }

  /** Writes that a command begins, and resolves with what writes its end. Throws `Refusal`: it must not run. */
  async begin(request: Request, tier: Tier): Promise<(result: CommandResult) => Promise<void>> {
    const { id, verb, exp, digest, caller } = request;
    const durable = tier >= 2;
    const isWritten = await this.#began(request, durable);
    const own = caller.door === "mqtt" ? {} : { own: true };
    await this.#options.journal.accept({ id, verb, who: caller.who, exp, digest, durable, ...own });
    return (result) => this.#end(request, durable, isWritten, result);
  }

  /** Writes a refusal, whoever refused: the table, or a door before it. */
  async refused(request: Refused, refusal: Refusal, isRead: boolean): Promise<void> {
    const { log, audit } = this.#options;
    const account = accountOf(request.caller);
    if (!this.#limit(request).take(account)) return this.#skip(account);
    log("info", "command.refused", {
      id: request.id,
      verb: clip(request.verb),
      who: request.caller.who,
      code: refusal.code,
      message: clip(refusal instanceof SignatureRefusal ? refusal.why : refusal.message, TEXT_MAX),
    });
    try {
      await this.#saySkipped(account);
      if (!isRead)
        await audit.append({ ...line(request), decision: "refused", code: refusal.code }, { durable: false });
    } catch (error) {
      log("error", "audit.failed", { error: String(error) });
    }
  }

  /** False when the line was left out. A token is taken for a line that stands, so that a full disk is not taken for noise. */
  async #began(request: Request, durable: boolean): Promise<boolean> {
    const account = accountOf(request.caller);
    const isAnybodys = !isProven(request.caller.who);
    if (isAnybodys && !this.#anybodysRuns.isOpen(account)) return false;
    if (isAnybodys) await this.#saySkipped(account);
    await this.#options.audit.append({ ...line(request), decision: "allowed" }, { durable });
    if (isAnybodys) this.#anybodysRuns.take(account);
    return true;
  }

  /** The end of a command is worth less than its beginning: when it cannot be written, it is logged and the answer stands. */
  async #end(request: Request, durable: boolean, isWritten: boolean, result: CommandResult): Promise<void> {
    const { journal, audit, log } = this.#options;
    const { state, code, duration_s } = result;
    const isAsBefore = state === "unchanged" || state === "refused";
    try {
      await journal.finish(request.id, result);
      if (!isWritten && (!durable || isAsBefore)) return this.#skip(accountOf(request.caller));
      await audit.append(
        {
          ...line(request),
          decision: state === "refused" ? "refused" : "allowed",
          outcome: state,
          ...(code === undefined ? {} : { code }),
          ...(duration_s === undefined ? {} : { duration_s }),
        },
        { durable },
      );
    } catch (error) {
      log("error", "journal.failed", { id: request.id, error: String(error) });
    }
  }

  #limit({ caller }: Refused): FailureLimit {
    return isProven(caller.who) ? this.#somebodys : this.#anybodys;
  }

  #skip(account: string, count = 1): void {
    this.#unwritten.set(account, (this.#unwritten.get(account) ?? 0) + count);
  }

  async #saySkipped(account: string): Promise<void> {
    const count = this.#unwritten.get(account);
    if (count === undefined) return;
    this.#unwritten.delete(account);
    const outcome = `${count} requests not written`;
    try {
      await this.#options.audit.append(
        { src: "agent", who: account, verb: "audit.skipped", decision: "allowed", outcome },
        { durable: false },
      );
    } catch (error) {
      this.#skip(account, count);
      throw error;
    }
    this.#options.log("warn", "audit.skipped", { who: account, count });
  }
}

function line(request: Refused) {
  return {
    id: request.id,
    src: request.caller.door,
    who: request.caller.who,
    verb: request.verb,
    args: request.args,
    ...(request.reason === undefined ? {} : { reason: request.reason }),
  };
}
