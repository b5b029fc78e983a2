/**
 * What the agent and its swarm child say to each other, over the child's standard input and output.
 *
 * | bytes | what (big-endian) |
 * |---|---|
 * | 4 | length of all that follows |
 * | 1 | kind, from `ORDERS` or `REPORTS` |
 * | 4 | length of the head |
 * | … | head: JSON |
 * | … | body: bytes |
 *
 * Invariants
 * - The agent believes nothing of what the child says: every head has its schema here, every number its range, every text its
 *   form. What does not fit is a `FrameError`, and ends the child.
 * - Neither end keeps more than it can hold: frames are bounded, and so is what waits to be written.
 */
import * as v from "valibot";
import { HEAD_MAX_BYTES as ANNOUNCED_MAX_BYTES } from "../../boot/head.ts";
import type { Group } from "./multicast.ts";

/** Longest head, bytes. */
export const HEAD_MAX_BYTES = 131_072;
/** Longest body, bytes: a piece of the largest size, or an update file and the bits of 256 GiB. */
export const BODY_MAX_BYTES = 4 * 1024 * 1024;
/** Longest side file that is fetched, bytes: hashes and chunk index of a payload of more than 8 GiB. */
export const SIDE_MAX_BYTES = 32 * 1024 * 1024;
/** What is kept for the next start: nodes of the DHT, and peers of each of the last payloads. */
export const KNOWN_MOST = { nodes: 64, peers: 32, payloads: 16 } as const;
const PREFIX_BYTES = 9;

/** Something that cannot be a frame, or says what it must not. */
export class FrameError extends Error {
  override name = "FrameError";
}

/** One frame as it came. */
export interface Frame {
  kind: number;
  head: unknown;
  body: Uint8Array;
}

/** The files about a release that peers hand each other besides its payload. */
export type FileKind = "update" | "side";

const MOST_ID = Number.MAX_SAFE_INTEGER;
const count = (most: number = MOST_ID) => v.pipe(v.number(), v.integer(), v.minValue(0), v.maxValue(most));
const infohash = v.pipe(v.string(), v.regex(/^[0-9a-f]{40}$/));
/** As a socket has it: `192.0.2.1:6881`, `[2001:db8::1]:6881`. */
export const PEER_ADDRESS = /^(?:\d{1,3}(?:\.\d{1,3}){3}|\[[0-9a-f:.]{2,45}\]):\d{1,5}$/;
const address = v.pipe(v.string(), v.regex(PEER_ADDRESS));
const addresses = (most: number) => v.pipe(v.array(address), v.maxLength(most));
/** A peer, a web seed's address, or `-` for none. */
const origin = v.pipe(v.string(), v.regex(/^[\x21-\x7e]{1,200}$/));
/** Words for people, of which some may be a peer's. */
const text = v.pipe(v.string(), v.maxLength(300), v.regex(/^[^\p{Cc}]*$/u));
const file = v.picklist(["update", "side"]);
const rate = v.pipe(v.number(), v.minValue(0), v.maxValue(1e12));
const leaf = count(0xffff_ffff);

const PeerStatus = v.strictObject({
  address,
  id: v.pipe(v.string(), v.regex(/^[0-9a-f]{0,40}$/)),
  isSeed: v.boolean(),
  down: count(),
  up: count(),
  downRate: rate,
  upRate: rate,
  wrong: count(),
  /** Pieces it says it has. */
  has: leaf,
});

const MemberStatus = v.strictObject({
  infohash,
  phase: v.picklist(["waiting", "fetching", "whole"]),
  down: count(),
  up: count(),
  wasted: count(),
  downRate: rate,
  upRate: rate,
  /** All there are; of them at most 64 are listed. */
  connected: count(65_535),
  peers: v.pipe(v.array(PeerStatus), v.maxLength(64)),
  /** Bytes that web seeds gave, wrong ones too. */
  web: count(),
  trouble: v.optional(text),
});

