/** `fruit update`: what is asked of an agent, and what it answers. */
import { parseArgs } from "node:util";
import { HEAD_MAX_BYTES } from "../../boot/head.ts";
import type { HistoryLine } from "../boot/history.ts";
import { historyText, statusText } from "../boot/show.ts";
import { print } from "../power/answer.ts";
import { onlyFile, readSmall } from "../release/files.ts";
import { CliError, type CliVerb, EXIT, type Exit, UsageError } from "../terminal.ts";
import type { PeerRow, UpdateStatus } from "./commands.ts";
import { readLink } from "./magnet.ts";
import { peersText, updateText } from "./show.ts";

type Context = Parameters<CliVerb["run"]>[0];

/** A card may take its time. */
const ANSWER_MS = 60_000;

/** The verbs of `fruit update` that an agent answers. */
export const ASKED_VERBS: readonly CliVerb[] = [
  {
    words: "update now",
    synopsis: "[INFOHASH] --reason TEXT",
    summary: "takes the newest release that is announced, whatever the policy",
    needsAgent: true,
    run: updateNow,
  },
  {
    words: "update announce",
    synopsis: "FILE.head",
    summary: "tells the node, and by it the others, what a signed head says",
    needsAgent: true,
    run: updateAnnounce,
  },
  {
    words: "update explain",
    synopsis: "",
    summary: "why this node did or did not update, with evidence",
    needsAgent: true,
    run: (context) =>
      ask<{ sentences: string[] }>(context, "update.explain", {}, ({ sentences }) => lines(sentences)),
  },
  {
    words: "update history",
    synopsis: "[-n 20]",
    summary: "what was announced, fetched, tried, kept and given up",
    needsAgent: true,
    run: updateHistory,
  },
  {
    words: "update peers",
    synopsis: "",
    summary: "who releases come from and go to",
    needsAgent: true,
    run: (context) => ask<{ peers: PeerRow[] }>(context, "update.peers", {}, ({ peers }) => peersText(peers)),
  },
];

/** Asks for the status; undefined where no agent answers on this machine. */
export async function askStatus(context: Context): Promise<Exit | undefined> {
  const { send, io } = context;
  try {
    const answer = await send("update.status", {}, { timeoutMs: ANSWER_MS });
    return print(context, "update.status", answer, () => {
      const status = answer.result as UpdateStatus;
      return `${updateText(status)}\n${statusText(status.boot)}`;
    });
  } catch (error) {
    const isAway =
      error instanceof CliError && error.exit === EXIT.unreachable && io.env.FRUIT_BROKER === undefined;
    const code = ((error as Error).cause as NodeJS.ErrnoException | undefined)?.code ?? "";
    if (isAway && ["ENOENT", "ECONNREFUSED"].includes(code)) return undefined;
    throw error;
  }
}

async function ask<T>(
  context: Context,
  verb: string,
  args: Record<string, unknown>,
  text: (result: T) => string,
): Promise<Exit> {
  if (verb !== "update.history") parseArgs({ args: context.args, options: {} });
  const answer = await context.send(verb, args, { timeoutMs: ANSWER_MS });
  return print(context, verb, answer, () => text(answer.result as T));
}

function updateHistory(context: Context): Promise<Exit> {
  const { values } = parseArgs({
    args: context.args,
    options: { n: { type: "string", short: "n", default: "20" } },
  });
  if (!/^([1-9]\d?|100)$/.test(values.n))
    throw new UsageError(`-n: "${values.n}" is not a number from 1 to 100`);
  return ask<{ lines: HistoryLine[] }>(context, "update.history", { last: Number(values.n) }, (result) =>
    historyText(result.lines),
  );
}

async function updateNow(context: Context): Promise<Exit> {
  const { values, positionals } = parseArgs({
    args: context.args,
    allowPositionals: true,
    options: { reason: { type: "string" } },
  });
  const [named, ...more] = positionals;
  const link = named === undefined ? undefined : readLink(named);
  if (more.length > 0 || (named !== undefined && !link))
    throw new UsageError(`"${positionals.join(" ")}": one infohash of 40 hexadecimal digits, or none`);
  const release = link ? { release: link.infohash } : {};
  const reason = values.reason === undefined ? {} : { reason: values.reason };
  const answer = await context.send("update.now", release, { ...reason, timeoutMs: ANSWER_MS });
  return print(context, "update.now", answer, () => "");
}

async function updateAnnounce(context: Context): Promise<Exit> {
  const { positionals } = parseArgs({ args: context.args, allowPositionals: true, options: {} });
  const head = await readSmall(onlyFile(positionals, "head, FILE.head"), HEAD_MAX_BYTES);
  const answer = await context.send(
    "update.announce",
    { head: head.toString("base64") },
    { timeoutMs: ANSWER_MS },
  );
  return print(context, "update.announce", answer, () => "");
}

const lines = (all: readonly string[]) => all.map((one) => `${one}\n`).join("");
