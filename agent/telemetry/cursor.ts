const SPACE = 0x20;
const TAB = 0x09;
const NEWLINE = 0x0a;
const ZERO = 0x30;
const NINE = 0x39;
const MINUS = 0x2d;
const DOT = 0x2e;

/**
 * Walks over the text of a kernel file, line by line and word by word, without making strings of it.
 * Whatever is not where it is expected is `undefined`; nothing here throws.
 */
export class Cursor {
  readonly #bytes: Uint8Array;
  #at = 0;
  #end: number;
  #next = 0;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
    this.#end = 0;
  }

  /** Goes to the beginning of the next line; false after the last. */
  line(): boolean {
    const bytes = this.#bytes;
    if (this.#next >= bytes.length) return false;
    this.#at = this.#next;
    const newline = bytes.indexOf(NEWLINE, this.#at);
    this.#end = newline < 0 ? bytes.length : newline;
    this.#next = this.#end + 1;
    return true;
  }

  /** Goes behind `key` of the next line that begins with it. What it passes over is gone: ask in the file's order. */
  seek(key: string): boolean {
    while (this.line()) if (this.skip(key)) return true;
    return false;
  }

  /** Steps over `text` when it comes next on this line. */
  skip(text: string): boolean {
    if (this.#at + text.length > this.#end) return false;
    for (let i = 0; i < text.length; i++) if (this.#bytes[this.#at + i] !== text.charCodeAt(i)) return false;
    this.#at += text.length;
    return true;
  }

  /** The next word of this line, up to a blank or the byte `stop`; steps over what ended it. */
  word(stop = SPACE): string | undefined {
    this.#blanks();
    const start = this.#at;
    while (this.#at < this.#end && !isBlank(this.#bytes[this.#at]) && this.#bytes[this.#at] !== stop)
      this.#at++;
    if (this.#at === start) return undefined;
    const word = asBuffer(this.#bytes.subarray(start, this.#at)).toString("latin1");
    if (this.#at < this.#end) this.#at++;
    return word;
  }

  /** Steps over `count` words of this line. */
  pass(count: number): this {
    for (let i = 0; i < count; i++) {
      this.#blanks();
      while (this.#at < this.#end && !isBlank(this.#bytes[this.#at])) this.#at++;
    }
    return this;
  }

  /** The next number of this line, decimal, with a fraction perhaps; undefined where something else stands. */
  number(): number | undefined {
    this.#blanks();
    const isNegative = this.#bytes[this.#at] === MINUS && this.#at < this.#end;
    if (isNegative) this.#at++;
    const start = this.#at;
    let value = this.#digits(0);
    if (this.#at === start) return undefined;
    if (this.#at < this.#end && this.#bytes[this.#at] === DOT) {
      const point = ++this.#at;
      value = this.#digits(value) / 10 ** (this.#at - point);
    }
    return isNegative ? -value : value;
  }

  #digits(before: number): number {
    let value = before;
    while (this.#at < this.#end) {
      const byte = this.#bytes[this.#at] ?? 0;
      if (byte < ZERO || byte > NINE) break;
      value = value * 10 + byte - ZERO;
      this.#at++;
    }
    return value;
  }

  #blanks(): void {
    while (this.#at < this.#end && isBlank(this.#bytes[this.#at])) this.#at++;
  }
}

/** The text of a small kernel file or device-tree property: up to the first NUL, blanks trimmed; undefined when empty. */
export function textOf(bytes: Uint8Array | undefined): string | undefined {
  if (!bytes) return undefined;
  const nul = bytes.indexOf(0);
  const text = asBuffer(nul < 0 ? bytes : bytes.subarray(0, nul)).toString("utf8");
  return text.trim() || undefined;
}

/** The number a small kernel file consists of; undefined when there is no such file or no number in it. */
export function numberOf(bytes: Uint8Array | undefined): number | undefined {
  if (!bytes) return undefined;
  const cursor = new Cursor(bytes);
  return cursor.line() ? cursor.number() : undefined;
}

/**
 * The first number after each of `keys`, on the lines that begin with them (`MemTotal:`), in any order;
 * undefined for those that are not there.
 */
export function pick<const Keys extends readonly string[]>(
  bytes: Uint8Array | undefined,
  keys: Keys,
): { [K in keyof Keys]: number | undefined } {
  const found: (number | undefined)[] = keys.map(() => undefined);
  if (bytes) {
    const cursor = new Cursor(bytes);
    let missing = keys.length;
    while (missing > 0 && cursor.line()) {
      const index = keys.findIndex((key) => cursor.skip(key));
      if (index < 0) continue;
      found[index] = cursor.number();
      missing--;
    }
  }
  return found as { [K in keyof Keys]: number | undefined };
}

/** A device-tree cell: 32 bits, big-endian; undefined where the property is absent or of another length. */
export function cellOf(bytes: Uint8Array | undefined): number | undefined {
  if (bytes?.length !== 4) return undefined;
  return new DataView(bytes.buffer, bytes.byteOffset, 4).getUint32(0);
}

function isBlank(byte: number | undefined): boolean {
  return byte === SPACE || byte === TAB;
}

function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
}
