/** Reads the dictionaries of a received document field by field: what is missing, strange or out of its range is named with its place. */
import { BencodeError, type Received, shown } from "./bencode.ts";

/** Canonical bencode that does not say what it should. */
export class FieldError extends BencodeError {
  override name = "FieldError";
}

/** What is wrong with the form of a document, as the layers above say it. */
type FormProblem = "malformed" | "not-canonical";

/** Reads a document; bencode's errors become those of the layer above. */
export function explained<T>(
  read: () => T,
  Refusal: new (code: FormProblem, message: string, options: ErrorOptions) => Error,
): T {
  try {
    return read();
  } catch (cause) {
    if (!(cause instanceof BencodeError)) throw cause;
    const code = cause instanceof FieldError ? "malformed" : "not-canonical";
    throw new Refusal(code, cause.message, { cause });
  }
}

/** One received dictionary, and its path for messages. */
export class Fields {
  readonly #received: Received;
  readonly #path: string;
  readonly #map: ReadonlyMap<string, Received>;

  constructor(received: Received, path: string) {
    if (!(received.value instanceof Map)) throw new FieldError(received.at, `${path} is no dictionary`);
    this.#received = received;
    this.#path = path;
    this.#map = received.value;
  }

  /** Throws `FieldError` for any key that is neither read nor named here. */
  only(...known: string[]): void {
    for (const [key, { at }] of this.#map)
      if (!known.includes(key)) throw new FieldError(at, `${this.#path} has the unknown key ${shown(key)}`);
  }

  /** The keys there are. */
  keys(): string[] {
    return [...this.#map.keys()];
  }

  has(key: string): boolean {
    return this.#map.has(key);
  }

  /** Any value, as it was received. */
  any(key: string): Received {
    const found = this.#map.get(key);
    if (!found) throw new FieldError(this.#received.at, `${this.#where(key)} is missing`);
    return found;
  }

  fields(key: string): Fields {
    return new Fields(this.any(key), this.#where(key));
  }

  integer(key: string): bigint {
    const { value, at } = this.any(key);
    if (typeof value !== "bigint") throw new FieldError(at, `${this.#where(key)} is no integer`);
    return value;
  }

  /** An integer that a `number` holds exactly. */
  count(key: string, least: number, most: number): number {
    const value = this.integer(key);
    if (value < least || value > most)
      throw new FieldError(this.any(key).at, `${this.#where(key)} is ${value}, not ${least} to ${most}`);
    return Number(value);
  }

  bytes(key: string, length?: number): Uint8Array {
    const { value, at } = this.any(key);
    if (!(value instanceof Uint8Array)) throw new FieldError(at, `${this.#where(key)} is no string`);
    if (length !== undefined && value.length !== length)
      throw new FieldError(at, `${this.#where(key)} has ${value.length} bytes, not ${length}`);
    return value;
  }

  text(key: string, form: RegExp): string {
    return textOf(this.any(key), this.#where(key), form);
  }

  /** A list of texts, none of them twice. */
  texts(key: string, form: RegExp, most: number): string[] {
    const { value, at } = this.any(key);
    const where = this.#where(key);
    if (!Array.isArray(value)) throw new FieldError(at, `${where} is no list`);
    if (value.length === 0 || value.length > most)
      throw new FieldError(at, `${where} has ${value.length} entries, not 1 to ${most}`);
    const all = value.map((one: Received, index) => textOf(one, `${where}[${index}]`, form));
    const twice = all.find((one, index) => all.indexOf(one) < index);
    if (twice !== undefined) throw new FieldError(at, `${where}: ${shown(twice)} stands twice`);
    return all;
  }

  /** A list of dictionaries. */
  all(key: string, most: number): Fields[] {
    const { value, at } = this.any(key);
    const where = this.#where(key);
    if (!Array.isArray(value)) throw new FieldError(at, `${where} is no list`);
    if (value.length === 0 || value.length > most)
      throw new FieldError(at, `${where} has ${value.length} entries, not 1 to ${most}`);
    return value.map((one: Received, index) => new Fields(one, `${where}[${index}]`));
  }

  /** Something else is wrong with a field. */
  refuse(key: string, what: string): never {
    throw new FieldError((this.#map.get(key) ?? this.#received).at, `${this.#where(key)} ${what}`);
  }

  #where(key: string): string {
    return `${this.#path}.${/^[\x21-\x7e]{1,100}$/.test(key) ? key : shown(key)}`;
  }
}

function textOf({ value, at }: Received, where: string, form: RegExp): string {
  if (!(value instanceof Uint8Array)) throw new FieldError(at, `${where} is no string`);
  const text = Buffer.from(value).toString("latin1");
  if (!form.test(text))
    throw new FieldError(at, `${where} is ${shown(text)}, which is not of the form ${form}`);
  return text;
}
