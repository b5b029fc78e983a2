/** `fruit boot`: what a technician asks and decides about slots. */
import { parseArgs } from "node:util";
import { SLOTS } from "../../boot/layout.ts";
import type { BootRecord } from "../../boot/record.ts";
import { printJson } from "../power/answer.ts";
import { CliError, type CliVerb, EXIT, type Exit, exitOf, UsageError } from "../terminal.ts";
import { explainBoot } from "./explain.ts";
import type { HistoryLine } from "./history.ts";
import { type Found, lookOffline, withCard } from "./offline.ts";
import { historyText, recordsText, statusText } from "./show.ts";
import type { BootStatus } from "./status.ts";
import { READ_MS } from "./target.ts";

type Context = Parameters<CliVerb["run"]>[0];

/** A card may take its time, and a trial is armed with several flushes. */
const ANSWER_MS = 60_000;
/** What is decided may need all of a slot read first. */
const DECIDE_MS = READ_MS + ANSWER_MS;

/** The verbs of `fruit boot`. */
export const BOOT_VERBS: readonly CliVerb[] = [
  {
    words: "boot status",
    synopsis: "[--disk DISK] [--exit-code]",
    summary:
      "which slot runs, what is on trial, tries left, what happened last; --exit-code: 8 armed, 9 on trial, 10 rolled back",
    needsAgent: true,
    run: bootStatus,
  },
  {
    words: "boot try",
    synopsis: "--reason TEXT [--no-reboot] [--force]",
    summary: "starts the staged slot on trial; --force also one that has failed before",
    needsAgent: true,
    run: (context) => decide(context, "boot.try", ["no-reboot", "force"]),
  },
  {
    words: "boot confirm",
    synopsis: "[--force --reason TEXT]",
    summary: "makes the slot on trial the good one; --force in spite of its checks",
    needsAgent: true,
    run: (context) => decide(context, "boot.confirm", ["force"]),
  },
  {
    words: "boot rollback",
    synopsis: "--reason TEXT [--no-reboot]",
    summary: "back to the other slot: off a trial, or to the other good one",
    needsAgent: true,
    run: (context) => decide(context, "boot.rollback", ["no-reboot"]),
  },
  {
    words: "boot history",
    synopsis: "[-n 20] [--disk DISK]",
    summary: "what was installed, tried, kept and given up, with cause and evidence",
    needsAgent: true,
    run: bootHistory,
  },
  {
    words: "boot explain",
    synopsis: "[--disk DISK]",
    summary: "why this node did or did not update, or rolled back",
    needsAgent: true,
    run: bootExplain,
  },
  {
    words: "boot records",
    synopsis: "[--disk DISK]",
    summary: "the four state records as they are on the card",
    needsAgent: false,
    run: bootRecords,
  },
  {
    words: "boot probe",
    synopsis: "[--try] [--disk DISK]",
    summary:
      "tryboot only, so far on a model: what board, firmware and card can do; --try sets the flag and clears it",
    needsAgent: false,
    run: async (context) => (await import("./probe.ts")).probeBoot(context),
  },
];

const DISK = { disk: { type: "string" } } as const;

async function bootStatus(context: Context): Promise<Exit> {
  const { values } = parseArgs({
    args: context.args,
    options: { ...DISK, "exit-code": { type: "boolean", default: false } },
  });
  return look(
    context,
    values.disk,
    "boot.status",
    {},
    ({ status }) => [status, () => statusText(status)],
    (status) => (values["exit-code"] ? exitOfStatus(status) : EXIT.done),
  );
}

async function bootHistory(context: Context): Promise<Exit> {
  const { values } = parseArgs({
    args: context.args,
    options: { ...DISK, n: { type: "string", short: "n", default: "20" } },
  });
  if (!/^([1-9]\d?|100)$/.test(values.n))
    throw new UsageError(`-n: "${values.n}" is not a number from 1 to 100`);
  const last = Number(values.n);
  return look(context, values.disk, "boot.history", { last }, ({ lines, problems }) => [
    { lines: lines.slice(-last), problems },
    () => historyText(lines.slice(-last)),
  ]);
}

async function bootExplain(context: Context): Promise<Exit> {
  const { values } = parseArgs({ args: context.args, options: DISK });
  return look(context, values.disk, "boot.explain", {}, ({ status, lines }) => {
    const sentences = explainBoot(status, lines);
    return [{ sentences, status }, () => sentences.map((one) => `${one}\n`).join("")];
  });
}

