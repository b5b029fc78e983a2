/** How slots look on a terminal. */

import { SLOTS } from "../../boot/layout.ts";
import type { Copies } from "../../boot/records.ts";
import { counted, lasting, printable, table } from "../terminal.ts";
import type { HistoryLine } from "./history.ts";
import { MOST_ROUNDS } from "./quarantine.ts";
import type { BootStatus, LastStatus } from "./status.ts";

/** `fruit boot status`: the few lines a technician needs. */
export function statusText(status: BootStatus): string {
  const { running, primary, trial, slots, last, loop, quarantined, rounds, suspected } = status;
  const lines: [string, string][] = [
    [
      "running",
      running === undefined
        ? "neither slot (rescue?)"
        : `slot ${running}, ${versionOf(status, running)}, ${slots[running].state}`,
    ],
    ["starts", `slot ${primary}, chosen by ${status.switch} on ${status.disk}`],
    ["trial", trialText(trial)],
    ["last", last ? lastText(last) : "nothing is known"],
    ...(loop === undefined
      ? []
      : [["loop", `${loop} starts without staying up: nothing is tried by itself`] as [string, string]]),
    ...(quarantined === undefined
      ? []
      : [["blamed", `the other slot's release: ${quarantined}`] as [string, string]]),
    ...(quarantined !== undefined || rounds === undefined
      ? []
      : [["doubted", doubtText(rounds, suspected)] as [string, string]]),
  ];
  const rows = SLOTS.map((slot) => {
    const { state, version = "-", hash = "-", bytes, reason = "-" } = slots[slot];
    return [slot, state, version, hash, bytes === undefined ? "-" : String(bytes), reason];
  });
  return [
    ...lines.map(([name, what]) => `${name.padEnd(9)}${printable(what)}\n`),
    "\n",
    table([["SLOT", "STATE", "VERSION", "HASH", "BYTES", "REASON"], ...rows]),
    ...(trial?.checks ? ["\n", checksText(trial.checks)] : []),
  ].join("");
}

const versionOf = ({ slots }: BootStatus, slot: "a" | "b") => `version ${slots[slot].version ?? "unknown"}`;

function trialText(trial: BootStatus["trial"]): string {
  if (!trial) return "none";
  const { slot, version, running, started, tries_left, left_s } = trial;
  const left = `${counted(tries_left, "try", "tries")} left`;
  if (!running) return `slot ${slot}, version ${version}: at the next start, ${left}`;
  return `slot ${slot}, version ${version}: try ${started}, ${left}${left_s === undefined ? "" : `, decided within ${lasting(left_s)}`}`;
}

function doubtText(rounds: number, suspected: readonly string[] = []): string {
  const why = suspected.length > 0 ? ` (${suspected.join(", ")})` : "";
  return `the other slot's release: ${counted(rounds, "round", "rounds")} of ${MOST_ROUNDS} without proof against it${why}`;
}

function lastText({ what, version, slot, cause, evidence, by, ts, clock }: LastStatus): string {
  const which = [version && `version ${version}`, slot && `slot ${slot}`].filter(Boolean).join(", ");
  const why = [cause, evidence?.[0]].filter(Boolean).join(": ");
  return `${what} ${which} at ${ts}${clock === "synced" ? "" : "?"}${why ? ` (${why})` : ""}${by ? ` by ${by}` : ""}`;
}

function checksText(checks: NonNullable<NonNullable<BootStatus["trial"]>["checks"]>): string {
  const rows = checks.map(({ name, state, message, good_for_s }) => [
    name,
    state,
    good_for_s === undefined ? "-" : lasting(good_for_s),
    printable(message),
  ]);
  return table([["CHECK", "STATE", "FOR", "WHAT"], ...rows]);
}

/** `fruit boot history`. */
export function historyText(lines: readonly HistoryLine[]): string {
  const rows = lines.map((line) => [
    line.clock === "synced" ? line.ts : `${line.ts}?`,
    line.what,
    line.slot ?? "-",
    line.version ?? "-",
    line.trial === undefined ? "-" : `${line.trial}${line.attempt === undefined ? "" : `.${line.attempt}`}`,
    [line.cause, line.by && `by ${line.by}`, ...(line.evidence ?? [])].filter(Boolean).join("; ") || "-",
  ]);
  return table(
    [["TIME", "WHAT", "SLOT", "VERSION", "TRIAL", "WHY"], ...rows].map((row) => row.map(printable)),
  );
}

/** `fruit boot records`: the four places as they are. */
export function recordsText({ all, newest }: Copies): string {
  const rows = all.map(({ place, offset, record, why }) =>
    record
      ? [
          `${place}${place === newest?.place ? "*" : ""}`,
          String(offset),
          String(record.sequence),
          String(record.format),
          record.primary,
          record.trial
            ? `${record.trial.id}: ${record.trial.triesLeft} left, ${record.trial.started} started`
            : "-",
          ...SLOTS.map((slot) => `${record.slots[slot].state} ${record.slots[slot].version}`),
          record.reason,
        ]
      : [String(place), String(offset), "-", "-", "-", "-", "-", "-", why ?? "no record"],
  );
  return table([["PLACE", "BYTE", "SEQUENCE", "FORMAT", "PRIMARY", "TRIAL", "A", "B", "REASON"], ...rows]);
}
