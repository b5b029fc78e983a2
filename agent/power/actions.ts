import { setTimeout as sleep } from "node:timers/promises";
import { HalError } from "../../hal/ports.ts";
import { Refusal } from "../commands.ts";
import { present } from "./fields.ts";
import type { Outlet } from "./outlet.ts";
import { rehearse } from "./rehearsal.ts";
import type { Ending, OutletResult } from "./result.ts";
import { refusals, type SwitchVerb } from "./rules.ts";
import { person } from "./show.ts";
import { apply, askDown, type Doing, look, type Means, turnOf, voltagesOf } from "./switch.ts";

/** A request for one outlet, before it has begun. */
export type Switching = Omit<Doing, "step"> & { progress: (message: string) => void };

const VERBS: Record<SwitchVerb, (means: Means, outlet: Outlet, doing: Doing) => Promise<Ending>> = {
  on,
  off,
  cycle,
  reset: cycle,
  shutdown,
};

/** Verbs after which the supply is on, if all goes well. */
const STARTS: ReadonlySet<SwitchVerb> = new Set(["on", "cycle", "reset"]);

/** Does one verb to one outlet, from reading it to telling how it ended. */
export async function perform(means: Means, outlet: Outlet, asked: Switching): Promise<OutletResult> {
  const startedAt = performance.now();
  const seconds = () => Math.round((performance.now() - startedAt) / 100) / 10;
  const seen = () => ({ supply: outlet.supply, host: outlet.host(means.config, means.now()) });
  const result: OutletResult = {
    outlet: outlet.id,
    ...present({ name: outlet.name, reason: asked.reason }),
    verb: asked.verb,
    outcome: "failed",
    before: seen(),
    after: seen(),
    steps: [],
    by: asked.by,
    duration_s: 0,
  };
  const step = (what: string) => {
    result.steps.push({ t: seconds(), what });
    asked.progress(`${outlet.label}: ${what}`);
  };
  const doing: Doing = { ...asked, step };
  const ending = asked.dryRun
    ? await attempt(means, outlet, doing, result, () => rehearse(means, outlet, doing, result))
    : await claim(means, outlet, doing, result);
  Object.assign(result, ending, { after: seen() });
  if (!asked.dryRun && result.outcome !== "unchanged") report(means, outlet, doing, result);
  const hasStarted = ending.outcome === "done" || ending.outcome === "forced-after-timeout";
  if (asked.wait && hasStarted && STARTS.has(asked.verb))
    Object.assign(result, await waitForHost(means, outlet, doing));
  return Object.assign(result, { after: seen(), duration_s: seconds() });
}

/** One verb at a time for an outlet: the second asker is told who is first. */
async function claim(means: Means, outlet: Outlet, doing: Doing, result: OutletResult): Promise<Ending> {
  const { busy } = outlet;
  if (busy)
    return {
      outcome: "refused",
      code: "busy",
      message: `${person(busy.by)} asked for ${busy.verb} ${Math.round((means.now() - busy.since) / 1000)} s ago and it is under way; wait for it`,
    };
  outlet.busy = { verb: doing.verb, by: doing.by, since: means.now() };
  try {
    return await attempt(means, outlet, doing, result, () => {
      means.changed(outlet);
      return VERBS[doing.verb](means, outlet, doing);
    });
  } finally {
    outlet.busy = undefined;
    outlet.isReserved = false;
    means.changed(outlet);
  }
}

/** Reads the outlet, then does what is to be done; what goes wrong on the way becomes an ending. */
async function attempt(
  means: Means,
  outlet: Outlet,
  doing: Doing,
  result: OutletResult,
  act: () => Promise<Ending>,
): Promise<Ending> {
  try {
    await outlet.read(means.now, turnOf(doing));
    result.before = { supply: outlet.supply, host: outlet.host(means.config, means.now()) };
    if (outlet.supply === "unknown")
      throw new HalError("bad-reply", "its board does not say whether it is on; nothing was sent");
    return await act();
  } catch (error) {
    if (error instanceof Refusal) return { outcome: "refused", code: error.code, message: error.message };
    if (error instanceof HalError) return { outcome: "failed", code: "bus", message: error.message };
    if (!doing.signal.aborted) throw error;
    return {
      outcome: "unconfirmed",
      code: "stopping",
      message: `the agent stopped during ${doing.verb}; look with 'fruit power status ${outlet.id}'`,
    };
  }
}

/** Asks the rules, and reserves the watts in the same breath, so that two commands cannot spend them twice. */
async function admit(means: Means, outlet: Outlet, doing: Doing): Promise<void> {
  const isStart = STARTS.has(doing.verb);
  const facts = means.facts(outlet, isStart ? await voltagesOf(means, outlet, doing) : undefined);
  const [refusal] = refusals(facts, doing);
  if (refusal) throw refusal;
  outlet.isReserved = isStart;
}

async function on(means: Means, outlet: Outlet, doing: Doing): Promise<Ending> {
  if (outlet.supply === "on") return already(means, outlet, "on", doing);
  await admit(means, outlet, doing);
  return start(means, outlet, doing);
}

async function off(means: Means, outlet: Outlet, doing: Doing): Promise<Ending> {
  if (outlet.supply === "off") return already(means, outlet, "off", doing);
  await admit(means, outlet, doing);
  return stop(means, outlet, doing);
}

async function cycle(means: Means, outlet: Outlet, doing: Doing): Promise<Ending> {
  await admit(means, outlet, doing);
  const stopped = await stop(means, outlet, doing);
  if (stopped.outcome === "unconfirmed") return stopped;
  const started = await startAgain(means, outlet, doing);
  return started.outcome === "done" ? stopped : started;
}

