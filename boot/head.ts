/**
 * A head: which release of a target is the newest, and until when that is said. One BEP 44 mutable item, the same bytes wherever it is
 * carried (DHT, MQTT, a datagram, a file `NAME.head`), good by its own signature:
 *
 * ```
 * { "k": key, "salt": target, "seq": version, "sig": signature, "v": { "channel", "expires", "ih", "issued", "version", "withdrawn"? } }
 * ```
 *
 * | key of `v` | what |
 * |---|---|
 * | `channel`, `version` | as the release states them |
 * | `ih` | infohash, 20 bytes (BEP 46) |
 * | `issued`, `expires` | Unix seconds, a year apart at most: heads are made anew |
 * | `withdrawn` | 1 where the release is called back; a later head of the same version |
 *
 * Invariants
 * - A head never makes anything installable: it names a release, whose own signatures decide.
 * - An expired head is still a head. Who hears nothing newer raises an alarm and goes on updating.
 */
import { createHash } from "node:crypto";
import { decodeBencode, encodeBencode, type Received } from "./bencode.ts";
import type { Release } from "./content.ts";
import { isReduced, PUBLIC_KEY_BYTES, SIGNATURE_BYTES, verifyEd25519 } from "./ed25519.ts";
import { explained, Fields } from "./fields.ts";
import { CLOCK_SKEW_SECONDS, instant, type Situation } from "./release.ts";
import { CHANNEL_NAME, LAST_SECOND, TARGET_NAME } from "./statement.ts";
import { keyOf, signersFor, type Trust } from "./trust.ts";

/** Longest head, bytes: one datagram. */
export const HEAD_MAX_BYTES = 1400;
/** BEP 44: `v` has fewer bytes than this. */
const V_BYTES = 1000;
/** BEP 44's `seq` is a signed 64-bit integer. */
const SEQ_MAX = 2n ** 63n - 1n;
const INFOHASH_BYTES = 20;
/** What is said to hold for longer is no heartbeat. */
const LONGEST_SECONDS = 366 * 86_400;

/** Why a head is refused; programs branch on it. */
export type HeadProblem =
  | "too-large"
  | "not-canonical"
  | "malformed"
  | "wrong-target"
  | "wrong-channel"
  | "unknown-signer"
  | "bad-signature"
  | "not-yet"
  | "older"
  | "contradicts";

