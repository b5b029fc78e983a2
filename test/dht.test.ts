/** The private DHT: what a node answers and keeps, and what many of them do together. */
import { describe, expect, test } from "bun:test";
import { addressOf } from "../agent/swarm/address.ts";
import { openDht } from "../agent/swarm/dht.ts";
import {
  compareItems,
  encodeItem,
  fieldsOf,
  type Item,
  isSigned,
  readItem,
  targetOf,
} from "../agent/swarm/item.ts";
import { type Message, readMessage } from "../agent/swarm/krpc.ts";
import { search } from "../agent/swarm/search.ts";
import { Shelf } from "../agent/swarm/shelf.ts";
import { compareDistance, Table } from "../agent/swarm/table.ts";
import { BencodeError, encodeBencode } from "../boot/bencode.ts";
import {
  freePort,
  gist,
  idOf,
  node,
  nodes,
  question,
  type Stranger,
  seedOf,
  signedItem,
  stranger,
} from "./dhts.ts";
import { seeded } from "./fakes.ts";
import { mutated } from "./mutations.ts";
import { until } from "./node.ts";

const ROUNDS = Number(process.env.FRUIT_FUZZ ?? 5_000);
const STABLE = Buffer.from("stable");
const VENDOR = Buffer.from(signedItem().k);

/** An answer with a token in it. */
async function token(of: Stranger, port: number, item: Item): Promise<Uint8Array> {
  const answer = await of.ask(port, question("get", { target: Buffer.from(targetOf(item), "hex") }));
  return answer?.kind === "reply" ? answer.values.bytes("token") : new Uint8Array();
}

async function put(
  of: Stranger,
  port: number,
  item: Item,
  more: Record<string, number | Uint8Array> = {},
): Promise<string> {
  const args = { ...fieldsOf(item), token: await token(of, port, item), ...more };
  return gist(await of.ask(port, question("put", args)));
}

describe("items", () => {
  test("the example of BEP 44 holds", () => {
    const item: Item = {
      k: Buffer.from("77ff84905a91936367c01360803104f92432fcd904a43511876df5cdf3e7e548", "hex"),
      salt: Buffer.from("foobar"),
      seq: 1n,
      sig: Buffer.from(
        "6834284b6b24c3204eb2fea824d82f88883a3d95e8b4a21b8c0ded553d17d17ddf9a8a7104b1258f30bed3787e6cb896fca78c58f8e03b5f18f14951a87d9a08",
        "hex",
      ),
      v: Buffer.from("12:Hello World!"),
    };
    expect(targetOf(item)).toBe("411eba73b6f087ca51a3795d9c8c938d365e32c1");
    expect(isSigned(item)).toBeTrue();
    expect(isSigned({ ...item, seq: 2n })).toBeFalse();
    expect(isSigned({ ...item, salt: Buffer.from("foobaz") })).toBeFalse();
  });

  test("an item is the same after it was written and read", () => {
    for (const item of [signedItem(), signedItem({ salt: "" }), signedItem({ seq: 2n ** 63n - 1n })])
      expect(readItem(encodeItem(item))).toEqual(item);
  });

  test.each([
    ["l-3:", 'byte 1: a value cannot begin with "-"'],
    ["d1:k1:ae", "item.seq is missing"],
    [encodeBencode({ ...fieldsOf(signedItem()), x: 1 }), 'item has the unknown key "x"'],
    [encodeBencode({ ...fieldsOf(signedItem()), seq: "1" }), "item.seq is no integer"],
    [
      encodeBencode({ ...fieldsOf(signedItem()), seq: 2n ** 63n }),
      "item.seq is 9223372036854775808; 2^63-1 is the highest",
    ],
    [encodeBencode({ ...fieldsOf(signedItem()), k: "short" }), "item.k has 5 bytes, not 32"],
    [encodeBencode({ ...fieldsOf(signedItem()), sig: 1 }), "item.sig is no string"],
    [
      encodeBencode({ ...fieldsOf(signedItem()), salt: "s".repeat(65) }),
      "item.salt has 65 bytes; at most 64",
    ],
    [encodeBencode({ ...fieldsOf(signedItem()), v: "v".repeat(997) }), "item.v has 1001 bytes; at most 1000"],
    [Buffer.alloc(1301), "1301 bytes; at most 1300 are read"],
  ])("%p is refused: %s", (bytes, why) => {
    expect(() => readItem(Buffer.from(bytes as string, "latin1"))).toThrow(why);
  });

  test("the higher number is better, then the later issue; what does not say when is the oldest", () => {
    const order = [
      signedItem({ seq: 1n, issued: 900n }),
      signedItem({ seq: 2n, value: "no dictionary" }),
      signedItem({ seq: 2n, issued: 5n }),
      signedItem({ seq: 2n, issued: 10n }),
      signedItem({ seq: 3n, value: { issued: "text" } }),
    ];
    for (const [a, first] of order.entries())
      for (const [b, second] of order.entries())
        expect(Math.sign(compareItems(first, second))).toBe(Math.sign(a - b));
  });

  test(
    `mutated items are read or refused, and their signatures judged, nothing else (${ROUNDS})`,
    () => {
      const random = seeded(0x17e3);
      const seeds = [signedItem(), signedItem({ salt: "", value: "x" })].map(encodeItem);
      let held = 0;
      for (let round = 0; round < ROUNDS; round++) {
        const bytes = mutated(seeds[Math.floor(random() * 2)] ?? Buffer.alloc(0), random, [
          Buffer.from("i1e"),
          Buffer.from("-"),
        ]);
        try {
          const item = readItem(bytes);
          if (isSigned(item)) held++;
          expect(encodeItem(item)).toEqual(Buffer.from(bytes));
        } catch (error) {
          if (!(error instanceof BencodeError))
            throw new Error(JSON.stringify(Buffer.from(bytes).toString("latin1")), { cause: error });
        }
      }
      expect(held).toBeLessThan(ROUNDS / 50);
    },
    30_000 + ROUNDS * 2,
  );
});

