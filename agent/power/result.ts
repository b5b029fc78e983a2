import { HalError, type Supply } from "../../hal/ports.ts";
import { type Code, type Outcome, Refusal } from "../commands.ts";
import { present } from "./fields.ts";
import type { Host } from "./host.ts";

/** How it ended for one outlet; `forced-after-timeout` is never shown as clean (rule P5). */
export type OutletOutcome =
  | "done"
  | "unchanged"
  | "forced-after-timeout"
  | "refused"
  | "unconfirmed"
  | "failed";

/** How a verb ended, with the reason where it is not done. */
export interface Ending {
  outcome: OutletOutcome;
  code?: Code;
  message?: string;
}

/** What is answered for one outlet. */
export interface OutletResult extends Ending {
  outlet: string;
  name?: string;
  verb: string;
  before: { supply: Supply; host: Host };
  after: { supply: Supply; host: Host };
  /** Seconds since the start, and what was done then. */
  steps: { t: number; what: string }[];
  /** With a dry run: everything that would refuse. */
  refusals?: { code: Code; message: string }[];
  reason?: string;
  by: string;
  duration_s: number;
}

const GOOD: readonly OutletOutcome[] = ["done", "unchanged", "forced-after-timeout"];

/** Whether the supply is as it was asked for. */
export function isGood({ outcome }: Ending): boolean {
  return GOOD.includes(outcome);
}

/** Runs what only looks: when the agent stops meanwhile, that is its answer. */
export async function untilStopped(signal: AbortSignal, look: () => Promise<Outcome>): Promise<Outcome> {
  try {
    return await look();
  } catch (error) {
    if (!signal.aborted || error instanceof Refusal || error instanceof HalError) throw error;
    return { state: "failed", code: "stopping", message: "the agent stopped meanwhile; ask again" };
  }
}

/** One answer for all outlets of a command; partial success is visible as `failed` with the first problem. */
export function summarise(results: readonly (Ending & { outlet: string })[]): Outcome {
  const result = { outlets: results };
  const problems = results.filter((result) => !isGood(result));
  const first = problems.find(({ outcome }) => outcome === "unconfirmed") ?? problems[0];
  if (first)
    return {
      state: stateOf(results, first),
      ...present({ code: first.code }),
      message: `outlet ${first.outlet}: ${first.message ?? first.outcome}`,
      result,
    };
  const forced = results.filter(({ outcome }) => outcome === "forced-after-timeout");
  return {
    state: results.every(({ outcome }) => outcome === "unchanged") ? "unchanged" : "done",
    ...(forced.length === 0
      ? {}
      : { message: `forced after timeout: ${forced.map(({ outlet }) => outlet).join(", ")}` }),
    result,
  };
}

function stateOf(results: readonly Ending[], first: Ending): "unconfirmed" | "refused" | "failed" {
  if (first.outcome === "unconfirmed") return "unconfirmed";
  return results.every(({ outcome }) => outcome === "refused") ? "refused" : "failed";
}
