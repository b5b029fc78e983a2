/**
 * Trackers of the signed list (BEP 3, 7, 15, 23): asks one for peers, and tells it of this node.
 *
 * Own code, because the client of `bittorrent-tracker` cannot be bounded: it follows redirects anywhere, reads bodies of any length (and
 * lets their failure end the process), takes UDP answers from everybody and gives up at the first wrong one, and asks as often as the
 * tracker says, each second too.
 */
import { randomBytes } from "node:crypto";
import { createSocket, type Socket } from "node:dgram";
import { lookup } from "node:dns/promises";
import { once } from "node:events";
import { request as requestHttp } from "node:http";
import { request as requestHttps } from "node:https";
import { setTimeout as sleep } from "node:timers/promises";
import { BencodeError, decodeBencode, type Received } from "../../boot/bencode.ts";
import { Fields } from "../../boot/fields.ts";
import { type Address, addressOf, compactBytes, type Family, fromCompact } from "./address.ts";

/** Longest answer that is read. */
const ANSWER_MAX_BYTES = 65_536;
/** Peers that are asked for and taken from one answer. */
const MOST_PEERS = 200;
/** Longest URL, and text of a tracker's refusal. */
const URL_MAX_CHARS = 500;
const TEXT_CHARS = 200;
/** How long a whole announcement may take. */
const LIMIT_MS = 15_000;
/** How long a UDP answer is waited for, the first time; then twice as long each (BEP 15, with less patience). */
const UDP_ANSWER_MS = 1500;
/** BEP 15: what a connection is asked for with. */
const UDP_PROTOCOL = 0x41727101980n;
const [CONNECT, ANNOUNCE, FAILED] = [0, 1, 3];
const EVENTS = { none: 0, completed: 1, started: 2, stopped: 3 } as const;

/** A tracker that cannot be asked, or does not answer as it should. */
export class TrackerError extends Error {
  override name = "TrackerError";
}

/** What a tracker is told. */
export interface Announcement {
  /** Hex. */
  infohash: string;
  /** TCP, of this node. */
  port: number;
  /** 20 bytes. */
  peerId: Uint8Array;
  event: keyof typeof EVENTS;
}

/** What it answers. */
export interface TrackerAnswer {
  /** When it wants to be asked again, as it says; seconds. */
  intervalS: number;
  peers: Address[];
}

/** Whether a URL names a tracker that can be asked. */
export function isTrackerUrl(url: string): boolean {
  return (
    /^(?:https?|udp):\/\//.test(url) &&
    url.length <= URL_MAX_CHARS &&
    URL.canParse(url) &&
    isComplete(new URL(url))
  );
}

const isComplete = ({ protocol, port, hostname, username, password }: URL) =>
  hostname !== "" && username === "" && password === "" && (protocol !== "udp:" || port !== "");

/** Asks a tracker. Rejects with `TrackerError`; takes at most 15 s. */
export async function announce(
  url: string,
  what: Announcement,
  signal: AbortSignal,
  limitMs = LIMIT_MS,
): Promise<TrackerAnswer> {
  if (!isTrackerUrl(url)) throw new TrackerError(`${shownUrl(url)}: no http, https or udp tracker`);
  const limit = AbortSignal.any([signal, AbortSignal.timeout(limitMs)]);
  const parsed = new URL(url);
  try {
    return await (parsed.protocol === "udp:" ? askUdp(parsed, what, limit) : askHttp(parsed, what, limit));
  } catch (error) {
    const why = limit.aborted && !signal.aborted ? `no answer within ${limitMs / 1000} s` : messageOf(error);
    throw new TrackerError(`${shownUrl(url)}: ${why}`, { cause: error });
  }
}

