/** What is decided about slots, whoever decides: a person by a command, or the update service. */
import { otherSlot, type SlotName } from "../../boot/layout.ts";
import type { BootRecord } from "../../boot/record.ts";
import { SlotRefusal } from "../../boot/slots.ts";
import { type Outcome, Refusal } from "../commands.ts";
import { floorOf } from "./floor.ts";
import { MOST_ROUNDS } from "./quarantine.ts";
import type { BootOptions } from "./service.ts";
import type { Kept, Slots } from "./slots.ts";
import { identified, refuseDamaged } from "./target.ts";

/** A decision, and who answers for it. */
export interface Decision<Args> {
  args: Args;
  by: { who: string; reason: string };
  signal: AbortSignal;
}

/** The rules of the slots themselves. */
export async function refusing(run: () => Promise<Outcome>): Promise<Outcome> {
  try {
    return await run();
  } catch (error) {
    if (error instanceof SlotRefusal) throw new Refusal("slot", error.message);
    throw error;
  }
}

/** The slot that runs and the record; a system that runs from neither has nothing to decide. */
export async function here(slots: Slots): Promise<{ kept: Kept; record: BootRecord; current: SlotName }> {
  const { kept } = slots;
  const { boot, disk } = kept.card;
  if (boot.current === undefined)
    throw new Refusal(
      "no-slots",
      `this system runs from neither slot of ${disk.name}; 'fruit boot records' shows them`,
    );
  await slots.look();
  return { kept, record: await boot.read(), current: boot.current };
}

/** Has the next start try the other slot, and starts this node anew unless told otherwise. Throws `Refusal`. */
export const tryOut = (
  slots: Slots,
  decision: Decision<{ no_reboot: boolean; force: boolean }>,
): Promise<Outcome> => refusing(() => tryIt(slots, decision));

async function tryIt(
  slots: Slots,
  { args, by, signal }: Decision<{ no_reboot: boolean; force: boolean }>,
): Promise<Outcome> {
  const { options } = slots;
  const { kept, record: before, current } = await here(slots);
  const slot = otherSlot(current);
  if (current !== before.primary)
    throw new Refusal(
      "on-trial",
      before.trial
        ? `slot ${current} is on trial itself; 'fruit boot status' says how it stands`
        : `this node starts from slot ${slot} next: reboot it first`,
    );
  const record = await identified(kept.card, options.dataDir, slot, before, signal);
  refuseTry(slots, options, kept, record, slot, args.force);
  if (!args.force) refuseShort(kept.baseline.missing(slots.seen()));
  const again = record.slots[slot].state === "trying";
  if (args.force) await kept.keeper.release(slot, record, by);
  if (!again) {
    const { hash, version } = record.slots[slot];
    await kept.keeper.arm(
      {
        slot,
        hash,
        version: String(version),
        floor: String(await floorOf(options.dataDir, slot, hash)),
        tries: options.config.tries,
        boot: options.hal.machine.bootId,
        by: by.who,
        baseline: slots.facts,
      },
      options.config.tries,
    );
  }
  await slots.look();
  if (!args.no_reboot) slots.reboot(`slot ${slot} is to be tried: ${by.reason}`);
  const what = `slot ${slot} (version ${record.slots[slot].version})`;
  return {
    state: again ? "unchanged" : "done",
    message: args.no_reboot
      ? `${what} is tried at the next start`
      : `${what} is tried now: this node starts anew`,
    result: { slot, reboot_needed: args.no_reboot },
  };
}

function refuseTry(
  slots: Slots,
  { isPowerBusy }: BootOptions,
  { quarantine }: Kept,
  record: BootRecord,
  slot: SlotName,
  force: boolean,
): void {
  const { state, hash, version } = record.slots[slot];
  if (state !== "staged" && state !== "trying")
    throw new Refusal(
      "slot",
      `slot ${slot} is ${state}: there is nothing to try; 'fruit update install' puts a release there`,
    );
  if (isPowerBusy()) throw new Refusal("busy", "this node is switching power for others; wait for that");
  if (force) return;
  const blamed = quarantine.of(hash);
  const way = "install another release, or --force --reason TEXT";
  if (blamed)
    throw new Refusal(
      "quarantined",
      `version ${version} has failed here (${blamed.reason}: ${blamed.evidence[0] ?? "no evidence kept"}); ${way}`,
    );
  const rounds = quarantine.roundsOf(hash);
  if (rounds >= MOST_ROUNDS)
    throw new Refusal(
      "quarantined",
      `version ${version} was tried ${rounds} times and never decided; ${way}`,
    );
  if (slots.loop !== undefined)
    throw new Refusal(
      "reboot-loop",
      `this node was started ${slots.loop} times without health in between; find out why first, or --force --reason TEXT`,
    );
}

/** What is missing here is not asked of the new release: it would pass, and might never have it. */
function refuseShort(missing: readonly string[]): void {
  if (missing.length === 0) return;
  throw new Refusal(
    "busy",
    `this node has had ${missing.join(", ")} and has not now, so that no trial could show whether the new release has; wait for that, or --force --reason TEXT`,
  );
}

/** Off the trial, or back to the other good slot. Throws `Refusal`. */
export const rollBack = (slots: Slots, decision: Decision<{ no_reboot: boolean }>): Promise<Outcome> =>
  refusing(() => goBack(slots, decision));

async function goBack(
  slots: Slots,
  { args, by, signal }: Decision<{ no_reboot: boolean }>,
): Promise<Outcome> {
  const { isPowerBusy, dataDir } = slots.options;
  const { kept, record, current } = await here(slots);
  if (isPowerBusy()) throw new Refusal("busy", "this node is switching power for others; wait for that");
  const other = otherSlot(current);
  if (current === record.primary && record.trial) {
    await kept.keeper.rollBack(record, other, by);
    await slots.look();
    return {
      state: "done",
      message: `slot ${other} is not tried; slot ${current} goes on`,
      result: { slot: current, reboot_needed: false },
    };
  }
  const { version } = record.slots[other];
  if (current === record.primary && version < record.floor)
    throw new Refusal(
      "slot",
      `slot ${other} has version ${version}, and nothing below ${record.floor} comes back; install a newer release`,
    );
  const isUnread =
    record.slots[other].state === "good" && (await refuseDamaged(kept.card, dataDir, other, record, signal));
  // Reading takes its time
  if (isPowerBusy()) throw new Refusal("busy", "this node is switching power for others; wait for that");
  await slots.trying?.begun();
  await kept.keeper.rollBack(record, current, by);
  slots.trying?.end("failed");
  await slots.look();
  if (!args.no_reboot) slots.reboot(`back to slot ${other}: ${by.reason}`);
  return {
    state: "done",
    message: `back to slot ${other} (version ${version})${isUnread ? ", which was not read through, since its hash is not known" : ""}${args.no_reboot ? " at the next start" : ": this node starts anew"}`,
    result: { slot: other, reboot_needed: args.no_reboot },
  };
}
