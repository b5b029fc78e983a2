/**
 * Heads on the LAN: one datagram that is a signed item (BEP 44) and nothing else, to a group of its own. It is said at once by whoever
 * holds a better one than before, and now and then by everybody; who says an old one is answered. Each hands on only what it has made
 * its own (`hold`), so a head goes through a LAN once, and what is not signed goes nowhere.
 *
 * Order of what is looked at, so that a flood costs its sender more than a node: length, limits of the source and of all, seen before,
 * shape, whether anybody wants it, whether it is better; only then the signature.
 */
import { hash } from "node:crypto";
import { BencodeError } from "../../boot/bencode.ts";
import type { Address } from "./address.ts";
import { compareItems, encodeItem, ITEM_MAX_BYTES, type Item, isSigned, readItem, targetOf } from "./item.ts";
import { Bucket, SourceLimit } from "./limit.ts";
import { type Group, type Multicast, openMulticast } from "./multicast.ts";
import { repeat } from "./repeat.ts";

/** The group of heads: organisation-local (RFC 2365) as that of BEP 14, and no other program's that we know of. */
export const BEACON_GROUP = { v4: "239.192.70.82", v6: "ff15::efc0:4652", port: 6772 };

/** How often what is held is said, on average. */
const EVERY_MS = 3 * 60_000;
/** Datagrams that are looked at, of each source and of all. */
const HEARD = { each: { burst: 20, perSecond: 1 }, all: { burst: 200, perSecond: 20 } };
/** Signatures that are checked, of each source and of all. */
const CHECKS = { each: { burst: 4, perSecond: 0.2 }, all: { burst: 20, perSecond: 2 } };
/** Datagrams sent because somebody said something old. */
const SAID = { burst: 8, perSecond: 0.1 };
/** Datagrams that are known again. */
const MOST_SEEN = 1024;
/** Items that are listened for. */
const MOST_FOLLOWED = 64;

/** How beacons are listened to. */
export interface BeaconOptions {
  group?: Group;
  interfaces?: readonly string[];
  /** On average. */
  everyMs?: number;
  /** An item that is followed, better than what was heard before, its signature good. Whether it is believed is judged elsewhere. */
  heard(item: Item): void;
  tell(text: string): void;
}

/** Joins the groups. Rejects where this machine has none. */
export async function openBeacon(options: BeaconOptions): Promise<Beacon> {
  let beacon: Beacon | undefined;
  const multicast = await openMulticast({
    group: options.group ?? BEACON_GROUP,
    ...(options.interfaces ? { interfaces: options.interfaces } : {}),
    received: (bytes, from) => beacon?.received(bytes, from),
  });
  beacon = new Beacon(multicast, options);
  return beacon;
}

export class Beacon implements AsyncDisposable {
  /** Datagrams that came, and what was made of them. */
  readonly counts = {
    received: 0,
    limited: 0,
    seen: 0,
    malformed: 0,
    unwanted: 0,
    old: 0,
    checked: 0,
    unsigned: 0,
    said: 0,
  };
  readonly #multicast: Multicast;
  readonly #options: BeaconOptions;
  readonly #heard = new SourceLimit(HEARD);
  readonly #checks = new SourceLimit(CHECKS);
  readonly #said = new Bucket(SAID);
  /** SHA-256 of datagrams that need not be looked at again, oldest first. */
  readonly #seen = new Set<string>();
  /** By target: the best that was heard or held, if any. */
  readonly #followed = new Map<string, Item | undefined>();
  /** By target: what this node hands on. */
  readonly #held = new Map<string, Item>();
  readonly #stop = new AbortController();
  readonly #running: Promise<void>;