async function askHttp(url: URL, what: Announcement, signal: AbortSignal): Promise<TrackerAnswer> {
  const text = await new Promise<Buffer>((resolve, reject) => {
    const request = url.protocol === "https:" ? requestHttps : requestHttp;
    const asked = request(
      withQuery(url, what),
      // `agent: false`: no connection is kept, and none of another's used
      {
        signal,
        agent: false,
        maxHeaderSize: 16_384,
        headers: { "accept-encoding": "identity", connection: "close" },
      },
      (answer) => {
        const chunks: Buffer[] = [];
        let bytes = 0;
        answer.on("data", (chunk: Buffer) => {
          bytes += chunk.length;
          if (bytes > ANSWER_MAX_BYTES)
            asked.destroy(new TrackerError(`more than ${ANSWER_MAX_BYTES} bytes`));
          else chunks.push(chunk);
        });
        answer.on("error", reject);
        answer.on("end", () => resolve(Buffer.concat(chunks)));
        // A redirect too: a signed list names where to ask
        if (answer.statusCode !== 200) asked.destroy(new TrackerError(`answered ${answer.statusCode}`));
      },
    );
    asked.on("error", reject);
    asked.end();
  });
  return readAnswer(text);
}

/** The URL with the announcement. Bytes are escaped one by one: they are no text. */
function withQuery(url: URL, { infohash, peerId, port, event }: Announcement): string {
  const escaped = (bytes: Uint8Array) => Buffer.from(bytes).toString("hex").replace(/../g, "%$&");
  const query = [
    `info_hash=${escaped(Buffer.from(infohash, "hex"))}`,
    `peer_id=${escaped(peerId)}`,
    `port=${port}`,
    // Never 0: some trackers send those who have everything nobody who has
    "uploaded=0&downloaded=0&left=1&compact=1",
    `numwant=${event === "stopped" ? 0 : MOST_PEERS}`,
    ...(event === "none" ? [] : [`event=${event}`]),
  ].join("&");
  return `${url.origin}${url.pathname}${url.search === "" ? "?" : `${url.search}&`}${query}`;
}

/** Reads the answer of an HTTP tracker. Throws `TrackerError` for a refusal, `BencodeError` for what is no answer. */
export function readAnswer(bytes: Uint8Array): TrackerAnswer {
  const fields = new Fields(decodeBencode(bytes, ANSWER_MAX_BYTES), "answer");
  if (fields.has("failure reason"))
    throw new TrackerError(`refused: ${textOf(fields.bytes("failure reason"))}`);
  const peers = [...peersIn(fields, "peers", 4), ...peersIn(fields, "peers6", 6)];
  const intervalS = fields.has("interval") ? Number(fields.integer("interval")) : 0;
  return { intervalS, peers: peers.slice(0, MOST_PEERS) };
}

function peersIn(fields: Fields, name: string, family: Family): Address[] {
  if (!fields.has(name)) return [];
  const { value } = fields.any(name);
  if (value instanceof Uint8Array) return compactPeers(value, family);
  if (!Array.isArray(value)) return fields.refuse(name, "is neither a list nor a string");
  return value
    .slice(0, MOST_PEERS)
    .flatMap((one: Received) => listedPeer(new Fields(one, `answer.${name}[]`)) ?? []);
}

/** A peer as BEP 3 has it; a name instead of an address is passed over. */
function listedPeer(fields: Fields): Address | undefined {
  return addressOf(Buffer.from(fields.bytes("ip")).toString("latin1"), Number(fields.integer("port")));
}

function compactPeers(bytes: Uint8Array, family: Family): Address[] {
  const each = compactBytes(family);
  if (bytes.length % each !== 0) throw new TrackerError(`${bytes.length} bytes are no peers of ${each}`);
  const peers: Address[] = [];
  for (let at = 0; at < bytes.length && peers.length < MOST_PEERS; at += each) {
    const peer = fromCompact(bytes.subarray(at, at + each));
    if (peer) peers.push(peer);
  }
  return peers;
}

