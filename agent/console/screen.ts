/**
 * What a person sees of a console: the line's bytes as they came, and marks beside them.
 *
 * Invariants
 * - The line's bytes are shown untouched and in order; time stamps are added only at the start of lines, on request.
 * - A mark stands on a line of its own and never within an escape sequence or a character.
 */
import { setTimeout as sleep } from "node:timers/promises";
import { type Keyboard, printable } from "../terminal.ts";
import type { Item } from "./port.ts";
import { markLine } from "./text.ts";

/** A mark waits so long for the end of a sequence that was begun, and no longer. */
const SEQUENCE_MS = 250;
/** More than any sequence that is meant. */
const SEQUENCE_MAX = 256;
/** Ends a sequence that was begun (ECMA-48 §8.3.8; the DEC VT510 manual: cancels escape and control sequences). */
const CAN = "\x18";
/** Of our own words, characters: nobody reads more of them on a screen that takes nothing. */
const OWN_MAX = 65_536;
const LF = 10;
const CR = 13;

/** How marks are shown: between the bytes, apart from them, or not at all. */
export type MarkPlace = "inline" | "aside" | "nowhere";

/** Where marks belong: not among bytes that a program reads. */
export function placeOfMarks(isBare: boolean, isTerminal: boolean): MarkPlace {
  if (isBare) return "nowhere";
  return isTerminal ? "inline" : "aside";
}

/** The screen, or the file that takes its place. */
export class Screen {
  /** Lines begin with the local time at which they did. */
  isStamped: boolean;
  readonly #show: Keyboard["show"];
  readonly #aside: (text: string) => void;
  readonly #marks: MarkPlace;
  readonly #sequence = new Sequence();
  #isLineStart = true;
  #waiting: string[] = [];
  #ownUnderWay = 0;
  #held: PromiseWithResolvers<void> | undefined;

  constructor(options: {
    show: Keyboard["show"];
    /** Where marks go that stand apart, whole lines with their ends. */
    aside(text: string): void;
    marks: MarkPlace;
    isStamped: boolean;
  }) {
    this.#show = options.show;
    this.#aside = options.aside;
    this.#marks = options.marks;
    this.isStamped = options.isStamped;
  }

  /** Shows what came from the console; resolves when there is room for more, rejects when nobody looks any more. */
  async item(item: Item): Promise<void> {
    await this.#held?.promise;
    if (item.kind === "mark") this.say(markLine({ ...item.mark, text: printable(item.mark.text) }));
    if (item.kind === "bytes") await this.#show(this.#compose(item.bytes, item.at));
  }

  /** Says something of our own, as marks are said. */
  notice(text: string): void {
    this.say(markLine({ at: Date.now(), kind: "notice", text: printable(text) }));
  }

