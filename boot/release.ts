/**
 * The one place that decides whether a release is to be believed.
 *
 * Invariants
 * - Nothing of an update file is given out before enough signers of `trust.json` were found to have signed the same bytes.
 * - Cheap checks come first: a file for another board costs no signature check.
 * - Signers count by their keys, and only those that state exactly the same: a statement is never put together from several.
 * - Who has signed what was confirmed here counts for nothing older (`floors.ts`).
 * - An unset clock refuses nothing that is in time, and never makes an expired release young: time is at least the latest that is
 *   known for certain.
 */
import { misplaced } from "./area.ts";
import type { Received } from "./bencode.ts";
import type { Release } from "./content.ts";
import { isReduced, verifyEd25519 } from "./ed25519.ts";
import type { SignerFloor } from "./floors.ts";
import type { Statement } from "./statement.ts";
import { distinctKeys, keyOf, signersFor, type Trust, type TrustedSigner } from "./trust.ts";
import {
  parseUpdate,
  ReleaseError,
  readSignature,
  readStatement,
  type Signed,
  signedBytes,
  type UpdateFile,
} from "./updatefile.ts";

/** How far ahead of ours the clock of whoever made a release or a head may be, seconds. */
export const CLOCK_SKEW_SECONDS = 3600;

/** A moment for people: UTC, to the second. */
export const instant = (unixSeconds: number): string =>
  `${new Date(unixSeconds * 1000).toISOString().slice(0, 19)}Z`;

/** The node that a release would be installed on, as far as the release depends on it. */
export interface Situation {
  /** Unix seconds; undefined while the clock is not synchronised. */
  now: number | undefined;
  /** The latest time that is certainly past, Unix seconds: the later of this program's build and the newest signed time seen. */
  atLeast: number;
  /** `compatible` strings of its device tree; "any" on a desk, where nothing is installed. */
  boards: readonly string[] | "any";
  /** The version floor of its record. */
  floor: bigint;
  /** The version it runs; undefined where it runs from no slot. */
  running: bigint | undefined;
  /** From which version on a signer's word counts here; from the first unless said otherwise. */
  signerFloor?: SignerFloor;
}

/** Reads an update file and decides about it. Throws `ReleaseError`. */
export function verifyRelease(bytes: Uint8Array, trust: Trust, node: Situation): Release {
  const file = parseUpdate(bytes);
  const candidate = agreedBy(file, trust);
  const statement = readStatement(candidate.statement);
  fits(statement, node);
  isInTime(statement, node);
  agrees(statement, file);
  const signers = believed(stillCounting(candidate, statement, trust, node), file, trust);
  const { sha256, sha512, ...stated } = statement;
  const { infohash, info } = file;
  return { ...stated, infohash, name: info.name, piecesRoot: Uint8Array.from(info.piecesRoot), signers };
}

/** Whose signature of a file holds, of those that `trust.json` names for releases; whether they are enough is not asked. */
export function signersOf(file: UpdateFile, trust: Trust): TrustedSigner[] {
  return signersFor(trust, "release").filter(({ id, publicKey }) => {
    const received = file.signatures.get(id);
    if (!received) return false;
    const { statement, signature } = readSignature(id, received);
    return verifyEd25519(publicKey, signedBytes(file.infoBytes, statement.bytes), signature);
  });
}

/** Signers that state the same, with the same bytes. */
interface Candidate {
  statement: Received;
  by: { signer: TrustedSigner; signature: Uint8Array }[];
}

/** The one statement that enough trusted signers put their name to; whether they did is not checked here. */
function agreedBy(file: UpdateFile, trust: Trust): Candidate {
  if (file.signatures.size === 0) throw new ReleaseError("unsigned", "nobody has signed it");
  const known = signersFor(trust, "release");
  const candidates = new Map<string, Candidate>();
  for (const signer of known) {
    const received = file.signatures.get(signer.id);
    if (!received) continue;
    const { statement, signature }: Signed = readSignature(signer.id, received);
    const key = Buffer.from(statement.bytes).toString("latin1");
    const candidate = candidates.get(key) ?? { statement, by: [] };
    candidates.set(key, candidate);
    candidate.by.push({ signer, signature });
  }
  const all = [...candidates.values()];
  const [first] = all;
  if (!first) {
    const found = [...file.signatures.keys()].map(quoted).join(", ");
    throw new ReleaseError(
      "unknown-signer",
      `signed by ${found}, whom trust.json version ${trust.version} does not name for releases (it names ${names(known)})`,
    );
  }
  const enough = all.filter(({ by }) => distinctKeys(by.map(({ signer }) => signer)) >= needed(trust));
  const [agreed, ...others] = enough;
  if (agreed && others.length === 0) return agreed;
  if (all.length > 1)
    throw new ReleaseError(
      "signers-disagree",
      `its signers do not state the same: ${all.map(({ by }) => names(by.map(({ signer }) => signer))).join(" against ")}`,
    );
  throw tooFew(
    trust,
    first.by.map(({ signer }) => signer),
  );
}

