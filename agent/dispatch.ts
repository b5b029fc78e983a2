/**
 * Decides whether a command may run, records it, runs it, and answers.
 *
 * Invariants
 * - Nothing but reading runs that was not written down first (`CommandRecord`).
 * - An id is accepted once, also across restarts; a command that a restart interrupted is reported, never redone.
 * - Every request ends in exactly one final result.
 * - What anybody may send, by command or by set, takes a quarter of the room each at most.
 */
import * as v from "valibot";
import { HalError } from "../hal/ports.ts";
import {
  accountOf,
  type Call,
  type Command,
  type CommandResult,
  clip,
  isProven,
  type Outcome,
  Refusal,
  type Request,
  type Tier,
} from "./commands.ts";
import { problemsOf } from "./issues.ts";
import type { Log } from "./log.ts";
import type { Audit } from "./record/audit.ts";
import type { Journal } from "./record/journal.ts";
import { CommandRecord, type Refused } from "./record/record.ts";
import { asTyped } from "./words.ts";

/** Commands that may be under way at once; each holds memory and someone's patience. */
const MOST_RUNNING = 64;
/** Of them, those of `anonymous`, and those of `set`. */
const MOST_ANYBODYS = 16;
const MESSAGE_MAX = 500;

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
  clock: () => { synced: boolean };
  log: Log;
  signal: AbortSignal;
  /** Seconds by a clock that does not jump, for what is limited. */
  nowSeconds?: () => number;
}

/** A command with an id of its own: the digest of the bytes it came in, and what was last said of it. */
export interface Known {
  digest: string;
  result?: CommandResult;
}

/** The one table, whichever door asks. */
export class Dispatcher {
  readonly #rows: Map<string, Command>;
  readonly #options: DispatchOptions;
  readonly #record: CommandRecord;
  /** By id. */
  readonly #running = new Map<string, Known>();
  /** How many are under way, by account. */
  readonly #underWay = new Map<string, number>();
  readonly #ends = new Set<Promise<CommandResult>>();

  constructor(options: DispatchOptions) {
    this.#options = options;
    this.#record = new CommandRecord(options);
    this.#rows = new Map(options.table.map((row) => [row.verb, row]));
  }

  /** Verbs in alphabetical order, for `info`. */
  get verbs(): string[] {
    return [...this.#rows.keys()].sort();
  }

  find(verb: string): Command | undefined {
    return this.#rows.get(verb);
  }

  /** The command that has this id, under way or over; what is said of an id is said of this one. */
  known(id: string): Known | undefined {
    const running = this.#running.get(id);
    if (running) return running;
    const { journal } = this.#options;
    const digest = journal.seen(id)?.digest;
    const result = journal.result(id);
    return digest === undefined ? undefined : { digest, ...(result ? { result } : {}) };
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
    const own: Known = { digest: request.digest };
    const say = (state: CommandResult["state"], more: Partial<CommandResult> = {}): CommandResult => {
      const result: CommandResult = {
        id: request.id,
        verb: clip(request.verb),
        state,
        ...more,
        by: request.caller.who,
        ...(this.#options.clock().synced ? { ts: Math.floor(Date.now() / 1000) } : {}),
      };
      own.result = result;
      answer(result);
      return result;
    };
    let leave = () => {};
    try {
      const { row, args, tier } = this.#admit(request);
      // Taken before the first wait: the same id arriving meanwhile is a duplicate already.
      leave = this.#enter(request, own);
      const isKept = tier > 0;
      const end = isKept ? await this.#record.begin(request, tier) : undefined;
      const late = isKept ? undefined : setTimeout(() => say("accepted"), READ_MS);
      if (isKept) say("accepted");
      const outcome = await this.#run(row, request, args, (message, ratio) =>
        say("running", { message, ...(ratio === undefined ? {} : { progress: ratio }) }),
      ).finally(() => clearTimeout(late));
      const duration_s = (Date.now() - startedAt) / 1000;
      const result = say(outcome.state, { ...outcome, duration_s });
      await end?.(result);
      return result;
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      await this.refused(request, error);
      return say(error.state, { code: error.code, message: clip(error.message, MESSAGE_MAX) });
    } finally {
      leave();
    }
  }

  /** Writes a refusal down, whoever refused: the table here, or a door before it. */
  refused(request: Refused, refusal: Refusal): Promise<void> {
    return this.#record.refused(request, refusal, this.#rows.get(request.verb)?.tier === 0);
  }

  /** Makes a request one of those under way; returns how it ceases to be. Reads may come with an id that is taken already. */
  #enter({ id, caller }: Request, own: Known): () => void {
    const account = accountOf(caller);
    const count = (change: number) =>
      this.#underWay.set(account, (this.#underWay.get(account) ?? 0) + change);
    if (!this.known(id)) this.#running.set(id, own);
    count(1);
    return () => {
      if (this.#running.get(id) === own) this.#running.delete(id);
      count(-1);
    };
  }

  #admit(request: Request): { row: Command; args: unknown; tier: Tier } {
    const row = this.#rows.get(request.verb);
    if (!row)
      throw new Refusal(
        "unknown-verb",
        `no verb "${clip(request.verb)}"; there are ${this.verbs.join(", ")}`,
      );
    const parsed = v.safeParse(row.args, request.args ?? {});
    if (!parsed.success) throw new Refusal("bad-args", problemsOf(parsed.issues, "args").join("; "));
    const args = parsed.output;
    const tier = typeof row.tier === "function" ? row.tier(args) : row.tier;
    authorise(row, request, args, tier);
    if (tier >= 3 && !request.reason)
      throw new Refusal("bad-args", `${asTyped(row.verb, args)} needs a reason; add --reason TEXT`);
    if (tier > 0) this.#refuseSeen(request);
    this.#refuseCrowd(request);
    return { row, args, tier };
  }

  #refuseCrowd({ caller }: Request): void {
    const mine = this.#underWay.get(accountOf(caller)) ?? 0;
    if (!isProven(caller.who) && mine >= MOST_ANYBODYS)
      throw new Refusal("busy", `${MOST_ANYBODYS} commands of ${caller.who} are under way; try again later`);
    // Not the ids: a read may come a thousand times with the same one.
    const all = [...this.#underWay.values()].reduce((sum, one) => sum + one, 0);
    if (all >= MOST_RUNNING)
      throw new Refusal("busy", `${MOST_RUNNING} commands are under way; try again later`);
  }

  #refuseSeen(request: Request): void {
    const seen = this.known(request.id);
    if (!seen) return;
    if (seen.digest !== request.digest)
      throw new Refusal("replay", `id ${request.id} was already used by another command`);
    const state = seen.result?.state ?? "accepted";
    throw new Refusal(
      "duplicate",
      `id ${request.id} was already accepted and is ${state}; nothing is done twice`,
    );
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
}

/** Whether this caller may do this to these outlets. One message for every lack, so that keys cannot be probed. */
function authorise(row: Command, request: Request, args: unknown, tier: Tier): void {
  const { caller } = request;
  if (!caller.roles.has(row.role) && !caller.roles.has("admin"))
    throw new Refusal(
      "unauthorised",
      `${caller.who} may not ${asTyped(row.verb)}: the role "${row.role}" is needed`,
    );
  // Anybody may look at any outlet: a key's outlets are what it may change.
  if (tier === 0) return;
  for (const outlet of row.outlets?.(args) ?? [])
    if (!caller.mayOutlet(outlet))
      throw new Refusal("unauthorised", `${caller.who} may not ${asTyped(row.verb)} outlet ${outlet}`);
}
