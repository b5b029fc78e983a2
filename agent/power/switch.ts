import { setTimeout as sleep } from "node:timers/promises";
import { type BoardReading, HalError, type OutletId, type OutletReading } from "../../hal/ports.ts";
import { Refusal } from "../commands.ts";
import type { Config } from "../config.ts";
import type { Turn } from "./bus.ts";
import type { Memory, Reason } from "./memory.ts";
import type { Outlet } from "./outlet.ts";
import type { Pace } from "./pace.ts";
import { type Asked, type Facts, recent, type SwitchVerb } from "./rules.ts";
import { person } from "./show.ts";
import { isGuarded } from "./volts.ts";

const LOOK_MS = 250;
/** The current must stay low this long before a Pi is believed to be down (rule P4). */
const DOWN_MS = 2000;

/** Something that a console at the outlet's host shows beside its bytes. */
export interface Happening {
  kind: "power" | "lock";
  /** In words: `off by alice (kernel test)`. */
  what: string;
  /** Whose lock was taken away. */
  lost?: string;
}

/** What switching needs besides the outlet. */
export interface Means {
  config: Config["power"];
  memory: Memory;
  pace: Pace;
  /** This moment, see `Time`. */
  now: () => number;
  /** The outlet's state may have changed: it is published. */
  changed: (outlet: Outlet) => void;
  /** What the rules look at, from the outlet's last reading and, where a rule wants it, the board's input. */
  facts: (outlet: Outlet, voltages?: Voltages) => Facts;
  /** Something happens to the supply, now: told at once, unlike how a command ended. */
  happened: (outlet: OutletId, what: Happening) => void;
  tell: (type: string, facts: Record<string, unknown>) => void;
}

/** One outlet's switching on its way: what was asked, why, who may stop it, who is told. */
export interface Doing extends Asked, Reason {
  verb: SwitchVerb;
  by: string;
  /** Also wait until the Pi shows itself. */
  wait: boolean;
  /** How long; `boot_seconds` where nobody says. */
  bootSeconds?: number | undefined;
  dryRun: boolean;
  signal: AbortSignal;
  step(what: string): void;
}

/** How its operations wait for the bus (rule P15): those of an emergency before all others', a rehearsal's like anybody's. */
export function turnOf({ verb, force, dryRun, signal }: Omit<Doing, "step">): Turn {
  if (dryRun) return { lane: "reading", signal };
  return { lane: verb === "off" && force ? "emergency" : "switching", signal };
}

/** What the rules look at of a board's supply. */
export type Voltages = Pick<BoardReading, "inputVolts" | "railVolts">;

/** What its board measures now, where a rule looks at it. */
export async function voltagesOf(means: Means, outlet: Outlet, doing: Doing): Promise<Voltages | undefined> {
  return isGuarded(means.config) ? readInput(outlet, doing) : undefined;
}

function readInput({ bus, board }: Outlet, doing: Doing): Promise<BoardReading> {
  return bus.do(`board ${board}`, "read", (controller) => controller.readBoard(board), turnOf(doing));
}

/**
 * Sets a supply and confirms it by read-back (rule P14): sends once more after `retry_seconds`, gives up after `confirm_seconds`.
 * Throws `HalError` refused when the board says no, `Refusal` when its turn to come on does not come, AbortError when told to stop.
 */
export async function apply(
  means: Means,
  outlet: Outlet,
  to: "on" | "off",
  doing: Doing,
): Promise<{ isConfirmed: boolean; seconds: number }> {
  const { config, memory, now } = means;
  outlet.memory.changes = [...recent(outlet.memory.changes, now()), now()].slice(
    -2 * config.changes_per_hour,
  );
  outlet.intend(to, doing, now());
  // Before it is sent: an agent that dies now must neither forget its limits nor take its own doing for a stranger's.
  await memory.save();
  doing.signal.throwIfAborted();
  await sendFirst(means, outlet, to, doing);
  means.happened(outlet.id, { kind: "power", what: `${to} ${byWhom(doing)}` });
  const sentAt = performance.now();
  for (let isRepeated = false; ; await sleep(LOOK_MS, undefined, { signal: doing.signal })) {
    const reading = await look(means, outlet, turnOf(doing));
    const elapsed = performance.now() - sentAt;
    if (reading?.supply === to) {
      outlet.explain(to, doing, now());
      await memory.save();
      return { isConfirmed: true, seconds: elapsed / 1000 };
    }
    if (elapsed >= config.confirm_seconds * 1000) return { isConfirmed: false, seconds: elapsed / 1000 };
    if (isRepeated || elapsed < config.retry_seconds * 1000) continue;
    isRepeated = true;
    doing.step(`board says ${outlet.supply} after ${config.retry_seconds} s: sending ${to} once more`);
    await send(means, outlet, to, doing).catch((error) => {
      // It fails only now, so the first one may still come true: it ends unconfirmed.
      if (!(error instanceof Refusal) && !(error instanceof HalError)) throw error;
      doing.step(`not sent: ${error.message}`);
    });
  }
}

