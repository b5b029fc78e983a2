/** The other nodes of the DHT: who there is, asking one, and walking to those nearest to a target. */
import type { Fields } from "../../boot/fields.ts";
import { type Address, type Family, isTellable, readAddress, textOf } from "./address.ts";
import { ID_BYTES, KRPC, type Krpc, KrpcError, type Question } from "./krpc.ts";
import { Bucket } from "./limit.ts";
import { search } from "./search.ts";
import { type Contact, fromNodes, K, type Table } from "./table.ts";

/** A node that has not been heard for so long is asked whether it is there. */
const STALE_MS = 10 * 60_000;
/** Nodes that turn up by themselves are asked back, so many. */
const CHECKS = { burst: 16, perSecond: 2 };
/** Addresses to begin at that are remembered, of each kind. */
const MOST_ROUTES = 256;
/** Nodes that are given out for the next start. */
const MOST_KEPT = 64;

/** Somebody at the end of a walk, and what lets this node put something there. */
export interface Near {
  address: Address;
  token: Uint8Array | undefined;
}

export interface NeighboursOptions {
  krpc: Krpc;
  table: Table;
  /** This node's, 20 bytes. */
  id: Uint8Array;
  family: Family;
  /** Milliseconds. */
  now(): number;
}

export class Neighbours {
  readonly #krpc: Krpc;
  readonly #table: Table;
  readonly #id: Uint8Array;
  readonly #family: Family;
  readonly #checks: Bucket;
  /** Where to begin as long as the table is nearly empty, newest last: what was named, and who was met, whom anybody can invent. */
  readonly #named = new Set<string>();
  readonly #met = new Set<string>();

  constructor({ krpc, table, id, family, now }: NeighboursOptions) {
    this.#krpc = krpc;
    this.#table = table;
    this.#id = id;
    this.#family = family;
    this.#checks = new Bucket(CHECKS, now);
  }

  /** Remembers where to begin. */
  route(text: string): void {
    this.#remember(text, this.#named);
  }

  /** Somebody may be a node: asked if there is time for it, and remembered as a place to begin. */
  meet(text: string): void {
    const address = this.#remember(text, this.#met);
    if (address && this.#checks.take()) this.#check(address);
  }

  /** Somebody has asked; whether anybody is there at all shows when asked back. */
  askedBy({ id, isReadOnly }: Question, from: Address): void {
    if (!isReadOnly && this.#table.isWanted({ id, address: from }) && this.#checks.take()) this.#check(from);
  }

  /** Nodes that answer, for the next start. */
  kept(): string[] {
    return this.#table.nearest(this.#id, MOST_KEPT).map(({ address }) => textOf(address));
  }

  /** Asks, and remembers who answered and who did not. `id`: who is thought to be there. */
  async ask(to: Address, name: string, args: Parameters<Krpc["ask"]>[2], id?: Uint8Array): Promise<Fields> {
    let answer: Fields;
    try {
      answer = await this.#krpc.ask(to, name, args);
    } catch (error) {
      if (!(error instanceof KrpcError)) this.#table.missed(to);
      throw error;
    }
    const has = answer.bytes("id", ID_BYTES);
    this.#table.heard({ id: has, address: to });
    if (id && Buffer.compare(id, has) !== 0)
      throw new KrpcError(KRPC.generic, `${textOf(to)} is another node`);
    return answer;
  }

  /**
   * Asks ever nearer nodes the same; `heard` gets each answer, and throws `FieldError` for one that is not worth going on from. Who is
   * nearest and answered.
   */
  async walk(
    target: Uint8Array,
    name: string,
    args: Parameters<Krpc["ask"]>[2],
    heard: (answer: Fields, from: Address) => void = () => undefined,
  ): Promise<Near[]> {
    const tokens = new Map<string, Uint8Array>();
    const nearest = await search(target, this.#table.nearest(target), async ({ address, id }) => {
      const answer = await this.ask(address, name, args, id);
      if (answer.has("token")) tokens.set(textOf(address), answer.bytes("token"));
      heard(answer, address);
      return this.#nodesIn(answer, address);
    });
    return nearest.map(({ address }) => ({ address, token: tokens.get(textOf(address)) }));
  }

  /** Fills the table and takes out who is gone. */
  async lookAfter(signal: AbortSignal): Promise<void> {
    if (this.#table.size < K) await this.#begin(signal);
    const stale = this.#table.stalest(STALE_MS);
    if (stale) await this.ask(stale.address, "ping", {}).catch(() => undefined);
    this.#table.tidy();
    // Once near, once anywhere: who came and who is far turns up
    for (const target of [this.#id, crypto.getRandomValues(new Uint8Array(ID_BYTES))])
      await this.walk(target, "find_node", { target });
  }

  /** Asks those to begin at, newest first, until enough answer. */
  async #begin(signal: AbortSignal): Promise<void> {
    const routes = [...new Set([...[...this.#named].reverse(), ...[...this.#met].reverse()])];
    for (let at = 0; at < routes.length && this.#table.size < K && !signal.aborted; at += K)
      await Promise.allSettled(
        routes.slice(at, at + K).map((text) => {
          const address = readAddress(text);
          return address && this.ask(address, "find_node", { target: this.#id });
        }),
      );
  }

  /** Undefined for an address that is none, or of the other family. */
  #remember(text: string, where: Set<string>): Address | undefined {
    const address = readAddress(text);
    if (address?.family !== this.#family) return undefined;
    const written = textOf(address);
    where.delete(written);
    where.add(written);
    const [oldest] = where;
    if (where.size > MOST_ROUTES && oldest !== undefined) where.delete(oldest);
    return address;
  }

  #check(address: Address): void {
    this.ask(address, "ping", {}).catch(() => undefined);
  }

  #nodesIn(answer: Fields, from: Address): Contact[] {
    const name = this.#family === 4 ? "nodes" : "nodes6";
    const nodes = answer.has(name) ? fromNodes(answer.bytes(name), this.#family) : [];
    return (nodes ?? [])
      .slice(0, K * 2)
      .filter((one) => isTellable(one.address, from.host) && Buffer.compare(one.id, this.#id) !== 0);
  }
}
