/**
 * A private DHT (BEP 5) for one IP family (BEP 32 has one for each): nodes keep each other's peers and signed items (BEP 44), so that
 * nobody has to.
 *
 * It begins at addresses it is given, never at a public router. The other side of an address is a guess until it answers; an item is
 * its key's, whoever hands it on. What is newest, and for this node, is the caller's to judge.
 */
import type { Received } from "../../boot/bencode.ts";
import type { Fields } from "../../boot/fields.ts";
import { type Address, type Family, fromCompact, isTellable, textOf } from "./address.ts";
import { Answers } from "./answers.ts";
import {
  compareItems,
  encodeItem,
  fieldsOf,
  type Item,
  isSigned,
  itemOf,
  readItem,
  targetOf,
} from "./item.ts";
import { KRPC, type Krpc, KrpcError, type KrpcOptions, openKrpc, type Question } from "./krpc.ts";
import { Neighbours } from "./neighbours.ts";
import { repeat } from "./repeat.ts";
import { Table } from "./table.ts";

const MINUTE_MS = 60_000;
/** How often something is done, on average. */
const EVERY = {
  /** The table is looked after. */
  tableMs: MINUTE_MS,
  /** Held items are put again: they may be forgotten after two hours (BEP 44). */
  putMs: 60 * MINUTE_MS,
  /** Watched items are asked for. */
  pollMs: 15 * MINUTE_MS,
};
/** How often a node that knows nobody looks for somebody. */
const ALONE_MS = 20_000;
/** Items that are held, and watched. */
const MOST_ITEMS = 64;
/** Peers that are taken from one node's answer, and from one walk. */
const MOST_PEERS_OF_NODE = 64;
const MOST_PEERS = 200;

/** How a node of the DHT is opened. */
export interface DhtOptions extends Partial<Pick<KrpcOptions, "host" | "port" | "limits" | "answerMs">> {
  /** This node's id, 20 bytes. */
  id: Uint8Array;
  family?: Family;
  /** Nodes to begin at: `192.0.2.1:6881`. */
  routes?: readonly string[];
  every?: Partial<typeof EVERY>;
  /** Milliseconds, of a clock that nobody sets. */
  now?: () => number;
  /** Something is wrong on this side. */
  tell(text: string): void;
}

interface Watch {
  key: Uint8Array;
  salt: Uint8Array;
  best: Item | undefined;
  tell(item: Item): void;
}

/** Opens the socket; what runs by itself does so until it is disposed of. */
export async function openDht(options: DhtOptions): Promise<Dht> {
  let dht: Dht | undefined;
  const krpc = await openKrpc({
    ...options,
    family: options.family ?? 4,
    answer: (question, from) => {
      if (!dht) throw new KrpcError(KRPC.server, "not yet");
      return dht.answer(question, from);
    },
  });
  dht = new Dht(krpc, options);
  return dht;
}

export class Dht implements AsyncDisposable {
  readonly family: Family;
  readonly #krpc: Krpc;
  readonly #table: Table;
  readonly #answers: Answers;
  readonly #tell: (text: string) => void;
  readonly #neighbours: Neighbours;
  /** By target: what this node puts again. */
  readonly #held = new Map<string, Item>();
  readonly #watches = new Map<string, Watch>();
  /** Somebody has answered since it began, or since it was alone. */
  #isJoined = false;
  readonly #stop = new AbortController();
  readonly #running: Promise<unknown>;

  constructor(krpc: Krpc, options: DhtOptions) {
    const now = options.now ?? (() => performance.now());
    this.family = options.family ?? 4;
    this.#krpc = krpc;
    this.#tell = options.tell;
    this.#table = new Table(options.id, now);
    this.#neighbours = new Neighbours({ krpc, table: this.#table, id: options.id, family: this.family, now });
    this.#answers = new Answers({
      family: this.family,
      table: this.#table,
      now,
      isOurs: (key) => [...this.#watches.values(), ...this.#held.values()].some((one) => keyOf(one) === key),
      gained: (item) => this.#found(item),
    });
    for (const route of options.routes ?? []) this.#neighbours.route(route);
    const every = { ...EVERY, ...options.every };
    const loop = { signal: this.#stop.signal, failed: (error: unknown) => this.#tell(String(error)) };
    this.#running = Promise.all([
      repeat(() => this.#lookAfter(), {
        ...loop,
        ms: () => (this.#table.size === 0 ? Math.min(every.tableMs, ALONE_MS) : every.tableMs),
        isAtOnce: true,
      }),
      repeat(() => this.#putAll(), { ...loop, ms: every.putMs }),
      repeat(() => this.#pollAll(), { ...loop, ms: every.pollMs }),
    ]);
  }

  /** UDP. */
  get port(): number {
    return this.#krpc.port;
  }

