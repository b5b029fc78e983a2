import { expect, test } from "bun:test";
import {
  BODY_MAX_BYTES,
  encodeOrder,
  encodeReport,
  type Frame,
  FrameError,
  frames,
  HEAD_MAX_BYTES,
  readOrder,
  readReport,
} from "../agent/swarm/frames.ts";
import { FrameWriter } from "../agent/swarm/writer.ts";
import { seeded } from "./fakes.ts";

const INFOHASH = "0123456789abcdef0123456789abcdef01234567";
const FUZZ = Number(process.env.FRUIT_FUZZ ?? 5000);

/** A stream that comes in pieces of such a length. */
async function* cut(bytes: Uint8Array, length: number) {
  for (let at = 0; at < bytes.length; at += length) yield bytes.subarray(at, at + length);
}

async function all(bytes: Uint8Array, length = bytes.length): Promise<Frame[]> {
  const found: Frame[] = [];
  for await (const frame of frames(cut(bytes, length))) found.push(frame);
  return found;
}

/** A frame of any kind, with any head. */
function raw(
  kind: number,
  head: string,
  body = new Uint8Array(),
  lengths: { frame?: number; head?: number } = {},
) {
  const json = Buffer.from(head);
  const start = Buffer.alloc(9);
  start.writeUInt32BE(lengths.frame ?? 5 + json.length + body.length);
  start.writeUInt8(kind, 4);
  start.writeUInt32BE(lengths.head ?? json.length, 5);
  return Buffer.concat([start, json, body]);
}

const PIECE = { id: 1, infohash: INFOHASH, piece: 3, from: "peers" } as const;

test.each([1, 2, 7, 1000, 1 << 20])(
  "frames come out as they went in, however they are cut (%d bytes)",
  async (length) => {
    const bytes = Buffer.concat([
      ...encodeReport("opened", { port: 6881, user: 65_534 }),
      ...encodeReport("piece", PIECE, Buffer.alloc(20_000, 7)),
      ...encodeReport("event", { kind: "banned", from: "192.0.2.1:6881", text: "wörter" }),
    ]);
    const found = (await all(bytes, length)).map(readReport);
    expect(found).toEqual([
      { name: "opened", head: { port: 6881, user: 65_534 }, body: Buffer.alloc(0) },
      { name: "piece", head: PIECE, body: Buffer.alloc(20_000, 7) },
      {
        name: "event",
        head: { kind: "banned", from: "192.0.2.1:6881", text: "wörter" },
        body: Buffer.alloc(0),
      },
    ]);
  },
);

test("orders come out as they went in", async () => {
  const [frame] = await all(Buffer.concat(encodeOrder("gained", { infohash: INFOHASH }, Buffer.alloc(8, 1))));
  expect(frame && readOrder(frame)).toEqual({
    name: "gained",
    head: { infohash: INFOHASH },
    body: Buffer.alloc(8, 1),
  });
});

test("a head and what is known come out as they went in", async () => {
  const known = { nodes: ["[2001:db8::1]:6881"], peers: [KNOWN] };
  const bytes = Buffer.concat([
    ...encodeReport("head", { from: "dht" }, Buffer.alloc(1400, 1)),
    ...encodeReport("known", known),
  ]);
  expect((await all(bytes)).map(readReport)).toEqual([
    { name: "head", head: { from: "dht" }, body: Buffer.alloc(1400, 1) },
    { name: "known", head: known, body: Buffer.alloc(0) },
  ]);
});

test("a frame that is cut short at the end is dropped", async () => {
  const bytes = Buffer.concat(encodeReport("piece", PIECE, Buffer.alloc(100)));
  expect(await all(bytes.subarray(0, -1))).toEqual([]);
});

test.each([
  {
    what: "longer than any",
    bytes: raw(1, "{}", undefined, { frame: 5 + HEAD_MAX_BYTES + BODY_MAX_BYTES + 1 }),
  },
  { what: "of 4 GiB", bytes: raw(1, "{}", undefined, { frame: 0xffff_ffff }) },
  { what: "shorter than its prefix", bytes: raw(1, "", undefined, { frame: 4 }) },
  { what: "whose head is longer than it", bytes: raw(1, "{}", undefined, { head: 3 }) },
  { what: "with an endless head", bytes: raw(1, " ".repeat(HEAD_MAX_BYTES + 1)) },
  { what: "whose body is too long", bytes: raw(2, "{}", new Uint8Array(BODY_MAX_BYTES + 1)) },
  { what: "whose head is no JSON", bytes: raw(1, "{") },
])("a frame $what ends the child", async ({ bytes }) => {
  await expect(all(bytes)).rejects.toThrow(FrameError);
});

