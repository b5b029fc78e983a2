/**
 * Power as one part of a node: controllers in; commands, published state and alarms out.
 *
 * Invariants
 * - Starting, stopping or killing the agent switches nothing; what it was doing is neither finished nor redone.
 * - A supply is what the board said last; a board that does not answer makes it `unknown`, never `off`.
 * - Nothing is reported as done that the board has not confirmed.
 */
import * as v from "valibot";
import type { BusCounters, OutletId, PowerController } from "../../hal/ports.ts";
import type { Command } from "../commands.ts";
import type { Config } from "../config.ts";
import type { Log } from "../log.ts";
import { KINDS, type Lock, type Publish, type RaiseAlarm, type Tell } from "../messages.ts";
import type { Part } from "../parts.ts";
import type { Store } from "../store.ts";
import type { Outlet } from "./outlet.ts";
import { poll } from "./poll.ts";
import { Stack } from "./stack.ts";
import type { Happening } from "./switch.ts";
import { powerCommands } from "./verbs.ts";

/** What the power service is made of. */
export interface PowerOptions {
  config: Config["power"];
  /** Outlets that plain `set/outlet/<id>` may switch. */
  unsignedOutlets: ReadonlySet<string>;
  /** This node: the outlet that feeds it is treated with care. */
  node: string;
  controllers: readonly PowerController[];
  store: Store;
  publish: Publish;
  alarm: RaiseAlarm;
  tell: Tell;
  /** Unix milliseconds, by a clock that may be set. */
  now?: () => number;
  /** Milliseconds that only ever pass. */
  elapsed?: () => number;
  random?: () => number;
  /** Interval of `tele/power`; 0 turns it off. */
  teleSeconds?: number;
  log: Log;
}

/** Power as the agent sees it. */
export interface PowerService {
  part: Part;
  commands: Command[];
  /** What a node that one of the outlets feeds said on MQTT. */
  heard(node: string, kind: Heard, payload: string): void;
  outlets: readonly OutletId[];
  /** Who has reserved an outlet. */
  lockOf(outlet: OutletId): Lock | undefined;
  /** Calls back when something happens to an outlet, at the moment when it does. */
  onChange(happened: (outlet: OutletId, what: Happening) => void): void;
  /** Of all buses together. */
  counters(): BusCounters;
  /** Numbers of the buses whose every outlet answered when it was last read. */
  answering(): number[];
  /** An outlet is being switched. */
  readonly isBusy: boolean;
}

/** Longest payload of a neighbour that is looked at, bytes; its states have a few dozen. */
const HEARD_BYTES = 16_384;

/** Makes the service. Nothing is read before its part runs, and nothing is ever written but on command. */
export function createPowerService(options: PowerOptions): PowerService {
  const stack = new Stack(options);
  return {
    part: poll(stack, options),
    commands: powerCommands(stack, options),
    outlets: [...stack.outlets.keys()],
    lockOf: (outlet) => stack.locks.of(outlet),
    onChange: (happened) => void stack.listeners.push(happened),
    heard: (node, kind, payload) => {
      const outlet = [...stack.outlets.values()].find((one) => one.node === node);
      if (!outlet) return;
      if (payload.length > HEARD_BYTES || !NOTES[kind](outlet.fed, payload))
        options.log("warn", "power.heard-unreadable", { node, kind, payload: payload.slice(0, 200) });
      stack.means.changed(outlet);
    },
    counters: () => total(options.controllers.map(({ counters }) => counters)),
    answering: () => {
      const all = [...stack.outlets.values()];
      return [...stack.buses.keys()].filter((index) => {
        const outlets = all.filter(({ bus }) => bus === stack.buses[index]);
        return outlets.length > 0 && outlets.every(({ reading }) => reading !== undefined);
      });
    },
    get isBusy() {
      return [...stack.outlets.values()].some(({ busy }) => busy !== undefined);
    },
  };
}

type Heard = "status" | "state/boot" | "state/update";

/**
 * How to take note of each; an empty payload clears. False when it makes no sense: what was known then stays, since a node that
 * updates must not look idle because of a torn message.
 */
const NOTES: Record<Heard, (fed: Outlet["fed"], payload: string) => boolean> = {
  status: (fed, payload) => {
    const status = v.safeParse(v.union([KINDS.status.schema, v.literal("")]), payload);
    if (status.success) fed.status = status.output || undefined;
    return status.success;
  },
  "state/boot": (fed, payload) => {
    const boot = v.safeParse(KINDS["state/boot"].schema, json(payload || '{"active":"a","trial":false}'));
    if (boot.success) fed.isTrial = boot.output.trial;
    return boot.success;
  },
  "state/update": (fed, payload) => {
    const update = v.safeParse(KINDS["state/update"].schema, json(payload || '{"phase":"idle"}'));
    if (update.success) fed.updating = update.output.phase === "idle" ? undefined : update.output.phase;
    return update.success;
  },
};

function json(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function total(all: readonly Readonly<BusCounters>[]): BusCounters {
  const sum = { exchanges: 0, retries: 0, crcErrors: 0, timeouts: 0, otherErrors: 0 };
  for (const counters of all)
    for (const key of Object.keys(sum) as (keyof BusCounters)[]) sum[key] += counters[key];
  return sum;
}