describe("the room for others' things", () => {
  const room = { entries: 10, ofGroup: 4, ofSource: 6, ageMs: 1000 };

  test("what is old is gone, what is put again stays", () => {
    let now = 0;
    const shelf = new Shelf<number>(room, () => now);
    shelf.put("a", { group: "g", source: "s" }, 1);
    shelf.put("b", { group: "g", source: "s" }, 2);
    now = 600;
    shelf.put("a", { group: "g", source: "s" }, 3);
    now = 1100;
    expect(shelf.of("g")).toEqual([3]);
    expect(shelf.get("b")).toBeUndefined();
  });

  test("one source fills its own share and no more", () => {
    const shelf = new Shelf<number>(room, () => 0);
    const kept = Array.from({ length: 20 }, (_, n) => shelf.put(`${n}`, { group: `${n}`, source: "one" }, n));
    expect(kept.filter(Boolean)).toHaveLength(6);
  });

  test("who has most gives way to a newcomer, and pushes nobody out", () => {
    const shelf = new Shelf<number>(room, () => 0);
    for (let n = 0; n < 6; n++) shelf.put(`flood ${n}`, { group: `${n}`, source: "flood" }, n);
    for (let n = 0; n < 8; n++)
      expect(shelf.put(`honest ${n}`, { group: `h${n}`, source: `honest ${n}` }, n)).toBeTrue();
    expect(shelf.size).toBe(10);
    for (let n = 0; n < 20; n++) shelf.put(`again ${n}`, { group: `a${n}`, source: "flood" }, n);
    for (let n = 0; n < 8; n++) expect(shelf.get(`honest ${n}`)).toBe(n);
  });

  test("a group has its own bound", () => {
    const shelf = new Shelf<number>(room, () => 0);
    for (let n = 0; n < 6; n++) shelf.put(`${n}`, { group: "g", source: n < 4 ? "one" : `${n}` }, n);
    expect(shelf.of("g")).toEqual([2, 3, 4, 5]);
    expect(shelf.put("x", { group: "g", source: "one" }, 9)).toBeFalse();
  });
});

