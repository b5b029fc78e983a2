/**
 * The update file (`.fruit`, the slides' Torrent-file++): a single-file v1 `.torrent` (BEP 3) whose `signatures` (BEP 35) hold what
 * each signer states about the release.
 *
 * ```
 * { "announce", "announce-list", "url-list", …       hints for other clients, that nobody signed: never believed
 *   "++": statement                                  only until the first signature, which then holds it
 *   "info": { "length", "name", "piece length", "pieces", "pieces root" }
 *   "signatures": { ID: { "info": statement, "signature": 64 bytes }, … } }
 * ```
 *
 * A signature covers `"FRUIT-TORRENT++-v1\0" || info || statement`, the bytes as they were received; `statement.ts` says what a
 * statement holds.
 */
import { createHash } from "node:crypto";
import { decodeBencode, type Encodable, encodeBencode, type Received } from "./bencode.ts";
import { LEAF_BYTES } from "./content.ts";
import { SIGNATURE_BYTES } from "./ed25519.ts";
import { explained, Fields } from "./fields.ts";
import { HASH_BYTES } from "./merkle.ts";
import { encodeStatement, type Statement, statementOf } from "./statement.ts";

/** Longest update file that is read, bytes. */
export const UPDATE_MAX_BYTES = 1_048_576;
/** Form of a release's name, which is that of its payload's file too. */
export const RELEASE_NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/;
const DOMAIN = Buffer.from("FRUIT-TORRENT++-v1\0");
const SHA1_BYTES = 20;
const PIECE_BYTES = { least: 65_536, most: 4_194_304 };
/** Why an update file is refused; programs branch on it. */
export type ReleaseProblem =
  | "too-large"
  | "not-canonical"
  | "malformed"
  | "unsigned"
  | "unknown-signer"
  | "signers-disagree"
  | "not-enough-signers"
  | "bad-signature"
  | "content-disagrees"
  | "boot-files"
  | "wrong-board"
  | "below-floor"
  | "below-min-from"
  | "expired"
  | "not-yet";

