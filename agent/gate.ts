/**
 * The MQTT door: turns what arrives on `cmd/<verb>` and `set/<kind>/<instance>` into requests, or refuses it by name.
 *
 * Order: retained → size, encoding, shape, signature (`openEnvelope`) → site, node, verb, time (`checkBinding`) → the table.
 * Unsigned callers have the role `read`; a signed form is what its signer's line in `allowed_signers` says, and nothing less
 * is accepted for it: there is no way down from a bad signature to an unsigned command.
 *
 * Answers go to the sender's response topic, or to `res/<id>`. An id is the sender's to choose, so `res/<id>` belongs to
 * the command that was accepted with it: nobody else's refusal is published there, and the same bytes once more are
 * answered with what is known of that command.
 */
import { createHash, randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import type { OutletId } from "../hal/ports.ts";
import {
  accountOf,
  type Caller,
  type CommandResult,
  clip,
  Refusal,
  type Request,
  type Role,
} from "./commands.ts";
import type { Dispatcher } from "./dispatch.ts";
import type { Log } from "./log.ts";
import { ROOT, type Tell } from "./messages.ts";
import type { Incoming } from "./mqtt/message.ts";
import { COMMAND_MAX_SECONDS, checkBinding, claimedId, openEnvelope } from "./sign/envelope.ts";
import type { FailureLimit } from "./sign/limit.ts";
import type { Signers } from "./sign/signers.ts";

/** A command for every node of a site is answered within this time, at random, so that 800 do not answer at once. */
const BROADCAST_SPREAD_MS = 5000;
/** Broadcasts that may wait for their moment. */
const MOST_BROADCASTS = 16;

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
  /** Failed signatures, and how many are verified nevertheless: see `openEnvelope`. */
  failures: FailureLimit;
  verifications: FailureLimit;
  /** Refusals told as events, for each account. */
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
    if (waiting >= MOST_BROADCASTS) {
      const full = new Refusal(
        "busy",
        `${MOST_BROADCASTS} commands for all wait for their moment; try again later`,
      );
      // Not answered: the same goes for every node of the site, at this very moment.
      await refuse(options, { id: "", verb, args: {}, caller: anonymous() }, full, () => undefined);
      return;
    }
    waiting++;
    try {
      const { random = Math.random, signal } = options;
      const isStopping = await sleep(random() * BROADCAST_SPREAD_MS, false, { signal }).catch(() => true);
      if (!isStopping) await command(options, verb, "all", incoming);
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
      options.log("error", "gate.failed", { topic: clip(incoming.topic, 256), error: String(error) }),
    );
}

async function command(options: GateOptions, verb: string, node: string, incoming: Incoming): Promise<void> {
  const { dispatcher, clock, challenge } = options;
  let id = "";
  let digest = "";
  let caller: Caller = anonymous();
  try {
    refuseRetained(incoming);
    if (verb.includes("/"))
      throw new Refusal("wrong-topic", `cmd/${clip(verb)}: a command topic is cmd/<verb>`);
    const { payload, signer, ...opened } = openEnvelope(incoming.payload, options);
    id = payload.id;
    digest = opened.digest;
    if (signer)
      caller = {
        door: "mqtt",
        who: `key:${signer.principal}`,
        key: signer.fingerprint,
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
      maxSeconds: COMMAND_MAX_SECONDS,
      isSigned: signer !== undefined,
    });
    if (node === "all" && !dispatcher.find(verb)?.broadcast)
      throw new Refusal(
        "unauthorised",
        `${clip(verb)} is not taken from ${ROOT}/${options.site}/all: send it to one node`,
      );
    if (signer && !clock().synced) challenge.renew();
    const answer = answerTo(options, incoming, id, digest);
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
        answer(result);
        if (result.state === "refused") tellRefused(options, caller, result);
      },
    );
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    id ||= claimedId(incoming.payload);
    await refuse(options, { id, verb, args: {}, caller }, error, answerTo(options, incoming, id, digest));
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
      throw new Refusal("wrong-topic", `set/${clip(path)}: a set topic is set/<kind>/<instance>`);
    const text = plainText(incoming.payload);
    const { verb, args } = meaning(kind, instance, text);
    const digest = createHash("sha256").update(incoming.payload).digest("hex");
    const request: Request = { id, verb, args, exp: Math.floor(Date.now() / 1000), digest, caller };
    const result = await dispatcher.execute(request, () => undefined);
    if (result.state === "refused") tellRefused(options, caller, result);
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    await refuse(options, { id, verb: `set.${kind}`, args: {}, caller }, error, () => undefined);
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
    throw new Refusal("bad-args", `set/outlet/${clip(instance)}: "${clip(text, 20)}" is neither ON nor OFF`);
  if (kind === "identify" && instance === "main") return { verb: "identify", args: {} };
  throw new Refusal(
    "wrong-topic",
    `set/${clip(kind)}/${clip(instance)}: there are set/outlet/<id> and set/identify/main`,
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
      `${clip(incoming.topic, 256)}: a retained command is never run; publish it without retain and clear the topic`,
    );
}

const anonymous = (): Caller => ({
  door: "mqtt",
  who: "anonymous",
  roles: new Set<Role>(["read"]),
  mayOutlet: () => true,
});

/** How the sender of a message hears of it; `digest` is empty while nothing was understood. */
function answerTo(
  options: GateOptions,
  incoming: Incoming,
  id: string,
  digest: string,
): (result: CommandResult) => void {
  const wished = responseTopic(options, incoming);
  if (wished) return (result) => options.reply(wished, result);
  if (id === "") return () => undefined;
  const topic = `${ROOT}/${options.site}/${options.node}/res/${id}`;
  const isFirst = !options.dispatcher.known(id);
  return (result) => {
    const known = options.dispatcher.known(id);
    const isSame = known?.digest === digest;
    if (!known || (isSame && isFirst)) options.reply({ topic }, result);
    else if (isSame && known.result) options.reply({ topic }, known.result);
  };
}

/** A response topic is chosen by whoever asks: only the reply tree is allowed, or this node would write for them where they cannot. */
function responseTopic({ site }: GateOptions, incoming: Incoming): ReplyTo | undefined {
  const { responseTopic: topic, correlation } = incoming;
  if (!topic?.startsWith(`${ROOT}/${site}/reply/`) || topic.length > 256 || /[+#\0]/.test(topic))
    return undefined;
  return { topic, ...(correlation === undefined ? {} : { correlation }) };
}

async function refuse(
  options: GateOptions,
  request: Pick<Request, "id" | "verb" | "args" | "caller">,
  refusal: Refusal,
  answer: (result: CommandResult) => void,
): Promise<void> {
  await options.dispatcher.refused(request, refusal);
  const result: CommandResult = {
    id: request.id,
    verb: clip(request.verb),
    state: refusal.state,
    code: refusal.code,
    message: refusal.message,
  };
  answer(result);
  tellRefused(options, request.caller, result);
}

function tellRefused(options: GateOptions, caller: Caller, { id, verb, code, message }: CommandResult): void {
  if (options.refusals.take(accountOf(caller)))
    options.tell("command.refused", { verb, ...(id ? { id } : {}), code, message });
}
