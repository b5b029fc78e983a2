/**
 * What a node remembers of heads, `DATA/heads.json`: of each key and target the highest it has heard. The bytes are kept whole, to be
 * given to others and to be known again after a start.
 *
 * Invariants
 * - Of one key nothing older counts again: not a lower version, and of the same version nothing issued before.
 * - A key that `trust.json` does not list with the role `head` has no memory: a leaked key that said too much is forgotten with it.
 */
import { readFile } from "node:fs/promises";
import * as v from "valibot";
import { compareHeads, type Following, type Head, HeadError, parseHead, verifyHead } from "./head.ts";
import { replaceFile } from "./progress.ts";
import type { Situation } from "./release.ts";
import { keyOf, signersFor, type Trust } from "./trust.ts";

/** Most heads that are remembered: `trust.json` has at most 100 signers, and a node follows one target at a time. */
const MOST = 200;
const Document = v.object({
  schema: v.literal("fruit.heads/1"),
  /** Base64. */
  heads: v.pipe(v.array(v.string()), v.maxLength(MOST)),
});

/** The heads that a node has heard. One part of a process owns them; what it takes is on the disk when that resolves. */
export class Heads {
  readonly #path: string;
  #heads: Map<string, Head>;
  #saving: Promise<void> = Promise.resolve();

  private constructor(path: string, heads: Map<string, Head>) {
    this.#path = path;
    this.#heads = heads;
  }

  /** Reads what was remembered. A file that makes no sense is nothing: heads come again. */
  static async open(path: string): Promise<Heads> {
    const heads = new Map<string, Head>();
    try {
      for (const text of v.parse(Document, JSON.parse(await readFile(path, "utf8"))).heads) {
        const head = parseHead(Buffer.from(text, "base64"));
        heads.set(nameOf(head), head);
      }
    } catch {
      heads.clear();
    }
    return new Heads(path, heads);
  }

  /** Those that count for what a node follows, now that this is whom it trusts. */
  of({ target, channel }: Following, trust: Trust): Head[] {
    const keys = new Set(signersFor(trust, "head").map(keyOf));
    return [...this.#heads.values()].filter(
      (head) => keys.has(head.key) && head.target === target && head.channel === channel,
    );
  }

  /** Listens to a head: true where it says something new. Throws `HeadError`, and nothing has changed. */
  async take(
    bytes: Uint8Array,
    trust: Trust,
    following: Following,
    when: Pick<Situation, "now">,
  ): Promise<boolean> {
    const known = this.#heads.get(nameOf(parseHead(bytes)));
    if (known && Buffer.from(known.bytes).equals(bytes) && this.of(following, trust).includes(known))
      return false;
    const head = verifyHead(bytes, trust, following, when);
    const before = this.#heads.get(nameOf(head));
    const order = before ? compareHeads(head, before) : 1;
    if (before && order < 0)
      throw new HeadError(
        "older",
        `it says version ${head.version}, issued at ${head.issued}; this key has said ${before.version}, issued at ${before.issued}`,
      );
    if (before && order === 0)
      throw new HeadError(
        "contradicts",
        `this key has said something else of version ${head.version}, issued at the same second`,
      );
    this.#heads.delete(nameOf(head));
    this.#heads.set(nameOf(head), head);
    await this.#save();
    return true;
  }

  /** Forgets what was said by keys that are not listed any more, or were not on the way here (`gone`, hex). */
  async forget(trust: Trust, gone: ReadonlySet<string> = new Set()): Promise<void> {
    const keys = new Set(signersFor(trust, "head").map(keyOf));
    const left = [...this.#heads].filter(([, { key }]) => keys.has(key) && !gone.has(key));
    if (left.length === this.#heads.size) return;
    this.#heads = new Map(left);
    await this.#save();
  }

  #save(): Promise<void> {
    // What was heard last stands last; targets of old go
    this.#heads = new Map([...this.#heads].slice(-MOST));
    const heads = [...this.#heads.values()].map(({ bytes }) => Buffer.from(bytes).toString("base64"));
    const text = `${JSON.stringify({ schema: "fruit.heads/1", heads })}\n`;
    const saving = this.#saving.catch(() => undefined).then(() => replaceFile(this.#path, text));
    this.#saving = saving;
    return saving;
  }
}

const nameOf = ({ key, target, channel }: Head) => `${key} ${target} ${channel}`;
