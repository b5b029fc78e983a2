import type { BootRecord } from "../../boot/record.ts";
import type { SwitchKind } from "../../boot/switch.ts";
import type { Log } from "../log.ts";
import type { RaiseAlarm } from "../messages.ts";
import type { Keeper, OldSlot } from "./keeper.ts";
import type { Verdict } from "./verdict.ts";

/** What is known besides the verdict, and what can be done about it. */
export interface Situation {
  keeper: Keeper;
  record: BootRecord;
  kind: SwitchKind;
  /** Nothing is started anew by itself. */
  isLoop: boolean;
  old: OldSlot;
  reboot(why: string): void;
  alarm: RaiseAlarm;
  log: Log;
}

/** Does what follows from the verdict about a start that is no trial. Returns what is left to do when things have changed. */
export async function settle(verdict: Verdict, situation: Situation): Promise<Verdict> {
  const { keeper, record, alarm } = situation;
  const words = concern(verdict, situation);
  alarm("boot-trial", words === undefined ? null : { severity: "warning", message: words });
  switch (verdict.is) {
    case "confirmed":
      await keeper.confirmed(record, verdict.slot, ["found so in the record"]);
      return { is: "good" };
    case "fallen-back":
      await keeper.fallenBack(record, verdict.slot, verdict.cause, situation.old);
      return { is: "good" };
    case "failed": {
      const isOver = await keeper.settleFailed(record, verdict, situation.old);
      return isOver ? { is: "good" } : verdict;
    }
    case "armed":
    case "doomed":
      again(verdict, situation);
      return verdict;
    default:
      return verdict;
  }
}

/** What a person has to see to. */
function concern(verdict: Verdict, { record, kind }: Situation): string | undefined {
  if (verdict.is === "doomed")
    return `slot ${verdict.slot} runs and is ${record.slots[verdict.slot].state}; slot ${record.primary} is the one to start from`;
  // The firmware comes back after each try; U-Boot does not
  if (verdict.is === "armed" && verdict.isOverdue && kind === "uboot")
    return `slot ${verdict.slot} was to be tried and was not started; 'fruit boot try' starts it, 'fruit boot rollback' gives it up`;
  return undefined;
}

/** Another start is needed, where that cannot go on for ever. */
function again(
  verdict: Extract<Verdict, { is: "armed" | "doomed" }>,
  { record, kind, isLoop, reboot, log }: Situation,
): void {
  const { slot } = verdict;
  const isNext =
    verdict.is === "armed" ? verdict.isOverdue && kind === "tryboot" : record.slots[slot].state === "failed";
  if (!isNext) return;
  log("warn", "boot.again", { slot, is: verdict.is, stays: isLoop });
  if (!isLoop) reboot(verdict.is === "armed" ? `slot ${slot} is tried again` : `slot ${slot} has failed`);
}
