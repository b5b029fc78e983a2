/**
 * The envelope of a command on MQTT: plain, or signed over the exact bytes of the plain form.
 *
 * Invariants
 * - What was signed is never written anew: digest, signature and parsing all use the bytes as they came. So a key that
 *   stands twice in the JSON is harmless: the last counts, for the signer's tools as for this node.
 * - An envelope that claims a signature is judged by it; there is no way from a bad one to the plain form.
 * - A sender learns nothing from a bad signature: one answer for all reasons. The reason is in `SignatureRefusal.why`.
 * - Nobody can use up what a key may: anybody can name a key they do not have, so failures in its name, ten and then
 *   one a minute, decide only whether the answer is still `unauthorised` or `rate-limited`. What the key did sign is
 *   still verified, and verifying alone is bounded: for keys in whose name too much failed, `verifications` for all of
 *   them together. It costs about 0.1 ms here and 0.5 ms on a slow Pi, not much more than to receive the message, so
 *   200 a second is a tenth of a slow core. Whoever sends more than that for a key already crowds the broker. Keys
 *   that are not in the file cost no verifying; their failures are pooled.
 */
import { createHash } from "node:crypto";
import * as v from "valibot";
import { type Code, clip, Refusal } from "../commands.ts";
import { problemsOf } from "../issues.ts";
import { CommandPayload, SignedEnvelope } from "../messages.ts";
import type { SigningKey } from "./keys.ts";
import type { FailureLimit } from "./limit.ts";
import { isValidAt, type Signer, type Signers } from "./signers.ts";
import { SignatureError, verifySshsig } from "./sshsig.ts";

/** What commands are signed for; a signature made for anything else is none. */
export const COMMAND_NAMESPACE = "fruit-cmd@v1";

/** Longest envelope, bytes. */
export const ENVELOPE_MAX_BYTES = 16_384;

/** Longest life of a command, seconds: a power switch must not happen minutes after it was wanted. */
export const COMMAND_MAX_SECONDS = 300;

/** Seconds that the clocks of sender and node may differ. */
const SKEW_SECONDS = 60;

/** A signature that was not accepted. The message says no more than that; `why` is for the log and the audit log. */
export class SignatureRefusal extends Refusal {
  readonly why: string;
  constructor(why: string) {
    super("unauthorised", "signature not accepted");
    this.why = why;
  }
}

/** An envelope that was understood; with a signer, one whose signature holds. */
export interface Opened {
  payload: CommandPayload;
  /** SHA-256 of the payload's exact bytes, hex. */
  digest: string;
  signer?: Signer;
}

/** What opening needs to know; without `signers` every signature is refused. */
export interface OpenOptions {
  signers: Signers | undefined;
  /** Counts what failed in a key's name, whoever sent it; all unknown keys together. */
  failures: FailureLimit;
  /** Signatures that are verified all the same when too much failed in their keys' names. */
  verifications: FailureLimit;
  /** Unix seconds. */
  nowSeconds?: number;
}

/** Reads an envelope. Throws `Refusal`: too-large, bad-utf8, bad-json, bad-envelope, rate-limited, unauthorised. */
export function openEnvelope(bytes: Uint8Array, options: OpenOptions): Opened {
  if (bytes.length > ENVELOPE_MAX_BYTES)
    throw new Refusal(
      "too-large",
      `the envelope has ${bytes.length} bytes; at most ${ENVELOPE_MAX_BYTES} are read`,
    );
  const document = parseJson(bytes);
  if (!isSigned(document)) return { payload: parsePayload(document), digest: sha256(bytes) };

  const envelope = parse(SignedEnvelope, document);
  const message = new Uint8Array(Buffer.from(envelope.p, "base64"));
  const signer = authenticate(envelope, message, options);
  const payload = parsePayload(parseJson(message));
  // A node without a clock believes the later of its own and the sender's time: an honest tool is held to its key's
  // dates; only removing the line holds everybody.
  const seconds = Math.max(options.nowSeconds ?? Date.now() / 1000, payload.iat);
  if (!isValidAt(signer, seconds))
    throw failed(
      options,
      signer,
      new SignatureRefusal(`the key of ${signer.principal} is outside its validity`),
    );
  return { payload, digest: sha256(message), signer };
}

function authenticate(envelope: SignedEnvelope, message: Uint8Array, options: OpenOptions): Signer {
  const { signers, failures, verifications } = options;
  const signer = signers?.find(envelope.k);
  if (signer && !failures.isOpen(signer.fingerprint) && !verifications.take()) throw tooMany();
  try {
    if (!signer) throw new SignatureRefusal(`${envelope.k} is not among the allowed signers`);
    if (!signer.maySign(COMMAND_NAMESPACE))
      throw new SignatureRefusal(`the key of ${signer.principal} is not for ${COMMAND_NAMESPACE}`);
    const by = verifySshsig(envelope.s, COMMAND_NAMESPACE, message);
    if (by.fingerprint !== signer.fingerprint)
      throw new SignatureRefusal(`made by ${by.fingerprint}, but k says ${signer.fingerprint}`);
    return signer;
  } catch (cause) {
    throw failed(options, signer, cause);
  }
}

