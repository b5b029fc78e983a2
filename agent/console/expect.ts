/** Text sent to a console, and what is expected to come of it. */
import { UsageError } from "../terminal.ts";

/** How much of what came is looked at, characters. */
const WINDOW = 65_536;

const ESCAPES: Record<string, string> = { r: "\r", n: "\n", t: "\t", e: "\x1b", "\\": "\\" };

/** Bytes of a text with `\r \n \t \e \\ \xHH`. Throws `UsageError`. */
export function bytesOf(text: string): Uint8Array {
  const parts: Uint8Array[] = [];
  for (const [piece, escaped] of text.matchAll(/\\(x[0-9a-fA-F]{2}|.|$)|[^\\]+/gsu)) {
    if (escaped === undefined) parts.push(Buffer.from(piece));
    else if (/^x../.test(escaped)) parts.push(Uint8Array.of(Number.parseInt(escaped.slice(1), 16)));
    else if (Object.hasOwn(ESCAPES, escaped)) parts.push(Buffer.from(ESCAPES[escaped] ?? ""));
    else throw new UsageError(`"\\${escaped}": there are \\r \\n \\t \\e \\\\ and \\xHH`);
  }
  return Buffer.concat(parts);
}

/** Reads a regular expression; `^` and `$` are the ends of a line. Throws `UsageError`. */
export function parsePattern(text: string): RegExp {
  try {
    // With u a character is one whole; without it `\-` and `\:`, usual in patterns of other programs, are no errors
    return isPattern(text, "mu") ? new RegExp(text, "mu") : new RegExp(text, "m");
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause);
    throw new UsageError(`--expect: ${why}`, { cause });
  }
}

function isPattern(text: string, flags: string): boolean {
  try {
    new RegExp(text, flags);
    return true;
  } catch {
    return false;
  }
}

/**
 * Looks for a pattern in what comes, whatever pieces it comes in.
 *
 * JavaScript cannot interrupt a match. JavaScriptCore gives one up by itself (Yarr's match limit; measured: about a second for
 * `(a+)+$` on 64 KiB), so an unfortunate pattern costs time and is not found, and nothing waits for ever.
 */
export class Expecting {
  readonly #pattern: RegExp;
  readonly #decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  #text = "";
  #isNew = false;

  constructor(pattern: RegExp) {
    this.#pattern = pattern;
  }

  add(bytes: Uint8Array): void {
    const text = this.#decoder.decode(bytes, { stream: true });
    this.#text = (this.#text + text).slice(-WINDOW);
    this.#isNew ||= text !== "";
  }

  /** Whether it has come by now; looked for only when something new did. */
  look(): boolean {
    const isNew = this.#isNew;
    this.#isNew = false;
    return isNew && this.#pattern.test(this.#text);
  }
}
