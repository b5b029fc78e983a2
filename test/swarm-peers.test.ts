/** Whom bytes come from: liars and what they cost, near peers and what is left for far ones. */
import { expect, test } from "bun:test";
import { Bans } from "../agent/swarm/bans.ts";
import { Fetch } from "../agent/swarm/fetch.ts";
import { networksOf } from "../agent/swarm/near.ts";
import { LEAF_BYTES } from "../boot/content.ts";
import { until } from "./node.ts";
import { ALL, node, whole } from "./swarm/nodes.ts";
import { MemoryKeep, payload } from "./swarm/payload.ts";
import { listen, SAYS, seed, spoilt } from "./swarm/peer.ts";

const KIB = 1024;
/** 32 pieces of 16 leaves, and a short one. */
const PAYLOAD = payload(8 * KIB * KIB + 20_000, 256 * KIB);
const LEAVES = Math.ceil(PAYLOAD.bytes.length / LEAF_BYTES);

/** A liar at 127.0.0.66 beside an honest seed, and how it ends. */
async function besideLiar(answer: Parameters<typeof seed>[2]) {
  await using from = await node();
  await using to = await node();
  await using liar = await listen("127.0.0.66", (peer) => seed(peer, PAYLOAD, answer));
  from.share(PAYLOAD, ALL);
  from.engine.limit({ up: 6 * KIB * KIB });
  const { member, keep } = to.share(PAYLOAD);
  member.meet(liar.address);
  await until("the liar is connected", () => to.told.some(({ kind }) => kind === "connected"));
  member.meet(`127.0.0.1:${from.engine.port}`);
  await whole(member);
  expect(keep.bytes.equals(PAYLOAD.bytes)).toBe(true);
  member.meet(liar.address);
  await Bun.sleep(100);
  return {
    to,
    wasted: member.status().wasted,
    addresses: member.status().peers.map(({ address }) => address),
    liar: liar.address,
  };
}

test("a peer that sends only wrong blocks costs a piece and is kept away", async () => {
  const { to, wasted, addresses, liar } = await besideLiar((_piece, _offset, right) => spoilt(right));
  expect(wasted).toBeLessThanOrEqual(PAYLOAD.pieceBytes);
  expect(to.told).toContainEqual(expect.objectContaining({ kind: "banned", address: liar, seconds: 600 }));
  expect(addresses).not.toContain(liar);
});

test.each([5, 12])("a peer that turns to lying after %d right pieces costs two at most", async (pieces) => {
  let asked = 0;
  const { to, wasted, liar } = await besideLiar((_piece, _offset, right) =>
    ++asked > pieces * 16 ? spoilt(right) : right,
  );
  expect(wasted).toBeGreaterThan(0);
  expect(wasted).toBeLessThanOrEqual(2 * PAYLOAD.pieceBytes);
  expect(to.told).toContainEqual(expect.objectContaining({ kind: "banned", address: liar }));
});

test.each([
  [0, 1],
  [100_000, 2],
])(
  "of a fast peer that gave %d right leaves, no more than %d of its pieces are waited for",
  (right, most) => {
    const shape = { size: PAYLOAD.bytes.length, pieceBytes: PAYLOAD.pieceBytes, pieces: 33 };
    const nothing = () => {};
    const events = { complete: nothing, wrong: nothing, trouble: nothing, freed: nothing };
    const fetch = new Fetch(shape, new MemoryKeep(PAYLOAD), events, new AbortController().signal);
    const asked: number[] = [];
    let has = Array.from({ length: 32 }, (_, piece) => piece);
    const peer = {
      ...{
        address: "192.0.2.1:6881",
        isChoking: false,
        isNear: false,
        rate: 1e9,
        maxAsked: 1e9,
        right,
        restsUntil: 0,
      },
      has: (piece: number) => has.includes(piece),
      get asked() {
        return asked.length;
      },
      ask: (piece: number) => void asked.push(piece),
      cancel: nothing,
    };
    fetch.fill(peer);
    // Nor of one that then says it has others than those it was asked for
    has = has.filter((piece) => !asked.includes(piece));
    fetch.fill(peer);
    expect([new Set(asked).size, asked.length]).toEqual([most, most * 16]);
  },
);