/** Asks the agent, and looks by itself where none runs or a disk is named. */
async function look(
  context: Context,
  disk: string | undefined,
  verb: "boot.status" | "boot.history" | "boot.explain",
  args: Record<string, unknown>,
  offline: (found: Found) => [answer: object, text: () => string],
  exit: (status: BootStatus) => Exit = () => EXIT.done,
): Promise<Exit> {
  const { io, json } = context;
  const answer = disk === undefined ? await asked(context, verb, args) : undefined;
  if (!answer) {
    const found = await lookOffline(io, disk, 100);
    const [result, text] = offline(found);
    for (const problem of found.problems) io.err(`fruit: ${problem}\n`);
    if (json) printJson(context, verb, { id: "", verb, state: "done", result });
    else io.out(text());
    return exit(found.status);
  }
  const failed = exitOf(answer);
  if (json) printJson(context, verb, answer);
  if (failed !== EXIT.done) {
    io.err(`fruit: ${answer.message}\n`);
    return failed;
  }
  if (!json) io.out(TEXTS[verb](answer.result));
  return verb === "boot.status" ? exit(answer.result as BootStatus) : EXIT.done;
}

const TEXTS = {
  "boot.status": (result: unknown) => statusText(result as BootStatus),
  "boot.history": (result: unknown) => historyText((result as { lines: HistoryLine[] }).lines),
  "boot.explain": (result: unknown) =>
    (result as { sentences: string[] }).sentences.map((one) => `${one}\n`).join(""),
};

/** Undefined where no agent answers on this machine. */
async function asked({ send, io }: Context, verb: string, args: Record<string, unknown>) {
  try {
    return await send(verb, args, { timeoutMs: ANSWER_MS });
  } catch (error) {
    const isAway =
      error instanceof CliError && error.exit === EXIT.unreachable && io.env.FRUIT_BROKER === undefined;
    const code = ((error as Error).cause as NodeJS.ErrnoException | undefined)?.code ?? "";
    if (!isAway || !["ENOENT", "ECONNREFUSED"].includes(code)) throw error;
    io.err("fruit: no agent answers; this is from the card and the data folder\n");
    return undefined;
  }
}

async function decide(context: Context, verb: string, flags: readonly string[]): Promise<Exit> {
  const { values } = parseArgs({
    args: context.args,
    options: {
      reason: { type: "string" },
      force: { type: "boolean" },
      "no-reboot": { type: "boolean" },
    },
  });
  const { reason, ...given } = values;
  const strange = Object.keys(given).find((flag) => !flags.includes(flag));
  if (strange !== undefined) throw new UsageError(`no option --${strange}`);
  const args = Object.fromEntries(Object.keys(given).map((flag) => [flag.replace("-", "_"), true]));
  const answer = await context.send(verb, args, {
    ...(reason === undefined ? {} : { reason }),
    timeoutMs: DECIDE_MS,
  });
  const exit = exitOf(answer);
  if (context.json) printJson(context, verb, answer);
  else if (exit === EXIT.done) context.io.out(`${answer.message} (${answer.state})\n`);
  if (exit !== EXIT.done) context.io.err(`fruit: ${answer.message}\n`);
  const { reboot_needed } = (answer.result ?? {}) as { reboot_needed?: boolean };
  return exit === EXIT.done && reboot_needed ? EXIT.reboot : exit;
}

/** What a script wants to know of a status. */
function exitOfStatus({ trial, running, slots }: BootStatus): Exit {
  if (trial) return trial.running ? EXIT.trial : EXIT.reboot;
  const other = SLOTS.find((slot) => slot !== running);
  const given = other ? slots[other] : undefined;
  return given?.state === "failed" && given.reason !== "by-hand" ? EXIT.rolledBack : EXIT.done;
}

async function bootRecords(context: Context): Promise<Exit> {
  const { values } = parseArgs({ args: context.args, options: DISK });
  return withCard(context.io, values.disk, async ({ boot }) => {
    const copies = await boot.records();
    if (context.json) {
      const places = copies.all.map(({ place, offset, record, why }) => ({
        place,
        offset,
        counts: place === copies.newest?.place,
        ...(record ? { record: plain(record) } : { why }),
      }));
      context.io.out(`${JSON.stringify({ schema: "fruit.boot.records/1", places })}\n`);
    } else context.io.out(recordsText(copies));
    if (copies.newest) return EXIT.done;
    context.io.err("fruit: no valid record: the node starts the rescue system, which can rebuild them\n");
    return EXIT.failed;
  });
}

/** Without big integers, which JSON has not. */
function plain(record: BootRecord): unknown {
  return JSON.parse(
    JSON.stringify(record, (_, value) => (typeof value === "bigint" ? String(value) : value)),
  );
}