  /** Shows whole lines between the bytes; where marks are not shown, nothing. */
  say(lines: string): void {
    const text = lines.replaceAll(/\r?\n/g, "\r\n");
    if (this.#marks === "nowhere") return;
    if (this.#marks === "aside") this.#aside(text);
    else if (this.#sequence.isWhole) this.#write(this.#ownLines(text));
    else this.#sayLater(text);
  }

  /** Shows a piece of a line of our own, for what is being typed there. */
  echo(text: string): void {
    this.#write(text);
    this.#isLineStart = text.endsWith("\n");
  }

  /** Nothing of the console's is shown until this is undone: a question is being answered on the screen. */
  hold(): Disposable {
    this.#held ??= Promise.withResolvers();
    if (!this.#isLineStart) this.echo("\r\n");
    return {
      [Symbol.dispose]: () => {
        this.#held?.resolve();
        this.#held = undefined;
      },
    };
  }

  /** Brings a line that has begun to its end, so that what follows the program stands on one of its own. */
  end(): void {
    for (const text of this.#waiting.splice(0)) this.#write(this.#ownLines(text));
    if (this.#marks === "inline" && !this.#isLineStart) this.echo("\r\n");
  }

  /** The line's bytes with what is to stand between them. */
  #compose(bytes: Uint8Array, at: number | undefined): Uint8Array {
    const parts: Uint8Array[] = [];
    let from = 0;
    const put = (until: number, text: string) => {
      parts.push(bytes.subarray(from, until), Buffer.from(text));
      from = until;
    };
    for (const [place, byte] of bytes.entries()) {
      // A carriage return there would let the line overwrite its own time
      if (this.isStamped && this.#isLineStart && this.#sequence.isWhole && byte !== CR) put(place, stamp(at));
      this.#isLineStart = byte === LF || (this.#isLineStart && byte === CR);
      this.#sequence.add(byte);
      if (this.#waiting.length > 0 && this.#sequence.isWhole)
        for (const text of this.#waiting.splice(0)) put(place + 1, this.#ownLines(text));
    }
    if (parts.length === 0) return bytes;
    parts.push(bytes.subarray(from));
    return Buffer.concat(parts);
  }

  #ownLines(text: string): string {
    const begun = this.#isLineStart ? "" : "\r\n";
    this.#isLineStart = true;
    return begun + text;
  }

  #sayLater(text: string): void {
    this.#waiting.push(text);
    if (this.#waiting.length > 1) return;
    void sleep(SEQUENCE_MS, undefined, { ref: false }).then(() => {
      if (this.#waiting.length === 0) return;
      this.#write(
        this.#sequence.cancel() +
          this.#waiting
            .splice(0)
            .map((late) => this.#ownLines(late))
            .join(""),
      );
    });
  }

  #write(text: string): void {
    if (this.#ownUnderWay > OWN_MAX) return;
    this.#ownUnderWay += text.length;
    // Whoever does not look any more is noticed by the bytes, which are waited for
    void this.#show(Buffer.from(text))
      .catch(() => undefined)
      .finally(() => {
        this.#ownUnderWay -= text.length;
      });
  }
}

function stamp(at: number | undefined): string {
  if (at === undefined) return "[--:--:--.---] ";
  const then = new Date(at);
  const two = (number: number, width = 2) => String(number).padStart(width, "0");
  return `[${two(then.getHours())}:${two(then.getMinutes())}:${two(then.getSeconds())}.${two(then.getMilliseconds(), 3)}] `;
}

/** Follows bytes through escape sequences (ECMA-48 §5.3 to §5.6) and UTF-8 characters: whether something is begun and not ended. */
class Sequence {
  #inside: "nothing" | "character" | "escape" | "control" | "string" | "string's escape" = "nothing";
  #left = 0;

  get isWhole(): boolean {
    return this.#inside === "nothing";
  }

  add(byte: number): void {
    if (this.#inside === "nothing") this.#begin(byte);
    else if (--this.#left <= 0 || isCancel(byte)) this.#inside = "nothing";
    else if (byte === 0x1b && this.#inside !== "string") this.#inside = "escape";
    else this.#go(byte);
  }

  /** What ends it on a terminal that is in the middle of one. */
  cancel(): string {
    const isEscape = this.#inside !== "nothing" && this.#inside !== "character";
    this.#inside = "nothing";
    return isEscape ? CAN : "";
  }

  #begin(byte: number): void {
    this.#left = SEQUENCE_MAX;
    if (byte === 0x1b) this.#inside = "escape";
    if (byte < 0xc2 || byte > 0xf4) return;
    this.#inside = "character";
    this.#left = byte < 0xe0 ? 1 : byte < 0xf0 ? 2 : 3;
  }

  #go(byte: number): void {
    if (this.#inside === "escape") this.#inside = afterEscape(byte);
    else if (this.#inside === "control" && byte >= 0x40 && byte <= 0x7e) this.#inside = "nothing";
    else if (this.#inside === "string" && byte === 0x1b) this.#inside = "string's escape";
    else if (this.#inside === "string" && byte === 0x07) this.#inside = "nothing";
    else if (this.#inside === "string's escape") this.#inside = "nothing";
    else if (this.#inside === "character" && (byte & 0xc0) !== 0x80) this.#inside = "nothing";
  }
}

/** CAN and SUB. */
const isCancel = (byte: number) => byte === 0x18 || byte === 0x1a;

function afterEscape(byte: number) {
  if (byte === 0x5b) return "control";
  // OSC, DCS, SOS, PM, APC
  if ([0x5d, 0x50, 0x58, 0x5e, 0x5f].includes(byte)) return "string";
  return byte >= 0x20 && byte <= 0x2f ? "escape" : "nothing";
}
