/** `fruit boot explain`: why this node did or did not update, or rolled back, in sentences with their evidence. */
import { otherSlot, type SlotName } from "../../boot/layout.ts";
import { counted, lasting } from "../terminal.ts";
import type { HistoryLine } from "./history.ts";
import { MOST_ROUNDS } from "./quarantine.ts";
import type { BootStatus } from "./status.ts";

/** What can be said, most important first. */
export function explainBoot(status: BootStatus, history: readonly HistoryLine[]): string[] {
  const { running, primary } = status;
  const home = running ?? primary;
  return [
    running === undefined
      ? `This system runs from neither slot; the node starts from slot ${primary}.`
      : `This node runs ${named(status, running)}${running === primary ? "" : `, and starts from slot ${primary}`}.`,
    ...loop(status),
    ...trial(status),
    ...other(status, otherSlot(home), history),
    ...since(home, status, history),
  ];
}

const named = ({ slots }: BootStatus, slot: SlotName) =>
  `${slots[slot].version ? `version ${slots[slot].version}` : "an unknown version"} from slot ${slot} (${slots[slot].state})`;

function loop({ loop }: BootStatus): string[] {
  return loop === undefined
    ? []
    : [
        `It was started ${loop} times without staying up: nothing is tried or installed by itself until it does.`,
      ];
}

function trial({ trial }: BootStatus): string[] {
  if (!trial) return [];
  if (!trial.running)
    return [
      `Version ${trial.version} in slot ${trial.slot} is to be tried at the next start; it has been started ${trial.started} times, ${trial.tries_left} tries are left.`,
    ];
  const missing = (trial.checks ?? []).filter(({ state }) => state !== "good");
  return [
    `Version ${trial.version} is on trial: try ${trial.started}, ${trial.tries_left} tries left${trial.left_s === undefined ? "" : `, to be decided within ${lasting(trial.left_s)}`}.`,
    missing.length === 0
      ? "Every check is good; it becomes good once they have stayed so."
      : `It is not good yet because of ${missing.map(({ name, state, message }) => `${name} (${state}: ${message})`).join("; ")}.`,
  ];
}

/** The slot that does not run. */
function other(status: BootStatus, slot: SlotName, history: readonly HistoryLine[]): string[] {
  const { state, version = "unknown", reason, hash } = status.slots[slot];
  const told = history.findLast(
    (line) => line.slot === slot && (hash === undefined || line.hash === hash) && TOLD.includes(line.what),
  );
  const evidence = told?.evidence?.length ? ` Evidence: ${told.evidence.join("; ")}.` : "";
  switch (state) {
    case "failed":
      return [
        `Version ${version} in slot ${slot} was given up${when(told)}: ${REASONS[reason ?? ""] ?? reason ?? "nobody knows why"}.${byWhom(told)}${evidence}`,
        ...held(status, false),
        ...(isHeld(status) ? [] : ["The release itself is not blamed: it may be installed again."]),
      ];
    case "staged":
      return [
        ...held(status, true),
        isHeld(status)
          ? `Version ${version} is whole in slot ${slot}.`
          : `Version ${version} is whole in slot ${slot} and ${status.rounds === undefined ? "was not tried yet" : "can be tried again"}: 'fruit boot try --reason TEXT' does.`,
      ];
    case "trying":
      return held(status, true);
    case "writing":
      return [
        `Slot ${slot} is being written, or was when the power went; 'fruit update install' goes on with it.`,
      ];
    case "good":
      return [
        ...(reason === "by-hand" && told?.by !== undefined
          ? [`Somebody went back from version ${version}${when(told)}.${byWhom(told)}`]
          : []),
        `Version ${version} in slot ${slot} is good too: 'fruit boot rollback --reason TEXT' goes back to it.`,
      ];
    case "empty":
      return [`Slot ${slot} is empty: nothing was installed there.`];
    default:
      return [];
  }
}

/** Whether only a person's word has the other slot's release tried. */
const isHeld = ({ quarantined, rounds = 0 }: BootStatus) =>
  quarantined !== undefined || rounds >= MOST_ROUNDS;

/** What is held against the release in the other slot, and what to do about it, there or once it was installed again. */
function held({ quarantined, rounds = 0, suspected = [] }: BootStatus, isThere: boolean): string[] {
  const force = "'fruit boot try --force --reason TEXT' does it all the same";
  // An install of what is blamed is refused as well
  const again = isThere ? "" : "'fruit update install FILE --force' puts it there again, and ";
  if (quarantined !== undefined)
    return [`The release is blamed (${quarantined}) and not tried again by itself; ${again}${force}.`];
  if (rounds === 0) return [];
  const count = `${counted(rounds, "trial")} of it ended without proof against it`;
  const suspicion =
    suspected.length === 0
      ? []
      : [
          `It is under suspicion (${suspected.join(", ")}): what is around this node may have been the cause, but when a second trial ends so the release is blamed. See to network, supply and cables before the next.`,
        ];
  return [
    rounds >= MOST_ROUNDS
      ? `${count}: it is not tried any more until somebody has found out why; ${isThere ? "" : "once it was installed again, "}${force}.`
      : `${count}; after ${MOST_ROUNDS} it is not tried any more.`,
    ...suspicion,
  ];
}

const TOLD: readonly HistoryLine["what"][] = ["failed", "rolled-back", "fallen-back"];

const REASONS: Record<string, string> = {
  "tries-spent":
    "all its tries were used up before it could be decided, and nothing shows that it is to blame",
  "files-damaged": "what is on the card is not what was signed",
  "check-failed": "a check said no until the deadline",
  "fatal-check": "a check that must not fail said no",
  deadline: "its checks were not all good by the deadline",
  "agent-dead": "its agent was dead",
  "never-came-up": "it was started, and nothing was heard of it",
  "switch-failed": "nothing of it was seen to start, so that nothing is held against the release",
  "starts-spent":
    "it was good, and was then started again and again without staying up, so that the other slot took its place",
  "by-hand": "somebody wanted it so",
};

function since(slot: SlotName, { slots }: BootStatus, history: readonly HistoryLine[]): string[] {
  const line = history.findLast(({ what, hash }) => what === "confirmed" && hash === slots[slot].hash);
  return line ? [`Version ${line.version} became good${when(line)}.${byWhom(line)}`] : [];
}

const when = (line: HistoryLine | undefined) =>
  line === undefined
    ? ""
    : line.clock === "synced"
      ? ` on ${line.ts}`
      : ` about ${line.ts} (the clock was not right)`;
const byWhom = (line: HistoryLine | undefined) =>
  line?.by === undefined ? "" : ` ${line.by}${line.cause ? `: ${line.cause}` : ""}.`;
