import type { Outlet } from "./outlet.ts";
import type { Ending, OutletResult } from "./result.ts";
import { refusals } from "./rules.ts";
import { type Doing, type Means, voltagesOf } from "./switch.ts";

/** Says what a verb would do, each step with its wait, and every rule that would refuse. Sends nothing but questions. */
export async function rehearse(
  means: Means,
  outlet: Outlet,
  doing: Doing,
  result: OutletResult,
): Promise<Ending> {
  const refused = refusals(means.facts(outlet, await voltagesOf(means, outlet, doing)), doing);
  const { verb } = doing;
  const isThere = outlet.supply === (verb === "on" ? "on" : "off") && verb !== "cycle" && verb !== "reset";
  const plan = isThere ? [`do nothing: it is ${outlet.supply} already (P3)`] : steps(means, outlet, doing);
  for (const what of plan) doing.step(`would ${what}`);
  if (isThere || refused.length === 0) return { outcome: "unchanged" };
  result.refusals = refused.map(({ code, message }) => ({ code, message }));
  for (const { code, message } of refused) doing.step(`would be refused, ${code}: ${message}`);
  const [{ code, message } = { code: "failed", message: "" } as const] = result.refusals;
  return { outcome: "refused", code, message };
}

function steps({ config, now }: Means, outlet: Outlet, doing: Doing): string[] {
  const { verb, force, graceSeconds, offTimeSeconds } = doing;
  const confirm = `confirm by read-back, send once more after ${config.retry_seconds} s, end unconfirmed after ${config.confirm_seconds} s (P14)`;
  const ask = `ask it to shut down and wait up to ${graceSeconds} s (P4)`;
  const isAsked = verb !== "reset" && !force && outlet.host(config, now()) !== "halted";
  const cut = [...(isAsked ? [ask] : []), "cut the supply", confirm];
  const start = [`wait for its turn, ${config.stagger_seconds} s after any other (P9)`, "switch on", confirm];
  const again = [...cut, `leave it off for ${offTimeSeconds} s (P6)`, ...start];
  return { on: start, off: cut, cycle: again, reset: again, shutdown: [ask] }[verb];
}