/** A release that must not be installed: what, where, and the value. */
export class ReleaseError extends Error {
  override name = "ReleaseError";
  readonly code: ReleaseProblem;
  constructor(code: ReleaseProblem, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}

/** What a BitTorrent client sees. */
export interface TorrentInfo {
  name: string;
  length: number;
  pieceLength: number;
  /** SHA-1 of each piece, one after the other. */
  pieces: Uint8Array;
  piecesRoot: Uint8Array;
}

/** An update file that was read; who signed it was not looked at. */
export interface UpdateFile {
  info: TorrentInfo;
  /** SHA-1 of `info`, hex. */
  infohash: string;
  /** `info` as it was received. */
  infoBytes: Uint8Array;
  /** What is to be signed, while nobody has. */
  proposal?: Received;
  /** By signer id. */
  signatures: ReadonlyMap<string, Received>;
  root: ReadonlyMap<string, Received>;
}

/** One signature, not yet verified, and what it is for. */
export interface Signed {
  statement: Received;
  signature: Uint8Array;
}

/** Reads an update file, trusting nothing. Throws `ReleaseError`: too-large, not-canonical, malformed. */
export function parseUpdate(bytes: Uint8Array): UpdateFile {
  if (bytes.length > UPDATE_MAX_BYTES)
    throw new ReleaseError(
      "too-large",
      `${bytes.length} bytes; an update file has at most ${UPDATE_MAX_BYTES}`,
    );
  return explained(() => {
    const document = decodeBencode(bytes, UPDATE_MAX_BYTES);
    const fields = new Fields(document, "the file");
    const received = fields.any("info");
    const proposal = fields.has("++") ? fields.any("++") : undefined;
    const signatures = fields.has("signatures") ? fields.fields("signatures") : undefined;
    return {
      info: readInfo(new Fields(received, "info")),
      infohash: createHash("sha1").update(received.bytes).digest("hex"),
      infoBytes: received.bytes,
      ...(proposal ? { proposal } : {}),
      signatures: new Map(signatures?.keys().map((id) => [id, signatures.any(id)])),
      root: document.value as ReadonlyMap<string, Received>,
    };
  }, ReleaseError);
}

/** One entry of `signatures`. Throws `ReleaseError`: malformed. */
export function readSignature(id: string, received: Received): Signed {
  return explained(() => {
    const fields = new Fields(received, `signatures.${id}`);
    fields.only("info", "signature");
    return { statement: fields.any("info"), signature: fields.bytes("signature", SIGNATURE_BYTES) };
  }, ReleaseError);
}

/** What was stated. Throws `ReleaseError`: malformed. */
export const readStatement = (received: Received): Statement =>
  explained(() => statementOf(received), ReleaseError);

/** The bytes that a signature covers. */
export function signedBytes(infoBytes: Uint8Array, statementBytes: Uint8Array): Buffer {
  return Buffer.concat([DOMAIN, infoBytes, statementBytes]);
}

/** An update file that nobody has signed yet. Throws `ReleaseError` where `parseUpdate` would. */
export function encodeUpdate(info: TorrentInfo, statement: Statement): Buffer {
  const { trackers = [], seeds = [] } = statement;
  const bytes = encodeBencode({
    "++": encodeStatement(statement),
    // For BitTorrent clients, which do not know the statement; nobody here believes it
    ...(trackers[0] === undefined
      ? {}
      : { announce: trackers[0], "announce-list": trackers.map((one) => [one]) }),
    ...(seeds.length === 0 ? {} : { "url-list": seeds }),
    info: {
      length: info.length,
      name: info.name,
      "piece length": info.pieceLength,
      pieces: info.pieces,
      "pieces root": info.piecesRoot,
    },
  });
  const { proposal } = parseUpdate(bytes);
  if (proposal) readStatement(proposal);
  return bytes;
}

/** What a further signer signs: what the others did, or what was proposed. Throws `ReleaseError` where they do not agree. */
export function statementToSign({ proposal, signatures }: UpdateFile): Received {
  const stated = [...signatures].map(([id, received]) => readSignature(id, received).statement);
  const [first, ...rest] = proposal ? [proposal, ...stated] : stated;
  if (!first) throw new ReleaseError("malformed", 'there is nothing to sign: neither "++" nor a signature');
  if (rest.some((other) => !Buffer.from(other.bytes).equals(first.bytes)))
    throw new ReleaseError(
      "signers-disagree",
      "its signers do not all state the same; have it packed and signed anew",
    );
  return first;
}

/** The update file with one more signature; all that others signed stays as it was received. */
export function withSignature(file: UpdateFile, id: string, signature: Uint8Array): Buffer {
  const statement = statementToSign(file);
  const signatures = new Map<string, Encodable>(file.signatures).set(id, { info: statement, signature });
  const root = new Map<string, Encodable>(file.root).set("signatures", signatures);
  root.delete("++");
  const bytes = encodeBencode(root);
  parseUpdate(bytes);
  return bytes;
}

/** The update file without the signatures of others and without a proposal: what is kept of a release that was believed. */
export function onlySignedBy(file: UpdateFile, ids: readonly string[]): Buffer {
  const kept = [...file.signatures].filter(([id]) => ids.includes(id));
  const root = new Map<string, Encodable>(file.root).set("signatures", new Map(kept));
  root.delete("++");
  return encodeBencode(root);
}

function readInfo(info: Fields): TorrentInfo {
  info.only("length", "name", "piece length", "pieces", "pieces root");
  const length = info.count("length", 1, Number.MAX_SAFE_INTEGER);
  const pieceLength = info.count("piece length", PIECE_BYTES.least, PIECE_BYTES.most);
  if (pieceLength % LEAF_BYTES !== 0 || !Number.isInteger(Math.log2(pieceLength)))
    info.refuse("piece length", `is ${pieceLength}, no power of two`);
  return {
    name: info.text("name", RELEASE_NAME),
    length,
    pieceLength,
    pieces: info.bytes("pieces", Math.ceil(length / pieceLength) * SHA1_BYTES),
    piecesRoot: info.bytes("pieces root", HASH_BYTES),
  };
}
