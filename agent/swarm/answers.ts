/** What a DHT node answers others (BEP 5, BEP 44), and what it keeps for them: peers of torrents, and mutable items. */
import { createHmac, randomBytes, timingSafeEqual } from "node:crypto";
import type { Encodable } from "../../boot/bencode.ts";
import type { Fields } from "../../boot/fields.ts";
import { type Address, addressOf, type Family, sourceOf, textOf, toCompact } from "./address.ts";
import {
  compareItems,
  fieldsOf,
  type Item,
  isSigned,
  itemOf,
  SALT_MAX_BYTES,
  targetOf,
  VALUE_MAX_BYTES,
} from "./item.ts";
import { ID_BYTES, KRPC, KrpcError, type Question } from "./krpc.ts";
import { SourceLimit } from "./limit.ts";
import { Shelf } from "./shelf.ts";
import { K, type Table, toNodes } from "./table.ts";

const MINUTE_MS = 60_000;
/** Room for the peers of strangers. Announcements are repeated at least every 15 minutes. */
const PEERS = { entries: 2048, ofGroup: 64, ofSource: 128, ageMs: 30 * MINUTE_MS };
/** Room for items under keys that nobody here has asked for; BEP 44 has them put again every hour. */
const ITEMS = { entries: 256, ofGroup: 16, ofSource: 16, ageMs: 120 * MINUTE_MS };
/** Room for items under keys this node watches: whoever puts one has the key. */
const OURS = { entries: 256, ofGroup: 64, ofSource: 256, ageMs: 120 * MINUTE_MS };
/** Peers in one answer: with eight nodes they are one datagram. */
const PEERS_ANSWERED = { 4: 64, 6: 24 } as const;
/** A value of more bytes leaves room for only so many nodes in the same datagram. */
const BIG_VALUE_BYTES = 600;
const NODES_BESIDE_BIG_VALUE = 3;
/** How long a token is good for, once and once more. */
const TOKEN_MS = 5 * MINUTE_MS;
const TOKEN_BYTES = 8;
/** Signatures of strangers' items that are checked, of each source and of all: one costs as much as many datagrams. */
const CHECKS = { each: { burst: 20, perSecond: 2 }, all: { burst: 100, perSecond: 20 } };

export interface AnswersOptions {
  family: Family;
  table: Table;
  /** Milliseconds. */
  now(): number;
  /** Whether this node itself wants items under a key (hex). */
  isOurs(key: string): boolean;
  /** An item was kept that is better than what was there. */
  gained(item: Item): void;
}

/** The values of an answer. */
type Values = { [key: string]: Encodable | undefined };

export class Answers {
  readonly #options: AnswersOptions;
  readonly #peers: Shelf<Address>;
  readonly #items: Shelf<Item>;
  readonly #ours: Shelf<Item>;
  readonly #checks: SourceLimit;
  #secrets = [randomBytes(16), randomBytes(16)] as const;
  #secretAt: number;

  constructor(options: AnswersOptions) {
    this.#options = options;
    this.#peers = new Shelf(PEERS, options.now);
    this.#items = new Shelf(ITEMS, options.now);
    this.#ours = new Shelf(OURS, options.now);
    this.#checks = new SourceLimit({ ...CHECKS, now: options.now });
    this.#secretAt = options.now();
  }

  /** How much is kept. */
  get counts(): { peers: number; items: number } {
    return { peers: this.#peers.size, items: this.#items.size + this.#ours.size };
  }

  /** Answers one question. Throws `KrpcError`, and `FieldError` for a field that is not what it should be. */
  answer({ name, args }: Question, from: Address): Values {
    switch (name) {
      case "ping":
        return {};
      case "find_node":
        return this.#nodes(args.bytes("target", ID_BYTES));
      case "get_peers":
        return this.#getPeers(args.bytes("info_hash", ID_BYTES), from);
      case "announce_peer":
        return this.#announcePeer(args, from);
      case "get":
        return this.#get(args, from);
      case "put":
        return this.#put(args, from);
      default:
        throw new KrpcError(KRPC.unknownMethod, "unknown method");
    }
  }

  /** The item at a target, if one is kept here. */
  item(target: string): Item | undefined {
    return this.#ours.get(target) ?? this.#items.get(target);
  }

  /** The peers of an infohash (hex) that are kept here. */
  peers(infohash: string): Address[] {
    return this.#peers.of(infohash);
  }

  /** Keeps an item that was checked already; false where it is not better than what is there, or there is no room. */
  keep(item: Item, source: string): boolean {
    const [target, group] = [targetOf(item), hex(item.k)];
    const known = this.item(target);
    const order = known ? compareItems(item, known) : 1;
    if (order < 0 || (known && order === 0 && !sameItem(item, known))) return false;
    const shelf = this.#options.isOurs(group) ? this.#ours : this.#items;
    if (!shelf.put(target, { group, source }, item)) return false;
    if (order > 0) this.#options.gained(item);
    return true;
  }

  #nodes(target: Uint8Array, count = K): Values {
    return {
      [this.#options.family === 4 ? "nodes" : "nodes6"]: toNodes(this.#options.table.nearest(target, count)),
    };
  }

  #getPeers(infohash: Uint8Array, from: Address): Values {
    const values = sample(this.#peers.of(hex(infohash)), PEERS_ANSWERED[this.#options.family]).map(toCompact);
    return {
      ...this.#nodes(infohash),
      token: this.#token(from, this.#secret()),
      ...(values.length > 0 ? { values } : {}),
    };
  }

  #announcePeer(args: Fields, from: Address): Values {
    const group = hex(args.bytes("info_hash", ID_BYTES));
    const isImplied = args.has("implied_port") && args.integer("implied_port") !== 0n;
    const port = isImplied ? from.port : args.count("port", 1, 65_535);
    this.#checkToken(args, from);
    const peer = addressOf(from.host, port);
    const isKept =
      peer && this.#peers.put(`${group} ${textOf(peer)}`, { group, source: sourceOf(from.host) }, peer);
    if (!isKept) throw new KrpcError(KRPC.server, "no room for more peers of yours");
    return {};
  }

