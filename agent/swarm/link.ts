/** One connection to a peer of one payload. */
import type Wire from "bittorrent-protocol";
import { plainIp } from "./bans.ts";
import type { Extension, ExtensionPeer, Limits, PeerStatus, WireExtension } from "./engine.ts";
import type { Lender } from "./fetch.ts";
import { Guard } from "./guard.ts";
import { Serving } from "./serve.ts";
import type { Shape } from "./stock.ts";
import type { Viewer } from "./superseed.ts";

/** Bytes an extension may leave unread before it is told to wait. */
const MAX_UNREAD_BYTES = 128 * 1024;
/** Bytes of messages that are gathered for one write. */
const WRITE_BYTES = 64 * 1024;

/** What a connection asks of its member. */
export interface LinkEvents {
  shape(): Shape | undefined;
  isThere(piece: number): boolean;
  isNear(ip: string): boolean;
  drop(link: Link, why: string, isBanned: boolean): void;
}

/** A peer as the rest of the engine sees it. */
export class Link implements Lender, Viewer {
  readonly wire: Wire;
  readonly infohash: string;
  /** `ip:port` of the connection. */
  readonly address: string;
  readonly ip: string;
  /** Hex, as it said itself. */
  readonly id: string;
  readonly isOutgoing: boolean;
  /** It is on one of the node's own networks. */
  readonly isNear: boolean;
  right = 0;
  restsUntil = 0;
  /** Steady milliseconds of its last message. */
  heardAt = performance.now();
  /** Leaves it sent that were wrong. */
  wrong = 0;
  /** Payload bytes. */
  down = 0;
  up = 0;
  /** What it has may have changed: whether it is of interest has to be looked at. */
  isChanged = true;
  readonly #guard: Guard;
  readonly #cancelled = new Set<string>();

  constructor(wire: Wire, infohash: string, address: string, limits: Limits, events: LinkEvents) {
    this.wire = wire;
    this.infohash = infohash;
    this.address = address;
    this.ip = plainIp(wire.remoteAddress ?? "");
    this.id = wire.peerId ?? "";
    this.isOutgoing = wire.type === "tcpOutgoing";
    this.isNear = events.isNear(this.ip);
    this.#guard = new Guard(wire, limits, {
      shape: events.shape,
      isThere: events.isThere,
      heard: () => {
        this.heardAt = performance.now();
      },
      broke: (why) => events.drop(this, why, true),
    });
    gather(wire);
    wire.on("upload", (bytes: number) => {
      this.up += bytes;
    });
    wire.on("download", (bytes: number) => {
      this.down += bytes;
    });
  }

  has(piece: number): boolean {
    return this.wire.peerPieces.get(piece);
  }

  get isChoking(): boolean {
    return this.wire.peerChoking;
  }

  get rate(): number {
    return this.wire.downloadSpeed();
  }

  get maxAsked(): number {
    const { reqq } = this.wire.peerExtendedHandshake;
    return typeof reqq === "number" && reqq > 0 ? reqq : Number.POSITIVE_INFINITY;
  }

  get asked(): number {
    return this.wire.requests.length;
  }

  /** `done` is not called for what was cancelled. */
  ask(piece: number, offset: number, length: number, done: (block: Uint8Array | undefined) => void): void {
    this.wire.request(piece, offset, length, (error, block) => {
      if (error) this.#guard.excuse();
      if (this.#cancelled.delete(`${piece} ${offset}`)) return;
      done(error ? undefined : block);
    });
  }

  cancel(piece: number, offset: number, length: number): void {
    const isAsked = this.wire.requests.some((asked) => asked.piece === piece && asked.offset === offset);
    if (!isAsked) return;
    this.#cancelled.add(`${piece} ${offset}`);
    this.wire.cancel(piece, offset, length);
  }

  show(piece: number): void {
    this.wire.have(piece);
  }

  /** The update file is there: from now on it is served, and what it said before is looked at. */
  begin(shape: Shape, get: (at: number, length: number) => Promise<Uint8Array>): void {
    new Serving(this.wire, shape, get);
    this.#guard.recheck();
  }

  /** Offers extensions; before the handshake goes out. */
  offer(extensions: readonly WireExtension[], drop: ExtensionPeer["drop"]): void {
    for (const extension of extensions) this.#offer(extension, drop);
  }

  /** `pieces`: of the payload. */
  status(pieces: number): PeerStatus {
    const isSeed = this.wire.isSeeder === true;
    return {
      address: this.address,
      id: this.id,
      isSeed,
      down: this.down,
      up: this.up,
      downRate: this.wire.downloadSpeed(),
      upRate: this.wire.uploadSpeed(),
      wrong: this.wrong,
      has: isSeed ? pieces : Math.min(pieces, bitsIn(this.wire.peerPieces.buffer)),
    };
  }

  #offer(extension: WireExtension, drop: ExtensionPeer["drop"]): void {
    const { wire } = this;
    const { name } = extension;
    let isReady = false;
    wire.once("close", () => {
      isReady = false;
      ours.closed?.();
    });
    const ours: Extension = extension.open({
      infohash: this.infohash,
      address: this.address,
      send: (bytes) => {
        if (isReady && !wire.destroyed) wire.extended(name, bytes);
        return wire._readableState.buffered < MAX_UNREAD_BYTES;
      },
      drop,
    });
    const attempt = (act: () => void) => {
      try {
        act();
      } catch (error) {
        drop(`${name}: ${error instanceof Error ? error.message : error}`);
      }
    };
    class Offered {
      onExtendedHandshake(): void {
        if (isReady) return;
        isReady = true;
        attempt(() => ours.ready?.());
      }
      onMessage(bytes: Uint8Array): void {
        attempt(() => ours.message(bytes));
      }
    }
    Object.defineProperty(Offered.prototype, "name", { value: name });
    wire.use(Offered);
  }
}

/** What is said in one turn leaves in one write: each is a system call otherwise, and each block two. */
function gather(wire: Wire): void {
  const push = wire._push;
  let waiting: Uint8Array[] = [];
  let size = 0;
  const flush = () => {
    const [first] = waiting;
    if (first) push.call(wire, waiting.length === 1 ? first : Buffer.concat(waiting, size));
    waiting = [];
    size = 0;
  };
  wire._push = (bytes) => {
    if (waiting.push(bytes) === 1) queueMicrotask(flush);
    size += bytes.length;
    if (size >= WRITE_BYTES) flush();
  };
}

function bitsIn(bytes: Uint8Array): number {
  let bits = 0;
  for (const byte of bytes) for (let left = byte; left > 0; left &= left - 1) bits++;
  return bits;
}