/** Sends for the first time; a queue that is full or a bus that is silent may pass before the time to confirm is over. */
async function sendFirst(means: Means, outlet: Outlet, to: "on" | "off", doing: Doing): Promise<void> {
  const endsAt = performance.now() + means.config.confirm_seconds * 1000;
  for (let tries = 1; ; tries++) {
    try {
      return await send(means, outlet, to, doing);
    } catch (error) {
      if (!mayPass(error) || performance.now() >= endsAt) throw error;
      if (tries === 1) doing.step(`not sent yet: ${error.message}`);
    }
    await sleep(LOOK_MS, undefined, { signal: doing.signal });
  }
}

function mayPass(error: unknown): error is Refusal | HalError {
  return error instanceof Refusal
    ? error.code === "busy"
    : error instanceof HalError && error.code !== "refused";
}

async function send({ pace }: Means, outlet: Outlet, to: "on" | "off", doing: Doing): Promise<void> {
  const { bus, id } = outlet;
  const command = async () => {
    try {
      await bus.do(id, `switch ${to}`, (controller) => controller.switch(id, to), turnOf(doing));
    } catch (error) {
      // A lost answer says nothing about the supply: the read-back does. A "no" of the board is final.
      if (!(error instanceof HalError) || error.code === "refused" || error.code === "busy") throw error;
    }
  };
  if (to === "off") return command();
  await pace.next(() => readInput(outlet, doing), command, doing.signal);
}

/** Reads an outlet where a failure means "look again": undefined when the board could not be read, or the agent stops. */
export async function look(
  { now, changed }: Pick<Means, "now" | "changed">,
  outlet: Outlet,
  turn: Turn = {},
): Promise<OutletReading | undefined> {
  try {
    return await outlet.read(now, turn);
  } catch (error) {
    if (error instanceof HalError || error instanceof Refusal || turn.signal?.aborted) return undefined;
    throw error;
  } finally {
    changed(outlet);
  }
}

/**
 * Asks the Pi to shut down and waits until it is down (rule P4): heartbeat gone, or where there is none its node's status, and
 * the current below `halted_amperes` for 2 s. `cut` when the board itself took the supply away, `deadline` when the Pi did not obey.
 */
export async function askDown(
  means: Means,
  outlet: Outlet,
  doing: Doing,
): Promise<"down" | "cut" | "deadline"> {
  // Only a sign of life that was there can vanish: the silence of a hung Pi is no proof that it is down.
  const wasAlive = outlet.alive(means.now()) === true;
  // Some boards cut by themselves when the Pi says that it stops, perhaps long after this has ended.
  outlet.intend("off", doing, means.now());
  await means.memory.save();
  doing.signal.throwIfAborted();
  doing.step("asking to shut down ...");
  await outlet.bus.do(outlet.id, "signal", (controller) => controller.signal(outlet.id), turnOf(doing));
  outlet.isStopAnnounced = true;
  means.happened(outlet.id, { kind: "power", what: `asked to shut down ${byWhom(doing)}` });
  means.changed(outlet);
  const endsAt = performance.now() + doing.graceSeconds * 1000;
  let downSince: number | undefined;
  for (let left = endsAt - performance.now(); left > 0; left = endsAt - performance.now()) {
    await sleep(Math.min(LOOK_MS, left), undefined, { signal: doing.signal });
    const reading = await look(means, outlet, turnOf(doing));
    if (reading?.supply === "off") {
      outlet.explain("off", doing, means.now());
      means.happened(outlet.id, { kind: "power", what: "off: down, and cut by its board" });
      await means.memory.save();
      return "cut";
    }
    if (reading && isDown(reading, outlet, wasAlive, means.config.halted_amperes))
      downSince ??= performance.now();
    else downSince = undefined;
    if (downSince !== undefined && performance.now() - downSince >= DOWN_MS) return "down";
  }
  return "deadline";
}

/** `by alice (kernel test)`. */
function byWhom({ by, reason }: Doing): string {
  return `by ${person(by)}${reason ? ` (${reason})` : ""}`;
}

function isDown(reading: OutletReading, outlet: Outlet, wasAlive: boolean, haltedAmperes: number): boolean {
  const { heartbeat, amperes } = reading;
  const isLifeGone = heartbeat === undefined ? outlet.fed.status === "offline" : !heartbeat;
  if (amperes === undefined) return wasAlive && isLifeGone;
  const isLifeKnown = heartbeat !== undefined || outlet.fed.status !== undefined;
  return amperes < haltedAmperes && (isLifeGone || !isLifeKnown);
}
