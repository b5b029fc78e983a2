/** Brings in `webtorrent`, which takes 100 ms and 30 MB: only the process that shares asks for it. */
import type Wire from "bittorrent-protocol";
import type WebTorrent from "webtorrent";
import type { Torrent } from "webtorrent";

/** The version whose insides `member.ts`, `swarm.ts` and `guard.ts` reach into. */
const VERSION = "3.0.21";

const WIRE = [
  "_parseHandshake",
  "_onHandshakeBuffer",
  "_onMessageLength",
  "_onMessage",
  "_parse",
  "_processBuffer",
  "_push",
  "_debug",
  "request",
  "cancel",
  "reject",
  "have",
  "haveAll",
  "haveNone",
  "bitfield",
  "use",
] as const;

const TORRENT = [
  "_addPeer",
  "_addIncomingPeer",
  "_registerPeer",
  "_drain",
  "_onMetadata",
  "_verifyPieces",
  "_onWireWithMetadata",
  "_update",
  "_updateWireInterest",
  "_markVerified",
  "_checkDone",
] as const;

/** The library was not made for what is done with it here. */
export class OtherLibrary extends Error {
  override name = "OtherLibrary";
}

/** Throws `OtherLibrary` unless every name is a function of `object`. */
function demand(what: string, object: object, names: readonly string[]): void {
  const missing = names.filter((name) => typeof (object as Record<string, unknown>)[name] !== "function");
  if (missing.length > 0)
    throw new OtherLibrary(`webtorrent ${VERSION} was expected: its ${what} has no ${missing.join(", ")}`);
}

/** Throws `OtherLibrary` for a torrent with other insides. */
export const demandTorrent = (torrent: Torrent) => demand("torrent", torrent, TORRENT);

/** The client's class, with connections that wait for their guard. Throws `OtherLibrary`. */
export async function loadLibrary(): Promise<typeof WebTorrent> {
  const [{ default: Client }, { default: Connection }] = await Promise.all([
    import("webtorrent"),
    import("bittorrent-protocol"),
  ]);
  if (Client.VERSION !== VERSION)
    throw new OtherLibrary(`webtorrent ${VERSION} was expected, this is ${Client.VERSION}`);
  demand("connection", Connection.prototype, WIRE);
  holdBack(Connection.prototype);
  return Client;
}

/** What each connection begins with, after its length (BEP 3). */
const PROTOCOL = Buffer.from("BitTorrent protocol");

const HELD = Symbol("held back");

/**
 * A connection reads no further than the handshake until `release`: the library looks up the torrent first and would lose
 * what comes meanwhile (an `interested` that is lost costs the peer ten seconds), and no limit would hold yet.
 */
function holdBack(wire: Wire & { [HELD]?: true }): void {
  if (wire[HELD]) return;
  wire[HELD] = true;
  // A text is put together for each message, whether anybody reads it or not
  wire._debug = () => {};
  // Of what speaks another protocol the library would keep all there is, or look at each byte of it
  wire._parseHandshake = function () {
    this._parse(1, ([length]) => {
      if (length === PROTOCOL.length) this._parse(length + 48, this._onHandshakeBuffer);
      else refuse(this);
    });
  };
  const original = wire._onHandshakeBuffer;
  wire._onHandshakeBuffer = function (bytes) {
    if (!PROTOCOL.equals(bytes.subarray(0, PROTOCOL.length))) return refuse(this);
    original.call(this, bytes);
    this._parse(Number.MAX_SAFE_INTEGER, () => {});
  };
}

function refuse(wire: Wire): void {
  // What else came at once is not looked at
  wire._parse(Number.MAX_SAFE_INTEGER, () => {});
  wire.destroy();
}

/** The connection has its guard: reads on. */
export function release(wire: Wire): void {
  if (wire.destroyed) return;
  wire._parse(4, wire._onMessageLength);
  wire._processBuffer();
}
