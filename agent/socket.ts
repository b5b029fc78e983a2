/**
 * The local door: a Unix socket, mode 0600, one JSON object a line in both directions.
 * Whoever can open it may do everything: it belongs to the agent's own user, usually root.
 *
 * Ask:    {"verb":"power.status","args":{},"reason":"…","as":"alice"}
 * Answer: command results (`fruit mqtt schema`), the last one final; then the agent closes. After `console.open` that was
 * done the connection goes on as the session (`agent/console/stream.ts`).
 */
import { createHash, randomUUID } from "node:crypto";
import { chmodSync, lstatSync, rmSync } from "node:fs";
import { mkdir } from "node:fs/promises";
import { connect, createServer, type Socket } from "node:net";
import { dirname } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import * as v from "valibot";
import { type CommandResult, ROLES } from "./commands.ts";
import type { Channel } from "./console/channel.ts";
import { streamChannel } from "./console/stream.ts";
import type { Dispatcher } from "./dispatch.ts";
import { problemsOf } from "./issues.ts";
import type { Log } from "./log.ts";
import type { Part } from "./parts.ts";
import { CliError, EXIT } from "./terminal.ts";

const MOST_CONNECTIONS = 32;
/** Connections that have become sessions: they last, and take no room from questions. */
const MOST_SESSIONS = 64;
const OPENING = "console.open";
const MOST_BYTES = 16_384;
/** A client has this long to say what it wants. */
const ASK_LIMIT_MS = 5000;
/** Whoever goes on talking after the answer is cut off then. */
const LINGER_MS = 1000;
/** When the agent stops, commands under way have this long to say how they ended. */
const LAST_WORDS_MS = 500;

const Ask = v.strictObject({
  verb: v.string(),
  args: v.optional(v.record(v.string(), v.unknown()), {}),
  reason: v.optional(v.pipe(v.string(), v.maxLength(500))),
  as: v.optional(v.pipe(v.string(), v.regex(/^[\w.@:-]{1,64}$/))),
});

/** Another agent answers on this socket. */
export class SocketTakenError extends CliError {
  constructor(path: string) {
    super(EXIT.busy, `${path}: another agent is running there`);
  }
}

/** Rejects with `SocketTakenError` when an agent answers on `path`, and when something that is no socket stands there. */
async function refuseTaken(path: string): Promise<void> {
  const found = lstatSync(path, { throwIfNoEntry: false });
  if (found && !found.isSocket())
    throw new CliError(EXIT.failed, `${path}: is there and is no socket; move it away, or name another`);
  if (await answers(path)) throw new SocketTakenError(path);
}

/** Begins the session that a command has promised, on a channel made of the same connection; false when nobody promised it. */
export type Claim = (session: string, channel: Channel) => boolean;

/**
 * Opens the door and returns the part that serves it. Rejects with `SocketTakenError` when an agent already
 * answers there; a socket file that nobody answers on is left from a crash and is replaced.
 */
export async function openSocket(
  path: string,
  dispatcher: Dispatcher,
  log: Log,
  claim: Claim = () => false,
  askLimitMs = ASK_LIMIT_MS,
): Promise<Part> {
  await mkdir(dirname(path), { recursive: true });
  await refuseTaken(path);
  rmSync(path, { force: true });
  const open = new Set<Socket>();
  /** Ended by those who hold the other end of their channels. */
  const sessions = new Set<Socket>();
  const server = createServer((socket) => {
    socket.on("error", () => undefined);
    if (open.size >= MOST_CONNECTIONS) return turnAway(socket);
    open.add(socket);
    const begin: Begin = (session, rest) => {
      open.delete(socket);
      sessions.add(socket);
      socket.once("close", () => sessions.delete(socket));
      const channel = streamChannel(socket, rest);
      if (!claim(session, channel)) channel.close("nobody has promised such a session, or too long ago");
    };
    const hasRoom = () => sessions.size < MOST_SESSIONS;
    void serve(socket, dispatcher, log, askLimitMs, { hasRoom, begin });
    socket.once("close", () => open.delete(socket));
  });
  // Those who are turned away are being told so.
  server.maxConnections = 2 * MOST_CONNECTIONS + MOST_SESSIONS;
  await listen(server, path);
  return async (signal) => {
    const stopped = new Promise<void>((resolve, reject) => {
      signal.addEventListener("abort", () => resolve(), { once: true });
      server.once("error", reject);
      if (signal.aborted) resolve();
    });
    try {
      await stopped;
    } finally {
      server.close();
      rmSync(path, { force: true });
      await Promise.race([dispatcher.idle(), sleep(LAST_WORDS_MS, undefined, { ref: false })]);
      for (const socket of open) socket.destroySoon();
    }
  };
}

/** Says why, rather than hang up without a word. */
function turnAway(socket: Socket): void {
  const message = `${MOST_CONNECTIONS} connections are open; try again later`;
  socket.write(line({ id: "", verb: "", state: "refused", code: "busy", message }));
  hangUp(socket);
}

/** Ends a connection when the client does: closing on what it still says would throw the answer away. */
function hangUp(socket: Socket): void {
  if (socket.destroyed) return;
  socket.resume();
  socket.end();
  const timer = setTimeout(() => socket.destroy(), LINGER_MS);
  socket.once("close", () => clearTimeout(timer));
}

