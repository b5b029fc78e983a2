/** Trackers: a real one, and those that do not answer as they should; then all finders side by side. */
import { describe, expect, test } from "bun:test";
import { createSocket } from "node:dgram";
import { once } from "node:events";
import { createServer, type RequestListener } from "node:http";
import type { AddressInfo } from "node:net";
import { textOf } from "../agent/swarm/address.ts";
import type { Finder } from "../agent/swarm/engine.ts";
import { dhtFinder, listFinder, runFinders, trackerFinder } from "../agent/swarm/finders.ts";
import { announce, isTrackerUrl, readAnswer, TrackerError } from "../agent/swarm/tracker.ts";
import { BencodeError, encodeBencode } from "../boot/bencode.ts";
import { idOf } from "./dhts.ts";
import { seeded } from "./fakes.ts";
import { mutated } from "./mutations.ts";
import { until } from "./node.ts";
import { tracker } from "./trackers.ts";

const ROUNDS = Number(process.env.FRUIT_FUZZ ?? 5_000);
const INFOHASH = idOf("release").toString("hex");
const NEVER = new AbortController().signal;
const what = (name: string, port: number) => ({
  infohash: INFOHASH,
  port,
  peerId: idOf(name),
  event: "started" as const,
});

/** A web server that answers as a test wants. */
async function web(answer: RequestListener): Promise<AsyncDisposable & { url: string }> {
  const server = createServer(answer).listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/announce`,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      server.close();
    },
  };
}

/** A UDP server that answers as a test wants. */
async function udp(
  answer: (bytes: Buffer, send: (answer: Uint8Array) => void) => void,
): Promise<Disposable & { url: string }> {
  const socket = createSocket("udp4").bind(0, "127.0.0.1");
  await once(socket, "listening");
  socket.on("message", (bytes, from) =>
    answer(bytes, (reply) => socket.send(reply, from.port, from.address)),
  );
  return { url: `udp://127.0.0.1:${socket.address().port}`, [Symbol.dispose]: () => socket.close() };
}

const words = (...all: number[]) => {
  const bytes = Buffer.alloc(all.length * 4);
  for (const [at, word] of all.entries()) bytes.writeUInt32BE(word, at * 4);
  return bytes;
};

describe("a real tracker", () => {
  test.each(["http", "udp"] as const)("over %s names the others, and forgets who goes", async (way) => {
    await using real = await tracker();
    const names = async (url: string, of: Parameters<typeof announce>[1]) =>
      (await announce(url, of, NEVER)).peers.map(textOf).sort();
    expect(await names(real[way], what("one", 7001))).not.toContain("127.0.0.1:7002");
    expect((await announce(real[way], what("two", 7002), NEVER)).intervalS).toBe(600);
    expect(await names(real[way], { ...what("three", 7003), event: "none" })).toContain("127.0.0.1:7001");
    expect(await names(real[way], what("three", 7003))).toEqual(
      expect.arrayContaining(["127.0.0.1:7001", "127.0.0.1:7002"]),
    );
    await announce(real[way], { ...what("one", 7001), event: "stopped" }, NEVER);
    expect(await names(real[way], what("three", 7003))).not.toContain("127.0.0.1:7001");
  });

  test("who came by HTTP finds who came by UDP", async () => {
    await using real = await tracker();
    const stop = new AbortController();
    const met: string[][] = [[], []];
    const running = [real.http, real.udp].map((url, n) =>
      trackerFinder([url], {
        tell: (text) => met[n]?.push(text),
        bounds: { leastS: 0.05, mostS: 0.05, failedS: 0.05 },
      })({ infohash: INFOHASH, port: 7001 + n, meet: (address) => met[n]?.push(address) }, stop.signal),
    );
    await until("both met", () => met[0]?.includes("127.0.0.1:7002") && met[1]?.includes("127.0.0.1:7001"));
    stop.abort();
    await Promise.all(running);
    const after = await announce(real.http, what("late", 7009), NEVER);
    expect(after.peers.map(textOf)).not.toContain("127.0.0.1:7001");
  });
});

test.each([
  ["http://tracker.example/announce", true],
  ["https://tracker.example:8443/a?key=1", true],
  ["udp://tracker.example:6969", true],
  ["udp://[2001:db8::1]:6969", true],
  ["udp://tracker.example", false],
  ["wss://tracker.example", false],
  ["file:///etc/passwd", false],
  ["http://user:secret@tracker.example/", false],
  ["http://", false],
  [`http://tracker.example/${"a".repeat(500)}`, false],
  ["", false],
])("%p is a tracker: %p", (url, is) => {
  expect(isTrackerUrl(url)).toBe(is);
});

