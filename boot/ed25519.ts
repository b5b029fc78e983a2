/**
 * Ed25519 (RFC 8032) for the whole program: commands, releases, trust. There is no second verify.
 *
 * Invariants
 * - A signature is judged by `node:crypto`; what stands here only refuses more than it does.
 * - `S < L` is checked first: tweetnacl 1.0.3 accepts S + L, so a signature would not be unique.
 * - tweetnacl signs, because it takes a bare seed; it never decides.
 */
import { createPublicKey, verify } from "node:crypto";
import nacl from "tweetnacl";

/** Bytes of a public key. */
export const PUBLIC_KEY_BYTES = 32;
/** Bytes of a signature: R, then S. */
export const SIGNATURE_BYTES = 64;

/** Order of the base point, RFC 8032 §5.1: 2^252 + 27742317777372353535851937790883648493. */
const L = 2n ** 252n + 27742317777372353535851937790883648493n;

/** The field's prime, RFC 8032 §5.1: 2^255 - 19. A y at or above it is not canonical (§5.1.3). */
const P = 2n ** 255n - 19n;

/**
 * The y of every point whose order divides the cofactor 8 (libsodium and RFC 7748 §6.1 speak of the same points):
 * under such a key a signature nobody made is good for many messages.
 */
const SMALL_ORDER: ReadonlySet<bigint> = new Set([
  0n,
  1n,
  P - 1n,
  0x05fc536d880238b13933c6d305acdfd5f098eff289f4c345b027b2c28f95e826n,
  0x7a03ac9277fdc74ec6cc392cfa53202a0f67100d760b3cba4fd84d3d706a17c7n,
]);

/** `SubjectPublicKeyInfo` in front of a bare key, RFC 8410 §4. */
const SPKI_PREFIX = Buffer.from("302a300506032b6570032100", "hex");

/** Tells whether this key signed these bytes. False for anything else, wrong sizes included; never throws. */
export function verifyEd25519(publicKey: Uint8Array, message: Uint8Array, signature: Uint8Array): boolean {
  if (publicKey.length !== PUBLIC_KEY_BYTES || signature.length !== SIGNATURE_BYTES) return false;
  if (!isReduced(signature)) return false;
  if (!isSoundPublicKey(publicKey)) return false;
  try {
    const key = createPublicKey({
      key: Buffer.concat([SPKI_PREFIX, publicKey]),
      format: "der",
      type: "spki",
    });
    return verify(null, message, key, signature);
  } catch {
    return false; // the bytes are no point on the curve
  }
}

/** Whether S is below L: otherwise somebody made another signature of one that held, without the key. */
export function isReduced(signature: Uint8Array): boolean {
  return littleEndian(signature.subarray(32)) < L;
}

/** Signs with a 32-byte seed (the private key of RFC 8032 §5.1.5). Throws `RangeError` on another size. */
export function signEd25519(seed: Uint8Array, message: Uint8Array): Uint8Array {
  return nacl.sign.detached(message, keyPair(seed).secretKey);
}

/** The public key that belongs to a seed. Throws `RangeError` unless it has 32 bytes. */
export function publicKeyOf(seed: Uint8Array): Uint8Array {
  return keyPair(seed).publicKey;
}

function keyPair(seed: Uint8Array) {
  if (seed.length !== nacl.sign.seedLength)
    throw new RangeError(`an Ed25519 seed has ${nacl.sign.seedLength} bytes, not ${seed.length}`);
  return nacl.sign.keyPair.fromSeed(seed);
}

/** Whether a signature under this key can mean anything: canonically written and not of small order; the highest bit is the sign of x, not part of y. */
export function isSoundPublicKey(publicKey: Uint8Array): boolean {
  const y = BigInt.asUintN(255, littleEndian(publicKey));
  return y < P && !SMALL_ORDER.has(y);
}

function littleEndian(bytes: Uint8Array): bigint {
  return BigInt(`0x${Buffer.from(bytes).reverse().toString("hex")}`);
}
