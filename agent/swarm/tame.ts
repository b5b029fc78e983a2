/** Takes over what the library does without limits, or too often. */
import type Wire from "bittorrent-protocol";
import type { Peer, Torrent } from "webtorrent";

/** What is asked instead. */
export interface Tamer {
  /** May this address be dialled? `ip:port`. */
  mayDial(address: string): boolean;
  /** A connection more; false: there is no room. */
  admit(peer: Peer): boolean;
  /** Pieces that are there. */
  there(): Iterable<number>;
  /** The update file is there for this connection; `greet` tells the peer what is there. */
  begun(wire: Wire, greet: () => void): void;
  /** Something changed; of one connection, where that is known. */
  changed(wire?: Wire): void;
}

/** Puts the tamer into a torrent. */
export function tame(torrent: Torrent, tamer: Tamer): void {
  const { _addPeer, _registerPeer, _onWireWithMetadata } = torrent;
  torrent._addPeer = (address, type, source) =>
    tamer.mayDial(address) ? _addPeer.call(torrent, address, type, source) : null;
  torrent._registerPeer = (peer) => {
    if (!peer.conn)
      peer.once("connect", () => {
        if (!tamer.admit(peer)) peer.destroy(new Error("no room"));
      });
    return _registerPeer.call(torrent, peer);
  };
  torrent._verifyPieces = (done) => {
    for (const piece of tamer.there()) torrent._markVerified(piece);
    done(null);
  };
  torrent._onWireWithMetadata = (wire) => tamer.begun(wire, () => _onWireWithMetadata.call(torrent, wire));
  torrent._update = () => tamer.changed();
  torrent._updateWireInterest = (wire) => tamer.changed(wire);
  torrent.once("metadata", () => {
    // Ours counts once a turn; this one all pieces of all peers with each of their bitfields
    torrent._rarityMap.recalculate = () => {};
  });
}
