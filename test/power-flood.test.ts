/** Those who only look must not keep anybody from switching. */
import { afterEach, beforeEach, expect, jest, onTestFinished, test } from "bun:test";
import { setTimeout as sleep } from "node:timers/promises";
import { HalError } from "../hal/ports.ts";
import { type Bench, bench, outletsOf, Rack } from "./rack.ts";

beforeEach(() => {
  jest.useFakeTimers();
  jest.setSystemTime(new Date("2026-08-24T09:00:00Z"));
});
afterEach(() => {
  jest.useRealTimers();
});

/** As many readers as an agent runs commands at once, each asking again as soon as it was answered. */
function flood(b: Bench): void {
  let isOver = false;
  onTestFinished(() => {
    isOver = true;
  });
  for (let readers = 0; readers < 64; readers++)
    void (async () => {
      for (; !isOver; await sleep(5)) await b.ask("power.status", {}, { who: "anonymous", door: "mqtt" });
    })();
}

test("a cycle comes on again, however much is read meanwhile", async () => {
  const rack = new Rack(1, ["0.0"]);
  const b = bench(rack, { power: { input_volts_min: 11 } });
  const cycle = b.ask("power.cycle", { outlets: ["0.0"] });
  while (rack.supply("0.0") === "on") await b.pass(10);
  flood(b);
  const outcome = await b.finish(cycle);
  expect(outletsOf(outcome)[0]).toMatchObject({ outcome: "done", after: { supply: "on" } });
  expect(rack.switched).toEqual(["signal 0.0", "off 0.0", "on 0.0"]);
  expect(rack.breaches).toEqual([]);
});

test("a Pi that shuts down is seen to be down, however much is read meanwhile", async () => {
  const rack = new Rack(1, ["0.0"]);
  const readBoard = rack.readBoard.bind(rack);
  // Slow enough that the readings' lane is full nearly always.
  rack.readBoard = async (board) => {
    await sleep(200);
    return readBoard(board);
  };
  const b = bench(rack);
  flood(b);
  await b.pass(100);
  const outcome = await b.run("power.off", { outlets: ["0.0"] });
  expect(outletsOf(outcome)[0]?.outcome).toBe("done");
});

test("a bus that is busy is asked again until it takes the command", async () => {
  const rack = new Rack(1, ["0.0"]);
  const b = bench(rack);
  const take = rack.switch.bind(rack);
  let refused = 0;
  rack.switch = async (id, to) => {
    if (to === "on" && refused++ < 5) throw new HalError("busy", "bus 0: 64 requests are waiting already");
    await take(id, to);
  };
  const outcome = await b.run("power.cycle", { outlets: ["0.0"] });
  expect(outletsOf(outcome)[0]).toMatchObject({ outcome: "done", after: { supply: "on" } });
  const [, cut = { at: 0 }, on = { at: 0 }] = rack.told;
  expect(on.at - cut.at).toBeLessThan(15_000);
  expect(b.progress).toContain("0.0: not sent yet: bus 0: 64 requests are waiting already");
});

test("a status that could not be read again is stale and unknown, and not done", async () => {
  const rack = new Rack(1, ["0.0"]);
  const b = bench(rack);
  expect((await b.run("power.status", { outlets: ["0.0"] })).state).toBe("done");
  b.skip(5000);
  const others = Array.from({ length: 40 }, () => b.ask("power.policy", { outlets: ["0.0"] }));
  const outcome = await b.run("power.status", { outlets: ["0.0"] });
  expect(outcome).toMatchObject({
    state: "failed",
    code: "busy",
    message: expect.stringContaining("outlet 0.0: bus 0 (scripted): 24 operations wait already"),
  });
  const { outlets } = outcome.result as { outlets: object[] };
  expect(outlets[0]).toMatchObject({ supply: "unknown", host: "unknown", source: "stale" });
  expect(outlets[0]).not.toHaveProperty("volts");
  await b.finish(Promise.all(others));
});

test("an emergency waits for one address of a scan, not for all of them", async () => {
  const rack = new Rack(1, ["0.1"]);
  rack.probeMs = 300;
  const b = bench(rack);
  const scanning = b.ask("power.scan");
  await b.pass(750);
  const cutting = b.ask("power.off", { outlets: ["0.1"], force: true }, { reason: "smoke" });
  // Reading it, then switching it: an address at most before each.
  await b.pass(700);
  expect(rack.switched).toEqual(["off 0.1"]);
  expect((await b.finish(cutting)).state).toBe("done");
  expect((await b.finish(scanning)).state).toBe("done");
  expect(rack.breaches).toEqual([]);
});

test("a scan is not everybody's, and ends when the agent does", async () => {
  const rack = new Rack(1);
  rack.probeMs = 300;
  const b = bench(rack);
  expect(b.service.commands.find(({ verb }) => verb === "power.scan")?.role).toBe("power");
  const stop = new AbortController();
  const scanning = b.ask("power.scan", {}, { signal: stop.signal });
  const looking = b.ask("power.status", {}, { signal: stop.signal });
  await b.pass(100);
  stop.abort();
  for (const asked of [scanning, looking])
    expect(await asked).toMatchObject({ state: "failed", code: "stopping" });
  const { exchanges } = rack.counters;
  await b.pass(2000);
  expect(rack.counters.exchanges).toBe(exchanges);
});