describe("answers over HTTP", () => {
  const compact = Buffer.from([192, 0, 2, 1, 26, 225, 0, 0, 0, 0, 26, 225, 192, 0, 2, 2, 0, 0]);
  const v6 = Buffer.from("20010db80000000000000000000000011ae1", "hex");

  test("peers in every form there is; those that nobody can be are left out", () => {
    expect(readAnswer(encodeBencode({ interval: 1800, peers: compact, peers6: v6 }))).toEqual({
      intervalS: 1800,
      peers: [
        expect.objectContaining({ host: "192.0.2.1" }),
        expect.objectContaining({ host: "2001:db8::1" }),
      ],
    });
    const listed = [
      { ip: "192.0.2.1", "peer id": idOf("x"), port: 6881 },
      { ip: "example.org", port: 6881 },
    ];
    expect(readAnswer(encodeBencode({ peers: listed })).peers.map(textOf)).toEqual(["192.0.2.1:6881"]);
  });

  test("two hundred peers and no more", () => {
    const many = Buffer.concat(
      Array.from({ length: 5000 }, (_, n) => Buffer.from([10, 0, n >> 8, n & 255, 26, 225])),
    );
    expect(readAnswer(encodeBencode({ peers: many })).peers).toHaveLength(200);
    const more = Buffer.concat(Array.from({ length: 100 }, () => v6));
    expect(readAnswer(encodeBencode({ peers: many, peers6: more })).peers).toHaveLength(200);
    const listed = Array.from({ length: 500 }, (_, n) => ({ ip: "192.0.2.1", port: 1024 + n }));
    expect(readAnswer(encodeBencode({ peers: listed })).peers).toHaveLength(200);
  });

  test.each([
    ["l-3:", 'byte 1: a value cannot begin with "-"'],
    ["d14:failure reason5:no\x1b[7e", "refused: no?[7"],
    ["d5:peersi1ee", "answer.peers is neither a list nor a string"],
    ["d5:peers5:abcdee", "5 bytes are no peers of 6"],
    ["d5:peersl2:abee", "answer.peers[] is no dictionary"],
    ["d5:peersld2:ipi1e4:porti1eeee", "answer.peers[].ip is no string"],
    ["d8:interval3:abce", "answer.interval is no integer"],
    ["<html>", 'byte 0: a value cannot begin with "<"'],
  ])("%p is refused: %s", (text, why) => {
    expect(() => readAnswer(Buffer.from(text, "latin1"))).toThrow(why);
  });

  test(
    `mutated answers are read or refused, nothing else (${ROUNDS})`,
    () => {
      const random = seeded(0x7ac);
      const seeds = [
        encodeBencode({ interval: 1800, peers: compact, peers6: v6 }),
        encodeBencode({ peers: [{ ip: "192.0.2.1", port: 6881 }] }),
      ];
      for (let round = 0; round < ROUNDS; round++) {
        const bytes = mutated(seeds[Math.floor(random() * seeds.length)] ?? compact, random, [
          Buffer.from("i1e"),
          Buffer.from("l-3:"),
        ]);
        try {
          for (const peer of readAnswer(bytes).peers) expect(textOf(peer)).not.toBe("");
        } catch (error) {
          if (!(error instanceof BencodeError || error instanceof TrackerError)) throw error;
        }
      }
    },
    30_000 + ROUNDS,
  );

  test.each<[string, RequestListener, string]>([
    [
      "a redirect",
      (_, answer) => answer.writeHead(302, { location: "http://127.0.0.1:1/" }).end(),
      "answered 302",
    ],
    ["a fault", (_, answer) => answer.writeHead(500).end("d5:peers0:e"), "answered 500"],
    [
      "an endless body",
      (_, answer) =>
        answer
          .on("error", () => undefined)
          .writeHead(200)
          .end(Buffer.alloc(10_000_000, "l")),
      "more than 65536 bytes",
    ],
    [
      "a body that never ends",
      (_, answer) => void answer.writeHead(200).write("d5:peers"),
      "no answer within 0.3 s",
    ],
    [
      "headers that never end",
      (request) => void request.socket.write(`HTTP/1.1 200 OK\r\n${"X: y\r\n".repeat(20_000)}`),
      "",
    ],
    ["silence", () => undefined, "no answer within 0.3 s"],
    ["a connection that breaks", (request) => void request.socket.destroy(), ""],
    ["a refusal", (_, answer) => void answer.end("d14:failure reason4:nopee"), "refused: nope"],
  ])("%s is an error and no more", async (_, listener, why) => {
    await using server = await web(listener);
    await expect(announce(server.url, what("one", 7001), NEVER, 300)).rejects.toThrow(why);
  });

  test("the announcement is as BEP 3 has it, and the tracker's own query stays", async () => {
    let asked = "";
    await using server = await web((request, answer) => {
      asked = request.url ?? "";
      answer.end("d5:peers0:e");
    });
    await announce(
      `${server.url}?key=1`,
      { ...what("one", 7001), infohash: "00ff2520".padEnd(40, "61") },
      NEVER,
    );
    expect(asked).toStartWith("/announce?key=1&info_hash=%00%ff%25%20%61%61");
    expect(asked).toContain("&port=7001&uploaded=0&downloaded=0&left=1&compact=1&numwant=200&event=started");
  });

  test("an error does not show the path, which may hold a pass key", async () => {
    await using server = await web((_, answer) => answer.writeHead(404).end());
    const failed = announce(server.url.replace("announce", "s3cret"), what("one", 7001), NEVER);
    expect(String(await failed.catch((error) => error))).not.toContain("s3cret");
  });
});

