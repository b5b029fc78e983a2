/** Contents that failed, by hash: they are not tried again by themselves. */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import * as v from "valibot";
import { NO_HASH } from "../../boot/slots.ts";
import type { Store } from "../store.ts";

const Entry = v.object({
  version: v.string(),
  reason: v.string(),
  evidence: v.array(v.string()),
  /** RFC 3339; absent where the clock was not right. */
  at: v.optional(v.string()),
});
const Document = v.object({
  hashes: v.record(v.string(), Entry),
  /** How often all tries of a content were spent and nothing showed that it was to blame. */
  rounds: v.record(v.string(), v.number()),
  /** What the last trial of a content ended with that may have been something else's fault. */
  suspects: v.optional(v.record(v.string(), v.object({ trial: v.number(), what: v.array(v.string()) })), {}),
});
/** Why a content is not tried again. */
export type QuarantineEntry = v.InferOutput<typeof Entry>;
/** All that is held against a content. */
export interface HeldAgainst {
  blamed?: QuarantineEntry;
  /** Trials that ended without proof against it. */
  rounds: number;
  /** What it will be blamed for when a second trial ends so: checks that said no, or a reason. */
  suspected?: readonly string[];
}

const NAME = "quarantine";
/** Old ones go: a release that failed a hundred releases ago is below every floor. */
const MOST = 100;
/** After so many rounds somebody has to look. */
export const MOST_ROUNDS = 3;

/** The list, kept on the disk. */
export class Quarantine {
  readonly #store: Store;
  readonly #document: v.InferOutput<typeof Document>;

  constructor(store: Store) {
    this.#store = store;
    this.#document = store.load(NAME, Document, { hashes: {}, rounds: {}, suspects: {} });
  }

  get size(): number {
    return Object.keys(this.#document.hashes).length;
  }

  against(hash: string): HeldAgainst {
    return against(this.#document, hash);
  }

  of(hash: string): QuarantineEntry | undefined {
    return this.against(hash).blamed;
  }

  roundsOf(hash: string): number {
    return this.against(hash).rounds;
  }

  /** A hash that nobody knows is no content. */
  async add(hash: string, entry: QuarantineEntry): Promise<void> {
    if (hash === NO_HASH) return;
    this.#document.hashes = newest({ ...this.#document.hashes, [hash]: entry });
    await this.#store.save(NAME, this.#document);
  }

  /** All tries were spent once more, and nobody knows why. Returns how often that was so. */
  async addRound(hash: string): Promise<number> {
    const rounds = this.roundsOf(hash) + 1;
    this.#document.rounds = newest({ ...this.#document.rounds, [hash]: rounds });
    await this.#store.save(NAME, this.#document);
    return rounds;
  }

  /** A trial ended with what the release or its surroundings can have caused. True where another trial of it did so before. */
  async suspect(hash: string, trial: number, what: readonly string[]): Promise<boolean> {
    const { suspects } = this.#document;
    const before = Object.hasOwn(suspects, hash) ? suspects[hash] : undefined;
    if (before && before.trial !== trial && before.what.some((one) => what.includes(one))) return true;
    if (before?.trial === trial) return false;
    this.#document.suspects = newest({ ...suspects, [hash]: { trial, what: [...what] } });
    await this.#store.save(NAME, this.#document);
    return false;
  }

  /** A person wants it tried again, or it has become good. */
  async lift(hash: string): Promise<void> {
    const { suspects } = this.#document;
    if (!this.of(hash) && this.roundsOf(hash) === 0 && !Object.hasOwn(suspects, hash)) return;
    delete suspects[hash];
    delete this.#document.hashes[hash];
    delete this.#document.rounds[hash];
    await this.#store.save(NAME, this.#document);
  }
}

/** Why a content must not be installed, read from a data folder without the agent; undefined where nothing is against it. */
export async function quarantined(dataDir: string, hash: string): Promise<QuarantineEntry | undefined> {
  return (await heldAgainst(dataDir, hash)).blamed;
}

/** What is held against a content, read from a data folder without the agent. */
export async function heldAgainst(dataDir: string, hash: string): Promise<HeldAgainst> {
  const text = await readFile(join(dataDir, "boot", `${NAME}.json`), "utf8").catch(() => "");
  try {
    return against(v.parse(Document, JSON.parse(text)), hash);
  } catch {
    return { rounds: 0 };
  }
}

function against({ hashes, rounds, suspects }: v.InferOutput<typeof Document>, hash: string): HeldAgainst {
  const own = <T>(all: Record<string, T>) => (Object.hasOwn(all, hash) ? all[hash] : undefined);
  const [blamed, suspect] = [own(hashes), own(suspects)];
  return {
    ...(blamed ? { blamed } : {}),
    rounds: own(rounds) ?? 0,
    ...(suspect ? { suspected: suspect.what } : {}),
  };
}

function newest<T>(all: Record<string, T>): Record<string, T> {
  return Object.fromEntries(Object.entries(all).slice(-MOST));
}