const peer = {
  ...{
    address: "192.0.2.1:6881",
    id: "aa",
    isSeed: false,
    down: 0,
    up: 0,
    downRate: 0,
    upRate: 0,
    wrong: 0,
    has: 0,
  },
};
const member = {
  ...{ infohash: INFOHASH, phase: "fetching", down: 0, up: 0, wasted: 0, downRate: 0, upRate: 0 },
  ...{ connected: 1, peers: [peer], web: 0 },
};
const GET = { id: 1, infohash: INFOHASH, what: "payload", at: 0, length: 16_384 };
const KNOWN = { infohash: INFOHASH, addresses: ["192.0.2.1:6881"] };
const PART = { infohash: INFOHASH, what: "side", at: 0, of: 10, from: "192.0.2.1:6881" };

test.each([
  { what: "an unknown kind", kind: 99, head: {} },
  { what: "kind 0", kind: 0, head: {} },
  { what: "a head that is no object", kind: 1, head: 5 },
  { what: "a port beyond 65535", kind: 1, head: { port: 65_536, user: 1 } },
  { what: "a user that is text", kind: 1, head: { port: 1, user: "root" } },
  { what: "a further key", kind: 1, head: { port: 1, user: 1, more: 1 } },
  { what: "a negative piece", kind: 2, head: { ...PIECE, piece: -1 }, body: 1 },
  { what: "half a piece", kind: 2, head: { ...PIECE, piece: 0.5 }, body: 1 },
  { what: "an id beyond what a number holds", kind: 2, head: { ...PIECE, id: 2 ** 53 }, body: 1 },
  { what: "an infohash that is a path", kind: 2, head: { ...PIECE, infohash: "../../etc/passwd" }, body: 1 },
  { what: "an infohash in capitals", kind: 2, head: { ...PIECE, infohash: INFOHASH.toUpperCase() }, body: 1 },
  { what: "a piece without bytes", kind: 2, head: PIECE },
  { what: "a read of nothing", kind: 3, head: { ...GET, length: 0 } },
  { what: "a read of more than a frame holds", kind: 3, head: { ...GET, length: BODY_MAX_BYTES + 1 } },
  { what: "a read of another file", kind: 3, head: { ...GET, what: "/etc/shadow" } },
  { what: "a read with a body", kind: 3, head: GET, body: 1 },
  { what: "a file of 1 TB", kind: 4, head: { ...PART, of: 2 ** 40 }, body: 1 },
  { what: "a file from nowhere", kind: 4, head: { ...PART, from: "somewhere" }, body: 1 },
  { what: "17 payloads", kind: 5, head: { members: Array(17).fill(member) } },
  { what: "65 peers", kind: 5, head: { members: [{ ...member, peers: Array(65).fill(peer) }] } },
  { what: "a rate that is none", kind: 5, head: { members: [{ ...member, downRate: null }] } },
  { what: "a phase there is not", kind: 5, head: { members: [{ ...member, phase: "done" }] } },
  {
    what: "a peer that has half a piece",
    kind: 5,
    head: { members: [{ ...member, peers: [{ ...peer, has: 0.5 }] }] },
  },
  { what: "a head without bytes", kind: 8, head: { from: "dht" } },
  { what: "a head of 1401 bytes", kind: 8, head: { from: "dht" }, body: 1401 },
  { what: "a head from a way there is not", kind: 8, head: { from: "mqtt" }, body: 100 },
  { what: "a head that is believed already", kind: 8, head: { from: "lan", good: true }, body: 100 },
  { what: "more nodes than asked", kind: 9, head: { dht: 1001, lan: true } },
  { what: "an announcement with a body", kind: 9, head: { dht: 1, lan: true }, body: 1 },
  { what: "a node that is a name", kind: 10, head: { nodes: ["example.org:6881"], peers: [] } },
  { what: "65 nodes", kind: 10, head: { nodes: Array(65).fill("192.0.2.1:6881"), peers: [] } },
  { what: "peers of 17 payloads", kind: 10, head: { nodes: [], peers: Array(17).fill(KNOWN) } },
  {
    what: "33 peers",
    kind: 10,
    head: { nodes: [], peers: [{ ...KNOWN, addresses: Array(33).fill("192.0.2.1:6881") }] },
  },
  { what: "peers of a path", kind: 10, head: { nodes: [], peers: [{ ...KNOWN, infohash: "../peers" }] } },
  { what: "an event with an escape sequence", kind: 6, head: { kind: "banned", text: "\u001b[2J" } },
  { what: "an event without end", kind: 6, head: { kind: "banned", text: "x".repeat(301) } },
  { what: "an event of two lines", kind: 6, head: { kind: "banned", text: "a\nb" } },
])("$what is never believed", async ({ kind, head, body = 0 }) => {
  const [frame] = await all(raw(kind, JSON.stringify(head), new Uint8Array(body)));
  expect(() => frame && readReport(frame)).toThrow(FrameError);
});

