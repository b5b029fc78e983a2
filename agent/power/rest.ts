/**
 * The HTTP door for labgrid's `rest` power port, and for whatever else knows `GET` and `PUT` (curl), on loopback:
 * `GET /outlet/<id or name>` answers exactly `0` or `1`, `PUT` or `POST` of `0` or `1` switches.
 *
 * Facts: labgrid's driver/power/rest.py takes every answer but `1` for off, so what is not known is never answered with 200, and there
 * is no newline.
 *
 * Invariants
 * - Switching is an ordinary command: the same rules, locks and audit; only the outlets that `node.json` lists. Anybody may read any.
 * - Whoever comes this way is `rest:…`: no lock of theirs is that of a person at the node, whatever the username.
 * - No web page switches power: a browser says where its page is from (Origin), or reaches us by a name that is not loopback's (Host).
 */
import { createHash, randomUUID, timingSafeEqual } from "node:crypto";
import { readFileSync } from "node:fs";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import { setTimeout as sleep } from "node:timers/promises";
import type { Caller, CommandResult, Role } from "../commands.ts";
import type { Config } from "../config.ts";
import type { Dispatcher } from "../dispatch.ts";
import type { Log } from "../log.ts";
import { loopback } from "../loopback.ts";
import type { OutletState, RaiseAlarm } from "../messages.ts";
import type { Part } from "../parts.ts";
import { reasonOf } from "../record/lines.ts";

const MOST_CONNECTIONS = 16;
/** `0` or `1`, and a newline where somebody typed it. */
const MOST_BYTES = 3;
/** A client has this long to say what it wants. */
const ASK_LIMIT_MS = 5000;
/** Who guesses passwords waits for each. */
const GUESS_MS = 1000;
/** When the agent stops, commands under way have this long to say how they ended. */
const LAST_WORDS_MS = 500;

const PATH = /^\/outlet\/(\d{1,3}\.\d{1,2}|[a-z0-9-]{1,32})$/;
const HOST = /^(127\.0\.0\.1|localhost|\[::1\])(:\d+)?$/i;
const ROLES: readonly Role[] = ["read", "power"];

type RestConfig = NonNullable<Config["power"]["rest"]>;

/** What is answered; thrown where it ends a request early. */
class Answer {
  readonly status: number;
  readonly text: string;
  readonly headers: Record<string, string>;
  constructor(status: number, text: string, headers: Record<string, string> = {}) {
    this.status = status;
    this.text = text;
    this.headers = headers;
  }
}

/** Listens when it is configured; the part serves until it is told to stop. */
export async function openRest(
  config: Config["power"]["rest"],
  dispatcher: Dispatcher,
  {
    askLimitMs = ASK_LIMIT_MS,
    ...means
  }: { alarm: RaiseAlarm; log: Log; askLimitMs?: number; retryMs?: number },
): Promise<Part> {
  if (!config) return async () => undefined;
  const underWay = new Set<Promise<void>>();
  return loopback({
    port: config.port,
    name: "power.rest",
    id: "listener-rest",
    most: MOST_CONNECTIONS,
    create: () =>
      createServer(
        {
          headersTimeout: askLimitMs,
          requestTimeout: askLimitMs,
          connectionsCheckingInterval: askLimitMs / 5,
        },
        (request, response) => {
          const answered = answer(request, response, config, dispatcher);
          underWay.add(answered);
          void answered.finally(() => underWay.delete(answered));
        },
      ),
    lastWords: () =>
      Promise.race([Promise.allSettled([...underWay]), sleep(LAST_WORDS_MS, undefined, { ref: false })]),
    ...means,
  });
}

/** Answers one request; resolves when the answer is on its way or nobody is there to hear it. */
async function answer(
  request: IncomingMessage,
  response: ServerResponse,
  config: RestConfig,
  dispatcher: Dispatcher,
): Promise<void> {
  const gone = new Promise<void>((resolve) => response.once("close", resolve));
  const { status, text, headers } = await obey(request, config, dispatcher).catch((error) => {
    if (error instanceof Answer) return error;
    throw error;
  });
  response.writeHead(status, {
    "content-type": "text/plain; charset=utf-8",
    "content-length": Buffer.byteLength(text),
    "cache-control": "no-store",
    connection: "close",
    ...headers,
  });
  response.end(text);
  await gone;
}