describe("the table", () => {
  const own = Buffer.alloc(20);
  const contact = (n: number, host = `10.0.${n >> 8}.${n & 255}`) => ({
    id: Buffer.concat([Buffer.from([128 + (n & 127), n >> 7]), Buffer.alloc(18, n)]),
    address: addressOf(host, 6881 + n)!,
  });

  test("eight for a distance: those who answer stay, a silent one gives way", () => {
    const table = new Table(own, () => 0);
    for (let n = 0; n < 20; n++) table.heard(contact(n, `10.0.0.${n + 1}`));
    expect(table.size).toBe(8);
    const first = contact(0, "10.0.0.1");
    expect(table.nearest(first.id, 1)).toMatchObject([first]);
    table.missed(first.address);
    expect(table.isWanted(contact(30))).toBeFalse();
    table.missed(first.address);
    expect(table.isWanted(contact(30))).toBeTrue();
    table.heard(contact(30, "10.0.0.31"));
    expect(table.nearest(first.id, 1)[0]?.address).not.toEqual(first.address);
    expect(table.size).toBe(8);
  });

  test("one source has few places, one address has one, and nobody takes another's id while it answers", () => {
    const table = new Table(own, () => 0);
    const near = (n: number) => ({
      id: Buffer.from([0, 0, 1 << (n % 8), n, ...Buffer.alloc(16)]),
      address: addressOf("10.0.0.1", 2000 + n)!,
    });
    for (let n = 0; n < 60; n++) table.heard(near(n));
    expect(table.size).toBe(16);
    const before = table.nearest(near(0).id, 1)[0]!;
    table.heard({ id: before.id, address: addressOf("10.9.9.9", 2000)! });
    expect(table.nearest(near(0).id, 1)[0]).toEqual(before);
    table.heard({ id: idOf("another id"), address: before.address });
    expect(table.size).toBe(16);
    table.heard({ id: own, address: addressOf("10.9.9.8", 2000)! });
    expect(table.size).toBe(16);
  });

  test("the nearest are the nearest by XOR", () => {
    const table = new Table(idOf("own"), () => 0);
    const all = Array.from({ length: 30 }, (_, n) => ({
      id: idOf(`${n}`),
      address: addressOf(`10.1.1.${n + 1}`, 5000)!,
    }));
    for (const one of all) table.heard(one);
    const target = idOf("target");
    const distances = table
      .nearest(target, 5)
      .map(
        ({ id }) => BigInt(`0x${Buffer.from(id).toString("hex")}`) ^ BigInt(`0x${target.toString("hex")}`),
      );
    expect(distances).toEqual([...distances].sort((a, b) => (a < b ? -1 : 1)));
    expect(compareDistance(target, target, idOf("0"))).toBeLessThan(0);
  });
});

