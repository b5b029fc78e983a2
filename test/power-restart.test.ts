/** What the service does without being asked: nothing at start and stop; what policies say when the mains come back. */
import { afterEach, beforeEach, describe, expect, jest, test } from "bun:test";
import { bench, outletsOf, Rack } from "./rack.ts";

beforeEach(() => {
  jest.useFakeTimers();
  jest.setSystemTime(new Date("2026-08-24T09:00:00Z"));
});
afterEach(() => {
  jest.useRealTimers();
});

describe("starting, stopping, dying", () => {
  test("a service that starts reads, and switches nothing", async () => {
    const rack = new Rack(2, ["0.0", "1.1"]);
    const b = bench(rack);
    b.start();
    await b.pass(120_000);
    await b.stop();
    expect(rack.told).toEqual([]);
    expect(rack.counters.exchanges).toBeGreaterThan(20);
    expect(b.events).toEqual([]);
    expect(rack.breaches).toEqual([]);
  });

  // A dropped process is one whose timers never fire again: nothing of it is advanced.
  test.each([
    ["while it asks the Pi", 3000, "on", ["signal 0.0"]],
    ["in the off time", 7500, "off", ["signal 0.0", "off 0.0"]],
  ])("killed %s in a cycle, the next one redoes nothing", async (_, after, supply, told) => {
    const rack = new Rack(1, ["0.0"]);
    const first = bench(rack);
    void first.ask("power.cycle", { outlets: ["0.0"] }, { reason: "hung" });
    await first.pass(after);
    jest.clearAllTimers();
    const next = bench(rack, { dir: first.dir });
    next.start();
    await next.pass(60_000);
    expect(rack.switched).toEqual(told);
    expect(rack.supply("0.0")).toBe(supply);
    // Its own doing is not taken for a stranger's.
    expect(next.events).toEqual([]);
    if (supply === "off")
      expect(next.said.get("state/outlet/0.0")).toMatchObject({
        supply: "off",
        cause: "operator",
        by: "local:alice",
        reason: "hung",
      });
    await next.stop();
  });

  test("killed between the command and its read-back, the next one knows that it was its own, and counts it", async () => {
    const rack = new Rack(1, ["0.0"]);
    const power = { changes_per_hour: 1 };
    const first = bench(rack, { power });
    void first.ask("power.off", { outlets: ["0.0"], force: true }, { reason: "smoke" });
    while (rack.switched.length === 0) await first.pass(10);
    jest.clearAllTimers();
    const next = bench(rack, { power, dir: first.dir });
    next.start();
    await next.pass(1000);
    expect(next.said.get("state/outlet/0.0")).toMatchObject({
      supply: "off",
      cause: "operator",
      by: "local:alice",
      reason: "smoke",
    });
    expect(await next.run("power.on", { outlets: ["0.0"] })).toMatchObject({ code: "rule.P8" });
    await next.stop();
  });

  test.each([
    ["while it asks the Pi", 3000, ["signal 0.0"]],
    ["in the off time", 7500, ["signal 0.0", "off 0.0"]],
  ])("stopped %s in a cycle, it ends unconfirmed and sends nothing more", async (_, after, told) => {
    const rack = new Rack(1, ["0.0"]);
    const b = bench(rack);
    const cycle = b.ask("power.cycle", { outlets: ["0.0"] });
    await b.pass(after);
    await b.stop();
    const outcome = await b.finish(cycle);
    expect(outcome).toMatchObject({ state: "unconfirmed", code: "stopping" });
    await b.pass(60_000);
    expect(rack.switched).toEqual(told);
  });

  test("stopped while outlets wait for their turn, the rest stays off", async () => {
    const rack = new Rack(4);
    const b = bench(rack);
    const on = b.ask("power.on", { outlets: ["all"], yes: true });
    await b.pass(5500);
    await b.stop();
    const outcome = await b.finish(on);
    expect(rack.switched).toEqual(["on 0.0", "on 0.1", "on 1.0"]);
    expect(outletsOf(outcome).filter(({ code }) => code === "stopping")).toHaveLength(5);
  });

  test("who and why outlives the process", async () => {
    const rack = new Rack(1);
    const first = bench(rack);
    await first.run("power.on", { outlets: ["0.0"] }, { reason: "kernel test" });
    const next = bench(rack, { dir: first.dir });
    await next.run("power.status");
    expect(next.said.get("state/outlet/0.0")).toMatchObject({
      cause: "operator",
      by: "local:alice",
      reason: "kernel test",
      since: expect.stringMatching(/^2026-08-24T09:00:0\d/),
    });
  });

  test("what was there before anybody looked has no time and no author", async () => {
    const b = bench(new Rack(1, ["0.0"]));
    b.start();
    await b.pass(1000);
    const state = b.said.get("state/outlet/0.0");
    expect(state).toMatchObject({ supply: "on", cause: "unknown" });
    expect(state).not.toHaveProperty("since");
    await b.stop();
  });
});

