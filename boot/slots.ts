/**
 * The life of a slot, as pure changes of a record: `empty → writing → staged → trying → good | failed`. A change that must not
 * be made throws `SlotRefusal`. Nothing here touches a disk.
 */
import { otherSlot, type SlotName } from "./layout.ts";
import type { BootFile, BootRecord, Reason, SlotRecord, SlotState } from "./record.ts";

/** What may not be done to a slot now, and the way out. */
export class SlotRefusal extends Error {
  override name = "SlotRefusal";
}

/** What a slot holds once it is whole. */
export interface SlotContent {
  version: bigint;
  /** First 16 bytes of the content hash, hex. */
  hash: string;
  payloadBytes: number;
  kernel: BootFile;
  initramfs: BootFile;
  deviceTree?: BootFile;
  /** The boot set it brings for tryboot, which no record has. */
  fat?: BootFile;
}

/** Hash of nothing known. */
export const NO_HASH = "0".repeat(32);

/** Before the first byte is written: whatever the slot held can no longer be booted. */
export function begin(record: BootRecord, slot: SlotName, hash: string): BootRecord {
  if (slot === record.primary)
    throw new SlotRefusal(`slot ${slot} is the one this node starts from; it is never written`);
  if (record.trial)
    throw new SlotRefusal(
      `slot ${slot} is on trial (${record.trial.triesLeft} tries left): confirm it or roll back first`,
    );
  const empty: SlotRecord = { state: "writing", reason: "none", version: 0n, hash, payloadBytes: 0 };
  return changed(record, slot, empty, "install-begun");
}

/** All of it was written, flushed and read back; or it was whole already, and its hash alone, which the rescue cannot make, was not known. */
export function stage(record: BootRecord, slot: SlotName, content: SlotContent): BootRecord {
  const { state, hash, version, payloadBytes } = record.slots[slot];
  if (state === "staged" && hash === NO_HASH) {
    if (content.version !== version || content.payloadBytes !== payloadBytes)
      throw new SlotRefusal(
        `slot ${slot} holds version ${version} in ${payloadBytes} bytes, not version ${content.version} in ${content.payloadBytes}; install it anew`,
      );
    return changed(record, slot, { ...content, state, reason: "none" }, "install-staged");
  }
  expect(record, slot, ["writing"]);
  if (hash !== content.hash)
    throw new SlotRefusal(
      `slot ${slot} is being written with ${hash}, not with ${content.hash}; install it anew`,
    );
  return changed(record, slot, { ...content, state: "staged", reason: "none" }, "install-staged");
}

/** The next start tries it. */
export function arm(record: BootRecord, slot: SlotName, trial: { id: number; tries: number }): BootRecord {
  expect(record, slot, ["staged"]);
  if (slot === record.primary) throw new SlotRefusal(`slot ${slot} is the one this node starts from`);
  if (!(trial.tries >= 1)) throw new SlotRefusal(`a trial is of one try at least, not ${trial.tries}`);
  const next = changed(record, slot, { ...record.slots[slot], state: "trying" }, "trial-armed");
  return { ...next, trial: { id: trial.id, triesLeft: trial.tries, started: 0 } };
}

/** The slot on trial has shown that it is well: it is what the node starts from now, and nothing older than `floor` comes back. */
export function confirm(record: BootRecord, slot: SlotName, floor: bigint): BootRecord {
  expect(record, slot, ["trying"]);
  if (!record.trial) throw new SlotRefusal(`slot ${slot} is not on trial`);
  const { trial, ...rest } = changed(
    record,
    slot,
    { ...record.slots[slot], state: "good", reason: "none" },
    "confirmed",
  );
  return {
    ...rest,
    primary: slot,
    confirmed: trial?.id ?? 0,
    floor: floor > record.floor ? floor : record.floor,
  };
}

/** A slot that must not be started again; a trial of it is over. */
export function fail(record: BootRecord, slot: SlotName, reason: Reason): BootRecord {
  if (slot === record.primary)
    throw new SlotRefusal(
      `slot ${slot} is the one this node starts from; roll back to slot ${otherSlot(slot)} instead`,
    );
  if (record.slots[slot].state === "good")
    throw new SlotRefusal(`slot ${slot} is good, and what this node can fall back to; it stays so`);
  const { trial, ...rest } = changed(
    record,
    slot,
    { ...record.slots[slot], state: "failed", reason },
    reason,
  );
  return rest;
}

/**
 * Back to the other slot, which must be good. The one that was primary has failed, but where a person wanted it so: then it stays
 * good, for U-Boot to start when the other turns out to be damaged.
 */
export function rollBack(record: BootRecord, reason: Reason): BootRecord {
  const [from, to] = [record.primary, otherSlot(record.primary)];
  expect(record, to, ["good"]);
  const state = reason === "by-hand" ? record.slots[from].state : "failed";
  const { trial, ...rest } = changed(record, from, { ...record.slots[from], state, reason }, reason);
  // Whoever left the target by hand once comes back to it
  const isBack = reason === "by-hand" && rest.slots[to].reason === reason;
  const target: SlotRecord = isBack ? { ...rest.slots[to], reason: "none" } : rest.slots[to];
  return { ...rest, primary: to, slots: { ...rest.slots, [to]: target } };
}

function expect(record: BootRecord, slot: SlotName, states: readonly SlotState[]): void {
  const { state } = record.slots[slot];
  if (!states.includes(state)) throw new SlotRefusal(`slot ${slot} is ${state}, not ${states.join(" or ")}`);
}

function changed(record: BootRecord, slot: SlotName, to: SlotRecord, reason: Reason): BootRecord {
  return { ...record, reason, slots: { ...record.slots, [slot]: to } };
}
