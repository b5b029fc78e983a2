/**
 * When switching is refused, as a table: one row per reason, each with the rule, the value and the way out in its message.
 *
 * The other rules of the same list are not questions but ways of doing it: P1 (nothing at start and stop), P2 and P18 (read from the
 * board, no blind writes), P9 (spacing), P14 (confirm), P15 (one at a time), P16 (nothing on loss of the broker), P20 (only `policy`
 * writes board settings).
 */
import type { Ability, OutletId, Supply } from "../../hal/ports.ts";
import { type Code, Refusal } from "../commands.ts";
import type { Config } from "../config.ts";
import type { Lock } from "../messages.ts";
import { lasting } from "../terminal.ts";
import type { Host } from "./host.ts";
import { lockedBy } from "./locks.ts";
import { guarded, lowWords, tooLow } from "./volts.ts";

/** Off before on in seconds that no flag can go below: half-discharged rails leave a board half powered. */
export const OFF_TIME_FLOOR = 2;
/** Seconds a Pi must be given to shut down; less would be a cut in disguise. */
export const GRACE_FLOOR = 5;
const HOUR_MS = 3_600_000;

/** Verbs that change a supply or what runs on it. */
export const SWITCH_VERBS = ["on", "off", "cycle", "reset", "shutdown"] as const;
/** One of them. */
export type SwitchVerb = (typeof SWITCH_VERBS)[number];

/** What is asked for one outlet, after defaults. */
export interface Asked {
  verb: SwitchVerb | "policy";
  door: "socket" | "mqtt" | "set" | "policy";
  by: string;
  reason?: string | undefined;
  force: boolean;
  self: boolean;
  offTimeSeconds: number;
  graceSeconds: number;
  /** With the verb `policy`. */
  policy?: "on" | "off" | "last" | undefined;
  once?: boolean | undefined;
}

/** What the rules look at. */
export interface Facts {
  outlet: OutletId;
  supply: Supply;
  host: Host;
  abilities: ReadonlySet<Ability>;
  /** This outlet feeds the node that would do the switching. */
  isOwnSupply: boolean;
  /** Node-local configuration lets plain `set/outlet/<id>` switch it. */
  isUnsignedAllowed: boolean;
  /** Since the supply came on, where known. */
  onSeconds?: number | undefined;
  /** The latest switch commands. */
  changes: readonly number[];
  lock?: Lock | undefined;
  /** What the node it feeds said of itself. */
  target?: { node: string; updating?: string | undefined; isTrial: boolean } | undefined;
  /** What its board measures. */
  inputVolts?: number | undefined;
  railVolts?: number | undefined;
  /** Watts to reckon with for this outlet, and for all others that are on or being switched on. */
  watts: number;
  committedWatts: number;
  /** This moment, and what the clock says to it. */
  now: number;
  unixNow: number;
  limits: Pick<
    Config["power"],
    | "changes_per_hour"
    | "min_on_seconds"
    | "input_volts_min"
    | "rail_volts_min"
    | "supply_watts"
    | "off_time_seconds"
  >;
}

interface Rule {
  code: Code;
  verbs: readonly Asked["verb"][];
  /** The message, when it refuses. */
  check(facts: Facts, asked: Asked): string | undefined;
}

const CUTS = ["off", "cycle"] as const;
const STOPS = ["off", "cycle", "reset", "shutdown"] as const;

/** Switch commands of the last hour; a clock that was set since then makes old ones count neither for nor against. */
export function recent(changes: readonly number[], now: number): number[] {
  return changes.filter((at) => Math.abs(now - at) < HOUR_MS);
}

