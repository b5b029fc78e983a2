/** What a technician types about power. */
import { parseArgs } from "node:util";
import type { Lock } from "../messages.ts";
import { type CliVerb, type Exit, seconds, table, UsageError } from "../terminal.ts";
import { type Context, explain, needed, print, printJson, wordsOf } from "./answer.ts";
import { present } from "./fields.ts";
import type { PolicyResult } from "./policy.ts";
import type { OutletResult } from "./result.ts";
import type { SwitchVerb } from "./rules.ts";
import { labelOf, lockTable, ONE_OUTLET, statusTable } from "./show.ts";
import { askStatus, type Looked, watch } from "./watch.ts";

/** Grace, confirmation twice, boot, and the turns of a whole rack fit in; what the flags add comes on top. */
const ANSWER_MS = 600_000;
const SCAN_MS = 200_000;
async function status(context: Context): Promise<Exit> {
  const { positionals } = parseArgs({ args: context.args, allowPositionals: true });
  const answer = await askStatus(context, wordsOf(positionals));
  return print(context, "power.status", answer, () => {
    const { outlets, boards } = answer.result as Looked;
    return statusTable(outlets, boards, Date.now());
  });
}

const SWITCH_OPTIONS = {
  force: { type: "boolean" },
  self: { type: "boolean" },
  yes: { type: "boolean" },
  "dry-run": { type: "boolean" },
  "no-wait": { type: "boolean", default: false },
  "off-time": { type: "string" },
  timeout: { type: "string" },
  reason: { type: "string" },
} as const;

function switching(verb: SwitchVerb): CliVerb["run"] {
  return async (context) => {
    const { io, json, send } = context;
    const { values, positionals } = parseArgs({
      args: context.args,
      allowPositionals: true,
      options: SWITCH_OPTIONS,
    });
    const { force, self, yes, "dry-run": dry_run } = values;
    const duration = (flag: "off-time" | "timeout") =>
      values[flag] === undefined ? undefined : seconds(`--${flag}`, values[flag]);
    const [off_time_seconds, timeout_seconds] = [duration("off-time"), duration("timeout")];
    const args = present({ force, self, yes, dry_run, off_time_seconds, timeout_seconds });
    const said = new Set<string>();
    const say = (line: string) => {
      if (!json && !said.has(line)) io.out(`${line}\n`);
      said.add(line);
    };
    const answer = await send(
      `power.${verb}`,
      { outlets: needed(positionals), wait: !values["no-wait"], ...args },
      {
        ...present({ reason: values.reason }),
        onProgress: ({ state, message }) => {
          if (state === "running" && message !== undefined) say(message);
        },
        timeoutMs: ANSWER_MS + ((off_time_seconds ?? 0) + (timeout_seconds ?? 0)) * 1000,
      },
    );
    if (json) printJson(context, `power.${verb}`, answer);
    // A door that drops progress on the way still delivers the steps with the result.
    return explain(context, answer, (result: OutletResult) => {
      for (const { what } of result.steps) say(`${labelOf(result)}: ${what}`);
    });
  };
}

async function identify(context: Context): Promise<Exit> {
  const { positionals } = parseArgs({ args: context.args, allowPositionals: true });
  const last = positionals.at(-1) ?? "";
  const isTime = /^\d+[smh]$/.test(last);
  const isSwitch = last === "on" || last === "off";
  const outlets = needed(isTime || isSwitch ? positionals.slice(0, -1) : positionals);
  const answer = await context.send("power.identify", {
    outlets,
    ...(isTime ? { seconds: seconds("identify", last) } : {}),
    ...(isSwitch ? { on: last === "on" } : {}),
  });
  if (context.json) printJson(context, "power.identify", answer);
  return explain(context, answer, ({ outlet, outcome }) => {
    if (!context.json && outcome === "done")
      context.io.out(`${outlet}: ${last === "off" ? "dark" : "its board is lit"}\n`);
  });
}

async function policy(context: Context): Promise<Exit> {
  const { io, json } = context;
  const { values, positionals } = parseArgs({
    args: context.args,
    allowPositionals: true,
    options: {
      once: { type: "boolean", default: false },
      yes: { type: "boolean", default: false },
      reason: { type: "string" },
    },
  });
  const last = positionals.at(-1) ?? "";
  const wanted = ["on", "off", "last"].includes(last) ? last : undefined;
  if (values.once && !wanted) throw new UsageError("--once goes with on, off or last");
  const words = wanted ? needed(positionals.slice(0, -1)) : wordsOf(positionals);
  const answer = await context.send(
    "power.policy",
    {
      outlets: words.length > 0 ? words : ["all"],
      ...(wanted ? { policy: wanted, once: values.once, yes: values.yes } : {}),
    },
    present({ reason: values.reason }),
  );
  if (json) printJson(context, "power.policy", answer);
  const rows: string[][] = [];
  const exit = explain(context, answer, (result: PolicyResult) => {
    rows.push([result.outlet, result.name ?? "-", result.policy ?? "unknown", result.policy_once ?? "-"]);
  });
  if (!json && rows.length > 0) io.out(table([["OUTLET", "NAME", "POLICY", "ONCE"], ...rows]));
  return exit;
}

