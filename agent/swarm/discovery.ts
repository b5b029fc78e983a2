/**
 * Finds peers and heads for this node in the ways its settings allow, and hands heads on: in the own network, and in the DHT. A way that
 * cannot be opened is told, and is missing; the others are there.
 *
 * Invariants
 * - Only heads whose signature holds, by keys that are followed, each newer than the last, are told; so fast and no faster.
 * - What is handed on is what the agent has judged, and only as long as its key is followed.
 */
import { randomBytes } from "node:crypto";
import { type Beacon, openBeacon } from "./beacon.ts";
import { type Dht, openDht } from "./dht.ts";
import type { Finder } from "./engine.ts";
import { dhtFinder, listFinder } from "./finders.ts";
import { KNOWN_MOST, type Orders, type ReportHead, type Settings } from "./frames.ts";
import { compareItems, encodeItem, type Item, readItem, targetOf } from "./item.ts";
import { openLsd } from "./lsd.ts";
import { pause } from "./repeat.ts";

/** Between two heads that are told. */
const TOLD_MS = 250;
/** Until a head that no node of the DHT has taken is put again: at first, and at most. */
const AGAIN = { firstMs: 2000, mostMs: 60_000 };
/** Keys that are followed at once. */
const MOST_FOLLOWED = 64;

/** What discovery has of its child. */
export interface DiscoveryAround {
  /** TCP of the engine, and UDP of the DHT. */
  port: number;
  /** A head was heard; the next is told when this has resolved. */
  heard(head: Uint8Array, from: ReportHead<"head">["from"]): Promise<void>;
  announced(facts: ReportHead<"announced">): void;
  /** Something is wrong on this side. */
  tell(text: string): void;
  signal: AbortSignal;
}

/** Ways to find peers, by their names. */
export type Finders = Readonly<Record<string, Finder>>;

/** What the child asks for. */
export interface Discovery {
  readonly finders: Finders;
  follow(order: Orders["follow"]): void;
  /** Throws `BencodeError` for what is no signed item. */
  announce(head: Uint8Array): Promise<void>;
  /** There is a peer: it may be a node of the DHT at the same port. */
  meet(address: string): void;
  /** Nodes of the DHT that answer. */
  nodes(): string[];
}

/** Opens what the settings allow, until the signal aborts. */
export async function openDiscovery(settings: Settings, around: DiscoveryAround): Promise<Discovery> {
  const ways = new Ways(settings, around);
  await ways.open();
  return ways;
}

class Ways implements Discovery {
  readonly finders: Record<string, Finder> = {};
  readonly #settings: Settings;
  readonly #around: DiscoveryAround;
  readonly #dhts: Dht[] = [];
  #beacon: Beacon | undefined;
  /** Ends what is followed. */
  #unfollow: (() => void)[] = [];
  /** By place in the DHT, of each that is followed: the newest that is known. */
  readonly #best = new Map<string, Item | undefined>();
  /** What is to be told yet. */
  readonly #waiting = new Map<string, { item: Item; from: "dht" | "lan" }>();
  #isTelling = false;
  readonly #held = new Map<string, Item>();

  constructor(settings: Settings, around: DiscoveryAround) {
    this.#settings = settings;
    this.#around = around;
  }

  async open(): Promise<void> {
    const { lan, dht, peers = [] } = this.#settings;
    if (peers.length > 0) this.finders.fixed = listFinder(peers);
    if (dht)
      for (const family of [4, 6] as const) await this.#opened(`dht${family}`, () => this.#openDht(family));
    if (!lan) return;
    await this.#opened("lan", () => this.#openLsd());
    await this.#opened("beacon", () => this.#openBeacon());
  }

