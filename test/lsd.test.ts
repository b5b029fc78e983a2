/** What nodes tell each other on the LAN: peers (BEP 14), and heads. FRUIT_FUZZ=1000000 for more mutations. */
import { describe, expect, test } from "bun:test";
import { networkInterfaces } from "node:os";
import { addressOf } from "../agent/swarm/address.ts";
import { type Beacon, type BeaconOptions, openBeacon } from "../agent/swarm/beacon.ts";
import { encodeItem, type Item, readItem, targetOf } from "../agent/swarm/item.ts";
import { type Lsd, type LsdOptions, openLsd, readLsd, writeLsd } from "../agent/swarm/lsd.ts";
import { type Group, openMulticast } from "../agent/swarm/multicast.ts";
import { freePort, idOf, signedItem, stranger } from "./dhts.ts";
import { seeded } from "./fakes.ts";
import { mutated } from "./mutations.ts";
import { until } from "./node.ts";

const ROUNDS = Number(process.env.FRUIT_FUZZ ?? 5_000);
const INFOHASH = idOf("release").toString("hex");
const FROM = addressOf("192.0.2.7", 6771)!;
const V6 = Object.entries(networkInterfaces()).find(([, all = []]) =>
  all.some(({ family, internal }) => family === "IPv6" && !internal),
)?.[0];

/** A group of this test alone, on the loopback interface. */
const group = async (): Promise<Group> => ({ v4: "239.192.70.99", port: await freePort() });

const fails = (text: string) => {
  throw new Error(text);
};

const lsd = (of: Group, options: Partial<LsdOptions> = {}): Promise<Lsd> =>
  openLsd({ group: of, interfaces: ["lo"], everyMs: 100, tell: fails, ...options });

async function beacon(
  of: Group,
  options: Partial<BeaconOptions> = {},
): Promise<Beacon & { heardOf: bigint[] }> {
  const heardOf: bigint[] = [];
  const one = await openBeacon({
    group: of,
    interfaces: ["lo"],
    everyMs: 60_000,
    heard: ({ seq }) => heardOf.push(seq),
    tell: fails,
    ...options,
  });
  return Object.assign(one, { heardOf });
}

/** Runs a finder until the test is over; what it meets. */
function run(finder: Lsd["finder"], port: number, infohash = INFOHASH): AsyncDisposable & { met: string[] } {
  const [met, stop] = [[] as string[], new AbortController()];
  const running = finder({ infohash, port, meet: (address) => met.push(address) }, stop.signal);
  return {
    met,
    async [Symbol.asyncDispose]() {
      stop.abort();
      await running;
    },
  };
}

const HEAD = "BT-SEARCH * HTTP/1.1\r\n";
const REST = `Host: 239.192.152.143:6771\r\nPort: 6881\r\nInfohash: ${INFOHASH}\r\n`;

/** Messages that have stopped other programs, and the one of BEP 14. */
const SEEDS = [
  `${HEAD}${REST}cookie: abc\r\n\r\n\r\n`,
  `${HEAD}${REST}Infohash: ${INFOHASH.toUpperCase()}\r\n\r\n`,
  "BT-SEARCH * HTTP/1.1",
  "BT-SEARCH * HTTP/1.1\r\n\r\n\r\n",
  `${HEAD}Host\r\nPort\r\nInfohash\r\n\r\n\r\n`,
  `${HEAD}${REST}`,
  "l-3:",
  "",
];