test("of a piece with one wrong block the others stay, and only the one who sent it is blamed", async () => {
  const { to, wasted } = await besideLiar((_piece, offset, right) =>
    offset === 5 * LEAF_BYTES ? spoilt(right) : right,
  );
  const wrong = to.told.filter((event) => event.kind === "wrong");
  expect(wrong.length).toBe(1);
  expect(wasted).toBe(LEAF_BYTES);
  expect(to.told.filter((event) => event.kind === "banned").length).toBe(1);
});

test("bans double, end, and are forgotten after a day", () => {
  let now = 0;
  const bans = new Bans(() => now);
  expect(bans.ban("192.0.2.1", "aa")).toBe(600);
  expect([bans.isBanned("192.0.2.1"), bans.isBanned("192.0.2.2"), bans.isBanned("192.0.2.2", "aa")]).toEqual([
    true,
    false,
    true,
  ]);
  now = 600_001;
  expect(bans.isBanned("192.0.2.1", "aa")).toBe(false);
  expect(bans.ban("192.0.2.1", "aa")).toBe(1_200);
  now += 90_000_000;
  expect(bans.ban("::ffff:192.0.2.1", "aa")).toBe(600);
  expect(bans.ban("2001:db8:0:1::5", "bb")).toBe(600);
  expect([bans.isBanned("2001:db8::1:9:8:7:6"), bans.isBanned("2001:db8:0:2::5")]).toEqual([true, false]);
  for (let n = 0; n < 600; n++) bans.ban(`198.51.${n >> 8}.${n & 255}`, null);
  expect(bans.isBanned("2001:db8:0:1::5")).toBe(false);
});

test("while a near peer gives, far ones are asked for little; when it is gone, for the rest", async () => {
  await using to = await node({ isNear: (ip) => ip === "127.0.0.9" });
  const { member, keep } = to.share(PAYLOAD);
  let given = 0;
  await using near = await listen("127.0.0.9", (peer) => {
    seed(peer, PAYLOAD);
    const { on } = peer;
    let at = 0;
    peer.on = (id, body) => {
      if (id !== SAYS.request) return on(id, body);
      // 8 MB/s, and it goes after three quarters
      at = Math.max(at + 2, performance.now());
      setTimeout(
        () => (++given > 0.75 * LEAVES ? peer.socket.destroy() : on(id, body)),
        Math.max(0, at - performance.now()),
      );
    };
  });
  let asked = 0;
  let askedMeanwhile = 0;
  await using far = await listen("127.0.0.10", (peer) =>
    seed(peer, PAYLOAD, (_piece, _offset, right) => {
      asked++;
      if (given <= 0.75 * LEAVES) askedMeanwhile++;
      return right;
    }),
  );
  member.meet(near.address);
  await until("it gives", () => member.status().downRate > 1_500_000 && member.status().piecesThere > 0);
  member.meet(far.address);
  await whole(member);
  expect(keep.bytes.equals(PAYLOAD.bytes)).toBe(true);
  expect(askedMeanwhile).toBeLessThan(LEAVES / 4);
  expect(asked).toBeGreaterThan(0);
}, 30_000);

test("near peers leave room for two far ones", async () => {
  const limits = { connections: 8, connectionsPerAddress: 8 };
  await using one = await node({ limits, isNear: (ip) => ip.startsWith("127.0.3.") });
  const { member } = one.share(PAYLOAD, ALL);
  await using open = new AsyncDisposableStack();
  const meet = async (ip: string) => {
    const peer = open.use(await listen(ip, (raw) => raw.handshake(PAYLOAD.infohash).say(SAYS.haveNone)));
    member.meet(peer.address);
  };
  for (let n = 1; n <= 10; n++) await meet(`127.0.3.${n}`);
  const connected = () => member.status().peers.map(({ address }) => address.startsWith("127.0.3."));
  await until("six near ones", () => connected().length === 6);
  await meet("127.0.4.1");
  await meet("127.0.4.2");
  await until("and two far ones", () => connected().filter((isNear) => !isNear).length === 2);
  expect(connected().length).toBe(8);
});

test("networks of the node's own are near", () => {
  const near = networksOf([
    { cidr: "192.168.7.20/24" },
    { cidr: "2001:db8:1::5/64" },
    { cidr: "10.0.0.1/0" },
    { cidr: null },
  ]);
  const is = (ip: string) => near.check(ip, ip.includes(":") ? "ipv6" : "ipv4");
  expect(["192.168.7.1", "192.168.8.1", "2001:db8:1::9", "2001:db8:2::9", "8.8.8.8"].map(is)).toEqual([
    true,
    false,
    true,
    false,
    false,
  ]);
});
