/** What the node itself can be asked for: to be found, to report more often, to say what became of a command. */
import { parseArgs } from "node:util";
import * as v from "valibot";
import type { Machine } from "../hal/ports.ts";
import { type Command, type CommandResult, command } from "./commands.ts";
import { Lights } from "./lights.ts";
import type { Journal } from "./record/journal.ts";
import { type CliVerb, exitOf, lasting, seconds, table, UsageError } from "./terminal.ts";

const Seconds = (most: number, fallback: number) =>
  v.optional(v.pipe(v.number(), v.minValue(1), v.maxValue(most)), fallback);

/** The node's own rows of the command table. */
export function nodeCommands(options: {
  machine: Machine;
  journal: Journal;
  boost: (seconds: number, everySeconds: number) => void;
}): Command[] {
  const lights = new Lights<"main">();
  return [
    command({
      verb: "identify",
      summary: "Blinks this node's own LED so that a person finds it",
      tier: 1,
      role: "read",
      broadcast: true,
      args: v.strictObject({ seconds: Seconds(600, 30) }),
      run: async ({ args, signal }) => {
        if (!options.machine.identify(true))
          return { state: "failed", code: "failed", message: "this machine has no LED to blink" };
        lights.darken("main", args.seconds, () => options.machine.identify(false), signal);
        return { state: "done", result: { seconds: args.seconds } };
      },
    }),
    command({
      verb: "telemetry.boost",
      summary: "Publishes telemetry more often for a while",
      tier: 1,
      role: "read",
      broadcast: true,
      args: v.strictObject({ seconds: Seconds(3600, 600), every_seconds: Seconds(60, 5) }),
      run: async ({ args }) => {
        options.boost(args.seconds, args.every_seconds);
        return { state: "done", result: args };
      },
    }),
    command({
      verb: "job.get",
      summary: "Says what became of earlier commands, newest first",
      tier: 0,
      role: "read",
      args: v.strictObject({
        id: v.optional(v.string()),
        last: v.optional(v.pipe(v.number(), v.integer(), v.minValue(1), v.maxValue(100)), 20),
      }),
      run: async ({ args }) => {
        const jobs = options.journal.last(100).filter((job) => args.id === undefined || job.id === args.id);
        if (args.id !== undefined && jobs.length === 0)
          return { state: "failed", code: "failed", message: `no command ${args.id} among the last 100` };
        return { state: "done", result: { jobs: jobs.slice(0, args.last) } };
      },
    }),
  ];
}

/** Sends one command and prints its answer: all that a verb without a table of its own needs. */
async function sendAndSay(
  { io, json, send }: Parameters<CliVerb["run"]>[0],
  verb: string,
  args: Record<string, unknown>,
  words: string,
  human: (result: CommandResult) => string,
) {
  const result = await send(verb, args);
  if (json) io.out(`${JSON.stringify({ schema: `fruit.${verb}/1`, ...result })}\n`);
  else if (result.state === "done" || result.state === "unchanged") io.out(human(result));
  else io.err(`fruit: ${words}: ${result.message ?? result.code ?? result.state}\n`);
  return exitOf(result);
}

export const NODE_VERBS: readonly CliVerb[] = [
  {
    words: "identify",
    synopsis: "[SECONDS]",
    summary: "blinks the node's own LED (outlets: power identify)",
    needsAgent: true,
    run: async (context) => {
      const { positionals } = parseArgs({ args: context.args, allowPositionals: true });
      if (positionals.length > 1) throw new UsageError(`one number of seconds, not ${positionals.length}`);
      const args = positionals[0] === undefined ? {} : { seconds: seconds("SECONDS", positionals[0]) };
      return sendAndSay(
        context,
        "identify",
        args,
        "identify",
        ({ result }) => `blinking for ${lasting((result as { seconds: number }).seconds)}\n`,
      );
    },
  },
  {
    words: "telemetry boost",
    synopsis: "[--for 10m] [--every 5s]",
    summary: "publishes telemetry more often for a while",
    needsAgent: true,
    run: async (context) => {
      const { values } = parseArgs({
        args: context.args,
        options: { for: { type: "string" }, every: { type: "string" } },
      });
      const args = {
        ...(values.for === undefined ? {} : { seconds: seconds("--for", values.for) }),
        ...(values.every === undefined ? {} : { every_seconds: seconds("--every", values.every) }),
      };
      return sendAndSay(context, "telemetry.boost", args, "telemetry boost", ({ result }) => {
        const boost = result as { seconds: number; every_seconds: number };
        return `telemetry every ${lasting(boost.every_seconds)} for ${lasting(boost.seconds)}\n`;
      });
    },
  },
  {
    words: "job get",
    synopsis: "[ID] [-n 20]",
    summary: "says what became of earlier commands",
    needsAgent: true,
    run: async (context) => {
      const { values, positionals } = parseArgs({
        args: context.args,
        allowPositionals: true,
        options: { n: { type: "string", short: "n" } },
      });
      const args = {
        ...(positionals[0] === undefined ? {} : { id: positionals[0] }),
        ...(values.n === undefined ? {} : { last: Number(values.n) }),
      };
      return sendAndSay(context, "job.get", args, "job get", ({ result }) => {
        const { jobs } = result as { jobs: CommandResult[] };
        const rows = jobs.map((job) => [
          job.id,
          job.verb,
          job.state,
          job.code ?? "-",
          job.by ?? "-",
          job.message ?? "",
        ]);
        return table([["ID", "VERB", "STATE", "CODE", "BY", "MESSAGE"], ...rows]);
      });
    },
  },
];