describe("messages of BEP 14", () => {
  test("what is written is read", () => {
    const message = { port: 6881, infohashes: [INFOHASH, "ab".repeat(20)], cookie: "c00c1e" };
    expect(readLsd(writeLsd(message, "239.192.152.143:6771"))).toEqual(message);
    expect(
      writeLsd({ port: 1, infohashes: [INFOHASH], cookie: "x" }, "239.192.152.143:6771").toString(),
    ).toBe(
      `BT-SEARCH * HTTP/1.1\r\nHost: 239.192.152.143:6771\r\nPort: 1\r\nInfohash: ${INFOHASH}\r\ncookie: x\r\n\r\n\r\n`,
    );
  });

  test("as other programs write it: any case, no cookie, lines of theirs", () => {
    const text = `${HEAD}host: x\r\nPORT: 6881\r\nX-Other: yes\r\ninfohash: ${INFOHASH.toUpperCase()}\r\n\r\n\r\n`;
    expect(readLsd(Buffer.from(text))).toEqual({ port: 6881, infohashes: [INFOHASH], cookie: undefined });
  });

  test.each([
    ...SEEDS.slice(2),
    `GET / HTTP/1.1\r\n${REST}\r\n\r\n`,
    `${HEAD}${REST.replace("6881", "0")}\r\n\r\n`,
    `${HEAD}${REST.replace("6881", "65536")}\r\n\r\n`,
    `${HEAD}${REST.replace("6881", "-1")}\r\n\r\n`,
    `${HEAD}${REST.replace("6881", "6881x")}\r\n\r\n`,
    `${HEAD}${REST}Port: 6882\r\n\r\n\r\n`,
    `${HEAD}${REST.replace(INFOHASH, INFOHASH.slice(1))}\r\n\r\n`,
    `${HEAD}${REST.replace(INFOHASH, `${INFOHASH.slice(1)}g`)}\r\n\r\n`,
    `${HEAD}Host: x\r\nPort: 6881\r\n\r\n\r\n`,
    `${HEAD}${REST}cookie: ${"c".repeat(65)}\r\n\r\n\r\n`,
    `${HEAD}${REST}X: ${"c".repeat(101)}\r\n\r\n\r\n`,
    `${HEAD}${REST}X: \x00\r\n\r\n\r\n`,
    `${HEAD}${REST}${"X: y\r\n".repeat(40)}\r\n\r\n`,
    `${HEAD}Host: x\r\nPort: 1\r\n${`Infohash: ${INFOHASH}\r\n`.repeat(21)}\r\n\r\n`,
    `${HEAD}${REST}\r\n\r\n${"x".repeat(1400)}`,
  ])("%p is none", (text) => {
    expect(readLsd(Buffer.from(text, "latin1"))).toBeUndefined();
  });

  test(
    `mutated messages are read as what can be written, or passed over (${ROUNDS})`,
    () => {
      const random = seeded(0x15d);
      let read = 0;
      for (let round = 0; round < ROUNDS; round++) {
        const seed = Buffer.from(SEEDS[Math.floor(random() * SEEDS.length)] ?? "", "latin1");
        const message = readLsd(
          mutated(
            seed,
            random,
            ["\r\n", ": ", "Port: ", "Infohash: "].map((text) => Buffer.from(text)),
          ),
        );
        if (!message) continue;
        read++;
        expect(readLsd(writeLsd(message, "x"))).toEqual(message);
      }
      expect(read).toBeGreaterThan(ROUNDS / 100);
    },
    30_000 + ROUNDS,
  );
});

