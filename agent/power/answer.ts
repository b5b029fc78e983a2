/** How the verbs of power take words and print answers. */
import type { CommandResult } from "../commands.ts";
import { type CliVerb, EXIT, type Exit, exitOf, UsageError } from "../terminal.ts";
import type { OutletOutcome } from "./result.ts";

/** What a verb is run with. */
export type Context = Parameters<CliVerb["run"]>[0];

/** Outcomes with a complaint on stderr; the others have said it in their steps. */
const PROBLEMS: readonly OutletOutcome[] = ["refused", "failed", "unconfirmed"];

/** `0.0,0.1 rack1-c` as the command wants it. */
export function wordsOf(positionals: readonly string[]): string[] {
  return positionals.flatMap((word) => word.split(",")).filter((word) => word !== "");
}

/** The same where an outlet must be named. Throws `UsageError`. */
export function needed(positionals: readonly string[]): string[] {
  const words = wordsOf(positionals);
  if (words.length === 0) throw new UsageError("which outlet? An id (0.1), a name, a range (0.0-1.1) or all");
  return words;
}

/** One JSON object for machines; its `schema` changes only with an incompatible shape. */
export function printJson(
  { io }: Pick<Context, "io">,
  verb: string,
  { state, code, message, result }: CommandResult,
): void {
  const answer = typeof result === "object" ? result : {};
  io.out(`${JSON.stringify({ schema: `fruit.${verb}/1`, state, code, message, ...answer })}\n`);
}

/** Prints an answer that is not about single outlets: as JSON, by `human`, or its problem. */
export function print(context: Context, verb: string, answer: CommandResult, human: () => string): Exit {
  const exit = exitOf(answer);
  if (context.json) printJson(context, verb, answer);
  else if (answer.result !== undefined) context.io.out(human());
  else if (exit === EXIT.done) context.io.out(`${answer.message} (${answer.state})\n`);
  if (answer.message && exit !== EXIT.done) context.io.err(`fruit: ${answer.message}\n`);
  return exit;
}

/** Prints what is to be said of each outlet, and on stderr what went wrong. */
export function explain<
  Result extends { outlet: string; name?: string; outcome: OutletOutcome; message?: string },
>({ io }: Context, answer: CommandResult, each: (result: Result) => void): Exit {
  const { outlets } = (answer.result ?? {}) as { outlets?: Result[] };
  for (const result of outlets ?? []) {
    each(result);
    if (PROBLEMS.includes(result.outcome))
      io.err(`fruit: outlet ${result.outlet}: ${result.message ?? result.outcome}\n`);
  }
  if (!outlets && answer.message) io.err(`fruit: ${answer.message}\n`);
  return exitOf(answer);
}
