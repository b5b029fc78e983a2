/** The datagrams of the DHT: what is read of them, who is answered, and whose answer counts. FRUIT_FUZZ=1000000 for more mutations. */
import { describe, expect, test } from "bun:test";
import {
  addressOf,
  fromCompact,
  isTellable,
  readAddress,
  sourceOf,
  textOf,
  toCompact,
} from "../agent/swarm/address.ts";
import {
  type Krpc,
  KrpcError,
  type KrpcOptions,
  openKrpc,
  readMessage,
  Silence,
} from "../agent/swarm/krpc.ts";
import { SourceLimit } from "../agent/swarm/limit.ts";
import { BencodeError, encodeBencode } from "../boot/bencode.ts";
import { gist, idOf, question, stranger } from "./dhts.ts";
import { seeded } from "./fakes.ts";
import { mutated } from "./mutations.ts";
import { until } from "./node.ts";

const ROUNDS = Number(process.env.FRUIT_FUZZ ?? 5_000);
const latin1 = (text: string) => Buffer.from(text, "latin1");
const ID = "a".repeat(20);

/** Datagrams that have stopped other programs, and those of BEP 5 and 44. */
const SEEDS = [
  "l-3:",
  "d1:ad2:id-3:",
  `d1:ad2:id20:${ID}9:info_hashi1ee1:q9:get_peers1:t2:aa1:y1:qe`,
  `d1:ad2:id20:${ID}9:info_hash20:${ID}4:porti1e5:tokeni1ee1:q13:announce_peer1:t2:aa1:y1:qe`,
  `d1:ad2:id20:${ID}6:targeti1ee1:q9:find_node1:t2:aa1:y1:qe`,
  `d1:ad2:id20:${ID}6:targeti1ee1:q3:get1:t2:aa1:y1:qe`,
  `d1:ad2:id20:${ID}e1:q4:ping1:t2:aa1:y1:qe`,
  `d1:ad2:id20:${ID}6:target20:${ID}e1:q9:find_node1:t2:aa1:y1:qe`,
  `d1:ad2:id20:${ID}1:k32:${ID}${ID.slice(0, 12)}3:seqi1e3:sig64:${ID}${ID}${ID}aaaa5:token8:aaaaaaaa1:v1:ve1:q3:put1:t2:aa1:y1:qe`,
  `d1:rd2:id20:${ID}5:nodes26:${ID}aaaaaae1:t2:aa1:y1:re`,
  "d1:eli201e23:A Generic Error Ocurrede1:t2:aa1:y1:ee",
  "d1:ele1:t2:aa1:y1:ee",
  `${"l".repeat(1000)}`,
  `${"d1:a".repeat(300)}`,
  "999999999999999999999:",
  "1400:a",
  "d1:y1:qe",
  "",
];

async function open(options: Partial<KrpcOptions> = {}): Promise<Krpc & Disposable> {
  const krpc = await openKrpc({
    id: idOf("ours"),
    family: 4,
    host: "127.0.0.1",
    answerMs: 150,
    answer: ({ name, args }) => {
      if (name === "no") throw new KrpcError(204, "unknown method");
      if (name === "find_node") args.bytes("target", 20);
      return {};
    },
    tell: (text) => {
      throw new Error(text);
    },
    ...options,
  });
  return Object.assign(krpc, { [Symbol.dispose]: () => krpc.close() });
}

