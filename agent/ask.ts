/** The other end of the local door: a question put to the agent's socket, and its answer. */
import { connect, type Socket } from "node:net";
import type { CommandResult } from "./commands.ts";

/** The agent was asked, and did not answer to the end; `id` is the command's where it was accepted. */
export class UnansweredError extends Error {
  readonly id: string | undefined;
  constructor(message: string, id: string | undefined) {
    super(message);
    this.id = id;
  }
}

type Question = { verb: string; args: Record<string, unknown>; reason?: string; as?: string };
type Patience = { onProgress(result: CommandResult): void; limitMs: number; signal: AbortSignal };

/**
 * Asks the agent on `path` for one command; resolves with the final result. Rejects with `UnansweredError` when the question was
 * put and the agent left, the limit passed, or the signal aborted; before that with what the system says.
 */
export async function ask(path: string, question: Question, patience: Patience): Promise<CommandResult> {
  const { result, socket } = await converse(path, question, patience);
  socket.destroy();
  return result;
}

/** As `ask`, with the connection as it stands after the answer, paused: it carries on as what the command opened, `rest` first. */
export function converse(
  path: string,
  question: Question,
  { onProgress, limitMs, signal }: Patience,
): Promise<{ result: CommandResult; socket: Socket; rest: Uint8Array }> {
  return new Promise((resolve, reject) => {
    const socket = connect(path);
    let isAsked = false;
    let last: CommandResult | undefined;
    let rest: Buffer = Buffer.alloc(0);
    const done = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", stop);
      socket.off("data", take).off("close", left).pause();
    };
    const fail = (why: Error) => {
      done();
      socket.destroy();
      reject(isAsked ? new UnansweredError(why.message, last?.id || undefined) : why);
    };
    const stop = () => fail(new Error("interrupted"));
    const left = () => fail(new Error("the agent closed the connection before it had answered"));
    const timer = setTimeout(() => fail(new Error(`no answer within ${limitMs / 1000} s`)), limitMs);
    signal.addEventListener("abort", stop);
    const take = (chunk: Buffer) => {
      rest = Buffer.concat([rest, chunk]);
      for (let end = rest.indexOf(10); end >= 0; end = rest.indexOf(10)) {
        last = resultIn(rest.subarray(0, end));
        rest = rest.subarray(end + 1);
        if (!last) return fail(new Error("what answers there is no agent"));
        onProgress(last);
        if (last.state === "accepted" || last.state === "running") continue;
        done();
        return resolve({ result: last, socket, rest });
      }
    };
    socket.on("connect", () => {
      isAsked = true;
      socket.write(`${JSON.stringify(question)}\n`);
    });
    socket.on("data", take);
    socket.on("error", fail);
    socket.on("close", left);
    if (signal.aborted) stop();
  });
}

/** The result on one line, which only an agent says. */
function resultIn(line: Buffer): CommandResult | undefined {
  try {
    const result = JSON.parse(line.toString());
    return typeof result.state === "string" ? result : undefined;
  } catch {
    return undefined;
  }
}
