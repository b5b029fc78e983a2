/**
 * Peers on the LAN (BEP 14): each says now and then which torrents it has a part in, to a group of IPv4 and one of IPv6.
 *
 * Anybody on the LAN can say anything here. What is no message of BEP 14 is passed over, each source is heard only so often, and
 * a peer is taken to be at the address that its datagram came from.
 */
import { randomBytes } from "node:crypto";
import { type Address, addressOf, isTellable, textOf } from "./address.ts";
import type { Finder } from "./engine.ts";
import { Bucket, type Rate, SourceLimit } from "./limit.ts";
import { type Group, type Multicast, openMulticast } from "./multicast.ts";
import { pause, repeat } from "./repeat.ts";

/** The group of BEP 14. */
export const LSD_GROUP = { v4: "239.192.152.143", v6: "ff15::efc0:988f", port: 6771 };

/** Longest message (BEP 14). */
const MAX_BYTES = 1400;
const MOST_HEADERS = 40;
/** Infohashes in one message: with its other lines they fit. */
const MOST_INFOHASHES = 20;
const COOKIE_MAX_CHARS = 64;
/** How often this node speaks (BEP 14: every five minutes, at most once a minute for a torrent). */
const EVERY_MS = 5 * 60_000;
/** Messages that are read of each source, and of all. */
const HEARD = { each: { burst: 20, perSecond: 0.5 }, all: { burst: 200, perSecond: 20 } };
/** Messages that are sent outside the turn, for torrents that are new. */
const SAID: Rate = { burst: 4, perSecond: 1 / 15 };

/** What a peer says of itself. */
export interface LsdMessage {
  /** TCP. */
  port: number;
  /** Hex, lower case. */
  infohashes: readonly string[];
  /** Tells its sender its own messages. */
  cookie?: string | undefined;
}

/** Writes a message to a group, `Host` as BEP 14 wants it. */
export function writeLsd({ port, infohashes, cookie }: LsdMessage, host: string): Buffer {
  const lines = [
    "BT-SEARCH * HTTP/1.1",
    `Host: ${host}`,
    `Port: ${port}`,
    ...infohashes.map((infohash) => `Infohash: ${infohash}`),
    ...(cookie === undefined ? [] : [`cookie: ${cookie}`]),
  ];
  return Buffer.from(`${lines.join("\r\n")}\r\n\r\n\r\n`, "latin1");
}

/** Reads a message; undefined for anything that is none. */
export function readLsd(bytes: Uint8Array): LsdMessage | undefined {
  if (bytes.length > MAX_BYTES) return undefined;
  const text = Buffer.from(bytes).toString("latin1");
  const end = text.indexOf("\r\n\r\n");
  const [first, ...lines] = text.slice(0, end).split("\r\n");
  if (end < 0 || first !== "BT-SEARCH * HTTP/1.1" || lines.length > MOST_HEADERS) return undefined;
  const headers = lines.map((line) => /^([A-Za-z-]{1,30}): ?([\x21-\x7e]{1,100}) *$/.exec(line));
  const values = (name: string) =>
    headers.flatMap((header) => (header?.[1]?.toLowerCase() === name ? [header[2] ?? ""] : []));
  const [ports, infohashes, [cookie]] = [values("port"), values("infohash"), values("cookie")];
  const port = Number(ports[0]);
  if (headers.includes(null) || ports.length !== 1 || !/^\d{1,5}$/.test(ports[0] ?? "")) return undefined;
  if (port < 1 || port > 65_535 || infohashes.length < 1 || infohashes.length > MOST_INFOHASHES)
    return undefined;
  if (!infohashes.every((infohash) => /^[0-9a-fA-F]{40}$/.test(infohash))) return undefined;
  if (cookie !== undefined && cookie.length > COOKIE_MAX_CHARS) return undefined;
  return { port, infohashes: infohashes.map((infohash) => infohash.toLowerCase()), cookie };
}