async function askUdp(url: URL, what: Announcement, signal: AbortSignal): Promise<TrackerAnswer> {
  const host = url.hostname.replace(/^\[|\]$/g, "");
  const { address, family } = await Promise.race([lookup(host), aborted(signal)]);
  const socket = createSocket(family === 6 ? "udp6" : "udp4");
  socket.on("error", () => undefined); // whoever waits hears of it, or of nothing
  try {
    // A connected socket hears nobody else
    socket.connect(Number(url.port), address);
    await once(socket, "connect", { signal });
    const connected = await exchange(socket, CONNECT, (number) => connectPacket(number), 16, signal);
    const id = connected.subarray(8, 16);
    const answer = await exchange(socket, ANNOUNCE, (number) => announcePacket(id, number, what), 20, signal);
    return {
      intervalS: answer.readUInt32BE(8),
      peers: compactPeers(answer.subarray(20), family === 6 ? 6 : 4),
    };
  } finally {
    socket.close();
  }
}

function connectPacket(number: Buffer): Buffer {
  const bytes = Buffer.alloc(16);
  bytes.writeBigUInt64BE(UDP_PROTOCOL);
  bytes.writeUInt32BE(CONNECT, 8);
  number.copy(bytes, 12);
  return bytes;
}

function announcePacket(connection: Uint8Array, number: Buffer, what: Announcement): Buffer {
  const bytes = Buffer.alloc(98);
  bytes.set(connection);
  bytes.writeUInt32BE(ANNOUNCE, 8);
  number.copy(bytes, 12);
  bytes.write(what.infohash, 16, 20, "hex");
  bytes.set(what.peerId.subarray(0, 20), 36);
  bytes.writeBigUInt64BE(1n, 64); // left
  bytes.writeUInt32BE(EVENTS[what.event], 80);
  randomBytes(4).copy(bytes, 88); // key
  bytes.writeInt32BE(what.event === "stopped" ? 0 : MOST_PEERS, 92);
  bytes.writeUInt16BE(what.port, 96);
  return bytes;
}

/** Asks until an answer with the number comes; what has another number, or is too short, is passed over. */
async function exchange(
  socket: Socket,
  action: number,
  packet: (number: Buffer) => Buffer,
  least: number,
  signal: AbortSignal,
): Promise<Buffer> {
  const number = randomBytes(4);
  const over = new AbortController();
  const stop = AbortSignal.any([signal, over.signal]);
  const answered = answerTo(socket, number, stop);
  const sending = (async () => {
    for (let ms = UDP_ANSWER_MS; !stop.aborted; ms *= 2) {
      socket.send(packet(number), () => undefined);
      await sleep(ms, undefined, { signal: stop }).catch(() => undefined);
    }
  })();
  try {
    const answer = await answered;
    const said = answer.readUInt32BE(0);
    if (said === FAILED) throw new TrackerError(`refused: ${textOf(answer.subarray(8))}`);
    if (said !== action || answer.length < least)
      throw new TrackerError(`answered ${said} with ${answer.length} bytes to ${action}`);
    return answer;
  } finally {
    over.abort();
    await sending;
  }
}

async function answerTo(socket: Socket, number: Buffer, signal: AbortSignal): Promise<Buffer> {
  for (;;) {
    const [bytes] = (await once(socket, "message", { signal })) as [Buffer];
    if (bytes.length >= 8 && bytes.subarray(4, 8).equals(number)) return bytes;
  }
}

/** Rejects when the signal aborts: names are looked up without one. */
async function aborted(signal: AbortSignal): Promise<never> {
  if (!signal.aborted) await once(signal, "abort");
  throw signal.reason;
}

const messageOf = (error: unknown) =>
  error instanceof BencodeError || error instanceof Error ? error.message : String(error);

/** Text of others, as it can be shown. */
const textOf = (bytes: Uint8Array) =>
  Buffer.from(bytes.subarray(0, TEXT_CHARS))
    .toString("latin1")
    .replace(/[^\x20-\x7e]/g, "?");

/** A tracker's URL without its path, which may hold a pass key. */
const shownUrl = (url: string) =>
  URL.canParse(url) ? `${new URL(url).protocol}//${new URL(url).host}` : JSON.stringify(url.slice(0, 60));
