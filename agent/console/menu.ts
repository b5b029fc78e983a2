/** The power of a console's outlet, from within the console: the same verbs, rules and words as `fruit power`. */
import { POWER_VERBS } from "../power/cli.ts";
import { CliError, type Send, UsageError } from "../terminal.ts";

/** What can be chosen, and the verb behind it. */
const CHOICES = { s: "status", o: "on", x: "off", c: "cycle" } as const;

/** What the menu needs of the screen it stands on. */
export interface MenuMeans {
  outlet: string;
  send: Send;
  signal: AbortSignal;
  /** One key, or a line; undefined when it was called off. */
  ask(question: string, isKey: boolean): Promise<string | undefined>;
  say(lines: string): void;
}

/** Lets a person choose and confirm; returns what is to be done, or undefined when it was called off. */
export async function powerMenu(means: MenuMeans): Promise<(() => Promise<void>) | undefined> {
  const { outlet, ask } = means;
  const key = await ask(
    `power of outlet ${outlet}: s status, o on, x off, c cycle; any other key goes back: `,
    true,
  );
  const verb =
    key !== undefined && Object.hasOwn(CHOICES, key) ? CHOICES[key as keyof typeof CHOICES] : undefined;
  if (verb === undefined) return undefined;
  if (verb === "status") return () => perform(means, verb, [outlet]);
  const isSure = await ask(`power ${verb} outlet ${outlet}? y for yes: `, true);
  if (isSure !== "y") return undefined;
  const reason = await ask("reason, or just Enter: ", false);
  return () => perform(means, verb, [outlet, ...(reason === undefined ? [] : [`--reason=${reason}`])]);
}

/** Runs a verb of `fruit power` with the screen as its streams. */
async function perform({ send, signal, say }: MenuMeans, verb: string, args: string[]): Promise<void> {
  const run = POWER_VERBS.find(({ words }) => words === `power ${verb}`)?.run;
  const io = {
    out: say,
    err: say,
    env: {},
    isTerminal: true,
    stdin: async () => new Uint8Array(),
    signal,
  };
  const attach = () => Promise.reject(new Error("power attaches to nothing"));
  try {
    await run?.({ args, io, json: false, send, attach });
  } catch (error) {
    if (!(error instanceof CliError || error instanceof UsageError)) throw error;
    say(`fruit: ${error.message}\n`);
  }
}
