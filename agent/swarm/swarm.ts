/** The engine: one port, its connections and who may have one, and its members. */
import { randomBytes } from "node:crypto";
import type { Socket } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import type WebTorrent from "webtorrent";
import type { Peer } from "webtorrent";
import { addressOf, Bans, household, plainIp } from "./bans.ts";
import type { Engine, EngineOptions, Limits, Member } from "./engine.ts";
import { demandTorrent, loadLibrary } from "./library.ts";
import { SwarmMember } from "./member.ts";
import { nearness } from "./near.ts";
import { peerExchange } from "./pex.ts";

const LIMITS: Limits = {
  connections: 60,
  connectionsPerAddress: 8,
  messageBytes: 64 * 1024,
  requests: 256,
  requestBytes: 32 * 1024,
  handshakeMs: 10_000,
  idleMs: 300_000,
};
/** Share of the connections that others may begin: the rest is for whom this node looks for itself. */
const INCOMING = 0.75;
/** Connections that are kept for peers on other networks: near ones alone may all have the same, and all lack the same. */
const FAR_FLOOR = 2;
const TICK_MS = 250;

/** The engine that `openEngine` opens. */
export class Swarm implements Engine {
  readonly port: number;
  readonly #client: WebTorrent;
  readonly #options: EngineOptions;
  readonly #limits: Limits;
  readonly #members = new Map<string, SwarmMember>();
  readonly #bans = new Bans();
  readonly #ownNetworks = nearness();
  /** Open connections and whose they are. */
  readonly #connections = new Map<Socket, { household: string; isNear: boolean }>();
  readonly #stop = new AbortController();
  #ended: Promise<void> | undefined;

  static async open(options: EngineOptions): Promise<Swarm> {
    const Client = await loadLibrary();
    const client = new Client({
      peerId: Buffer.concat([Buffer.from("-FR0001-"), randomBytes(12)]).toString("hex"),
      torrentPort: options.port ?? 0,
      dht: false,
      lsd: false,
      tracker: false,
      natUpnp: false,
      natPmp: false,
      utp: false,
      utPex: false,
      webSeeds: false,
      secure: 0,
      maxConns: options.limits?.connections ?? LIMITS.connections,
    });
    await new Promise<void>((resolve, reject) => {
      client.once("listening", resolve);
      client.once("error", reject);
    });
    return new Swarm(client, options);
  }

  private constructor(client: WebTorrent, options: EngineOptions) {
    this.#client = client;
    this.#options = options;
    this.#limits = { ...LIMITS, ...options.limits };
    this.port = client.address()?.port ?? 0;
    client.on("error", (error: Error) =>
      options.tell({ kind: "trouble", infohash: "", text: error.message }),
    );
    this.#receive(client);
    options.signal.addEventListener("abort", () => void this[Symbol.asyncDispose]());
    void this.#run(this.#stop.signal);
  }

