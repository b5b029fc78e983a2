import { expect, test } from "bun:test";
import { type Ending, Retry } from "../agent/mqtt/retry.ts";

const unreachable = { kind: "unreachable", reason: undefined, livedMs: undefined } as const;
const dropped = { kind: "closed", reason: undefined, livedMs: undefined } as const;

/** A policy with its clock; `end` plays an ending with the version that was due, and lets the wait pass. */
function play(options: { maxMs?: number; version?: 5 | 4; random?: () => number } = {}) {
  const clock = { now: 0 };
  const retry = new Retry({
    maxMs: 300_000,
    version: 5,
    random: () => 1,
    now: () => clock.now,
    ...options,
  });
  const end = (ending: Omit<Ending, "version">) => {
    const { version } = retry;
    clock.now += ending.livedMs ?? 0;
    const plan = retry.next({ ...ending, version });
    clock.now += plan.waitMs;
    return { version, ...plan };
  };
  return { clock, retry, end };
}

test("the ceiling of the wait doubles from one second to the maximum, and starts again after a minute of good connection", () => {
  const { end } = play();
  const waits = Array.from({ length: 11 }, () => end(unreachable).waitMs / 1000);
  expect(waits).toEqual([1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
  expect(end({ kind: "lost", reason: undefined, livedMs: 59_000 }).waitMs).toBe(300_000);
  expect(end({ kind: "lost", reason: undefined, livedMs: 60_000 }).waitMs).toBe(1000);
  expect(end(unreachable).waitMs).toBe(2000);
});

test("the jitter is full: the wait is anything from nothing to the ceiling", () => {
  expect(play({ random: () => 0 }).end(unreachable).waitMs).toBe(0);
  expect(play({ random: () => 0.25 }).end(unreachable).waitMs).toBe(250);
});

test.each([
  { reason: 0x88, name: "server unavailable" },
  { reason: 0x89, name: "server busy" },
  { reason: 0x97, name: "quota exceeded" },
  { reason: 0x9f, name: "connection rate exceeded" },
  { reason: 0x03, name: "server unavailable (3.1.1)" },
])("a broker that says $name is left alone for at least five seconds", ({ reason }) => {
  const { end } = play({ random: () => 0 });
  expect(end({ kind: "refused", reason, livedMs: undefined }).waitMs).toBe(5000);
});

test.each([0x84, 0x01])(
  "a broker that does not speak MQTT 5 (0x%x) gets 3.1.1 at once and for an hour",
  (reason) => {
    const { end, retry, clock } = play();
    expect(end({ kind: "refused", reason, livedMs: undefined })).toEqual({
      version: 5,
      waitMs: 0,
      isCloned: false,
    });
    expect(retry.version).toBe(4);
    clock.now += 3_599_000;
    expect(retry.version).toBe(4);
    clock.now += 1000;
    expect(retry.version).toBe(5);
  },
);

test("a broker that refuses 3.1.1 as well is tried with 5 again, after a wait", () => {
  const { end } = play();
  const refused = { kind: "refused", reason: 1, livedMs: undefined } as const;
  expect([end(refused), end(refused), end(refused)].map(({ version, waitMs }) => [version, waitMs])).toEqual([
    [5, 0],
    [4, 1000],
    [5, 0],
  ]);
});

test("one that just closes gets 3.1.1 at the third try; if that works it stays, if not it is 5 again", () => {
  const fails = play();
  const versions = Array.from({ length: 7 }, () => fails.end(dropped).version);
  expect(versions).toEqual([5, 5, 4, 5, 5, 4, 5]);
  const works = play();
  works.end(dropped);
  works.end(dropped);
  expect(works.end({ kind: "lost", reason: undefined, livedMs: 100_000 }).version).toBe(4);
  expect(works.end(unreachable).version).toBe(4);
});

test("being away, or refusing the password, says nothing about the version", () => {
  const { end } = play();
  for (let time = 0; time < 5; time++) {
    expect(end(unreachable).version).toBe(5);
    expect(end({ kind: "refused", reason: 0x86, livedMs: undefined }).version).toBe(5);
    expect(end({ kind: "tls", reason: undefined, livedMs: undefined }).version).toBe(5);
  }
});

test("a configuration that says 3 never tries 5", () => {
  const { end } = play({ version: 4 });
  const refused = { kind: "refused", reason: 1, livedMs: undefined } as const;
  expect([end(refused), end(dropped), end(dropped), end(dropped)].map(({ version }) => version)).toEqual([
    4, 4, 4, 4,
  ]);
});

const told = { kind: "closed", reason: 0x8e, livedMs: 500 } as const;
const thrownOut = { kind: "closed", reason: undefined, livedMs: 500 } as const;

test.each([
  { what: "told twice", endings: [told, told] },
  { what: "thrown out three times", endings: [thrownOut, thrownOut, thrownOut] },
])("$what within a minute is a clone: then five minutes between tries, whatever happens", ({ endings }) => {
  const { end } = play({ random: () => 0 });
  const flags = endings.map((ending) => end(ending).isCloned);
  expect(flags).toEqual(endings.map((_, index) => index === endings.length - 1));
  expect(end(unreachable).waitMs).toBe(300_000);
  expect(end({ ...told, livedMs: 599_000 })).toMatchObject({ waitMs: 300_000, isCloned: true });
  expect(end({ kind: "lost", reason: undefined, livedMs: 600_000 })).toMatchObject({
    waitMs: 0,
    isCloned: false,
  });
});

test.each([
  { what: "told once a minute", ending: { ...told, livedMs: 60_001 } },
  { what: "closed after more than ten seconds", ending: { ...thrownOut, livedMs: 10_001 } },
  { what: "closed with another reason", ending: { ...told, reason: 0x8b } },
  { what: "broken on the way", ending: { ...thrownOut, kind: "lost" as const } },
])("$what is no clone", ({ ending }) => {
  const { end } = play({ random: () => 0 });
  expect(Array.from({ length: 6 }, () => end(ending).isCloned)).not.toContain(true);
});
