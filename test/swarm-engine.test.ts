/** The swarm engine, engine to engine: what is fetched, from whom, and that nothing a keep or a peer does ends it. */
import { expect, test } from "bun:test";
import { LEAF_BYTES } from "../boot/content.ts";
import { until } from "./node.ts";
import { ALL, node, whole } from "./swarm/nodes.ts";
import { payload } from "./swarm/payload.ts";
import { RawPeer, SAYS } from "./swarm/peer.ts";

const KIB = 1024;
/** 32 pieces of 16 leaves, and a short one. */
const PAYLOAD = payload(8 * KIB * KIB + 20_000, 256 * KIB);
const LEAVES = Math.ceil(PAYLOAD.bytes.length / LEAF_BYTES);

test("a payload with a short last piece and leaf goes from one node to another", async () => {
  await using from = await node();
  await using to = await node();
  from.share(PAYLOAD, ALL);
  const { member, keep } = to.share(PAYLOAD);
  member.meet(`127.0.0.1:${from.engine.port}`);
  await whole(member);
  expect(keep.bytes.equals(PAYLOAD.bytes)).toBe(true);
  expect(keep.puts).toBe(33);
  expect(member.status()).toMatchObject({ piecesThere: 33, down: PAYLOAD.bytes.length, wasted: 0 });
});

test("only leaves that are not there are asked for", async () => {
  await using from = await node();
  await using to = await node();
  from.share(PAYLOAD, ALL);
  // Two of three are there: no piece is whole, none is empty
  const { member, keep } = to.share(PAYLOAD, (leaf) => leaf % 3 !== 0);
  member.meet(`127.0.0.1:${from.engine.port}`);
  await whole(member);
  expect(keep.bytes.equals(PAYLOAD.bytes)).toBe(true);
  expect(member.status().down).toBeLessThanOrEqual(Math.ceil(LEAVES / 3) * LEAF_BYTES);
});

test("leaves that come from elsewhere meanwhile are not fetched, and passed on", async () => {
  await using from = await node();
  await using to = await node();
  await using third = await node();
  from.share(PAYLOAD, ALL);
  from.engine.limit({ up: 2 * KIB * KIB });
  const { member, keep } = to.share(PAYLOAD);
  const late = third.share(PAYLOAD);
  member.meet(`127.0.0.1:${from.engine.port}`);
  late.member.meet(`127.0.0.1:${to.engine.port}`);
  await until("something came", () => member.status().down > 0);
  for (let leaf = 0; leaf < LEAVES - 1; leaf++) {
    if (keep.has(leaf)) continue;
    keep.give(leaf);
    member.gained([leaf]);
  }
  await whole(member);
  await whole(late.member);
  expect(member.status().down).toBeLessThan(PAYLOAD.bytes.length / 2);
  expect(late.keep.bytes.equals(PAYLOAD.bytes)).toBe(true);
});

test("a node goes on where it stopped", async () => {
  await using from = await node();
  from.share(PAYLOAD, ALL);
  from.engine.limit({ up: 8 * KIB * KIB });
  let had: (leaf: number) => boolean = () => false;
  {
    await using first = await node();
    const { member, keep } = first.share(PAYLOAD);
    member.meet(`127.0.0.1:${from.engine.port}`);
    await until("a fourth came", () => member.status().piecesThere > 8);
    had = (leaf) => keep.has(leaf);
  }
  from.engine.limit({});
  const before = Array.from({ length: LEAVES }, (_, leaf) => had(leaf)).filter(Boolean).length;
  await using second = await node();
  const { member, keep } = second.share(PAYLOAD, had);
  member.meet(`127.0.0.1:${from.engine.port}`);
  await whole(member);
  expect(keep.bytes.equals(PAYLOAD.bytes)).toBe(true);
  expect(member.status().down).toBeLessThanOrEqual((LEAVES - before) * LEAF_BYTES);
});

test("several payloads go both ways over one port at once", async () => {
  const other = payload(3 * KIB * KIB, 64 * KIB, 2);
  await using a = await node();
  await using b = await node();
  const at = [a.share(PAYLOAD, ALL), a.share(other)] as const;
  const bt = [b.share(PAYLOAD), b.share(other, ALL)] as const;
  at[1].member.meet(`127.0.0.1:${b.engine.port}`);
  bt[0].member.meet(`127.0.0.1:${a.engine.port}`);
  await Promise.all([whole(at[1].member), whole(bt[0].member)]);
  expect(bt[0].keep.bytes.equals(PAYLOAD.bytes)).toBe(true);
  expect(at[1].keep.bytes.equals(other.bytes)).toBe(true);
});

test("a keep that fails is told of and asked again; nothing is fetched twice", async () => {
  await using from = await node();
  await using to = await node();
  const source = from.share(PAYLOAD, ALL);
  source.keep.failure = new Error("EIO: bad sector");
  const { member, keep } = to.share(PAYLOAD);
  keep.failure = new Error("ENOSPC: no room");
  member.meet(`127.0.0.1:${from.engine.port}`);
  await until("the seed cannot read", () => source.member.status().trouble?.includes("bad sector"));
  source.keep.failure = undefined;
  await until("the node cannot write", () => member.status().trouble === "ENOSPC: no room");
  keep.failure = undefined;
  await whole(member);
  expect(keep.bytes.equals(PAYLOAD.bytes)).toBe(true);
  expect(member.status()).toMatchObject({ down: PAYLOAD.bytes.length, wasted: 0 });
  expect(to.told.filter(({ kind }) => kind === "trouble").length).toBeLessThan(4);
});

