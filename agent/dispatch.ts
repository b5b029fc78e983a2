/**
 * Decides whether a command may run, records it, runs it, and answers.
 *
 * Invariants
 * - Nothing runs that was not written to the journal first; nothing disruptive that is not in the audit log.
 * - An id is accepted once, also across restarts; a command that a restart interrupted is reported, never redone.
 * - Every request ends in exactly one final result.
 */
import * as v from "valibot";
import { HalError } from "../hal/ports.ts";
import type { Audit } from "./audit.ts";
import {
  type Call,
  type Command,
  type CommandResult,
  type Outcome,
  Refusal,
  type Request,
  type Tier,
} from "./commands.ts";
import type { Journal } from "./journal.ts";
import type { Log } from "./log.ts";
import { SignatureRefusal } from "./sign/envelope.ts";
import type { FailureLimit } from "./sign/limit.ts";

/** Commands that may be under way at once; each holds memory and someone's patience. */
const MOST_RUNNING = 64;

/**
 * Reading is mostly over by then and answered by its result alone, so that whoever waits for one message
 * (`mosquitto_rr`) gets that one.
 */
const READ_MS = 500;

/** What the dispatcher needs from the agent. */
export interface DispatchOptions {
  table: readonly Command[];
  journal: Journal;
  audit: Audit;
  /** Refusals beyond it are counted, not written: a flood must not turn the audit log over. */
  refusalLimit: FailureLimit;
  clock: () => { synced: boolean };
  log: Log;
  signal: AbortSignal;
}

/** The one table, whichever door asks. */
export class Dispatcher {
  readonly #rows: Map<string, Command>;
  readonly #options: DispatchOptions;
  readonly #running = new Set<string>();
  readonly #ends = new Set<Promise<CommandResult>>();

  constructor(options: DispatchOptions) {
    this.#options = options;
    this.#rows = new Map(options.table.map((row) => [row.verb, row]));
  }

