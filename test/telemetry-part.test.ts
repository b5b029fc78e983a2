import { afterEach, beforeEach, expect, jest, test } from "bun:test";
import * as v from "valibot";
import { parseConfig } from "../agent/config.ts";
import { KINDS, type KindName, type Publish } from "../agent/messages.ts";
import { GROUPS, type Group, isSampled } from "../agent/telemetry/metrics.ts";
import { type Extra, telemetry } from "../agent/telemetry/part.ts";
import { createSampler, type Sampler } from "../agent/telemetry/sampler.ts";
import { PaperMachine } from "./paper.ts";

beforeEach(() => {
  jest.useFakeTimers();
  jest.setSystemTime(new Date("2026-08-24T10:12:12.700Z"));
});
afterEach(() => {
  jest.useRealTimers();
});

const ON = GROUPS.filter(isSampled);

/** Lets what a fired timer woke run to its next wait. */
async function settle() {
  for (let turn = 0; turn < 4; turn++) await Promise.resolve();
}

function start(
  options: {
    config?: unknown;
    synced?: boolean;
    random?: number[];
    extra?: Extra;
    sampler?: Sampler;
    refuses?: Group;
  } = {},
) {
  const said: { atMs: number; kind: KindName; instance: string; payload: Record<string, number> }[] = [];
  const logged: string[] = [];
  const beginMs = performance.now();
  const draws = [...(options.random ?? [0, 0.5])];
  const publish = ((kind: KindName, instance: string, payload: Record<string, number>) => {
    if (kind === `tele/${options.refuses}`) throw new Error("no room");
    said.push({ atMs: performance.now() - beginMs, kind, instance, payload });
  }) as unknown as Publish;
  const node = telemetry({
    sampler:
      options.sampler ??
      createSampler(new PaperMachine(), { filesystems: { root: "/" }, nowMs: () => performance.now() }),
    publish,
    config: parseConfig("test", { site: "lab", telemetry: options.config ?? {} }).telemetry,
    clock: () => ({ synced: options.synced ?? true }),
    extra: options.extra ?? {},
    random: () => draws.shift() ?? 0.5,
    log: (_level, what, fields) => logged.push(`${what} ${fields?.group}`),
  });
  const stop = new AbortController();
  const running = node.part(stop.signal);
  return {
    node,
    said,
    logged,
    /** The moments at which a group was published. */
    times: (kind: KindName) => said.filter((one) => one.kind === kind).map(({ atMs }) => Math.round(atMs)),
    async pass(seconds: number) {
      await settle();
      for (let tenth = 0; tenth < seconds * 10; tenth++) {
        jest.advanceTimersByTime(100);
        await settle();
      }
    },
    async end() {
      stop.abort();
      await running;
    },
  };
}

test("the first set is out within three seconds, whole, and fits the schemas", async () => {
  const one = start({ random: [0.999] });
  await one.pass(3);
  expect([...new Set(one.said.map(({ kind }) => kind))]).toEqual(
    ON.map((group): KindName => `tele/${group}`),
  );
  for (const { kind, payload } of one.said) expect(v.is(KINDS[kind].schema, payload)).toBe(true);
  await one.end();
});

test("after it each group follows its own interval, from a phase that is the node's own", async () => {
  const one = start({ random: [0, 0.25], config: { interval_seconds: 60, groups: { cpu: 10, fan: 0 } } });
  await one.pass(130);
  // 1 s, then a quarter of the interval, then the interval.
  expect(one.times("tele/memory")).toEqual([1000, 16_000, 76_000]);
  expect(one.times("tele/cpu").slice(0, 4)).toEqual([1000, 3500, 13_500, 23_500]);
  expect(one.times("tele/fan")).toEqual([]);
  await one.end();
});

test("nodes that start together do not publish together", async () => {
  const first = start({ random: [0.1, 0.2] });
  const second = start({ random: [0.7, 0.9] });
  await first.pass(90);
  const shared = first.times("tele/cpu").filter((at) => second.times("tele/cpu").includes(at));
  expect(first.times("tele/cpu").length).toBeGreaterThan(1);
  expect(shared).toEqual([]);
  await first.end();
  await second.end();
});

