/** What can be asked of a node's slots. */
import * as v from "valibot";
import { otherSlot, type SlotName } from "../../boot/layout.ts";
import type { BootRecord } from "../../boot/record.ts";
import { SlotRefusal } from "../../boot/slots.ts";
import { type Call, type Command, command, type Outcome, Refusal } from "../commands.ts";
import { explainBoot } from "./explain.ts";
import { floorOf } from "./floor.ts";
import { MOST_ROUNDS } from "./quarantine.ts";
import type { BootOptions } from "./service.ts";
import type { Kept, Slots } from "./slots.ts";
import type { BootStatus } from "./status.ts";
import { identified, refuseDamaged } from "./target.ts";

const Flag = v.optional(v.boolean(), false);

/** A call's person. */
const by = ({ caller, reason = "" }: Call<unknown>) => ({ who: caller.who, reason });

/** The rows of the command table. */
export function bootCommands(slots: Slots, options: BootOptions): Command[] {
  return [
    command({
      verb: "boot.status",
      summary: "Which slot runs, what is on trial, and what happened last",
      tier: 0,
      role: "read",
      args: v.strictObject({}),
      run: async () => ({ state: "done", result: await statusOf(slots) }),
    }),
    command({
      verb: "boot.history",
      summary: "What was installed, tried, kept and given up, with cause and evidence",
      tier: 0,
      role: "read",
      args: v.strictObject({
        last: v.optional(v.pipe(v.number(), v.integer(), v.minValue(1), v.maxValue(100)), 20),
      }),
      run: async ({ args }) => ({
        state: "done",
        result: { lines: await slots.kept.history.tail(args.last) },
      }),
    }),
    command({
      verb: "boot.explain",
      summary: "Why this node did or did not update, or rolled back",
      tier: 0,
      role: "read",
      args: v.strictObject({}),
      run: async () => {
        const status = await statusOf(slots);
        const { history } = slots.kept;
        return { state: "done", result: { sentences: explainBoot(status, await history.tail(100)), status } };
      },
    }),
    command({
      verb: "boot.try",
      summary: "Starts the staged slot on trial; with no_reboot at the next start",
      tier: 3,
      role: "update",
      args: v.strictObject({ no_reboot: Flag, force: Flag }),
      run: (call) => refusing(() => tryOut(slots, options, call)),
    }),
    command({
      verb: "boot.confirm",
      summary: "Makes the slot on trial the good one, once all its checks are good",
      tier: ({ force }) => (force ? 3 : 2),
      role: "update",
      args: v.strictObject({ force: Flag }),
      run: (call) => refusing(() => confirm(slots, call)),
    }),
    command({
      verb: "boot.rollback",
      summary: "Back to the other slot: off a trial, or to the other good one",
      tier: 3,
      role: "update",
      args: v.strictObject({ no_reboot: Flag }),
      run: (call) => refusing(() => rollBack(slots, options, call)),
    }),
  ];
}

/** As it is on the card now. */
async function statusOf(slots: Slots): Promise<BootStatus> {
  slots.kept; // throws where there is nothing to look at
  return slots.look();
}

/** The rules of the slots themselves. */
async function refusing(run: () => Promise<Outcome>): Promise<Outcome> {
  try {
    return await run();
  } catch (error) {
    if (error instanceof SlotRefusal) throw new Refusal("slot", error.message);
    throw error;
  }
}

/** The slot that runs and the record; a system that runs from neither has nothing to decide. */
async function here(slots: Slots): Promise<{ kept: Kept; record: BootRecord; current: SlotName }> {
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

async function tryOut(
  slots: Slots,
  options: BootOptions,
  call: Call<{ no_reboot: boolean; force: boolean }>,
): Promise<Outcome> {
  const { kept, record: before, current } = await here(slots);
  const { args } = call;
  const slot = otherSlot(current);
  if (current !== before.primary)
    throw new Refusal(
      "on-trial",
      before.trial
        ? `slot ${current} is on trial itself; 'fruit boot status' says how it stands`
        : `this node starts from slot ${slot} next: reboot it first`,
    );
  const record = await identified(kept.card, options.dataDir, slot, before, call.signal);
  refuseTry(slots, options, kept, record, slot, args.force);
  if (!args.force) refuseShort(kept.baseline.missing(slots.seen()));
  const again = record.slots[slot].state === "trying";
  if (args.force) await kept.keeper.release(slot, record, by(call));
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
        by: call.caller.who,
        baseline: slots.facts,
      },
      options.config.tries,
    );
  }
  await slots.look();
  if (!args.no_reboot) slots.reboot(`slot ${slot} is to be tried: ${call.reason}`);
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

async function confirm(slots: Slots, call: Call<{ force: boolean }>): Promise<Outcome> {
  const { kept, record, current } = await here(slots);
  const { trying } = slots;
  if (current === record.primary || !trying) return confirmNothing(record, current);
  const { missing } = trying;
  if (missing.length > 0 && !call.args.force)
    throw new Refusal(
      "on-trial",
      `not good yet: ${missing.map(({ name, message }) => `${name} (${message})`).join(", ")}; wait, or --force --reason TEXT`,
    );
  await trying.begun();
  const evidence = missing.map(({ name, message }) => `in spite of ${name}: ${message}`);
  await kept.keeper.confirm(current, evidence, by(call));
  trying.end("good");
  await slots.look();
  return { state: "done", message: `slot ${current} (version ${record.slots[current].version}) is good` };
}

function confirmNothing(record: BootRecord, current: SlotName): Outcome {
  const { state, version, reason } = record.slots[otherSlot(current)];
  if (current !== record.primary)
    throw new Refusal("slot", `slot ${current} runs, is ${record.slots[current].state} and not on trial`);
  if (state === "failed")
    throw new Refusal(
      "rolled-back",
      `version ${version} was given up (${reason}) and slot ${current} runs; 'fruit boot explain' says why`,
    );
  return {
    state: "unchanged",
    message: `slot ${current} is ${record.slots[current].state}; nothing is on trial`,
  };
}

async function rollBack(
  slots: Slots,
  { isPowerBusy, dataDir }: BootOptions,
  call: Call<{ no_reboot: boolean }>,
): Promise<Outcome> {
  const { kept, record, current } = await here(slots);
  if (isPowerBusy()) throw new Refusal("busy", "this node is switching power for others; wait for that");
  const other = otherSlot(current);
  if (current === record.primary && record.trial) {
    await kept.keeper.rollBack(record, other, by(call));
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
    record.slots[other].state === "good" &&
    (await refuseDamaged(kept.card, dataDir, other, record, call.signal));
  // Reading takes its time
  if (isPowerBusy()) throw new Refusal("busy", "this node is switching power for others; wait for that");
  await slots.trying?.begun();
  await kept.keeper.rollBack(record, current, by(call));
  slots.trying?.end("failed");
  await slots.look();
  if (!call.args.no_reboot) slots.reboot(`back to slot ${other}: ${call.reason}`);
  return {
    state: "done",
    message: `back to slot ${other} (version ${version})${isUnread ? ", which was not read through, since its hash is not known" : ""}${call.args.no_reboot ? " at the next start" : ": this node starts anew"}`,
    result: { slot: other, reboot_needed: call.args.no_reboot },
  };
}
