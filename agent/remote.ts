/**
 * The way to a node from anywhere: a command on MQTT, signed with the technician's key, and its answer on `res/<id>`;
 * for consoles a sealed session (agent/console/sealed.ts).
 */
import { randomUUID } from "node:crypto";
import { resolve } from "node:path";
import * as v from "valibot";
import { CommandResult } from "./commands.ts";
import { ConfigError, parseConfig } from "./config.ts";
import { attachRemotely } from "./console/remote.ts";
import type { SealedChannel, Way } from "./console/sealed.ts";
import { topicOf } from "./console/sealings.ts";
import type { DoorFlags, Unanswered } from "./doors.ts";
import { checkNode } from "./knownnodes.ts";
import { type CommandPayload, ROOT } from "./messages.ts";
import { LinkError, type MqttConfig } from "./mqtt/connect.ts";
import { dial } from "./mqtt/dial.ts";
import type { Link } from "./mqtt/link.ts";
import type { Incoming } from "./mqtt/message.ts";
import { sealCommand } from "./sign/envelope.ts";
import { openKey, type SigningKey } from "./sign/keys.ts";
import { ANSWER_MS, type Attach, CliError, EXIT, type Io, type Send, UsageError } from "./terminal.ts";

/** What is stored about the node arrives within this time, or the node is unknown there. */
const INFO_MS = 3000;
/** A node that is online accepts or refuses within this time. */
const ACCEPT_MS = 10_000;
/** A command not taken by then is not wanted any more. */
const LIFE_SECONDS = 60;
/** Bad user name or password, not authorised: CONNACK codes of MQTT 3.1.1 and 5. */
const DENIED: ReadonlySet<number> = new Set([4, 5, 0x86, 0x87]);

type Place = DoorFlags & { broker: string; site: string; node: string };

/** Connects, and makes sure that the node is there. Throws `CliError` unreachable, or `UsageError` for flags that make no sense. */
export async function openRemote(
  flags: Place,
  unanswered: Unanswered,
  io: Pick<Io, "env" | "err" | "signal">,
): Promise<{ send: Send; attach: Attach; close(): Promise<void> }> {
  const config = mqttOf(flags);
  const base = `${ROOT}/${flags.site}/${flags.node}`;
  const key = flags.key === undefined ? undefined : await openKey(flags.key, { signal: io.signal });
  const inbox = new Inbox(base);
  const sessions = new Map<string, SealedChannel>();
  const role = `cli-${randomUUID().slice(0, 13)}`;
  const onMessage = (incoming: Incoming) => {
    const session = sessions.get(incoming.topic);
    if (!session) inbox.heard(incoming);
    else if (incoming.retain) session.refuse("a retained frame came");
    else session.hear(incoming.payload);
  };
  const link = await dial({ config, node: flags.node, role, onMessage }, io.signal).catch((error) => {
    throw connectError(error);
  });
  const close = () => link.close(500);
  try {
    await link.subscribe([
      { filter: `${base}/status`, wantsRetained: true },
      { filter: `${base}/info`, wantsRetained: true },
    ]);
    await inbox.known(flags);
  } catch (error) {
    await close();
    throw connectError(error);
  }
  /** Sends a command with an id of the caller's, who may listen to something else for it, too. */
  const ask = async (
    id: string,
    also: string[],
    ...[verb, args, { reason, onProgress = () => undefined, timeoutMs = ANSWER_MS } = {}]: Parameters<Send>
  ) => {
    const filters = [`${base}/res/${id}`, ...also].map((filter) => ({ filter, wantsRetained: false }));
    const refused = await link.subscribe(filters).catch((error) => {
      throw connectError(error);
    });
    if (refused.length > 0)
      throw new CliError(EXIT.unauthorised, `${config.url}: this user may not read ${refused[0]}`);
    const text = await seal({ id, verb, args, reason, flags, key, challenge: inbox.challenge });
    const lost = (why: string) => unanswered(verb, why, id);
    const answer = inbox.answer(id, { onProgress, limitMs: timeoutMs, lost });
    link.send(
      { topic: `${base}/cmd/${verb}`, payload: text, qos: 1, retain: false, class: "event" },
      (problem) => {
        if (!problem) return;
        const why = `${config.url}: the command was not taken: ${problem.message}`;
        inbox.fail(id, problem.kind === "lost" ? lost(problem.message) : new CliError(EXIT.unreachable, why));
      },
    );
    void link.closed.then((cause) => inbox.fail(id, lost(cause.message)));
    return answer;
  };
  const attach: Attach = async (args, options) => {
    if (!key) throw new UsageError("a console over MQTT needs a key: --key FILE");
    const { site, node } = flags;
    const id = randomUUID();
    const out = topicOf({ site, node, id }, "out");
    const way = wayTo(link, topicOf({ site, node, id }, "in"), () => sessions.get(out)?.proceed());
    const session = await attachRemotely({
      site,
      node,
      id,
      key,
      open: (ephemeral) => ask(id, [out], "console.open", { ...args, key: ephemeral }, options),
      check: (publicKey) => {
        const news = checkNode({ site, node, publicKey, pinned: flags["node-key"], env: io.env });
        if (news !== undefined) io.err(`fruit: ${news}\n`);
      },
      way,
    });
    sessions.set(out, session);
    inbox.onStatus = (status) =>
      session.lose(`node ${node} is ${status === "online" ? "here anew" : status}`);
    void link.closed.then(({ message }) => session.lose(`the connection to the broker ended: ${message}`));
    return session;
  };
  return { send: (...words) => ask(randomUUID(), [], ...words), attach, close };
}

