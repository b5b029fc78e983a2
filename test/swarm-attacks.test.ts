/** Each attack on the wire, one at a time, beside an honest transfer; what it costs in memory is for the proof of the same name. */
import { expect, test } from "bun:test";
import { EventEmitter } from "node:events";
import type Wire from "bittorrent-protocol";
import { encodePeers, peerExchange } from "../agent/swarm/pex.ts";
import { scanBencode } from "../agent/swarm/scan.ts";
import { Serving } from "../agent/swarm/serve.ts";
import { encodeBencode } from "../boot/bencode.ts";
import { seeded } from "./fakes.ts";
import { mutated } from "./mutations.ts";
import { until } from "./node.ts";
import { ALL, node, whole } from "./swarm/nodes.ts";
import { payload } from "./swarm/payload.ts";
import { ATTACKS, RawPeer } from "./swarm/peer.ts";

const PAYLOAD = payload(2 * 1024 * 1024 + 1, 64 * 1024);
/** Where attackers come from: a ban of it does not reach the honest. */
const THERE = "127.0.0.66";

test.each(ATTACKS)("$name: the peer is $ends, and the transfer beside it ends", async ({ ends, run }) => {
  await using from = await node();
  await using to = await node({ limits: { handshakeMs: 300 } });
  from.share(PAYLOAD, ALL);
  from.engine.limit({ up: 16 * 1024 * 1024 });
  const { member, keep } = to.share(PAYLOAD);
  using attacker = await RawPeer.connect(to.engine.port, THERE);
  run(attacker, PAYLOAD);
  member.meet(`127.0.0.1:${from.engine.port}`);
  await whole(member);
  expect(keep.bytes.equals(PAYLOAD.bytes)).toBe(true);
  const isBanned = () => to.told.some((event) => event.kind === "banned" && event.address.startsWith(THERE));
  if (ends === "banned") {
    await until("it is banned", isBanned);
    using again = await RawPeer.connect(to.engine.port, THERE);
    await until("it is not let in again", () => again.isClosed);
  }
  // A socket that is paused does not hear that it is closed
  if (ends !== "kept") await until("it is closed", () => attacker.isClosed || attacker.socket.isPaused());
  if (ends !== "banned") expect(isBanned()).toBe(false);
});

test("connections are counted, for each address and in all, and those of others leave room for its own", async () => {
  await using one = await node({ limits: { connections: 20, connectionsPerAddress: 6 } });
  one.share(PAYLOAD, ALL);
  const peers: RawPeer[] = [];
  const open = () => peers.filter(({ isClosed }) => !isClosed).length;
  const come = async (count: number, from: (n: number) => string) => {
    for (let n = 0; n < count; n++)
      peers.push((await RawPeer.connect(one.engine.port, from(n))).handshake(PAYLOAD.infohash));
  };
  await come(10, () => "127.0.1.1");
  await until("six of ten are left", () => open() === 6);
  await come(30, (n) => `127.0.2.${n + 1}`);
  await until("three quarters of twenty are left", () => open() === 15);
  for (const peer of peers) peer[Symbol.dispose]();
});

test("of a peer that asks, takes back and never reads, no more is remembered than may wait", async () => {
  const asked = { piece: 0, offset: 0, length: 16_384 };
  const state = { buffered: 1024 * 1024 };
  const wire = Object.assign(new EventEmitter(), { _readableState: state, peerRequests: [asked] });
  let reads = 0;
  new Serving(wire as unknown as Wire, { size: 16_384, pieceBytes: 16_384, pieces: 1 }, async () => {
    reads++;
    return new Uint8Array(16_384);
  });
  for (let n = 0; n < 5_000; n++) wire.emit("request", 0, 0, 16_384, () => {});
  state.buffered = 0;
  (wire as unknown as { _read(done: () => void): void })._read(() => {});
  await until("it reads", () => reads > 0);
  await Bun.sleep(50);
  expect(reads).toBeLessThanOrEqual(513);
});

