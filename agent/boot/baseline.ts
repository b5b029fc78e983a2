/**
 * What worked while the good slot ran: the yardstick of the next trial. A fact is a word, `broker`, `bus:0`, `i2c:2` (two of them).
 * A fact stays until it has been missing for a while, so that a moment's outage, or an agent that has only just started, does not
 * make the yardstick shorter. What this version has ever had is kept as well: while some of it is missing nothing is tried, since a
 * shorter yardstick would let a release pass that can never have it.
 */
import * as v from "valibot";
import type { Store } from "../store.ts";
import { DEVICES } from "./names.ts";

/** What is kept, and what a trial is measured against. */
export const BaselineDocument = v.object({
  facts: v.array(v.string()),
  /** The boot it was last seen in, and the version that ran. */
  boot: v.string(),
  version: v.string(),
  /** All that was ever seen while this version ran. */
  ever: v.optional(v.array(v.string()), []),
});
export type BaselineDocument = v.InferOutput<typeof BaselineDocument>;

const NAME = "baseline";
/** Missing for so long, something no longer belongs to the node. */
const FORGET_MS = 15 * 60_000;

/** The yardstick while it grows. */
export class Baseline {
  readonly #store: Store;
  readonly #nowMs: () => number;
  /** When each fact was last seen. */
  readonly #seen = new Map<string, number>();
  #ever: Set<string>;
  #version: string;
  #saved = "";

  /** `nowMs` only ever passes. */
  constructor(store: Store, nowMs: () => number) {
    this.#store = store;
    this.#nowMs = nowMs;
    const before = store.load(NAME, BaselineDocument, { facts: [], boot: "", version: "", ever: [] });
    for (const fact of before.facts) this.#seen.set(fact, nowMs());
    this.#version = before.version;
    this.#ever = new Set([...before.ever, ...before.facts]);
  }

  get facts(): string[] {
    return [...this.#seen.keys()].sort();
  }

  /** What this version has had, and has not now. */
  missing(now: readonly string[]): string[] {
    return [...this.#ever]
      .filter((fact) => {
        const [what = "", count] = fact.split(":");
        const isCounted = DEVICES.some((kind) => kind === what);
        return isCounted ? countOf(now, what) < Number(count) : !now.includes(fact);
      })
      .sort();
  }

  /** Takes note of what works now, in this version. */
  observe(facts: readonly string[], version: string): void {
    if (version !== this.#version) this.#ever = new Set();
    this.#version = version;
    for (const fact of facts) {
      this.#seen.set(fact, this.#nowMs());
      this.#ever.add(fact);
    }
    for (const [fact, atMs] of this.#seen) if (this.#nowMs() - atMs > FORGET_MS) this.#seen.delete(fact);
  }

  /** Writes it down where it has changed. */
  async save(boot: string): Promise<void> {
    const [version, ever] = [this.#version, [...this.#ever].sort()];
    const document = { facts: this.facts, boot, version, ever } satisfies BaselineDocument;
    const text = JSON.stringify(document);
    if (text === this.#saved) return;
    await this.#store.save(NAME, document);
    this.#saved = text;
  }
}

/** How many of a class (`i2c`) are among the facts. */
export function countOf(facts: readonly string[], what: string): number {
  return Math.max(
    0,
    ...facts.filter((fact) => fact.startsWith(`${what}:`)).map((fact) => Number(fact.slice(what.length + 1))),
  );
}