/** Makes a session of a connection; `rest` is what it said already. */
type Begin = (session: string, rest: Uint8Array) => void;

async function serve(
  socket: Socket,
  dispatcher: Dispatcher,
  log: Log,
  askLimitMs: number,
  sessions: { hasRoom: () => boolean; begin: Begin },
): Promise<void> {
  try {
    const said = await firstLine(socket, askLimitMs);
    if (said === undefined) return;
    const asked = parse(said.line);
    const isOpening = asked.success && asked.output.verb === OPENING;
    // What else it says is read and forgotten: kept it would pile up. After an opening it is the session's.
    if (!isOpening) socket.resume();
    const answer = (result: CommandResult) => {
      if (socket.writable) socket.write(line(result));
      return result;
    };
    const last =
      isOpening && !sessions.hasRoom()
        ? answer(refusal({ code: "busy", message: `${MOST_SESSIONS} sessions are open; try again later` }))
        : await obey(said.line, asked, dispatcher, answer);
    const session = isOpening ? sessionIn(last) : undefined;
    if (session !== undefined) return sessions.begin(session, said.rest);
  } catch (error) {
    log("error", "socket.failed", { error: String(error) });
  }
  hangUp(socket);
}

/** The session that a command has promised, if it has. */
function sessionIn({ state, result }: CommandResult): string | undefined {
  const { session } = (result ?? {}) as { session?: unknown };
  return state === "done" && typeof session === "string" ? session : undefined;
}

const refusal = (why: { code: string; message: string }): CommandResult => ({
  id: randomUUID(),
  verb: "",
  state: "refused",
  ...why,
});

async function obey(
  bytes: Uint8Array,
  asked: Parsed,
  dispatcher: Dispatcher,
  answer: (result: CommandResult) => CommandResult,
): Promise<CommandResult> {
  if (!asked.success) return answer(refusal({ code: asked.code, message: asked.message }));
  const { verb, args, reason, as } = asked.output;
  return dispatcher.execute(
    {
      id: randomUUID(),
      verb,
      args,
      ...(reason === undefined ? {} : { reason }),
      exp: Math.floor(Date.now() / 1000),
      digest: createHash("sha256").update(bytes).digest("hex"),
      caller: {
        door: "socket",
        who: `local:${as ?? "root"}`,
        roles: new Set(ROLES),
        mayOutlet: () => true,
      },
    },
    answer,
  );
}

const line = (result: CommandResult) => `${JSON.stringify(result)}\n`;

type Parsed =
  | { success: true; output: v.InferOutput<typeof Ask> }
  | { success: false; code: "too-large" | "bad-utf8" | "bad-json" | "bad-envelope"; message: string };

function parse(bytes: Uint8Array): Parsed {
  if (bytes.length > MOST_BYTES)
    return { success: false, code: "too-large", message: `a request is at most ${MOST_BYTES} bytes` };
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    return { success: false, code: "bad-utf8", message: "the request is not UTF-8" };
  }
  let document: unknown;
  try {
    document = JSON.parse(text);
  } catch (error) {
    return { success: false, code: "bad-json", message: `the request is not JSON: ${String(error)}` };
  }
  const parsed = v.safeParse(Ask, document);
  if (parsed.success) return { success: true, output: parsed.output };
  const message = problemsOf(parsed.issues, "request").join("; ");
  return { success: false, code: "bad-envelope", message };
}

/** Everything up to the first newline, or more than anybody may say, and what came with it; undefined when the client left or took too long. */
function firstLine(
  socket: Socket,
  limitMs: number,
): Promise<{ line: Uint8Array; rest: Uint8Array } | undefined> {
  return new Promise((resolve) => {
    let said: Uint8Array = new Uint8Array();
    const timer = setTimeout(() => socket.destroy(), limitMs);
    const done = (end?: number) => {
      clearTimeout(timer);
      socket.off("data", take);
      socket.pause();
      resolve(end === undefined ? undefined : { line: said.subarray(0, end), rest: said.subarray(end + 1) });
    };
    const take = (chunk: Buffer) => {
      const end = chunk.indexOf(10);
      const before = said.length;
      said = Buffer.concat([said, chunk]);
      if (end >= 0) done(before + end);
      else if (said.length > MOST_BYTES) done(said.length);
    };
    socket.on("data", take);
    socket.once("close", () => done());
  });
}

/** Only a refusal means that nobody is there: a socket of somebody else's says EACCES. */
function answers(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(path);
    const done = (isThere: boolean) => {
      socket.destroy();
      resolve(isThere);
    };
    socket.setTimeout(1000, () => done(true));
    socket.once("connect", () => done(true));
    socket.once("error", ({ code = "" }: NodeJS.ErrnoException) =>
      done(!["ENOENT", "ECONNREFUSED", "ENOTSOCK"].includes(code)),
    );
  });
}

/** Listens with the mode right from the first moment: between bind and chmod anybody could connect. */
function listen(server: ReturnType<typeof createServer>, path: string): Promise<void> {
  return new Promise((resolve, reject) => {
    const before = process.umask(0o177);
    server.once("error", (error) => {
      process.umask(before);
      reject(error);
    });
    server.listen(path, () => {
      process.umask(before);
      chmodSync(path, 0o600);
      resolve();
    });
  });
}
