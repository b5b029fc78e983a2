/**
 * What a node can be asked to do: one table, whichever of the three doors (socket, MQTT command, MQTT set)
 * the asking came by. A door proves who asks; `Dispatcher.execute` decides whether they may, records it, and runs it.
 *
 * Order for every command: verb known → arguments valid → role → outlets → already seen → room → audit → journal → run.
 * Reading skips outlets, already seen, audit and journal.
 */
import * as v from "valibot";
import type { OutletId } from "../hal/ports.ts";

/** What a signer may be allowed; `admin` includes the others. */
export const ROLES = ["read", "power", "console", "update", "config", "admin"] as const;
export type Role = (typeof ROLES)[number];

/** 0 reads, 1 is harmless, 2 disrupts, 3 is dangerous (needs a reason). From 2 on a signature or the local socket is needed. */
export type Tier = 0 | 1 | 2 | 3;

/** Who asks, as the door established it. */
export interface Caller {
  door: "socket" | "mqtt" | "set";
  /** `local:alice`, `rest:lab`, `key:alice@desk`, `anonymous` or `set`. */
  who: string;
  /** Fingerprint of the key that signed the command, `SHA256:…`; absent where nothing was signed. */
  key?: string;
  roles: ReadonlySet<Role>;
  mayOutlet(outlet: OutletId): boolean;
}

/**
 * Whether somebody answers for a request: a key, or a person at the node. `anonymous` and `set` are anybody, and what
 * anybody may do must not use up what the others need.
 */
export function isProven(who: string): boolean {
  return ["key:", "local:", "rest:"].some((way) => who.startsWith(way));
}

/** Whose share of limits a request uses: that of a key, of the local socket, or the one that all of `anonymous` or `set` have together. */
export function accountOf({ door, who }: Pick<Caller, "door" | "who">): string {
  return door === "mqtt" ? who : door;
}

/** A command on its way, before its arguments were looked at. */
export interface Request {
  id: string;
  verb: string;
  args: unknown;
  reason?: string;
  /** Unix seconds; the id is remembered until ten minutes after it. */
  exp: number;
  /** SHA-256 of the bytes it came in, hex: the same id with other bytes is a replay. */
  digest: string;
  caller: Caller;
}

/** A command that is allowed and running. */
export interface Call<Args> {
  id: string;
  args: Args;
  reason?: string;
  caller: Caller;
  /** Tells whoever waits how far it is; `ratio` 0 to 1. */
  progress(message: string, ratio?: number): void;
  /** Aborts when the agent stops. */
  signal: AbortSignal;
}

/** How a command ended. */
export interface Outcome {
  state: "done" | "unchanged" | "failed" | "unconfirmed" | "refused";
  code?: Code;
  message?: string;
  result?: unknown;
}

/** One row of the table. */
export interface Command<Schema extends v.GenericSchema = v.GenericSchema> {
  verb: string;
  summary: string;
  tier: Tier | ((args: v.InferOutput<Schema>) => Tier);
  role: Role;
  args: Schema;
  /** May be sent to `all` nodes at once. */
  broadcast?: boolean;
  /** The outlets it would touch, for the signer's limits; resolved from names. */
  outlets?(args: v.InferOutput<Schema>): readonly OutletId[];
  run(call: Call<v.InferOutput<Schema>>): Promise<Outcome>;
}

/** Fixes a row's argument type so that `run` sees it. */
export function command<Schema extends v.GenericSchema>(row: Command<Schema>): Command {
  return row as unknown as Command;
}

/** Why something was not done. Closed: programs branch on it, `fruit mqtt schema` lists it. `rule.P<n>` is added by the power rules. */
export const CODES = [
  "audit",
  "bad-args",
  "bad-envelope",
  "bad-json",
  "bad-utf8",
  "bus",
  "busy",
  "clock",
  "disk",
  "duplicate",
  "expired",
  "failed",
  "locked",
  "no-slots",
  "on-trial",
  "quarantined",
  "rate-limited",
  "reboot-loop",
  "replay",
  "restarted",
  "retained",
  "rolled-back",
  "slot",
  "stopping",
  "too-large",
  "unauthorised",
  "unknown-console",
  "unknown-gpio",
  "unknown-outlet",
  "unknown-verb",
  "wrong-node",
  "wrong-site",
  "wrong-topic",
] as const;
export type Code = (typeof CODES)[number] | `rule.P${number}`;

/** A refusal: nothing was changed, the code says why and the message the way out. */
export class Refusal extends Error {
  readonly code: Code;
  constructor(code: Code, message: string) {
    super(message);
    this.name = "Refusal";
    this.code = code;
  }

  /** How a request ends that is refused so. */
  get state(): "refused" | "expired" {
    return this.code === "expired" ? "expired" : "refused";
  }
}

/** Foreign text in a message, a line or an answer: bounded. */
export function clip(text: string, most = 64): string {
  return text.length > most ? `${text.slice(0, most)}…` : text;
}

/** States in the order they can come; all but the first two are final. */
export const COMMAND_STATES = [
  "accepted",
  "running",
  "done",
  "unchanged",
  "failed",
  "refused",
  "expired",
  "unconfirmed",
] as const;

/** What is answered: at once `accepted`, perhaps some `running`, then one final state. */
export const CommandResult = v.object({
  id: v.string(),
  verb: v.string(),
  state: v.picklist(COMMAND_STATES),
  code: v.optional(v.pipe(v.string(), v.regex(/^(rule\.P\d+|[a-z0-9-]+)$/))),
  message: v.optional(v.string()),
  progress: v.optional(v.pipe(v.number(), v.minValue(0), v.maxValue(1))),
  result: v.optional(v.unknown()),
  ts: v.optional(
    v.pipe(v.number(), v.description("Unix seconds; absent while the clock is not synchronised")),
  ),
  by: v.optional(v.string()),
  duration_s: v.optional(v.number()),
});
export type CommandResult = v.InferOutput<typeof CommandResult>;
