/**
 * Who answered before the last start, `DATA/peers.json`: nodes of the DHT, and peers of the last payloads. Asked first the next time, they
 * bring a node back that is told nothing else. Nobody there is trusted.
 */
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import * as v from "valibot";
import { replaceFile } from "../../boot/progress.ts";
import { readAddress } from "../swarm/address.ts";
import { KNOWN_MOST, type ReportHead } from "../swarm/frames.ts";

/** Written so often at most: cards wear. */
const LEAST_MS = 5 * 60_000;

const addresses = (most: number) =>
  v.pipe(
    v.array(
      v.pipe(
        v.string(),
        v.check((text) => readAddress(text) !== undefined),
      ),
    ),
    v.maxLength(most),
  );
const Document = v.object({
  schema: v.literal("fruit.peers/1"),
  nodes: addresses(KNOWN_MOST.nodes),
  /** The payload looked for last stands last. */
  peers: v.pipe(
    v.array(v.object({ infohash: v.string(), addresses: addresses(KNOWN_MOST.peers) })),
    v.maxLength(KNOWN_MOST.payloads),
  ),
});

/** This node's id in the DHT, 20 bytes in hex: the same after every start, another for every node. `name`: what only this node has. */
export const dhtId = (name: string): string => createHash("sha1").update(`fruit dht ${name}`).digest("hex");

/** What is remembered. One part of a process owns it. */
export class Known {
  readonly #path: string;
  readonly #nowMs: () => number;
  #nodes: readonly string[] = [];
  #peers = new Map<string, readonly string[]>();
  #savedMs = Number.NEGATIVE_INFINITY;

  /** Reads what was remembered. A file that makes no sense is nothing. `nowMs`: milliseconds that only ever pass. */
  constructor(path: string, nowMs: () => number = () => performance.now()) {
    this.#path = path;
    this.#nowMs = nowMs;
    try {
      const { nodes, peers } = v.parse(Document, JSON.parse(readFileSync(path, "utf8")));
      this.#nodes = nodes;
      this.#peers = new Map(peers.map(({ infohash, addresses }) => [infohash, addresses]));
    } catch {
      // They are found again
    }
  }

  /** Nodes of the DHT, those heard of last first. */
  get nodes(): readonly string[] {
    return this.#nodes;
  }

  /** Peers of a payload. */
  peers(infohash: string): readonly string[] {
    return this.#peers.get(infohash) ?? [];
  }

  /** What the child has found out. Written where it is news, and not too often; rejects where it cannot be. */
  async take({ nodes, peers }: ReportHead<"known">): Promise<void> {
    const before = this.#all();
    this.#nodes = merged(nodes, this.#nodes, KNOWN_MOST.nodes);
    for (const { infohash, addresses } of peers) {
      const all = merged(addresses, this.peers(infohash), KNOWN_MOST.peers);
      this.#peers.delete(infohash);
      if (all.length > 0) this.#peers.set(infohash, all);
    }
    this.#peers = new Map([...this.#peers].slice(-KNOWN_MOST.payloads));
    const isNews = [...this.#all()].some((one) => !before.has(one));
    if (!isNews || this.#nowMs() - this.#savedMs < LEAST_MS) return;
    this.#savedMs = this.#nowMs();
    const document: v.InferInput<typeof Document> = {
      schema: "fruit.peers/1",
      nodes: [...this.#nodes],
      peers: [...this.#peers].map(([infohash, all]) => ({ infohash, addresses: [...all] })),
    };
    await replaceFile(this.#path, `${JSON.stringify(document)}\n`);
  }

  #all(): Set<string> {
    const peers = [...this.#peers].flatMap(([infohash, all]) => all.map((one) => `${infohash} ${one}`));
    return new Set([...this.#nodes, ...peers]);
  }
}

/** The new ones first, then those of before. */
const merged = (now: readonly string[], before: readonly string[], most: number): string[] =>
  [...new Set([...now, ...before])].slice(0, most);