test.each([
  ["198.51.100.7:6881", "192.0.2.9:6881", true],
  ["198.51.100.7:6881", "127.0.0.1:6881", false],
  ["127.0.0.1:6881", "127.0.0.1:6882", true],
  ["198.51.100.7:6881", "192.0.2.9:25", false],
])("%s says that %s takes part, and whether it is met is %p", (teller, told, isMet) => {
  const met: string[] = [];
  const drop = () => {};
  const exchange = peerExchange({ known: () => [], meet: (_infohash, address) => void met.push(address) });
  const peer = { infohash: PAYLOAD.infohash, address: teller, send: () => true, drop };
  exchange.open(peer).message(encodePeers([told], []));
  expect(met).toEqual(isMet ? [told] : []);
});

test("a peer that says nothing is let go", async () => {
  await using one = await node({ limits: { idleMs: 300 } });
  one.share(PAYLOAD, ALL);
  using peer = await RawPeer.connect(one.engine.port);
  peer.handshake(PAYLOAD.infohash);
  const drip = setInterval(() => peer.raw(Buffer.alloc(4)), 50);
  await until("it is closed", () => peer.isClosed);
  clearInterval(drip);
  expect(one.told).toContainEqual(expect.objectContaining({ kind: "dropped", why: "it had nothing to say" }));
});

test("nobody connects whom the node does not welcome", async () => {
  await using one = await node({ isWelcome: (ip) => ip !== "127.0.0.7" });
  one.share(PAYLOAD, ALL);
  using stranger = await RawPeer.connect(one.engine.port, "127.0.0.7");
  using guest = await RawPeer.connect(one.engine.port, "127.0.0.8");
  guest.handshake(PAYLOAD.infohash);
  await until("one is closed", () => stranger.isClosed);
  await until("the other is answered", () => guest.handshaken);
});

test.each([
  ["the end is missing", ""],
  ["a length is broken", "l-3:"],
  ["a length is broken", "-3:abc"],
  ["5 bytes are announced, 3 are there", "5:abc"],
  ["a length is broken", "99999999999999999999:"],
  ["the end is missing", "d"],
  ["an integer is broken", "i1"],
  ["an integer is broken", "i-e"],
  ["an integer is broken", "i1.5e"],
  ["a key without a value", "d1:ae"],
  ["a key that is no string", "di1ei2ee"],
  ["3 bytes after the end", "i1ei2e"],
  ["a length is broken", "e"],
  ["nested deeper than 16", "l".repeat(17)],
  ["more than 65536 values", `l${"0:".repeat(70_000)}e`],
])("bencode in which %s never reaches a library", (why, text) => {
  expect(() => scanBencode(Buffer.from(text))).toThrow(why);
});

test.each(["i-1e", "d1:bi1e1:ai2ee", "d1:ai1e1:ai2ee", "i007e", "le", "0:"])(
  "%p of another client does",
  (text) => scanBencode(Buffer.from(text)),
);

test("no mutation that is let through makes the library throw or hang", async () => {
  const { default: bencode } = await import("bencode");
  const random = seeded(7);
  const seeds = [
    encodeBencode({ m: { ut_pex: 1, ut_metadata: 2 }, p: 6881, reqq: 250, v: "x" }),
    Buffer.from("d1:ad2:id20:aaaaaaaaaaaaaaaaaaaae1:q4:ping1:t2:aa1:y1:qe"),
  ];
  for (let n = 0; n < Number(process.env.FRUIT_FUZZ ?? 5_000); n++) {
    const bytes = mutated(seeds[n % seeds.length] ?? Buffer.alloc(0), random);
    let isSound = true;
    try {
      scanBencode(bytes);
    } catch {
      isSound = false;
    }
    if (isSound) bencode.decode(bytes);
    else expect(() => bencode.decode(bytes)).toThrow();
  }
});
