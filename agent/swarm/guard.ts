/**
 * Looks at each message of a peer before the library does: its length, its fields, how many there are.
 *
 * Invariants
 * - Nothing is buffered for a message longer than `messageBytes`.
 * - What the library sees is of the right length, about pieces there are, and was asked for.
 * - A peer that breaks a rule is dropped at once; what an honest one may do by accident is counted first.
 */
import type Wire from "bittorrent-protocol";
import type { Limits } from "./engine.ts";
import { scanBencode } from "./scan.ts";
import type { Shape } from "./stock.ts";

/** Small messages a peer may send at once (and two for each piece), and in each second from then on. */
const BURST = 4_096;
const MESSAGES_PER_SECOND = 200;
/** A bitfield counts as so many: all pieces are looked at. */
const BITFIELD_COST = 32;
/** A request too many counts as so many. */
const REQUEST_COST = 8;
/** Blocks nobody asked for, beside those that cross a cancel on the way. */
const MAX_UNASKED = 16;
/** Bytes that wait for a peer to read before its extension messages are too many. */
const MAX_UNREAD_BYTES = 1024 * 1024;

const HAVE = 4;
const BITFIELD = 5;
const REQUEST = 6;
const PIECE = 7;
const CANCEL = 8;
const REJECT = 16;
const EXTENDED = 20;
/** Messages without fields: choke, unchoke, interested, not interested, have all, have none. */
const BARE: ReadonlySet<number> = new Set([0, 1, 2, 3, 14, 15]);

/** What the guard needs to know and to tell. */
export interface GuardEvents {
  /** Of the payload; nothing as long as the update file is not there. */
  shape(): Shape | undefined;
  isThere(piece: number): boolean;
  /** The peer said something. */
  heard(): void;
  /** It broke a rule on purpose. */
  broke(why: string): void;
}

/** Puts itself between a connection and the library. */
export class Guard {
  readonly #wire: Wire;
  readonly #limits: Limits;
  readonly #events: GuardEvents;
  #tokens = BURST;
  #filledAt = performance.now();
  #isBroken = false;
  #unasked = 0;
  #excused = 0;

  constructor(wire: Wire, limits: Limits, events: GuardEvents) {
    this.#wire = wire;
    this.#limits = limits;
    this.#events = events;
    const onLength = wire._onMessageLength;
    const onMessage = wire._onMessage;
    wire._onMessageLength = (bytes) => {
      if (this.#mayBegin(view(bytes).getUint32(0))) onLength.call(wire, bytes);
    };
    wire._onMessage = (bytes) => {
      const fault = this.#fault(bytes);
      if (this.#isBroken) return;
      if (fault === undefined) return onMessage.call(wire, bytes);
      wire._parse(4, wire._onMessageLength);
      if (fault !== "") this.#break(fault);
    };
  }

  /** The update file is there: what the peer said before is looked at now. */
  recheck(): void {
    const shape = this.#events.shape();
    const said = this.#wire.peerPieces.buffer.length;
    // 0: nothing yet, or a peer that has everything
    if (shape && said > Math.ceil(shape.pieces / 8)) this.#break(`a bitfield of ${said} bytes`);
  }

  /** A request ended without its block, which may be on its way all the same. */
  excuse(): void {
    this.#excused++;
  }

  #break(why: string): void {
    this.#isBroken = true;
    this.#wire._parse(Number.MAX_SAFE_INTEGER, () => {});
    this.#events.broke(why);
  }

  #mayBegin(length: number): boolean {
    if (length > this.#limits.messageBytes) {
      this.#break(`a message of ${length} bytes; at most ${this.#limits.messageBytes} are read`);
      return false;
    }
    if (length > 0) return true;
    return this.#spend();
  }

  /** One small message more, or what is as much work as several. */
  #spend(cost = 1): boolean {
    const now = performance.now();
    const most = BURST + 2 * (this.#events.shape()?.pieces ?? 0);
    this.#tokens = Math.min(most, this.#tokens + ((now - this.#filledAt) / 1000) * MESSAGES_PER_SECOND);
    this.#filledAt = now;
    if (this.#tokens >= cost) {
      this.#tokens -= cost;
      return true;
    }
    this.#break("a flood of small messages");
    return false;
  }

