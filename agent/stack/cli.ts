/** What a technician says about a node's place in a Pi Stack. */
import { parseArgs } from "node:util";
import type { StackState } from "../messages.ts";
import { printJson } from "../power/answer.ts";
import { type CliVerb, type Exit, exitOf } from "../terminal.ts";

type Context = Parameters<CliVerb["run"]>[0];

/** The announcement takes 0.2 s and the shutdown command may take ten. */
const ANSWER_MS = 20_000;

/** The verbs of `fruit stack`. */
export const STACK_VERBS: readonly CliVerb[] = [
  {
    words: "stack status",
    synopsis: "",
    summary: "this node's place in a Pi Stack, and whether it beats",
    needsAgent: true,
    run: (context) => say(context, "stack.status"),
  },
  {
    words: "stack halt",
    synopsis: "--reason TEXT",
    summary: "tells the board and shuts this node down; only on the node itself",
    needsAgent: true,
    run: (context) => say(context, "stack.halt"),
  },
  {
    words: "stack announce",
    synopsis: "",
    summary:
      "only tells the board that this node shuts down; a plain poweroff does not (stack halt does both)",
    needsAgent: true,
    run: (context) => say(context, "stack.announce"),
  },
];

async function say({ args, io, json, send }: Context, verb: string): Promise<Exit> {
  const { values } = parseArgs({ args, options: { reason: { type: "string" } } });
  const answer = await send(
    verb,
    {},
    {
      ...(values.reason === undefined ? {} : { reason: values.reason }),
      timeoutMs: ANSWER_MS,
    },
  );
  const { state, message, result } = answer;
  const exit = exitOf(answer);
  if (json) printJson({ io }, verb, answer);
  else if (result !== undefined) io.out(statusText(result as Status));
  else if (exit === 0) io.out(`${message} (${state})\n`);
  if (exit !== 0) io.err(`fruit: ${message}\n`);
  return exit;
}

type Status = StackState & { heartbeat_gpio?: number; shutdown_gpio?: number };

function statusText({ hat, role, beating, heartbeat_gpio, shutdown_gpio, goes_down, error }: Status): string {
  const lines = [
    ["HAT", hat ?? "none"],
    ["role", role ? `heartbeat GPIO${heartbeat_gpio}, shutdown GPIO${shutdown_gpio}` : "none"],
    ["heart", beating ? "beating" : "not beating"],
    ...(goes_down === undefined ? [] : [["down", goes_down]]),
    ...(error === undefined ? [] : [["error", error]]),
  ];
  return lines.map(([name = "", what]) => `${name.padEnd(6)} ${what}\n`).join("");
}