/** How the LAN is listened to. */
export interface LsdOptions {
  group?: Group;
  interfaces?: readonly string[];
  /** On average. */
  everyMs?: number;
  /** Somebody on the LAN has BitTorrent at this address, whatever its torrents; by custom its DHT is there too. */
  peer?(address: string): void;
  tell(text: string): void;
}

/** Joins the groups. Rejects where this machine has none. */
export async function openLsd(options: LsdOptions): Promise<Lsd> {
  let lsd: Lsd | undefined;
  const multicast = await openMulticast({
    group: options.group ?? LSD_GROUP,
    ...(options.interfaces ? { interfaces: options.interfaces } : {}),
    received: (bytes, from) => lsd?.received(bytes, from),
  });
  lsd = new Lsd(multicast, options);
  return lsd;
}

interface Wanted {
  port: number;
  meet(address: string): void;
}

export class Lsd implements AsyncDisposable {
  /** Messages that came, and those of them that nothing was made of. */
  readonly counts = { received: 0, limited: 0, malformed: 0 };
  readonly #multicast: Multicast;
  readonly #options: LsdOptions;
  readonly #cookie = randomBytes(6).toString("hex");
  readonly #heard = new SourceLimit(HEARD);
  readonly #said = new Bucket(SAID);
  /** By infohash. */
  readonly #wanted = new Map<string, Wanted>();
  readonly #stop = new AbortController();
  readonly #running: Promise<void>;

  constructor(multicast: Multicast, options: LsdOptions) {
    this.#multicast = multicast;
    this.#options = options;
    this.#running = repeat(() => this.#say([...this.#wanted.keys()]), {
      ms: options.everyMs ?? EVERY_MS,
      signal: this.#stop.signal,
      failed: (error) => options.tell(String(error)),
    });
  }

  /** Says that this node has a part in a torrent, and meets whoever else says so. */
  readonly finder: Finder = async ({ infohash, port, meet }, signal) => {
    if (this.#wanted.has(infohash)) throw new RangeError(`${infohash} is looked for on the LAN already`);
    const stop = AbortSignal.any([signal, this.#stop.signal]);
    this.#wanted.set(infohash, { port, meet });
    try {
      // What does not go out now does in its turn
      if (this.#said.take()) await this.#say([infohash]);
      while (!stop.aborted) await pause(EVERY_MS, stop);
    } finally {
      this.#wanted.delete(infohash);
    }
  };

  /** A datagram of the group. */
  received(bytes: Uint8Array, from: Address): void {
    this.counts.received++;
    if (!this.#heard.take(from.host)) {
      this.counts.limited++;
      return;
    }
    const message = readLsd(bytes);
    if (!message) {
      this.counts.malformed++;
      return;
    }
    const peer = addressOf(from.host, message.port);
    if (message.cookie === this.#cookie || !peer || !isTellable(peer, from.host)) return;
    const address = textOf(peer);
    this.#options.peer?.(address);
    for (const infohash of new Set(message.infohashes)) this.#wanted.get(infohash)?.meet(address);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    this.#multicast[Symbol.dispose]();
    await this.#running;
  }

  async #say(infohashes: readonly string[]): Promise<void> {
    const { v4, v6, port } = this.#options.group ?? LSD_GROUP;
    const host = `${v4 ?? `[${v6}]`}:${port}`;
    const ports = new Set(infohashes.map((infohash) => this.#wanted.get(infohash)?.port));
    for (const tcp of ports) {
      const ours = infohashes.filter((infohash) => this.#wanted.get(infohash)?.port === tcp);
      for (let at = 0; tcp !== undefined && at < ours.length; at += MOST_INFOHASHES) {
        const part = ours.slice(at, at + MOST_INFOHASHES);
        await this.#multicast.send(writeLsd({ port: tcp, infohashes: part, cookie: this.#cookie }, host));
      }
    }
  }
}