describe("addresses", () => {
  test.each([
    ["192.0.2.1:6881", "192.0.2.1:6881"],
    ["[2001:DB8:0::1]:6881", "[2001:db8::1]:6881"],
    ["[::ffff:192.0.2.1]:80", "192.0.2.1:80"],
    ["[fe80::1]:1", "[fe80::1]:1"],
    ["192.0.2.1:0", undefined],
    ["192.0.2.1:65536", undefined],
    ["192.0.2.1:06881", undefined],
    ["0.0.0.0:6881", undefined],
    ["224.0.0.1:6881", undefined],
    ["255.255.255.255:6881", undefined],
    ["[::]:6881", undefined],
    ["[ff02::1]:6881", undefined],
    ["[fe80::1%eth0]:6881", undefined],
    ["example.org:6881", undefined],
    ["192.0.2.1", undefined],
    ["192.0.2:6881", undefined],
    [`[${":".repeat(45)}]:1`, undefined],
  ])("%p is %p", (text, written) => {
    const address = readAddress(text);
    expect(address && textOf(address)).toBe(written as string);
  });

  test.each(["192.0.2.1:6881", "[2001:db8::1:0:0:1]:443", "[1:2:3:4:5:6:7:8]:65535"])(
    "%p is the same after its compact form",
    (text) => {
      const address = fromCompact(toCompact(readAddress(text)!));
      expect(address && textOf(address)).toBe(text);
    },
  );

  test("compact addresses of a wrong length are none", () => {
    for (const length of [0, 5, 7, 17, 19])
      expect(fromCompact(new Uint8Array(length).fill(1))).toBeUndefined();
  });

  test("who may tell of this machine, and of low ports", () => {
    const at = (host: string, port: number) => addressOf(host, port)!;
    expect(isTellable(at("127.0.0.1", 6881), "192.0.2.1")).toBeFalse();
    expect(isTellable(at("127.0.0.1", 6881), "127.0.0.9")).toBeTrue();
    expect(isTellable(at("::1", 6881), "2001:db8::1")).toBeFalse();
    expect(isTellable(at("192.0.2.1", 22), "192.0.2.1")).toBeFalse();
    expect(isTellable(at("192.0.2.1", 1024), "192.0.2.1")).toBeTrue();
  });

  test("an IPv6 /64 is one source", () => {
    expect(sourceOf("2001:db8:1:2:3::4")).toBe(sourceOf("2001:db8:1:2:ffff::1"));
    expect(sourceOf("2001:db8:1:2::1")).not.toBe(sourceOf("2001:db8:1:3::1"));
    expect(sourceOf("192.0.2.1")).not.toBe(sourceOf("192.0.2.2"));
  });
});

describe("limits", () => {
  test("a source over its limit takes nothing from the others, and gets its own back with time", () => {
    let now = 0;
    const limit = new SourceLimit({
      each: { burst: 3, perSecond: 1 },
      all: { burst: 5, perSecond: 1 },
      now: () => now,
    });
    const takes = (host: string, times: number) =>
      Array.from({ length: times }, () => limit.take(host)).filter(Boolean).length;
    expect(takes("192.0.2.1", 100)).toBe(3);
    expect(takes("192.0.2.2", 100)).toBe(2);
    now += 1000;
    expect(takes("192.0.2.1", 100)).toBe(1);
  });

  test("however many sources there are, few are remembered", () => {
    const limit = new SourceLimit({
      each: { burst: 1, perSecond: 0 },
      all: { burst: 1e9, perSecond: 0 },
      now: () => 0,
    });
    const host = (n: number) => `10.${n >> 16}.${(n >> 8) & 255}.${n & 255}`;
    for (let n = 0; n < 5000; n++) expect(limit.take(host(n))).toBeTrue();
    expect(limit.take(host(4999))).toBeFalse();
    expect(limit.take(host(0))).toBeTrue();
  });
});

test.each([
  ["l-3:", 'byte 1: a value cannot begin with "-"'],
  ["le", "byte 0: message is no dictionary"],
  [`d1:rd2:id20:${ID}e1:t2:aa1:y1:re1:x`, "byte 47: 3 bytes after the end"],
  [`d1:ad2:id19:${ID.slice(1)}e1:q4:ping1:t2:aa1:y1:qe`, "byte 9: message.a.id has 19 bytes, not 20"],
  ["d1:ad2:idi1ee1:q4:ping1:t2:aa1:y1:qe", "byte 9: message.a.id is no string"],
  ["d1:ai1e1:q4:ping1:t2:aa1:y1:qe", "byte 4: message.a is no dictionary"],
  [`d1:ad2:id20:${ID}e1:q4:ping1:y1:qe`, "byte 0: message.t is missing"],
  [`d1:ad2:id20:${ID}e1:q4:ping1:t0:1:y1:qe`, "byte 45: message.t has 0 bytes, not 1 to 32"],
  [`d1:ad2:id20:${ID}e1:qi1e1:t2:aa1:y1:qe`, "byte 36: message.q is no string"],
  [
    `d1:ad2:id20:${ID}e1:q4:PING1:t2:aa1:y1:qe`,
    'byte 36: message.q is "PING", which is not of the form /^[a-z_]{1,20}$/',
  ],
  ["d1:ele1:t2:aa1:y1:ee", "byte 4: message.e is no code with a text"],
  ["d1:eli1ei2ee1:t2:aa1:y1:ee", "byte 4: message.e is no code with a text"],
  ["d1:t2:aa1:y1:xe", 'byte 11: message.y is "x", which is not of the form /^[qre]$/'],
])("the datagram %p is refused: %s", (text, why) => {
  expect(() => readMessage(latin1(text))).toThrow(why);
});

