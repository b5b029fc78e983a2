/**
 * What worked while the good slot ran: the yardstick of the next trial. A fact is a word, `broker`, `bus:0`, `i2c:2` (two of them).
 * A fact stays until it has been missing for a while, so that a moment's outage, or an agent that has only just started, does not
 * make the yardstick shorter.
 */
import * as v from "valibot";
import type { Store } from "../store.ts";

/** What is kept, and what a trial is measured against. */
export const BaselineDocument = v.object({
  facts: v.array(v.string()),
  /** The boot it was last seen in, and the version that ran. */
  boot: v.string(),
  version: v.string(),
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
  #saved = "";

  /** `nowMs` only ever passes. */
  constructor(store: Store, nowMs: () => number) {
    this.#store = store;
    this.#nowMs = nowMs;
    const before = store.load(NAME, BaselineDocument, { facts: [], boot: "", version: "" });
    for (const fact of before.facts) this.#seen.set(fact, nowMs());
  }

  get facts(): string[] {
    return [...this.#seen.keys()].sort();
  }

  /** Takes note of what works now. */
  observe(facts: Iterable<string>): void {
    for (const fact of facts) this.#seen.set(fact, this.#nowMs());
    for (const [fact, atMs] of this.#seen) if (this.#nowMs() - atMs > FORGET_MS) this.#seen.delete(fact);
  }

  /** Writes it down where it has changed. */
  async save(boot: string, version: string): Promise<void> {
    const document = { facts: this.facts, boot, version } satisfies BaselineDocument;
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
