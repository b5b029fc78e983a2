/** One payload in the swarm: `webtorrent` carries its connections, what is fetched, served and believed is decided here. */
import { isIP } from "node:net";
import type Wire from "bittorrent-protocol";
import type { Peer, Torrent } from "webtorrent";
import { addressOf } from "./bans.ts";
import type { Keep, Limits, Member, MemberStatus, SwarmEvent, WireExtension } from "./engine.ts";
import { Fetch } from "./fetch.ts";
import { release } from "./library.ts";
import { Link } from "./link.ts";
import { readMetainfo } from "./metainfo.ts";
import type { Shape } from "./stock.ts";
import { SuperSeed } from "./superseed.ts";
import { tame } from "./tame.ts";

/** Addresses that are known or waited for. */
const MAX_ADDRESSES = 200;
const TROUBLE_EVERY_MS = 10_000;
/** Bytes per second of near peers together, from which on others need not give what those have. */
const NEAR_RATE = 1_000_000;

/** What a member has of its engine. */
export interface Surroundings {
  readonly peerId: string;
  readonly port: number;
  readonly limits: Limits;
  readonly extensions: readonly WireExtension[];
  tell(event: SwarmEvent): void;
  /** May this address be connected to now? */
  isWelcome(ip: string, id?: string): boolean;
  /** Is it on one of the node's own networks? */
  isNear(ip: string): boolean;
  /** Keeps a peer away; the seconds. */
  ban(ip: string, id: string): number;
  /** A connection more; false: there is no room. */
  admit(peer: Peer): boolean;
  left(member: SwarmMember): void;
}

/** A member of the swarm. */
export class SwarmMember implements Member {
  readonly infohash: string;
  readonly #torrent: Torrent;
  readonly #around: Surroundings;
  readonly #isFirstSeed: boolean;
  readonly #links = new Map<Wire, Link>();
  /** Where peers listen, by what they said or where they were met. */
  readonly #listening = new Map<string, Link>();
  readonly #stop = new AbortController();
  #shape: Shape | undefined;
  #keep: Keep | undefined;
  #fetch: Fetch<Link> | undefined;
  #seed: SuperSeed<Link> | undefined;
  #trouble: string | undefined;
  #toldAt = Number.NEGATIVE_INFINITY;
  #down = 0;
  #up = 0;
  #isScheduled = false;
  #isRecounted = false;

