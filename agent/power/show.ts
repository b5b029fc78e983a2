/** How power looks to people. */
import type { OutletState } from "../messages.ts";
import { lasting, table } from "../terminal.ts";

/** What `power.status` says of one board. */
export interface BoardLine {
  board: number;
  input_volts?: number;
  input_amperes?: number;
  rail_volts?: number;
  error?: string;
}

/** What a lock wants where somebody named none, or several. */
export const ONE_OUTLET = "one outlet at a time: an id (0.1) or a name";

const HEADING = "OUTLET NAME SUPPLY HOST VOLT AMP WATT SINCE BY LOCK".split(" ");

/** `local:alice` and `key:alice@desk` as people say it; the fields of messages keep the whole. */
export function person(who: string): string {
  return who.replace(/^(local|key):/, "");
}

/** `17:30 UTC`, with the day when it is not today. */
export function clockTime(iso: string, now: number): string {
  const [day, time] = iso.split("T");
  const today = new Date(now).toISOString().slice(0, 10);
  return `${day === today ? "" : `${day} `}${time?.slice(0, 5)} UTC`;
}

/** `1.0 rack1-c`: how an outlet is called on every line about it. */
export function labelOf({ outlet, name }: { outlet: string; name?: string | undefined }): string {
  return name ? `${outlet} ${name}` : outlet;
}

/** The table of outlets with the input of each board below it. */
export function statusTable(
  outlets: readonly OutletState[],
  boards: readonly BoardLine[],
  now: number,
): string {
  const rows = outlets.map((state) => [
    state.outlet,
    state.name ?? "-",
    state.supply,
    state.busy ? `${state.host} (${state.busy})` : state.host,
    number(state.volts, 2),
    number(state.amperes, 2),
    number(state.watts, 1),
    state.since ? lasting((now - Date.parse(state.since)) / 1000) : "-",
    whoOf(state),
    lockWords(state.lock, now),
    ...(state.error ? [state.error] : []),
  ]);
  return table([HEADING, ...rows]) + boards.map((board) => inputLine(board, boards.length > 1)).join("");
}

function number(value: number | undefined, digits: number): string {
  return value === undefined ? "-" : value.toFixed(digits);
}

function whoOf({ by, cause }: OutletState): string {
  if (by) return person(by);
  return cause === "external" ? "external" : "-";
}

function lockWords(lock: OutletState["lock"], now: number): string {
  if (!lock) return "-";
  return `${person(lock.owner)} until ${clockTime(lock.until, now)}${lock.reason ? ` (${lock.reason})` : ""}`;
}

function inputLine(
  { board, input_volts, input_amperes, rail_volts, error }: BoardLine,
  isOneOfMany: boolean,
): string {
  const which = isOneOfMany ? `board ${board}  ` : "";
  if (error) return `${which}input unknown: ${error}\n`;
  const words = [
    ...(input_volts === undefined ? [] : [`${input_volts.toFixed(2)} V`]),
    ...(input_amperes === undefined ? [] : [`${input_amperes.toFixed(2)} A`]),
    ...(rail_volts === undefined ? [] : [` 5 V rail ${rail_volts.toFixed(2)} V`]),
  ];
  return words.length > 0 ? `${which}input ${words.join("  ")}\n` : "";
}

/** What changed between two looks at an outlet, in words; undefined when nothing a person waits for. */
export function changeWords(before: OutletState, after: OutletState): string | undefined {
  const changes: [unknown, unknown, string][] = [
    [before.supply, after.supply, `supply ${before.supply} -> ${after.supply}${whyWords(after)}`],
    [before.host, after.host, `host ${before.host} -> ${after.host}`],
    [before.busy, after.busy, after.busy ? `${after.busy} under way` : `${before.busy} ended`],
    [
      before.lock?.owner,
      after.lock?.owner,
      after.lock ? `locked by ${person(after.lock.owner)}` : "unlocked",
    ],
    [before.error, after.error, after.error ?? "its board answers again"],
  ];
  const words = changes.filter(([was, is]) => was !== is).map(([, , what]) => what);
  return words.length > 0 ? `${labelOf(after)}: ${words.join(", ")}` : undefined;
}

function whyWords({ by, reason }: OutletState): string {
  if (!by) return "";
  return ` (${person(by)}${reason ? `: ${reason}` : ""})`;
}

/** The table of locks. */
export function lockTable(
  locks: readonly { outlet: string; owner: string; since: string; until: string; reason: string }[],
  now: number,
): string {
  if (locks.length === 0) return "no locks\n";
  return table([
    ["OUTLET", "OWNER", "SINCE", "UNTIL", "REASON"],
    ...locks.map(({ outlet, owner, since, until, reason }) => [
      outlet,
      person(owner),
      clockTime(since, now),
      clockTime(until, now),
      reason || "-",
    ]),
  ]);
}