describe("one node", () => {
  test("an item is kept, and given with what its signature needs", async () => {
    await using dht = await node("one");
    using other = await stranger();
    const item = signedItem();
    expect(await put(other, dht.port, item)).toBe("id");
    const answer = await other.ask(dht.port, question("get", { target: Buffer.from(targetOf(item), "hex") }));
    expect(gist(answer)).toBe("id k nodes seq sig token v");
    const seq = await other.ask(
      dht.port,
      question("get", { seq: 1, target: Buffer.from(targetOf(item), "hex") }),
    );
    expect(gist(seq)).toBe("id nodes seq token");
  });

  test("the longest item there can be and the fullest answers are one datagram", async () => {
    await using dht = await node("one");
    for (let n = 0; n < 60; n++) {
      using peer = await stranger(`127.0.2.${n + 1}`);
      const id = idOf(`peer ${n}`);
      peer.socket.on(
        "message",
        (bytes) => void peer.send(dht.port, encodeBencode({ r: { id }, t: readMessage(bytes).t, y: "r" })),
      );
      if (n < 12) await peer.ask(dht.port, question("ping", {}, id));
      const asked = await peer.ask(dht.port, question("get_peers", { info_hash: idOf("x") }));
      const got = asked?.kind === "reply" ? asked.values.bytes("token") : "";
      await peer.ask(dht.port, question("announce_peer", { info_hash: idOf("x"), port: 6881, token: got }));
    }
    using other = await stranger();
    const item = signedItem({ salt: "s".repeat(64), seq: 2n ** 63n - 1n, value: "v".repeat(996) });
    expect(await put(other, dht.port, item)).toBe("id");
    const t = Buffer.alloc(32, "t");
    const lengths: number[] = [];
    other.socket.on("message", (bytes) => lengths.push(bytes.length));
    const get = { ...question("get", { target: Buffer.from(targetOf(item), "hex") }), t };
    expect(gist(await other.ask(dht.port, get))).toBe("id k nodes seq sig token v");
    const peers = { ...question("get_peers", { info_hash: idOf("x") }), t };
    expect(gist(await other.ask(dht.port, peers))).toBe("id nodes token values");
    for (const length of lengths) expect(length).toBeLessThanOrEqual(1400);
  });

  test("lower numbers and altered items are refused, the same again is not", async () => {
    await using dht = await node("one");
    using other = await stranger();
    const item = signedItem({ seq: 5n, issued: 100n });
    expect(await put(other, dht.port, item)).toBe("id");
    expect(await put(other, dht.port, item)).toBe("id");
    expect(await put(other, dht.port, signedItem({ seq: 4n, issued: 999n }))).toStartWith("302 ");
    expect(await put(other, dht.port, signedItem({ seq: 5n, issued: 99n }))).toStartWith("302 ");
    expect(await put(other, dht.port, signedItem({ seq: 5n, value: { issued: 100, other: 1 } }))).toStartWith(
      "302 ",
    );
    expect(await put(other, dht.port, { ...signedItem({ seq: 6n }), sig: item.sig })).toStartWith("206 ");
    expect(await put(other, dht.port, { ...item, seq: 7n })).toStartWith("206 ");
    expect((await dht.get(item.k, item.salt))?.seq).toBe(5n);
  });

  test("for an equal number the later issue replaces", async () => {
    await using dht = await node("one");
    using other = await stranger();
    expect(await put(other, dht.port, signedItem({ seq: 5n, issued: 100n }))).toBe("id");
    const withdrawn = signedItem({ seq: 5n, value: { issued: 101, withdrawn: 1 } });
    expect(await put(other, dht.port, withdrawn)).toBe("id");
    expect(await dht.get(VENDOR, STABLE)).toEqual(withdrawn);
  });

  test("who believes something else is there is refused", async () => {
    await using dht = await node("one");
    using other = await stranger();
    await put(other, dht.port, signedItem({ seq: 5n }));
    expect(await put(other, dht.port, signedItem({ seq: 6n }), { cas: 4 })).toBe("301 the number here is 5");
    expect(await put(other, dht.port, signedItem({ seq: 6n }), { cas: 5 })).toBe("id");
  });

  test.each<[string, Record<string, number | Uint8Array | string>, string]>([
    ["an integer for a token", { token: 1 }, "203 byte 212: message.a.token is no string"],
    ["a token of somebody else", { token: "12345678" }, "203 the token is not of here, or too old"],
    ["no key", { k: undefined as never }, "203 only items with a key are kept here"],
    ["a value that is too long", { v: "v".repeat(997) }, "205 the value has more than 1000 bytes"],
    ["a salt that is too long", { salt: "s".repeat(65) }, "207 the salt has more than 64 bytes"],
    ["text for a number", { seq: "1" }, "203"],
    ["text for cas", { cas: "1" }, "203"],
  ])("put with %s is refused", async (_, more, why) => {
    await using dht = await node("one");
    using other = await stranger();
    const item = signedItem();
    if ("cas" in more) await put(other, dht.port, item);
    expect(await put(other, dht.port, signedItem({ seq: 2n }), more as never)).toStartWith(why.slice(0, 3));
    expect(dht.counts.items).toBe("cas" in more ? 1 : 0);
  });

  test("a token is only its address's, and gets old", async () => {
    let now = 0;
    await using dht = await node("one", { now: () => now });
    using one = await stranger();
    using two = await stranger("127.0.0.2");
    const item = signedItem();
    const mine = await token(one, dht.port, item);
    const ask = (of: Stranger) =>
      of.ask(dht.port, question("put", { ...fieldsOf(item), token: mine })).then(gist);
    expect(await ask(two)).toStartWith("203 ");
    now += 6 * 60_000;
    expect(await ask(one)).toBe("id");
    now += 6 * 60_000;
    expect(await ask(one)).toStartWith("203 ");
  });

  test("an item is forgotten after two hours, a peer after half an hour", async () => {
    let now = 0;
    await using dht = await node("one", { now: () => now });
    using other = await stranger();
    await put(other, dht.port, signedItem());
    const values = { info_hash: idOf("x"), port: 6881 };
    const answer = await other.ask(dht.port, question("get_peers", { info_hash: idOf("x") }));
    const mine = answer?.kind === "reply" ? answer.values.bytes("token") : "";
    expect(gist(await other.ask(dht.port, question("announce_peer", { ...values, token: mine })))).toBe("id");
    expect(dht.counts).toMatchObject({ items: 1, peers: 1 });
    now += 31 * 60_000;
    expect(dht.counts).toMatchObject({ items: 1, peers: 0 });
    now += 90 * 60_000;
    expect(dht.counts).toMatchObject({ items: 0, peers: 0 });
  });

  test("one source fills little of the room, and none of what is watched here", async () => {
    await using dht = await node("one", {
      limits: { each: { burst: 1e6, perSecond: 0 }, all: { burst: 1e6, perSecond: 0 } },
    });
    const heard: bigint[] = [];
    dht.watch(VENDOR, STABLE, ({ seq }) => heard.push(seq));
    using flood = await stranger("127.0.0.2");
    const kept: string[] = [];
    for (let n = 0; n < 20; n++) kept.push(await put(flood, dht.port, signedItem({ signer: `key ${n}` })));
    expect(kept.filter((answer) => answer === "id")).toHaveLength(16);
    expect(kept.at(-1)).toBe("202 no room for more items of yours");
    using honest = await stranger("127.0.0.3");
    expect(await put(honest, dht.port, signedItem({ seq: 9n }))).toBe("id");
    await until("it was told", () => heard.includes(9n));
  });

  test("signatures that do not hold cost few checks", async () => {
    await using dht = await node("one", {
      limits: { each: { burst: 1e6, perSecond: 0 }, all: { burst: 1e6, perSecond: 0 } },
    });
    using flood = await stranger("127.0.0.2");
    const bad = { ...signedItem({ seq: 8n }), sig: signedItem({ seq: 9n }).sig };
    const answers: string[] = [];
    for (let n = 0; n < 60; n++) answers.push(await put(flood, dht.port, bad));
    expect(answers.filter((answer) => answer.startsWith("206")).length).toBeLessThan(30);
    expect(answers.at(-1)).toBe("202 too many items at once");
    using honest = await stranger("127.0.0.3");
    expect(await put(honest, dht.port, signedItem())).toBe("id");
  });

  test(`mutated questions are answered or not, and the node stays (${Math.min(ROUNDS, 2000)})`, async () => {
    const limits = { each: { burst: 1e9, perSecond: 0 }, all: { burst: 1e9, perSecond: 0 } };
    await using dht = await node("one", { limits });
    using other = await stranger();
    const item = signedItem();
    const mine = await token(other, dht.port, item);
    const random = seeded(0xd47);
    const seeds = [
      question("put", { ...fieldsOf(item), token: mine }),
      question("get", { seq: 1, target: Buffer.from(targetOf(item), "hex") }),
      question("announce_peer", { implied_port: 1, info_hash: idOf("x"), port: 6881, token: mine }),
      question("get_peers", { info_hash: idOf("x") }),
      question("find_node", { target: idOf("x") }),
      question("get_peers", { info_hash: 1 }),
      question("announce_peer", { info_hash: idOf("x"), port: "x", token: 1 }),
    ].map(encodeBencode);
    for (let round = 0; round < Math.min(ROUNDS, 2000); round++)
      await other.send(
        dht.port,
        mutated(seeds[Math.floor(random() * seeds.length)] ?? Buffer.alloc(0), random, [Buffer.from("i1e")]),
      );
    using honest = await stranger("127.0.0.2");
    // The first may meet a full queue
    await until("it answers", async () => gist(await honest.ask(dht.port, question("ping", {}))) === "id");
  });
});