test("a datagram of more than 1400 bytes is not looked at", () => {
  expect(() => readMessage(latin1(`1400:${"a".repeat(1400)}`))).toThrow("1405 bytes; at most 1400 are read");
});

test(
  `mutated datagrams are read or refused, nothing else (${ROUNDS})`,
  () => {
    const random = seeded(0x6b72);
    const tokens = ["i1e", "-", "e", "l", "d", "1:y1:q", "20:", "i-1e"].map(latin1);
    const counts = { read: 0, refused: 0 };
    for (let round = 0; round < ROUNDS; round++) {
      const bytes = mutated(latin1(SEEDS[Math.floor(random() * SEEDS.length)] ?? ""), random, tokens);
      try {
        readMessage(bytes);
        counts.read++;
      } catch (error) {
        if (!(error instanceof BencodeError))
          throw new Error(JSON.stringify(bytes.toString()), { cause: error });
        counts.refused++;
      }
    }
    expect(counts.read).toBeGreaterThan(ROUNDS / 100);
    expect(counts.refused).toBeGreaterThan(ROUNDS / 4);
  },
  30_000 + ROUNDS,
);

test.each([
  ["ping", {}, "id"],
  ["no", {}, "204 unknown method"],
  ["find_node", { target: 1 }, "203 byte 40: message.a.target is no string"],
  ["find_node", { target: "short" }, "203 byte 40: message.a.target has 5 bytes, not 20"],
  ["find_node", {}, "203 byte 4: message.a.target is missing"],
])("%s with %p is answered by %p", async (name, args, answer) => {
  using krpc = await open();
  using other = await stranger();
  expect(gist(await other.ask(krpc.port, question(name, args)))).toBe(answer);
});

test("a question is answered with the number it had", async () => {
  using krpc = await open();
  using other = await stranger();
  expect(await other.ask(krpc.port, { ...question("ping", {}), t: "some number" })).toMatchObject({
    t: Buffer.from("some number"),
  });
});

test("after every bad datagram the node still answers, and has said nothing to most of them", async () => {
  using krpc = await open();
  using other = await stranger();
  for (const seed of SEEDS) await other.send(krpc.port, latin1(seed));
  await other.send(krpc.port, Buffer.alloc(5000, "l"));
  await until("all of them came", () => krpc.counts.received === SEEDS.length + 1);
  using honest = await stranger("127.0.0.2");
  expect(gist(await honest.ask(krpc.port, question("ping", {})))).toBe("id");
  expect(krpc.counts.malformed).toBeGreaterThanOrEqual(9);
});

test("an answer from another address, or with another number, is none", async () => {
  using krpc = await open();
  using asked = await stranger();
  using other = await stranger("127.0.0.2");
  asked.socket.on("message", (bytes) => {
    const message = readMessage(bytes);
    const answer = (t: Uint8Array, from: string) =>
      encodeBencode({ r: { from, id: idOf("asked") }, t, y: "r" });
    void other
      .send(krpc.port, answer(message.t, "other"))
      .then(() => asked.send(krpc.port, answer(Buffer.from("wrong"), "wrong")))
      .then(() => asked.send(krpc.port, answer(message.t, "asked")));
  });
  const values = await krpc.ask(addressOf("127.0.0.1", asked.port)!, "ping", {});
  expect(Buffer.from(values.bytes("from")).toString()).toBe("asked");
  expect(krpc.counts.unasked).toBe(2);
});