  /** What is wrong with a message; nothing: the library may have it; an empty text: it is passed over. */
  #fault(bytes: Uint8Array): string | undefined {
    const id = bytes[0] ?? 0;
    this.#events.heard();
    switch (id) {
      case REQUEST:
        return this.#request(bytes);
      case PIECE:
        return this.#piece(bytes);
    }
    if (!this.#spend()) return "";
    switch (id) {
      case HAVE:
        return bytes.length === 5 && this.#isPiece(view(bytes).getUint32(1))
          ? undefined
          : "a have of no piece";
      case BITFIELD:
        return this.#bitfield(bytes);
      case CANCEL:
      case REJECT:
        return bytes.length === 13 ? undefined : `message ${id} of ${bytes.length} bytes`;
      case EXTENDED:
        return this.#extended(bytes);
    }
    if (BARE.has(id)) return bytes.length === 1 ? undefined : `message ${id} of ${bytes.length} bytes`;
    // Port, suggest, allowed fast and whatever is to come: of no use here
    return "";
  }

  #isPiece(piece: number): boolean {
    const shape = this.#events.shape();
    // Before the update file is there: the most leaves a bitfield of the longest message could name
    return piece < (shape?.pieces ?? this.#limits.messageBytes * 8);
  }

  /** Some clients (aria2) send one now and then instead of many haves. */
  #bitfield(bytes: Uint8Array): string | undefined {
    if (!this.#spend(BITFIELD_COST)) return "";
    const shape = this.#events.shape();
    if (!shape) return undefined;
    if (bytes.length - 1 !== Math.ceil(shape.pieces / 8)) return `a bitfield of ${bytes.length - 1} bytes`;
    const spare = (bytes.length - 1) * 8 - shape.pieces;
    const last = bytes.at(-1) ?? 0;
    return (last & ((1 << spare) - 1)) === 0 ? undefined : "a bitfield of pieces that are not there";
  }

  #request(bytes: Uint8Array): string | undefined {
    if (bytes.length !== 13) return `a request of ${bytes.length} bytes`;
    const fields = view(bytes);
    const [piece, offset, length] = [fields.getUint32(1), fields.getUint32(5), fields.getUint32(9)];
    const shape = this.#events.shape();
    if (!shape) {
      this.#spend();
      return "";
    }
    const pieceBytes = Math.min(shape.pieceBytes, shape.size - piece * shape.pieceBytes);
    if (length > this.#limits.requestBytes)
      return `a request for ${length} bytes; at most ${this.#limits.requestBytes} are given`;
    if (length === 0 || offset + length > pieceBytes)
      return `a request for bytes ${offset} to ${offset + length} of piece ${piece}`;
    const waiting = this.#wire.peerRequests.length;
    if (waiting < this.#limits.requests && this.#events.isThere(piece)) return undefined;
    if (!this.#spend(REQUEST_COST)) return "";
    if (this.#wire.hasFast) this.#wire.reject(piece, offset, length);
    return "";
  }

  #piece(bytes: Uint8Array): string | undefined {
    if (bytes.length < 9) return `a block of ${bytes.length} bytes`;
    const fields = view(bytes);
    const [piece, offset, length] = [fields.getUint32(1), fields.getUint32(5), bytes.length - 9];
    const isAsked = this.#wire.requests.some(
      (asked) => asked.piece === piece && asked.offset === offset && asked.length === length,
    );
    if (isAsked) return undefined;
    return ++this.#unasked > MAX_UNASKED + this.#excused ? "blocks nobody asked for" : "";
  }

  #extended(bytes: Uint8Array): string | undefined {
    if (bytes.length < 2) return "an extension message without a number";
    if (this.#wire._readableState.buffered > MAX_UNREAD_BYTES)
      return "extension messages without reading the answers";
    if (bytes[1] !== 0) return undefined;
    try {
      scanBencode(bytes.subarray(2));
      return undefined;
    } catch (error) {
      return `a broken extended handshake: ${error instanceof Error ? error.message : error}`;
    }
  }
}

function view(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
