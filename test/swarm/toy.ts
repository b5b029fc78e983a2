/**
 * The swarm child with a toy in place of the engine: peers talk by messages of `node:v8` over TCP. What it exchanges, judges and
 * asks goes through the same child, frames and agent as with the real one.
 */
import { connect, createServer, type Socket } from "node:net";
import { deserialize, serialize } from "node:v8";
import { type Parts, serveAgent } from "../../agent/swarm/child.ts";
import type { Engine, Extension, Keep, Member, SwarmEvent } from "../../agent/swarm/engine.ts";
import type { Files } from "../../agent/swarm/files.ts";
import { LEAF_BYTES } from "../../boot/content.ts";
import { parseUpdate } from "../../boot/updatefile.ts";
import { lowerPrivileges } from "../../hal/native/privileges.ts";

type Message =
  | { t: "hello"; infohash: string; port: number }
  | { t: "file"; bytes: Uint8Array }
  | { t: "have"; pieces: number[] }
  | { t: "want"; piece: number }
  | { t: "piece"; piece: number; bytes: Uint8Array };

/** What a toy does wrong. */
export interface Lies {
  /** Changes this leaf of what it gives. */
  leaf?: number;
  /** Changes the last byte of each side file it gives. */
  side?: boolean;
  /** Waits so long before each piece, ms. */
  slowMs?: number;
}

interface Peer {
  socket: Socket;
  address: string;
  infohash: string | undefined;
  extension: Extension | undefined;
  has: Set<number>;
  isAsked: boolean;
}

type Dial = (address: string, infohash: string) => void;

class ToyMember implements Member {
  readonly infohash: string;
  readonly peers = new Set<Peer>();
  readonly #dial: Dial;
  readonly #lies: Lies;
  #there = new Set<number>();
  #keep: Keep | undefined;
  #size = 0;
  #pieceBytes = 1;
  #down = 0;

  constructor(infohash: string, lies: Lies, dial: Dial) {
    this.infohash = infohash;
    this.#lies = lies;
    this.#dial = dial;
  }

  meet(address: string): void {
    this.#dial(address, this.infohash);
  }

