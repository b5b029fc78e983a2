import { expect, test } from "bun:test";
import type { Extension, ExtensionPeer } from "../agent/swarm/engine.ts";
import { Files, PART_BYTES, type Verdict } from "../agent/swarm/files.ts";
import { SIDE_MAX_BYTES } from "../agent/swarm/frames.ts";
import { BencodeError, decodeBencode, encodeBencode } from "../boot/bencode.ts";
import { seeded } from "./fakes.ts";
import { until } from "./node.ts";
import { noise } from "./releases.ts";

const INFOHASH = "0123456789abcdef0123456789abcdef01234567";
const FUZZ = Number(process.env.FRUIT_FUZZ ?? 5000);
const QUICK = { ms: 100, parts: 4 };

const offered = (bytes: Uint8Array) => ({
  bytes: bytes.length,
  read: async (at: number, length: number) => bytes.subarray(at, at + length),
});

/** A peer of `files` that a test plays itself: what it is sent, and whether it was dropped. */
function player(files: Files, address = "192.0.2.1:6881", isFull = () => false) {
  const heard: Record<string, unknown>[] = [];
  const dropped: { why: string; banned: boolean }[] = [];
  const peer: ExtensionPeer = {
    ...{ infohash: INFOHASH, address },
    send: (bytes) => {
      const { value } = decodeBencode(bytes, 20_000);
      const all = [...(value as ReadonlyMap<string, { value: unknown }>)];
      heard.push(Object.fromEntries(all.map(([key, one]) => [key, one.value])));
      return !isFull();
    },
    drop: (why, banned = false) => {
      if (dropped.push({ why, banned }) === 1) end.closed?.();
    },
  };
  const end: Extension = files.open(peer);
  end.ready?.();
  return {
    ...{ end, heard, dropped },
    say: (message: Record<string, number | string | Uint8Array>) => end.message(encodeBencode(message)),
    /** Numbers of the parts it was asked for. */
    asked: () => heard.filter(({ t }) => t === 0n).map(({ p }) => Number(p)),
  };
}

/** Two ends that hear each other, as over a connection. */
function connect(a: Files, b: Files, address: string, changed = (bytes: Uint8Array) => bytes) {
  const ends: Extension[] = [];
  const dropped: string[] = [];
  const peer = (from: string, to: number): ExtensionPeer => ({
    ...{ infohash: INFOHASH, address: from },
    send: (bytes) => {
      const copy = Uint8Array.from(to === 0 ? changed(bytes) : bytes);
      queueMicrotask(() => dropped.length === 0 && ends[to]?.message(copy));
      return true;
    },
    drop: (why) => {
      dropped.push(why);
      for (const end of ends) end.closed?.();
    },
  });
  ends.push(a.open(peer(address, 1)), b.open(peer("192.0.2.99:1", 0)));
  for (const end of ends) end.ready?.();
  return dropped;
}

/** Fetches until somebody's is good; the bytes, and who was judged. */
async function fetched(
  files: Files,
  good: Uint8Array,
  what: "update" | "side" = "side",
  verdict: Verdict = "false",
) {
  const judged: string[] = [];
  let found: Uint8Array | undefined;
  const judge = async (bytes: Uint8Array, from: string): Promise<Verdict> => {
    judged.push(from);
    found = bytes;
    return Buffer.from(bytes).equals(good) ? "good" : verdict;
  };
  await files.fetch(INFOHASH, what, { bytes: good.length, judge }, new AbortController().signal);
  return { judged, found: Buffer.from(found ?? []) };
}

const side = noise(20 * PART_BYTES + 77);

test.each([1, PART_BYTES, PART_BYTES + 1, side.length])(
  "a file of %d bytes comes whole from a peer that has it",
  async (length) => {
    const [taker, giver] = [new Files(), new Files()];
    const file = side.subarray(0, length);
    connect(taker, giver, "192.0.2.1:6881");
    giver.offer(INFOHASH, "side", offered(file));
    giver.offer(INFOHASH, "update", offered(noise(500, 3)));
    const { found, judged } = await fetched(taker, file);
    expect([found.equals(file), judged]).toEqual([true, ["192.0.2.1:6881"]]);
    expect((await fetched(taker, noise(500, 3), "update")).found.length).toBe(500);
  },
);

