/**
 * One payload that this node fetches from or gives to the swarm: what the child is told of it, again after each of its deaths,
 * and the answers to what it asks.
 */
import { LEAF_BYTES } from "../../boot/content.ts";
import { WrongLeaf } from "../../boot/leaf.ts";
import { leafCount } from "../../boot/merkle.ts";
import { parseUpdate, UPDATE_MAX_BYTES } from "../../boot/updatefile.ts";
import {
  type FileKind,
  FrameError,
  type Orders,
  plain,
  type ReportHead,
  SIDE_MAX_BYTES,
  type SwarmStatus,
} from "../swarm/frames.ts";

/** Pieces, and bytes of reads, that a child may have unanswered: it keeps to fewer by itself. */
const MOST_PIECES = 8;
const MOST_READ_BYTES = 16 * 1024 * 1024;

/** Where the bytes of the payload are. Nothing is believed of what is `put`. */
export interface Holding {
  readonly size: number;
  has(leaf: number): boolean;
  /** Throws `WrongLeaf` for what is not the signed one, and what else went wrong. */
  put(leaf: number, bytes: Uint8Array, from: "peers" | "web"): Promise<void>;
  /** Exactly so many bytes; throws where they are not there. */
  read(at: number, length: number): Promise<Uint8Array>;
}

/** A side file that may be handed out. `number`: it is an open file of the child's. */
export interface SideOffer {
  bytes: number;
  number?: number;
  read?(at: number, length: number): Promise<Uint8Array>;
}

/** All of the payload, in an open file of the child's. */
export interface WholeFile {
  number: number;
  at: number;
}

/** What is thought of a file that a peer sent: `false` is held against it. */
export type FileVerdict = Orders["verdict"]["is"];

type Tell = <K extends keyof Orders>(name: K, head: Orders[K], body?: Uint8Array) => void;

interface Fetch {
  known: { bytes?: number; sha256?: string };
  judge(bytes: Uint8Array): Promise<FileVerdict>;
  done(bytes: Uint8Array): void;
  failed(cause: unknown): void;
  /** What has come of one peer's; `isJudged`: all of it, and nobody knows yet. */
  gathered?: { bytes: Buffer; filled: number; isJudged: boolean } | undefined;
}

/** How a payload is shared. */
export interface ShareHow {
  /** Hands every piece out once before any twice. */
  isFirstSeed?: boolean;
}

interface Begun {
  update: Uint8Array;
  holding: Holding;
  file: WholeFile | undefined;
  webSeeds: readonly string[];
  pieceBytes: number;
}

/** Made by `Swarm.share`. */
export class Share {
  readonly infohash: string;
  readonly #how: ShareHow;
  readonly #tell: Tell;
  readonly #met = new Set<string>();
  readonly #fetches = new Map<FileKind, Fetch>();
  #trackers: readonly string[] = [];
  #begun: Begun | undefined;
  #side: SideOffer | undefined;
  #failed: (cause: Error) => void = () => undefined;
  /** What the child that runs has unanswered. */
  #flight = { pieces: 0, readBytes: 0 };
  #status: SwarmStatus | undefined;

  constructor(infohash: string, how: ShareHow, tell: Tell) {
    this.infohash = infohash;
    this.#how = how;
    this.#tell = tell;
  }

  /** How it stands, as the child last said. */
  get status(): SwarmStatus | undefined {
    return this.#status;
  }

  /** Somebody may be a peer: `192.0.2.1:6881`. */
  meet(address: string): void {
    this.#met.add(address);
    this.#tell("meet", { infohash: this.infohash, address });
  }

  /** Asks these trackers too, which the release names in its signed part. */
  track(trackers: readonly string[]): void {
    this.#trackers = trackers;
    this.#tellTrackers();
  }

  /** Fetches a file about the release from peers, one after the other, until `judge` finds one good. */
  fetch(
    what: FileKind,
    known: Fetch["known"],
    judge: Fetch["judge"],
    signal: AbortSignal,
  ): Promise<Uint8Array> {
    return new Promise((resolve, reject) => {
      const over = () => {
        signal.removeEventListener("abort", stop);
        this.#fetches.delete(what);
      };
      const failed = (cause: unknown) => {
        over();
        reject(cause);
      };
      const stop = () => failed(signal.reason);
      if (signal.aborted) return stop();
      signal.addEventListener("abort", stop, { once: true });
      const done = (bytes: Uint8Array) => {
        over();
        resolve(bytes);
      };
      this.#fetches.set(what, { known, judge, done, failed });
      this.#tell("want", { infohash: this.infohash, what, ...known });
    });
  }

  /** The update file is believed: what `holding` has not is fetched, what it has is given. `failed` hears why it can take nothing. */
  begin(
    update: Uint8Array,
    holding: Holding,
    failed: (cause: Error) => void,
    how: { file?: WholeFile; webSeeds?: readonly string[]; trackers?: readonly string[] } = {},
  ): void {
    const pieceBytes = parseUpdate(update).info.pieceLength;
    const { file, webSeeds = [], trackers = [] } = how;
    this.#begun = { update, holding, file, webSeeds, pieceBytes };
    this.#failed = failed;
    this.track(trackers);
    this.#tellBegun();
  }

  /** Leaves that came from elsewhere. */
  gained(leaves: readonly number[]): void {
    const body = Buffer.alloc(leaves.length * 4);
    for (const [index, leaf] of leaves.entries()) body.writeUInt32BE(leaf, index * 4);
    if (leaves.length > 0) this.#tell("gained", { infohash: this.infohash }, body);
  }

  /** Peers may have the side file. */
  offer(side: SideOffer): void {
    this.#side = side;
    this.#tellSide();
  }