describe("somebody else switches", () => {
  test("it is noted as external, with an event", async () => {
    const rack = new Rack(1, ["0.0"]);
    const b = bench(rack);
    b.start();
    await b.pass(1000);
    rack.flip("0.0", "off");
    await b.pass(11_000);
    expect(b.said.get("state/outlet/0.0")).toMatchObject({ supply: "off", cause: "external" });
    expect(b.events).toEqual([
      expect.objectContaining({ type: "power.external", outlet: "0.0", after: "off" }),
    ]);
    await b.stop();
  });

  test("a Pi that its board cuts long after it was asked is no stranger's doing", async () => {
    const rack = new Rack(1, ["0.0"]);
    const b = bench(rack);
    b.start();
    await b.run("power.shutdown", { outlets: ["0.0"] });
    await b.pass(20_000);
    rack.flip("0.0", "off");
    await b.pass(11_000);
    expect(b.said.get("state/outlet/0.0")).toMatchObject({ cause: "operator", by: "local:alice" });
    expect(b.events.map(({ type }) => type)).toEqual(["power.shutdown"]);
    await b.stop();
  });
});

describe("the mains come back", () => {
  test("last restores what was on, staggered, and leaves off what was off", async () => {
    const rack = new Rack(2, ["0.0", "0.1", "1.1"]);
    const b = bench(rack);
    b.start();
    await b.pass(1000);
    await b.run("power.policy", { outlets: ["all"], policy: "last", yes: true });
    expect(rack.switched).toEqual(["store off 0.0", "store off 0.1", "store off 1.0", "store off 1.1"]);
    rack.told.length = 0;
    rack.mains();
    await b.pass(30_000);
    expect(rack.switched).toEqual(["on 0.0", "on 0.1", "on 1.1"]);
    const gaps = rack.told.slice(1).map(({ at }, i) => at - (rack.told[i]?.at ?? 0));
    expect(Math.min(...gaps)).toBeGreaterThanOrEqual(1000);
    expect(b.said.get("state/outlet/0.0")).toMatchObject({
      supply: "on",
      cause: "policy-restore",
      by: "policy",
      policy: "last",
    });
    expect(b.events.map(({ type }) => type)).not.toContain("power.external");
    // One return is acted on once: what somebody switches off afterwards stays off.
    rack.flip("0.0", "off");
    await b.pass(60_000);
    expect(rack.told).toHaveLength(3);
    expect(b.events.filter(({ type }) => type === "power.mains-returned")).toHaveLength(2);
    await b.stop();
    expect(rack.breaches).toEqual([]);
  });

  test("last restores too when the agent itself lost its power, and goes on after a death in between", async () => {
    const rack = new Rack(2, ["0.0", "0.1", "1.1"]);
    const first = bench(rack);
    first.start();
    await first.pass(1000);
    await first.run("power.policy", { outlets: ["all"], policy: "last", yes: true });
    jest.clearAllTimers();
    rack.told.length = 0;
    rack.mains();
    const second = bench(rack, { dir: first.dir });
    second.start();
    await second.pass(4500);
    jest.clearAllTimers();
    const done = rack.switched.length;
    expect(done).toBeGreaterThan(0);
    expect(done).toBeLessThan(3);
    const third = bench(rack, { dir: first.dir });
    third.start();
    await third.pass(30_000);
    expect(rack.switched.toSorted()).toEqual(["on 0.0", "on 0.1", "on 1.1"]);
    await third.stop();
  });

  test("without a change of the boot count the agent's own restart restores nothing", async () => {
    const rack = new Rack(1, ["0.0"]);
    const first = bench(rack);
    first.start();
    await first.pass(1000);
    await first.run("power.policy", { outlets: ["0.0"], policy: "last" });
    jest.clearAllTimers();
    rack.flip("0.0", "off");
    rack.told.length = 0;
    const next = bench(rack, { dir: first.dir });
    next.start();
    await next.pass(30_000);
    expect(rack.told).toEqual([]);
    expect(next.said.get("state/outlet/0.0")).toMatchObject({ supply: "off", cause: "external" });
    await next.stop();
  });

  test("on and off are the board's own; an override for one time is used up by one return", async () => {
    const rack = new Rack(1, ["0.0"]);
    const b = bench(rack);
    b.start();
    await b.pass(1000);
    await b.run("power.policy", { outlets: ["0.0"], policy: "off" });
    await b.run("power.policy", { outlets: ["0.0"], policy: "on", once: true });
    await b.pass(100);
    expect(rack.switched).toEqual(["store off 0.0"]);
    expect(b.said.get("state/outlet/0.0")).toMatchObject({ policy: "off", policy_once: "on" });
    rack.mains();
    await b.pass(30_000);
    expect(rack.switched).toEqual(["store off 0.0", "on 0.0"]);
    expect(b.said.get("state/outlet/0.0")).not.toHaveProperty("policy_once");
    rack.mains();
    await b.pass(30_000);
    expect(rack.supply("0.0")).toBe("off");
    expect(rack.switched).toHaveLength(2);
    expect(b.said.get("state/outlet/0.0")).toMatchObject({ cause: "policy-restore", by: "board" });
    await b.stop();
  });

  test("an input that stays low holds the restoring back until it has recovered", async () => {
    const rack = new Rack(1, ["0.0"]);
    const b = bench(rack, { power: { input_volts_min: 11.5 } });
    b.start();
    await b.pass(1000);
    await b.run("power.policy", { outlets: ["0.0"], policy: "last" });
    rack.inputVolts = () => 11;
    rack.mains();
    await b.pass(100_000);
    expect(rack.supply("0.0")).toBe("off");
    expect(b.alarms.get("input-0")).toContain("below 11.5 V");
    rack.inputVolts = () => 12;
    await b.pass(80_000);
    expect(rack.supply("0.0")).toBe("on");
    expect(b.alarms.has("input-0")).toBe(false);
    await b.stop();
  });

  test("setting a policy that is set already writes nothing to the board", async () => {
    const rack = new Rack(1);
    const b = bench(rack);
    expect(await b.run("power.policy", { outlets: ["0.0"], policy: "on" })).toMatchObject({
      state: "unchanged",
    });
    const shown = await b.run("power.policy", { outlets: ["0.0"] });
    expect((shown.result as { outlets: unknown[] }).outlets).toEqual([
      { outlet: "0.0", outcome: "done", policy: "on" },
    ]);
    expect(rack.told).toEqual([]);
    await b.run("power.policy", { outlets: ["0.0"], policy: "off" });
    await b.run("power.policy", { outlets: ["0.0"], policy: "last" });
    await b.run("power.policy", { outlets: ["0.0"], policy: "off" });
    expect(rack.switched).toEqual(["store off 0.0"]);
    const all = b.ask("power.policy", { outlets: ["all"], policy: "off" });
    await expect(all).rejects.toMatchObject({ code: "rule.P19" });
  });

  test("last is refused where the board does not count its boots", async () => {
    const rack = new Rack(1);
    rack.abilities.delete("boot-count");
    const outcome = await bench(rack).run("power.policy", { outlets: ["0.0"], policy: "last" });
    expect(outcome).toMatchObject({ state: "refused", code: "rule.P17" });
  });
});

describe("numbers", () => {
  test("energy is summed from the readings and published once a minute with the board's input", async () => {
    const rack = new Rack(1, ["0.0"]);
    const b = bench(rack);
    b.start();
    await b.pass(130_000);
    const { energy_joules_total, ...numbers } = b.said.get("tele/power/0.0") ?? {};
    expect(numbers).toEqual({ volts: 5, amperes: 0.6, watts: 3 });
    expect(energy_joules_total as number).toBeGreaterThan(3 * 115);
    expect(energy_joules_total as number).toBeLessThanOrEqual(3 * 130);
    expect(b.said.get("tele/power/input-0")).toEqual({ volts: 12, rail_volts: 5.05 });
    expect(b.service.counters().exchanges).toBe(rack.counters.exchanges);
    await b.stop();
  });
});

test("a board that does not answer does not hold up the end of the agent", async () => {
  const rack = new Rack(1);
  rack.read = () => new Promise(() => undefined);
  const b = bench(rack);
  b.start();
  await b.pass(100);
  const startedAt = performance.now();
  await b.stop();
  expect(performance.now() - startedAt).toBeLessThan(100);
});