const RULES: readonly Rule[] = [
  {
    code: "unauthorised",
    verbs: [...SWITCH_VERBS, "policy"],
    check: ({ isUnsignedAllowed }, { door }) =>
      door === "set" && !isUnsignedAllowed
        ? "this node's configuration does not let it be switched unsigned; send a signed command, or list it in commands.unsigned_outlets"
        : undefined,
  },
  {
    code: "bad-args",
    verbs: SWITCH_VERBS,
    check: (_, { verb, force, reason }) =>
      (force || verb === "reset") && !reason
        ? `${force ? "--force" : verb} needs a reason; add --reason TEXT`
        : undefined,
  },
  {
    code: "rule.P11",
    verbs: [...STOPS, "policy"],
    check: ({ isOwnSupply }, asked) => (isOwnSupply ? ownSupply(asked) : undefined),
  },
  {
    code: "locked",
    verbs: [...SWITCH_VERBS, "policy"],
    check: ({ lock, unixNow }, { by, door }) =>
      lock && lock.owner !== by && door !== "policy" ? lockedBy(lock, unixNow) : undefined,
  },
  {
    code: "rule.P3",
    verbs: ["cycle", "reset"],
    check: ({ supply, outlet }, { verb }) =>
      supply === "off"
        ? `it is off, and ${verb} does not switch on what is off (P3); use 'fruit power on ${outlet}'`
        : undefined,
  },
  {
    code: "rule.P4",
    verbs: [...CUTS, "shutdown"],
    check: (_, { graceSeconds, force }) =>
      graceSeconds < GRACE_FLOOR && !force
        ? `${graceSeconds} s are too few to shut down in (P4: at least ${GRACE_FLOOR} s); give it more with --timeout, or cut with --force --reason TEXT`
        : undefined,
  },
  {
    code: "rule.P5",
    verbs: [...CUTS, "shutdown"],
    check: ({ abilities, host }, { verb, force }) => {
      if (abilities.has("signal") || host === "halted") return undefined;
      if (verb === "shutdown")
        return "its board has no line to ask the Pi with (P5); log in and shut it down, or 'fruit power off --force --reason TEXT'";
      return force
        ? undefined
        : "its board has no line to ask the Pi with, so this would cut it while it runs (P5); shut it down first, or add --force --reason TEXT";
    },
  },
  {
    code: "rule.P6",
    verbs: ["cycle", "reset"],
    check: (_, { offTimeSeconds }) =>
      offTimeSeconds < OFF_TIME_FLOOR
        ? `${offTimeSeconds} s off are too few for the rails to discharge (P6: at least ${OFF_TIME_FLOOR} s, even with --force); use --off-time ${OFF_TIME_FLOOR}s or more`
        : undefined,
  },
  {
    code: "rule.P7",
    verbs: CUTS,
    check: ({ onSeconds, limits }, { force }) =>
      onSeconds !== undefined && onSeconds < limits.min_on_seconds && !force
        ? `it has been on for ${Math.floor(onSeconds)} s only (P7: at least ${limits.min_on_seconds} s); wait ${Math.ceil(limits.min_on_seconds - onSeconds)} s, or --force --reason TEXT`
        : undefined,
  },
  {
    code: "rule.P8",
    verbs: ["on", "off", "cycle", "reset"],
    check: ({ changes, now, limits }, { verb, force, door }) => {
      // Cutting in an emergency must always be possible, and so must what a policy promised; both still count.
      if ((verb === "off" && force) || door === "policy") return undefined;
      const latest = recent(changes, now).sort((a, b) => a - b);
      const needed = verb === "cycle" || verb === "reset" ? 2 : 1;
      const tooMany = latest.length + needed - limits.changes_per_hour;
      if (tooMany <= 0) return undefined;
      if (needed > limits.changes_per_hour)
        return `${verb} switches twice (P8: at most ${limits.changes_per_hour} an hour); raise power.changes_per_hour`;
      const freeAt = latest[tooMany - 1] ?? now;
      return `switched ${latest.length} times in the last hour (P8: at most ${limits.changes_per_hour}, ${verb} needs ${needed}); wait ${lasting((freeAt + HOUR_MS - now) / 1000)}`;
    },
  },
  {
    code: "rule.P10",
    verbs: ["on", "cycle", "reset"],
    check: (facts) => {
      const low = tooLow(guarded(facts, facts.limits));
      return low && lowWords(low, "is");
    },
  },
  {
    code: "rule.P10",
    verbs: ["on"],
    check: ({ watts, committedWatts, limits: { supply_watts: most } }) =>
      most !== undefined && committedWatts + watts > most
        ? `${committedWatts} W are spoken for and it needs ${watts} W (P10: the supply gives ${most} W); switch others off first`
        : undefined,
  },
  {
    code: "rule.P12",
    verbs: STOPS,
    check: ({ target }, { force, reason }) => {
      if (!target || (force && reason)) return undefined;
      const { node, updating, isTrial } = target;
      if (!updating && !isTrial) return undefined;
      const what = updating ? `is updating (${updating})` : "tries a new release that is not confirmed yet";
      return `${node} ${what} (P12); wait for it, or --force --reason TEXT`;
    },
  },
  {
    code: "rule.P17",
    verbs: ["policy"],
    check: ({ abilities }, { policy, once }) => {
      if ((policy === "last" || once) && !abilities.has("boot-count"))
        return `its board does not tell when the mains came back, so "${policy}${once ? " --once" : ""}" cannot be kept (P17); use on or off`;
      if (!once && policy !== "last" && !abilities.has("start-policy"))
        return `its board cannot store what to do when the mains come back (P17)${abilities.has("boot-count") ? "; use last" : ""}`;
      return undefined;
    },
  },
];

function ownSupply({ verb, door, self, policy }: Asked): string | undefined {
  if (verb === "policy")
    return policy === "on"
      ? undefined
      : `it feeds this node, which would then not come back with the mains (P11); leave it "on"`;
  if (verb === "cycle" || verb === "reset")
    return `it feeds this node, which could not switch itself on again (P11); reboot it, or let another node ${verb} it`;
  if (door !== "socket")
    return "it feeds this node (P11: only from this node's own terminal); log in there and add --self";
  return self ? undefined : "it feeds this node (P11); add --self if that is meant";
}

/** Every reason to refuse, in the order of the table; empty when it may be done. */
export function refusals(facts: Facts, asked: Asked): Refusal[] {
  return RULES.filter((rule) => rule.verbs.includes(asked.verb)).flatMap((rule) => {
    const message = rule.check(facts, asked);
    return message === undefined ? [] : [new Refusal(rule.code, message)];
  });
}

/** `all` is never meant by accident (P19). Throws `Refusal`. */
export function refuseAll(words: readonly string[], verb: string, yes: boolean): void {
  if (words.includes("all") && !yes)
    throw new Refusal("rule.P19", `"all" needs a second word (P19); 'fruit power ${verb} all --yes'`);
}
