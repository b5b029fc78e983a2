/**
 * Mutable items (BEP 44): a value that a key has signed. The same bytes are what the DHT stores, beacons carry, MQTT retains and
 * a file holds: whoever has them can check them, and hand them on without the key.
 */
import { hash } from "node:crypto";
import { decodeBencode, encodeBencode, type Received } from "../../boot/bencode.ts";
import { PUBLIC_KEY_BYTES, SIGNATURE_BYTES, verifyEd25519 } from "../../boot/ed25519.ts";
import { Fields } from "../../boot/fields.ts";

/** Longest value, bytes of bencode (BEP 44). */
export const VALUE_MAX_BYTES = 1000;
/** Longest salt (BEP 44). */
export const SALT_MAX_BYTES = 64;
/** Longest item: with its frame it is one datagram that every link carries whole. */
export const ITEM_MAX_BYTES = 1300;
/** Highest sequence number: a signed 64-bit integer (BEP 44). */
const MAX_SEQ = 2n ** 63n - 1n;

/** A signed value. Nothing is known of its signature until `isSigned` says so. */
export interface Item {
  /** Ed25519, 32 bytes. */
  readonly k: Uint8Array;
  /** Tells apart what one key signs; may be empty. */
  readonly salt: Uint8Array;
  readonly seq: bigint;
  /** 64 bytes. */
  readonly sig: Uint8Array;
  /** The value, bencoded. */
  readonly v: Uint8Array;
}

/** Reads `{k, salt?, seq, sig, v}`, canonical and with nothing else in it. Throws `BencodeError`. */
export function readItem(bytes: Uint8Array): Item {
  const fields = new Fields(decodeBencode(bytes, ITEM_MAX_BYTES), "item");
  fields.only("k", "salt", "seq", "sig", "v");
  return itemOf(fields);
}

/** The item in a dictionary that may hold other things too: a `put`, or the reply to a `get` that names the salt it asked for. Throws `FieldError`. */
export function itemOf(fields: Fields, asked?: Uint8Array): Item {
  const salt = asked ?? (fields.has("salt") ? fields.bytes("salt") : new Uint8Array());
  if (salt.length > SALT_MAX_BYTES)
    fields.refuse("salt", `has ${salt.length} bytes; at most ${SALT_MAX_BYTES}`);
  const seq = fields.integer("seq");
  if (seq > MAX_SEQ) fields.refuse("seq", `is ${seq}; 2^63-1 is the highest`);
  const v = fields.any("v").bytes;
  if (v.length > VALUE_MAX_BYTES) fields.refuse("v", `has ${v.length} bytes; at most ${VALUE_MAX_BYTES}`);
  // Copies: an item outlives the datagram it came in
  return {
    k: Buffer.from(fields.bytes("k", PUBLIC_KEY_BYTES)),
    salt: Buffer.from(salt),
    seq,
    sig: Buffer.from(fields.bytes("sig", SIGNATURE_BYTES)),
    v: Buffer.from(v),
  };
}

/** The fields of an item as they go out; an empty salt is left out. */
export function fieldsOf({ k, salt, seq, sig, v }: Item) {
  return { k, ...(salt.length > 0 ? { salt } : {}), seq, sig, v: receivedOf(v) };
}

/** The bytes of an item, wherever it is kept. */
export const encodeItem = (item: Item): Buffer => encodeBencode(fieldsOf(item));

/** What an item's signature covers (BEP 44): salt, sequence number and value as they stand in bencode. */
export function signedBytes({ salt, seq, v }: Pick<Item, "salt" | "seq" | "v">): Buffer {
  const front = salt.length > 0 ? [Buffer.from(`4:salt${salt.length}:`), salt] : [];
  return Buffer.concat([...front, Buffer.from(`3:seqi${seq}e1:v`), v]);
}

/** Whether the key it names signed it. */
export const isSigned = (item: Item): boolean => verifyEd25519(item.k, signedBytes(item), item.sig);

/** Where an item is kept: SHA-1 of key and salt (BEP 44), hex. */
export function targetOf({ k, salt }: Pick<Item, "k" | "salt">): string {
  return hash("sha1", Buffer.concat([k, salt]), "hex");
}

/**
 * Above 0 where `a` says something later than `b`: a higher sequence number, or the same and a later `issued` in its value. So a
 * version can be withdrawn, or its head renewed, without a new one.
 */
export function compareItems(a: Item, b: Item): number {
  if (a.seq !== b.seq) return a.seq > b.seq ? 1 : -1;
  const [first, second] = [issuedOf(a), issuedOf(b)];
  return first === second ? 0 : first > second ? 1 : -1;
}

/** When a head was made; 0 for a value that does not say. */
function issuedOf({ v }: Item): bigint {
  const { value } = receivedOf(v);
  const issued =
    value instanceof Map ? (value as ReadonlyMap<string, Received>).get("issued")?.value : undefined;
  return typeof issued === "bigint" ? issued : 0n;
}

const receivedOf = (v: Uint8Array): Received => decodeBencode(v, VALUE_MAX_BYTES);