test("a status that is true is believed", async () => {
  const [frame] = await all(raw(5, JSON.stringify({ members: [member] })));
  expect(frame && (readReport(frame).head as unknown)).toEqual({ members: [member] });
});

test(`${FUZZ} changed streams give frames or a FrameError, never anything else`, async () => {
  const random = seeded(8);
  const whole = Buffer.concat([
    ...encodeReport("opened", { port: 6881, user: 65_534 }),
    ...encodeReport("part", PART as never, Buffer.alloc(10)),
    ...encodeReport("get", GET as never),
    ...encodeReport("piece", PIECE, Buffer.alloc(64, 3)),
    ...encodeReport("status", { members: [member] } as never),
    ...encodeReport("head", { from: "lan" }, Buffer.alloc(300, 5)),
    ...encodeReport("announced", { dht: 8, lan: true }),
    ...encodeReport("known", { nodes: ["192.0.2.1:6881", "[2001:db8::1]:6881"], peers: [KNOWN] }),
  ]);
  let believed = 0;
  for (let round = 0; round < FUZZ; round++) {
    const bytes = Buffer.from(
      whole.subarray(0, random() < 0.2 ? Math.floor(random() * whole.length) : undefined),
    );
    for (let changes = 1 + Math.floor(random() * 4); changes > 0; changes--)
      bytes[Math.floor(random() * bytes.length)] = Math.floor(random() * 256);
    try {
      for (const frame of await all(bytes, 1 + Math.floor(random() * 300))) {
        readReport(frame);
        believed++;
      }
    } catch (cause) {
      if (!(cause instanceof FrameError)) throw cause;
    }
  }
  expect(believed).toBeGreaterThan(0);
});

test("frames go out one after the other, and past the bound nothing is taken", async () => {
  const written: number[] = [];
  const gate = Promise.withResolvers<void>();
  const writer = new FrameWriter(async (bytes) => {
    await gate.promise;
    written.push(bytes[0] ?? 0);
  }, 30);
  const first = writer.send([Uint8Array.of(1), new Uint8Array(9).fill(2)]);
  const second = writer.send([new Uint8Array(20).fill(3)]);
  expect(writer.waiting).toBe(30);
  await expect(writer.send([Uint8Array.of(4)])).rejects.toThrow("30 bytes wait to be written already");
  gate.resolve();
  await Promise.all([first, second]);
  expect([written, writer.waiting]).toEqual([[1, 2, 3], 0]);
});

test("after a write that failed nothing is written", async () => {
  const written: number[] = [];
  const writer = new FrameWriter(async (bytes) => {
    written.push(bytes[0] ?? 0);
    throw new Error("EPIPE");
  }, 100);
  const both = await Promise.allSettled([writer.send([Uint8Array.of(1)]), writer.send([Uint8Array.of(2)])]);
  expect([both.map(({ status }) => status), written]).toEqual([["rejected", "rejected"], [1]]);
  await expect(writer.send([Uint8Array.of(3)])).rejects.toThrow("EPIPE");
});