test("the numbers of questions are long, and cannot be guessed from one another", async () => {
  using krpc = await open();
  using asked = await stranger();
  const seen = new Set<string>();
  asked.socket.on("message", (bytes) => seen.add(Buffer.from(readMessage(bytes).t).toString("hex")));
  const all = Array.from({ length: 20 }, () => krpc.ask(addressOf("127.0.0.1", asked.port)!, "ping", {}));
  for (const { status } of await Promise.allSettled(all)) expect(status).toBe("rejected");
  expect(seen.size).toBe(20);
  for (const number of seen) {
    expect(number).toHaveLength(16);
    expect(new Set(Buffer.from(number, "hex")).size).toBeGreaterThan(4);
  }
});

test("who says nothing is silent after a while; who says no says why", async () => {
  using krpc = await open();
  using asked = await stranger();
  const to = addressOf("127.0.0.1", asked.port)!;
  await expect(krpc.ask(to, "ping", {})).rejects.toThrow(Silence);
  asked.socket.on(
    "message",
    (bytes) =>
      void asked.send(krpc.port, encodeBencode({ e: [203, "\x1b[2Jno"], t: readMessage(bytes).t, y: "e" })),
  );
  await expect(krpc.ask(to, "ping", {})).rejects.toThrow(`127.0.0.1:${asked.port}: 203 ?[2Jno`);
});

test("an address that no packet reaches is silent, and nothing is thrown", async () => {
  using krpc = await open();
  await expect(krpc.ask(addressOf("203.0.113.1", 9)!, "ping", {})).rejects.toThrow(Silence);
});

test("only so many questions wait at once", async () => {
  using krpc = await open();
  using asked = await stranger();
  const to = addressOf("127.0.0.1", asked.port)!;
  const all = Array.from({ length: 300 }, () =>
    krpc.ask(to, "ping", {}).then(String, (error: Error) => error.message),
  );
  expect((await Promise.all(all)).filter((text) => text.endsWith("256 questions wait already"))).toHaveLength(
    44,
  );
});

test("a flood from one source is cut, others and what was asked for come through", async () => {
  const limits = { each: { burst: 20, perSecond: 1 }, all: { burst: 1000, perSecond: 1 } };
  using krpc = await open({ limits });
  using flood = await stranger("127.0.0.2");
  using honest = await stranger("127.0.0.3");
  for (let n = 0; n < 150; n++) await flood.send(krpc.port, latin1("l-3:"));
  await until("the flood was seen", () => krpc.counts.received === 150);
  expect(krpc.counts.malformed).toBeLessThanOrEqual(25);
  expect(gist(await flood.ask(krpc.port, question("ping", {})))).toBe("silence");
  expect(gist(await honest.ask(krpc.port, question("ping", {})))).toBe("id");
});

test("what was asked for comes through a flood from everywhere", async () => {
  using krpc = await open({
    limits: { each: { burst: 20, perSecond: 0 }, all: { burst: 30, perSecond: 0 } },
  });
  for (const host of ["127.0.0.2", "127.0.0.3", "127.0.0.4"]) {
    using flood = await stranger(host);
    for (let n = 0; n < 30; n++) await flood.send(krpc.port, encodeBencode(question("ping", {})));
  }
  await until("the flood was seen", () => krpc.counts.received === 90);
  using late = await stranger("127.0.0.5");
  expect(gist(await late.ask(krpc.port, question("ping", {})))).toBe("silence");
  using asked = await stranger("127.0.0.6");
  asked.socket.on(
    "message",
    (bytes) =>
      void asked.send(
        krpc.port,
        encodeBencode({ r: { id: idOf("asked") }, t: readMessage(bytes).t, y: "r" }),
      ),
  );
  expect((await krpc.ask(addressOf("127.0.0.6", asked.port)!, "ping", {})).keys()).toEqual(["id"]);
});