test("a lie costs one file: its peer is banned, and the next one is asked", async () => {
  const [taker, liar, giver] = [new Files(), new Files(), new Files()];
  liar.offer(INFOHASH, "side", offered(noise(side.length, 9)));
  const dropped = connect(taker, liar, "192.0.2.66:1");
  giver.offer(INFOHASH, "side", offered(side));
  connect(taker, giver, "192.0.2.1:6881");
  const { found, judged } = await fetched(taker, side);
  expect([found.equals(side), judged]).toEqual([true, ["192.0.2.66:1", "192.0.2.1:6881"]]);
  expect(dropped).toEqual([`its side file is not that of ${INFOHASH}`]);
});

test("a file that is only unwelcome is not asked for again, and its peer stays", async () => {
  const [taker, other, giver] = [new Files(), new Files(), new Files()];
  other.offer(INFOHASH, "side", offered(noise(side.length, 9)));
  const dropped = connect(taker, other, "192.0.2.66:1");
  const job = fetched(taker, side, "side", "unwelcome");
  await Bun.sleep(50);
  giver.offer(INFOHASH, "side", offered(side));
  connect(taker, giver, "192.0.2.1:6881");
  expect((await job).judged).toEqual(["192.0.2.66:1", "192.0.2.1:6881"]);
  expect(dropped).toEqual([]);
});

test("peers that announce another size are never asked, those that stop or dribble are left for others", async () => {
  const taker = new Files(QUICK);
  const small = player(taker, "192.0.2.2:1");
  small.say({ k: "side", n: side.length - 1, t: 3 });
  const dribbler = player(taker, "192.0.2.3:1");
  dribbler.say({ k: "side", n: side.length, t: 3 });
  const job = fetched(taker, side);
  await until("a question", () => dribbler.asked().length > 0);
  const giver = new Files();
  giver.offer(INFOHASH, "side", offered(side));
  connect(taker, giver, "192.0.2.1:6881");
  dribbler.say({ d: side.subarray(0, PART_BYTES), k: "side", n: side.length, p: 0, t: 1 });
  expect((await job).judged).toEqual(["192.0.2.1:6881"]);
  // So many ahead, and one for the part that came
  expect([dribbler.asked().length, small.asked()]).toEqual([9, []]);
  expect(dribbler.dropped).toEqual([]);
});

test("a peer that has no such part after all, or goes, is left for another", async () => {
  const taker = new Files();
  const [none, gone] = [player(taker, "192.0.2.2:1"), player(taker, "192.0.2.3:1")];
  for (const one of [none, gone]) one.say({ k: "side", n: side.length, t: 3 });
  const job = fetched(taker, side);
  await until("a question", () => none.asked().length > 0);
  none.say({ k: "side", p: 0, t: 2 });
  await until("the next", () => gone.asked().length > 0);
  gone.end.closed?.();
  const giver = new Files();
  giver.offer(INFOHASH, "side", offered(side));
  connect(taker, giver, "192.0.2.1:6881");
  expect((await job).found.equals(side)).toBe(true);
});

test("a part of the wrong length bans its peer", async () => {
  const taker = new Files();
  const liar = player(taker);
  liar.say({ k: "side", n: side.length, t: 3 });
  void fetched(taker, side);
  await until("a question", () => liar.asked().length > 0);
  liar.say({ d: new Uint8Array(5), k: "side", n: side.length, p: 0, t: 1 });
  expect(liar.dropped).toEqual([{ why: "part 0 of its side file has 5 bytes", banned: true }]);
});

test("parts that nobody asked for are dropped, and so is their peer where they do not stop", () => {
  const flooder = player(new Files());
  for (let part = 0; part < 64; part++) flooder.say({ d: "x", k: "side", n: 10, p: part, t: 1 });
  expect(flooder.dropped).toEqual([]);
  flooder.say({ d: "x", k: "side", n: 10, p: 0, t: 1 });
  expect(flooder.dropped).toEqual([{ why: "it sends parts of files that nobody asked for", banned: true }]);
});

