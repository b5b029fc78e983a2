/**
 * `trust.json`: whose signatures a node believes, and how many of them.
 *
 * ```json
 * { "schema": "fruit.trust/1", "version": 1, "threshold": { "release": 2 },
 *   "signers": [{ "id": "org.example.anna", "key": "ssh-ed25519 AAAA… anna", "roles": ["release"] }, …] }
 * ```
 *
 * Invariants
 * - A threshold counts keys, not ids: a key that stands under two ids counts once.
 * - A threshold that the signers listed cannot reach is refused: such a file would stop all updates.
 *
 * `rotation.ts` says how the next version comes to a node.
 */
import * as v from "valibot";
import { isSoundPublicKey } from "./ed25519.ts";

/** What a signer may sign: updates, the next `trust.json`, heads. */
export const TRUST_ROLES = ["release", "trust", "head"] as const;
export type TrustRole = (typeof TRUST_ROLES)[number];

/** Longest `trust.json` that is read, bytes. */
export const TRUST_MAX_BYTES = 65_536;
/** Form of a signer's id: the key of the map `signatures` (BEP 35), a reversed domain name by custom. */
export const SIGNER_ID = /^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$/;

/** A `trust.json` that was read. */
export interface Trust {
  version: number;
  /** How many different keys must have signed; a role without a number is nobody's. */
  threshold: Readonly<Partial<Record<TrustRole, number>>>;
  signers: readonly TrustedSigner[];
}

/** Somebody whose signature counts. */
export interface TrustedSigner {
  id: string;
  /** 32 bytes. */
  publicKey: Uint8Array;
  roles: readonly TrustRole[];
}

/** A `trust.json` that must not be used; one line for each problem, with its path and value. */
export class TrustError extends Error {
  override name = "TrustError";
  readonly problems: readonly string[];
  constructor(problems: readonly string[], options?: ErrorOptions) {
    super(problems.join("\n"), options);
    this.problems = problems;
  }
}

const positive = v.pipe(v.number(), v.safeInteger(), v.minValue(1));
const schema = v.strictObject({
  schema: v.literal("fruit.trust/1"),
  version: positive,
  threshold: v.strictObject({
    release: positive,
    trust: v.optional(positive),
    head: v.optional(positive),
  }),
  signers: v.pipe(
    v.array(
      v.strictObject({
        id: v.pipe(v.string(), v.regex(SIGNER_ID)),
        key: v.pipe(
          v.string(),
          v.check(
            (line) => readKeyLine(line) !== undefined,
            'is no line "ssh-ed25519 AAAA…" with a sound key',
          ),
        ),
        roles: v.pipe(v.array(v.picklist(TRUST_ROLES)), v.minLength(1)),
      }),
    ),
    v.maxLength(100),
  ),
});

/** Reads `trust.json`. Throws `TrustError` with every problem in it. */
export function parseTrust(text: string): Trust {
  if (Buffer.byteLength(text) > TRUST_MAX_BYTES)
    throw new TrustError([`${Buffer.byteLength(text)} bytes; at most ${TRUST_MAX_BYTES} are read`]);
  let document: unknown;
  try {
    document = JSON.parse(text);
  } catch (cause) {
    throw new TrustError([`no JSON: ${cause instanceof Error ? cause.message : String(cause)}`], { cause });
  }
  const parsed = v.safeParse(schema, document);
  if (!parsed.success) throw new TrustError(parsed.issues.map(problemOf));
  // JSON.parse keeps the last of two: what a person reads must be what counts
  if (JSON.stringify(document) !== text.replace(/("(?:[^"\\]|\\.)*")|\s+/g, "$1"))
    throw new TrustError([
      "(top): a key stands twice, or a number or a text is written in another way than JSON.stringify would",
    ]);
  const { version, threshold, signers } = parsed.output;
  const trust: Trust = {
    version,
    threshold: Object.fromEntries(Object.entries(threshold).filter(([, count]) => count !== undefined)),
    signers: signers.map(({ id, key, roles }) => ({
      id,
      publicKey: readKeyLine(key) ?? new Uint8Array(),
      roles,
    })),
  };
  const problems = contradictions(trust);
  if (problems.length > 0) throw new TrustError(problems);
  return trust;
}

/** A public key as `ssh-keygen` writes it into `.pub` files, for `trust.json`. */
export function keyLine(publicKey: Uint8Array): string {
  return `ssh-ed25519 ${Buffer.concat([BLOB_PREFIX, publicKey]).toString("base64")}`;
}

/** Who of the trusted may sign for a role. */
export const signersFor = (trust: Trust, role: TrustRole): readonly TrustedSigner[] =>
  trust.signers.filter((signer) => signer.roles.includes(role));

/** A signer's key, hex: by it the node remembers what somebody has said. */
export const keyOf = ({ publicKey }: Pick<TrustedSigner, "publicKey">): string =>
  Buffer.from(publicKey).toString("hex");

/** How many different keys these signers have. */
export const distinctKeys = (signers: Iterable<TrustedSigner>): number =>
  new Set(Array.from(signers, keyOf)).size;

/** RFC 8709 §4: the type's name and the length of the key, each as an SSH string begins. */
const BLOB_PREFIX = Buffer.concat([
  Buffer.from([0, 0, 0, 11]),
  Buffer.from("ssh-ed25519"),
  Buffer.from([0, 0, 0, 32]),
]);

function readKeyLine(line: string): Uint8Array | undefined {
  const [, base64 = ""] = /^ssh-ed25519 ([A-Za-z0-9+/]+=*)(?: .*)?$/.exec(line.trim()) ?? [];
  const blob = Buffer.from(base64, "base64");
  if (blob.length !== BLOB_PREFIX.length + 32 || blob.toString("base64") !== base64) return undefined;
  if (!blob.subarray(0, BLOB_PREFIX.length).equals(BLOB_PREFIX)) return undefined;
  const publicKey = new Uint8Array(blob.subarray(BLOB_PREFIX.length));
  return isSoundPublicKey(publicKey) ? publicKey : undefined;
}

function contradictions(trust: Trust): string[] {
  const problems: string[] = [];
  for (const [index, { id }] of trust.signers.entries())
    if (trust.signers.findIndex((other) => other.id === id) < index)
      problems.push(`signers.${index}.id: "${id}" stands twice`);
  for (const role of TRUST_ROLES) {
    const [needed, keys] = [trust.threshold[role], distinctKeys(signersFor(trust, role))];
    if (needed !== undefined && needed > keys)
      problems.push(`threshold.${role}: ${needed}, but only ${keys} different keys have the role "${role}"`);
  }
  return problems;
}

/** Path, what is wrong, and the value. */
function problemOf(issue: v.BaseIssue<unknown>): string {
  const path = v.getDotPath(issue) ?? "(top)";
  if (issue.expected === "never") return `${path}: unknown key`;
  if (issue.received === "undefined") return `${path}: is missing`;
  const value = JSON.stringify(issue.input)?.slice(0, 60);
  return `${path}: ${value} ${issue.kind === "validation" && issue.type === "check" ? issue.message : `is not ${issue.expected ?? issue.type}`}`;
}
