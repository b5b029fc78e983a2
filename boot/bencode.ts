/**
 * Bencode (BEP 3), canonical only: what is accepted has exactly one way to be written, so a signature over received bytes is
 * one over what they say.
 *
 * Invariants
 * - Accepted bytes encode again to themselves. Anything else throws `BencodeError`, which names the byte.
 * - Integers are 0 to 2^64-1 without leading zeros; lengths have none either; the keys of a dictionary are sorted as raw bytes
 *   and none stands twice; nothing follows the value.
 * - Depth, size and the number of values are bounded before anything is made of them.
 */

/** Deepest value that is read; the outermost has depth 1. */
const MAX_DEPTH = 8;
/** Most values in one document, keys not counted. */
const MAX_VALUES = 16_384;
const MAX_INTEGER = 2n ** 64n - 1n;
const [DIGIT_0, DIGIT_9, COLON, INTEGER, LIST, DICTIONARY, END] = Buffer.from("09:ilde");

/** Bytes that are not canonical bencode: where, and what is wrong there. */
export class BencodeError extends Error {
  override name = "BencodeError";
  /** Offset of the byte in question. */
  readonly at: number;
  constructor(at: number, what: string) {
    super(`byte ${at}: ${what}`);
    this.at = at;
  }
}

/** A value as it was received. The keys of a dictionary are raw bytes, one character each (`latin1`). */
export class Received {
  readonly value: bigint | Uint8Array | readonly Received[] | ReadonlyMap<string, Received>;
  /** The received bytes of exactly this value. */
  readonly bytes: Uint8Array;
  /** Where they begin in the document. */
  readonly at: number;
  constructor(value: Received["value"], bytes: Uint8Array, at: number) {
    this.value = value;
    this.bytes = bytes;
    this.at = at;
  }
}

/** What can be written: text becomes UTF-8, a key of a record stands for raw bytes, what was received goes out as it came. */
export type Encodable =
  | bigint
  | number
  | string
  | Uint8Array
  | Received
  | readonly Encodable[]
  | ReadonlyMap<string, Encodable>
  | { readonly [key: string]: Encodable | undefined };

/** Reads one document of at most `maxBytes`. Throws `BencodeError`, never anything else. */
export function decodeBencode(bytes: Uint8Array, maxBytes: number): Received {
  if (bytes.length > maxBytes)
    throw new BencodeError(maxBytes, `${bytes.length} bytes; at most ${maxBytes} are read`);
  const scanner = new Scanner(bytes);
  const received = scanner.value(1);
  scanner.end();
  return received;
}

class Scanner {
  readonly #bytes: Buffer;
  #at = 0;
  #values = 0;

  constructor(bytes: Uint8Array) {
    this.#bytes = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  value(depth: number): Received {
    const at = this.#at;
    if (depth > MAX_DEPTH) throw new BencodeError(at, `nested deeper than ${MAX_DEPTH}`);
    if (++this.#values > MAX_VALUES) throw new BencodeError(at, `more than ${MAX_VALUES} values`);
    const value = this.#any(depth);
    return new Received(value, this.#bytes.subarray(at, this.#at), at);
  }

  end(): void {
    const left = this.#bytes.length - this.#at;
    if (left > 0) throw new BencodeError(this.#at, `${left} bytes after the end`);
  }

  #any(depth: number): Received["value"] {
    const first = this.#bytes[this.#at];
    switch (first) {
      case INTEGER:
        this.#at++;
        return this.#number(END, "an integer");
      case LIST:
        this.#at++;
        return this.#list(depth);
      case DICTIONARY:
        this.#at++;
        return this.#dictionary(depth);
      default:
        return this.#string("a value");
    }
  }

  #list(depth: number): Received[] {
    const all: Received[] = [];
    while (!this.#ends("a list")) all.push(this.value(depth + 1));
    return all;
  }

  #dictionary(depth: number): Map<string, Received> {
    const all = new Map<string, Received>();
    let last: string | undefined;
    while (!this.#ends("a dictionary")) {
      const at = this.#at;
      const key = this.#string("a key").toString("latin1");
      if (last !== undefined && key <= last)
        throw new BencodeError(
          at,
          key === last ? `key ${shown(key)} stands twice` : `key ${shown(key)} comes after ${shown(last)}`,
        );
      all.set(key, this.value(depth + 1));
      last = key;
    }
    return all;
  }

  #ends(what: string): boolean {
    const next = this.#bytes[this.#at];
    if (next === undefined) throw new BencodeError(this.#at, `${what} has no end`);
    if (next !== END) return false;
    this.#at++;
    return true;
  }

  #string(what: string): Buffer {
    const at = this.#at;
    const first = this.#bytes[at];
    if (first === undefined) throw new BencodeError(at, `${what} is missing`);
    if (!isDigit(first))
      throw new BencodeError(at, `${what} cannot begin with ${shown(String.fromCharCode(first))}`);
    const length = this.#number(COLON, "a length");
    const left = this.#bytes.length - this.#at;
    if (length > left) throw new BencodeError(at, `${length} bytes are announced, ${left} are there`);
    const from = this.#at;
    this.#at += Number(length);
    return this.#bytes.subarray(from, this.#at);
  }

