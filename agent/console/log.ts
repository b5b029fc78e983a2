/** `fruit console log`: what a line has said, and what it says. */
import { parseArgs } from "node:util";
import { type CliVerb, EXIT, type Exit, keyboardOf, UsageError } from "../terminal.ts";
import { type Item, REPLAY } from "./port.ts";
import { Transcript } from "./text.ts";
import { Visit } from "./visit.ts";

/** Prints the last lines as text, marks and all, or with `--raw` as the bytes that came; with `-f` goes on until told to stop. */
export async function log(context: Parameters<CliVerb["run"]>[0]): Promise<Exit> {
  const { values, positionals } = parseArgs({
    args: context.args,
    allowPositionals: true,
    options: {
      lines: { type: "string", short: "n" },
      follow: { type: "boolean", short: "f", default: false },
      timestamps: { type: "boolean", default: false },
      raw: { type: "boolean", default: false },
    },
  });
  if (values.raw && values.timestamps) throw new UsageError("--raw is the bytes alone, without --timestamps");
  const { io, attach } = context;
  const { show } = keyboardOf(io);
  const console = oneConsole(positionals);
  const channel = await attach({
    console,
    mode: "read",
    replay_lines: linesOf("-n", values.lines),
    ...(values.follow ? {} : { quiet: true }),
  });
  const transcript = new Transcript({ isStamped: values.timestamps });
  const bytesOf = (item: Item) => {
    if (!values.raw) return Buffer.from(transcript.add(item));
    return item.kind === "bytes" ? item.bytes : new Uint8Array();
  };
  let isOver = false;
  const visit = new Visit(channel, {
    console,
    show: async (item) => {
      const bytes = isOver ? new Uint8Array() : bytesOf(item);
      if (bytes.length > 0) await show(bytes);
      isOver ||= item.kind === "view" && !values.follow;
    },
    signal: io.signal,
  });
  try {
    await visit.begin();
    const why = values.follow ? await visit.ended : undefined;
    if (why !== undefined && !io.signal.aborted) throw visit.problem(why);
    return EXIT.done;
  } catch (error) {
    // Enough was read: `| head -1`
    if (io.signal.aborted) return EXIT.done;
    throw error;
  } finally {
    if (!values.raw) io.out(transcript.endLine());
    await visit.leave();
  }
}

/** The console that was named. Throws `UsageError`. */
export function oneConsole(positionals: readonly string[]): string {
  const [name, extra] = positionals;
  if (name === undefined) throw new UsageError("which console? See 'fruit console list'");
  if (extra !== undefined) throw new UsageError(`"${extra}" is one word too many`);
  return name;
}

/** How many lines of what was said are wanted. Throws `UsageError`. */
export function linesOf(flag: string, text: string | undefined): number {
  if (text === undefined) return REPLAY.lines;
  const lines = Number(text);
  if (/^\d+$/.test(text) && lines <= REPLAY.most) return lines;
  throw new UsageError(`${flag}: "${text}" is no number of lines (0 to ${REPLAY.most})`);
}
