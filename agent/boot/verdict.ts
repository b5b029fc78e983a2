/** What the records, the marks and the trial's own record together say of this start. Nothing here touches anything. */
import { otherSlot, type SlotName } from "../../boot/layout.ts";
import type { BootRecord, Reason } from "../../boot/record.ts";
import { counted } from "../terminal.ts";
import type { Mark } from "./marks.ts";
import { BUILT_IN_CHECKS, SURROUNDINGS } from "./names.ts";
import { isOf, type Plan } from "./plan.ts";

/** All that is known when the agent starts. */
export interface Facts {
  record: BootRecord;
  current: SlotName;
  plan?: Plan | undefined;
  marks: readonly Mark[];
  boot: string;
  /** Boot ids of the starts that the initramfs last found to lead to nothing. */
  spent?: readonly string[];
}

/**
 * What a failure says of the content. `quarantine`: it is to blame. `round`: its tries are spent, and nothing shows why.
 * `suspect`: an outage or power cuts look the same, so it is to blame when a second trial ends so. `none`: it is not to blame.
 */
export type Blame = "quarantine" | "round" | "suspect" | "none";

/** What this start is. */
export type Verdict =
  | { is: "good" }
  | { is: "on-trial"; slot: SlotName }
  /** A slot that has failed, or that a person has left, runs: only another start is left. */
  | { is: "doomed"; slot: SlotName }
  /** The other slot waits to be tried. */
  | { is: "armed"; slot: SlotName; isOverdue: boolean }
  /** A trial that was confirmed, and perhaps not told to the end. */
  | { is: "confirmed"; slot: SlotName; plan: Plan }
  | { is: "failed"; slot: SlotName; cause: Cause; plan?: Plan }
  /** The primary slot was damaged, or its starts led to nothing, and the node starts from the other. */
  | { is: "fallen-back"; slot: SlotName; cause: Cause };

/** Why a slot failed. */
export interface Cause {
  reason: Reason;
  blame: Blame;
  evidence: string[];
  /** Checks of a suspect that said no: it is one only if the old slot has what they ask for. */
  lacks?: string[];
}

/** Judges a start. */
export function judge(facts: Facts): Verdict {
  const { record, current, plan } = facts;
  const { primary, trial, slots, confirmed } = record;
  if (current !== primary) {
    if (trial && slots[current].state === "trying") return { is: "on-trial", slot: current };
    // A slot that a person has left stays good, and is not the one to run
    const isLeft = slots[current].reason === "by-hand";
    return slots[current].state === "good" && !isLeft ? { is: "good" } : { is: "doomed", slot: current };
  }
  if (plan?.slot === current && isOf(plan, record) && confirmed === plan.trial)
    return { is: "confirmed", slot: current, plan };
  return judgeOther(facts, otherSlot(current));
}

/** The primary slot runs: what became of the other? */
function judgeOther({ record, plan, marks, boot, spent = [] }: Facts, other: SlotName): Verdict {
  const { state, reason } = record.slots[other];
  if (record.trial && state === "trying")
    return { is: "armed", slot: other, isOverdue: plan !== undefined && plan.boot !== boot };
  if (state !== "failed") return { is: "good" };
  if (reason === "starts-spent")
    return { is: "fallen-back", slot: other, cause: startsSpent(spent, marks, other) };
  const own = plan?.slot === other && isOf(plan, record) ? plan : undefined;
  const cause = causeOf(reason, own, marks);
  if (!own && reason === "files-damaged") return { is: "fallen-back", slot: other, cause };
  // Who wanted it so has written it down
  if (!own && reason === "by-hand") return { is: "good" };
  return { is: "failed", slot: other, cause, ...(own ? { plan: own } : {}) };
}

/** As often as the watchdog feeder starts a node again for a dead agent. */
export const DEAD_STARTS = 3;

/**
 * A slot that was good was started again and again without staying up. It is to blame where that was its agent, which the feeder has
 * seen; a crash looks like a power cut.
 */
function startsSpent(spent: readonly string[], marks: readonly Mark[], slot: SlotName): Cause {
  const seen = marks.filter(({ trial, boot }) => trial === 0 && spent.includes(boot));
  const dead = new Set(seen.filter(({ what }) => what === "agent-dead").map(({ boot }) => boot)).size;
  // What both slots die of is not in the release: a word in node.json, for one
  const since = marks.slice(marks.findLastIndex((mark) => seen.includes(mark)) + 1);
  const isShared = seen.length > 0 && since.some(({ trial, what }) => trial === 0 && what === "agent-dead");
  return {
    reason: "starts-spent",
    blame: dead >= DEAD_STARTS && !isShared ? "quarantine" : "round",
    evidence: [
      `slot ${slot} was started ${spent.length > 0 ? `${spent.length} times` : "again and again"} in a row, and never stayed up for long enough`,
      dead > 0
        ? `in ${dead} of these starts its agent was dead`
        : "nothing was seen of these starts: crashes, hangs and power cuts look the same",
      ...seen.map(inWords),
      ...(isShared ? ["since then the agent of the other slot was dead as well"] : []),
    ],
  };
}

