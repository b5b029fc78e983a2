/** Peer exchange (BEP 11): peers tell each other whom they are connected to; at most 50 at a time, at most once a minute. */
import { isIPv4 } from "node:net";
import { decodeBencode, encodeBencode } from "../../boot/bencode.ts";
import { isTellable, readAddress, textOf } from "./address.ts";
import type { Extension, ExtensionPeer, WireExtension } from "./engine.ts";

const MAX_PEERS = 50;
const FIRST_MS = 2_000;
const EVERY_MS = 65_000;
/** Other clients are told to keep a minute; clocks and queues differ. */
const MIN_MS = 20_000;
/** 50 added and 50 dropped of each family, with flags. */
const MAX_BYTES = 4_096;

/** What peer exchange needs of its engine. */
export interface Acquaintances {
  /** Addresses that peers of a payload listen at, `ip:port`. */
  known(infohash: string): Iterable<string>;
  meet(infohash: string, address: string): void;
}

/** The extension `ut_pex`. */
export function peerExchange(acquaintances: Acquaintances): WireExtension {
  return { name: "ut_pex", open: (peer) => new Exchange(peer, acquaintances) };
}

class Exchange implements Extension {
  readonly #peer: ExtensionPeer;
  readonly #acquaintances: Acquaintances;
  readonly #told = new Set<string>();
  #heardAt = Number.NEGATIVE_INFINITY;
  #timer: NodeJS.Timeout | undefined;

  constructor(peer: ExtensionPeer, acquaintances: Acquaintances) {
    this.#peer = peer;
    this.#acquaintances = acquaintances;
  }

  ready(): void {
    this.closed();
    this.#timer = setTimeout(() => this.#tell(), FIRST_MS).unref();
  }

  closed(): void {
    clearTimeout(this.#timer);
  }

  message(bytes: Uint8Array): void {
    const now = performance.now();
    const isTooSoon = now - this.#heardAt < MIN_MS;
    this.#heardAt = now;
    if (isTooSoon) this.#peer.drop("peer exchange too often");
    else for (const address of decodePeers(bytes)) this.#meet(address);
  }

  #meet(address: string): void {
    const told = readAddress(address);
    const teller = readAddress(this.#peer.address);
    if (told && teller && isTellable(told, teller.host))
      this.#acquaintances.meet(this.#peer.infohash, textOf(told));
  }

  #tell(): void {
    this.#timer = setTimeout(() => this.#tell(), EVERY_MS).unref();
    const now = new Set(this.#acquaintances.known(this.#peer.infohash));
    now.delete(this.#peer.address);
    const added = [...now].filter((address) => !this.#told.has(address)).slice(0, MAX_PEERS);
    const dropped = [...this.#told].filter((address) => !now.has(address)).slice(0, MAX_PEERS);
    if (added.length + dropped.length === 0) return;
    for (const address of added) this.#told.add(address);
    for (const address of dropped) this.#told.delete(address);
    this.#peer.send(encodePeers(added, dropped));
  }
}

/** A message of peer exchange. */
export function encodePeers(added: readonly string[], dropped: readonly string[]): Buffer {
  const [added4, added6] = compact(added);
  const [dropped4, dropped6] = compact(dropped);
  return encodeBencode({
    added: added4,
    "added.f": Buffer.alloc(added4.length / 6),
    added6,
    "added6.f": Buffer.alloc(added6.length / 18),
    dropped: dropped4,
    dropped6,
  });
}

/** The peers that a message adds. Throws for what is no such message, or names more than 50. */
export function decodePeers(bytes: Uint8Array): string[] {
  const { value } = decodeBencode(bytes, MAX_BYTES);
  if (!(value instanceof Map)) throw new RangeError("peer exchange that is no dictionary");
  const found: string[] = [];
  for (const [key, ipBytes] of [
    ["added", 4],
    ["added6", 16],
  ] as const) {
    const list = value.get(key)?.value ?? new Uint8Array();
    if (!(list instanceof Uint8Array) || list.length % (ipBytes + 2) !== 0)
      throw new RangeError(`peer exchange whose ${key} is no list of addresses`);
    for (let at = 0; at < list.length; at += ipBytes + 2)
      found.push(address(list.subarray(at, at + ipBytes), Buffer.from(list).readUInt16BE(at + ipBytes)));
  }
  if (found.length > MAX_PEERS) throw new RangeError(`peer exchange of ${found.length} peers`);
  return found.filter((one) => !one.endsWith(":0"));
}

function address(ip: Uint8Array, port: number): string {
  if (ip.length === 4) return `${ip.join(".")}:${port}`;
  const groups = Array.from({ length: 8 }, (_, n) =>
    Buffer.from(ip)
      .readUInt16BE(2 * n)
      .toString(16),
  );
  return `[${groups.join(":")}]:${port}`;
}

/** IPv4 and IPv6 addresses as bytes. */
function compact(addresses: readonly string[]): [Buffer, Buffer] {
  const lists: [Buffer[], Buffer[]] = [[], []];
  for (const one of addresses) {
    const [, ip = "", port = "0"] = /^\[?([^\]]+)\]?:(\d+)$/.exec(one) ?? [];
    const tail = Buffer.alloc(2);
    tail.writeUInt16BE(Number(port));
    if (isIPv4(ip)) lists[0].push(Buffer.from(ip.split(".").map(Number)), tail);
    else lists[1].push(ipv6(ip), tail);
  }
  return [Buffer.concat(lists[0]), Buffer.concat(lists[1])];
}

function ipv6(ip: string): Buffer {
  const [head = "", tail] = ip.split("::");
  const groups = (text: string) =>
    text === "" ? [] : text.split(":").map((group) => Number.parseInt(group, 16));
  const [first, last] = [groups(head), groups(tail ?? "")];
  const bytes = Buffer.alloc(16);
  for (const [n, group] of first.entries()) bytes.writeUInt16BE(group, 2 * n);
  for (const [n, group] of last.entries()) bytes.writeUInt16BE(group, 16 - 2 * (last.length - n));
  return bytes;
}
