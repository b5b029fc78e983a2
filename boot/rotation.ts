/**
 * How `trust.json` is replaced from afar: a chain (`.trust`) of links, each the exact text of the next `trust.json` and who signed it,
 * as TUF rotates its root.
 *
 * ```
 * { "links": [ { "signatures": { KEY: SIGNATURE, … }, "text": "{\"schema\":\"fruit.trust/1\",\"version\":2,…" }, … ],
 *   "schema": "fruit.trust-chain/1" }                   canonical bencode; KEY 32 bytes, SIGNATURE 64
 * ```
 *
 * A signature covers `"FRUIT-TRUST-v1\0" || text`.
 *
 * Invariants
 * - A link counts when enough keys with the role `trust` of the one before it, and enough of its own, have signed it.
 * - From version N only N + 1 follows: no link is skipped, and nothing goes back.
 * - Whoever is not listed any more is believed no more, and what that key had said is forgotten, even if it is listed again.
 */
import { decodeBencode, encodeBencode } from "./bencode.ts";
import { PUBLIC_KEY_BYTES, SIGNATURE_BYTES, verifyEd25519 } from "./ed25519.ts";
import { explained, Fields } from "./fields.ts";
import {
  distinctKeys,
  keyOf,
  parseTrust,
  signersFor,
  TRUST_MAX_BYTES,
  TRUST_ROLES,
  type Trust,
  TrustError,
  type TrustRole,
} from "./trust.ts";

/** Longest chain that is read, bytes. */
export const CHAIN_MAX_BYTES = 1_048_576;
/** Most links of one chain; a vendor that has rotated more often gives out two. */
export const CHAIN_MAX_LINKS = 64;
/** Those of the one before and of its own: `trust.json` has at most 100 signers. */
const MOST_SIGNATURES = 200;
const SCHEMA = "fruit.trust-chain/1";
const DOMAIN = Buffer.from("FRUIT-TRUST-v1\0");

/** Why a chain is refused; programs branch on it. */
export type RotationProblem =
  | "too-large"
  | "not-canonical"
  | "malformed"
  | "gap"
  | "another"
  | "fixed"
  | "not-enough-signers"
  | "bad-signature";

