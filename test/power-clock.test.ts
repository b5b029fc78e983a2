/** A clock that is set changes no rule: a Pi has none of its own, and the first answer from NTP comes late. */
import { afterEach, beforeEach, expect, jest, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { bench, Rack } from "./rack.ts";

beforeEach(() => {
  jest.useFakeTimers();
  jest.setSystemTime(new Date("2026-08-24T09:00:00Z"));
});
afterEach(() => {
  jest.useRealTimers();
});

const bob = { who: "key:bob@rack", reason: "kernel test" };
const YEAR = 365 * 86_400_000;
const set = (ms: number) => void jest.setSystemTime(Date.now() + ms);

test.each([YEAR, -YEAR])(
  "a lock lasts as long as it was taken for when the clock moves by %i ms",
  async (step) => {
    const rack = new Rack(1);
    const b = bench(rack);
    b.start();
    await b.run("lock.set", { outlet: "0.1", for_seconds: 600 }, bob);
    set(step);
    await b.pass(15_000);
    expect(await b.run("power.on", { outlets: ["0.1"] })).toMatchObject({ code: "locked" });
    // Its end is told by the clock that is right now, to the second process as well.
    const { until } = b.said.get("state/lock/0.1") as { until: string };
    expect(Math.abs(Date.parse(until) - Date.now() - 585_000)).toBeLessThan(2000);
    const next = bench(rack, { dir: b.dir });
    for (const { run, skip } of [b, next]) {
      expect(await run("power.on", { outlets: ["0.1"] })).toMatchObject({ code: "locked" });
      skip(600_000);
      expect(await run("lock.list")).toMatchObject({ result: { locks: [] } });
      jest.setSystemTime(Date.now() - 600_000);
    }
    await b.stop();
  },
);

test("a lock that was kept by a wrong clock ends all the same", async () => {
  const first = bench(new Rack(1));
  const lock = {
    outlet: "0.1",
    owner: "key:bob",
    reason: "",
    since: "2090-01-01T00:00:00.000Z",
    until: "2090-01-02T00:00:00.000Z",
  };
  writeFileSync(join(first.dir, "locks.json"), JSON.stringify([lock]));
  const b = bench(new Rack(1), { dir: first.dir, power: { lock_max_seconds: 3600 } });
  expect(await b.run("power.on", { outlets: ["0.1"] })).toMatchObject({ code: "locked" });
  b.skip(3_601_000);
  expect((await b.run("power.on", { outlets: ["0.1"] })).state).toBe("done");
});

test("a Pi that starts is not silent, and not on for long enough, because the clock was set", async () => {
  const rack = new Rack(1);
  const b = bench(rack);
  await b.run("power.on", { outlets: ["0.0"] });
  set(YEAR);
  await b.run("power.status");
  expect(b.said.get("state/outlet/0.0")).toMatchObject({ supply: "on", host: "starting" });
  expect(await b.run("power.off", { outlets: ["0.0"] })).toMatchObject({ code: "rule.P7" });
});

test("switches of the last hour count whatever the clock says, for the next process too", async () => {
  const rack = new Rack(1);
  const power = { changes_per_hour: 1 };
  const b = bench(rack, { power });
  b.start();
  await b.run("power.on", { outlets: ["0.0"] });
  set(YEAR);
  await b.pass(15_000);
  expect(await b.run("power.off", { outlets: ["0.0"] })).toMatchObject({ code: "rule.P8" });
  await b.stop();
  const next = bench(rack, { power, dir: b.dir });
  expect(await next.run("power.off", { outlets: ["0.0"] })).toMatchObject({ code: "rule.P8" });
  next.skip(3_600_000);
  expect((await next.run("power.off", { outlets: ["0.0"] })).state).toBe("done");
});

test("a clock that is steered moves no time that was told", async () => {
  const b = bench(new Rack(1));
  b.start();
  await b.run("lock.set", { outlet: "0.1", for_seconds: 600 }, bob);
  const before = b.said.get("state/lock/0.1");
  set(400);
  await b.pass(15_000);
  expect(before).toBeDefined();
  expect(b.said.get("state/lock/0.1") === before).toBe(true);
  await b.stop();
});