  /** Nodes it knows, what it keeps for others, and datagrams so far. */
  get counts() {
    return { nodes: this.#table.size, ...this.#answers.counts, ...this.#krpc.counts };
  }

  /** Somebody may be a node of the DHT: asked once, in its turn. Peers on the LAN are, by custom at the port of their BitTorrent. */
  meet(address: string): void {
    this.#neighbours.meet(address);
  }

  /** Nodes that answer, for the next start. */
  nodes(): string[] {
    return this.#neighbours.kept();
  }

  /** Holds an item from now on and puts it to the nodes nearest to it, again every hour. How many took it. The caller has checked it. */
  async publish(item: Item): Promise<number> {
    const target = targetOf(item);
    const held = this.#held.get(target);
    if (held && compareItems(item, held) < 0) return 0;
    if (!held && this.#held.size >= MOST_ITEMS) throw new RangeError(`${MOST_ITEMS} items are held already`);
    this.#held.set(target, item);
    return this.#put(item);
  }

  /** No longer puts what it holds under this key and salt. */
  release(key: Uint8Array, salt: Uint8Array): void {
    this.#held.delete(targetOf({ k: key, salt }));
  }

  /** The best item that can be found now, its signature checked. */
  async get(key: Uint8Array, salt: Uint8Array): Promise<Item | undefined> {
    return (await this.#walk(key, salt)).best;
  }

  /** Tells each item under key and salt that is better than the last, until the returned function is called. */
  watch(key: Uint8Array, salt: Uint8Array, tell: (item: Item) => void): () => void {
    if (this.#watches.size >= MOST_ITEMS) throw new RangeError(`${MOST_ITEMS} items are watched already`);
    const target = targetOf({ k: key, salt });
    const watch: Watch = { key, salt, best: undefined, tell };
    this.#watches.set(target, watch);
    const known = this.#answers.item(target);
    if (known) this.#found(known);
    this.#walk(key, salt).catch((error) => this.#tell(`${target}: ${error}`));
    return () => {
      if (this.#watches.get(target) === watch) this.#watches.delete(target);
    };
  }

  /** Peers of an infohash (hex), each told once; and with a port, that this node is one of them. */
  async peers(infohash: string, port: number | undefined, met: (address: string) => void): Promise<void> {
    const target = Buffer.from(infohash, "hex");
    const told = new Set<string>();
    const one = (peer: Address) => {
      const text = textOf(peer);
      if (told.has(text) || told.size >= MOST_PEERS) return;
      told.add(text);
      met(text);
    };
    for (const peer of this.#answers.peers(infohash)) one(peer);
    const nearest = await this.#neighbours.walk(
      target,
      "get_peers",
      { info_hash: target },
      (answer, from) => {
        for (const peer of peersIn(answer)) if (isTellable(peer, from.host)) one(peer);
      },
    );
    if (port === undefined) return;
    await Promise.allSettled(
      nearest.map(
        ({ address, token }) =>
          token && this.#neighbours.ask(address, "announce_peer", { info_hash: target, port, token }),
      ),
    );
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    this.#krpc.close();
    await this.#running;
  }

  /** Answers another node, and asks back whether it is there. */
  answer(question: Question, from: Address) {
    this.#neighbours.askedBy(question, from);
    return this.#answers.answer(question, from);
  }

  async #put(item: Item): Promise<number> {
    this.#answers.keep(item, "own");
    const { nearest } = await this.#walk(item.k, item.salt);
    const put = nearest.map(async ({ address, token }) => {
      if (!token) throw new KrpcError(KRPC.generic, `${textOf(address)} gave no token`);
      await this.#neighbours.ask(address, "put", { ...fieldsOf(item), token });
    });
    return (await Promise.allSettled(put)).filter(({ status }) => status === "fulfilled").length;
  }

  /** Goes to the nodes nearest to an item and asks each for it. */
  async #walk(k: Uint8Array, salt: Uint8Array) {
    const target = Buffer.from(targetOf({ k, salt }), "hex");
    let best = this.#answers.item(target.toString("hex"));
    const nearest = await this.#neighbours.walk(target, "get", { target }, (answer) => {
      const item = itemIn(answer, k, salt);
      // The signature last: old ones and those known already cost nothing
      if (!item || (best && compareItems(item, best) <= 0) || !isSigned(item)) return;
      best = item;
      this.#found(item);
    });
    return { nearest, best };
  }

  /** An item whose signature holds turned up, by whatever way. */
  #found(item: Item): void {
    const watch = this.#watches.get(targetOf(item));
    if (!watch || (watch.best && compareItems(item, watch.best) <= 0)) return;
    watch.best = item;
    watch.tell(readItem(encodeItem(item)));
  }

  async #lookAfter(): Promise<void> {
    await this.#neighbours.lookAfter(this.#stop.signal);
    const wasJoined = this.#isJoined;
    this.#isJoined = this.#table.size > 0;
    if (wasJoined || !this.#isJoined) return;
    // What was put and asked for while nobody was there
    await this.#putAll();
    await this.#pollAll();
  }

  async #putAll(): Promise<void> {
    for (const item of this.#held.values()) await this.#put(item);
  }

  async #pollAll(): Promise<void> {
    for (const { key, salt } of this.#watches.values()) await this.#walk(key, salt);
  }
}

const keyOf = (one: Watch | Item) => Buffer.from("k" in one ? one.k : one.key).toString("hex");

/** The item in an answer to `get`, if it is one under this key. Throws `FieldError` for a damaged one. */
function itemIn(answer: Fields, k: Uint8Array, salt: Uint8Array): Item | undefined {
  if (!answer.has("v") || !answer.has("k")) return undefined;
  const item = itemOf(answer, salt);
  return Buffer.compare(item.k, k) === 0 ? item : undefined;
}

/** The peers in an answer to `get_peers`; what is no address is left out. */
function peersIn(answer: Fields): Address[] {
  if (!answer.has("values")) return [];
  const { value } = answer.any("values");
  if (!Array.isArray(value)) return [];
  return value
    .slice(0, MOST_PEERS_OF_NODE)
    .map((one: Received) => (one.value instanceof Uint8Array ? fromCompact(one.value) : undefined))
    .filter((peer) => peer !== undefined);
}