/** Throws `ReleaseError` unless it is for this node. */
export function fits(
  { boards, version, minFrom }: Pick<Release, "boards" | "version" | "minFrom">,
  node: Situation,
): void {
  const own = node.boards;
  if (own !== "any" && !boards.some((board) => own.includes(board)))
    throw new ReleaseError(
      "wrong-board",
      `it is for ${boards.join(", ")}; this node is ${own.join(", ") || "of no known kind"}`,
    );
  if (version < node.floor)
    throw new ReleaseError(
      "below-floor",
      `its version is ${version}; this node takes ${node.floor} and higher`,
    );
  if (node.running !== undefined && node.running < minFrom)
    throw new ReleaseError(
      "below-min-from",
      `it installs from version ${minFrom} on; this node runs ${node.running}: install a release between them first`,
    );
}

/** Throws `ReleaseError` once it has expired, and before it was made. */
export function isInTime(
  { created, expires }: Pick<Release, "created" | "expires">,
  { now, atLeast }: Pick<Situation, "now" | "atLeast">,
): void {
  const time = Math.max(now ?? 0, atLeast);
  const clock = now === undefined ? "the clock is not set, but it is at least" : "it is now";
  if (time >= expires)
    throw new ReleaseError("expired", `it expired at ${instant(expires)}; ${clock} ${instant(time)}`);
  if (now !== undefined && created > time + CLOCK_SKEW_SECONDS)
    throw new ReleaseError("not-yet", `it was made at ${instant(created)}; it is now ${instant(time)}`);
}

/** Those of the signers who have not signed a newer version that was confirmed here. Throws unless they are enough. */
function stillCounting(
  { statement, by }: Candidate,
  { version, target }: Statement,
  trust: Trust,
  { signerFloor }: Situation,
): Candidate {
  const floorOf = ({ signer }: Candidate["by"][number]) => signerFloor?.(keyOf(signer), target) ?? 0n;
  const still = by.filter((one) => floorOf(one) <= version);
  if (distinctKeys(still.map(({ signer }) => signer)) >= needed(trust)) return { statement, by: still };
  const past = by.filter((one) => !still.includes(one));
  const [named] = past;
  throw new ReleaseError(
    "below-floor",
    `its version is ${version}; ${names(past.map(({ signer }) => signer))} signed a newer one that was confirmed here (${named ? floorOf(named) : 0n}), and counts for nothing older`,
  );
}

/** Whether what was signed agrees with itself. */
function agrees({ size, boot }: Statement, { info }: UpdateFile): void {
  if (size !== info.length)
    throw new ReleaseError("content-disagrees", `its size is ${size}, but info.length is ${info.length}`);
  const why = misplaced(boot, size);
  if (why !== undefined) throw new ReleaseError("boot-files", why);
}

/** Who of them really signed. Throws unless they are enough. */
function believed({ statement, by }: Candidate, file: UpdateFile, trust: Trust): string[] {
  const message = signedBytes(file.infoBytes, statement.bytes);
  const isGood = ({ signer, signature }: Candidate["by"][number]) =>
    verifyEd25519(signer.publicKey, message, signature);
  const good = by.filter(isGood);
  const signers = good.map(({ signer }) => signer);
  if (distinctKeys(signers) >= needed(trust)) return signers.map(({ id }) => id);
  const bad = by.find((one) => !good.includes(one));
  if (!bad) throw tooFew(trust, signers);
  const why = isReduced(bad.signature)
    ? "does not match what it stands with"
    : "has an S that is not below the order of the curve: it is a changed copy";
  throw new ReleaseError(
    "bad-signature",
    `the signature of ${bad.signer.id} ${why}; ${distinctKeys(signers)} of the ${needed(trust)} needed hold`,
  );
}

function tooFew(trust: Trust, signers: readonly TrustedSigner[]): ReleaseError {
  const missing = signersFor(trust, "release").filter((one) => !signers.includes(one));
  return new ReleaseError(
    "not-enough-signers",
    `${needed(trust)} different keys must sign it, ${distinctKeys(signers)} have (${names(signers)}); missing: ${names(missing)}`,
  );
}

const needed = (trust: Trust) => trust.threshold.release ?? Number.POSITIVE_INFINITY;
const names = (signers: readonly TrustedSigner[]) => signers.map(({ id }) => id).join(", ") || "nobody";
const quoted = (id: string) => JSON.stringify(id.slice(0, 100));
