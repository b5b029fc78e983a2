/**
 * The swarm engine: BitTorrent (BEP 3, 6, 10, 11, 16) over TCP, through `webtorrent` with what it has no limits for limited.
 *
 * It believes nothing: whoever opened it judges each leaf (`Keep.put`), and hears who sent what was wrong.
 */

/** Where the bytes of one payload are kept. A leaf is 16 KiB, which is one block of BitTorrent. */
export interface Keep {
  /** Is this leaf there and right? Asked once for each leaf at `begin`; later ones are told by `gained`. */
  has(leaf: number): boolean;
  /**
   * Judges each leaf of a piece and keeps the right ones. The numbers of the leaves (in the payload) that are wrong. The bytes
   * are the engine's again once the promise settles. A failure is told, and the same piece offered again after a while.
   */
  put(piece: number, bytes: Uint8Array): Promise<readonly number[]>;
  /** Exactly `length` bytes from `at`; throws where they are not there. */
  get(at: number, length: number): Promise<Uint8Array>;
}

/** What peers may take of the node. */
export interface Limits {
  /** Connections of all members together. */
  connections: number;
  /** Connections from one address (an IPv6 /64 counts as one). */
  connectionsPerAddress: number;
  /** Longest message from a peer, bytes without its length prefix. */
  messageBytes: number;
  /** Requests of one peer that wait for their answer. */
  requests: number;
  /** Bytes one request may ask for. */
  requestBytes: number;
  /** Milliseconds until a connection must have sent its handshake. */
  handshakeMs: number;
  /** Milliseconds without a useful message after which a connection is closed. */
  idleMs: number;
}

/** One end of an extension (BEP 10) of ours on one connection. */
export interface Extension {
  /** The peer's extended handshake names the extension too: from now on `send` reaches it. */
  ready?(): void;
  /** What the peer sent; at most `Limits.messageBytes`. An exception closes the connection. */
  message(bytes: Uint8Array): void;
  /** The connection is gone. */
  closed?(): void;
}

/** The peer at the other end of an extension. */
export interface ExtensionPeer {
  readonly infohash: string;
  /** `ip:port` as connected. */
  readonly address: string;
  /** Sends a message; without effect until `ready` and after `closed`. False: the peer reads too slowly, wait. */
  send(bytes: Uint8Array): boolean;
  /** Closes the connection. `banned`: and keeps the peer away for a while. */
  drop(why: string, banned?: boolean): void;
}

/** An extension every connection offers. */
export interface WireExtension {
  /** Its name in the extended handshake, `fruit_file`. */
  readonly name: string;
  open(peer: ExtensionPeer): Extension;
}

/** What the engine tells. */
export type SwarmEvent =
  | { kind: "connected" | "disconnected"; infohash: string; address: string; why?: string }
  /** A peer broke a rule, or its turn was over. */
  | { kind: "dropped"; infohash?: string; address: string; why: string }
  | { kind: "banned"; infohash?: string; address: string; why: string; seconds: number }
  /** Leaves that were wrong, and who sent them. */
  | { kind: "wrong"; infohash: string; piece: number; leaves: readonly number[]; address: string }
  /** `Keep` failed; the piece is fetched or read again after a while. */
  | { kind: "trouble"; infohash: string; text: string }
  /** All pieces are there. */
  | { kind: "whole"; infohash: string };

/** One connection as `status` shows it. */
export interface PeerStatus {
  address: string;
  /** 20 bytes, hex. */
  id: string;
  isSeed: boolean;
  /** Payload bytes so far. */
  down: number;
  up: number;
  /** Bytes per second. */
  downRate: number;
  upRate: number;
  /** Leaves it sent that were wrong. */
  wrong: number;
  /** Pieces it says it has. */
  has: number;
}

/** How a member stands. */
export interface MemberStatus {
  infohash: string;
  /** `waiting`: nobody has said `begin` yet. */
  phase: "waiting" | "fetching" | "whole";
  pieces: number;
  piecesThere: number;
  /** Payload bytes that came from and went to peers; what was wrong is in `wasted` too. */
  down: number;
  up: number;
  wasted: number;
  downRate: number;
  upRate: number;
  peers: PeerStatus[];
  /** Why nothing is stored or served at the moment. */
  trouble?: string;
}

/** One payload this node fetches or serves. */
export interface Member {
  readonly infohash: string;
  /** Somebody has a peer's address: `192.0.2.1:6881`, `[2001:db8::1]:6881`. Known, own and banned ones are passed over. */
  meet(address: string): void;
  /** The update file is believed: fetch what `keep` has not, serve what it has. Once. Throws where it is no update file of `infohash`. */
  begin(update: Uint8Array, keep: Keep): void;
  /** These leaves came from elsewhere (the old slot) and are right. */
  gained(leaves: Iterable<number>): void;
  status(): MemberStatus;
  leave(): Promise<void>;
}

export interface Engine extends AsyncDisposable {
  /** TCP, of all its members. */
  readonly port: number;
  /** Throws where it is a member already. `isFirstSeed`: hands every piece out once before any twice (BEP 16). */
  join(infohash: string, how?: { isFirstSeed?: boolean }): Member;
  /** Bytes per second of all members together; absent: without limit. */
  limit(bytesPerSecond: { up?: number; down?: number }): void;
}

export interface EngineOptions {
  /** 0 or absent: any free one. */
  port?: number;
  limits?: Partial<Limits>;
  extensions?: readonly WireExtension[];
  /** May this IP address connect, and be connected to? */
  isWelcome?(ip: string): boolean;
  /** Do bytes from this IP address cost nothing? Absent: those of the node's own networks. */
  isNear?(ip: string): boolean;
  tell(event: SwarmEvent): void;
  signal: AbortSignal;
}

/** A way to find peers: calls `meet` with each it finds until told to stop. */
export type Finder = (
  wanted: { infohash: string; port: number; meet(address: string): void },
  signal: AbortSignal,
) => Promise<void>;

/** Opens the engine's port. Throws where `webtorrent` is not the version this was written for. */
export async function openEngine(options: EngineOptions): Promise<Engine> {
  const { Swarm } = await import("./swarm.ts");
  return await Swarm.open(options);
}
