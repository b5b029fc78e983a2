import { afterEach, beforeEach, expect, jest, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { bench, Rack } from "./rack.ts";

beforeEach(() => {
  jest.useFakeTimers();
  jest.setSystemTime(new Date("2026-08-24T13:30:00Z"));
});
afterEach(() => {
  jest.useRealTimers();
});

const bob = { who: "key:bob@rack", reason: "kernel test" };
const MINE = { outlets: ["0.1"] };

test("a lock keeps others away, names its owner and the way out, and lets its owner act", async () => {
  const rack = new Rack(1);
  const b = bench(rack);
  expect((await b.run("lock.set", { outlet: "0.1" }, bob)).state).toBe("done");
  b.skip(600_000);
  const refused = await b.run("power.on", MINE);
  expect(refused).toMatchObject({ state: "refused", code: "locked" });
  expect(refused.message).toBe(
    "outlet 0.1: locked by bob@rack (kernel test) since 13:30 UTC until 17:30 UTC; ask bob@rack, wait, or 'fruit unlock 0.1 --kick --reason TEXT'",
  );
  expect(await b.run("power.on", { ...MINE, force: true }, { reason: "x" })).toMatchObject({
    code: "locked",
  });
  expect(rack.switched).toEqual([]);
  expect((await b.run("power.on", MINE, { who: bob.who })).state).toBe("done");
});

test("a lock is published, in the outlet's state too, until it is given up", async () => {
  const b = bench(new Rack(1));
  await b.run("lock.set", { outlet: "0.1", for_seconds: 7200 }, bob);
  await b.run("power.status");
  const lock = {
    owner: "key:bob@rack",
    reason: "kernel test",
    since: "2026-08-24T13:30:00.000Z",
    until: "2026-08-24T15:30:00.000Z",
  };
  expect(b.said.get("state/lock/0.1")).toEqual({ outlet: "0.1", ...lock });
  expect(b.said.get("state/outlet/0.1")?.lock).toEqual(lock);
  expect((await b.run("lock.list")).result).toEqual({ locks: [{ outlet: "0.1", ...lock }] });
  expect((await b.run("lock.clear", { outlet: "0.1" }, bob)).state).toBe("done");
  expect(b.said.get("state/lock/0.1")).toBeNull();
  expect(b.said.get("state/outlet/0.1")?.lock).toBeNull();
  expect((await b.run("lock.clear", { outlet: "0.1" }, bob)).state).toBe("unchanged");
  expect(b.events.map(({ type }) => type)).toEqual(["lock.set", "lock.cleared"]);
});

test("somebody else's lock is only taken away by a kick with a reason, and the event tells from whom", async () => {
  const b = bench(new Rack(1));
  await b.run("lock.set", { outlet: "0.1" }, bob);
  await expect(b.ask("lock.clear", { outlet: "0.1" })).rejects.toMatchObject({ code: "locked" });
  await expect(b.ask("lock.set", { outlet: "0.1" })).rejects.toMatchObject({ code: "locked" });
  await expect(b.ask("lock.clear", { outlet: "0.1", kick: true })).rejects.toMatchObject({
    code: "bad-args",
  });
  const kick = await b.run("lock.clear", { outlet: "0.1", kick: true }, { reason: "bob is on holiday" });
  expect(kick.state).toBe("done");
  expect(b.events.at(-1)).toMatchObject({
    type: "lock.kicked",
    owner: "key:bob@rack",
    by: "local:alice",
    reason: "bob is on holiday",
  });
  expect((await b.run("power.on", MINE)).state).toBe("done");
});

test("every lock ends, and its end is published and told", async () => {
  const b = bench(new Rack(1));
  await b.run("lock.set", { outlet: "0.1", for_seconds: 60 }, bob);
  b.start();
  await b.pass(50_000);
  expect(b.said.get("state/lock/0.1")).not.toBeNull();
  await b.pass(25_000);
  expect(b.said.get("state/lock/0.1")).toBeNull();
  expect(b.events.at(-1)).toMatchObject({ type: "lock.expired", owner: "key:bob@rack" });
  await b.stop();
});

test.each([
  [{}, 4 * 3600],
  [{ for_seconds: 604_800 }, 604_800],
])("asked with %j it lasts %i s", async (args, lasts) => {
  const b = bench(new Rack(1));
  await b.run("lock.set", { outlet: "0.1", ...args }, bob);
  const { until } = b.said.get("state/lock/0.1") as { until: string };
  expect(Date.parse(until) - Date.now()).toBe(lasts * 1000);
});

test("nobody can take a lock for longer than the configuration lets them", async () => {
  const b = bench(new Rack(1), { power: { lock_max_seconds: 3600 } });
  const asking = b.ask("lock.set", { outlet: "0.1", for_seconds: 3601 }, bob);
  await expect(asking).rejects.toMatchObject({
    code: "bad-args",
    message: expect.stringContaining("lasts 1h at most (lock_max_seconds), not 3601s"),
  });
  expect((await b.run("lock.list")).result).toEqual({ locks: [] });
});

test("the owner renews a lock, which keeps its beginning", async () => {
  const b = bench(new Rack(1));
  await b.run("lock.set", { outlet: "0.1", for_seconds: 60 }, bob);
  b.skip(30_000);
  await b.run("lock.set", { outlet: "0.1", for_seconds: 600 }, bob);
  expect(b.said.get("state/lock/0.1")).toMatchObject({
    since: "2026-08-24T13:30:00.000Z",
    until: "2026-08-24T13:40:30.000Z",
  });
});

test("a lock outlives the process, which publishes it anew", async () => {
  const rack = new Rack(1);
  const first = bench(rack);
  await first.run("lock.set", { outlet: "0.1" }, bob);
  const next = bench(rack, { dir: first.dir });
  next.start();
  await next.pass(100);
  expect(next.said.get("state/lock/0.1")).toMatchObject({ owner: "key:bob@rack" });
  expect(await next.run("power.on", MINE)).toMatchObject({ code: "locked" });
  await next.stop();
});

test("a torn file of locks stops nobody", async () => {
  const first = bench(new Rack(1));
  writeFileSync(join(first.dir, "locks.json"), '[{"outlet":"0.1","owner":');
  const next = bench(new Rack(1), { dir: first.dir });
  expect((await next.run("power.on", MINE)).state).toBe("done");
});

test("a lock that cannot be kept is not granted", async () => {
  const b = bench(new Rack(1));
  b.store.save = async () => {
    throw new Error("ENOSPC: no space left on device");
  };
  await expect(b.ask("lock.set", { outlet: "0.1" }, bob)).rejects.toThrow("ENOSPC");
  expect((await b.run("lock.list")).result).toEqual({ locks: [] });
  expect(b.said.has("state/lock/0.1")).toBe(false);
});
