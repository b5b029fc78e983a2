/** The byte language of SSH (RFC 4251 §5) and its Ed25519 public keys (RFC 8709 §4), strict: what is not understood is refused. */
import { createHash } from "node:crypto";
import { PUBLIC_KEY_BYTES } from "../../boot/ed25519.ts";

/** The only key type this program takes. */
export const KEY_TYPE = "ssh-ed25519";

/** Bytes that are not what they should be; the message says which field, for a person. */
export class WireError extends Error {}

/** Reads one SSH structure front to back; every read throws `WireError` rather than running over the end. */
export class WireReader {
  readonly #bytes: Buffer;
  #at = 0;

  constructor(bytes: Uint8Array) {
    this.#bytes = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  bytes(length: number, what: string): Buffer {
    if (length > this.left)
      throw new WireError(`${what} has ${length} bytes, but only ${this.left} are there`);
    const from = this.#at;
    this.#at += length;
    return this.#bytes.subarray(from, this.#at);
  }

  uint32(what: string): number {
    return this.bytes(4, what).readUInt32BE();
  }

  string(what: string): Buffer {
    return this.bytes(this.uint32(`the length of ${what}`), what);
  }

  /** A string that is a name: printable ASCII, so that nothing unseen hides in it. */
  name(what: string): string {
    const text = this.string(what).toString("latin1");
    if (!/^[\x21-\x7e]*$/.test(text)) throw new WireError(`${what} is not printable ASCII`);
    return text;
  }

  get left(): number {
    return this.#bytes.length - this.#at;
  }

  end(what: string): void {
    if (this.left > 0) throw new WireError(`${this.left} bytes follow ${what}`);
  }
}

/** One SSH string: its length in four bytes, then itself. */
export function wireString(value: Uint8Array | string): Buffer {
  const bytes = Buffer.from(value);
  const length = Buffer.alloc(4);
  length.writeUInt32BE(bytes.length);
  return Buffer.concat([length, bytes]);
}

/** A public key as SSH writes it on the wire and, in base64, into `.pub` files. */
export function publicKeyBlob(publicKey: Uint8Array): Buffer {
  return Buffer.concat([wireString(KEY_TYPE), wireString(publicKey)]);
}

/** The 32 bytes of an Ed25519 public key. Throws `WireError` naming the type of any other key. */
export function readPublicKey(blob: Uint8Array, what: string): Uint8Array {
  const reader = new WireReader(blob);
  const type = reader.name(`the type of ${what}`);
  if (type !== KEY_TYPE) throw new WireError(`${what} is of type ${type || '""'}; only ${KEY_TYPE} is taken`);
  const publicKey = reader.string(what);
  if (publicKey.length !== PUBLIC_KEY_BYTES)
    throw new WireError(`${what} has ${publicKey.length} bytes instead of ${PUBLIC_KEY_BYTES}`);
  reader.end(what);
  return new Uint8Array(publicKey);
}

/** Decodes base64 that has exactly one way to be written. Throws `WireError` otherwise. */
export function decodeBase64(text: string, what: string): Buffer {
  const bytes = Buffer.from(text, "base64");
  if (bytes.toString("base64") !== text) throw new WireError(`${what} is not base64`);
  return bytes;
}

/** What `ssh-keygen -l` prints: SHA-256 of the key as it stands on the wire, base64 without padding. */
export function fingerprint(publicKey: Uint8Array): string {
  const hash = createHash("sha256").update(publicKeyBlob(publicKey)).digest("base64");
  return `SHA256:${hash.replace(/=+$/, "")}`;
}
