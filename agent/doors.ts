/** Which way a command line reaches the agent: its socket on this machine, or MQTT from anywhere. */

import { ask, UnansweredError } from "./ask.ts";
import { attachLocally } from "./console/local.ts";
import { ANSWER_MS, type Attach, CliError, EXIT, type Io, type Send, UsageError } from "./terminal.ts";
import { isRead } from "./words.ts";

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
  "node-key",
] as const;
export type DoorFlags = Partial<Record<(typeof FLAGS)[number], string>>;

/** What is thrown when a command was sent and its answer did not come. */
export type Unanswered = (verb: string, why: string, id?: string) => CliError;

/** An open door: what is left of the words, and the way to send. */
export interface Door extends AsyncDisposable {
  args: string[];
  send: Send;
  attach: Attach;
}

/** Takes the door's flags off the words and opens it. Throws `UsageError`, or `CliError` unreachable. */
export async function openDoor(words: string[], io: Io): Promise<Door> {
  const { args, flags, given } = takeFlags(words, io.env);
  const unanswered: Unanswered = (verb, why, id) => {
    // What only looks can be asked again, and a session ends with its connection; of everything else nobody knows what became.
    if (isRead(verb) || verb === "console.open")
      return new CliError(io.signal.aborted ? EXIT.failed : EXIT.unreachable, why);
    const lookUp = ["fruit job get", ...(id ? [id] : []), ...given].join(" ");
    return new CliError(EXIT.unconfirmed, `${why}; what became of the command is not known, see '${lookUp}'`);
  };
  if (flags.broker !== undefined) {
    const missing = (["site", "node"] as const).filter((flag) => flags[flag] === undefined);
    if (missing.length > 0)
      throw new UsageError(`--broker needs ${missing.map((flag) => `--${flag}`).join(" and ")} too`);
    const { openRemote } = await import("./remote.ts");
    const remote = await openRemote(
      flags as DoorFlags & { broker: string; site: string; node: string },
      unanswered,
      io,
    );
    return { args, send: remote.send, attach: remote.attach, [Symbol.asyncDispose]: () => remote.close() };
  }
  const path = flags.socket ?? SOCKET_PATH;
  const as = whoAsks(io.env);
  /** Says of whatever went wrong on the way what a person can do about it. */
  const reaching = (verb: string) => (cause: unknown) => {
    if (cause instanceof CliError) throw cause;
    if (cause instanceof UnansweredError) throw unanswered(verb, `agent: ${cause.message}`, cause.id);
    throw new CliError(EXIT.unreachable, `agent: ${unreachable(path, cause)}`, { cause });
  };
  const send: Send = (
    verb,
    commandArgs,
    { reason, onProgress = () => undefined, timeoutMs = ANSWER_MS } = {},
  ) =>
    ask(
      path,
      { verb, args: commandArgs, as, ...(reason === undefined ? {} : { reason }) },
      { onProgress, limitMs: timeoutMs, signal: io.signal },
    ).catch(reaching(verb));
  const attach: Attach = (what, { reason } = {}) =>
    attachLocally(path, { ...what, as, ...(reason === undefined ? {} : { reason }) }, io.signal).catch(
      reaching("console.open"),
    );
  return { args, send, attach, [Symbol.asyncDispose]: async () => undefined };
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

/** Parts the words: those for the verb, and those about the door, also as they were given. */
function takeFlags(
  words: string[],
  env: Io["env"],
): { args: string[]; flags: DoorFlags; given: readonly string[] } {
  const flags: DoorFlags = {};
  for (const flag of FLAGS) {
    const value = env[`FRUIT_${flag.toUpperCase().replace("-", "_")}`];
    if (value) flags[flag] = value;
  }
  const args: string[] = [];
  const given: string[] = [];
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
    given.push(`--${flag}`, shellWord(value));
    // The flag decides over an environment that names the other door.
    if (flag === "socket") delete flags.broker;
  }
  return { args, flags, given };
}

/** A word as a shell takes it back. */
const shellWord = (word: string) =>
  /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;

function splitOnce(text: string, mark: string): [string, string | undefined] {
  const at = text.indexOf(mark);
  return at < 0 ? [text, undefined] : [text.slice(0, at), text.slice(at + 1)];
}