  /** Decimal digits up to `end`, which is taken too. */
  #number(end: number | undefined, what: string): bigint {
    const at = this.#at;
    let byte = this.#bytes[at];
    // 2^64-1 has 20 digits: no more are looked at
    while (byte !== undefined && isDigit(byte) && this.#at - at < 21) byte = this.#bytes[++this.#at];
    const digits = this.#bytes.toString("latin1", at, this.#at);
    if (digits.length > 20) throw new BencodeError(at, `${what} has more than 20 digits`);
    if (byte !== end || digits === "")
      throw new BencodeError(
        this.#at,
        `${what} ${byte === undefined ? "has no end" : `cannot hold ${shown(String.fromCharCode(byte))}`}`,
      );
    if (digits.length > 1 && digits.startsWith("0")) throw new BencodeError(at, `${what} has a leading zero`);
    const value = BigInt(digits);
    if (value > MAX_INTEGER) throw new BencodeError(at, `${what} is ${digits}; 2^64-1 is the highest`);
    this.#at++;
    return value;
  }
}

/** Writes a value canonically. Throws `RangeError` for what bencode here cannot say. */
export function encodeBencode(value: Encodable): Buffer {
  const parts: Uint8Array[] = [];
  write(value, parts);
  return Buffer.concat(parts);
}

function write(value: Encodable, parts: Uint8Array[]): void {
  if (typeof value === "bigint" || typeof value === "number") parts.push(integer(value));
  else if (typeof value === "string") writeBytes(Buffer.from(value), parts);
  else if (value instanceof Uint8Array) writeBytes(value, parts);
  else if (Array.isArray(value)) {
    parts.push(Buffer.from("l"));
    for (const one of value) write(one, parts);
    parts.push(Buffer.from("e"));
  } else if (value instanceof Map) writeDictionary([...value], parts);
  else if (value instanceof Received) parts.push(value.bytes);
  else writeDictionary(Object.entries(value), parts);
}

function integer(value: bigint | number): Buffer {
  const exact = typeof value === "bigint" || Number.isSafeInteger(value);
  if (!exact || value < 0 || value > MAX_INTEGER)
    throw new RangeError(`${value} is no integer from 0 to 2^64-1`);
  return Buffer.from(`i${value}e`);
}

function writeBytes(bytes: Uint8Array, parts: Uint8Array[]): void {
  parts.push(Buffer.from(`${bytes.length}:`), bytes);
}

function writeDictionary(entries: [string, Encodable | undefined][], parts: Uint8Array[]): void {
  parts.push(Buffer.from("d"));
  for (const [key, value] of entries.sort(([a], [b]) => (a < b ? -1 : 1))) {
    if (value === undefined) continue;
    if (/[^\0-\xff]/.test(key)) throw new RangeError(`key ${shown(key)} is not made of bytes`);
    writeBytes(Buffer.from(key, "latin1"), parts);
    write(value, parts);
  }
  parts.push(Buffer.from("e"));
}

const isDigit = (byte: number) => byte >= (DIGIT_0 ?? 0) && byte <= (DIGIT_9 ?? 0);

/** A foreign key or byte in a message: short, without control characters. */
export const shown = (text: string) =>
  JSON.stringify(text.length > 40 ? `${text.slice(0, 40)}…` : text).replace(/[\x7f-\xa0]/g, "?");
