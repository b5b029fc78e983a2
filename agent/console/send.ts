/** `fruit console send`: text for a line, for scripts. */
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { person } from "../power/show.ts";
import { type CliVerb, EXIT, type Exit, exitOf, printable, seconds, UsageError } from "../terminal.ts";
import { keyboardOf } from "./attach.ts";
import { bytesOf, Expecting, parsePattern } from "./expect.ts";
import { Visit } from "./visit.ts";

type Context = Parameters<CliVerb["run"]>[0];

/** What is to be sent where, and what is to come of it. */
interface Errand {
  console: string;
  bytes: Uint8Array;
  pattern: RegExp | undefined;
  timeoutMs: number;
  force: boolean;
  reason: string | undefined;
}

/** Sends text; with `--expect` waits for the answer: exit 0 when it came, 5 when not in time, 1 when the console ended. */
export async function send(context: Context): Promise<Exit> {
  const { values, positionals } = parseArgs({
    args: context.args,
    allowPositionals: true,
    options: {
      expect: { type: "string" },
      timeout: { type: "string" },
      "no-newline": { type: "boolean", default: false },
      force: { type: "boolean", default: false },
      reason: { type: "string" },
    },
  });
  const [name, text, ...others] = positionals;
  if (name === undefined || text === undefined) throw new UsageError("which console, and which text?");
  if (others.length > 0) throw new UsageError(`"${others[0]}" is one word too many; put the text in quotes`);
  if (values.timeout !== undefined && values.expect === undefined)
    throw new UsageError("--timeout goes with --expect");
  const errand: Errand = {
    console: name,
    bytes: bytesOf(values["no-newline"] ? text : `${text}\\r`),
    pattern: values.expect === undefined ? undefined : parsePattern(values.expect),
    timeoutMs: seconds("--timeout", values.timeout ?? "10s") * 1000,
    force: values.force,
    reason: values.reason,
  };
  if (errand.bytes.length === 0) throw new UsageError("there is nothing to send");
  return errand.pattern
    ? expectAnswer(context, errand, new Expecting(errand.pattern))
    : sendAway(context, errand);
}

async function sendAway(context: Context, { console, bytes, force, reason }: Errand): Promise<Exit> {
  const answer = await context.send(
    "console.send",
    { console, text: Buffer.from(bytes).toString("hex"), hex: true, ...(force ? { force } : {}) },
    reason === undefined ? {} : { reason },
  );
  const exit = exitOf(answer);
  if (exit !== EXIT.done) context.io.err(`fruit: ${answer.message ?? answer.state}\n`);
  return exit;
}

/** Attached before anything is sent, so that nothing of the answer is missed. What the line echoes counts too. */
async function expectAnswer(context: Context, errand: Errand, expecting: Expecting): Promise<Exit> {
  const { io, attach } = context;
  const { console, bytes, force, reason } = errand;
  const { show } = keyboardOf(context);
  const channel = await attach(
    { console, mode: "write", replay_lines: 0, ...(force ? { force } : {}) },
    reason === undefined ? {} : { reason },
  );
  let isSent = false;
  let news = Promise.withResolvers<void>();
  const visit = new Visit(channel, {
    console,
    show: async (item) => {
      if (item.kind === "mark" && !COMINGS.includes(item.mark.kind))
        io.err(`fruit: console ${console}: ${printable(item.mark.text)}\n`);
      if (item.kind === "bytes" && isSent) {
        expecting.add(item.bytes);
        await show(item.bytes);
      }
      news.resolve();
    },
    signal: io.signal,
  });
  try {
    await visit.begin();
    refuseReading(visit);
    isSent = true;
    void visit.send(bytes).catch(() => undefined);
    await watch({ visit, errand, expecting }, (ms) => {
      news = Promise.withResolvers();
      return within(ms, news.promise);
    });
    return EXIT.done;
  } finally {
    await visit.leave();
  }
}

/** Who comes and goes is nothing that a script wants to know. */
const COMINGS: readonly string[] = ["attach", "detach"];

/** Throws `CliError` where nothing could be sent. */
function refuseReading(visit: Visit): void {
  const { view, mayWrite } = visit;
  if (view?.state === "gone") throw visit.problem(`the line is gone (${view.error ?? view.device})`);
  if (mayWrite) return;
  const why = view?.writer
    ? `${person(view.writer)} writes; --force --reason TEXT takes over`
    : "you may only read there; is its outlet locked ('fruit locks')?";
  throw visit.problem(why, EXIT.busy);
}

/** Returns when what is expected has come. Throws `CliError` when it has not in time, or cannot any more. */
async function watch(
  { visit, errand, expecting }: { visit: Visit; errand: Errand; expecting: Expecting },
  news: (ms: number) => Promise<void>,
): Promise<void> {
  const { timeoutMs } = errand;
  const expected = `"${errand.pattern?.source}" did not come`;
  const endsAt = performance.now() + timeoutMs;
  let why: string | undefined;
  const ended = visit.ended.then((words) => {
    why = words;
  });
  for (;;) {
    const { dueMs } = expecting;
    const left = endsAt - performance.now();
    const isLast = why !== undefined || !visit.mayWrite || left <= 0;
    if (dueMs !== undefined && (dueMs === 0 || isLast) && expecting.look()) return;
    if (why !== undefined) throw visit.problem(`${expected}: ${why}`);
    if (!visit.mayWrite) throw visit.problem(`${expected}: the right to type was taken away`);
    if (left <= 0) throw visit.problem(`${expected} within ${timeoutMs / 1000} s`, EXIT.unconfirmed);
    await Promise.race([ended, news(Math.min(left, dueMs ?? left))]);
  }
}

async function within(ms: number, promise: Promise<void>): Promise<void> {
  const over = new AbortController();
  await Promise.race([promise, sleep(ms, undefined, { signal: over.signal }).catch(() => undefined)]);
  over.abort();
}
