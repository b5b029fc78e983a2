/**
 * What every command line verb shares: streams, exit codes, tables.
 * stdout is what was asked for, stderr is everything else.
 */
import type { CommandResult } from "./commands.ts";
import type { Channel } from "./console/channel.ts";

/** The program's only exit codes; later verbs extend this table and never reuse a number. */
export const EXIT = {
  done: 0,
  failed: 1,
  usage: 2,
  busy: 3,
  refused: 4,
  unconfirmed: 5,
  unreachable: 6,
  unauthorised: 7,
  /** It is done once the node has started anew. */
  reboot: 8,
  /** A new release is being tried, and not decided. */
  trial: 9,
  /** A new release was tried, and given up. */
  rolledBack: 10,
  /** This node's hardware or card cannot do it. */
  hardware: 11,
  config: 78,
} as const;
export type Exit = (typeof EXIT)[keyof typeof EXIT];

/** The streams and surroundings of one run of the program, so that the whole CLI can be tested as a function. */
export interface Io {
  out(text: string): void;
  err(text: string): void;
  env: Record<string, string | undefined>;
  /** Columns and colours only make sense there. */
  isTerminal: boolean;
  /** Everything on standard input. */
  stdin(): Promise<Uint8Array>;
  /** Standard input and output as bytes that come and go, for verbs that are conversations. */
  keyboard?: Keyboard;
  /** Aborts on SIGINT, SIGTERM, SIGHUP and the other signals that would end the process. */
  signal: AbortSignal;
}

/** Where somebody types and looks; or a file, a pipe, nothing. */
export interface Keyboard {
  /** Somebody types there, and keys can come one by one. */
  isTerminal: boolean;
  /** What is typed, as it comes; ends at the end of a file, and when the signal aborts. */
  read(signal: AbortSignal): AsyncIterable<Uint8Array>;
  /** From now on each key comes at once and as it is, Ctrl-C too, and no newline is added to what is shown. Disposing, which waits a moment for what is on its way out, makes the terminal what it was; so does every end of the process that the kernel does not make at once (SIGKILL, a crash of the runtime). */
  raw(): Promise<AsyncDisposable>;
  /** Shows bytes as they are; resolves when they are on their way out, rejects when nobody looks any more. */
  show(bytes: Uint8Array): Promise<void>;
}

/** The streams of a verb that is a conversation. */
export function keyboardOf({ keyboard }: Pick<Io, "keyboard">): Keyboard {
  if (keyboard) return keyboard;
  throw new Error("there is neither keyboard nor screen");
}

/** Wrong words on the command line: exit 2, with the usage of the verb. */
export class UsageError extends Error {}

/** Something a person must know, with the exit code it means. No stack trace is ever shown for it. */
export class CliError extends Error {
  readonly exit: Exit;
  constructor(exit: Exit, message: string, options?: ErrorOptions) {
    super(message, options);
    this.exit = exit;
  }
}

/** Longest wait for the final answer to a command, and for that to a request within a session; verbs that may take longer say so. */
export const ANSWER_MS = 30_000;

/** Sends one command to the node through whichever door the flags chose; progress arrives while it runs. */
export type Send = (
  verb: string,
  args: Record<string, unknown>,
  options?: { reason?: string; onProgress?: (progress: CommandResult) => void; timeoutMs?: number },
) => Promise<CommandResult>;

/** Attaches to a console through whichever door the flags chose. Throws `CliError` where `console.open` was refused. */
export type Attach = (
  args: {
    console: string;
    mode: "write" | "read";
    force?: boolean;
    replay_lines?: number;
    /** Nobody is told of the coming and going: only a replay or a send is wanted. */
    quiet?: boolean;
  },
  options?: { reason?: string },
) => Promise<Channel>;

/** One verb of the command line, `power status`; flags common to all doors are taken off before `run`. */
export interface CliVerb {
  /** Words that select it, one or two. */
  words: string;
  /** What follows the words, for the usage line. */
  synopsis: string;
  summary: string;
  /** Needs a running agent (a door), or works by itself on the day the agent does not start. */
  needsAgent: boolean;
  /** Nobody types it: the program starts itself with it. */
  isInternal?: true;
  run(context: { args: string[]; io: Io; json: boolean; send: Send; attach: Attach }): Promise<Exit>;
}