  join(infohash: string, how: { isFirstSeed?: boolean } = {}): Member {
    if (!/^[0-9a-f]{40}$/.test(infohash)) throw new RangeError(`${infohash} is no infohash`);
    if (this.#members.has(infohash)) throw new Error(`${infohash} is a member already`);
    const torrent = this.#client.add(
      { infoHash: infohash },
      { store: NoStore, storeCacheSlots: 0, uploads: this.#limits.connections, private: false },
    );
    demandTorrent(torrent);
    const member = new SwarmMember(torrent, infohash, how.isFirstSeed === true, {
      peerId: this.#client.peerId,
      port: this.port,
      limits: this.#limits,
      extensions: [
        peerExchange({
          known: (one) => this.#members.get(one)?.known() ?? [],
          meet: (one, address) => this.#members.get(one)?.meet(address),
        }),
        ...(this.#options.extensions ?? []),
      ],
      tell: (event) => this.#options.tell(event),
      isNear: (ip) => this.#isNear(ip),
      isWelcome: (ip, id) => this.#isWelcome(ip, id),
      ban: (ip, id) => this.#bans.ban(ip, id),
      admit: (peer) => this.#dialled(peer),
      left: (one) => this.#members.delete(one.infohash),
    });
    this.#members.set(infohash, member);
    return member;
  }

  limit({ up, down }: { up?: number; down?: number }): void {
    this.#client.throttleUpload(up ?? -1);
    this.#client.throttleDownload(down ?? -1);
  }

  [Symbol.asyncDispose](): Promise<void> {
    this.#ended ??= this.#end();
    return this.#ended;
  }

  async #end(): Promise<void> {
    this.#stop.abort();
    await Promise.all([...this.#members.values()].map((member) => member.leave()));
    const closed = new Promise<void>((resolve) => this.#client.destroy(() => resolve()));
    for (const connection of this.#connections.keys()) connection.destroy();
    await closed;
  }

  async #run(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      await sleep(TICK_MS, undefined, { signal, ref: false }).catch(() => {});
      for (const member of this.#members.values()) member.tick(performance.now());
    }
  }

  #isWelcome(ip: string, id?: string): boolean {
    return !this.#bans.isBanned(ip, id) && (this.#options.isWelcome?.(plainIp(ip)) ?? true);
  }

  #isNear(ip: string): boolean {
    return (this.#options.isNear ?? this.#ownNetworks)(plainIp(ip));
  }

  /** Others connect: whoever may not is closed before a byte is read. */
  #receive(client: WebTorrent): void {
    const pool = client._connPool;
    if (!pool) return;
    const { _onConnection } = pool;
    pool._onConnection = (connection, type) => {
      if (!this.#admit(connection, true)) {
        connection.on("error", () => {});
        connection.destroy();
        return;
      }
      const address = addressOf(connection.remoteAddress ?? "", connection.remotePort ?? 0);
      this.#await(
        connection,
        () => [...this.#members.values()].some((member) => member.isConnected(address)),
        () => connection.destroy(),
      );
      _onConnection.call(pool, connection, type);
    };
  }

  #dialled(peer: Peer): boolean {
    const { conn } = peer;
    if (!conn || !this.#admit(conn, false)) return false;
    this.#await(
      conn,
      () => typeof peer.wire?.peerId === "string",
      () => peer.destroy(new Error("no handshake")),
    );
    return true;
  }

  /** Counts a connection; false where there is no room for it. */
  #admit(connection: Socket, isIncoming: boolean): boolean {
    const ip = connection.remoteAddress;
    if (ip === undefined || !this.#isWelcome(ip)) return false;
    const home = household(ip);
    const all = [...this.#connections.values()];
    const ofHome = all.filter((one) => one.household === home).length;
    const { connections } = this.#limits;
    const isNear = this.#isNear(ip);
    const reserved = isNear ? Math.max(0, FAR_FLOOR - all.filter((one) => !one.isNear).length) : 0;
    const most = Math.min(
      isIncoming ? Math.floor(connections * INCOMING) : connections,
      connections - reserved,
    );
    if (all.length >= most || ofHome >= this.#limits.connectionsPerAddress) {
      const address = addressOf(ip, connection.remotePort ?? 0);
      this.#options.tell({ kind: "dropped", address, why: "there is no room for it" });
      return false;
    }
    this.#connections.set(connection, { household: home, isNear });
    connection.once("close", () => this.#connections.delete(connection));
    return true;
  }

  /** Closes what has not become a peer in time. */
  #await(connection: Socket, isPeer: () => boolean, close: () => void): void {
    const address = addressOf(connection.remoteAddress ?? "", connection.remotePort ?? 0);
    const timer = setTimeout(() => {
      if (isPeer()) return;
      this.#options.tell({ kind: "dropped", address, why: "it sent no handshake in time" });
      close();
    }, this.#limits.handshakeMs).unref();
    connection.once("close", () => clearTimeout(timer));
  }
}

/** Where the library would keep pieces: it is never asked, members serve and keep themselves. */
class NoStore {
  readonly chunkLength: number;
  constructor(chunkLength: number) {
    this.chunkLength = chunkLength;
  }
  put(_piece: number, _bytes: Uint8Array, done: (error: Error) => void): void {
    done(new Error("nothing is kept here"));
  }
  get(_piece: number, _how: unknown, done: (error: Error) => void): void {
    done(new Error("nothing is kept here"));
  }
  close(done: (error: null) => void): void {
    done(null);
  }
  destroy(done: (error: null) => void): void {
    done(null);
  }
}