describe("hostile neighbours", () => {
  /** A node that answers as a test wants. */
  async function liar(
    host: string,
    answer: (message: Message & { kind: "query" }) => object,
  ): Promise<Stranger> {
    const one = await stranger(host);
    one.socket.on("message", (bytes, from) => {
      const message = readMessage(bytes);
      if (message.kind !== "query") return;
      const r = { id: idOf(host), ...answer(message) };
      void one.send(from.port, encodeBencode({ r, t: message.t, y: "r" }), from.address);
    });
    return one;
  }

  test("forged and old items in answers are not believed; the right one is found among them", async () => {
    const item = signedItem({ seq: 3n });
    const fields = (of: Item) => ({ ...fieldsOf(of), salt: undefined });
    using forger = await liar("127.0.3.1", () => fields({ ...signedItem({ seq: 99n }), sig: item.sig }));
    using other = await liar("127.0.3.2", () => fields(signedItem({ signer: "somebody", seq: 50n })));
    using old = await liar("127.0.3.3", () => fields(signedItem({ seq: 2n })));
    using damaged = await liar("127.0.3.4", () => ({
      k: 1,
      nodes: "x",
      seq: "x",
      sig: "x",
      token: 1,
      v: ["x"],
    }));
    using right = await liar("127.0.3.5", () => fields(item));
    const all = [forger, other, old, damaged, right];
    // All of them answer, be the machine as busy as it likes
    const routes = all.map(({ port }, n) => `127.0.3.${n + 1}:${port}`);
    await using dht = await node("one", { answerMs: 10_000, routes });
    await until("it knows them", () => dht.counts.nodes === 5);
    expect(await dht.get(VENDOR, STABLE)).toEqual(item);
    const heard: bigint[] = [];
    dht.watch(VENDOR, STABLE, ({ seq }) => heard.push(seq));
    await until("it was told", () => heard.includes(3n));
    expect(heard.every((seq) => seq === 2n || seq === 3n)).toBeTrue();
  });

  test("endless nodes that are not there end the search all the same", async () => {
    let asked = 0;
    using one = await liar("127.0.3.1", ({ args }) => {
      asked++;
      const target = args.has("target") ? Buffer.from(args.bytes("target")) : idOf("x");
      const node = (n: number) =>
        Buffer.from([...target.subarray(0, 18), asked, n, 127, 9, asked, n, 20, 20]);
      return { nodes: Buffer.concat(Array.from({ length: 40 }, (_, n) => node(n))) };
    });
    await using dht = await node("one", { answerMs: 30, routes: [`127.0.3.1:${one.port}`] });
    await until("it knows it", () => dht.counts.nodes === 1);
    expect(await dht.get(VENDOR, STABLE)).toBeUndefined();
    expect(dht.counts.nodes).toBe(1);
  });

  test("a walk ends after so many questions, whatever comes nearer and nearer", async () => {
    const target = idOf("target");
    let asked = 0;
    const at = (n: number) => {
      const id = Buffer.from(target);
      id.writeUInt32BE(target.readUInt32BE(0) ^ (2 ** 30 - n), 0);
      return { id, address: addressOf(`10.0.${n >> 8}.${n & 255}`, 5000)! };
    };
    const nearest = await search(target, [at(1)], async () => {
      asked++;
      return Array.from({ length: 2 }, (_, n) => at(asked * 2 + n));
    });
    expect(asked).toBe(96);
    expect(nearest).toHaveLength(8);
  });

  test("peers that are nobody's, this machine's or at low ports are not told", async () => {
    const compact = (...bytes: number[]) => Buffer.from(bytes);
    using one = await liar("127.0.3.1", () => ({
      token: "t",
      values: [
        compact(0, 0, 0, 0, 26, 225),
        compact(192, 0, 2, 1, 0, 22),
        compact(192, 0, 2, 2, 26, 225),
        "short",
        7,
        compact(224, 0, 0, 1, 26, 225),
      ],
    }));
    await using dht = await node("one", { routes: [`127.0.3.1:${one.port}`] });
    await until("it knows it", () => dht.counts.nodes === 1);
    const met: string[] = [];
    await dht.peers(idOf("x").toString("hex"), 6881, (address) => met.push(address));
    expect(met).toEqual(["192.0.2.2:6881"]);
  });
});

