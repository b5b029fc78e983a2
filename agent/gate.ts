/**
 * The MQTT door: turns what arrives on `cmd/<verb>` and `set/<kind>/<instance>` into requests, or refuses it by name.
 *
 * Order: retained → size, encoding, shape, signature (`openEnvelope`) → site, node, verb, time (`checkBinding`) → the table.
 * Unsigned callers have the role `read`; a signed form is what its signer's line in `allowed_signers` says, and nothing less
 * is accepted for it: there is no way down from a bad signature to an unsigned command.
 */
import { createHash, randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import type { OutletId } from "../hal/ports.ts";
import { type Caller, type CommandResult, Refusal, type Request, type Role } from "./commands.ts";
import type { Dispatcher } from "./dispatch.ts";
import type { Log } from "./log.ts";
import { ROOT, type Tell } from "./messages.ts";
import type { Incoming } from "./mqtt/message.ts";
import { checkBinding, openEnvelope } from "./sign/envelope.ts";
import type { FailureLimit } from "./sign/limit.ts";
import type { Signers } from "./sign/signers.ts";

/** A command for every node of a site is answered within this time, at random, so that 800 do not answer at once. */
const BROADCAST_SPREAD_MS = 5000;
/** Broadcasts that may wait for their moment. */
const MOST_BROADCASTS = 16;
/** Longest life of a command: a power switch must not happen minutes after it was wanted. */
const MOST_SECONDS = 300;

/** Where an answer goes. */
export interface ReplyTo {
  topic: string;
  correlation?: Uint8Array;
}

/** What the gate needs from the agent. */
export interface GateOptions {
  site: string;
  node: string;
  dispatcher: Dispatcher;
  signers: Signers | undefined;
  /** Failed signatures, limited so that verifying cannot be used to burn the processor. */
  failures: FailureLimit;
  /** Refusals told as events, limited likewise. */
  refusals: FailureLimit;
  clock: () => { synced: boolean };
  challenge: { current(): string; renew(): void };
  unsignedOutlets: ReadonlySet<string>;
  reply(to: ReplyTo, result: CommandResult): void;
  tell: Tell;
  log: Log;
  signal: AbortSignal;
  random?: () => number;
}

/** Handles one incoming message of a command or set topic; anything else is left alone. Never throws. */
export function createGate(options: GateOptions): (incoming: Incoming) => Promise<void> {
  const own = `${ROOT}/${options.site}/${options.node}/`;
  const everybody = `${ROOT}/${options.site}/all/cmd/`;
  let waiting = 0;

  const broadcast = async (verb: string, incoming: Incoming) => {
    if (waiting >= MOST_BROADCASTS) return;
    waiting++;
    try {
      await sleep((options.random ?? Math.random)() * BROADCAST_SPREAD_MS, undefined, {
        signal: options.signal,
      });
      await command(options, verb, "all", incoming);
    } catch {
      // The agent is stopping.
    } finally {
      waiting--;
    }
  };

  const route = async (incoming: Incoming) => {
    const { topic } = incoming;
    if (isClearing(incoming)) return;
    if (topic.startsWith(`${own}cmd/`))
      await command(options, topic.slice(own.length + 4), options.node, incoming);
    else if (topic.startsWith(everybody)) await broadcast(topic.slice(everybody.length), incoming);
    else if (topic.startsWith(`${own}set/`)) await set(options, topic.slice(own.length + 4), incoming);
  };
  return (incoming) =>
    route(incoming).catch((error) =>
      options.log("error", "gate.failed", { topic: incoming.topic, error: String(error) }),
    );
}

async function command(options: GateOptions, verb: string, node: string, incoming: Incoming): Promise<void> {
  const { dispatcher, clock, challenge } = options;
  let id = "";
  let caller: Caller = anonymous();
  try {
    refuseRetained(incoming);
    if (verb.includes("/")) throw new Refusal("wrong-topic", `cmd/${verb}: a command topic is cmd/<verb>`);
    const { payload, digest, signer } = openEnvelope(incoming.payload, options);
    id = payload.id;
    if (signer)
      caller = {
        door: "mqtt",
        who: `key:${signer.principal}`,
        roles: signer.roles,
        mayOutlet: signer.mayOutlet,
      };
    checkBinding(payload, {
      site: options.site,
      node,
      verb,
      nowSeconds: Math.floor(Date.now() / 1000),
      clockSynced: clock().synced,
      challenge: challenge.current(),
      maxSeconds: MOST_SECONDS,
      isSigned: signer !== undefined,
    });
    if (node === "all" && !dispatcher.find(verb)?.broadcast)
      throw new Refusal(
        "unauthorised",
        `${verb} is not taken from ${ROOT}/${options.site}/all: send it to one node`,
      );
    if (signer && !clock().synced) challenge.renew();
    const to = replyTo(options, incoming, id);
    await dispatcher.execute(
      {
        id,
        verb,
        args: payload.args,
        ...(payload.reason === undefined ? {} : { reason: payload.reason }),
        exp: payload.exp,
        digest,
        caller,
      },
      (result) => {
        if (to) options.reply(to, result);
        if (result.state === "refused") tellRefused(options, verb, result);
      },
    );
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    await refuse(options, { id, verb, args: {}, caller }, error, replyTo(options, incoming, id));
  }
}

/** What plain text may set: `outlet/<id>` to ON or OFF where node-local policy lists the outlet, `identify/main`. */
async function set(options: GateOptions, path: string, incoming: Incoming): Promise<void> {
  const { dispatcher, unsignedOutlets } = options;
  const caller: Caller = {
    door: "set",
    who: "set",
    roles: new Set<Role>(["read", "power"]),
    mayOutlet: (outlet: OutletId) => unsignedOutlets.has(outlet),
  };
  const [kind = "", instance = "", ...more] = path.split("/");
  const id = `set-${randomUUID()}`;
  try {
    refuseRetained(incoming);
    if (more.length > 0)
      throw new Refusal("wrong-topic", `set/${path}: a set topic is set/<kind>/<instance>`);
    const text = plainText(incoming.payload);
    const { verb, args } = meaning(kind, instance, text);
    const digest = createHash("sha256").update(incoming.payload).digest("hex");
    const request: Request = { id, verb, args, exp: Math.floor(Date.now() / 1000), digest, caller };
    const result = await dispatcher.execute(request, () => undefined);
    if (result.state === "refused") tellRefused(options, verb, result);
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    await refuse(options, { id, verb: `set.${kind}`, args: {}, caller }, error, undefined);
  }
}

function meaning(
  kind: string,
  instance: string,
  text: string,
): { verb: string; args: Record<string, unknown> } {
  if (kind === "outlet" && (text === "ON" || text === "OFF"))
    return { verb: `power.${text.toLowerCase()}`, args: { outlets: [instance] } };
  if (kind === "outlet")
    throw new Refusal("bad-args", `set/outlet/${instance}: "${text.slice(0, 20)}" is neither ON nor OFF`);
  if (kind === "identify" && instance === "main") return { verb: "identify", args: {} };
  throw new Refusal(
    "wrong-topic",
    `set/${kind}/${instance}: there are set/outlet/<id> and set/identify/main`,
  );
}

function plainText(payload: Uint8Array): string {
  if (payload.length > 64)
    throw new Refusal("too-large", `a set payload is at most 64 bytes, not ${payload.length}`);
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(payload);
  } catch {
    throw new Refusal("bad-utf8", "the payload is not UTF-8");
  }
}

