/** A BitTorrent peer written from BEP 3, 6 and 10 alone, as honest or as hostile as a test wants it. */
import { connect, createServer, type Server, type Socket } from "node:net";
import { LEAF_BYTES } from "../../boot/content.ts";
import type { Payload } from "./payload.ts";

/** Message numbers. */
export const SAYS = {
  choke: 0,
  unchoke: 1,
  interested: 2,
  notInterested: 3,
  have: 4,
  bitfield: 5,
  request: 6,
  piece: 7,
  cancel: 8,
  haveAll: 14,
  haveNone: 15,
  reject: 16,
  extended: 20,
} as const;

/** Big-endian numbers of four bytes. */
export function u32(...values: number[]): Buffer {
  const bytes = Buffer.alloc(4 * values.length);
  for (const [n, value] of values.entries()) bytes.writeUInt32BE(value >>> 0, 4 * n);
  return bytes;
}

/** One connection, from the outside. */
export class RawPeer {
  readonly socket: Socket;
  /** What came, in order. */
  readonly heard: { id: number; body: Buffer }[] = [];
  /** Called with each message. */
  on: (id: number, body: Buffer) => void = () => {};
  isClosed = false;
  /** The other's handshake, once it came. */
  handshaken: Buffer | undefined;
  #waiting: Buffer = Buffer.alloc(0);