  constructor(multicast: Multicast, options: BeaconOptions) {
    this.#multicast = multicast;
    this.#options = options;
    this.#running = repeat(() => this.#sayAll(), {
      ms: options.everyMs ?? EVERY_MS,
      signal: this.#stop.signal,
      failed: (error) => options.tell(String(error)),
    });
  }

  /** Listens for items under a key and salt until the returned function is called. */
  follow(key: Uint8Array, salt: Uint8Array): () => void {
    const target = targetOf({ k: key, salt });
    if (!this.#followed.has(target) && this.#followed.size >= MOST_FOLLOWED)
      throw new RangeError(`${MOST_FOLLOWED} items are followed already`);
    this.#followed.set(target, this.#followed.get(target) ?? this.#held.get(target));
    // Among what nobody wanted may be what is wanted now
    this.#seen.clear();
    return () => {
      this.#followed.delete(target);
    };
  }

  /** Hands this item on from now on: at once if it is better than what was held. The caller has judged it. */
  async hold(item: Item): Promise<void> {
    const target = targetOf(item);
    const held = this.#held.get(target);
    if (held && compareItems(item, held) <= 0) return;
    if (!held && this.#held.size >= MOST_FOLLOWED)
      throw new RangeError(`${MOST_FOLLOWED} items are held already`);
    this.#held.set(target, item);
    const best = this.#followed.get(target);
    if (this.#followed.has(target) && (!best || compareItems(item, best) > 0))
      this.#followed.set(target, item);
    await this.#say(item);
  }

  /** No longer hands on what it holds under this key and salt. */
  release(key: Uint8Array, salt: Uint8Array): void {
    this.#held.delete(targetOf({ k: key, salt }));
  }

  /** A datagram of the group. */
  received(bytes: Uint8Array, from: Address): void {
    this.counts.received++;
    if (bytes.length > ITEM_MAX_BYTES) this.counts.malformed++;
    else if (!this.#heard.take(from.host)) this.counts.limited++;
    else if (this.#isSeen(bytes)) this.counts.seen++;
    else this.#look(bytes, from);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    this.#multicast[Symbol.dispose]();
    await this.#running;
  }

  #look(bytes: Uint8Array, from: Address): void {
    const item = this.#read(bytes);
    if (!item) return;
    const target = targetOf(item);
    if (!this.#followed.has(target)) {
      this.counts.unwanted++;
      return;
    }
    const best = this.#followed.get(target);
    const order = best ? compareItems(item, best) : 1;
    if (order <= 0) {
      this.counts.old++;
      if (order < 0) this.#correct(target, bytes);
    } else if (!this.#checks.take(from.host)) {
      this.#seen.delete(digest(bytes)); // it may come again when there is time for it
      this.counts.limited++;
    } else this.#judge(item, target);
  }

  #read(bytes: Uint8Array): Item | undefined {
    try {
      return readItem(bytes);
    } catch (error) {
      if (!(error instanceof BencodeError)) throw error;
      this.counts.malformed++;
      return undefined;
    }
  }

  #judge(item: Item, target: string): void {
    this.counts.checked++;
    if (!isSigned(item)) {
      this.counts.unsigned++;
      return;
    }
    this.#followed.set(target, item);
    this.#options.heard(item);
  }

  /** Somebody on the LAN does not know the newest yet. Said again it is answered again, each time only if there is time for it. */
  #correct(target: string, bytes: Uint8Array): void {
    this.#seen.delete(digest(bytes));
    const held = this.#held.get(target);
    if (held && this.#said.take()) this.#say(held).catch((error) => this.#options.tell(String(error)));
  }

  async #say(item: Item): Promise<void> {
    this.counts.said++;
    await this.#multicast.send(encodeItem(item));
  }

  async #sayAll(): Promise<void> {
    for (const item of this.#held.values()) await this.#say(item);
  }

  /** Whether these bytes were looked at before; they are remembered. */
  #isSeen(bytes: Uint8Array): boolean {
    const key = digest(bytes);
    if (this.#seen.has(key)) return true;
    this.#seen.add(key);
    const [oldest] = this.#seen;
    if (this.#seen.size > MOST_SEEN && oldest !== undefined) this.#seen.delete(oldest);
    return false;
  }
}

const digest = (bytes: Uint8Array) => hash("sha256", bytes, "hex");