/** Somebody takes a retained message off the broker (MQTT 5 §3.3.1.3), as they are told to. */
function isClearing({ retain, payload }: Incoming): boolean {
  return retain && payload.length === 0;
}

/** A retained command would run again at every reconnect ("ghost switching"). */
function refuseRetained(incoming: Incoming): void {
  if (incoming.retain)
    throw new Refusal(
      "retained",
      `${incoming.topic}: a retained command is never run; publish it without retain and clear the topic`,
    );
}

const anonymous = (): Caller => ({
  door: "mqtt",
  who: "anonymous",
  roles: new Set<Role>(["read"]),
  mayOutlet: () => true,
});

/** A response topic is chosen by whoever asks: only the reply tree is allowed, or this node would write for them where they cannot. */
function replyTo(options: GateOptions, incoming: Incoming, id: string): ReplyTo | undefined {
  const { responseTopic, correlation } = incoming;
  const prefix = `${ROOT}/${options.site}/reply/`;
  if (responseTopic?.startsWith(prefix) && responseTopic.length <= 256 && !/[+#\0]/.test(responseTopic))
    return { topic: responseTopic, ...(correlation === undefined ? {} : { correlation }) };
  return id === "" ? undefined : { topic: `${ROOT}/${options.site}/${options.node}/res/${id}` };
}

async function refuse(
  options: GateOptions,
  request: Pick<Request, "id" | "verb" | "args" | "caller">,
  refusal: Refusal,
  to: ReplyTo | undefined,
): Promise<void> {
  await options.dispatcher.refused(request, refusal);
  const result: CommandResult = {
    id: request.id,
    verb: request.verb,
    state: refusal.code === "expired" ? "expired" : "refused",
    code: refusal.code,
    message: refusal.message,
  };
  if (to) options.reply(to, result);
  tellRefused(options, request.verb, result);
}

function tellRefused(options: GateOptions, verb: string, { id, code, message }: CommandResult): void {
  if (options.refusals.take())
    options.tell("command.refused", { verb, ...(id ? { id } : {}), code, message });
}