async function obey(request: IncomingMessage, config: RestConfig, dispatcher: Dispatcher): Promise<Answer> {
  const { method = "", url = "" } = request;
  refuseBrowsers(request);
  await refuseStrangers(request, config);
  const [, outlet] = PATH.exec(url) ?? [];
  if (outlet === undefined || outlet === "all")
    return problem(404, `${url.slice(0, 64)}: there is /outlet/<board>.<pi> and /outlet/<name>`);
  const execute = (verb: string, args: Record<string, unknown>) =>
    dispatcher.execute(
      {
        id: randomUUID(),
        verb,
        args,
        exp: Math.floor(Date.now() / 1000),
        digest: sha256(JSON.stringify([verb, args])).toString("hex"),
        caller: callerOf(config),
      },
      () => undefined,
    );
  if (method === "GET") return read(await execute("power.status", { outlets: [outlet] }));
  if (method !== "PUT" && method !== "POST")
    return new Answer(405, `${method}: there are GET, PUT and POST\n`, { allow: "GET, PUT, POST" });
  const value = await bodyOf(request);
  if (value !== "0" && value !== "1") return problem(400, "the body must be 0 or 1");
  const result = await execute(value === "1" ? "power.on" : "power.off", { outlets: [outlet] });
  if (result.state === "done" || result.state === "unchanged") return new Answer(200, value);
  return problem(statusOf(result), result.message ?? result.state);
}

/** Throws the answer for a request that a web page may have made (DNS rebinding, cross-site forms). */
function refuseBrowsers({ headers }: IncomingMessage): void {
  const { host = "", origin } = headers;
  if (origin !== undefined)
    throw problem(403, "a web page asks (Origin); this is for programs of this machine");
  if (!HOST.test(host)) throw problem(403, `Host: ${host.slice(0, 64)}: use 127.0.0.1, [::1] or localhost`);
}

/** Throws the answer for whoever does not know the user and the password, where there are some. */
async function refuseStrangers({ headers }: IncomingMessage, config: RestConfig): Promise<void> {
  const { username, password_file } = config;
  if (username === undefined || password_file === undefined) return;
  const [, said = ""] = /^Basic ([A-Za-z0-9+/=]{1,512})$/i.exec(headers.authorization ?? "") ?? [];
  const known = sha256(`${username}:${passwordIn(password_file)}`);
  if (timingSafeEqual(sha256(Buffer.from(said, "base64")), known)) return;
  if (said) await sleep(GUESS_MS);
  throw new Answer(401, "user and password are needed, or are wrong\n", {
    "www-authenticate": 'Basic realm="fruit"',
  });
}

/** Read at every request: a new password needs no restart. */
function passwordIn(file: string): string {
  try {
    return readFileSync(file, "utf8").trimEnd();
  } catch (error) {
    throw problem(503, `power.rest.password_file: ${file} cannot be read: ${reasonOf(error)}`);
  }
}

/** A program of this machine, which may do one thing. */
function callerOf({ username = "anybody", outlets }: RestConfig): Caller {
  return {
    door: "socket",
    who: `rest:${username}`,
    roles: new Set(ROLES),
    mayOutlet: (outlet) => outlets.includes(outlet),
  };
}

function read(result: CommandResult): Answer {
  const { outlets: [outlet] = [] } = (result.result ?? {}) as { outlets?: OutletState[] };
  if (result.state !== "done" || !outlet) return problem(statusOf(result), result.message ?? result.state);
  if (outlet.supply === "unknown") return problem(503, `outlet ${outlet.outlet}: its supply is unknown`);
  return new Answer(200, outlet.supply === "on" ? "1" : "0");
}

/** The HTTP status that a command's bad end means. */
function statusOf({ code = "" }: Pick<CommandResult, "code">): number {
  if (code.startsWith("rule.")) return 403;
  return STATUSES[code] ?? 503;
}

const STATUSES: Record<string, number> = {
  "bad-args": 400,
  unauthorised: 403,
  "unknown-outlet": 404,
  locked: 409,
  busy: 409,
};

const problem = (status: number, message: string) => new Answer(status, `${message}\n`);

/** What it says after its headers. Throws the answer when that is more than can be meant. */
async function bodyOf(request: IncomingMessage): Promise<string> {
  let body = "";
  try {
    for await (const chunk of request) {
      body += (chunk as Buffer).toString("latin1");
      if (body.length > MOST_BYTES) throw problem(413, "the body must be 0 or 1");
    }
  } catch (error) {
    if (error instanceof Answer) throw error;
    throw problem(400, "the request broke off");
  }
  return body.trimEnd();
}

function sha256(text: string | Uint8Array): Buffer {
  return createHash("sha256").update(text).digest();
}