/** Counts a failure, and says what the sender is told of it. */
function failed({ failures }: OpenOptions, signer: Signer | undefined, cause: unknown): unknown {
  if (!failures.take(signer?.fingerprint ?? "")) return tooMany();
  return cause instanceof SignatureError ? new SignatureRefusal(cause.message) : cause;
}

const tooMany = () =>
  new Refusal("rate-limited", "too many signatures were not accepted; try again in a minute");

/** The id that an envelope gives itself, whoever made it: good for an answer, and for nothing else. Empty when there is none. */
export function claimedId(bytes: Uint8Array): string {
  if (bytes.length > ENVELOPE_MAX_BYTES) return "";
  try {
    const document = parseJson(bytes);
    const claim = isSigned(document) ? parseJson(Buffer.from(String(document.p), "base64")) : document;
    return v.parse(v.object({ id: CommandPayload.entries.id }), claim).id;
  } catch {
    return "";
  }
}

/** Signs a command: JSON text for `cmd/<verb>`. Throws `Refusal` bad-envelope when the payload is none. */
export async function sealCommand(payload: CommandPayload, key: SigningKey): Promise<string> {
  const message = new Uint8Array(Buffer.from(JSON.stringify(parse(CommandPayload, payload))));
  const envelope: SignedEnvelope = {
    p: Buffer.from(message).toString("base64"),
    s: await key.sign(COMMAND_NAMESPACE, message),
    k: key.fingerprint,
  };
  const text = JSON.stringify(envelope);
  if (text.length > ENVELOPE_MAX_BYTES)
    throw new Refusal(
      "too-large",
      `signed, the command has ${text.length} bytes; at most ${ENVELOPE_MAX_BYTES} are read`,
    );
  return text;
}

/** Where and when a command is looked at. */
export interface Binding {
  site: string;
  node: string;
  verb: string;
  nowSeconds: number;
  clockSynced: boolean;
  challenge: string;
  /** Longest life: `exp - iat`. */
  maxSeconds: number;
  /** Unsigned commands are harmless, so that a node without a clock takes them without a challenge. */
  isSigned: boolean;
}

/** Refuses a payload that was not made for this place, verb and time. Throws `Refusal`. */
export function checkBinding(payload: CommandPayload, here: Binding): void {
  const { iat, exp } = payload;
  const refuse = (code: Code, message: string) => {
    throw new Refusal(code, message);
  };
  if (payload.site !== here.site)
    refuse("wrong-site", `the command is for site "${clip(payload.site)}"; this is "${here.site}"`);
  if (payload.node !== here.node)
    refuse("wrong-node", `the command is for node "${clip(payload.node)}"; this is "${here.node}"`);
  if (payload.verb !== here.verb)
    refuse("wrong-topic", `the command says "${clip(payload.verb)}", its topic "${clip(here.verb)}"`);
  if (exp <= iat) refuse("bad-envelope", `exp ${exp} is not after iat ${iat}`);
  if (exp - iat > here.maxSeconds)
    refuse("bad-envelope", `exp is ${exp - iat} s after iat; at most ${here.maxSeconds} s are allowed`);
  if (!here.clockSynced) {
    if (here.isSigned && payload.challenge !== here.challenge)
      refuse(
        "clock",
        "this node's clock is not synchronised: sign again with the `challenge` that stands in its info (fruit sign cmd --challenge …)",
      );
    return;
  }
  const late = here.nowSeconds - exp;
  if (late > SKEW_SECONDS) refuse("expired", `the command expired ${Math.round(late)} s ago`);
  const early = iat - here.nowSeconds;
  if (early > SKEW_SECONDS)
    refuse(
      "clock",
      `the command was made ${Math.round(early)} s in the future: the sender's clock or this node's is wrong`,
    );
}

function isSigned(document: unknown): document is { p?: unknown } {
  return (
    typeof document === "object" &&
    document !== null &&
    ["p", "s", "k"].some((key) => Object.hasOwn(document, key))
  );
}

function parseJson(bytes: Uint8Array): unknown {
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    throw new Refusal("bad-utf8", "the payload is not UTF-8");
  }
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new Refusal("bad-json", `the payload is not JSON: ${clip(String(cause), 120)}`);
  }
}

function parsePayload(document: unknown): CommandPayload {
  // a list is a record of numbered keys to the schema
  if (Array.isArray((document as { args?: unknown } | null)?.args))
    throw new Refusal("bad-envelope", "args: expected an object, received a list");
  return parse(CommandPayload, document);
}

function parse<Schema extends v.GenericSchema>(schema: Schema, document: unknown): v.InferOutput<Schema> {
  const parsed = v.safeParse(schema, document);
  if (parsed.success) return parsed.output;
  throw new Refusal("bad-envelope", clip(problemsOf(parsed.issues.slice(0, 5)).join("; "), 300));
}

function sha256(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("hex");
}
