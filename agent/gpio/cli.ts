/** What a technician types about GPIO lines. */
import { parseArgs } from "node:util";
import type { CommandResult } from "../commands.ts";
import { printJson } from "../power/answer.ts";
import { type CliVerb, type Exit, exitOf, seconds, table, UsageError } from "../terminal.ts";
import type { LineValue, ListedLine } from "./service.ts";
import { parseChange } from "./watch.ts";

type Context = Parameters<CliVerb["run"]>[0];

/** Beyond the time it was asked for, a watch or a pulse answers within this. */
const ANSWER_MS = 15_000;

/** The verbs of `fruit gpio`. */
export const GPIO_VERBS: readonly CliVerb[] = (
  [
    ["gpio list", "", "the lines of this node, and who uses them", list],
    ["gpio get", "[LINE…]", "reads lines that node.json names; 1 is active", get],
    ["gpio set", "LINE 0|1 [--reason TEXT]", "drives an output and reads it back", set],
    [
      "gpio pulse",
      "LINE [250ms] [--reason TEXT]",
      "makes an output the opposite for a moment, and back",
      pulse,
    ],
    [
      "gpio watch",
      "LINE… [--for 60s]",
      "prints how inputs are and each change; with --json an object a line",
      watch,
    ],
  ] as const
).map(([words, synopsis, summary, run]) => ({ words, synopsis, summary, needsAgent: true, run }));

async function list(context: Context): Promise<Exit> {
  parseArgs({ args: context.args });
  return print(context, "gpio.list", await context.send("gpio.list", {}), (result) => {
    const { lines } = result as { lines: ListedLine[] };
    if (lines.length === 0) return "the kernel shows no GPIO lines here\n";
    const rows = lines.map(({ gpio, label, line, direction, used_by }) => [
      `GPIO${gpio}`,
      label ?? "-",
      direction,
      line ?? "-",
      used_by ?? "-",
    ]);
    return table([["GPIO", "LABEL", "DIRECTION", "LINE", "USED BY"], ...rows]);
  });
}

async function get(context: Context): Promise<Exit> {
  const { positionals } = parseArgs({ args: context.args, allowPositionals: true });
  const answer = await context.send("gpio.get", positionals.length > 0 ? { lines: positionals } : {});
  return print(context, "gpio.get", answer, (result) =>
    (result as { lines: LineValue[] }).lines.map(({ line, value }) => `${line} ${value}\n`).join(""),
  );
}

async function set(context: Context): Promise<Exit> {
  const { values, positionals } = parseArgs(acting(context));
  const [line, value, ...more] = positionals;
  if (line === undefined || (value !== "0" && value !== "1") || more.length > 0)
    throw new UsageError("which line, and 0 or 1?");
  const answer = await context.send("gpio.set", { line, value: Number(value) }, reasonOf(values));
  return print(context, "gpio.set", answer, (result) => {
    const { line, value } = result as LineValue;
    return `${line} ${value}\n`;
  });
}

async function pulse(context: Context): Promise<Exit> {
  const { values, positionals } = parseArgs(acting(context));
  const [line, time, ...more] = positionals;
  if (line === undefined || more.length > 0) throw new UsageError("which line, and for how long?");
  const ms = time === undefined ? undefined : milliseconds(time);
  const answer = await context.send("gpio.pulse", ms === undefined ? { line } : { line, ms }, {
    ...reasonOf(values),
    timeoutMs: (ms ?? 60_000) + ANSWER_MS,
  });
  return print(context, "gpio.pulse", answer, (result) => {
    const { line, value, ms } = result as LineValue & { ms: number };
    return `${line} was ${value ? 0 : 1} for ${ms} ms and is ${value} again\n`;
  });
}

async function watch(context: Context): Promise<Exit> {
  const { io, json } = context;
  const { values, positionals } = parseArgs({
    args: context.args,
    allowPositionals: true,
    options: { for: { type: "string" } },
  });
  if (positionals.length === 0) throw new UsageError("which line?");
  const lasts = values.for === undefined ? 60 : seconds("--for", values.for);
  const say = ({ state, message = "" }: CommandResult) => {
    const change = state === "running" ? parseChange(message) : undefined;
    if (change)
      io.out(json ? `${JSON.stringify({ schema: "fruit.gpio.watch/1", ...change })}\n` : `${message}\n`);
  };
  const answer = await context.send(
    "gpio.watch",
    { lines: positionals, seconds: lasts },
    { onProgress: say, timeoutMs: lasts * 1000 + ANSWER_MS },
  );
  const exit = exitOf(answer);
  if (answer.message) io.err(`fruit: ${answer.message}\n`);
  return exit;
}

const acting = ({ args }: Context) =>
  ({ args, allowPositionals: true, options: { reason: { type: "string" } } }) as const;

const reasonOf = ({ reason }: { reason?: string | undefined }) => (reason === undefined ? {} : { reason });

/** Reads `250ms`, `250` and `2s` as milliseconds. */
function milliseconds(text: string): number {
  const [, number, unit] = /^(\d+(?:\.\d+)?)(ms|s)?$/.exec(text) ?? [];
  if (number === undefined) throw new UsageError(`"${text}" is no time for a pulse (try 250ms or 2s)`);
  return Number(number) * (unit === "s" ? 1000 : 1);
}

function print(
  context: Context,
  verb: string,
  answer: CommandResult,
  human: (result: unknown) => string,
): Exit {
  const { io, json } = context;
  const { message, result } = answer;
  if (json) printJson(context, verb, answer);
  else if (result !== undefined) io.out(human(result));
  if (message) io.err(`fruit: ${message}\n`);
  return exitOf(answer);
}
