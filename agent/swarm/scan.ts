/**
 * Looks over foreign bencode (BEP 3) before any library sees it. Keys may stand in any order and integers may be negative,
 * as other clients write them; what is ours is read by `boot/bencode.ts`, which is strict.
 *
 * Invariants
 * - What is let through is one whole value; every length lies inside the bytes.
 * - Depth and number of values are bounded, and so is the work: one pass, each byte once.
 */
import { BencodeError } from "../../boot/bencode.ts";

const MAX_DEPTH = 16;
const MAX_VALUES = 65_536;
/** 2^53 has 16 digits: what is longer does not fit a number. */
const MAX_DIGITS = 16;
const [DIGIT_0 = 0, DIGIT_9 = 0, MINUS, COLON, INTEGER, LIST, DICTIONARY, END] = Buffer.from("09-:ilde");

/** Throws `BencodeError` unless the bytes are one sound value and nothing else. */
export function scanBencode(bytes: Uint8Array): void {
  const scan = new Scan(bytes);
  do scan.next();
  while (scan.isOpen);
  scan.end();
}

class Scan {
  readonly #bytes: Uint8Array;
  /** Lists and dictionaries that are open, and how many keys and values they had so far. */
  readonly #open: { isList: boolean; count: number }[] = [];
  #at = 0;
  #values = 0;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
  }

  get isOpen(): boolean {
    return this.#open.length > 0;
  }

  /** One string or integer, or the beginning or end of a list or dictionary. */
  next(): void {
    const first = this.#bytes[this.#at];
    if (first === undefined) throw new BencodeError(this.#at, "the end is missing");
    if (++this.#values > MAX_VALUES) throw new BencodeError(this.#at, `more than ${MAX_VALUES} values`);
    if (first === END && this.isOpen) this.#close();
    else this.#value(first);
  }

  end(): void {
    const left = this.#bytes.length - this.#at;
    if (left > 0) throw new BencodeError(this.#at, `${left} bytes after the end`);
  }

  #value(first: number): void {
    this.#count(first);
    if (first === LIST || first === DICTIONARY) this.#begin(first === LIST);
    else if (first === INTEGER) this.#integer();
    else this.#string();
  }

  #count(first: number): void {
    const inside = this.#open.at(-1);
    if (inside === undefined) return;
    if (!inside.isList && inside.count % 2 === 0 && !isDigit(first))
      throw new BencodeError(this.#at, "a key that is no string");
    inside.count++;
  }

  #begin(isList: boolean): void {
    if (this.#open.length === MAX_DEPTH) throw new BencodeError(this.#at, `nested deeper than ${MAX_DEPTH}`);
    this.#open.push({ isList, count: 0 });
    this.#at++;
  }

  #close(): void {
    const closed = this.#open.pop();
    if (closed?.isList === false && closed.count % 2 === 1)
      throw new BencodeError(this.#at, "a key without a value");
    this.#at++;
  }

  #integer(): void {
    this.#at++;
    if (this.#bytes[this.#at] === MINUS) this.#at++;
    this.#digits(END, "an integer");
  }

  #string(): void {
    const at = this.#at;
    const length = this.#digits(COLON, "a length");
    const left = this.#bytes.length - this.#at;
    if (length > left) throw new BencodeError(at, `${length} bytes are announced, ${left} are there`);
    this.#at += length;
  }

  /** Decimal digits up to `end`, which is taken too. */
  #digits(end: number | undefined, what: string): number {
    const from = this.#at;
    let value = 0;
    let byte = this.#bytes[this.#at];
    while (byte !== undefined && isDigit(byte) && this.#at - from <= MAX_DIGITS) {
      value = value * 10 + byte - DIGIT_0;
      byte = this.#bytes[++this.#at];
    }
    const count = this.#at - from;
    if (count === 0 || count > MAX_DIGITS || byte !== end)
      throw new BencodeError(this.#at, `${what} is broken`);
    this.#at++;
    return value;
  }
}

const isDigit = (byte: number) => byte >= DIGIT_0 && byte <= DIGIT_9;
