import { expect, test } from "bun:test";
import { Backlog } from "../agent/mqtt/backlog.ts";
import { PacketLimit } from "../agent/mqtt/frames.ts";
import type { Outgoing } from "../agent/mqtt/message.ts";
import { seeded } from "./fakes.ts";

const OVERHEAD = 100;
const message = (kind: Outgoing["class"], topic: string, payload: string): Outgoing => ({
  topic,
  payload,
  qos: 1,
  retain: false,
  class: kind,
});
const event = (seq: number) => message("event", "e", JSON.stringify({ seq }));

function drain(backlog: Backlog): string[] {
  const texts: string[] = [];
  for (let next = backlog.take(); next; next = backlog.take()) texts.push(`${next.topic} ${next.payload}`);
  return texts;
}

test("results come out before events, events before telemetry, each in its order; events are marked", () => {
  const backlog = new Backlog(10_000, () => 0);
  for (const one of [
    message("tele", "t", '{"ts":1}'),
    event(1),
    message("result", "r", "{}"),
    event(2),
    message("result", "r", '{"n":2}'),
  ])
    backlog.add(one);
  expect(drain(backlog)).toEqual([
    "r {}",
    'r {"n":2}',
    'e {"seq":1,"buffered":1}',
    'e {"seq":2,"buffered":1}',
    't {"ts":1}',
  ]);
  expect(backlog).toMatchObject({ size: 0, bytes: 0, dropped: 0 });
});

test("telemetry is thinned to one message per topic and five minutes, and what is thinned is counted", () => {
  let now = 0;
  const backlog = new Backlog(10_000, () => now);
  for (let minute = 0; minute <= 10; minute++) {
    now = minute * 60_000;
    backlog.add(message("tele", "cpu", `{"ts":${minute}}`));
    if (minute === 1) backlog.add(message("tele", "net", "{}"));
  }
  expect(backlog.dropped).toBe(8);
  expect(drain(backlog)).toEqual(['cpu {"ts":0}', "net {}", 'cpu {"ts":5}', 'cpu {"ts":10}']);
  // Once it was empty a new outage begins.
  backlog.add(message("tele", "cpu", '{"ts":10}'));
  expect(backlog.size).toBe(1);
});

test("full, it drops the oldest telemetry first, then the oldest events, and results last", () => {
  const each = OVERHEAD + Buffer.byteLength('e{"seq":1}');
  const backlog = new Backlog(each * 4, () => 0);
  backlog.add(message("result", "r", '{"seq":0}'));
  for (const topic of ["a", "b"]) backlog.add(message("tele", topic, '{"seq":0}'));
  for (let seq = 1; seq <= 3; seq++) backlog.add(event(seq));
  expect(backlog.dropped).toBe(2);
  backlog.add(event(4));
  expect(backlog.bytes).toBe(each * 4);
  expect(drain(backlog)).toEqual([
    'r {"seq":0}',
    'e {"seq":2,"buffered":1}',
    'e {"seq":3,"buffered":1}',
    'e {"seq":4,"buffered":1}',
  ]);
});

test("what is put back comes before what waited, oldest first, and nothing is live after it", () => {
  const backlog = new Backlog(10_000, () => 0);
  backlog.add(event(3), true);
  backlog.add(message("result", "r", '{"n":3}'));
  expect(backlog).toMatchObject({ hasOrdered: true, isNextLive: false });
  expect(backlog.take()?.payload).toBe('{"n":3}');
  expect(backlog.isNextLive).toBe(true);
  backlog.putBack([event(1), message("result", "r", '{"n":1}'), event(2), message("result", "r", '{"n":2}')]);
  expect(backlog.isNextLive).toBe(false);
  expect(drain(backlog)).toEqual([
    'r {"n":1}',
    'r {"n":2}',
    ...[1, 2, 3].map((seq) => `e {"seq":${seq},"buffered":1}`),
  ]);
  backlog.add(message("tele", "t", "{}"), true);
  expect(backlog).toMatchObject({ hasOrdered: false, isNextLive: true });
  expect(drain(backlog)).toEqual(["t {}"]);
  expect(backlog).toMatchObject({ size: 0, bytes: 0, dropped: 0, isNextLive: false });
});

test("an event that waited for room alone is not marked", () => {
  const backlog = new Backlog(10_000, () => 0);
  backlog.add(event(1), true);
  expect(drain(backlog)).toEqual(['e {"seq":1}']);
});

test("a message larger than the whole buffer is lost alone", () => {
  const backlog = new Backlog(1000, () => 0);
  backlog.add(event(1));
  backlog.add(message("event", "e", JSON.stringify({ text: "x".repeat(1000) })));
  expect(backlog.dropped).toBe(1);
  expect(drain(backlog)).toEqual(['e {"seq":1,"buffered":1}']);
});

test("whatever comes, the bound holds and nothing is counted twice", () => {
  const random = seeded(7);
  const backlog = new Backlog(5000, () => random() * 1e9);
  let added = 0;
  let taken = 0;
  for (let turn = 0; turn < 5000; turn++) {
    if (random() < 0.3) {
      if (backlog.take()) taken++;
    } else {
      const kind = (["tele", "event", "result"] as const)[Math.floor(random() * 3)] ?? "event";
      const text = JSON.stringify({ text: "é".repeat(random() * 300) });
      const one = message(kind, `t${Math.floor(random() * 9)}`, text);
      if (random() < 0.2) backlog.putBack([one]);
      else backlog.add(one, random() < 0.5);
      added++;
    }
    expect(backlog.bytes).toBeLessThanOrEqual(5000);
    expect(taken + backlog.size + backlog.dropped).toBe(added);
  }
  drain(backlog);
  expect(backlog.bytes).toBe(0);
});

/** One MQTT packet of so many body bytes. */
function packet(length: number): number[] {
  const header = [0x30];
  let rest = length;
  do {
    header.push((rest % 128) | (rest >= 128 ? 0x80 : 0));
    rest = Math.floor(rest / 128);
  } while (rest > 0);
  return [...header, ...new Array(length).fill(0xff)];
}

test("packets up to the limit pass however they are cut, one byte more does not", () => {
  const random = seeded(11);
  for (let round = 0; round < Number(process.env.FRUIT_FUZZ ?? 2000) / 10; round++) {
    const lengths = Array.from({ length: 5 }, () => Math.floor(random() * 301));
    const isTooLong = lengths.some((length) => length > 300 - (round % 2) * 50);
    const limit = new PacketLimit(300 - (round % 2) * 50);
    const bytes = Uint8Array.from(lengths.flatMap(packet));
    let isAccepted = true;
    for (let at = 0; at < bytes.length && isAccepted; ) {
      const step = 1 + Math.floor(random() * 200);
      isAccepted = limit.accepts(bytes.subarray(at, at + step));
      at += step;
    }
    expect(isAccepted).toBe(!isTooLong);
  }
});

test.each([
  { what: "the largest length there is", bytes: [0x30, 0xff, 0xff, 0xff, 0x7f] },
  { what: "a length of five bytes", bytes: [0x30, 0x80, 0x80, 0x80, 0x80] },
])("$what is refused before any of its body came", ({ bytes }) => {
  expect(new PacketLimit(262_144).accepts(Uint8Array.from(bytes))).toBe(false);
});
