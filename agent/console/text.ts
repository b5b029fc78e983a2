/** What a line said, as text for people: no control sequences, nothing that a terminal would obey. */
import { stripVTControlCharacters } from "node:util";
import type { Item, Mark } from "./port.ts";

/** A mark as it stands on a line of its own, in UTC. */
export function markLine({ at, text }: Mark): string {
  return `[fruit ${new Date(at).toISOString().slice(0, 19)}Z: ${text}]\n`;
}

/** A sequence that has begun and not ended (ECMA-48 §5.4 and §5.6: CSI, then OSC, DCS, SOS, PM and APC), or the half of a newline. */
// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
const UNFINISHED = /(?:\r+|\x1b(?:\[[0-?]*[ -/]*|\][^\x07\x1b]*\x1b?|[PX^_][^\x1b]*\x1b?|[ -/]*)?)$/;
/** More than any sequence that is meant: rubbish is not waited for. */
const UNFINISHED_MAX = 256;

/** Control characters but tab and newline. */
const CONTROL = /[^\P{Cc}\t\n]/gu;

/** Turns items into text as they come, whatever pieces they come in. */
export class Transcript {
  readonly #isStamped: boolean;
  readonly #decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  #unfinished = "";
  #isLineStart = true;

  /** `isStamped`: each line begins with the time at which its first byte came. */
  constructor(options: { isStamped: boolean }) {
    this.#isStamped = options.isStamped;
  }

  add(item: Item): string {
    if (item.kind === "bytes") return this.#bytes(item);
    return item.kind === "mark" ? `${this.endLine()}${markLine(item.mark)}` : "";
  }

  /** What brings a line that has begun to its end. */
  endLine(): string {
    if (this.#isLineStart) return "";
    this.#isLineStart = true;
    return "\n";
  }

  #bytes({ bytes, at }: Extract<Item, { kind: "bytes" }>): string {
    const said = this.#unfinished + this.#decoder.decode(bytes, { stream: true });
    const tail = UNFINISHED.exec(said.slice(-UNFINISHED_MAX))?.[0] ?? "";
    this.#unfinished = tail.length < UNFINISHED_MAX ? tail : "";
    const text = plain(said.slice(0, said.length - this.#unfinished.length));
    return this.#isStamped ? this.#stamp(text, at) : this.#keep(text);
  }

  #keep(text: string): string {
    if (text) this.#isLineStart = text.endsWith("\n");
    return text;
  }

  #stamp(text: string, at: number | undefined): string {
    if (!text) return "";
    const stamp = at === undefined ? "- " : `${new Date(at).toISOString()} `;
    const wasLineStart = this.#isLineStart;
    this.#isLineStart = text.endsWith("\n");
    const stamped = text.replace(/\n(?!$)/g, `\n${stamp}`);
    return wasLineStart ? stamp + stamped : stamped;
  }
}

/** Text without control sequences. A carriage return alone, as in the progress of a download, begins a line. */
function plain(text: string): string {
  return stripVTControlCharacters(text)
    .replace(/\r+/g, "\r")
    .replace(/\r\n|\n\r|\r/g, "\n")
    .replace(CONTROL, "");
}