  constructor(socket: Socket) {
    this.socket = socket;
    socket.on("error", () => {});
    socket.on("close", () => {
      this.isClosed = true;
    });
    socket.on("data", (bytes) => this.#read(Buffer.from(bytes)));
  }

  /** Connects from an address of its own: bans and limits go by address. */
  static connect(port: number, from = "127.0.0.66"): Promise<RawPeer> {
    return new Promise((resolve, reject) => {
      const socket = connect({ port, host: "127.0.0.1", localAddress: from });
      socket.once("error", reject);
      socket.once("connect", () => resolve(new RawPeer(socket)));
    });
  }

  /** 68 bytes: fast extension and extension protocol are offered. */
  handshake(infohash: string, id = `-XX0000-${Math.random().toFixed(12).slice(2)}`): this {
    const flags = Buffer.from([0, 0, 0, 0, 0, 0x10, 0, 0x04]);
    this.socket.write(
      Buffer.concat([
        Buffer.from("\x13BitTorrent protocol"),
        flags,
        Buffer.from(infohash, "hex"),
        Buffer.from(id),
      ]),
    );
    return this;
  }

  say(id: number, ...body: Uint8Array[]): this {
    const all = Buffer.concat([Buffer.from([id]), ...body]);
    return this.raw(u32(all.length), all);
  }

  raw(...bytes: Uint8Array[]): this {
    if (!this.isClosed) this.socket.write(Buffer.concat(bytes));
    return this;
  }

  [Symbol.dispose](): void {
    this.socket.destroy();
  }

  #read(bytes: Buffer): void {
    this.#waiting = Buffer.concat([this.#waiting, bytes]);
    if (!this.handshaken) {
      if (this.#waiting.length < 68) return;
      this.handshaken = this.#waiting.subarray(0, 68);
      this.#waiting = this.#waiting.subarray(68);
    }
    while (this.#waiting.length >= 4) {
      const length = this.#waiting.readUInt32BE(0);
      if (this.#waiting.length < 4 + length) return;
      const message = this.#waiting.subarray(4, 4 + length);
      this.#waiting = this.#waiting.subarray(4 + length);
      const [id] = message;
      if (id === undefined) continue;
      this.heard.push({ id, body: message.subarray(1) });
      this.on(id, message.subarray(1));
    }
  }
}

/** What a seed sends for a block; nothing: it keeps still. */
export type Answer = (piece: number, offset: number, right: Buffer) => Uint8Array | undefined;

/** Lets a peer say that it has everything, and answer requests; `answer` may lie. */
export function seed(
  peer: RawPeer,
  whole: Payload,
  answer: Answer = (_piece, _offset, right) => right,
): RawPeer {
  peer.on = (id, body) => {
    if (id === SAYS.interested) peer.say(SAYS.unchoke);
    if (id !== SAYS.request) return;
    const [piece, offset, length] = [body.readUInt32BE(0), body.readUInt32BE(4), body.readUInt32BE(8)];
    const at = piece * whole.pieceBytes + offset;
    const bytes = answer(piece, offset, Buffer.from(whole.bytes.subarray(at, at + length)));
    if (bytes) peer.say(SAYS.piece, u32(piece, offset), bytes);
  };
  return peer.handshake(whole.infohash).say(SAYS.haveAll);
}

/** The same bytes with the first one changed. */
export function spoilt(bytes: Buffer): Buffer {
  bytes[0] = (bytes[0] ?? 0) ^ 0xff;
  return bytes;
}

/** A peer that listens, at an address of its own. */
export async function listen(
  host: string,
  behave: (peer: RawPeer) => void,
): Promise<AsyncDisposable & { address: string }> {
  const peers: RawPeer[] = [];
  const server: Server = createServer((socket) => {
    const peer = new RawPeer(socket);
    peers.push(peer);
    behave(peer);
  });
  await new Promise<void>((resolve) => server.listen(0, host, resolve));
  const address = server.address();
  if (address === null || typeof address === "string") throw new Error("no address");
  return {
    address: `${host}:${address.port}`,
    async [Symbol.asyncDispose]() {
      for (const peer of peers) peer[Symbol.dispose]();
      await new Promise<void>((resolve) => server.close(() => resolve()));
    },
  };
}

/** Every attack on one connection: what the peer does once it is connected, and what becomes of it. */
export interface Attack {
  name: string;
  /** Ends `banned`, `dropped`, or is harmless and may stay (`kept`). */
  ends: "banned" | "dropped" | "kept";
  /** It is about the answers to requests: whoever has everything asks for nothing, and keeps the peer. */
  isOfLender?: true;
  run(peer: RawPeer, whole: Payload): void;
}

/** A message of the extension protocol; 0 is the handshake. */
const extended = (peer: RawPeer, number: number, body: string) =>
  peer.say(SAYS.extended, Buffer.from([number]), Buffer.from(body));

/** A request for the first block of a piece. */
const request = (piece: number, offset: number, length: number) => {
  const body = u32(piece, offset, length);
  return Buffer.concat([u32(13), Buffer.from([SAYS.request]), body]);
};

export const ATTACKS: readonly Attack[] = [
  {
    name: "a length prefix of 2^31-1 and the bytes for it",
    ends: "banned",
    run: (peer, { infohash }) => {
      peer.handshake(infohash).raw(u32(0x7fffffff));
      for (let n = 0; n < 64; n++) peer.raw(Buffer.alloc(LEAF_BYTES));
    },
  },
  {
    name: "a length prefix of 2^32-1",
    ends: "banned",
    run: (peer, { infohash }) => peer.handshake(infohash).raw(u32(0xffffffff), Buffer.alloc(LEAF_BYTES)),
  },
  {
    name: "l-3: in an extended handshake",
    ends: "banned",
    run: (peer, { infohash }) => extended(peer.handshake(infohash), 0, "l-3:"),
  },
  {
    name: "an extended handshake nested ten thousand deep",
    ends: "banned",
    run: (peer, { infohash }) => extended(peer.handshake(infohash), 0, "l".repeat(10_000)),
  },
  {
    name: "a have of a piece there is not",
    ends: "banned",
    run: (peer, { infohash }) => peer.handshake(infohash).say(SAYS.have, u32(0xfffffff0)),
  },
  {
    name: "a bitfield that is too long",
    ends: "banned",
    run: (peer, { infohash }) => peer.handshake(infohash).say(SAYS.bitfield, Buffer.alloc(4_000, 0xff)),
  },
  {
    name: "a thousand bitfields",
    ends: "banned",
    run: (peer, { infohash, bytes, pieceBytes }) => {
      const field = Buffer.alloc(Math.ceil(bytes.length / pieceBytes / 8));
      peer.handshake(infohash);
      for (let n = 0; n < 1_000; n++) peer.say(SAYS.bitfield, field);
    },
  },
  {
    name: "a request of 128 KiB",
    ends: "banned",
    run: (peer, { infohash }) =>
      peer
        .handshake(infohash)
        .say(SAYS.interested)
        .raw(request(0, 0, 128 * 1024)),
  },
  {
    name: "a request beyond the end",
    ends: "banned",
    run: (peer, { infohash }) =>
      peer
        .handshake(infohash)
        .say(SAYS.interested)
        .raw(request(0xfffffff0, 0, LEAF_BYTES)),
  },
  {
    name: "forty thousand requests, and never reads an answer",
    ends: "banned",
    run: (peer, { infohash, pieceBytes }) => {
      peer.handshake(infohash).say(SAYS.interested);
      peer.socket.pause();
      const flood = Array.from({ length: 40_000 }, (_, n) =>
        request(0, (n % (pieceBytes / LEAF_BYTES)) * LEAF_BYTES, LEAF_BYTES),
      );
      peer.raw(...flood);
    },
  },
  {
    name: "blocks nobody asked for",
    ends: "banned",
    run: (peer, { infohash }) => {
      peer.handshake(infohash).say(SAYS.haveAll);
      for (let n = 0; n < 400; n++) peer.say(SAYS.piece, u32(n % 8, 0), Buffer.alloc(LEAF_BYTES));
    },
  },
  {
    name: "blocks of another piece than was asked for",
    isOfLender: true,
    ends: "banned",
    run: (peer, whole) => {
      seed(peer, whole);
      peer.on = (id, body) => {
        if (id === SAYS.interested) peer.say(SAYS.unchoke);
        if (id === SAYS.request)
          for (let n = 0; n < 200; n++)
            peer.say(
              SAYS.piece,
              u32(body.readUInt32BE(0) + 1, body.readUInt32BE(4)),
              Buffer.alloc(LEAF_BYTES),
            );
      };
    },
  },
  {
    name: "a million keep-alives",
    ends: "banned",
    run: (peer, { infohash }) => peer.handshake(infohash).raw(Buffer.alloc(4 * 1_000_000)),
  },
  {
    name: "peer exchange twice at once",
    ends: "dropped",
    run: (peer, { infohash }) => {
      extended(peer.handshake(infohash), 0, "d1:md6:ut_pexi1eee");
      peer.on = (id, body) => {
        const number = /6:ut_pexi(\d+)e/.exec(body.toString("latin1"))?.[1];
        if (id !== SAYS.extended || body[0] !== 0 || number === undefined) return;
        extended(peer, Number(number), "de");
        extended(peer, Number(number), "de");
      };
    },
  },
  {
    name: "peer exchange of ten thousand addresses",
    ends: "dropped",
    run: (peer, { infohash }) => {
      extended(peer.handshake(infohash), 0, "d1:md6:ut_pexi1eee");
      peer.on = (id, body) => {
        const number = /6:ut_pexi(\d+)e/.exec(body.toString("latin1"))?.[1];
        if (id !== SAYS.extended || body[0] !== 0 || number === undefined) return;
        extended(peer, Number(number), `d5:added60000:${"\x01".repeat(60_000)}e`);
      };
    },
  },
  {
    name: "nothing at all, not even a handshake",
    ends: "dropped",
    run: () => {},
  },
  {
    name: "a handshake, and never a word again",
    ends: "kept",
    run: (peer, { infohash }) => peer.handshake(infohash).say(SAYS.haveNone),
  },
  {
    name: "a handshake of a byte now and then",
    ends: "dropped",
    run: (peer) => {
      const drip = setInterval(
        () => (peer.isClosed ? clearInterval(drip) : peer.raw(Buffer.from([0x13]))),
        100,
      );
    },
  },
  {
    name: "another protocol, without end",
    ends: "dropped",
    run: (peer) => {
      for (let n = 0; n < 64; n++) peer.raw(Buffer.from("GET / HTTP/1.1\r\n".repeat(4_096)));
    },
  },
  {
    name: "the first byte of a handshake, and another protocol without end",
    ends: "dropped",
    run: (peer) => {
      peer.raw(Buffer.from([19]));
      for (let n = 0; n < 64; n++) peer.raw(Buffer.alloc(64 * 1024, "x"));
    },
  },
  {
    name: "a block at a byte a second",
    isOfLender: true,
    ends: "kept",
    run: (peer, whole) => {
      seed(peer, whole);
      peer.on = (id, body) => {
        if (id === SAYS.interested) peer.say(SAYS.unchoke);
        if (id !== SAYS.request || peer.heard.filter((one) => one.id === SAYS.request).length > 1) return;
        peer.raw(u32(9 + LEAF_BYTES), Buffer.from([SAYS.piece]), body.subarray(0, 8));
        const drip = setInterval(
          () => (peer.isClosed ? clearInterval(drip) : peer.raw(Buffer.from([0]))),
          1_000,
        );
      };
    },
  },
  {
    name: "a no to every request",
    isOfLender: true,
    ends: "kept",
    run: (peer, whole) => {
      seed(peer, whole);
      peer.on = (id, body) => {
        if (id === SAYS.interested) peer.say(SAYS.unchoke);
        if (id === SAYS.request) peer.say(SAYS.reject, body);
      };
    },
  },
  {
    name: "half a piece, and is gone",
    isOfLender: true,
    ends: "kept",
    run: (peer, whole) => {
      let given = 0;
      seed(peer, whole, (_piece, _offset, right) => {
        if (++given > 5) peer.socket.destroy();
        return right;
      });
    },
  },
];