/** A chain that leads nowhere from here: which link, and why. */
export class RotationError extends Error {
  override name = "RotationError";
  readonly code: RotationProblem;
  constructor(code: RotationProblem, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}

/** One step of a chain, not yet believed. */
export interface Link {
  /** The next `trust.json` as it was signed. */
  text: string;
  trust: Trust;
  /** By public key, hex. */
  signatures: ReadonlyMap<string, Uint8Array>;
}

/** Where a chain led to. */
export interface Rotated {
  trust: Trust;
  /** The newest `trust.json`; undefined where this one is the newest already. */
  text?: string;
  /** Keys, hex, that lost the role on the way: what they said is forgotten. */
  gone: Readonly<Record<TrustRole, ReadonlySet<string>>>;
}

/** The bytes that a signature of a link covers. */
export const linkBytes = (text: string): Buffer => Buffer.concat([DOMAIN, Buffer.from(text)]);

/** Reads a chain, trusting nothing. Throws `RotationError`: too-large, not-canonical, malformed, gap. */
export function parseChain(bytes: Uint8Array): Link[] {
  if (bytes.length > CHAIN_MAX_BYTES)
    throw new RotationError("too-large", `${bytes.length} bytes; a chain has at most ${CHAIN_MAX_BYTES}`);
  const links = explained(() => {
    const fields = new Fields(decodeBencode(bytes, CHAIN_MAX_BYTES), "the chain");
    fields.only("links", "schema");
    fields.text("schema", /^fruit\.trust-chain\/1$/);
    return fields.all("links", CHAIN_MAX_LINKS).map(readLink);
  }, RotationError);
  for (const [index, { trust }] of links.entries()) {
    const before = links[index - 1]?.trust.version;
    if (before !== undefined && trust.version !== before + 1)
      throw new RotationError("gap", `version ${trust.version} stands behind version ${before}`);
  }
  return links;
}

/** A chain as it is written. Throws `RotationError` where `parseChain` would. */
export function encodeChain(links: readonly Pick<Link, "text" | "signatures">[]): Buffer {
  const bytes = encodeBencode({
    links: links.map(({ text, signatures }) => ({
      signatures: new Map(
        [...signatures].map(([key, signature]) => [Buffer.from(key, "hex").toString("latin1"), signature]),
      ),
      text,
    })),
    schema: SCHEMA,
  });
  parseChain(bytes);
  return bytes;
}

/** Follows a chain from a node's own `trust.json` as far as it leads. Throws `RotationError`, and then nothing of it counts. */
export function follow(own: Trust, links: readonly Link[]): Rotated {
  const gone: Record<TrustRole, Set<string>> = { release: new Set(), trust: new Set(), head: new Set() };
  let current = own;
  let text: string | undefined;
  for (const link of links) {
    if (link.trust.version < own.version) continue;
    if (link.trust.version === own.version) {
      refuseAnother(own, link);
      continue;
    }
    step(current, link);
    for (const role of TRUST_ROLES) for (const key of lost(current, link.trust, role)) gone[role].add(key);
    current = link.trust;
    text = link.text;
  }
  return { trust: current, ...(text === undefined ? {} : { text }), gone };
}

/** Who of a `trust.json` signed a link. */
export function signersOf({ text, signatures }: Pick<Link, "text" | "signatures">, trust: Trust) {
  const message = linkBytes(text);
  return signersFor(trust, "trust").filter((signer) => {
    const signature = signatures.get(keyOf(signer));
    return signature !== undefined && verifyEd25519(signer.publicKey, message, signature);
  });
}

/** Throws `RotationError` unless this link may follow. */
function step(current: Trust, link: Link): void {
  const { version } = link.trust;
  if (version !== current.version + 1)
    throw new RotationError(
      "gap",
      `it goes on with version ${version}, but version ${current.version + 1} must come first: from ${current.version} there is no way past it`,
    );
  for (const [trust, whose] of [
    [current, `version ${current.version}`],
    [link.trust, "itself"],
  ] as const) {
    const needed = trust.threshold.trust;
    if (needed === undefined)
      throw new RotationError(
        "fixed",
        `version ${version}: ${whose} has no threshold for the role "trust", so that nobody can sign the next`,
      );
    const signed = signersOf(link, trust);
    const good = distinctKeys(signed);
    if (good >= needed) continue;
    const listed = signersFor(trust, "trust");
    const bad = listed.find((one) => link.signatures.has(keyOf(one)) && !signed.includes(one));
    if (bad)
      throw new RotationError(
        "bad-signature",
        `version ${version}: the signature of ${bad.id} does not match it; ${good} of the ${needed} that ${whose} asks for hold`,
      );
    const names = listed.map(({ id }) => id).join(", ");
    throw new RotationError(
      "not-enough-signers",
      `version ${version}: ${needed} different keys of ${whose} must sign it (${names}), ${good} have`,
    );
  }
}

/** Two of one version: somebody shows different nodes different things, or a file was edited by hand. */
function refuseAnother(own: Trust, { trust }: Link): void {
  const plain = ({ version, threshold, signers }: Trust) =>
    JSON.stringify([version, threshold, signers.map((one) => [one.id, keyOf(one), one.roles])], sorted);
  if (plain(own) !== plain(trust))
    throw new RotationError(
      "another",
      `its version ${trust.version} is another than the trust.json of version ${own.version} here`,
    );
}

const sorted = (_key: string, value: unknown) =>
  value !== null && typeof value === "object" && !Array.isArray(value)
    ? Object.fromEntries(Object.entries(value).sort())
    : value;

/** Keys that had a role and have it no more. */
function lost(before: Trust, after: Trust, role: TrustRole): string[] {
  const kept = new Set(signersFor(after, role).map(keyOf));
  return signersFor(before, role)
    .map(keyOf)
    .filter((key) => !kept.has(key));
}

function readLink(link: Fields): Link {
  link.only("signatures", "text");
  const raw = Buffer.from(link.bytes("text"));
  if (raw.length > TRUST_MAX_BYTES)
    link.refuse("text", `has ${raw.length} bytes; a trust.json has at most ${TRUST_MAX_BYTES}`);
  const text = raw.toString();
  if (!Buffer.from(text).equals(raw)) link.refuse("text", "is no UTF-8");
  const signatures = link.fields("signatures");
  const keys = signatures.keys();
  if (keys.length > MOST_SIGNATURES)
    link.refuse("signatures", `has ${keys.length} entries; at most ${MOST_SIGNATURES} are read`);
  const strange = keys.find((key) => key.length !== PUBLIC_KEY_BYTES);
  if (strange !== undefined)
    signatures.refuse(strange, `is no key: it has ${strange.length} bytes, not ${PUBLIC_KEY_BYTES}`);
  return {
    text,
    trust: readText(link, text),
    signatures: new Map(
      keys.map((key) => [
        Buffer.from(key, "latin1").toString("hex"),
        Uint8Array.from(signatures.bytes(key, SIGNATURE_BYTES)),
      ]),
    ),
  };
}

function readText(link: Fields, text: string): Trust {
  try {
    return parseTrust(text);
  } catch (cause) {
    if (!(cause instanceof TrustError)) throw cause;
    return link.refuse("text", `is no trust.json: ${cause.problems.join("; ")}`);
  }
}