/** Why a trial failed, from the reason in the record and what was seen of its tries. */
export function causeOf(reason: Reason, plan: Plan | undefined, all: readonly Mark[]): Cause {
  const marks = plan ? all.filter(({ trial }) => trial === plan.trial) : [];
  const seen = marks.map(inWords);
  switch (reason) {
    case "tries-spent":
      return {
        ...spent(plan, marks),
        evidence: seen.length > 0 ? [...seen, ...silent(plan, marks)] : [nothingSeen(plan)],
      };
    case "check-failed":
    case "fatal-check":
    case "deadline":
    case "agent-dead":
      return givenUp(reason, plan, marks);
    case "never-came-up":
      return { reason, blame: "suspect", evidence: seen.length > 0 ? seen : [nothingSeen(plan)] };
    case "files-damaged":
      return {
        reason,
        blame: "none",
        evidence: [
          ...(plan?.failed?.evidence ?? ["its boot files were found damaged before they were started"]),
          ...seen,
        ],
      };
    default:
      return { reason, blame: "none", evidence: seen };
  }
}

/** The slot on trial, or the feeder, has given it up. */
function givenUp(reason: Reason, plan: Plan | undefined, marks: readonly Mark[]): Cause {
  const { checks = [], evidence: said = [] } = plan?.failed ?? {};
  const evidence = [...said, ...marks.map(inWords)];
  const lacks = reason === "fatal-check" ? [] : surroundingsIn(checks);
  if (lacks.length > 0) return { reason, blame: "suspect", lacks, evidence };
  // A trial of which nothing was kept is not held against the release for good
  const isKept = plan?.failed !== undefined || marks.some(({ what }) => what === reason);
  return { reason, blame: isKept ? "quarantine" : "round", evidence };
}

/** All tries were started: what is the worst that was seen of them? */
function spent(plan: Plan | undefined, marks: readonly Mark[]): { reason: Reason; blame: Blame } {
  const has = (what: Mark["what"]) => marks.some((mark) => mark.what === what);
  for (const what of ["agent-dead", "deadline"] as const)
    if (has(what)) return { reason: what, blame: "quarantine" };
  // Without the trial's own record nobody knows whether marks could be written.
  if (plan?.trial !== undefined && marks.length === 0) return { reason: "never-came-up", blame: "suspect" };
  return { reason: "tries-spent", blame: "round" };
}

/** The checks that said no, where an outage around the node can have made all of them do so. */
function surroundingsIn(checks: readonly string[]): string[] {
  const isNetwork = checks.includes("broker") || checks.includes("clock");
  // A site's own check may need the network as well
  const isOutside = (name: string) =>
    SURROUNDINGS.some((known) => known === name) ||
    (isNetwork && !BUILT_IN_CHECKS.some((known) => known === name));
  return checks.every(isOutside) ? [...checks] : [];
}

function nothingSeen(plan: Plan | undefined): string {
  return plan
    ? `none of its ${plan.tries} starts left a mark: it may not have reached the initramfs, or the power went before`
    : "the trial's own record is missing, so nothing is known of its starts";
}

/** What it means that no try came further than the initramfs: nothing here keeps a panic over the start that follows it. */
function silent(plan: Plan | undefined, marks: readonly Mark[]): string[] {
  if (!plan || marks.some(({ what, text }) => what !== "init" || text !== undefined)) return [];
  const count = new Set(marks.map(({ attempt }) => attempt)).size;
  const which =
    count === plan.tries
      ? `each of its ${counted(count, "try", "tries")}`
      : `${count} of its ${plan.tries} tries`;
  return [
    `went silent after the initramfs in ${which}: a kernel panic, a first program that ends, a hang, or power that failed`,
  ];
}

/** A mark for people. */
function inWords({ trial, attempt, boot, what, text }: Mark): string {
  return `${trial === 0 ? "" : `try ${attempt}: `}${WORDS[what]}${text ? `: ${text}` : ""} (boot ${boot.slice(0, 8)})`;
}

const WORDS: Record<Mark["what"], string> = {
  init: "reached the initramfs",
  agent: "the agent started",
  "agent-dead": "the agent was dead",
  deadline: "the deadline passed",
  stopped: "it was shut down in an orderly way",
};