  follow({ target, keys }: Orders["follow"]): void {
    for (const stop of this.#unfollow) stop();
    const salt = Buffer.from(target);
    const followed = keys.slice(0, MOST_FOLLOWED).map((hex) => {
      const key = Buffer.from(hex, "hex");
      return { key, at: targetOf({ k: key, salt }) };
    });
    // Each that is followed is heard of anew: what was refused may be believed now
    this.#best.clear();
    this.#waiting.clear();
    for (const { at } of followed) this.#best.set(at, this.#held.get(at));
    for (const [at, item] of this.#held) if (!this.#best.has(at)) this.#release(at, item);
    this.#unfollow = followed.flatMap(({ key }) => [
      ...(this.#beacon ? [this.#beacon.follow(key, salt)] : []),
      ...this.#dhts.map((dht) => dht.watch(key, salt, (item) => this.#heard(item, "dht"))),
    ]);
  }

  async announce(head: Uint8Array): Promise<void> {
    const { signal, announced } = this.#around;
    const item = readItem(head);
    const at = targetOf(item);
    const held = this.#held.get(at);
    if (held && compareItems(item, held) <= 0) return;
    if (!held && this.#held.size >= MOST_FOLLOWED)
      throw new RangeError(`${MOST_FOLLOWED} heads are handed on already`);
    this.#held.set(at, item);
    if (this.#best.has(at)) this.#best.set(at, item);
    const lan = await this.#said(item);
    for (
      let ms = AGAIN.firstMs;
      !signal.aborted && this.#held.get(at) === item;
      ms = Math.min(ms * 2, AGAIN.mostMs)
    ) {
      const dht = await this.#put(item);
      announced({ dht, lan });
      // Taken once it is put again every hour
      if (dht > 0 || this.#dhts.length === 0) return;
      await pause(ms * (0.5 + Math.random()), signal);
    }
  }

  meet(address: string): void {
    for (const dht of this.#dhts) dht.meet(address);
  }

  nodes(): string[] {
    return this.#dhts.flatMap((dht) => dht.nodes()).slice(0, KNOWN_MOST.nodes);
  }

  async #opened(what: string, open: () => Promise<AsyncDisposable>): Promise<void> {
    const { signal, tell } = this.#around;
    try {
      const opened = await open();
      signal.addEventListener("abort", () => void opened[Symbol.asyncDispose](), { once: true });
    } catch (cause) {
      tell(`${what}: ${cause instanceof Error ? cause.message : cause}`);
    }
  }

  async #openDht(family: 4 | 6): Promise<Dht> {
    const { port, tell } = this.#around;
    const { id, bootstrap, everyMs } = this.#settings;
    const dht = await openDht({
      ...{ port, family, tell, routes: bootstrap },
      id: id === undefined ? randomBytes(20) : Buffer.from(id, "hex"),
      ...(everyMs === undefined ? {} : { every: { tableMs: everyMs, putMs: everyMs, pollMs: everyMs } }),
    });
    this.#dhts.push(dht);
    this.finders[`dht${family}`] = dhtFinder(dht, everyMs);
    return dht;
  }

  async #openLsd(): Promise<AsyncDisposable> {
    const lsd = await openLsd({ ...this.#lan("peers"), peer: (address) => this.meet(address) });
    this.finders.lan = lsd.finder;
    return lsd;
  }

  async #openBeacon(): Promise<AsyncDisposable> {
    this.#beacon = await openBeacon({ ...this.#lan("heads"), heard: (item) => this.#heard(item, "lan") });
    return this.#beacon;
  }

  #lan(which: "peers" | "heads") {
    const { groups, everyMs } = this.#settings;
    return {
      tell: this.#around.tell,
      ...(groups ? { group: groups[which], interfaces: groups.interfaces } : {}),
      ...(everyMs === undefined ? {} : { everyMs }),
    };
  }

  #heard(item: Item, from: "dht" | "lan"): void {
    const at = targetOf(item);
    const best = this.#best.get(at);
    if (!this.#best.has(at) || (best && compareItems(item, best) <= 0)) return;
    this.#best.set(at, item);
    this.#waiting.set(at, { item, from });
    if (!this.#isTelling) void this.#tellAll();
  }

  async #tellAll(): Promise<void> {
    const { heard, tell, signal } = this.#around;
    this.#isTelling = true;
    for (let next = this.#next(); next && !signal.aborted; next = this.#next()) {
      await heard(encodeItem(next.item), next.from).catch((cause) => tell(String(cause)));
      await pause(TOLD_MS, signal);
    }
    this.#isTelling = false;
  }

  #next() {
    const [first] = this.#waiting;
    if (first) this.#waiting.delete(first[0]);
    return first?.[1];
  }

  async #said(item: Item): Promise<boolean> {
    if (!this.#beacon) return false;
    return this.#beacon.hold(item).then(
      () => true,
      (cause) => {
        this.#around.tell(`beacon: ${cause}`);
        return false;
      },
    );
  }

  /** How many nodes took it. */
  async #put(item: Item): Promise<number> {
    const put = await Promise.allSettled(this.#dhts.map((dht) => dht.publish(item)));
    return put.reduce((sum, one) => sum + (one.status === "fulfilled" ? one.value : 0), 0);
  }

  #release(at: string, { k, salt }: Item): void {
    this.#held.delete(at);
    this.#beacon?.release(k, salt);
    for (const dht of this.#dhts) dht.release(k, salt);
  }
}
