/**
 * The local door: a Unix socket, mode 0600, one JSON object a line in both directions.
 * Whoever can open it may do everything: it belongs to the agent's own user, usually root.
 *
 * Ask:    {"verb":"power.status","args":{},"reason":"…","as":"alice"}
 * Answer: command results (`fruit mqtt schema`), the last one final; then the agent closes.
 */
import { createHash, randomUUID } from "node:crypto";
import { chmodSync, lstatSync, rmSync } from "node:fs";
import { mkdir } from "node:fs/promises";
import { connect, createServer, type Socket } from "node:net";
import { dirname } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import * as v from "valibot";
import { type CommandResult, ROLES } from "./commands.ts";
import type { Dispatcher } from "./dispatch.ts";
import { problemsOf } from "./issues.ts";
import type { Log } from "./log.ts";
import type { Part } from "./parts.ts";
import { CliError, EXIT } from "./terminal.ts";

const MOST_CONNECTIONS = 32;
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

/**
 * Opens the door and returns the part that serves it. Rejects with `SocketTakenError` when an agent already
 * answers there; a socket file that nobody answers on is left from a crash and is replaced.
 */
export async function openSocket(path: string, dispatcher: Dispatcher, log: Log): Promise<Part> {
  await mkdir(dirname(path), { recursive: true });
  await refuseTaken(path);
  rmSync(path, { force: true });
  const open = new Set<Socket>();
  const server = createServer((socket) => {
    socket.on("error", () => undefined);
    if (open.size >= MOST_CONNECTIONS) return turnAway(socket);
    open.add(socket);
    void serve(socket, dispatcher, log);
    socket.once("close", () => open.delete(socket));
  });
  // Those who are turned away are being told so.
  server.maxConnections = 2 * MOST_CONNECTIONS;
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

/** The agent was asked, and did not answer to the end; `id` is the command's where it was accepted. */
export class UnansweredError extends Error {
  readonly id: string | undefined;
  constructor(message: string, id: string | undefined) {
    super(message);
    this.id = id;
  }
}

/**
 * Asks the agent on `path` for one command; resolves with the final result. Rejects with `UnansweredError` when the question was
 * put and the agent left, the limit passed, or the signal aborted; before that with what the system says.
 */
export function ask(
  path: string,
  question: { verb: string; args: Record<string, unknown>; reason?: string; as?: string },
  options: { onProgress(result: CommandResult): void; limitMs: number; signal: AbortSignal },
): Promise<CommandResult> {
  const { onProgress, limitMs, signal } = options;
  return new Promise((resolve, reject) => {
    const socket = connect(path);
    let isAsked = false;
    let last: CommandResult | undefined;
    const end = (why: Error) => {
      clearTimeout(timer);
      signal.removeEventListener("abort", stop);
      socket.destroy();
      if (last && last.state !== "accepted" && last.state !== "running") resolve(last);
      else reject(isAsked ? new UnansweredError(why.message, last?.id || undefined) : why);
    };
    const stop = () => end(new Error("interrupted"));
    const timer = setTimeout(() => end(new Error(`no answer within ${limitMs / 1000} s`)), limitMs);
    signal.addEventListener("abort", stop);
    const lines = splitLines((line) => {
      last = JSON.parse(line) as CommandResult;
      onProgress(last);
    });
    socket.on("connect", () => {
      isAsked = true;
      socket.write(`${JSON.stringify(question)}\n`);
    });
    socket.on("data", (chunk: Buffer) => {
      try {
        lines(chunk);
      } catch (cause) {
        end(new Error("what answers there is no agent", { cause }));
      }
    });
    socket.on("error", end);
    socket.on("close", () => end(new Error("the agent closed the connection before it had answered")));
    if (signal.aborted) stop();
  });
}

async function serve(socket: Socket, dispatcher: Dispatcher, log: Log): Promise<void> {
  try {
    const bytes = await firstLine(socket);
    if (bytes === undefined) return;
    await obey(bytes, dispatcher, (result) => {
      if (socket.writable) socket.write(line(result));
    });
  } catch (error) {
    log("error", "socket.failed", { error: String(error) });
  } finally {
    hangUp(socket);
  }
}

async function obey(
  bytes: Uint8Array,
  dispatcher: Dispatcher,
  answer: (result: CommandResult) => void,
): Promise<void> {
  const asked = parse(bytes);
  const id = randomUUID();
  if (!asked.success) {
    answer({ id, verb: "", state: "refused", code: asked.code, message: asked.message });
    return;
  }
  const { verb, args, reason, as } = asked.output;
  await dispatcher.execute(
    {
      id,
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

/** Everything up to the first newline, or more than anybody may say; undefined when the client left or took too long. */
function firstLine(socket: Socket): Promise<Uint8Array | undefined> {
  return new Promise((resolve) => {
    const chunks: Buffer[] = [];
    let length = 0;
    const timer = setTimeout(() => socket.destroy(), ASK_LIMIT_MS);
    const done = (said?: Uint8Array) => {
      clearTimeout(timer);
      socket.off("data", take);
      // What else it says is read and forgotten: kept it would pile up.
      socket.resume();
      resolve(said);
    };
    const take = (chunk: Buffer) => {
      const end = chunk.indexOf(10);
      chunks.push(end < 0 ? chunk : chunk.subarray(0, end));
      length += chunk.length;
      if (end >= 0 || length > MOST_BYTES) done(Buffer.concat(chunks));
    };
    socket.on("data", take);
    socket.once("close", () => done());
  });
}

/** Calls back once per whole line; text may arrive in any pieces. */
function splitLines(each: (line: string) => void): (chunk: Buffer) => void {
  const decoder = new TextDecoder();
  let rest = "";
  return (chunk) => {
    const lines = (rest + decoder.decode(chunk, { stream: true })).split("\n");
    rest = lines.pop() ?? "";
    for (const text of lines) if (text) each(text);
  };
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
