/** What a technician types about consoles. */
import { parseArgs } from "node:util";
import type { LineSettings } from "../../hal/ports.ts";
import { print } from "../power/answer.ts";
import { present } from "../power/fields.ts";
import { type CliVerb, counted, type Exit, UsageError } from "../terminal.ts";
import { attachTo } from "./attach.ts";
import { parseEscape } from "./keys.ts";
import { linesOf, log, oneConsole } from "./log.ts";
import type { WhoLine } from "./openings.ts";
import type { ListLine } from "./port.ts";
import { send } from "./send.ts";
import { listTable, whoTable } from "./show.ts";

type Context = Parameters<CliVerb["run"]>[0];

async function attach(context: Context): Promise<Exit> {
  const { values, positionals } = parseArgs({
    args: context.args,
    allowPositionals: true,
    options: {
      ro: { type: "boolean", default: false },
      force: { type: "boolean", default: false },
      reason: { type: "string" },
      replay: { type: "string" },
      "no-replay": { type: "boolean", default: false },
      escape: { type: "string", short: "e" },
      timestamps: { type: "boolean", default: false },
      raw: { type: "boolean", default: false },
    },
  });
  // `attach` reaches a console whose name is a verb
  const named = positionals[0] === "attach" && positionals.length > 1 ? positionals.slice(1) : positionals;
  if (values.ro && values.force)
    throw new UsageError("--force is for whoever wants to type, --ro for whoever does not");
  if (values["no-replay"] && values.replay !== undefined) throw new UsageError("--replay or --no-replay?");
  if (context.json)
    throw new UsageError("a session has no JSON; 'fruit console list', 'who' and the others have");
  return attachTo(context, oneConsole(named), {
    wants: values.ro ? "read" : "write",
    force: values.force,
    reason: values.reason,
    replayLines: values["no-replay"] ? 0 : linesOf("--replay", values.replay),
    escape: parseEscape(values.escape ?? (values.raw ? "none" : "~")),
    isStamped: values.timestamps,
    isBare: values.raw,
  });
}

async function list(context: Context): Promise<Exit> {
  parseArgs({ args: context.args });
  const answer = await context.send("console.list", {});
  return print(context, "console.list", answer, () =>
    listTable((answer.result as { consoles: ListLine[] }).consoles, Date.now()),
  );
}

async function who(context: Context): Promise<Exit> {
  const { positionals } = parseArgs({ args: context.args, allowPositionals: true });
  const answer = await context.send(
    "console.who",
    positionals.length > 0 ? { console: oneConsole(positionals) } : {},
  );
  return print(context, "console.who", answer, () =>
    whoTable((answer.result as { attached: WhoLine[] }).attached, Date.now()),
  );
}

const REASON = { reason: { type: "string" } } as const;

async function sendBreak(context: Context): Promise<Exit> {
  const { values, positionals } = parseArgs({ args: context.args, allowPositionals: true, options: REASON });
  const console = oneConsole(positionals);
  const answer = await context.send("console.break", { console }, present(values));
  return print(
    context,
    "console.break",
    { message: `console ${console}: a break was sent`, ...answer },
    () => "",
  );
}

async function kick(context: Context): Promise<Exit> {
  const { values, positionals } = parseArgs({ args: context.args, allowPositionals: true, options: REASON });
  const [console, who, extra] = positionals;
  if (console === undefined || who === undefined || extra !== undefined)
    throw new UsageError("which console, and who? See 'fruit console who'");
  const answer = await context.send("console.kick", { console, who }, present(values));
  return print(
    context,
    "console.kick",
    { message: `console ${console}: ${who} was sent away`, ...answer },
    () => "",
  );
}

async function set(context: Context): Promise<Exit> {
  const { values, positionals } = parseArgs({ args: context.args, allowPositionals: true, options: REASON });
  const [name, ...words] = positionals;
  const console = oneConsole(name === undefined ? [] : [name]);
  if (words.length === 0) throw new UsageError(`what is to be set? ${SETTABLE.join(" ")}`);
  const settings = Object.fromEntries(words.map(setting));
  const answer = await context.send("console.set", { console, ...settings }, present(values));
  return print(context, "console.set", answer, () => {
    const { baud, data_bits, parity, stop_bits, flow } = answer.result as LineSettings;
    const line = `${baud} baud, ${data_bits} data bits, parity ${parity}, ${counted(stop_bits, "stop bit")}, flow control ${flow}`;
    return `console ${console}: ${line}${answer.state === "unchanged" ? " (as before)" : ""}\n`;
  });
}

const SETTABLE = [
  "baud=9600",
  "data_bits=8",
  "parity=none|even|odd",
  "stop_bits=1",
  "flow=none|rtscts|xonxoff",
];

function setting(word: string): [string, string | number] {
  const [key = "", value = "", extra] = word.split("=");
  const isKnown = SETTABLE.some((known) => known.startsWith(`${key}=`));
  if (!isKnown || value === "" || extra !== undefined)
    throw new UsageError(`"${word}": there are ${SETTABLE.join(" ")}`);
  return [key, /^\d+$/.test(value) ? Number(value) : value];
}

/** The verbs of `fruit console`. The first word may be a console's name: then it is attached to. */
export const CONSOLE_VERBS: readonly CliVerb[] = (
  [
    [
      "console",
      "[attach] NAME [--ro | --force --reason TEXT] [--replay N | --no-replay] [-e CHAR|none] [--timestamps] [--raw]",
      "attaches: you type on the line and see what it says; Enter ~? shows the keys, Enter ~. leaves",
      attach,
    ],
    [
      "console list",
      "",
      "the consoles, whether their lines are there, who writes, how long they have been silent, and how much is kept and recorded",
      list,
    ],
    ["console who", "[NAME]", "who is attached, since when, and what they have typed and seen", who],
    [
      "console log",
      "NAME [-n 200] [-f] [--timestamps | --raw]",
      "what a console has said, as text; with -f what it says, too; --raw the bytes",
      log,
    ],
    [
      "console send",
      "NAME TEXT [--expect REGEX [--timeout 10s]] [--no-newline] [--force --reason TEXT]",
      "types TEXT (\\r \\n \\t \\e \\\\ \\xHH) and Enter; with --expect exit 0 when it came, 5 if not in time, 1 if the console ended; what the line echoes counts, so expect what only the answer has: send rack1-a 'echo $((6*7))' --expect 42",
      send,
    ],
    [
      "console break",
      "NAME [--reason TEXT]",
      "sends a break: SysRq, or the attention of a boot loader",
      sendBreak,
    ],
    [
      "console kick",
      "NAME WHO|NO --reason TEXT",
      "sends somebody away from a console, or the one of this number in 'console who'",
      kick,
    ],
    [
      "console set",
      "NAME baud=9600 data_bits=8 parity=even stop_bits=1 flow=none [--reason TEXT]",
      "changes how the line talks, until the agent ends",
      set,
    ],
  ] as const
).map(([words, synopsis, summary, run]) => ({ words, synopsis, summary, needsAgent: true, run }));