describe("answers over UDP", () => {
  const connected = (bytes: Buffer) => Buffer.concat([words(0), bytes.subarray(12, 16), words(7, 7)]);
  const answered = (bytes: Buffer, peers = Buffer.from([192, 0, 2, 1, 26, 225])) =>
    Buffer.concat([words(1), bytes.subarray(12, 16), words(900, 0, 0), peers]);
  const isConnect = (bytes: Buffer) => bytes.length === 16;

  test("wrong numbers and short answers are passed over until the right one comes", async () => {
    using server = await udp((bytes, send) => {
      send(Buffer.alloc(3));
      send(Buffer.concat([words(0, 1), Buffer.alloc(8)]));
      setTimeout(() => send(isConnect(bytes) ? connected(bytes) : answered(bytes)), 20);
    });
    const { intervalS, peers } = await announce(server.url, what("one", 7001), NEVER);
    expect([intervalS, peers.map(textOf)]).toEqual([900, ["192.0.2.1:6881"]]);
  });

  test("nobody else can answer", async () => {
    const other = createSocket("udp4").bind(0, "127.0.0.1");
    await once(other, "listening");
    const socket = createSocket("udp4").bind(0, "127.0.0.1");
    await once(socket, "listening");
    socket.on("message", (bytes, from) =>
      other.send(isConnect(bytes) ? connected(bytes) : answered(bytes), from.port, from.address),
    );
    const failed = announce(`udp://127.0.0.1:${socket.address().port}`, what("one", 7001), NEVER, 300);
    await expect(failed).rejects.toThrow("no answer within 0.3 s");
    other.close();
    socket.close();
  });

  test.each<[string, (bytes: Buffer) => Buffer, string]>([
    [
      "a refusal",
      (bytes) => Buffer.concat([words(3), bytes.subarray(12, 16), Buffer.from("no\x1b")]),
      "refused: no?",
    ],
    [
      "another action",
      (bytes) => Buffer.concat([words(9), bytes.subarray(12, 16), words(1, 2, 3)]),
      "answered 9 with 20 bytes to 0",
    ],
    [
      "half a connection",
      (bytes) => Buffer.concat([words(0), bytes.subarray(12, 16)]),
      "answered 0 with 8 bytes to 0",
    ],
    [
      "half a peer",
      (bytes) => (isConnect(bytes) ? connected(bytes) : answered(bytes, Buffer.alloc(7))),
      "7 bytes are no peers of 6",
    ],
    ["nothing", () => Buffer.alloc(0), "no answer within 0.3 s"],
  ])("%s is an error and no more", async (_, answer, why) => {
    using server = await udp((bytes, send) => send(answer(bytes)));
    await expect(announce(server.url, what("one", 7001), NEVER, 300)).rejects.toThrow(why);
  });

  test("a name that there is not, and a port where nobody is", async () => {
    await expect(announce("udp://nobody.invalid:1", what("one", 7001), NEVER, 2000)).rejects.toThrow(
      TrackerError,
    );
    await expect(announce("udp://127.0.0.1:1", what("one", 7001), NEVER, 300)).rejects.toThrow(
      "udp://127.0.0.1:1: ",
    );
  });
});

