/** How consoles look to people. */
import type { ConsoleState } from "../messages.ts";
import { person } from "../power/show.ts";
import { counted, lasting, printable, table } from "../terminal.ts";
import { escapeWord } from "./keys.ts";
import type { WhoLine } from "./openings.ts";
import type { ListLine } from "./port.ts";

const LIST = "NAME DEVICE BAUD STATE WRITER READERS SINCE IDLE KEPT RECORD OUTLET".split(" ");
const WHO = "CONSOLE NO WHO DOOR MAY SINCE IDLE IN OUT".split(" ");

/** The table of consoles, with the reason behind each line that is gone. */
export function listTable(consoles: readonly ListLine[], now: number): string {
  if (consoles.length === 0) return "no consoles\n";
  const rows = consoles.map((line) => [
    line.name,
    line.device,
    String(line.baud),
    line.state,
    line.writer === null ? "-" : person(line.writer),
    String(line.readers),
    ago(line.since, now),
    idle(line),
    String(line.kept_bytes ?? "-"),
    String(line.record_bytes ?? "-"),
    line.outlet ?? "-",
    ...(line.error ? [printable(line.error)] : []),
  ]);
  return table([LIST, ...rows]);
}

/** The table of those who are attached. */
export function whoTable(attached: readonly WhoLine[], now: number): string {
  if (attached.length === 0) return "nobody\n";
  const rows = attached.map((line) => [
    line.console,
    String(line.number ?? "-"),
    printable(person(line.who)),
    line.door,
    line.writes ? "write" : "read",
    ago(line.since, now),
    idle(line),
    String(line.bytes_in),
    String(line.bytes_out),
  ]);
  return table([WHO, ...rows]);
}

function idle({ idle_seconds }: { idle_seconds?: number }): string {
  return idle_seconds === undefined ? "-" : lasting(idle_seconds);
}

function ago(since: string | undefined, now: number): string {
  return since === undefined ? "-" : lasting((now - Date.parse(since)) / 1000);
}

/** What a person is told when they are attached: which line, whether they may type, and how to get out. */
export function banner(
  { name, device, baud, outlet, state, error, writer, readers }: ConsoleState,
  options: { mayWrite: boolean; wants: "write" | "read"; escape: number | undefined; isThroughSsh: boolean },
): string {
  const place = [device, `${baud} baud`, ...(outlet === undefined ? [] : [`outlet ${outlet}`])].join(", ");
  const line = state === "up" ? place : `${place}, gone${error ? ` (${error})` : ""}`;
  // Whoever does not write is one of the readers
  const others = readers - (options.mayWrite ? 0 : 1);
  const company = others > 0 ? [counted(others, "other reads", "others read")] : [];
  return [
    `${name}: ${line}`,
    rights(writer, options),
    ...company,
    ...ways(options.escape, options.isThroughSsh),
  ].join("; ");
}

function rights(writer: string | null, { mayWrite, wants }: { mayWrite: boolean; wants: string }): string {
  if (mayWrite) return "you may type";
  if (writer !== null) return `you read, ${person(writer)} writes`;
  return wants === "read" ? "you read" : "you read, nobody writes";
}

function ways(character: number | undefined, isThroughSsh: boolean): string[] {
  if (character === undefined) return [];
  const word = escapeWord(character);
  const leave = isThroughSsh && word === "~" ? "~~. through ssh" : `${word}.`;
  return [`Enter ${leave} leaves, ${word}? helps`];
}

/** Why nothing can be typed there now, if the line is the reason. */
export function goneWords(view: ConsoleState | undefined): string | undefined {
  return view?.state === "gone" ? `the line is gone${view.error ? ` (${view.error})` : ""}` : undefined;
}