/** What the child may say, and how its head looks. */
export const REPORTS = {
  /** It has lowered itself to this user and listens. */
  opened: { kind: 1, head: v.strictObject({ port: count(65_535), user: count(0xffff_ffff) }) },
  /** The bytes of a piece, to be judged; answered by `judged`. */
  piece: {
    kind: 2,
    head: v.strictObject({ id: count(), infohash, piece: leaf, from: v.picklist(["peers", "web"]) }),
  },
  /** Wants bytes of a payload or a side file; answered by `got`. */
  get: {
    kind: 3,
    head: v.strictObject({
      id: count(),
      infohash,
      what: v.picklist(["payload", "side"]),
      at: count(),
      length: v.pipe(v.number(), v.integer(), v.minValue(1), v.maxValue(BODY_MAX_BYTES)),
    }),
  },
  /** A stretch of a file that was wanted, in order. */
  part: {
    kind: 4,
    head: v.strictObject({
      infohash,
      what: file,
      at: count(SIDE_MAX_BYTES),
      of: count(SIDE_MAX_BYTES),
      from: address,
    }),
  },
  /** How all payloads stand, about once a second. */
  status: {
    kind: 5,
    head: v.strictObject({ members: v.pipe(v.array(MemberStatus), v.maxLength(16)) }),
  },
  /** Something for the log. */
  event: {
    kind: 6,
    head: v.strictObject({
      kind: v.pipe(v.string(), v.regex(/^[a-z-]{1,32}$/)),
      infohash: v.optional(infohash),
      from: v.optional(origin),
      text: v.optional(text),
    }),
  },
  /** Cannot go on, and ends. */
  unable: { kind: 7, head: v.strictObject({ text }) },
  /** A head of somebody who is followed, newer than the last: body. Its signature holds, says the child. */
  head: { kind: 8, head: v.strictObject({ from: v.picklist(["dht", "lan"]) }) },
  /** What was announced has gone out: to so many nodes of the DHT, and into the own network. */
  announced: { kind: 9, head: v.strictObject({ dht: count(1000), lan: v.boolean() }) },
  /** Who is worth being asked first after the next start. */
  known: {
    kind: 10,
    head: v.strictObject({
      nodes: addresses(KNOWN_MOST.nodes),
      peers: v.pipe(
        v.array(v.strictObject({ infohash, addresses: addresses(KNOWN_MOST.peers) })),
        v.maxLength(KNOWN_MOST.payloads),
      ),
    }),
  },
} as const;

/** What the child says. */
export type Report = {
  [K in keyof typeof REPORTS]: {
    name: K;
    head: v.InferOutput<(typeof REPORTS)[K]["head"]>;
    body: Uint8Array;
  };
}[keyof typeof REPORTS];
/** The head of one report. */
export type ReportHead<K extends Report["name"]> = Extract<Report, { name: K }>["head"];
/** How a payload stands, as the child has it. */
export type SwarmStatus = v.InferOutput<typeof MemberStatus>;

/** How the child finds peers, and what of the node it may use. */
export interface Settings {
  port: number;
  /** Bytes a second; absent: as fast as the line. */
  up?: number;
  down?: number;
  /** Multicast in the own network. */
  lan: boolean;
  /** The DHT, from these nodes on. */
  dht: boolean;
  bootstrap: readonly string[];
  /** This node's id in the DHT, 20 bytes in hex; any if absent. */
  id?: string;
  /** Peers that are always asked. */
  peers?: readonly string[];
  /** False: trackers and web seeds that a release names are not asked. */
  trackers?: boolean;
  webSeeds?: boolean;
  /** Groups of its own, and milliseconds between what is said now and then: for tests alone. */
  groups?: { peers: Group; heads: Group; interfaces: readonly string[] };
  everyMs?: number;
  /** Web seeds without TLS and on private addresses: for tests alone. */
  anyWeb?: boolean;
}

/** What the child is told. Heads are the agent's own words, and are believed. */
export interface Orders {
  open: Settings;
  join: { infohash: string; isFirstSeed?: boolean };
  leave: { infohash: string };
  meet: { infohash: string; address: string };
  /** The update file is believed. Body: it, then one bit a leaf of what is there. `file`: all of it, on an open file. */
  begin: {
    infohash: string;
    updateBytes: number;
    size: number;
    file?: { number: number; at: number };
    /** That the release names in its signed part. */
    webSeeds: readonly string[];
  };
  /** Ask these too, which the release names in its signed part. */
  track: { infohash: string; trackers: readonly string[] };
  /** Leaves that came from elsewhere. Body: 4 bytes each. */
  gained: { infohash: string };
  /** The leaves of a piece that are wrong; with `trouble` none was kept. */
  judged: { id: number; wrong: readonly number[]; trouble?: string };
  /** Body: the bytes, none where there is `trouble`. */
  got: { id: number; trouble?: string };
  /** Fetch a file from peers, of exactly these bytes and this SHA-256 where they are known. */
  want: { infohash: string; what: FileKind; bytes?: number; sha256?: string };
  /** What became of a file that came: `false` is held against whoever sent it, `unwelcome` only not asked for again. */
  verdict: { infohash: string; what: FileKind; from: string; is: "good" | "false" | "unwelcome" };
  /** A side file that may be handed out, from an open file or through the agent. */
  offer: { infohash: string; bytes: number; number?: number };
  limit: { up?: number; down?: number };
  /** Whose heads to look for: of these keys, hex, for this target. Heads of others are announced no longer. */
  follow: { target: string; keys: readonly string[] };
  /** Hand this head on. Body: it. */
  announce: Record<string, never>;
}
const ORDER_KINDS = [
  "open",
  "join",
  "leave",
  "meet",
  "begin",
  "gained",
  "judged",
  "got",
  "want",
  "verdict",
  "offer",
  "limit",
  "follow",
  "announce",
  "track",
] as const satisfies readonly (keyof Orders)[];
/** One order, as the child takes it. */
export type Order = {
  [K in keyof Orders]: { name: K; head: Orders[K]; body: Uint8Array };
}[keyof Orders];

