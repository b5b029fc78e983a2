/** The service on the simulated stack that is shipped: what the scripted rack cannot surprise it with. */
import { afterEach, beforeEach, expect, jest, test } from "bun:test";
import { simController } from "../hal/sim/driver.ts";
import { SimStack } from "../hal/sim/stack.ts";
import { bench, outletsOf } from "./rack.ts";

beforeEach(() => {
  jest.useFakeTimers();
  jest.setSystemTime(new Date("2026-08-24T09:00:00Z"));
});
afterEach(() => {
  jest.useRealTimers();
});

function simulated(boards: number, faults: string[] = [], power: Record<string, unknown> = {}) {
  const numbers = Array.from({ length: boards }, (_, i) => i);
  const stack = new SimStack({ boards: numbers, seed: 1, faults });
  return { stack, b: bench(simController(stack, numbers), { power }) };
}

test("cycle shuts a Pi down cleanly and sees it come back", async () => {
  const { stack, b } = simulated(1);
  await b.pass(30_000);
  const outcome = await b.run("power.cycle", { outlets: ["0.0"], wait: true });
  expect(outletsOf(outcome)[0]).toMatchObject({
    outcome: "done",
    before: { supply: "on", host: "running" },
    after: { supply: "on", host: "running" },
  });
  expect(
    outletsOf(outcome)[0]
      ?.steps.map(({ what }) => what)
      .at(-1),
  ).toMatch(/^heartbeat seen after \d+ s$/);
  expect(stack.pi("0.1").host).toBe("running");
});

test.each([
  ["hang", "power.off", "forced-after-timeout"],
  ["stuck-on", "power.off", "unconfirmed"],
  ["stuck-off", "power.on", "unconfirmed"],
  ["wont-boot", "power.off", "forced-after-timeout"],
])("with the fault %s, %s is %s", async (fault, verb, outcome) => {
  const { stack, b } = simulated(1, fault === "wont-boot" ? ["wont-boot:0.0"] : []);
  await b.pass(30_000);
  if (verb === "power.on") stack.cut("0.0");
  if (fault !== "wont-boot") stack.fault(fault, true, "0.0");
  const results = outletsOf(await b.run(verb, { outlets: ["0.0"] }));
  expect(results.map((result) => result.outcome)).toEqual([outcome as never]);
});

test("a dead bus makes everything unknown, and all comes back with it", async () => {
  const { stack, b } = simulated(2);
  b.start();
  await b.pass(10_000);
  stack.fault("dead-bus", true);
  await b.pass(11_000);
  expect([...b.said.values()].filter((state) => state?.supply === "unknown")).toHaveLength(4);
  expect(b.alarms.get("bus-0")).toContain("no answer");
  stack.fault("dead-bus", false);
  await b.pass(11_000);
  expect([...b.said.values()].filter((state) => state?.supply === "on")).toHaveLength(4);
  expect(b.alarms.size).toBe(0);
  await b.stop();
});

test("last brings a rack back after the mains were gone", async () => {
  const { stack, b } = simulated(2);
  b.start();
  await b.pass(10_000);
  await b.run("power.off", { outlets: ["0.1"] });
  await b.run("power.policy", { outlets: ["all"], policy: "last", yes: true });
  stack.mainsLoss();
  expect(stack.outlets.map((id) => stack.pi(id).supply)).toEqual([false, false, false, false]);
  await b.pass(40_000);
  expect(stack.outlets.map((id) => stack.pi(id).supply)).toEqual([true, false, true, true]);
  await b.stop();
});

test("a service that comes and goes leaves every supply as it is", async () => {
  const { stack, b } = simulated(2);
  await b.run("power.off", { outlets: ["1.0"], force: true }, { reason: "x" });
  const before = stack.outlets.map((id) => [id, stack.pi(id).supply, stack.pi(id).supplyAt]);
  for (let lives = 0; lives < 3; lives++) {
    const next = bench(simController(stack, [0, 1]), { dir: b.dir });
    next.start();
    await next.pass(15_000);
    if (lives === 1) jest.clearAllTimers();
    else await next.stop();
  }
  expect(stack.outlets.map((id) => [id, stack.pi(id).supply, stack.pi(id).supplyAt])).toEqual(before);
});