  /** Verbs in alphabetical order, for `info`. */
  get verbs(): string[] {
    return [...this.#rows.keys()].sort();
  }

  find(verb: string): Command | undefined {
    return this.#rows.get(verb);
  }

  /** Resolves when nothing is under way. */
  async idle(): Promise<void> {
    await Promise.allSettled([...this.#ends]);
  }

  /** Runs a request to its end. `answer` gets every result in order; the last one is also returned. Never throws. */
  async execute(request: Request, answer: (result: CommandResult) => void): Promise<CommandResult> {
    const end = this.#execute(request, answer);
    this.#ends.add(end);
    try {
      return await end;
    } finally {
      this.#ends.delete(end);
    }
  }

  async #execute(request: Request, answer: (result: CommandResult) => void): Promise<CommandResult> {
    const startedAt = Date.now();
    const say = (state: CommandResult["state"], more: Partial<CommandResult> = {}): CommandResult => {
      const result: CommandResult = {
        id: request.id,
        verb: request.verb,
        state,
        ...more,
        by: request.caller.who,
        ...(this.#options.clock().synced ? { ts: Math.floor(Date.now() / 1000) } : {}),
      };
      answer(result);
      return result;
    };
    let isOurs = false;
    try {
      const { row, args, tier } = this.#admit(request);
      // Taken before the first wait: the same id arriving meanwhile is a duplicate already.
      this.#running.add(request.id);
      isOurs = true;
      const isKept = tier > 0;
      if (isKept) await this.#record(request, tier);
      const late = isKept ? undefined : setTimeout(() => say("accepted"), READ_MS);
      if (isKept) say("accepted");
      const outcome = await this.#run(row, request, args, (message, ratio) =>
        say("running", { message, ...(ratio === undefined ? {} : { progress: ratio }) }),
      ).finally(() => clearTimeout(late));
      const duration_s = (Date.now() - startedAt) / 1000;
      const result = say(outcome.state, { ...outcome, duration_s });
      if (isKept) await this.#close(request, tier, result);
      return result;
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      await this.refused(request, error);
      return say("refused", { code: error.code, message: error.message });
    } finally {
      if (isOurs) this.#running.delete(request.id);
    }
  }

  /** Writes a refusal down, whoever refused: the table here, or a door before it. */
  async refused(
    request: Pick<Request, "id" | "verb" | "args" | "reason"> & {
      caller: Pick<Request["caller"], "who" | "door">;
    },
    refusal: Refusal,
  ): Promise<void> {
    const { log, audit, refusalLimit } = this.#options;
    log("info", "command.refused", {
      id: request.id,
      verb: request.verb,
      who: request.caller.who,
      code: refusal.code,
      message: refusal instanceof SignatureRefusal ? refusal.why : refusal.message,
    });
    const row = this.#rows.get(request.verb);
    const isRead = row !== undefined && typeof row.tier === "number" && row.tier === 0;
    if (isRead || !refusalLimit.take()) return;
    try {
      await audit.append({ ...line(request), decision: "refused", code: refusal.code }, { durable: false });
    } catch (error) {
      log("error", "audit.failed", { error: String(error) });
    }
  }

  #admit(request: Request): { row: Command; args: unknown; tier: Tier } {
    const row = this.#rows.get(request.verb);
    if (!row)
      throw new Refusal("unknown-verb", `no verb "${request.verb}"; there are ${this.verbs.join(", ")}`);
    const parsed = v.safeParse(row.args, request.args ?? {});
    if (!parsed.success)
      throw new Refusal(
        "bad-args",
        parsed.issues.map((issue) => `${v.getDotPath(issue) ?? "args"}: ${issue.message}`).join("; "),
      );
    const args = parsed.output;
    const tier = typeof row.tier === "function" ? row.tier(args) : row.tier;
    authorise(row, request, args, tier);
    if (tier >= 3 && !request.reason)
      throw new Refusal("bad-args", `${row.verb} in this form needs a reason (--reason TEXT)`);
    if (tier > 0) this.#refuseSeen(request);
    // Not the ids: a read may come a thousand times with the same one.
    if (this.#ends.size >= MOST_RUNNING)
      throw new Refusal("busy", `${MOST_RUNNING} commands are under way; try again later`);
    return { row, args, tier };
  }

  #refuseSeen(request: Request): void {
    const seen = this.#options.journal.seen(request.id);
    if (!seen && !this.#running.has(request.id)) return;
    if (seen && seen.digest !== request.digest)
      throw new Refusal("replay", `id ${request.id} was already used by another command`);
    throw new Refusal(
      "duplicate",
      `id ${request.id} was already accepted${seen ? ` and is ${seen.state}` : ""}; nothing is done twice`,
    );
  }

  async #record(request: Request, tier: Tier): Promise<void> {
    const { journal, audit } = this.#options;
    const durable = tier >= 2;
    await audit.append({ ...line(request), decision: "allowed" }, { durable });
    await journal.accept({
      id: request.id,
      verb: request.verb,
      who: request.caller.who,
      exp: request.exp,
      digest: request.digest,
      durable,
    });
  }

  async #run(
    row: Command,
    request: Request,
    args: unknown,
    progress: Call<unknown>["progress"],
  ): Promise<Outcome> {
    const { signal, log } = this.#options;
    const call: Call<never> = {
      id: request.id,
      args: args as never,
      ...(request.reason === undefined ? {} : { reason: request.reason }),
      caller: request.caller,
      progress,
      signal,
    };
    try {
      return await row.run(call);
    } catch (error) {
      if (error instanceof Refusal) return { state: "refused", code: error.code, message: error.message };
      if (error instanceof HalError) return { state: "failed", code: "bus", message: error.message };
      log("error", "command.crashed", {
        id: request.id,
        verb: request.verb,
        error: error instanceof Error ? error.stack : String(error),
      });
      return {
        state: "failed",
        code: "failed",
        message: error instanceof Error ? error.message : String(error),
      };
    }
  }

  /** The end of a command is worth less than its beginning: when it cannot be written, it is logged and the answer stands. */
  async #close(request: Request, tier: Tier, result: CommandResult): Promise<void> {
    const { journal, audit, log } = this.#options;
    const { state, code, duration_s } = result;
    try {
      await journal.finish(request.id, result);
      await audit.append(
        {
          ...line(request),
          decision: state === "refused" ? "refused" : "allowed",
          outcome: state,
          ...(code === undefined ? {} : { code }),
          ...(duration_s === undefined ? {} : { duration_s }),
        },
        { durable: tier >= 2 },
      );
    } catch (error) {
      log("error", "journal.failed", { id: request.id, error: String(error) });
    }
  }
}

/** Whether this caller may do this to these outlets. One message for every lack, so that keys cannot be probed. */
function authorise(row: Command, request: Request, args: unknown, tier: Tier): void {
  const { caller } = request;
  if (!caller.roles.has(row.role) && !caller.roles.has("admin"))
    throw new Refusal("unauthorised", `${caller.who} may not ${row.verb}: the role "${row.role}" is needed`);
  // Anybody may look at any outlet: a key's outlets are what it may change.
  if (tier === 0) return;
  for (const outlet of row.outlets?.(args) ?? [])
    if (!caller.mayOutlet(outlet))
      throw new Refusal("unauthorised", `${caller.who} may not ${row.verb} outlet ${outlet}`);
}

function line(
  request: Pick<Request, "id" | "verb" | "args" | "reason"> & {
    caller: Pick<Request["caller"], "who" | "door">;
  },
) {
  return {
    id: request.id,
    src: request.caller.door,
    who: request.caller.who,
    verb: request.verb,
    args: request.args,
    ...(request.reason === undefined ? {} : { reason: request.reason }),
  };
}