/** What the agent says, as bytes. */
export function encodeOrder<K extends keyof Orders>(
  name: K,
  head: Orders[K],
  body: Uint8Array = NOTHING,
): Uint8Array[] {
  return encodeFrame(ORDER_KINDS.indexOf(name) + 1, head, body);
}

/** Reads an order of the agent. Throws `FrameError` for a kind there is not. */
export function readOrder({ kind, head, body }: Frame): Order {
  const name = ORDER_KINDS[kind - 1];
  if (name === undefined) throw new FrameError(`there is no order of kind ${kind}`);
  return { name, head, body } as Order;
}

/** What the child says, as bytes. */
export function encodeReport<K extends Report["name"]>(
  name: K,
  head: ReportHead<K>,
  body: Uint8Array = NOTHING,
): Uint8Array[] {
  return encodeFrame(REPORTS[name].kind, head, body);
}

const NAMES = Object.keys(REPORTS) as Report["name"][];

/** Reads what the child says, believing none of it. Throws `FrameError`. */
export function readReport({ kind, head, body }: Frame): Report {
  const name = NAMES.find((one) => REPORTS[one].kind === kind);
  if (name === undefined) throw new FrameError(`there is no report of kind ${kind}`);
  const parsed = v.safeParse(REPORTS[name].head, head);
  if (!parsed.success) {
    const [issue] = parsed.issues;
    throw new FrameError(`${name}.${v.getDotPath(issue) ?? "head"}: not ${issue.expected ?? issue.type}`);
  }
  const hasBody = name === "piece" || name === "part" || name === "head";
  if (hasBody !== body.length > 0) throw new FrameError(`${name} with a body of ${body.length} bytes`);
  if (name === "head" && body.length > ANNOUNCED_MAX_BYTES)
    throw new FrameError(`a head of ${body.length} bytes`);
  return { name, head: parsed.output, body } as Report;
}

const NOTHING = new Uint8Array();

/** One frame, in two parts so that a body is not copied. */
function encodeFrame(kind: number, head: object, body: Uint8Array): Uint8Array[] {
  const json = Buffer.from(JSON.stringify(head));
  if (json.length > HEAD_MAX_BYTES || body.length > BODY_MAX_BYTES)
    throw new FrameError(`a frame of ${json.length} and ${body.length} bytes is too long`);
  const start = Buffer.alloc(PREFIX_BYTES + json.length);
  start.writeUInt32BE(PREFIX_BYTES - 4 + json.length + body.length, 0);
  start.writeUInt8(kind, 4);
  start.writeUInt32BE(json.length, 5);
  json.copy(start, PREFIX_BYTES);
  return body.length > 0 ? [start, body] : [start];
}

/** The frames of a stream, in order; a body is the caller's. Throws `FrameError`. A frame that is cut short at the end is dropped. */
export async function* frames(bytes: AsyncIterable<Uint8Array>): AsyncGenerator<Frame> {
  const prefix = new Uint8Array(PREFIX_BYTES);
  let frame: Buffer = Buffer.from(prefix.buffer);
  let filled = 0;
  for await (const chunk of bytes)
    for (let at = 0; at < chunk.length; ) {
      const part = chunk.subarray(at, at + frame.length - filled);
      frame.set(part, filled);
      at += part.length;
      filled += part.length;
      if (filled < frame.length) continue;
      if (frame.buffer === prefix.buffer) {
        frame = Buffer.alloc(lengthOf(frame));
        frame.set(prefix);
        if (filled < frame.length) continue;
      }
      yield frameOf(frame);
      frame = Buffer.from(prefix.buffer);
      filled = 0;
    }
}

/** Bytes of the whole frame, by its beginning. */
function lengthOf(prefix: Buffer): number {
  const length = prefix.readUInt32BE(0) + 4;
  if (length < PREFIX_BYTES || length > PREFIX_BYTES + HEAD_MAX_BYTES + BODY_MAX_BYTES)
    throw new FrameError(`a frame cannot have ${length} bytes`);
  return length;
}

function frameOf(bytes: Buffer): Frame {
  const headBytes = bytes.readUInt32BE(5);
  const at = PREFIX_BYTES + headBytes;
  if (headBytes > HEAD_MAX_BYTES || at > bytes.length || bytes.length - at > BODY_MAX_BYTES)
    throw new FrameError(`a frame of ${bytes.length} bytes cannot have a head of ${headBytes}`);
  try {
    return {
      kind: bytes.readUInt8(4),
      head: JSON.parse(bytes.toString("utf8", PREFIX_BYTES, at)),
      body: bytes.subarray(at),
    };
  } catch (cause) {
    throw new FrameError("the head of a frame is not JSON", { cause });
  }
}

/** Words that fit into a report. */
export function plain(cause: unknown): string {
  const text = cause instanceof Error ? cause.message : String(cause);
  return text.replace(/\p{Cc}/gu, " ").slice(0, 300);
}