/** A head that says nothing to this node: what, and the value. */
export class HeadError extends Error {
  override name = "HeadError";
  readonly code: HeadProblem;
  constructor(code: HeadProblem, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}

/** What a head says. Times are Unix seconds. */
export interface Announced {
  target: string;
  channel: string;
  version: bigint;
  /** Hex. */
  infohash: string;
  issued: number;
  expires: number;
  isWithdrawn: boolean;
}

/** A head that was read; whether its signature holds was not looked at. */
export interface Head extends Announced {
  /** Public key, hex. */
  key: string;
  signature: Uint8Array;
  /** `v` as it was received. */
  v: Uint8Array;
  /** All of it. */
  bytes: Uint8Array;
}

/** Reads a head, trusting nothing. Throws `HeadError`: too-large, not-canonical, malformed. */
export function parseHead(bytes: Uint8Array): Head {
  if (bytes.length > HEAD_MAX_BYTES)
    throw new HeadError("too-large", `${bytes.length} bytes; a head has at most ${HEAD_MAX_BYTES}`);
  return explained(() => {
    const item = new Fields(decodeBencode(bytes, HEAD_MAX_BYTES), "the head");
    item.only("k", "salt", "seq", "sig", "v");
    const v = item.any("v");
    if (v.bytes.length >= V_BYTES)
      item.refuse("v", `has ${v.bytes.length} bytes; it has fewer than ${V_BYTES}`);
    const said = readV(v);
    const seq = item.integer("seq");
    if (seq !== said.version) item.refuse("seq", `is ${seq}, but v.version is ${said.version}`);
    return {
      ...said,
      target: item.text("salt", TARGET_NAME),
      key: hex(item.bytes("k", PUBLIC_KEY_BYTES)),
      signature: Uint8Array.from(item.bytes("sig", SIGNATURE_BYTES)),
      v: Uint8Array.from(v.bytes),
      bytes: Uint8Array.from(bytes),
    };
  }, HeadError);
}

/** The bytes of `v` for what is to be said. Throws `HeadError` where nobody would read it. */
export function encodeV(said: Announced): Buffer {
  const v = encodeBencode({
    channel: said.channel,
    expires: said.expires,
    ih: Buffer.from(said.infohash, "hex"),
    issued: said.issued,
    version: said.version,
    ...(said.isWithdrawn ? { withdrawn: 1 } : {}),
  });
  explained(() => readV(decodeBencode(v, V_BYTES)), HeadError);
  return v;
}

/** The bytes that a signature covers, BEP 44: salt, sequence number and value as they stand in a message. */
export function headBytes(target: string, version: bigint, v: Uint8Array): Buffer {
  const [salt, seq] = [encodeBencode(target), encodeBencode(version)];
  return Buffer.concat([Buffer.from("4:salt"), salt, Buffer.from("3:seq"), seq, Buffer.from("1:v"), v]);
}

/** A whole head. Throws `HeadError` where `parseHead` would. */
export function encodeHead(
  said: Pick<Announced, "target" | "version">,
  signed: { publicKey: Uint8Array; signature: Uint8Array; v: Uint8Array },
): Buffer {
  const bytes = encodeBencode({
    k: signed.publicKey,
    salt: said.target,
    seq: said.version,
    sig: signed.signature,
    v: decodeAny(signed.v),
  });
  parseHead(bytes);
  return bytes;
}

/** Where the DHT keeps the head of a key: SHA-1 of key and salt (BEP 44), hex. */
export const headId = (publicKey: Uint8Array, target: string): string =>
  createHash("sha1").update(publicKey).update(target).digest("hex");

/** What a node follows. */
export interface Following {
  target: string;
  channel: string;
}

/** Reads a head and decides whether it may be listened to; cheap checks first. Throws `HeadError`. */
export function verifyHead(
  bytes: Uint8Array,
  trust: Trust,
  { target, channel }: Following,
  { now }: Pick<Situation, "now">,
): Head {
  const head = parseHead(bytes);
  if (head.target !== target)
    throw new HeadError("wrong-target", `it is for ${head.target}; this node follows ${target}`);
  if (head.channel !== channel)
    throw new HeadError("wrong-channel", `it is of channel ${head.channel}; this node follows ${channel}`);
  const signer = signersFor(trust, "head").find((one) => keyOf(one) === head.key);
  if (!signer)
    throw new HeadError(
      "unknown-signer",
      `its key ${head.key.slice(0, 16)}… has not the role "head" in trust.json version ${trust.version}`,
    );
  // Once remembered, what was issued in the future would stand above all that is issued until then
  if (now !== undefined && head.issued > now + CLOCK_SKEW_SECONDS)
    throw new HeadError("not-yet", `it was issued at ${instant(head.issued)}; it is now ${instant(now)}`);
  if (!isReduced(head.signature))
    throw new HeadError(
      "bad-signature",
      `the signature of ${signer.id} has an S that is not below the order of the curve: it is a changed copy`,
    );
  if (!verifyEd25519(signer.publicKey, headBytes(head.target, head.version, head.v), head.signature))
    throw new HeadError("bad-signature", `the signature of ${signer.id} does not match it`);
  return head;
}

/** Positive where `a` is newer: by version, then by when it was issued. */
export function compareHeads(
  a: Pick<Head, "version" | "issued">,
  b: Pick<Head, "version" | "issued">,
): number {
  if (a.version !== b.version) return a.version > b.version ? 1 : -1;
  return a.issued - b.issued;
}

/** What enough keys say of one release. */
export interface Newest extends Announced {
  /** Ids of those who say so. */
  signers: readonly string[];
}

/**
 * What enough keys agree about, the newest first: of heads of different keys that name the same release in the same way. Its times are
 * those that enough of them vouch for. Only who has withdrawn a release can take that back. The second is for when what the first names
 * cannot be had from anybody.
 */
export function newestOf(heads: Iterable<Head>, trust: Trust): Newest[] {
  const needed = trust.threshold.head ?? Number.POSITIVE_INFINITY;
  const groups = new Map<string, Map<string, Head>>();
  for (const head of heads) {
    const said = [head.target, head.channel, head.version, head.infohash, head.isWithdrawn].join(" ");
    const group = groups.get(said) ?? new Map<string, Head>();
    groups.set(said, group);
    const other = group.get(head.key);
    if (!other || compareHeads(head, other) > 0) group.set(head.key, head);
  }
  const listed = signersFor(trust, "head");
  const all = [...groups.values()].flatMap((group): Newest[] => {
    const good = [...group.values()].filter(({ key }) => listed.some((one) => keyOf(one) === key));
    const [first] = good;
    if (!first || good.length < needed) return [];
    const { target, channel, version, infohash, isWithdrawn } = first;
    const vouched = (time: (head: Head) => number) => good.map(time).sort((a, b) => b - a)[needed - 1] ?? 0;
    return [
      {
        ...{ target, channel, version, infohash, isWithdrawn },
        issued: vouched(({ issued }) => issued),
        expires: vouched(({ expires }) => expires),
        signers: listed.filter((one) => group.has(keyOf(one))).map(({ id }) => id),
      },
    ];
  });
  return all.sort(byWeight);
}

/** Of one version a withdrawal stands first, however often others renew what they said; of the rest every node makes the same order. */
function byWeight(a: Newest, b: Newest): number {
  if (a.version === b.version && a.isWithdrawn !== b.isWithdrawn) return a.isWithdrawn ? -1 : 1;
  return compareHeads(b, a) || (a.infohash < b.infohash ? -1 : 1);
}

/** Why a release is not the one that a head names, whoever sent it under that name; undefined where it is. */
export function disagreement(
  head: Announced,
  release: Pick<Release, "target" | "channel" | "version" | "infohash">,
): string | undefined {
  for (const key of ["infohash", "version", "target", "channel"] as const)
    if (head[key] !== release[key]) return `its ${key} is ${release[key]}; the head names ${head[key]}`;
  return undefined;
}

/** For how long, seconds, a head has said nothing any more; 0 while it is in time. An unset clock makes no head young. */
export function overdue(
  { expires }: Pick<Announced, "expires">,
  { now, atLeast }: Pick<Situation, "now" | "atLeast">,
): number {
  return Math.max(0, Math.max(now ?? 0, atLeast) - expires);
}

function readV(received: Received): Omit<Announced, "target"> {
  const v = new Fields(received, "the head.v");
  v.only("channel", "expires", "ih", "issued", "version", "withdrawn");
  const issued = v.count("issued", 0, LAST_SECOND);
  const expires = v.count("expires", 0, LAST_SECOND);
  if (expires <= issued) v.refuse("expires", `is ${expires}, not after issued, ${issued}`);
  if (expires - issued > LONGEST_SECONDS)
    v.refuse("expires", `is ${(expires - issued) / 86_400} days after issued; at most 366`);
  const version = v.integer("version");
  if (version > SEQ_MAX) v.refuse("version", `is ${version}; a head can say 2^63-1 at most`);
  return {
    channel: v.text("channel", CHANNEL_NAME),
    version,
    infohash: hex(v.bytes("ih", INFOHASH_BYTES)),
    issued,
    expires,
    isWithdrawn: v.has("withdrawn") && v.count("withdrawn", 1, 1) === 1,
  };
}

const decodeAny = (v: Uint8Array) => explained(() => decodeBencode(v, V_BYTES), HeadError);

const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString("hex");
