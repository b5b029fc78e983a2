/** Which way a command line reaches the agent: its socket on this machine, or MQTT from anywhere. */
import { ask } from "./socket.ts";
import { CliError, EXIT, type Io, type Send, UsageError } from "./terminal.ts";

/** Where the agent listens when nobody says otherwise. */
export const SOCKET_PATH = "/run/fruit.sock";

/** Flags that choose the door; each may also come as `FRUIT_<NAME>`. */
const FLAGS = [
  "socket",
  "broker",
  "site",
  "node",
  "key",
  "ca",
  "cert",
  "tls-key",
  "user",
  "password-file",
] as const;
export type DoorFlags = Partial<Record<(typeof FLAGS)[number], string>>;

/** Longest wait for a final answer when the verb names none; verbs that may take longer say so. */
const ANSWER_LIMIT_MS = 30_000;

/** An open door: what is left of the words, and the way to send. */
export interface Door extends AsyncDisposable {
  args: string[];
  send: Send;
}

/** Takes the door's flags off the words and opens it. Throws `UsageError`, or `CliError` unreachable. */
export async function openDoor(words: string[], io: Io): Promise<Door> {
  const { args, flags } = takeFlags(words, io.env);
  if (flags.broker !== undefined) {
    for (const needed of ["site", "node"] as const)
      if (flags[needed] === undefined) throw new UsageError(`--broker needs --${needed} too`);
    const { openRemote } = await import("./remote.ts");
    const remote = await openRemote(
      flags as DoorFlags & { broker: string; site: string; node: string },
      io.signal,
    );
    return { args, send: remote.send, [Symbol.asyncDispose]: () => remote.close() };
  }
  const path = flags.socket ?? SOCKET_PATH;
  const as = whoAsks(io.env);
  const send: Send = async (
    verb,
    commandArgs,
    { reason, onProgress = () => undefined, timeoutMs = ANSWER_LIMIT_MS } = {},
  ) => {
    try {
      return await ask(
        path,
        { verb, args: commandArgs, as, ...(reason === undefined ? {} : { reason }) },
        onProgress,
        timeoutMs,
      );
    } catch (cause) {
      throw new CliError(EXIT.unreachable, `agent: ${unreachable(path, cause)}`, { cause });
    }
  };
  return { args, send, [Symbol.asyncDispose]: async () => undefined };
}

/** The name that goes into the audit log. Whoever can open the socket may say any: they own the machine. */
function whoAsks(env: Io["env"]): string {
  const uid = process.getuid?.() ?? 0;
  return env.SUDO_USER || env.USER || env.LOGNAME || (uid === 0 ? "root" : `uid${uid}`);
}

function unreachable(path: string, cause: unknown): string {
  const code = (cause as NodeJS.ErrnoException).code;
  if (code === "ENOENT" || code === "ECONNREFUSED")
    return `nobody answers on ${path}; is the agent running ('fruit agent')? Another socket: --socket or FRUIT_SOCKET`;
  if (code === "EACCES") return `${path} belongs to another user; try with sudo`;
  return `${path}: ${cause instanceof Error ? cause.message : String(cause)}`;
}

function takeFlags(words: string[], env: Io["env"]): { args: string[]; flags: DoorFlags } {
  const flags: DoorFlags = {};
  for (const flag of FLAGS) {
    const value = env[`FRUIT_${flag.toUpperCase().replace("-", "_")}`];
    if (value) flags[flag] = value;
  }
  const args: string[] = [];
  for (let at = 0; at < words.length; at++) {
    const word = words[at] ?? "";
    const [name = "", inline] = word.startsWith("--") ? splitOnce(word.slice(2), "=") : [];
    const flag = FLAGS.find((known) => known === name);
    if (!flag) {
      args.push(word);
      continue;
    }
    const value = inline ?? words[++at];
    if (value === undefined) throw new UsageError(`--${flag} needs a value`);
    flags[flag] = value;
    // The flag decides over an environment that names the other door.
    if (flag === "socket") delete flags.broker;
  }
  return { args, flags };
}

function splitOnce(text: string, mark: string): [string, string | undefined] {
  const at = text.indexOf(mark);
  return at < 0 ? [text, undefined] : [text.slice(0, at), text.slice(at + 1)];
}
