/** How this node's slots are, as `fruit boot status` and `state/boot` tell it. */
import { otherSlot, SLOTS, type SlotName } from "../../boot/layout.ts";
import type { BootRecord, Reason, SlotState } from "../../boot/record.ts";
import { NO_HASH } from "../../boot/slots.ts";
import type { SwitchKind } from "../../boot/switch.ts";
import type { Payload } from "../messages.ts";
import type { HistoryLine } from "./history.ts";
import type { HeldAgainst } from "./quarantine.ts";
import type { CheckState } from "./trial.ts";

/** One slot for people and programs; what is not known is absent. */
export interface SlotStatus {
  state: SlotState;
  reason?: Reason;
  version?: string;
  hash?: string;
  bytes?: number;
}

/** A trial, armed or running. */
export interface TrialStatus {
  id: number;
  slot: SlotName;
  version: string;
  /** The slot on trial runs now. */
  running: boolean;
  started: number;
  tries_left: number;
  /** Seconds until it must be decided. */
  left_s?: number;
  checks?: CheckState[];
}

/** What happened last, from the history. */
export type LastStatus = Pick<
  HistoryLine,
  "what" | "slot" | "version" | "cause" | "evidence" | "by" | "ts" | "clock"
>;

/** The answer of `boot.status`. */
export interface BootStatus {
  switch: SwitchKind;
  disk: string;
  /** Absent where this system runs from neither slot. */
  running?: SlotName;
  primary: SlotName;
  trial?: TrialStatus;
  slots: Record<SlotName, SlotStatus>;
  /** The lowest version that may be installed. */
  floor: string;
  last?: LastStatus;
  /** Starts in a row without health; there while nothing is tried by itself. */
  loop?: number;
  /** The content of the other slot is not tried again by itself, and why. */
  quarantined?: string;
  /** Trials of that content which ended without proof against it. */
  rounds?: number;
  /** What it will be blamed for when a second trial ends so. */
  suspected?: readonly string[];
}

/** What a status is made of. */
export interface StatusFacts {
  kind: SwitchKind;
  disk: string;
  current: SlotName | undefined;
  record: BootRecord;
  last?: HistoryLine | undefined;
  loop?: number | undefined;
  /** What is held against the content of the other slot. */
  against: HeldAgainst;
  trial?: { left_s: number; checks: CheckState[] } | undefined;
}

/** Puts a status together. */
export function statusOf(facts: StatusFacts): BootStatus {
  const { record, current, last, loop } = facts;
  const { blamed, rounds, suspected } = facts.against;
  const trial = trialOf(facts);
  return {
    switch: facts.kind,
    disk: facts.disk,
    ...(current === undefined ? {} : { running: current }),
    primary: record.primary,
    ...(trial ? { trial } : {}),
    slots: { a: slotOf(record, "a"), b: slotOf(record, "b") },
    floor: String(record.floor),
    ...(last ? { last: lastOf(last) } : {}),
    ...(loop === undefined ? {} : { loop }),
    ...(blamed ? { quarantined: blamed.reason } : {}),
    ...(rounds > 0 ? { rounds } : {}),
    ...(suspected ? { suspected } : {}),
  };
}

/** The same as the controller of this node's supply, and everybody else on MQTT, needs it. Undefined where no slot runs. */
export function stateOf(status: BootStatus): Payload<"state/boot"> | undefined {
  const { running, trial, slots, last } = status;
  if (running === undefined) return undefined;
  return {
    active: running,
    trial: trial?.running ?? false,
    ...(trial ? { tries_left: trial.tries_left } : {}),
    confirmed: slots[running].state === "good",
    switch: status.switch,
    slots: Object.fromEntries(
      SLOTS.map((slot) => {
        const { state, version, hash, reason } = slots[slot];
        return [
          slot,
          {
            state,
            ...(version ? { version } : {}),
            ...(hash ? { hash } : {}),
            ...(reason ? { reason } : {}),
          },
        ];
      }),
    ),
    ...(last
      ? {
          last: {
            what: last.what,
            ...(last.version ? { version: last.version } : {}),
            ...(last.cause ? { reason: last.cause } : {}),
          },
        }
      : {}),
    ...(status.loop === undefined ? {} : { loop: status.loop }),
  };
}

function trialOf({ record, current, trial: own }: StatusFacts): TrialStatus | undefined {
  const { trial, primary, slots } = record;
  if (!trial) return undefined;
  const slot = otherSlot(primary);
  return {
    id: trial.id,
    slot,
    version: String(slots[slot].version),
    running: current === slot,
    started: trial.started,
    tries_left: trial.triesLeft,
    ...own,
  };
}

function slotOf({ slots }: BootRecord, slot: SlotName): SlotStatus {
  const { state, reason, version, hash, payloadBytes } = slots[slot];
  return {
    state,
    ...(reason === "none" ? {} : { reason }),
    ...(version === 0n ? {} : { version: String(version) }),
    ...(hash === NO_HASH ? {} : { hash }),
    ...(payloadBytes === 0 ? {} : { bytes: payloadBytes }),
  };
}

function lastOf({ what, slot, version, cause, evidence, by, ts, clock }: HistoryLine): LastStatus {
  return {
    what,
    ...(slot === undefined ? {} : { slot }),
    ...(version === undefined ? {} : { version }),
    ...(cause === undefined ? {} : { cause }),
    ...(evidence === undefined ? {} : { evidence }),
    ...(by === undefined ? {} : { by }),
    ts,
    clock,
  };
}