  begin(update: Uint8Array, keep: Keep): void {
    const { info } = parseUpdate(update);
    this.#keep = keep;
    this.#size = info.length;
    this.#pieceBytes = info.pieceLength;
    for (let piece = 0; piece * this.#pieceBytes < this.#size; piece++)
      if (this.#leaves(piece).every((leaf) => keep.has(leaf))) this.#there.add(piece);
    for (const peer of this.peers) this.#announce(peer);
    this.#askAll();
  }

  gained(leaves: Iterable<number>): void {
    for (const leaf of leaves) this.#check(Math.floor((leaf * LEAF_BYTES) / this.#pieceBytes));
  }

  status() {
    const pieces = Math.ceil(this.#size / this.#pieceBytes);
    const phase = !this.#keep ? "waiting" : this.#there.size === pieces ? "whole" : "fetching";
    return {
      ...({ infohash: this.infohash, phase, pieces, piecesThere: this.#there.size } as const),
      ...{ down: this.#down, up: 0, wasted: 0, downRate: 0, upRate: 0 },
      peers: [...this.peers].map(({ address }) => ({
        ...{ address, id: "", isSeed: false, down: 0, up: 0, downRate: 0, upRate: 0, wrong: 0, has: 0 },
      })),
    };
  }

  async leave(): Promise<void> {
    for (const { socket } of this.peers) socket.destroy();
  }

  /** A connection has said hello. */
  joined(peer: Peer): void {
    this.peers.add(peer);
    this.#announce(peer);
  }

  async heard(peer: Peer, message: Message): Promise<void> {
    if (message.t === "have") for (const piece of message.pieces) peer.has.add(piece);
    else if (message.t === "want") await this.#give(peer, message.piece);
    else if (message.t === "piece") {
      peer.isAsked = false;
      this.#down += message.bytes.length;
      const wrong = await this.#keep?.put(message.piece, message.bytes);
      if (wrong?.length === 0) this.#check(message.piece);
      else peer.has.delete(message.piece);
    }
    this.#askAll();
  }

  #announce(peer: Peer): void {
    tell(peer, { t: "have", pieces: [...this.#there] });
  }

  #leaves(piece: number): number[] {
    const first = (piece * this.#pieceBytes) / LEAF_BYTES;
    const bytes = Math.min(this.#pieceBytes, this.#size - piece * this.#pieceBytes);
    return Array.from({ length: Math.ceil(bytes / LEAF_BYTES) }, (_, index) => first + index);
  }

  #check(piece: number): void {
    if (!this.#keep || this.#there.has(piece) || !this.#leaves(piece).every(this.#keep.has)) return;
    this.#there.add(piece);
    for (const peer of this.peers) tell(peer, { t: "have", pieces: [piece] });
  }

  #askAll(): void {
    if (!this.#keep) return;
    for (const peer of this.peers) {
      if (peer.isAsked) continue;
      const piece = [...peer.has].find((one) => !this.#there.has(one));
      if (piece === undefined) continue;
      peer.isAsked = true;
      tell(peer, { t: "want", piece });
    }
  }

  async #give(peer: Peer, piece: number): Promise<void> {
    const at = piece * this.#pieceBytes;
    const bytes = await this.#keep?.get(at, Math.min(this.#pieceBytes, this.#size - at));
    if (!bytes) return;
    const copy = Uint8Array.from(bytes);
    const lie = (this.#lies.leaf ?? -1) * LEAF_BYTES - at;
    if (lie >= 0 && lie < copy.length) copy[lie] = (copy[lie] ?? 0) ^ 1;
    if (this.#lies.slowMs) await Bun.sleep(this.#lies.slowMs);
    tell(peer, { t: "piece", piece, bytes: copy });
  }
}

function tell({ socket }: Peer, message: Message): void {
  const body = serialize(message);
  const length = Buffer.alloc(4);
  length.writeUInt32BE(body.length);
  socket.write(Buffer.concat([length, body]));
}

async function openToy(
  port: number,
  files: Files,
  lies: Lies,
  told: (event: SwarmEvent) => void,
): Promise<Engine> {
  const members = new Map<string, ToyMember>();
  const talk = async (peer: Peer) => {
    let rest = Buffer.alloc(0);
    for await (const chunk of peer.socket) {
      rest = Buffer.concat([rest, chunk]);
      while (rest.length >= 4 && rest.length >= 4 + rest.readUInt32BE()) {
        const end = 4 + rest.readUInt32BE();
        await heard(peer, deserialize(rest.subarray(4, end)));
        rest = rest.subarray(end);
      }
    }
  };
  const heard = async (peer: Peer, message: Message) => {
    if (message.t === "hello") {
      const member = members.get(message.infohash);
      if (!member) return void peer.socket.destroy();
      const isAnswer = peer.infohash !== undefined;
      peer.infohash = message.infohash;
      if (!isAnswer) tell(peer, { t: "hello", infohash: member.infohash, port: 0 });
      peer.extension = files.open({
        infohash: member.infohash,
        address: peer.address,
        send: (bytes) => {
          const copy = Uint8Array.from(bytes);
          if (lies.side && copy.length > 1000) copy[1000] = (copy[1000] ?? 0) ^ 1;
          tell(peer, { t: "file", bytes: copy });
          return true;
        },
        drop: (why) => {
          told({ kind: "banned", infohash: member.infohash, address: peer.address, why, seconds: 60 });
          peer.socket.destroy();
        },
      });
      peer.extension.ready?.();
      member.joined(peer);
    } else if (message.t === "file") peer.extension?.message(message.bytes);
    else await members.get(peer.infohash ?? "")?.heard(peer, message);
  };
  const open = (socket: Socket, address: string, infohash?: string): Peer => {
    const peer: Peer = { socket, address, infohash, extension: undefined, has: new Set(), isAsked: false };
    socket.on("error", () => undefined);
    socket.on("close", () => {
      peer.extension?.closed?.();
      members.get(peer.infohash ?? "")?.peers.delete(peer);
    });
    void talk(peer).catch(() => socket.destroy());
    return peer;
  };
  const server = createServer((socket) => open(socket, `127.0.0.1:${socket.remotePort}`));
  await new Promise<void>((resolve) => server.listen(port, "127.0.0.1", resolve));
  const dial = (address: string, infohash: string) => {
    const socket: Socket = connect(Number(address.split(":")[1]), "127.0.0.1");
    const peer = open(socket, address, infohash);
    socket.once("connect", () => tell(peer, { t: "hello", infohash, port: 0 }));
  };
  return {
    port: (server.address() as { port: number }).port,
    join: (infohash) => {
      const member = new ToyMember(infohash, lies, dial);
      members.set(infohash, member);
      return member;
    },
    limit: () => undefined,
    async [Symbol.asyncDispose]() {
      for (const member of members.values()) await member.leave();
      server.close();
    },
  };
}

/** The parts of a child whose engine is a toy. */
export const toyParts = (lies: Lies): Parts => ({
  openEngine: ({ port, files, tell }) => openToy(port, files, lies, tell),
  openDiscovery: async () => ({
    finders: {},
    follow: () => undefined,
    announce: async () => undefined,
    meet: () => undefined,
    nodes: () => [],
  }),
  trackers: () => async () => undefined,
});

/** How to start a child whose engine is a toy. */
export const toyCommand = (lies: Lies = {}) => [process.execPath, import.meta.path, JSON.stringify(lies)];

if (import.meta.main) {
  lowerPrivileges({ user: 65_534, files: 512 });
  const stop = new AbortController();
  await serveAgent({
    input: process.stdin,
    write: (bytes) =>
      new Promise((resolve, reject) =>
        process.stdout.write(bytes, (error) => (error ? reject(error) : resolve())),
      ),
    user: process.getuid?.() ?? 0,
    signal: stop.signal,
    parts: toyParts(JSON.parse(process.argv[2] ?? "{}")),
  });
  process.exit();
}
