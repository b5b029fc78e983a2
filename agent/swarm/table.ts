/**
 * The nodes of the DHT that this one knows (BEP 5): many near its own id, few far away.
 *
 * Invariants
 * - Only who has answered a question stands here: an address that somebody merely claims to have does not.
 * - Eight for each distance, a few from each source: filling it takes as many addresses as it has places.
 * - Who answers stays: a newcomer gets only an empty place or that of one who is silent.
 */
import {
  type Address,
  compactBytes,
  type Family,
  fromCompact,
  sourceOf,
  textOf,
  toCompact,
} from "./address.ts";
import { ID_BYTES } from "./krpc.ts";

/** Nodes of one distance, and of one answer (Kademlia's k). */
export const K = 8;
/** Nodes of one source: as many of a site behind one address are enough. */
const MOST_OF_SOURCE = 16;
/** Questions in a row without an answer that make a node silent. */
const SILENT_AFTER = 2;

/** A node and where it is. */
export interface Contact {
  readonly id: Uint8Array;
  readonly address: Address;
}

interface Known extends Contact {
  /** When it answered last. */
  heardAt: number;
  /** Questions without an answer since. */
  missed: number;
}

export class Table {
  readonly #own: Uint8Array;
  readonly #now: () => number;
  /** By how many leading bits of their id are those of the own one. */
  readonly #buckets = new Map<number, Known[]>();

  /** `now` in milliseconds. */
  constructor(own: Uint8Array, now: () => number) {
    this.#own = own;
    this.#now = now;
  }

  get size(): number {
    return this.#all().length;
  }

  /** This node has answered. */
  heard({ id, address }: Contact): void {
    const place = sharedBits(this.#own, id);
    if (place === ID_BYTES * 8) return; // itself
    const bucket = this.#buckets.get(place) ?? [];
    const text = textOf(address);
    const known = bucket.find((one) => Buffer.compare(one.id, id) === 0);
    if (known && textOf(known.address) === text) {
      known.heardAt = this.#now();
      known.missed = 0;
      return;
    }
    // One who has moved, or says so: the place is its only when nobody answers at the old one
    if (known && known.missed < SILENT_AFTER) return;
    this.#forget(text);
    const rest = bucket.filter((one) => one !== known && textOf(one.address) !== text);
    if (rest.length >= K) {
      const silent = rest.findIndex(({ missed }) => missed >= SILENT_AFTER);
      if (silent < 0) return;
      rest.splice(silent, 1);
    }
    const source = sourceOf(address.host);
    const others = this.#all().filter((one) => sourceOf(one.address.host) === source);
    if (others.length >= MOST_OF_SOURCE) return;
    this.#buckets.set(place, [...rest, { id: Buffer.from(id), address, heardAt: this.#now(), missed: 0 }]);
  }

  /** Nobody answered at this address. */
  missed(address: Address): void {
    const text = textOf(address);
    for (const one of this.#all()) if (textOf(one.address) === text) one.missed++;
  }

  /** Whether asking this node might lead to a place for it. */
  isWanted({ id, address }: Contact): boolean {
    const bucket = this.#buckets.get(sharedBits(this.#own, id)) ?? [];
    const text = textOf(address);
    if (bucket.some((one) => textOf(one.address) === text)) return false;
    return bucket.length < K || bucket.some(({ missed }) => missed >= SILENT_AFTER);
  }

  /** Those nearest to a target that answer, nearest first. */
  nearest(target: Uint8Array, count = K): Contact[] {
    return this.#all()
      .filter(({ missed }) => missed < SILENT_AFTER)
      .sort((a, b) => compareDistance(target, a.id, b.id))
      .slice(0, count);
  }

  /** Who was not heard for longest, if that is `ms` ago. */
  stalest(ms: number): Contact | undefined {
    const [first] = this.#all().sort((a, b) => a.heardAt - b.heardAt);
    return first && this.#now() - first.heardAt >= ms ? first : undefined;
  }

  /** Takes out those who have been silent for several questions more. */
  tidy(): void {
    for (const [place, bucket] of this.#buckets)
      this.#buckets.set(
        place,
        bucket.filter(({ missed }) => missed < SILENT_AFTER * 2),
      );
  }

  #forget(text: string): void {
    for (const [place, bucket] of this.#buckets)
      this.#buckets.set(
        place,
        bucket.filter(({ address }) => textOf(address) !== text),
      );
  }

  #all(): Known[] {
    return [...this.#buckets.values()].flat();
  }
}

/** Below 0 where `a` is nearer to the target than `b` (XOR, as numbers). */
export function compareDistance(target: Uint8Array, a: Uint8Array, b: Uint8Array): number {
  for (const [index, byte] of target.entries()) {
    const difference = (byte ^ (a[index] ?? 0)) - (byte ^ (b[index] ?? 0));
    if (difference !== 0) return difference;
  }
  return 0;
}

function sharedBits(a: Uint8Array, b: Uint8Array): number {
  const index = a.findIndex((byte, at) => byte !== b[at]);
  return index < 0 ? ID_BYTES * 8 : index * 8 + Math.clz32((a[index] ?? 0) ^ (b[index] ?? 0)) - 24;
}

/** Compact node info (BEP 5, BEP 32): id and address of each. */
export function toNodes(contacts: readonly Contact[]): Buffer {
  return Buffer.concat(contacts.flatMap(({ id, address }) => [id, toCompact(address)]));
}

/** Reads compact node info; undefined where its length is wrong. Addresses that nobody can have are left out. */
export function fromNodes(bytes: Uint8Array, family: Family): Contact[] | undefined {
  const each = ID_BYTES + compactBytes(family);
  if (bytes.length % each !== 0) return undefined;
  const contacts: Contact[] = [];
  for (let at = 0; at < bytes.length; at += each) {
    const address = fromCompact(bytes.subarray(at + ID_BYTES, at + each));
    if (address) contacts.push({ id: Buffer.from(bytes.subarray(at, at + ID_BYTES)), address });
  }
  return contacts;
}
