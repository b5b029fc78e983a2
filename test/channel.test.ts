/** The language of console sessions: its bytes, and how it travels on a Unix socket. */
import { afterAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { createConnection, createServer, type Socket } from "node:net";
import { join } from "node:path";
import {
  type Channel,
  decode,
  encode,
  MESSAGE_MAX,
  type Message,
  MessageError,
  pieces,
} from "../agent/console/channel.ts";
import { Frames, streamChannel } from "../agent/console/stream.ts";
import { bytes, notation, seeded } from "./fakes.ts";
import { scratch, until } from "./node.ts";

setDefaultTimeout(15_000);

const folder = scratch();
afterAll(() => folder[Symbol.dispose]());

const VIEW = {
  v: 1,
  name: "rack1-a",
  device: "/dev/ttyUSB0",
  baud: 115_200,
  state: "up",
  writer: "local:alice",
  readers: 2,
} as const;

const MESSAGES: Message[] = [
  { kind: "bytes", bytes: Uint8Array.of(0, 1, 127, 128, 255, 13, 10) },
  { kind: "bytes", bytes: new Uint8Array() },
  { kind: "bytes", bytes: Buffer.from("grüße 👋"), at: 1_795_000_000_123 },
  { kind: "mark", mark: { at: 1_795_000_000_000, kind: "power", text: "power: off by alice" } },
  { kind: "view", view: VIEW, mayWrite: true },
  { kind: "view", view: { ...VIEW, writer: null, state: "gone", error: "unplugged" }, mayWrite: false },
  { kind: "ask", n: 1, ask: { do: "break" } },
  { kind: "ask", n: 2, ask: { do: "takeover", reason: "kernel test" } },
  { kind: "ask", n: 3, ask: { do: "release" } },
  { kind: "ask", n: 4, ask: { do: "who" } },
  { kind: "ask", n: 5, ask: { do: "replay", lines: 200 } },
  { kind: "answer", n: 4, result: [{ who: "local:alice" }] },
  { kind: "answer", n: 2, refused: "locked by bob" },
  { kind: "end", message: "the agent stops" },
];

const plain = (message: Message | undefined) =>
  message?.kind === "bytes" ? { ...message, bytes: notation(message.bytes) } : message;

test.each(MESSAGES)("$kind comes out as it went in: %j", (message) => {
  expect(plain(decode(encode(message)))).toEqual(plain(message));
});

test.each([
  { what: "bytes", message: MESSAGES[0], wire: "01 00 01 7f 80 ff 0d 0a" },
  {
    what: "dated bytes",
    message: { kind: "bytes", bytes: bytes("41"), at: 1_795_000_000_123 } as const,
    wire: "02 01 a1 ee 56 5e 7b 41",
  },
  {
    what: "an end",
    message: { kind: "end", message: "x" } as const,
    wire: `07 ${notation(Buffer.from('{"message":"x"}'))}`,
  },
])("$what have these bytes, whatever release speaks", ({ message, wire }) => {
  expect(notation(encode(message as Message))).toBe(wire);
});

test.each([
  { what: "a type nobody knows", wire: [99, 1, 2, 3] },
  { what: "a request nobody knows", wire: [5, ...Buffer.from('{"n":1,"ask":{"do":"dance"}}')] },
])("$what is ignored: the other side may be newer", ({ wire }) => {
  expect(decode(Uint8Array.from(wire))).toBeUndefined();
});

test("a kind of mark that nobody knows is shown like any other", () => {
  const wire = [3, ...Buffer.from('{"at":1,"kind":"eclipse","text":"dark","more":[]}')];
  expect(decode(Uint8Array.from(wire))).toEqual({
    kind: "mark",
    mark: { at: 1, kind: "eclipse" as "notice", text: "dark" },
  });
});

test.each([
  { what: "nothing", wire: [], says: "a message of 0 bytes: there are 1 to 65536" },
  { what: "a date without bytes", wire: [2, 0, 0], says: "dated bytes without a date: 3 bytes" },
  { what: "no JSON", wire: [3, 123], says: "a message of type 3 that is not JSON" },
  { what: "no UTF-8", wire: [7, 0x22, 0xff, 0x22], says: "a message of type 7 that is not JSON" },
  { what: "a list", wire: [7, 91, 93], says: "a message of type 7: message: is missing" },
  {
    what: "a request without a reason",
    wire: [5, ...Buffer.from('{"n":1,"ask":{"do":"takeover"}}')],
    says: "a message of type 5: ask.reason: is missing",
  },
  {
    what: "a number that is none",
    wire: [6, ...Buffer.from('{"n":-1}')],
    says: "a message of type 6: n: at least 0, not -1",
  },
  {
    what: "too much",
    wire: new Array(MESSAGE_MAX + 1).fill(1),
    says: "a message of 65537 bytes: there are 1 to 65536",
  },
])("$what is no message, and it is said why", ({ wire, says }) => {
  expect(() => decode(Uint8Array.from(wire))).toThrow(new MessageError(says));
});

test("nothing longer than a message may be is made", () => {
  expect(() => encode({ kind: "end", message: "x".repeat(MESSAGE_MAX) })).toThrow(
    new MessageError(`end of ${MESSAGE_MAX + 15} bytes: a message is at most ${MESSAGE_MAX}`),
  );
  expect(encode({ kind: "bytes", bytes: new Uint8Array(MESSAGE_MAX - 1) })).toHaveLength(MESSAGE_MAX);
});

test("long bytes are cut into pieces that have their time, and nothing is lost", () => {
  const long = Uint8Array.from({ length: 100_001 }, (_, n) => n);
  const cut = [...pieces({ kind: "bytes", bytes: long, at: 7 })] as Extract<Message, { kind: "bytes" }>[];
  expect(cut.map(({ bytes, at }) => [bytes.length, at])).toEqual([
    [32_768, 7],
    [32_768, 7],
    [32_768, 7],
    [1697, 7],
  ]);
  expect(Buffer.concat(cut.map(({ bytes }) => bytes)).equals(long)).toBe(true);
});

test("a clock that was never set makes no message that cannot be read", () => {
  for (const at of [-5, Number.MAX_SAFE_INTEGER, 0.4])
    expect(decode(encode({ kind: "bytes", bytes: bytes("41"), at }))).toMatchObject({ kind: "bytes" });
});

const framed = (message: Message) => {
  const body = encode(message);
  const head = Buffer.alloc(4);
  head.writeUInt32BE(body.length);
  return Buffer.concat([head, body]);
};

test.each([1, 2, 3, 5, 7, 64, 100_000])("in pieces of %d bytes a stream is the same messages", (size) => {
  const stream = Buffer.concat(MESSAGES.map(framed));
  const frames = new Frames();
  const heard: unknown[] = [];
  for (let at = 0; at < stream.length; at += size)
    for (const body of frames.push(stream.subarray(at, at + size))) heard.push(plain(decode(body)));
  expect(heard).toEqual(MESSAGES.map(plain));
});

test("whatever bytes come, there are messages or a MessageError, and never more memory than one message", () => {
  const rounds = Number(process.env.FRUIT_FUZZ ?? 5_000);
  const random = seeded(20_261_123);
  const seeds = MESSAGES.map(encode);
  let refused = 0;
  for (let round = 0; round < rounds; round++) {
    const bytes = Buffer.from(seeds[Math.floor(random() * seeds.length)] ?? []);
    for (let change = random() * 4; change > 0 && bytes.length > 0; change--)
      bytes[Math.floor(random() * bytes.length)] = Math.floor(random() * 256);
    const cut = bytes.subarray(0, random() < 0.3 ? Math.floor(random() * bytes.length) : bytes.length);
    try {
      const message = decode(cut);
      // What was understood can be said again
      if (message) expect(encode(message).length).toBeLessThanOrEqual(MESSAGE_MAX);
    } catch (error) {
      if (!(error instanceof MessageError)) throw error;
      refused++;
    }
  }
  expect(refused).toBeGreaterThan(rounds / 10);
  expect(refused).toBeLessThan(rounds);
});

test("a stream of rubbish ends at the first length that none can have", () => {
  const random = seeded(7);
  for (let round = 0; round < 500; round++) {
    const frames = new Frames();
    const rubbish = Uint8Array.from({ length: 200 }, () => Math.floor(random() * 256));
    rubbish[0] = 1;
    expect(() => [...frames.push(rubbish)]).toThrow(MessageError);
  }
});

describe("on a Unix socket", () => {
  /** Both ends of a connection. */
  async function pair(): Promise<{ here: Socket; there: Socket } & Disposable> {
    const path = join(folder.path, `${Math.floor(performance.now() * 1000)}.sock`);
    const { promise, resolve } = Promise.withResolvers<Socket>();
    const server = createServer((socket) => resolve(socket)).listen(path);
    await until("it listens", () => server.listening);
    const here = createConnection(path);
    const there = await promise;
    for (const socket of [here, there]) socket.on("error", () => undefined);
    return {
      here,
      there,
      [Symbol.dispose]() {
        here.destroy();
        there.destroy();
        server.close();
      },
    };
  }

  const said = (channel: Channel, text: string) => channel.send({ kind: "bytes", bytes: Buffer.from(text) });

  /** Everything that is heard, as text. */
  function listen(channel: Channel) {
    const heard = { text: "" };
    channel.receive((message) => {
      if (message.kind === "bytes") heard.text += Buffer.from(message.bytes).toString();
    });
    return heard;
  }

  test("messages of both directions come in order, and what was read before belongs to it", async () => {
    using sockets = await pair();
    const there = streamChannel(sockets.there, framed({ kind: "bytes", bytes: Buffer.from("rest ") }));
    const here = streamChannel(sockets.here);
    const heard = listen(there);
    const answers = listen(here);
    // Not waited for: the order is that of the calls
    void said(here, "a".repeat(50_000));
    await said(here, "b");
    await said(there, "answer");
    await until("both", () => heard.text.endsWith("b") && answers.text === "answer");
    expect(heard.text).toBe(`rest ${"a".repeat(50_000)}b`);
  });

  test("whoever does not listen is waited for, with a window of bytes under way and no more", async () => {
    using sockets = await pair();
    const here = streamChannel(sockets.here);
    const there = streamChannel(sockets.there);
    const waiting = Promise.withResolvers<void>();
    let heard = 0;
    there.receive(async (message) => {
      if (message.kind === "bytes") heard += message.bytes.length;
      await waiting.promise;
    });
    let sent = 0;
    const sending = (async () => {
      for (; sent < 2_000_000; sent += 1000) await said(here, "x".repeat(1000));
    })();
    await until("it waits", () => heard > 0);
    await Bun.sleep(200);
    expect(sent).toBeLessThanOrEqual(17_000);
    expect(sockets.here.bytesWritten).toBeLessThan(20_000);
    waiting.resolve();
    await sending;
    await until("all", () => heard === 2_000_000);
  });

  test("what came before somebody listens is kept", async () => {
    using sockets = await pair();
    const there = streamChannel(sockets.there);
    await said(streamChannel(sockets.here), "early");
    await Bun.sleep(20);
    const heard = listen(there);
    await until("early", () => heard.text === "early");
  });

  test("last words end both sides, after all that was said before", async () => {
    using sockets = await pair();
    const here = streamChannel(sockets.here);
    const there = streamChannel(sockets.there);
    const heard: string[] = [];
    there.receive(async (message) => {
      await Bun.sleep(1);
      if (message.kind === "bytes") heard.push(Buffer.from(message.bytes).toString());
    });
    for (let n = 0; n < 10; n++) await said(here, String(n));
    here.close("alice left");
    expect(await there.ended).toBe("alice left");
    expect(heard).toEqual(Array.from({ length: 10 }, (_, n) => String(n)));
    expect(await here.ended).toBe("alice left");
    await expect(said(here, "more")).rejects.toThrow("alice left");
    await expect(said(there, "more")).rejects.toThrow("alice left");
  });

  test("a peer that hangs up or is killed is noticed, also while what it said is still being heard", async () => {
    using sockets = await pair();
    const there = streamChannel(sockets.there);
    const stuck = Promise.withResolvers<void>();
    let heard = 0;
    there.receive(() => {
      heard++;
      return stuck.promise;
    });
    const here = streamChannel(sockets.here);
    await said(here, "a");
    await said(here, "b");
    await until("it is stuck", () => heard === 1);
    const startedAt = performance.now();
    sockets.here.destroy();
    expect(await there.ended).toBe("the connection was lost");
    expect(performance.now() - startedAt).toBeLessThan(5000);
    stuck.resolve();
    await Bun.sleep(20);
    // Nothing is heard any more once it has ended
    expect(heard).toBe(1);
  });

  test("half a connection is none: whoever ends its side has left", async () => {
    using sockets = await pair();
    const there = streamChannel(sockets.there);
    sockets.here.end();
    expect(await there.ended).toBe("the connection was lost");
  });

  test("closing is over within a second or two, also when the other side reads nothing", async () => {
    using sockets = await pair();
    const here = streamChannel(sockets.here);
    sockets.there.pause();
    const full = said(here, "x".repeat(1_000_000)).catch((error) => error.message);
    await Bun.sleep(50);
    here.close("bye");
    expect(await here.ended).toBe("bye");
    expect(await full).toBe("bye");
  });

  test.each([
    { what: "HTTP", rubbish: Buffer.from("GET / HTTP/1.1\r\n\r\n"), says: "a message of 1195725856 bytes" },
    { what: "an empty message", rubbish: Buffer.alloc(4), says: "a message of 0 bytes" },
    {
      what: "a broken message",
      rubbish: bytes("00 00 00 02 03 7b"),
      says: "a message of type 3 that is not JSON",
    },
  ])("$what ends it, and both sides are told", async ({ rubbish, says }) => {
    using sockets = await pair();
    const there = streamChannel(sockets.there);
    let told = "";
    sockets.here.on("data", (chunk) => {
      told += chunk;
    });
    sockets.here.write(rubbish);
    expect(await there.ended).toStartWith(`what came is no console: ${says}`);
    await until("it is told", () => told.includes(says));
  });

  test("whoever sends without waiting for room is cut off", async () => {
    using sockets = await pair();
    const there = streamChannel(sockets.there);
    there.receive(() => new Promise(() => undefined));
    const flood = framed({ kind: "bytes", bytes: new Uint8Array(30_000) });
    for (let n = 0; n < 100; n++) sockets.here.write(flood);
    expect(await there.ended).toBe(
      "what came is no console: more than the 16384 bytes that there was room for",
    );
  });

  test("what a newer side says beside is passed over and acknowledged", async () => {
    using sockets = await pair();
    const there = streamChannel(sockets.there);
    const heard = listen(there);
    let acknowledged = 0;
    sockets.here.on("data", (chunk) => {
      acknowledged += chunk.length;
    });
    sockets.here.write(
      Buffer.concat([bytes("00 00 00 03 63 00 00"), framed({ kind: "bytes", bytes: Buffer.from("ok") })]),
    );
    await until("ok", () => heard.text === "ok" && acknowledged === 18);
  });

  test("a handler that fails ends it with its words", async () => {
    using sockets = await pair();
    const there = streamChannel(sockets.there);
    there.receive(async () => {
      throw new Error("the screen is gone");
    });
    const here = streamChannel(sockets.here);
    await said(here, "x");
    expect(await here.ended).toBe("the screen is gone");
    expect(await there.ended).toBe("the screen is gone");
  });

  test("a message that is too long fails alone", async () => {
    using sockets = await pair();
    const here = streamChannel(sockets.here);
    const heard = listen(streamChannel(sockets.there));
    const long = here.send({ kind: "answer", n: 1, result: "x".repeat(MESSAGE_MAX) });
    await expect(long).rejects.toThrow(MessageError);
    await said(here, "after");
    await until("after", () => heard.text === "after");
  });
});