/** How frames get to the node: over this connection, or not at all. */
function wayTo(link: Link, topic: string, proceed: () => void): Way {
  return {
    get hasRoom() {
      return link.hasRoom;
    },
    send: (payload, done) =>
      link.send({ topic, payload, qos: 1, retain: false, class: "frame" }, (problem) => {
        if (problem?.kind === "lost") done(`the connection to the broker ended: ${problem.message}`);
        else done(problem && `the broker does not take ${topic}: ${problem.message}`);
        proceed();
      }),
  };
}

/** The flags that stand for keys of a configuration. */
const FLAGS: Record<string, keyof DoorFlags> = {
  site: "site",
  node: "node",
  "mqtt.url": "broker",
  "mqtt.ca": "ca",
  "mqtt.cert": "cert",
  "mqtt.key": "tls-key",
  "mqtt.username": "user",
  "mqtt.password_file": "password-file",
};

/** How the broker of these flags is reached. Throws `UsageError`. */
export function mqttOf(flags: Place): MqttConfig {
  const file = (flag: "ca" | "cert" | "tls-key" | "password-file", key: string) =>
    flags[flag] === undefined ? {} : { [key]: resolve(flags[flag]) };
  try {
    const { mqtt } = parseConfig("command line", {
      site: flags.site,
      node: flags.node,
      mqtt: {
        url: flags.broker,
        connect_timeout_seconds: 10,
        ...file("ca", "ca"),
        ...file("cert", "cert"),
        ...file("tls-key", "key"),
        ...(flags.user === undefined ? {} : { username: flags.user }),
        ...file("password-file", "password_file"),
      },
    });
    if (mqtt) return mqtt;
  } catch (cause) {
    if (!(cause instanceof ConfigError)) throw cause;
    throw new UsageError(cause.problems.map(inFlags).join("; "), { cause });
  }
  throw new UsageError("--broker needs a URL");
}

/** A problem of a configuration, said of the flags it was made of. */
function inFlags(problem: string): string {
  return problem.replace(/\bmqtt\.\w+|^(?:site|node)(?=:)/g, (key) => (FLAGS[key] ? `--${FLAGS[key]}` : key));
}