test("a peer that asks without waiting for answers is let go", () => {
  const files = new Files();
  files.offer(INFOHASH, "side", { bytes: side.length, read: () => new Promise(() => undefined) });
  const asker = player(files);
  for (let part = 0; part < 17; part++) asker.say({ k: "side", p: part, t: 0 });
  expect(asker.dropped).toEqual([{ why: "more than 16 of its questions wait", banned: false }]);
});

test("a peer is given one part at a time, and only so many a second", async () => {
  const files = new Files();
  files.offer(INFOHASH, "side", offered(side));
  const asker = player(files);
  let asked = 0;
  const endMs = performance.now() + 1000;
  while (performance.now() < endMs) {
    const given = asker.heard.filter(({ t }) => t === 1n).length;
    for (; asked < given + 16; asked++) asker.say({ k: "side", p: asked % 20, t: 0 });
    await Bun.sleep(1);
  }
  // 256 at once and 64 a second: never twice as many, whatever else this machine does
  expect(asker.heard.length).toBeGreaterThan(200);
  expect(asker.heard.length).toBeLessThan(400);
  expect(asker.dropped).toEqual([]);
});

test("a peer that reads nothing of what it asks for is let go before much waits for it", async () => {
  const files = new Files();
  files.offer(INFOHASH, "side", offered(side));
  const asker = player(files, undefined, () => true);
  for (let part = 0; part < 16; part++) asker.say({ k: "side", p: part, t: 0 });
  await Bun.sleep(600);
  expect(asker.heard.filter(({ t }) => t === 1n).length).toBeLessThan(5);
});

test("what cannot be read, or is not there, is answered so", async () => {
  const files = new Files();
  files.offer(INFOHASH, "side", { bytes: 10, read: () => Promise.reject(new Error("EIO")) });
  const asker = player(files);
  for (const p of [0, 7]) asker.say({ k: "side", p, t: 0 });
  asker.say({ k: "update", p: 0, t: 0 });
  await until("answers", () => asker.heard.length === 4);
  expect(asker.heard.slice(1)).toEqual([
    { k: Buffer.from("side"), p: 0n, t: 2n },
    { k: Buffer.from("side"), p: 7n, t: 2n },
    { k: Buffer.from("update"), p: 0n, t: 2n },
  ]);
});

test.each([
  { what: "a kind there is not", message: { k: "side", p: 0, t: 4 } },
  { what: "a file there is not", message: { k: "/etc/passwd", p: 0, t: 0 } },
  { what: "a size of nothing", message: { k: "side", n: 0, t: 3 } },
  { what: "an endless side file", message: { k: "side", n: SIDE_MAX_BYTES + 1, t: 3 } },
  { what: "an update file of 2 MiB", message: { k: "update", n: 2 << 20, t: 3 } },
  { what: "a part beyond any file", message: { k: "update", p: 64, t: 0 } },
  { what: "a part without bytes", message: { k: "side", n: 10, p: 0, t: 1 } },
  { what: "more than a part", message: { d: new Uint8Array(20_000), k: "side", n: 20_000, p: 0, t: 1 } },
])("a message with $what closes the connection", ({ message }) => {
  expect(() => player(new Files()).say(message)).toThrow(BencodeError);
});

test(`${FUZZ} changed messages are taken or a BencodeError, never anything else`, () => {
  const random = seeded(5);
  const files = new Files();
  files.offer(INFOHASH, "side", offered(side));
  const messages = [
    { k: "side", p: 3, t: 0 },
    { d: new Uint8Array(40), k: "update", n: 40, p: 0, t: 1 },
    { k: "side", p: 1, t: 2 },
    { k: "update", n: 4000, t: 3 },
  ].map((message) => encodeBencode(message));
  let taken = 0;
  for (let round = 0; round < FUZZ; round++) {
    const bytes = Uint8Array.from(messages[round % messages.length] ?? []);
    for (let changes = 1 + Math.floor(random() * 3); changes > 0; changes--)
      bytes[Math.floor(random() * bytes.length)] = Math.floor(random() * 256);
    try {
      player(files).end.message(bytes);
      taken++;
    } catch (cause) {
      if (!(cause instanceof BencodeError)) throw cause;
    }
  }
  expect(taken).toBeGreaterThan(0);
});