  #get(args: Fields, from: Address): Values {
    const target = args.bytes("target", ID_BYTES);
    const than = args.has("seq") ? args.integer("seq") : undefined;
    const token = this.#token(from, this.#secret());
    const item = this.item(hex(target));
    if (!item) return { ...this.#nodes(target), token };
    // BEP 44: who has this one already is told only its number
    if (than !== undefined && item.seq <= than) return { ...this.#nodes(target), token, seq: item.seq };
    const { k, seq, sig, v } = fieldsOf(item);
    const count = item.v.length > BIG_VALUE_BYTES ? NODES_BESIDE_BIG_VALUE : K;
    return { ...this.#nodes(target, count), token, k, seq, sig, v };
  }

  #put(args: Fields, from: Address): Values {
    const item = putItem(args);
    this.#checkToken(args, from);
    const known = this.item(targetOf(item));
    if (known) refuseOlder(item, known, args.has("cas") ? args.integer("cas") : known.seq);
    if (!known || !sameItem(item, known)) {
      // Last, for it costs most: a token has shown who asks, and what is old was sent away
      if (!this.#checks.take(from.host)) throw new KrpcError(KRPC.server, "too many items at once");
      if (!isSigned(item)) throw new KrpcError(KRPC.badSignature, "the signature does not hold");
    }
    if (!this.keep(item, sourceOf(from.host)))
      throw new KrpcError(KRPC.server, "no room for more items of yours");
    return {};
  }

  #checkToken(args: Fields, from: Address): void {
    const token = args.bytes("token");
    this.#secret();
    const isGood = this.#secrets.some((secret) => {
      const expected = this.#token(from, secret);
      return token.length === expected.length && timingSafeEqual(token, expected);
    });
    if (!isGood) throw new KrpcError(KRPC.protocol, "the token is not of here, or too old");
  }

  /** Proof that somebody gets what is sent to an address (BEP 5). */
  #token({ host }: Address, secret: Uint8Array): Buffer {
    return createHmac("sha256", secret).update(host).digest().subarray(0, TOKEN_BYTES);
  }

  #secret(): Uint8Array {
    const age = this.#options.now() - this.#secretAt;
    if (age >= TOKEN_MS) {
      this.#secrets = [randomBytes(16), age < 2 * TOKEN_MS ? this.#secrets[0] : randomBytes(16)];
      this.#secretAt = this.#options.now();
    }
    return this.#secrets[0];
  }
}

/** The item of a `put`, with the errors that BEP 44 has for what is too long. */
function putItem(args: Fields): Item {
  if (!args.has("k")) throw new KrpcError(KRPC.protocol, "only items with a key are kept here");
  if (args.any("v").bytes.length > VALUE_MAX_BYTES)
    throw new KrpcError(KRPC.tooBig, `the value has more than ${VALUE_MAX_BYTES} bytes`);
  if (args.has("salt") && args.bytes("salt").length > SALT_MAX_BYTES)
    throw new KrpcError(KRPC.saltTooBig, `the salt has more than ${SALT_MAX_BYTES} bytes`);
  return itemOf(args);
}

/** `cas`: the number that the sender believes is here (BEP 44). */
function refuseOlder(item: Item, known: Item, cas: bigint): void {
  if (cas !== known.seq) throw new KrpcError(KRPC.casMismatch, `the number here is ${known.seq}`);
  const order = compareItems(item, known);
  if (order < 0 || (order === 0 && !sameItem(item, known)))
    throw new KrpcError(KRPC.seqTooLow, `what is here has the number ${known.seq} and is not older`);
}

const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString("hex");

function sameItem(a: Item, b: Item): boolean {
  return a.seq === b.seq && Buffer.compare(a.v, b.v) === 0 && Buffer.compare(a.sig, b.sig) === 0;
}

/** So many of them by chance: the first are nobody's to claim. */
function sample<T>(all: T[], count: number): T[] {
  for (let index = 0; index < Math.min(count, all.length); index++) {
    const other = index + Math.floor(Math.random() * (all.length - index));
    [all[index], all[other]] = [all[other] as T, all[index] as T];
  }
  return all.slice(0, count);
}