/** Switches on what was just cut: however it fails, the cut has happened and is told. */
async function startAgain(means: Means, outlet: Outlet, doing: Doing): Promise<Ending> {
  try {
    const started = await start(means, outlet, doing);
    if (started.outcome === "done") return started;
    return { ...started, message: `it was cut and may still be off: ${started.message}` };
  } catch (error) {
    if (!(error instanceof Refusal) && !(error instanceof HalError)) throw error;
    return {
      outcome: "failed",
      code: error instanceof Refusal ? error.code : "bus",
      message: `it is off now and was not switched on again: ${error.message}`,
    };
  }
}

async function shutdown(means: Means, outlet: Outlet, doing: Doing): Promise<Ending> {
  if (outlet.supply === "off") return unchanged(doing, "already off");
  if (outlet.host(means.config, means.now()) === "halted") return unchanged(doing, "already halted");
  await admit(means, outlet, doing);
  const how = await askDown(means, outlet, doing);
  if (how === "deadline")
    return {
      outcome: "unconfirmed",
      message: `still running ${doing.graceSeconds} s after it was asked; look at its console, or 'fruit power off ${outlet.id}'`,
    };
  doing.step(how === "cut" ? "down, and its board cut the supply" : "down; the supply stays on");
  return { outcome: "done" };
}

async function already(means: Means, outlet: Outlet, supply: "on" | "off", doing: Doing): Promise<Ending> {
  // What a policy still wants is not wanted any more.
  if (outlet.owed !== undefined) {
    outlet.explain(supply, doing, means.now());
    await means.memory.save();
  }
  return unchanged(doing, `already ${supply}`);
}

function unchanged(doing: Doing, what: string): Ending {
  doing.step(`${what} (unchanged)`);
  return { outcome: "unchanged" };
}

/** The way to off: asked first, unless it is forced or nothing runs any more. */
async function stop(means: Means, outlet: Outlet, doing: Doing): Promise<Ending> {
  const { verb, force, graceSeconds, offTimeSeconds } = doing;
  const isAsked = verb !== "reset" && !force && outlet.host(means.config, means.now()) !== "halted";
  const how = isAsked ? await askDown(means, outlet, doing) : "unasked";
  if (how === "cut") {
    doing.step("down, and its board cut the supply");
    return { outcome: "done" };
  }
  if (how === "deadline") doing.step(`no answer after ${graceSeconds} s`);
  const { isConfirmed, seconds } = await apply(means, outlet, "off", doing);
  if (!isConfirmed) return unconfirmed(means, outlet, "off");
  const manner = { down: " (shut down cleanly)", deadline: " (forced after timeout)", unasked: "" }[how];
  const then =
    verb === "off" ? ` ... confirmed by board in ${seconds.toFixed(1)} s` : `, off ${offTimeSeconds} s`;
  doing.step(`power cut${manner}${then}`);
  if (how !== "deadline") return { outcome: "done" };
  return {
    outcome: "forced-after-timeout",
    message: `it did not shut down within ${graceSeconds} s and was cut`,
  };
}

async function start(means: Means, outlet: Outlet, doing: Doing): Promise<Ending> {
  const rest = (outlet.offAt ?? Number.NEGATIVE_INFINITY) + doing.offTimeSeconds * 1000 - performance.now();
  if (rest > 0) await sleep(rest, undefined, { signal: doing.signal });
  const { isConfirmed, seconds } = await apply(means, outlet, "on", doing);
  if (!isConfirmed) return unconfirmed(means, outlet, "on");
  doing.step(`power on ... confirmed by board in ${seconds.toFixed(1)} s`);
  return { outcome: "done" };
}

function unconfirmed({ config }: Means, outlet: Outlet, to: "on" | "off"): Ending {
  const says = outlet.error ?? `the board says ${outlet.supply}`;
  return {
    outcome: "unconfirmed",
    ...(outlet.error === undefined ? {} : { code: "bus" }),
    message: `${to} was sent and not confirmed within ${config.confirm_seconds} s: ${says}; look at the board`,
  };
}

/** Watches a Pi come up, as long as nobody else wants the outlet. What the board confirmed stands: an ending only where the Pi stays silent. */
async function waitForHost(
  means: Means,
  outlet: Outlet,
  { signal, step, bootSeconds = means.config.boot_seconds }: Doing,
): Promise<Ending | undefined> {
  const hasHeartbeat = outlet.reading?.heartbeat !== undefined;
  if (!hasHeartbeat && outlet.node === undefined) return undefined;
  const startedAt = performance.now();
  const seconds = () => Math.round((performance.now() - startedAt) / 1000);
  while (!signal.aborted && !outlet.busy && outlet.supply === "on") {
    if (outlet.alive(means.now())) {
      step(`${hasHeartbeat ? "heartbeat seen" : `${outlet.node} is online`} after ${seconds()} s`);
      return undefined;
    }
    if (seconds() >= bootSeconds)
      return {
        outcome: "unconfirmed",
        message: `its supply is on, but it shows no sign of life after ${seconds()} s; look at its console`,
      };
    await sleep(1000, undefined, { signal }).catch(() => undefined);
    await look(means, outlet);
  }
  return undefined;
}

/** Tells how it ended: an event for every change and every refusal, none where nothing was to be done. */
function report(means: Means, outlet: Outlet, doing: Doing, result: OutletResult): void {
  const { outcome, code, message, before, after } = result;
  const { verb, by, cause, reason } = doing;
  means.tell(outcome === "refused" ? "power.refused" : `power.${verb}`, {
    outlet: outlet.id,
    verb,
    outcome,
    message: `${outlet.label}: ${verb} by ${person(by)}: ${message ?? outcome}`,
    before: before.supply,
    after: after.supply,
    cause,
    by,
    ...present({ name: outlet.name, code, reason }),
  });
}