test("ts is in Unix seconds, and absent while nobody knows the time", async () => {
  const synced = start();
  const unsynced = start({ synced: false });
  await synced.pass(1);
  expect(synced.said[0]?.payload.ts).toBe(Date.UTC(2026, 7, 24, 10, 12, 13) / 1000);
  for (const { payload } of unsynced.said) expect(payload).not.toHaveProperty("ts");
  expect(unsynced.said.length).toBe(synced.said.length);
  await synced.end();
  await unsynced.end();
});

test("a boost publishes at once and then at its pace until it ends", async () => {
  const one = start({ random: [0, 1] });
  await one.pass(10);
  one.node.boost(20, 5);
  await one.pass(40);
  expect(one.times("tele/cpu")).toEqual([1000, 10_000, 15_000, 20_000, 25_000, 30_000]);
  await one.pass(60);
  expect(one.times("tele/cpu").slice(6)).toEqual([90_000]);
  await one.end();
});

test("a boost never slows a group down, nor turns one on that is off", async () => {
  const one = start({ random: [0, 1], config: { groups: { cpu: 10, net: 0 } } });
  await one.pass(2);
  one.node.boost(600, 300);
  await one.pass(60);
  expect(one.times("tele/cpu").length).toBeGreaterThanOrEqual(6);
  expect(one.times("tele/net")).toEqual([]);
  await one.end();
});

test("other parts' numbers join their group, and the cost of the set stands in agent", async () => {
  const one = start({
    extra: {
      agent: () => ({ mqtt_reconnects_total: 3, events_buffered: 0 }),
      fan: () => ({ rpm: 1200 }),
    },
  });
  await one.pass(1);
  const agent = one.said.find(({ kind }) => kind === "tele/agent")?.payload;
  expect(agent).toMatchObject({ mqtt_reconnects_total: 3, events_buffered: 0, rss_bytes: 55_418_880 });
  expect(agent?.sample_seconds).toBeGreaterThanOrEqual(0);
  expect(one.said.find(({ kind }) => kind === "tele/fan")?.payload.rpm).toBe(1200);
  await one.end();
});

test("a group that cannot be published is logged, and the others go on", async () => {
  const one = start({ refuses: "memory" });
  await one.pass(1);
  expect(one.logged).toEqual(["telemetry.failed memory"]);
  expect(one.times("tele/agent")).toEqual([1000]);
  await one.end();
});

test("asking for a sample publishes every group that is on, with fresh space", async () => {
  const one = start({ config: { groups: { wifi: 0 } } });
  one.node.sampleNow();
  const kinds = new Set(one.said.map(({ kind }) => kind));
  expect(kinds.has("tele/fs")).toBe(true);
  expect(kinds.has("tele/wifi")).toBe(false);
  await one.end();
});

test("the part ends when it is told to, at any moment, also when every group is off", async () => {
  const early = start();
  await early.end();
  expect(early.said).toEqual([]);
  const later = start();
  await later.pass(5);
  await later.end();
  const count = later.said.length;
  await later.pass(120);
  expect(later.said.length).toBe(count);
  const silent = start({ config: { groups: Object.fromEntries(GROUPS.map((group) => [group, 0])) } });
  await silent.pass(200);
  await silent.end();
  expect(silent.said).toEqual([]);
});

test("a node that was held up for ten intervals makes up for them with one sample", async () => {
  let isHeldUp = false;
  const sampler: Sampler = {
    sample(group) {
      if (isHeldUp && group === "cpu") {
        isHeldUp = false;
        jest.advanceTimersByTime(600_000);
      }
      return [{ instance: "main", values: {} }];
    },
  };
  const one = start({ random: [0, 0.5], sampler });
  await one.pass(2);
  isHeldUp = true; // and a timer of 0 ms takes 1 ms
  await one.pass(100);
  expect(one.times("tele/cpu")).toEqual([1000, 631_000, 631_001, 691_000]);
  await one.end();
});
