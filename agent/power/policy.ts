import { HalError } from "../../hal/ports.ts";
import { type Caller, Refusal } from "../commands.ts";
import { present } from "./fields.ts";
import type { Outlet } from "./outlet.ts";
import type { Ending } from "./result.ts";
import { refusals } from "./rules.ts";
import { person } from "./show.ts";
import type { Means } from "./switch.ts";

/** What is asked about an outlet's behaviour when the mains come back; without `policy` it is only shown. */
interface PolicyAsked {
  policy?: "on" | "off" | "last" | undefined;
  once: boolean;
  door: Caller["door"];
  by: string;
  reason?: string | undefined;
}

/** What is answered about one outlet's policy. */
export interface PolicyResult extends Ending {
  outlet: string;
  name?: string;
  policy?: "on" | "off" | "last";
  policy_once?: "on" | "off" | "last";
}

/**
 * Shows or sets what an outlet does when the mains come back (rule P17). `on` and `off` are written to the board, this being the
 * explicit request that rule P20 wants; `last` and an override for one time are kept by us.
 */
export async function setPolicy(means: Means, outlet: Outlet, asked: PolicyAsked): Promise<PolicyResult> {
  let ending: Ending = { outcome: asked.policy === undefined ? "done" : "unchanged" };
  try {
    await outlet.readPolicy();
    if (asked.policy !== undefined) ending = { outcome: await set(means, outlet, asked.policy, asked) };
  } catch (error) {
    if (error instanceof Refusal) ending = { outcome: "refused", code: error.code, message: error.message };
    else if (error instanceof HalError) ending = { outcome: "failed", code: "bus", message: error.message };
    else throw error;
  }
  means.changed(outlet);
  const { memory, boardPolicy, name, id } = outlet;
  return {
    outlet: id,
    ...ending,
    ...present({ name, policy: memory.policy ?? boardPolicy, policy_once: memory.once }),
  };
}

async function set(
  means: Means,
  outlet: Outlet,
  policy: "on" | "off" | "last",
  { once, door, by, reason }: PolicyAsked,
): Promise<"done" | "unchanged"> {
  const asked = { verb: "policy", door, by, reason, force: false, self: false } as const;
  const [refusal] = refusals(means.facts(outlet), {
    ...asked,
    offTimeSeconds: means.config.off_time_seconds,
    graceSeconds: means.config.grace_seconds,
    policy,
    once,
  });
  if (refusal) throw refusal;
  const { memory } = outlet;
  if ((once ? memory.once : (memory.policy ?? outlet.boardPolicy)) === policy) return "unchanged";
  if (once) memory.once = policy;
  else {
    // With `last` the board keeps everything off, so that outlets come on one after the other.
    await store(outlet, policy === "last" ? "off" : policy);
    if (policy === "last") memory.policy = "last";
    else delete memory.policy;
  }
  await means.memory.save();
  means.tell("power.policy", {
    outlet: outlet.id,
    policy,
    once,
    by,
    ...present({ reason }),
    message: `${outlet.label}: when the mains come back: ${policy}${once ? " (once)" : ""}, by ${person(by)}`,
  });
  return "done";
}

/** Writes the board's setting where it has one and it differs: its memory wears. */
async function store(outlet: Outlet, policy: "on" | "off"): Promise<void> {
  const { bus, id, boardPolicy } = outlet;
  if (!bus.controller.abilities.has("start-policy") || boardPolicy === policy) return;
  await bus.do(id, "store policy of", (controller) => controller.setStartPolicy(id, policy));
  if ((await outlet.readPolicy()) !== policy)
    throw new HalError(
      "bad-reply",
      `${policy} was stored, but the board says ${outlet.boardPolicy ?? "nothing"}`,
    );
}
