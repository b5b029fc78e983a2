/** What the records, the marks and the trial's own record together say of this start. Nothing here touches anything. */
import { otherSlot, type SlotName } from "../../boot/layout.ts";
import type { BootRecord, Reason } from "../../boot/records.ts";
import type { Mark } from "./marks.ts";
import { isOf, type Plan } from "./plan.ts";

/** All that is known when the agent starts. */
export interface Facts {
  record: BootRecord;
  current: SlotName;
  plan?: Plan | undefined;
  marks: readonly Mark[];
  boot: string;
}

/**
 * What a failure says of the content. `quarantine`: it is to blame. `round`: its tries are spent, and nothing shows why.
 * `if-broker`: to blame if the old slot reaches the broker that it did not reach. `none`: it is not to blame.
 */
export type Blame = "quarantine" | "round" | "if-broker" | "none";

/** What this start is. */
export type Verdict =
  | { is: "good" }
  | { is: "on-trial"; slot: SlotName }
  /** A slot that has failed runs: only another start is left. */
  | { is: "doomed"; slot: SlotName }
  /** The other slot waits to be tried. */
  | { is: "armed"; slot: SlotName; isOverdue: boolean }
  /** A trial that was confirmed, and perhaps not told to the end. */
  | { is: "confirmed"; slot: SlotName; plan: Plan }
  | { is: "failed"; slot: SlotName; cause: Cause; plan?: Plan }
  /** The primary slot was damaged, and the node starts from the other. */
  | { is: "fallen-back"; slot: SlotName; cause: Cause };

/** Why a slot failed. */
export interface Cause {
  reason: Reason;
  blame: Blame;
  evidence: string[];
}

/** Judges a start. */
export function judge(facts: Facts): Verdict {
  const { record, current, plan } = facts;
  const { primary, trial, slots, confirmed } = record;
  if (current !== primary) {
    if (trial && slots[current].state === "trying") return { is: "on-trial", slot: current };
    return slots[current].state === "good" ? { is: "good" } : { is: "doomed", slot: current };
  }
  if (plan?.slot === current && isOf(plan, record) && confirmed === plan.trial)
    return { is: "confirmed", slot: current, plan };
  return judgeOther(facts, otherSlot(current));
}

/** The primary slot runs: what became of the other? */
function judgeOther({ record, plan, marks, boot }: Facts, other: SlotName): Verdict {
  const { state, reason } = record.slots[other];
  if (record.trial && state === "trying")
    return { is: "armed", slot: other, isOverdue: plan !== undefined && plan.boot !== boot };
  if (state !== "failed") return { is: "good" };
  const own = plan?.slot === other && isOf(plan, record) ? plan : undefined;
  const cause = causeOf(reason, own, marks);
  if (!own && reason === "files-damaged") return { is: "fallen-back", slot: other, cause };
  // Who wanted it so has written it down
  if (!own && reason === "by-hand") return { is: "good" };
  return { is: "failed", slot: other, cause, ...(own ? { plan: own } : {}) };
}

/** Why a trial failed, from the reason in the record and what was seen of its tries. */
export function causeOf(reason: Reason, plan: Plan | undefined, all: readonly Mark[]): Cause {
  const marks = plan ? all.filter(({ trial }) => trial === plan.trial) : [];
  const seen = marks.map(inWords);
  switch (reason) {
    case "tries-spent":
      return { ...spent(plan, marks), evidence: seen.length > 0 ? seen : [nothingSeen(plan)] };
    case "check-failed":
    case "fatal-check":
    case "deadline":
    case "agent-dead": {
      const { checks = [], evidence = [] } = plan?.failed ?? {};
      const isBroker = checks.length > 0 && checks.every((name) => name === "broker");
      // A trial of which nothing was kept is not held against the release for good
      const blame = isBroker ? "if-broker" : plan ? "quarantine" : "round";
      return { reason, blame, evidence: [...evidence, ...seen] };
    }
    case "panic":
    case "never-came-up":
      return { reason, blame: "quarantine", evidence: seen.length > 0 ? seen : [nothingSeen(plan)] };
    case "files-damaged":
      return {
        reason,
        blame: "none",
        evidence: [...(plan?.failed?.evidence ?? ["U-Boot found its boot files damaged"]), ...seen],
      };
    default:
      return { reason, blame: "none", evidence: seen };
  }
}

/** All tries were started: what is the worst that was seen of them? */
function spent(plan: Plan | undefined, marks: readonly Mark[]): { reason: Reason; blame: Blame } {
  const has = (what: Mark["what"]) => marks.some((mark) => mark.what === what);
  for (const what of ["panic", "agent-dead", "deadline"] as const)
    if (has(what)) return { reason: what, blame: "quarantine" };
  // Without the trial's own record nobody knows whether marks could be written.
  if (plan?.trial !== undefined && marks.length === 0)
    return { reason: "never-came-up", blame: "quarantine" };
  return { reason: "tries-spent", blame: "round" };
}

function nothingSeen(plan: Plan | undefined): string {
  return plan
    ? `none of its ${plan.tries} starts reached the initramfs`
    : "the trial's own record is missing, so nothing is known of its starts";
}

/** A mark for people. */
function inWords({ attempt, boot, what, text }: Mark): string {
  return `try ${attempt}: ${WORDS[what]}${text ? `: ${text}` : ""} (boot ${boot.slice(0, 8)})`;
}

const WORDS: Record<Mark["what"], string> = {
  init: "reached the initramfs",
  agent: "the agent started",
  "agent-dead": "the agent was dead",
  deadline: "the deadline passed",
  panic: "the kernel panicked",
  stopped: "it was shut down in an orderly way",
};
