/**
 * What a person types at a console: bytes for the line, and keys for us behind an escape character.
 *
 * Invariant: the escape character is one only directly after Enter, or as the first key; everything else goes to the line as it is.
 */
import { UsageError } from "../terminal.ts";

/** Keys behind the escape character, and what they do. */
export const KEYS = {
  ".": "leave",
  "?": "this help",
  B: "send a break",
  w: "who is attached",
  f: "take over the right to type",
  d: "only read from now on",
  r: "show the last lines again",
  t: "time stamps on or off",
  l: "log what is shown to a file, or no more",
  p: "power of this console's outlet",
} as const;
export type Key = keyof typeof KEYS;

const CR = 13;
const LF = 10;

/** Tells keys from bytes, one by one as they are typed. */
export class Escapes {
  readonly #escape: number | undefined;
  #isLineStart = true;
  #isEscaped = false;

  /** Without an escape character everything is for the line. */
  constructor(character: number | undefined) {
    this.#escape = character;
  }

  /** What one byte means: a key, or bytes for the line (none while it may become a key). */
  add(byte: number): Key | readonly number[] {
    if (!this.#isEscaped) return this.#plain(byte);
    this.#isEscaped = false;
    const key = String.fromCharCode(byte);
    if (isKey(key)) return key;
    this.#isLineStart = byte === CR || byte === LF;
    // Typed twice it is sent once; before anything else it was meant
    return byte === this.#escape ? [byte] : [this.#escape ?? 0, byte];
  }

  #plain(byte: number): readonly number[] {
    if (this.#isLineStart && byte === this.#escape) {
      this.#isEscaped = true;
      return [];
    }
    this.#isLineStart = byte === CR || byte === LF;
    return [byte];
  }
}

function isKey(text: string): text is Key {
  return Object.hasOwn(KEYS, text);
}

/** Reads `~`, `^]` (Ctrl and ]) or `none`. Throws `UsageError`. */
export function parseEscape(text: string): number | undefined {
  if (text === "none") return undefined;
  const [first = "", second = ""] = text;
  if (text.length === 1 && first > " " && first <= "~") return first.charCodeAt(0);
  const control = second.toUpperCase().charCodeAt(0);
  if (text.length === 2 && first === "^" && control >= 0x40 && control <= 0x5f) return control & 0x1f;
  throw new UsageError(`-e: "${text}" is no escape character (one like ~, ^] for Ctrl and ], or none)`);
}

/** An escape character as people write it. */
export function escapeWord(character: number): string {
  return character < 0x20 ? `^${String.fromCharCode(character | 0x40)}` : String.fromCharCode(character);
}

/** What there is behind the escape character, a line each. */
export function keysHelp(character: number): string {
  const word = escapeWord(character);
  const lines = Object.entries(KEYS).map(([key, what]) => `  ${word}${key}  ${what}\n`);
  return `Directly after Enter:
${lines.join("")}  ${word}${word}  the character itself
Should this program crash or be killed with SIGKILL, type 'reset' (or 'stty sane') and Enter to have the terminal back.
`;
}

/** Longest line typed at a question. */
const LINE_MAX = 400;
const INTERRUPT = [0x03, 0x04, 0x1b];
const BACKSPACE = [0x08, 0x7f];
const KILL_LINE = 0x15;

/** A question asked on a raw terminal, where nobody else shows what is typed. One key answers it, or a line. */
export class Question {
  /** Undefined when it was called off: Ctrl-C, Ctrl-D, Escape, or an empty line. */
  readonly answer: Promise<string | undefined>;
  readonly #resolve: (answer: string | undefined) => void;
  readonly #echo: (text: string) => void;
  readonly #isKey: boolean;
  readonly #decoder = new TextDecoder();
  readonly #typed: string[] = [];
  /** It was answered or called off. */
  isOver = false;

  constructor(text: string, options: { echo(text: string): void; isKey: boolean }) {
    const { promise, resolve } = Promise.withResolvers<string | undefined>();
    this.answer = promise;
    this.#resolve = resolve;
    this.#echo = options.echo;
    this.#isKey = options.isKey;
    this.#echo(text);
  }

  add(byte: number): void {
    if (INTERRUPT.includes(byte)) this.cancel();
    else if (byte === CR || byte === LF) this.#end(this.#typed.join("").trim() || undefined);
    else if (BACKSPACE.includes(byte)) this.#rub(1);
    else if (byte === KILL_LINE) this.#rub(this.#typed.length);
    else this.#type(this.#decoder.decode(Uint8Array.of(byte), { stream: true }));
  }

  cancel(): void {
    this.#end(undefined);
  }

  #type(text: string): void {
    for (const character of text) {
      if (/\p{Cc}/u.test(character) || this.#typed.length >= LINE_MAX) continue;
      this.#typed.push(character);
      this.#echo(character);
    }
    if (this.#isKey && this.#typed.length > 0) this.#end(this.#typed[0]);
  }

  #rub(characters: number): void {
    const gone = this.#typed.splice(this.#typed.length - Math.min(characters, this.#typed.length));
    this.#echo("\b \b".repeat(gone.length));
  }

  #end(answer: string | undefined): void {
    if (this.isOver) return;
    this.isOver = true;
    this.#echo("\r\n");
    this.#resolve(answer);
  }
}