async function scan(context: Context): Promise<Exit> {
  parseArgs({ args: context.args });
  const answer = await context.send("power.scan", {}, { timeoutMs: SCAN_MS });
  return print(context, "power.scan", answer, () => {
    const { boards } = answer.result as {
      boards: { bus: string; board: number; hardware?: number; firmware?: number; configured: boolean }[];
    };
    if (boards.length === 0) return "no board answers\n";
    const rows = boards.map(({ bus, board, hardware, firmware, configured }) => [
      String(board),
      bus,
      String(hardware ?? "-"),
      String(firmware ?? "-"),
      configured ? "yes" : "no",
    ]);
    return table([["BOARD", "BUS", "HARDWARE", "FIRMWARE", "CONFIGURED"], ...rows]);
  });
}

async function lock(context: Context): Promise<Exit> {
  const { values, positionals } = parseArgs({
    args: context.args,
    allowPositionals: true,
    options: { for: { type: "string" }, reason: { type: "string" } },
  });
  const answer = await context.send(
    "lock.set",
    {
      outlet: oneOf(positionals),
      ...(values.for === undefined ? {} : { for_seconds: seconds("--for", values.for) }),
    },
    present({ reason: values.reason }),
  );
  return print(context, "lock.set", answer, () => lockTable([answer.result as Lock], Date.now()));
}

async function unlock(context: Context): Promise<Exit> {
  const { values, positionals } = parseArgs({
    args: context.args,
    allowPositionals: true,
    options: { kick: { type: "boolean", default: false }, reason: { type: "string" } },
  });
  const answer = await context.send(
    "lock.clear",
    { outlet: oneOf(positionals), ...(values.kick ? { kick: true } : {}) },
    present({ reason: values.reason }),
  );
  return print(context, "lock.clear", answer, () => `outlet ${(answer.result as Lock).outlet}: unlocked\n`);
}

async function locks(context: Context): Promise<Exit> {
  parseArgs({ args: context.args });
  const answer = await context.send("lock.list", {});
  return print(context, "lock.list", answer, () =>
    lockTable((answer.result as { locks: Lock[] }).locks, Date.now()),
  );
}

function oneOf(positionals: readonly string[]): string {
  const [outlet, ...others] = wordsOf(positionals);
  if (outlet === undefined || others.length > 0) throw new UsageError(ONE_OUTLET);
  return outlet;
}

const SWITCH_FLAGS =
  "OUTLET… [--force] [--timeout 30s] [--no-wait] [--dry-run] [--yes] [--self] [--reason TEXT]";
const CYCLE_FLAGS = SWITCH_FLAGS.replace("[--timeout", "[--off-time 5s] [--timeout");

/** The verbs of `fruit power`, `fruit lock`, `fruit unlock` and `fruit locks`. Outlets: ids, names, ranges `0.0-1.1`, `all`. */
export const POWER_VERBS: readonly CliVerb[] = (
  [
    ["power status", "[OUTLET…]", "supply, host, measurements, who and why", status],
    [
      "power on",
      SWITCH_FLAGS,
      "switches on; waits up to --timeout for a sign of life unless --no-wait",
      switching("on"),
    ],
    [
      "power off",
      SWITCH_FLAGS,
      "asks to shut down, waits up to --timeout, then cuts; --force cuts at once",
      switching("off"),
    ],
    [
      "power cycle",
      CYCLE_FLAGS,
      "as power off, then on again; waits for a sign of life unless --no-wait",
      switching("cycle"),
    ],
    ["power reset", CYCLE_FLAGS, "cuts without asking, then as power on; needs --reason", switching("reset")],
    [
      "power shutdown",
      SWITCH_FLAGS,
      "asks to shut down, waits up to --timeout, and leaves the supply on",
      switching("shutdown"),
    ],
    ["power identify", "OUTLET… [on|off|30s]", "lights up the board", identify],
    [
      "power watch",
      "[OUTLET…] [--for 10m] [--json | --jsonl]",
      "prints changes as they happen; as JSON one object a line, each outlet first as it is",
      watch,
    ],
    [
      "power policy",
      "[OUTLET…] [off|on|last] [--once] [--yes] [--reason TEXT]",
      "what happens when the mains come back",
      policy,
    ],
    ["power scan", "", "boards that answer, configured or not", scan],
    ["lock", "OUTLET [--for 2h] [--reason TEXT]", "reserves an outlet for you", lock],
    ["unlock", "OUTLET [--kick --reason TEXT]", "gives it back, or takes it from somebody else", unlock],
    ["locks", "", "who has reserved what", locks],
  ] as const
).map(([words, synopsis, summary, run]) => ({ words, synopsis, summary, needsAgent: true, run }));