describe("peers on the LAN", () => {
  test("two find each other, and neither itself", async () => {
    const ours = await group();
    await using one = await lsd(ours);
    await using two = await lsd(ours);
    await using first = run(one.finder, 7001);
    await using second = run(two.finder, 7002);
    await until("both met", () => first.met.length > 0 && second.met.length > 0);
    expect(new Set(first.met)).toEqual(new Set(["127.0.0.1:7002"]));
    expect(new Set(second.met)).toEqual(new Set(["127.0.0.1:7001"]));
  });

  test.skipIf(!V6)(`over IPv6 too${V6 ? "" : " [needs: an interface with IPv6]"}`, async () => {
    const ours = { v6: "ff15::efc0:4699", port: await freePort() };
    await using one = await lsd(ours, { interfaces: [V6 ?? ""] });
    await using two = await lsd(ours, { interfaces: [V6 ?? ""] });
    await using first = run(one.finder, 7001);
    await using second = run(two.finder, 7002);
    await until("both met", () => first.met.length > 0 && second.met.length > 0);
    expect(first.met[0]).toMatch(/^\[[0-9a-f:]+\]:7002$/);
  });

  test("who has another torrent is not met, and is told as a neighbour", async () => {
    const ours = await group();
    const neighbours: string[] = [];
    await using one = await lsd(ours, { peer: (address) => neighbours.push(address) });
    await using two = await lsd(ours);
    await using first = run(one.finder, 7001);
    await using _ = run(two.finder, 7002, "ab".repeat(20));
    await until("heard", () => neighbours.includes("127.0.0.1:7002"));
    expect(first.met).toEqual([]);
  });

  test("many torrents go into several messages, each of one datagram", async () => {
    const ours = await group();
    const lengths: number[] = [];
    using _ = await openMulticast({
      group: ours,
      interfaces: ["lo"],
      received: (bytes) => lengths.push(bytes.length),
    });
    await using one = await lsd(ours);
    await using two = await lsd(ours);
    const [met, stop] = [new Set<number>(), new AbortController()];
    const all = Array.from({ length: 45 }, (_, n) => idOf(`${n}`).toString("hex"));
    const running = all.flatMap((infohash, n) => [
      one.finder({ infohash, port: 7001, meet: () => undefined }, stop.signal),
      two.finder(
        { infohash, port: 7002, meet: (address) => address === "127.0.0.1:7001" && met.add(n) },
        stop.signal,
      ),
    ]);
    await until("all were met", () => met.size === 45);
    stop.abort();
    await Promise.all(running);
    expect(Math.max(...lengths)).toBeLessThanOrEqual(1400);
  });

  test("a flood from one source is cut, what is no message is counted and no more", async () => {
    const ours = await group();
    await using one = await lsd(ours);
    await using first = run(one.finder, 7001);
    for (let n = 0; n < 1000; n++) one.received(Buffer.from(SEEDS[n % SEEDS.length] ?? ""), FROM);
    expect(one.counts.limited).toBeGreaterThan(900);
    expect(first.met.length).toBeLessThan(20);
    one.received(writeLsd({ port: 7009, infohashes: [INFOHASH] }, "x"), addressOf("192.0.2.8", 6771)!);
    expect(first.met).toContain("192.0.2.8:7009");
  });

  test("ports below 1024 and this machine's own are nobody's to tell", async () => {
    await using one = await lsd(await group());
    await using first = run(one.finder, 7001);
    one.received(writeLsd({ port: 22, infohashes: [INFOHASH] }, "x"), FROM);
    expect(first.met).toEqual([]);
  });

  test("what is sent to this node alone does not come in by the group's port", async () => {
    const ours = await group();
    await using one = await lsd(ours);
    using other = await stranger();
    await other.send(ours.port, writeLsd({ port: 7009, infohashes: [INFOHASH] }, "x"));
    await using two = await lsd(ours);
    await using _ = run(two.finder, 7002);
    await until("the group works", () => one.counts.received > 0);
    expect(one.counts.malformed).toBe(0);
    await using first = run(one.finder, 7001);
    await until("the other is met", () => first.met.length > 0);
    expect(first.met).not.toContain("127.0.0.1:7009");
  });

  test("a machine without the group says so", async () => {
    await expect(openLsd({ group: { v4: "192.0.2.99", port: 0 }, tell: fails })).rejects.toThrow(
      "no group on port 0",
    );
  });
});