test("a first seed sends each piece about once", async () => {
  await using first = await node();
  const nodes = await Promise.all([node(), node(), node(), node()]);
  const { member } = first.share(PAYLOAD, ALL, true);
  first.engine.limit({ up: 4 * KIB * KIB });
  const others = nodes.map((one) => {
    one.engine.limit({ up: 4 * KIB * KIB });
    return one.share(PAYLOAD);
  });
  for (const [n, one] of others.entries()) {
    one.member.meet(`127.0.0.1:${first.engine.port}`);
    for (const other of nodes.slice(n + 1)) one.member.meet(`127.0.0.1:${other.engine.port}`);
  }
  await Promise.all(others.map((one) => whole(one.member)));
  expect(member.status().up / PAYLOAD.bytes.length).toBeLessThan(1.4);
  await Promise.all(nodes.map((one) => one[Symbol.asyncDispose]()));
}, 30_000);

test("peers that take nothing do not keep a first seed from giving", async () => {
  await using first = await node();
  await using to = await node();
  first.share(PAYLOAD, ALL, true);
  const idle = await Promise.all(
    [1, 2, 3].map((n) => RawPeer.connect(first.engine.port, `127.0.0.${n + 1}`)),
  );
  for (const peer of idle) peer.handshake(PAYLOAD.infohash).say(SAYS.haveNone);
  await until("they are shown pieces", () =>
    idle.every(({ heard }) => heard.some(({ id }) => id === SAYS.have)),
  );
  const { member, keep } = to.share(PAYLOAD);
  const from = performance.now();
  member.meet(`127.0.0.1:${first.engine.port}`);
  await whole(member);
  // Three pieces each second and a half, if it waited for the others
  expect(performance.now() - from).toBeLessThan(12_000);
  expect(keep.bytes.equals(PAYLOAD.bytes)).toBe(true);
  for (const peer of idle) peer[Symbol.dispose]();
}, 30_000);

test("two nodes that dial each other keep one connection, and none to themselves", async () => {
  await using a = await node();
  await using b = await node();
  const one = a.engine.join(PAYLOAD.infohash);
  const two = b.engine.join(PAYLOAD.infohash);
  const address = (port: number) => `127.0.0.1:${port}`;
  one.meet(address(b.engine.port));
  two.meet(address(a.engine.port));
  // Its own port under another of its addresses
  one.meet(`127.0.0.2:${a.engine.port}`);
  await until(
    "they know each other",
    () => one.status().peers.length === 1 && two.status().peers.length === 1,
  );
  await until("it met itself", () =>
    a.told.some((event) => event.kind === "dropped" && event.why === "that is this node itself"),
  );
  await Bun.sleep(300);
  expect([one.status().peers.length, two.status().peers.length]).toEqual([1, 1]);
});

test("a node that was told of one peer finds the others through it", async () => {
  await using a = await node();
  await using b = await node();
  await using c = await node();
  const [one, two, three] = [a, b, c].map(({ engine }) => engine.join(PAYLOAD.infohash));
  two?.meet(`127.0.0.1:${a.engine.port}`);
  three?.meet(`127.0.0.1:${a.engine.port}`);
  await until("all know all", () => [one, two, three].every((member) => member?.status().peers.length === 2));
});

test("an update file of another payload, or none, is refused", async () => {
  await using one = await node();
  const member = one.engine.join(PAYLOAD.infohash);
  const other = payload(100_000, 64 * KIB, 3);
  expect(() => member.begin(other.update, one.share(other).keep)).toThrow(other.infohash);
  expect(() => member.begin(Buffer.from("i1e"), one.share(payload(1, 16_384, 4)).keep)).toThrow(
    "without info",
  );
  expect(member.status().phase).toBe("waiting");
});

test("a seed does not answer a peer faster than it reads", async () => {
  await using from = await node();
  const { keep } = from.share(PAYLOAD, ALL);
  let reads = 0;
  const get = keep.get.bind(keep);
  keep.get = (at, length) => {
    reads++;
    return get(at, length);
  };
  using peer = await RawPeer.connect(from.engine.port);
  peer.handshake(PAYLOAD.infohash).say(SAYS.interested);
  await until("it may ask", () => peer.heard.some(({ id }) => id === SAYS.unchoke));
  peer.socket.pause();
  const ask = Buffer.alloc(17);
  for (let n = 0; n < 250; n++) {
    ask.writeUInt32BE(13, 0);
    ask[4] = SAYS.request;
    ask.writeUInt32BE(Math.floor(n / 8), 5);
    ask.writeUInt32BE((n % 8) * 2 * LEAF_BYTES, 9);
    ask.writeUInt32BE(2 * LEAF_BYTES, 13);
    peer.raw(Buffer.from(ask));
  }
  await until("it reads", () => reads > 0);
  await Bun.sleep(300);
  const held = reads;
  // The rest lies in the kernel's buffers of this machine: 8 MB were asked for
  expect(held).toBeLessThan(240);
  peer.socket.resume();
  await until("all is answered", () => peer.heard.filter(({ id }) => id === SAYS.piece).length === 250);
});
