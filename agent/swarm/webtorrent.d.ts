/** The parts of `webtorrent` 3.0.21 and `bittorrent-protocol` 5.0.9 that are used here; neither brings types. And our `bencode`. */

declare module "bittorrent-protocol" {
  import type { Duplex } from "node:stream";

  interface Asked {
    piece: number;
    offset: number;
    length: number;
  }

  // biome-ignore lint/style/noDefaultExport: that is how it comes
  export default class Wire extends Duplex {
    readonly type: string;
    /** Hex; null before the handshake. */
    peerId: string | null;
    remoteAddress?: string;
    remotePort?: number;
    amChoking: boolean;
    amInterested: boolean;
    peerChoking: boolean;
    peerInterested: boolean;
    isSeeder?: boolean;
    hasFast: boolean;
    peerPieces: { get(piece: number): boolean; readonly buffer: Uint8Array };
    requests: Asked[];
    peerRequests: Asked[];
    downloaded: number;
    uploaded: number;
    downloadSpeed(): number;
    uploadSpeed(): number;
    extendedHandshake: Record<string, unknown>;
    peerExtendedHandshake: Record<string, unknown>;
    peerExtendedMapping: Record<string, number>;
    ut_metadata?: { cancel(): void; removeAllListeners(event: string): void };
    use(extension: new (wire: Wire) => object): void;
    request(
      piece: number,
      offset: number,
      length: number,
      done: (error: Error | null, block: Uint8Array) => void,
    ): void;
    cancel(piece: number, offset: number, length: number): void;
    reject(piece: number, offset: number, length: number): void;
    have(piece: number): void;
    haveAll(): void;
    haveNone(): void;
    bitfield(field: unknown): void;
    interested(): void;
    uninterested(): void;
    choke(): void;
    unchoke(): void;
    extended(name: string, message: Uint8Array): void;
    /** Of streamx: what was pushed and not taken yet. */
    _readableState: { buffered: number };
    _bufferSize: number;
    _debug(): void;
    _push(bytes: Uint8Array): void;
    _parse(size: number, parser: (this: Wire, bytes: Uint8Array) => void): void;
    _processBuffer(): void;
    _parseHandshake(): void;
    _onHandshakeBuffer(bytes: Uint8Array): void;
    _onMessageLength(bytes: Uint8Array): void;
    _onMessage(bytes: Uint8Array): void;
  }
}

declare module "webtorrent" {
  import type { EventEmitter } from "node:events";
  import type { Server, Socket } from "node:net";
  import type Wire from "bittorrent-protocol";

  export interface Peer extends EventEmitter {
    readonly id: string;
    conn: Socket | null;
    wire: Wire | null;
    retries: number;
    destroy(error?: Error): void;
  }

  export interface Torrent extends EventEmitter {
    readonly infoHash?: string;
    readonly destroyed: boolean;
    readonly ready: boolean;
    readonly wires: Wire[];
    readonly bitfield: { get(piece: number): boolean };
    pieces: (object | null)[];
    _peers: Map<string, Peer>;
    _rarityMap: { recalculate(): void };
    addPeer(address: string, source?: string): boolean;
    destroy(done?: () => void): void;
    _addPeer(address: string, type: string, source?: string): Peer | null;
    _addIncomingPeer(peer: Peer): void;
    _registerPeer(peer: Peer): void;
    _drain(): void;
    _onMetadata(metadata: Uint8Array): Promise<void>;
    _verifyPieces(done: (error?: Error | null) => void): void;
    _onWireWithMetadata(wire: Wire): void;
    _update(): void;
    _updateWireInterest(wire: Wire): void;
    _markVerified(piece: number): void;
    _checkDone(): void;
  }

  // biome-ignore lint/style/noDefaultExport: that is how it comes
  export default class WebTorrent extends EventEmitter {
    static readonly VERSION: string;
    constructor(options: Record<string, unknown>);
    readonly peerId: string;
    readonly listening: boolean;
    readonly torrents: Torrent[];
    readonly _connPool: { tcpServer: Server; _onConnection(connection: Socket, type: string): void } | null;
    add(id: { infoHash: string }, options: Record<string, unknown>): Torrent;
    address(): { port: number } | null;
    throttleDownload(bytesPerSecond: number): void;
    throttleUpload(bytesPerSecond: number): void;
    destroy(done?: (error?: Error | null) => void): void;
  }
}

declare module "bencode" {
  const bencode: { decode(bytes: Uint8Array | string): unknown; encode(value: unknown): Uint8Array };
  // biome-ignore lint/style/noDefaultExport: that is how it comes
  export default bencode;
}