describe("twenty nodes", () => {
  test("what one puts all find; a non-owner keeps it alive; nodes leave and join", async () => {
    const all = await nodes(20, { every: { putMs: 300, tableMs: 200 } });
    try {
      await until("everybody knows a few", () => all.every((one) => one.counts.nodes >= 5));
      const item = signedItem({ seq: 7n });
      const owner = all[19]!;
      expect(await owner.publish(item)).toBeGreaterThanOrEqual(7);
      for (const one of all) expect((await one.get(VENDOR, STABLE))?.seq).toBe(7n);

      // Somebody who is not the owner holds it too; then the owner and everybody it was put to go
      const keeper = all.slice(0, 19).find((one) => one.counts.items === 0)!;
      await keeper.publish((await keeper.get(VENDOR, STABLE))!);
      const leaving = all
        .filter((one) => one !== keeper && (one === owner || one.counts.items > 0))
        .slice(0, 9);
      for (const one of leaving) await one[Symbol.asyncDispose]();
      const left = all.filter((one) => !leaving.includes(one));
      const joined = await Promise.all(
        [1, 2, 3].map((n) =>
          node(`late ${n}`, {
            host: `127.0.4.${n}`,
            routes: left.map((one) => `127.0.1.${all.indexOf(one) + 1}:${one.port}`),
          }),
        ),
      );
      all.push(...joined);
      await until("it was put again", () => left.filter((one) => one.counts.items > 0).length >= 7);
      for (const one of [...left, ...joined])
        await until("found", async () => (await one.get(VENDOR, STABLE))?.seq === 7n);

      // A better one reaches who watches
      const heard: bigint[] = [];
      for (const one of joined) one.watch(VENDOR, STABLE, ({ seq }) => heard.push(seq));
      await until("told", () => heard.length === 3);
      await left[0]!.publish(signedItem({ seq: 8n }));
      for (const one of joined)
        await until("the new one", async () => (await one.get(VENDOR, STABLE))?.seq === 8n);
      await until("told again", () => heard.filter((seq) => seq === 8n).length === 3);
    } finally {
      for (const one of all) await one[Symbol.asyncDispose]();
    }
  }, 20_000);

  test("peers that announce themselves are found by the others", async () => {
    const all = await nodes(12);
    try {
      await until("everybody knows a few", () => all.every((one) => one.counts.nodes >= 4));
      const infohash = idOf("release").toString("hex");
      for (const [n, one] of all.slice(0, 3).entries()) await one.peers(infohash, 7000 + n, () => undefined);
      for (const one of all.slice(3)) {
        const met = new Set<string>();
        await one.peers(infohash, undefined, (address) => met.add(address));
        expect([...met].sort()).toEqual(["127.0.1.1:7000", "127.0.1.2:7001", "127.0.1.3:7002"]);
      }
    } finally {
      for (const one of all) await one[Symbol.asyncDispose]();
    }
  }, 20_000);

  test("what is put and asked for while nobody is there goes out when somebody is", async () => {
    await using one = await node("one", { every: { tableMs: 50 } });
    await using two = await node("two", { host: "127.0.0.2", every: { tableMs: 50 } });
    expect(await one.publish(signedItem({ seq: 3n }))).toBe(0);
    const heard: bigint[] = [];
    two.watch(VENDOR, STABLE, ({ seq }) => heard.push(seq));
    one.meet(`127.0.0.2:${two.port}`);
    await until("it was told", () => heard.includes(3n));
    expect(one.nodes()).toEqual([`127.0.0.2:${two.port}`]);
  });

  test("over IPv6 it is the same", async () => {
    await using one = await node("one", { family: 6, host: "::1" });
    await using two = await node("two", { family: 6, host: "::1", routes: [`[::1]:${one.port}`] });
    await using three = await node("three", { family: 6, host: "::1", routes: [`[::1]:${one.port}`] });
    await until("they know each other", () => [one, two, three].every(({ counts }) => counts.nodes === 2));
    expect(await two.publish(signedItem())).toBe(2);
    expect(await three.get(VENDOR, STABLE)).toEqual(signedItem());
    await two.peers(idOf("x").toString("hex"), 7000, () => undefined);
    const met: string[] = [];
    await three.peers(idOf("x").toString("hex"), undefined, (address) => met.push(address));
    expect(met).toEqual(["[::1]:7000"]);
  });
});

test("a node whose port is taken cannot be opened", async () => {
  await using one = await node("one");
  await expect(
    openDht({ id: idOf("two"), host: "127.0.0.1", port: one.port, tell: () => undefined }),
  ).rejects.toThrow("EADDRINUSE");
  expect(seedOf("vendor")).toHaveLength(32);
});

test("however many strangers are met, what was named to begin at is not forgotten", async () => {
  const port = await freePort();
  await using early = await node("early", { routes: [`127.0.1.1:${port}`], every: { tableMs: 300 } });
  for (let n = 0; n < 300; n++) early.meet(`127.0.2.1:${2000 + n}`);
  await using _ = await node("late", { host: "127.0.1.1", port });
  await until("it is found", () => early.counts.nodes > 0);
});
