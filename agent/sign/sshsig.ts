/**
 * SSHSIG, the signatures of `ssh-keygen -Y sign` (OpenSSH's PROTOCOL.sshsig): Ed25519 only, strict.
 * The namespace keeps a signature made for one purpose from serving another.
 */
import { createHash } from "node:crypto";
import { SIGNATURE_BYTES, verifyEd25519 } from "../../boot/ed25519.ts";
import {
  decodeBase64,
  fingerprint,
  KEY_TYPE,
  publicKeyBlob,
  readPublicKey,
  WireError,
  WireReader,
  wireString,
} from "./wire.ts";

const BEGIN = "-----BEGIN SSH SIGNATURE-----";
const END = "-----END SSH SIGNATURE-----";
const MAGIC = "SSHSIG";
const VERSION = 1;
const HASHES = ["sha256", "sha512"] as const;

/** Longest armored signature that is looked at, bytes; an Ed25519 one has about 320. */
export const SSHSIG_MAX_BYTES = 4096;

/** A signature that is malformed or does not hold; the message is for a person. */
export class SignatureError extends Error {}

/** What an armored signature says of itself, before anybody checked it. */
export interface Sshsig {
  publicKey: Uint8Array;
  namespace: string;
  hash: (typeof HASHES)[number];
  signature: Uint8Array;
}

/** Who made a signature that holds. */
export interface SignedBy {
  publicKey: Uint8Array;
  fingerprint: string;
}

/** Checks an armored signature over exactly these bytes, made for this namespace. Throws `SignatureError`. */
export function verifySshsig(armored: string, namespace: string, message: Uint8Array): SignedBy {
  const sig = parseSshsig(armored);
  if (sig.namespace !== namespace)
    throw new SignatureError(`the signature was made for "${sig.namespace}", not for "${namespace}"`);
  if (!verifyEd25519(sig.publicKey, signedData(namespace, sig.hash, message), sig.signature))
    throw new SignatureError("the signature does not match the bytes it stands with");
  return { publicKey: sig.publicKey, fingerprint: fingerprint(sig.publicKey) };
}

/** Reads an armored signature without judging it. Throws `SignatureError` for anything PROTOCOL.sshsig does not describe. */
export function parseSshsig(armored: string): Sshsig {
  if (armored.length > SSHSIG_MAX_BYTES)
    throw new SignatureError(
      `the signature has ${armored.length} characters; at most ${SSHSIG_MAX_BYTES} are read`,
    );
  const text = armored.replaceAll("\r\n", "\n").trimEnd();
  if (!text.startsWith(`${BEGIN}\n`)) throw new SignatureError(`the signature does not begin with ${BEGIN}`);
  if (!text.endsWith(`\n${END}`)) throw new SignatureError(`the signature does not end with ${END}`);
  try {
    return parseBlob(
      decodeBase64(text.slice(BEGIN.length, -END.length).replaceAll("\n", ""), "the signature"),
    );
  } catch (cause) {
    if (cause instanceof WireError) throw new SignatureError(cause.message, { cause });
    throw cause;
  }
}

function parseBlob(blob: Uint8Array): Sshsig {
  const reader = new WireReader(blob);
  if (reader.bytes(MAGIC.length, "the magic word").toString("latin1") !== MAGIC)
    throw new WireError(`the signature does not begin with ${MAGIC}`);
  const version = reader.uint32("the version");
  if (version !== VERSION)
    throw new WireError(`the signature has version ${version}; only ${VERSION} is known`);
  const publicKey = readPublicKey(reader.string("the public key"), "the public key");
  const namespace = reader.name("the namespace");
  if (namespace === "") throw new WireError("the namespace is empty");
  if (reader.string("the reserved field").length > 0) throw new WireError("the reserved field is not empty");
  const named = reader.name("the hash algorithm");
  const hash = HASHES.find((known) => known === named);
  if (!hash) throw new WireError(`the hash algorithm is "${named}"; ${HASHES.join(" and ")} are known`);
  const inner = new WireReader(reader.string("the signature itself"));
  reader.end("the signature");
  const type = inner.name("the signature's type");
  if (type !== KEY_TYPE) throw new WireError(`the signature is of type "${type}"; only ${KEY_TYPE} is taken`);
  const signature = inner.string("the signature itself");
  if (signature.length !== SIGNATURE_BYTES)
    throw new WireError(`the signature has ${signature.length} bytes instead of ${SIGNATURE_BYTES}`);
  inner.end("the signature itself");
  return { publicKey, namespace, hash, signature: new Uint8Array(signature) };
}

/** The bytes that are signed instead of the message: PROTOCOL.sshsig §3. */
export function signedData(namespace: string, hash: Sshsig["hash"], message: Uint8Array): Buffer {
  return Buffer.concat([
    Buffer.from(MAGIC),
    wireString(namespace),
    wireString(""),
    wireString(hash),
    wireString(createHash(hash).update(message).digest()),
  ]);
}

/** Writes a signature as `ssh-keygen` does: 70 characters a line. */
export function armorSshsig({ publicKey, namespace, hash, signature }: Sshsig): string {
  const version = Buffer.alloc(4);
  version.writeUInt32BE(VERSION);
  const blob = Buffer.concat([
    Buffer.from(MAGIC),
    version,
    wireString(publicKeyBlob(publicKey)),
    wireString(namespace),
    wireString(""),
    wireString(hash),
    wireString(Buffer.concat([wireString(KEY_TYPE), wireString(signature)])),
  ]);
  const lines = blob.toString("base64").match(/.{1,70}/g) ?? [];
  return `${[BEGIN, ...lines, END].join("\n")}\n`;
}