describe("finders side by side", () => {
  const wanted = (met: string[]) => ({
    infohash: INFOHASH,
    port: 7000,
    meet: (address: string) => void met.push(address),
  });
  const again = { firstMs: 10, mostMs: 50 };

  test("one that fails is started again and stops nobody; one that is flooded neither", async () => {
    const [met, told, stop] = [[] as string[], [] as string[], new AbortController()];
    let starts = 0;
    const finders: Record<string, Finder> = {
      throws: () => {
        throw new Error("at once");
      },
      rejects: async ({ meet }) => {
        if (++starts < 4) throw new Error("later");
        meet("192.0.2.1:6881");
      },
      flooded: async ({ meet }) => {
        for (let n = 0; n < 100_000; n++) meet(`10.${n >> 16}.${(n >> 8) & 255}.${n & 255}:6881`);
      },
      babbles: async ({ meet }) => {
        for (const text of ["", "l-3:", "example.org:1", "0.0.0.0:1", "192.0.2.9:0", "[::]:1"]) meet(text);
      },
      hangs: (_, signal) => once(signal, "abort").then(() => undefined),
      list: listFinder(["192.0.2.2:6881", "192.0.2.2:6881", "[2001:DB8::1]:6881"]),
    };
    const running = runFinders(finders, wanted(met), stop.signal, {
      again,
      tell: (name, text) => told.push(`${name}: ${text}`),
    });
    await until("both are met", () => ["192.0.2.1:6881", "192.0.2.2:6881"].every((one) => met.includes(one)));
    stop.abort();
    await running;
    expect(met.filter((address) => !address.startsWith("10."))).toEqual(
      expect.arrayContaining(["192.0.2.1:6881", "192.0.2.2:6881", "[2001:db8::1]:6881"]),
    );
    expect(met.filter((address) => !address.startsWith("10."))).toHaveLength(3);
    expect(met.filter((address) => address.startsWith("10.")).length).toBeLessThan(420);
    expect(told.filter((text) => text === "rejects: later")).toHaveLength(3);
    expect(told).toContain("throws: at once");
    expect(told.filter((text) => text.startsWith("babbles"))).toEqual([]);
  });

  test("a member that throws at an address is told, and the finder goes on", async () => {
    const [met, told] = [[] as string[], [] as string[]];
    const meet = (address: string) => {
      if (met.push(address) === 1) throw new Error("full");
    };
    const finder: Finder = async (one) => {
      one.meet("192.0.2.1:6881");
      one.meet("192.0.2.2:6881");
    };
    await runFinders({ one: finder }, { ...wanted(met), meet }, NEVER, {
      tell: (_, text) => told.push(text),
    });
    expect(met).toEqual(["192.0.2.1:6881", "192.0.2.2:6881"]);
    expect(told).toEqual(["192.0.2.1:6881: Error: full"]);
  });

  test("a DHT that fails is asked again", async () => {
    const [met, stop] = [[] as string[], new AbortController()];
    let asked = 0;
    const dht = {
      peers: async (_: string, port: number | undefined, tell: (address: string) => void) => {
        if (++asked === 1) throw new Error("no network");
        expect(port).toBe(7000);
        tell("192.0.2.3:6881");
      },
    };
    const running = runFinders({ dht: dhtFinder(dht, 10) }, wanted(met), stop.signal, {
      again,
      tell: () => undefined,
    });
    await until("met", () => met.length > 0);
    stop.abort();
    await running;
    expect(met).toEqual(["192.0.2.3:6881"]);
  });

  test("a tracker that is down is told of, and the one beside it answers", async () => {
    await using real = await tracker();
    await announce(real.http, what("other", 7005), NEVER);
    const [met, told, stop] = [[] as string[], [] as string[], new AbortController()];
    const finder = trackerFinder(["http://127.0.0.1:1/announce", "wss://x", real.http], {
      tell: (text) => told.push(text),
    });
    const running = runFinders({ tracker: finder }, wanted(met), stop.signal, {
      again,
      tell: (_, text) => told.push(text),
    });
    await until("met", () => met.includes("127.0.0.1:7005") && told.length === 2);
    stop.abort();
    await running;
    expect(told.sort()).toEqual([
      expect.stringContaining("http://127.0.0.1:1: "),
      "wss://x: no http, https or udp tracker",
    ]);
  });
});