  constructor(torrent: Torrent, infohash: string, isFirstSeed: boolean, around: Surroundings) {
    this.infohash = infohash;
    this.#torrent = torrent;
    this.#isFirstSeed = isFirstSeed;
    this.#around = around;
    torrent.on("wire", (wire: Wire) => this.#connected(wire));
    torrent.on("warning", () => {});
    torrent.on("error", (error: Error) => this.#fail(error.message));
    tame(torrent, {
      mayDial: (address) => this.#mayDial(address),
      admit: (peer) => around.admit(peer),
      there: () => this.#there(),
      begun: (wire, greet) => this.#begun(wire, greet),
      changed: (wire) => {
        const link = wire && this.#links.get(wire);
        if (link) link.isChanged = true;
        this.#schedule();
      },
    });
  }

  /** Is a peer connected from this address? */
  isConnected(address: string): boolean {
    return [...this.#links.values()].some((link) => link.address === address);
  }

  /** Addresses peers listen at. */
  known(): Iterable<string> {
    return this.#listening.keys();
  }

  meet(address: string): void {
    const [, v6, v4, port] = /^(?:\[([0-9a-f:.]+)\]|([0-9.]+)):(\d{1,5})$/i.exec(address) ?? [];
    const ip = v6 ?? v4 ?? "";
    if (isIP(ip) === 0 || Number(port) < 1 || Number(port) > 65_534) return;
    if (this.#torrent.destroyed || this.#listening.has(address)) return;
    this.#whenNamed(() => this.#torrent.addPeer(address));
  }

  begin(update: Uint8Array, keep: Keep): void {
    if (this.#keep) throw new Error(`${this.infohash} was begun before`);
    const { shape, info } = readMetainfo(update, this.infohash);
    this.#keep = keep;
    this.#shape = shape;
    this.#fetch = new Fetch<Link>(
      shape,
      keep,
      {
        complete: (piece) => this.#complete(piece),
        wrong: (piece, leaves, link) => this.#wrong(piece, leaves, link),
        trouble: (text) => this.#fail(text),
        freed: () => this.#schedule(),
      },
      this.#stop.signal,
    );
    if (this.#isFirstSeed && this.#fetch.isWhole)
      this.#seed = new SuperSeed<Link>(shape.pieces, this.#fetch.rarity);
    // Trackers, web seeds and signatures stay out of the library
    const metadata = Buffer.concat([Buffer.from("d4:info"), info, Buffer.from("e")]);
    this.#whenNamed(() => void this.#torrent._onMetadata(metadata));
    if (this.#fetch.isWhole) this.#around.tell({ kind: "whole", infohash: this.infohash });
  }

  gained(leaves: Iterable<number>): void {
    this.#fetch?.gained(leaves);
    this.#schedule();
  }

  status(): MemberStatus {
    const links = [...this.#links.values()];
    const pieces = this.#shape?.pieces ?? 0;
    const peers = links.map((link) => link.status(pieces));
    const sum = (of: (peer: (typeof peers)[number]) => number) =>
      peers.reduce((all, peer) => all + of(peer), 0);
    return {
      infohash: this.infohash,
      phase: this.#fetch === undefined ? "waiting" : this.#fetch.isWhole ? "whole" : "fetching",
      pieces,
      piecesThere: this.#there().length,
      down: this.#down + sum((peer) => peer.down),
      up: this.#up + sum((peer) => peer.up),
      wasted: this.#fetch?.wasted ?? 0,
      downRate: sum((peer) => peer.downRate),
      upRate: sum((peer) => peer.upRate),
      peers,
      ...(this.#trouble === undefined ? {} : { trouble: this.#trouble }),
    };
  }

  async leave(): Promise<void> {
    if (this.#stop.signal.aborted) return;
    this.#stop.abort();
    for (const link of [...this.#links.values()]) this.#gone(link);
    await new Promise<void>((resolve) => this.#torrent.destroy(resolve));
    this.#around.left(this);
  }

  /** Now and then: idle peers go, late blocks are asked for again, hidden pieces are shown. */
  tick(now: number): void {
    for (const link of [...this.#links.values()])
      if (now - link.heardAt > this.#around.limits.idleMs) this.drop(link, "it had nothing to say");
    this.#seed?.tick(now);
    this.#fetch?.tick();
  }

  /** Closes a connection, and keeps the peer away where it is to blame. */
  drop(link: Link, why: string, isBanned = false): void {
    const { infohash } = this;
    const { address, ip, id } = link;
    if (isBanned) {
      const seconds = this.#around.ban(ip, id);
      this.#around.tell({ kind: "banned", infohash, address, why, seconds });
    } else this.#around.tell({ kind: "dropped", infohash, address, why });
    this.#close(link);
  }

  /** The library takes a turn of the event loop to read the infohash, and refuses everything before. */
  #whenNamed(act: () => void): void {
    if (this.#torrent.infoHash) act();
    else
      this.#torrent.once("infoHash", () => {
        if (!this.#torrent.destroyed) act();
      });
  }

  #close(link: Link): void {
    const peer = [...this.#torrent._peers.values()].find(({ wire }) => wire === link.wire);
    // No more dialling of what was closed on purpose: whoever finds it again may say so
    if (peer) peer.retries = Number.POSITIVE_INFINITY;
    peer?.destroy();
    link.wire.destroy();
    this.#gone(link);
  }

  #mayDial(address: string): boolean {
    const ip = /^\[?([^\]]+)\]?:\d+$/.exec(address)?.[1] ?? "";
    const isKnown = this.#listening.has(address) || this.#torrent._peers.size >= MAX_ADDRESSES;
    return !isKnown && this.#around.isWelcome(ip);
  }

  #there(): number[] {
    const pieces = Array.from({ length: this.#shape?.pieces ?? 0 }, (_, piece) => piece);
    return pieces.filter((piece) => this.#fetch?.isThere(piece));
  }

  #begun(wire: Wire, greet: () => void): void {
    const link = this.#links.get(wire);
    if (!link || !this.#keep || !this.#shape) return;
    const isHidden = this.#seed !== undefined && !this.#seed.isOver;
    if (isHidden) {
      // A super-seed says that it has nothing
      wire.haveAll = () => wire.haveNone();
      wire.bitfield = () => {};
    }
    greet();
    this.#serve(link, this.#keep, this.#shape);
    if (isHidden) this.#seed?.add(link);
    // It may have said so before there was anything to be had
    if (wire.peerInterested) wire.unchoke();
    this.#recount();
    release(wire);
  }

  #serve(link: Link, keep: Keep, shape: Shape): void {
    link.begin(shape, async (at, length) => {
      try {
        return await keep.get(at, length);
      } catch (error) {
        this.#fail(`cannot read ${length} bytes at ${at}: ${error instanceof Error ? error.message : error}`);
        throw error;
      }
    });
  }

  #connected(wire: Wire): void {
    const around = this.#around;
    const { infohash } = this;
    wire.ut_metadata?.cancel();
    wire.ut_metadata?.removeAllListeners("metadata");
    wire.extendedHandshake.p = around.port;
    wire.extendedHandshake.reqq = around.limits.requests - 6;
    wire.extendedHandshake.v = "fruit";
    const at = addressOf(wire.remoteAddress ?? "", wire.remotePort ?? 0);
    const link = new Link(wire, infohash, at, around.limits, {
      shape: () => this.#shape,
      isThere: (piece) => this.#fetch?.isThere(piece) ?? false,
      isNear: around.isNear,
      drop: (one, why, isBanned) => this.drop(one, why, isBanned),
    });
    this.#links.set(wire, link);
    wire.once("close", () => this.#gone(link));
    const why = this.#isUnwelcome(link);
    if (why !== undefined) {
      queueMicrotask(() => this.#close(link));
      around.tell({ kind: "dropped", infohash, address: at, why });
      return;
    }
    if (link.isOutgoing) this.#listening.set(at, link);
    around.tell({ kind: "connected", infohash, address: at });
    link.offer(around.extensions, (text, isBanned) => this.drop(link, text, isBanned));
    this.#watch(link);
    if (!this.#torrent.ready) queueMicrotask(() => release(wire));
  }

  /** Why a connection is not kept. */
  #isUnwelcome(link: Link): string | undefined {
    const { peerId } = this.#around;
    if (link.id === peerId) {
      this.#isSelf(link);
      return "that is this node itself";
    }
    if (!this.#around.isWelcome(link.ip, link.id)) return "it is banned";
    const twin = [...this.#links.values()].find(
      (other) => other !== link && other.id === link.id && other.ip === link.ip,
    );
    if (!twin) return undefined;
    // Both ends keep the one that was dialled by the smaller id
    const isOursKept = peerId < link.id;
    const worse = twin.isOutgoing === isOursKept || twin.isOutgoing === link.isOutgoing ? link : twin;
    const better = worse === link ? twin : link;
    if (worse.isOutgoing) this.#listening.set(worse.address, better);
    if (worse === twin) {
      this.#around.tell({ kind: "dropped", infohash: this.infohash, address: twin.address, why: "twice" });
      this.#close(twin);
      return undefined;
    }
    return "connected twice";
  }

  /** The address that was dialled is one of its own: not again. */
  #isSelf(link: Link): void {
    if (this.#listening.size >= MAX_ADDRESSES) return;
    const { remotePort } = link.wire;
    const dialled = [...this.#torrent._peers.values()].find(({ conn }) => conn?.localPort === remotePort);
    this.#listening.set(link.isOutgoing ? link.address : (dialled?.id ?? link.address), link);
  }

  #watch(link: Link): void {
    const { wire } = link;
    wire.on("have", (piece: number) => {
      link.isChanged = true;
      this.#fetch?.rarity.add(piece);
      this.#seed?.held(link, piece, performance.now());
      this.#schedule();
    });
    for (const event of ["bitfield", "have-all", "have-none"]) wire.on(event, () => this.#recount());
    wire.on("unchoke", () => this.#schedule());
    wire.on("extended", (kind: unknown) => {
      const port = wire.peerExtendedHandshake.p;
      if (kind !== "handshake" || typeof port !== "number" || port < 1 || port > 65_534) return;
      if (!link.isOutgoing && this.#listening.size < MAX_ADDRESSES)
        this.#listening.set(addressOf(link.ip, port), link);
    });
  }

  #gone(link: Link): void {
    if (!this.#links.delete(link.wire)) return;
    this.#down += link.down;
    this.#up += link.up;
    for (const [address, one] of this.#listening)
      if (one === link && one.id !== this.#around.peerId) this.#listening.delete(address);
    this.#seed?.remove(link);
    this.#recount();
    this.#around.tell({ kind: "disconnected", infohash: this.infohash, address: link.address });
  }

  #complete(piece: number): void {
    if (this.#torrent.destroyed) return;
    if (this.#torrent.ready) {
      this.#torrent._markVerified(piece);
      for (const wire of this.#links.keys()) wire.have(piece);
    }
    for (const link of this.#links.values()) link.isChanged = true;
    if (!this.#fetch?.isWhole) return;
    this.#torrent._checkDone();
    this.#schedule();
    this.#around.tell({ kind: "whole", infohash: this.infohash });
  }

  #wrong(piece: number, leaves: readonly number[], link: Link): void {
    const { infohash } = this;
    link.wrong += leaves.length;
    this.#around.tell({ kind: "wrong", infohash, piece, leaves, address: link.address });
    const text = leaves.length === 1 ? `leaf ${leaves[0]} was wrong` : `${leaves.length} leaves were wrong`;
    if (this.#links.has(link.wire)) this.drop(link, text, true);
    else this.#around.ban(link.ip, link.id);
  }

  #recount(): void {
    this.#isRecounted = true;
    for (const link of this.#links.values()) link.isChanged = true;
    this.#schedule();
  }

  /** All that happened in one turn of the event loop is answered once. */
  #schedule(): void {
    if (this.#isScheduled || this.#stop.signal.aborted) return;
    this.#isScheduled = true;
    setImmediate(() => {
      this.#isScheduled = false;
      if (!this.#stop.signal.aborted && this.#torrent.ready) this.#turn();
    });
  }

  #turn(): void {
    const fetch = this.#fetch;
    if (fetch === undefined) return;
    const links = [...this.#links.values()];
    if (this.#isRecounted) {
      this.#isRecounted = false;
      fetch.rarity.count(links);
    }
    const near = links.filter((link) => link.isNear && !link.isChoking);
    fetch.near = near.reduce((sum, { rate }) => sum + rate, 0) >= NEAR_RATE ? near : [];
    // Whoever is asked first gets the best pieces: each in its turn
    const from = Math.floor(Math.random() * links.length);
    for (const link of [...links.slice(from), ...links.slice(0, from)]) {
      if (link.isChanged) {
        link.isChanged = false;
        if (fetch.isInteresting(link)) link.wire.interested();
        else link.wire.uninterested();
      }
      fetch.fill(link);
    }
  }

  /** The keep or the library failed; nothing: it works again. */
  #fail(text: string | undefined): void {
    const now = performance.now();
    const isNew = this.#trouble !== text || now - this.#toldAt > TROUBLE_EVERY_MS;
    this.#trouble = text;
    if (!isNew || text === undefined) return;
    this.#toldAt = now;
    this.#around.tell({ kind: "trouble", infohash: this.infohash, text });
  }
}
