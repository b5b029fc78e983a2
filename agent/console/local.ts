/** The way to a console through the agent's socket on this machine. */
import { CliError, EXIT } from "../terminal.ts";
import type { Channel } from "./channel.ts";

/** Asks the agent on `path` for `console.open`; the same connection then carries the session. Throws `CliError`. */
export async function attachLocally(
  path: string,
  _question: {
    console: string;
    mode: "write" | "read";
    force?: boolean;
    replay_lines?: number;
    reason?: string;
    as: string;
  },
  _signal: AbortSignal,
): Promise<Channel> {
  throw new CliError(EXIT.unreachable, `${path}: no consoles yet`);
}
