/** How a person and a node come to have two secret keys in common, with the broker listening. The protocol stands in sealed.ts. */
import { createHash, hkdfSync } from "node:crypto";
import nacl from "tweetnacl";
import { decodeBase64, WireError, wireString } from "../sign/wire.ts";

/** What the node signs its part for: a signature made for anything else is none. */
export const CONSOLE_NAMESPACE = "fruit-console@v1";

const KEY_BYTES = 32;

/** One side's X25519 key pair (RFC 7748), made for one session and forgotten with it. */
export interface Ephemeral {
  /** Base64, as it travels. */
  publicKey: string;
  secretKey: Uint8Array;
}

/** Which session it is, and for whom. */
export interface Opening {
  site: string;
  node: string;
  /** Id of the signed command, which is the session's too. */
  id: string;
  /** Fingerprint of the key that signed it. */
  signer: string;
  /** The two ephemeral public keys, base64. */
  personKey: string;
  nodeKey: string;
}

/** One key for each direction. */
export interface SessionKeys {
  toNode: Uint8Array;
  toPerson: Uint8Array;
}

/** A key that is none, or one that would make the session's keys known to everybody. */
export class AgreementError extends Error {}

/** Makes a key pair from the system's randomness. */
export function ephemeral(): Ephemeral {
  const { publicKey, secretKey } = nacl.box.keyPair();
  return { publicKey: Buffer.from(publicKey).toString("base64"), secretKey };
}

/** Everything both sides must agree on, as the node signs it: SSH strings (RFC 4251 §5), so that no field runs into the next. */
export function transcriptOf({ site, node, id, signer, personKey, nodeKey }: Opening): Buffer {
  const fields = [CONSOLE_NAMESPACE, site, node, id, signer, publicKeyIn(personKey), publicKeyIn(nodeKey)];
  return Buffer.concat(fields.map(wireString));
}

/** The session's keys, from one's own secret and the other's public key (HKDF-SHA-512, RFC 5869). Throws `AgreementError`. */
export function agree(own: Ephemeral, theirs: string, transcript: Uint8Array): SessionKeys {
  const shared = nacl.scalarMult(own.secretKey, publicKeyIn(theirs));
  // A point of small order: the result is known to whoever sent it, and to everybody else (RFC 7748 §6.1).
  if (shared.every((byte) => byte === 0)) throw new AgreementError("the key is of small order");
  const salt = createHash("sha512").update(transcript).digest();
  const key = (direction: string) =>
    new Uint8Array(hkdfSync("sha512", shared, salt, `${CONSOLE_NAMESPACE} ${direction}`, KEY_BYTES));
  const keys = { toNode: key("to node"), toPerson: key("to person") };
  shared.fill(0);
  own.secretKey.fill(0);
  return keys;
}

function publicKeyIn(text: string): Uint8Array {
  try {
    const bytes = decodeBase64(text, "the key");
    if (bytes.length === KEY_BYTES) return new Uint8Array(bytes);
    throw new WireError(`the key has ${bytes.length} bytes instead of ${KEY_BYTES}`);
  } catch (cause) {
    if (!(cause instanceof WireError)) throw cause;
    throw new AgreementError(cause.message, { cause });
  }
}
