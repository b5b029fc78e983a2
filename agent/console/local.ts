/** The way to a console through the agent's socket on this machine. */
import { converse } from "../ask.ts";
import { ANSWER_MS, type Attach, CliError, exitOf } from "../terminal.ts";
import type { Channel } from "./channel.ts";
import { streamChannel } from "./stream.ts";

/**
 * Asks the agent on `path` for `console.open`; the same connection then carries the session. Throws `CliError` where that
 * was refused, and as `converse` does.
 */
export async function attachLocally(
  path: string,
  question: Parameters<Attach>[0] & { reason?: string; as: string },
  signal: AbortSignal,
): Promise<Channel> {
  const { reason, as, ...args } = question;
  const { result, socket, rest } = await converse(
    path,
    { verb: "console.open", args, as, ...(reason === undefined ? {} : { reason }) },
    { onProgress: () => undefined, limitMs: ANSWER_MS, signal },
  );
  if (result.state === "done") return streamChannel(socket, rest);
  socket.destroy();
  throw new CliError(exitOf(result), result.message ?? `console.open: ${result.state}`);
}
