import { setTimeout as sleep } from "node:timers/promises";
import { perform } from "./actions.ts";
import type { Outlet } from "./outlet.ts";
import type { OutletResult } from "./result.ts";
import type { Means } from "./switch.ts";

/** While the input stays low after an outage, what was on is tried again this often, this many times. */
const TRY_AGAIN_MS = 60_000;
const TRIES = 30;

/**
 * What an outlet is to do now that the mains are back (rule P17). A board knows on and off by itself; `last` and an override for
 * one time are kept by us. `last` never cuts: what somebody switched on meanwhile stays on.
 */
function wantedOf({ memory }: Outlet): "on" | "off" | undefined {
  const policy = memory.once ?? memory.policy;
  if (policy === "last") return memory.supply === "on" ? "on" : undefined;
  return memory.once === undefined ? undefined : policy;
}

/**
 * Acts on the return of a board's supply, seen by its boot count. The new count is remembered only when all is done,
 * so that an agent that dies in between goes on with it.
 */
export async function restore(
  means: Means,
  board: number,
  bootCount: number,
  outlets: readonly Outlet[],
  signal: AbortSignal,
): Promise<void> {
  const { memory, now, tell } = means;
  tell("power.mains-returned", {
    board,
    boots: bootCount,
    message: `the supply of board ${board} was lost and is back`,
  });
  await Promise.all(
    outlets.map(async (outlet) => {
      const wanted = wantedOf(outlet);
      if (wanted !== undefined && wanted !== outlet.supply) await switchTo(means, outlet, wanted, signal);
      else if (outlet.supply !== "unknown")
        outlet.explain(outlet.supply, { cause: "policy-restore", by: wanted ? "policy" : "board" }, now());
      if (!signal.aborted) delete outlet.memory.once;
    }),
  );
  if (signal.aborted) return;
  memory.boards[board] = bootCount;
  await memory.save();
}

async function switchTo(
  means: Means,
  outlet: Outlet,
  verb: "on" | "off",
  signal: AbortSignal,
): Promise<void> {
  const { config } = means;
  for (let tries = 1; ; tries++) {
    const result: OutletResult = await perform(means, outlet, {
      verb,
      door: "policy",
      by: "policy",
      cause: "policy-restore",
      reason: undefined,
      force: false,
      self: false,
      offTimeSeconds: config.off_time_seconds,
      graceSeconds: config.grace_seconds,
      wait: false,
      dryRun: false,
      signal,
      progress: () => undefined,
    });
    if (result.code !== "rule.P10" || tries >= TRIES || signal.aborted) return;
    await sleep(TRY_AGAIN_MS, undefined, { signal }).catch(() => undefined);
  }
}
