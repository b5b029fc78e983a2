/** What can be asked of a node's slots. */
import * as v from "valibot";
import { otherSlot, type SlotName } from "../../boot/layout.ts";
import type { BootRecord } from "../../boot/record.ts";
import { type Call, type Command, command, type Outcome, Refusal } from "../commands.ts";
import { here, refusing, rollBack, tryOut } from "./decide.ts";
import { explainBoot } from "./explain.ts";
import type { Slots } from "./slots.ts";
import type { BootStatus } from "./status.ts";

const Flag = v.optional(v.boolean(), false);

/** A call's person. */
const by = ({ caller, reason = "" }: Call<unknown>) => ({ who: caller.who, reason });
const decided = <Args>(call: Call<Args>) => ({ args: call.args, by: by(call), signal: call.signal });

/** The rows of the command table. */
export function bootCommands(slots: Slots): Command[] {
  return [
    command({
      verb: "boot.status",
      summary: "Which slot runs, what is on trial, and what happened last",
      tier: 0,
      role: "read",
      args: v.strictObject({}),
      run: async () => ({ state: "done", result: await statusOf(slots) }),
    }),
    historyOf(slots, "boot.history", "What was installed, tried, kept and given up, with cause and evidence"),
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
      run: (call) => tryOut(slots, decided(call)),
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
      run: (call) => rollBack(slots, decided(call)),
    }),
  ];
}

/** The row that tells a node's one history; slots and updates both have it. */
export const historyOf = (slots: Slots, verb: string, summary: string): Command =>
  command({
    verb,
    summary,
    tier: 0,
    role: "read",
    args: v.strictObject({
      last: v.optional(v.pipe(v.number(), v.integer(), v.minValue(1), v.maxValue(100)), 20),
    }),
    run: async ({ args }) => ({
      state: "done",
      result: { lines: await slots.kept.history.tail(args.last) },
    }),
  });

/** As it is on the card now. */
async function statusOf(slots: Slots): Promise<BootStatus> {
  slots.kept; // throws where there is nothing to look at
  return slots.look();
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