  /** Tells a child that knows nothing all there is to know. */
  tellAll(): void {
    this.#flight = { pieces: 0, readBytes: 0 };
    this.#tell("join", { infohash: this.infohash, ...this.#how });
    for (const address of this.#met) this.#tell("meet", { infohash: this.infohash, address });
    this.#tellTrackers();
    this.#tellBegun();
    this.#tellSide();
    for (const [what, fetch] of this.#fetches) {
      fetch.gathered = undefined;
      this.#tell("want", { infohash: this.infohash, what, ...fetch.known });
    }
  }

  /** Fetches anew what `holding` has lost. */
  beginAnew(): void {
    this.#tell("leave", { infohash: this.infohash });
    this.tellAll();
  }

  heard(status: SwarmStatus): void {
    this.#status = status;
  }

  /** A piece to be judged. Throws `FrameError` for one there cannot be. */
  async piece({ id, piece, from }: ReportHead<"piece">, bytes: Uint8Array, tell: Tell): Promise<void> {
    const { holding, pieceBytes } = this.#expectBegun();
    const at = piece * pieceBytes;
    if (at >= holding.size || bytes.length !== Math.min(pieceBytes, holding.size - at))
      throw new FrameError(`piece ${piece} of ${this.infohash} with ${bytes.length} bytes`);
    const flight = this.#flight;
    if (++flight.pieces > MOST_PIECES) throw new FrameError(`${flight.pieces} pieces wait already`);
    const wrong: number[] = [];
    let trouble: string | undefined;
    try {
      for (let offset = 0; offset < bytes.length; offset += LEAF_BYTES) {
        const leaf = (at + offset) / LEAF_BYTES;
        const isRight = await put(holding, leaf, bytes.subarray(offset, offset + LEAF_BYTES), from);
        if (!isRight) wrong.push(leaf);
      }
    } catch (cause) {
      trouble = plain(cause);
      this.#failed(cause as Error);
    }
    flight.pieces--;
    tell("judged", { id, wrong, ...(trouble === undefined ? {} : { trouble }) });
  }

  /** Bytes that the child wants. Throws `FrameError` where there are none. */
  async get({ id, what, at, length }: ReportHead<"get">, tell: Tell): Promise<void> {
    const source = what === "side" ? this.#side : this.#expectBegun().holding;
    const size = source && ("size" in source ? source.size : source.bytes);
    if (!source?.read || size === undefined || at + length > size)
      throw new FrameError(`${length} bytes at ${at} of the ${what} of ${this.infohash}`);
    const flight = this.#flight;
    flight.readBytes += length;
    if (flight.readBytes > MOST_READ_BYTES)
      throw new FrameError(`${flight.readBytes} bytes wait to be read already`);
    try {
      tell("got", { id }, await source.read(at, length));
    } catch (cause) {
      tell("got", { id, trouble: plain(cause) });
    } finally {
      flight.readBytes -= length;
    }
  }

  /** A stretch of a file that is wanted. Throws `FrameError` where it does not follow the one before. */
  async part({ what, at, of, from }: ReportHead<"part">, bytes: Uint8Array, tell: Tell): Promise<void> {
    const fetch = this.#fetches.get(what);
    if (!fetch) return; // it was wanted no longer when this was under way
    const most = fetch.known.bytes ?? (what === "update" ? UPDATE_MAX_BYTES : SIDE_MAX_BYTES);
    if (at === 0 && of > 0 && of <= most && !fetch.gathered?.isJudged)
      fetch.gathered = { bytes: Buffer.alloc(of), filled: 0, isJudged: false };
    const { gathered } = fetch;
    if (!gathered || gathered.bytes.length !== of || gathered.filled !== at || at + bytes.length > of)
      throw new FrameError(`bytes ${at} to ${at + bytes.length} of ${of} of a ${what} file`);
    gathered.bytes.set(bytes, at);
    gathered.filled += bytes.length;
    if (gathered.filled < of) return;
    gathered.isJudged = true;
    try {
      const is = await fetch.judge(gathered.bytes);
      fetch.gathered = undefined;
      tell("verdict", { infohash: this.infohash, what, from, is });
      if (is === "good") fetch.done(gathered.bytes);
    } catch (cause) {
      fetch.failed(cause);
    }
  }

  #expectBegun(): Begun {
    if (this.#begun) return this.#begun;
    throw new FrameError(`${this.infohash} has not begun`);
  }

  #tellBegun(): void {
    if (!this.#begun) return;
    const { update, holding, file, webSeeds } = this.#begun;
    const has = new Uint8Array(Math.ceil(leafCount(holding.size) / 8));
    for (let leaf = 0; leaf < leafCount(holding.size); leaf++)
      if (holding.has(leaf)) has[leaf >> 3] = (has[leaf >> 3] ?? 0) | (1 << (leaf & 7));
    const head = {
      infohash: this.infohash,
      updateBytes: update.length,
      size: holding.size,
      webSeeds,
    };
    this.#tell("begin", { ...head, ...(file ? { file } : {}) }, Buffer.concat([update, has]));
  }

  #tellTrackers(): void {
    const { infohash } = this;
    if (this.#trackers.length > 0) this.#tell("track", { infohash, trackers: this.#trackers });
  }

  #tellSide(): void {
    if (!this.#side) return;
    const { bytes, number } = this.#side;
    this.#tell("offer", { infohash: this.infohash, bytes, ...(number === undefined ? {} : { number }) });
  }
}

/** Whether it was the signed one. */
async function put(
  holding: Holding,
  leaf: number,
  bytes: Uint8Array,
  from: "peers" | "web",
): Promise<boolean> {
  try {
    await holding.put(leaf, bytes, from);
    return true;
  } catch (cause) {
    if (cause instanceof WrongLeaf) return false;
    throw cause;
  }
}