/** The exit code of whatever went wrong on the way to the broker. */
export function connectError(error: unknown): unknown {
  if (!(error instanceof LinkError)) return error;
  const isDenied = error.kind === "refused" && error.reason !== undefined && DENIED.has(error.reason);
  return new CliError(isDenied ? EXIT.unauthorised : EXIT.unreachable, error.message, { cause: error });
}

async function seal(command: {
  id: string;
  verb: string;
  args: Record<string, unknown>;
  reason: string | undefined;
  flags: Place;
  key: SigningKey | undefined;
  challenge: string | undefined;
}): Promise<string> {
  const { id, verb, args, reason, flags, key, challenge } = command;
  const iat = Math.floor(Date.now() / 1000);
  const payload: CommandPayload = {
    id,
    verb,
    site: flags.site,
    node: flags.node,
    args,
    iat,
    exp: iat + LIFE_SECONDS,
    ...(reason === undefined ? {} : { reason }),
    ...(challenge === undefined ? {} : { challenge }),
  };
  return key ? sealCommand(payload, key) : JSON.stringify(payload);
}

/** What came back from the node. */
class Inbox {
  readonly #base: string;
  readonly #waiting = new Map<string, { progress(result: CommandResult): void; fail(error: Error): void }>();
  #status: string | undefined;
  #info: { clock?: string; challenge?: string } | undefined;
  #changed: () => void = () => undefined;
  /** The node says of itself that it came or went: what was open with it is not any more. */
  onStatus: (status: string) => void = () => undefined;

  constructor(base: string) {
    this.#base = base;
  }

  /** What must stand in a signed command while the node does not know the time. */
  get challenge(): string | undefined {
    return this.#info?.clock === "unsynced" ? this.#info.challenge : undefined;
  }

  heard({ topic, payload }: Incoming): void {
    const text = new TextDecoder().decode(payload);
    try {
      if (topic === `${this.#base}/status`) {
        this.#status = text;
        this.onStatus(text);
      } else if (topic === `${this.#base}/info`) this.#info = JSON.parse(text);
      else if (topic.startsWith(`${this.#base}/res/`))
        this.#waiting
          .get(topic.slice(this.#base.length + 5))
          ?.progress(v.parse(CommandResult, JSON.parse(text)));
    } catch {
      // No result: somebody else than the node speaks there. The wait for the node's own words goes on.
    }
    this.#changed();
  }

  /** Resolves when the node is known and online. Throws `CliError` unreachable. */
  async known({ site, node, broker }: Place): Promise<void> {
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, INFO_MS);
      this.#changed = () => {
        if (!this.#status || !this.#info) return;
        clearTimeout(timer);
        resolve();
      };
      this.#changed();
    });
    if (this.#status === undefined)
      throw new CliError(
        EXIT.unreachable,
        `${broker}: no node "${node}" at site "${site}" is known there (or this user may not read it)`,
      );
    if (this.#status !== "online") throw new CliError(EXIT.unreachable, `node ${node} is ${this.#status}`);
  }

  answer(
    id: string,
    options: { onProgress(result: CommandResult): void; limitMs: number; lost(why: string): CliError },
  ): Promise<CommandResult> {
    const { onProgress, limitMs, lost } = options;
    return new Promise((resolve, reject) => {
      let timer = setTimeout(
        () => fail(lost(`no answer within ${ACCEPT_MS / 1000} s`)),
        Math.min(ACCEPT_MS, limitMs),
      );
      const fail = (error: Error) => {
        clearTimeout(timer);
        this.#waiting.delete(id);
        reject(error);
      };
      const progress = (result: CommandResult) => {
        onProgress(result);
        clearTimeout(timer);
        if (result.state === "accepted" || result.state === "running") {
          timer = setTimeout(() => fail(lost(`no final answer within ${limitMs / 1000} s`)), limitMs);
          return;
        }
        this.#waiting.delete(id);
        resolve(result);
      };
      this.#waiting.set(id, { progress, fail });
    });
  }

  fail(id: string, error: Error): void {
    this.#waiting.get(id)?.fail(error);
  }
}