/** The exit code a command's answer means. */
export function exitOf(result: Pick<CommandResult, "state" | "code">): Exit {
  if (result.state === "done" || result.state === "unchanged") return EXIT.done;
  if (result.state === "unconfirmed") return EXIT.unconfirmed;
  const code = result.code ?? "";
  if (code.startsWith("rule.")) return EXIT.refused;
  return CODE_EXITS[code] ?? EXIT.failed;
}

const CODE_EXITS: Record<string, Exit> = {
  "bad-args": EXIT.usage,
  "unknown-verb": EXIT.usage,
  "unknown-console": EXIT.usage,
  "unknown-gpio": EXIT.usage,
  "unknown-outlet": EXIT.usage,
  locked: EXIT.busy,
  busy: EXIT.busy,
  bus: EXIT.unreachable,
  unauthorised: EXIT.unauthorised,
  "rate-limited": EXIT.unauthorised,
  expired: EXIT.unauthorised,
  duplicate: EXIT.unauthorised,
  replay: EXIT.unauthorised,
  clock: EXIT.unauthorised,
  "wrong-node": EXIT.unauthorised,
  "wrong-site": EXIT.unauthorised,
  "no-slots": EXIT.hardware,
  "on-trial": EXIT.trial,
  "rolled-back": EXIT.rolledBack,
  quarantined: EXIT.refused,
  "reboot-loop": EXIT.refused,
  slot: EXIT.refused,
};

/** Columns aligned by two spaces, the heading first; the last column is not padded. */
export function table(rows: readonly (readonly string[])[]): string {
  const widths: number[] = [];
  for (const row of rows)
    for (const [column, cell] of row.entries())
      widths[column] = Math.max(widths[column] ?? 0, [...cell].length);
  return rows
    .map((row) =>
      row
        .map((cell, column) => cell.padEnd(widths[column] ?? 0))
        .join("  ")
        .trimEnd(),
    )
    .map((line) => `${line}\n`)
    .join("");
}

/** `42s`, `12m`, `3h 5m`, `3d 4h`: how long something has lasted, for people. */
export function lasting(seconds: number): string {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s}s`;
  if (s < 3600) return `${Math.floor(s / 60)}m`;
  const hours = Math.floor(s / 3600);
  if (hours < 24) return s % 3600 < 60 ? `${hours}h` : `${hours}h ${Math.floor((s % 3600) / 60)}m`;
  return hours % 24 ? `${Math.floor(hours / 24)}d ${hours % 24}h` : `${Math.floor(hours / 24)}d`;
}

/** `1 node`, `2 nodes`. */
export function counted(n: number, one: string, many = `${one}s`): string {
  return `${n} ${n === 1 ? one : many}`;
}

/** What `seconds` reads as this, in the largest unit that is exact: `7d`, `90m`, `604801s`. */
export function duration(s: number): string {
  const [unit, length] = UNITS.find(([, length]) => s % length === 0) ?? ["s", 1];
  return `${s / length}${unit}`;
}

const UNITS = [
  ["d", 86_400],
  ["h", 3600],
  ["m", 60],
  ["s", 1],
] as const;

/** Reads `90`, `30s`, `5m`, `2h`, `7d` as seconds. Throws `UsageError` naming the flag and the value. */
export function seconds(flag: string, text: string): number {
  const match = /^(\d+(?:\.\d+)?)(s|m|h|d)?$/.exec(text);
  if (!match) throw new UsageError(`${flag}: "${text}" is not a duration (try 30s, 5m, 2h or 7d)`);
  return Number(match[1]) * (UNITS.find(([unit]) => unit === match[2])?.[1] ?? 1);
}

/** Foreign text on a terminal: no escape sequences, one line. */
export const printable = (text: string) => text.replace(/\p{Cc}/gu, "?");