describe("heads on the LAN", () => {
  const follow = (one: Beacon, item: Item) => one.follow(item.k, item.salt);

  test("a better head goes through the LAN at once, each handing on only what it made its own", async () => {
    const ours = await group();
    await using one = await beacon(ours);
    await using two = await beacon(ours);
    await using three = await beacon(ours);
    for (const each of [one, two, three]) follow(each, signedItem());
    await one.hold(signedItem({ seq: 3n }));
    await until("heard", () => two.heardOf.length > 0 && three.heardOf.length > 0);
    await two.hold(signedItem({ seq: 3n }));
    await one.hold(signedItem({ seq: 3n }));
    await one.hold(signedItem({ seq: 2n }));
    expect([one.counts.said, two.counts.said, three.counts.said]).toEqual([1, 1, 0]);
    expect([one.heardOf, two.heardOf, three.heardOf]).toEqual([[], [3n], [3n]]);
  });

  test("who says an old head is answered, so who was away catches up", async () => {
    const ours = await group();
    await using one = await beacon(ours);
    follow(one, signedItem());
    await one.hold(signedItem({ seq: 3n }));
    await using late = await beacon(ours);
    follow(late, signedItem());
    await late.hold(signedItem({ seq: 2n }));
    await until("told", () => late.heardOf.includes(3n));
    for (let n = 0; n < 100; n++) one.received(encodeItem(signedItem({ seq: 1n })), FROM);
    expect(one.counts.said).toBeLessThan(12);
  });

  test("it is said again now and then, for who comes later", async () => {
    const ours = await group();
    await using one = await beacon(ours, { everyMs: 50 });
    await one.hold(signedItem({ seq: 3n }));
    await using late = await beacon(ours);
    follow(late, signedItem());
    await until("heard", () => late.heardOf.includes(3n));
  });

  test("for an equal number the later issue is better", async () => {
    await using one = await beacon(await group());
    follow(one, signedItem());
    for (const issued of [5n, 4n, 6n]) one.received(encodeItem(signedItem({ seq: 3n, issued })), FROM);
    expect(one.counts).toMatchObject({ checked: 2, old: 1 });
  });

  test("what was passed over because nobody wanted it is heard when somebody does", async () => {
    await using one = await beacon(await group());
    const item = signedItem();
    one.received(encodeItem(item), FROM);
    expect(one.counts.unwanted).toBe(1);
    follow(one, item);
    one.received(encodeItem(item), FROM);
    expect(one.heardOf).toEqual([1n]);
  });

  test("a flood costs few looks and fewer signatures, and a neighbour is still heard", async () => {
    await using one = await beacon(await group());
    const item = signedItem();
    follow(one, item);
    const forged = (n: number) => encodeItem({ ...item, seq: BigInt(n + 10) });
    for (let n = 0; n < 5000; n++) one.received(forged(n % 50), FROM);
    expect(one.counts.checked).toBeLessThanOrEqual(5);
    expect(one.counts.limited).toBeGreaterThan(4900);
    one.received(Buffer.alloc(1301, "l"), addressOf("192.0.2.8", 1)!);
    one.received(encodeItem(item), addressOf("192.0.2.8", 1)!);
    expect(one.heardOf).toEqual([1n]);
  });

  test("a forged head that is repeated costs one signature", async () => {
    await using one = await beacon(await group());
    const item = signedItem();
    follow(one, item);
    for (let n = 0; n < 15; n++) one.received(encodeItem({ ...item, seq: 9n }), FROM);
    expect(one.counts).toMatchObject({ checked: 1, unsigned: 1, seen: 14 });
    expect(one.heardOf).toEqual([]);
  });

  test(
    `mutated heads are never heard, and nothing is thrown (${ROUNDS})`,
    async () => {
      await using one = await beacon(await group());
      const item = signedItem();
      follow(one, item);
      const random = seeded(0xbea);
      const seeds = [
        encodeItem(item),
        Buffer.from("l-3:"),
        Buffer.from(`${"l".repeat(900)}`),
        Buffer.from("d1:k32:"),
      ];
      const host = (n: number) => addressOf(`10.${n >> 16}.${(n >> 8) & 255}.${n & 255}`, 1)!;
      for (let round = 0; round < ROUNDS; round++) {
        const bytes = mutated(seeds[Math.floor(random() * seeds.length)] ?? item.v, random, [
          Buffer.from("i1e"),
          Buffer.from("-"),
        ]);
        if (!Buffer.from(bytes).equals(encodeItem(item))) one.received(bytes, host(round));
      }
      expect(one.heardOf).toEqual([]);
      expect(one.counts.received).toBeGreaterThan(ROUNDS / 2);
    },
    30_000 + ROUNDS,
  );

  test("the longest head is one datagram and comes through", async () => {
    const ours = await group();
    const longest = signedItem({ salt: "s".repeat(64), seq: 2n ** 63n - 1n, value: "v".repeat(996) });
    await using one = await beacon(ours);
    await using two = await beacon(ours);
    follow(two, longest);
    await one.hold(longest);
    await until("heard", () => two.heardOf.length === 1);
    expect(targetOf(readItem(encodeItem(longest)))).toBe(targetOf(longest));
  });
});
