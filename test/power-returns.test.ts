/** What keeps a policy from being kept when the mains come back, and that it is not forgotten for it. */
import { afterEach, beforeEach, expect, jest, test } from "bun:test";
import { HalError } from "../hal/ports.ts";
import { type Bench, bench, Rack } from "./rack.ts";

beforeEach(() => {
  jest.useFakeTimers();
  jest.setSystemTime(new Date("2026-08-24T09:00:00Z"));
});
afterEach(() => {
  jest.useRealTimers();
});

const crc = new HalError("bad-reply", "board 0: CRC error (3 tries)");

/** An outlet that was on, is to be as it was, and whose mains have just come back: its board keeps it off. */
async function returned(rack: Rack, b: Bench, args: object = { policy: "last" }): Promise<void> {
  b.start();
  await b.pass(1000);
  await b.run("power.policy", { outlets: ["0.0"], ...args });
  rack.told.length = 0;
  rack.mains();
  while (!b.events.some(({ type }) => type === "power.mains-returned")) await b.pass(10);
}

const externals = ({ events }: Bench) => events.filter(({ type }) => type === "power.external");

test.each([
  ["a bus error", { failing: crc }, { failing: undefined }],
  ["a board that does nothing", { stuck: new Set(["0.0"]) }, { stuck: new Set() }],
])("last is kept in spite of %s", async (_, broken, repaired) => {
  const rack = new Rack(1, ["0.0"]);
  const b = bench(rack);
  await returned(rack, b);
  Object.assign(rack, broken);
  await b.pass(90_000);
  expect(rack.supply("0.0")).toBe("off");
  Object.assign(rack, repaired);
  await b.pass(130_000);
  expect(rack.supply("0.0")).toBe("on");
  expect(b.said.get("state/outlet/0.0")).toMatchObject({ cause: "policy-restore", by: "policy" });
  expect(externals(b)).toEqual([]);
  await b.stop();
});

test("what a policy promised is not refused for too many switches", async () => {
  const rack = new Rack(1, ["0.0"]);
  const b = bench(rack, { power: { changes_per_hour: 1 } });
  await b.run("power.off", { outlets: ["0.0"], force: true }, { reason: "x" });
  rack.flip("0.0", "on");
  await returned(rack, b);
  await b.pass(10_000);
  expect(rack.switched).toEqual(["on 0.0"]);
  await b.stop();
});

test("an override for one time is used up only by being obeyed", async () => {
  const rack = new Rack(1);
  const b = bench(rack);
  await b.run("power.policy", { outlets: ["0.0"], policy: "off" });
  await returned(rack, b, { policy: "on", once: true });
  rack.failing = crc;
  await b.pass(40_000);
  jest.clearAllTimers();
  rack.failing = undefined;
  const next = bench(rack, { dir: b.dir });
  next.start();
  await next.pass(10_000);
  expect(rack.switched).toEqual(["on 0.0"]);
  expect(next.said.get("state/outlet/0.0")).not.toHaveProperty("policy_once");
  await next.stop();
});

test("after half an hour an alarm says that it is off, and what last owes is remembered", async () => {
  const rack = new Rack(1, ["0.0"]);
  rack.stuck.add("0.0");
  const b = bench(rack);
  await returned(rack, b);
  await b.pass(1_700_000);
  expect([...b.alarms.keys()]).toEqual([]);
  await b.pass(300_000);
  expect(b.alarms.get("restore-0")).toContain(
    "critical: 0.0: not switched on after the mains came back: on was sent",
  );
  const { length } = rack.told;
  await b.pass(200_000);
  expect(rack.told).toHaveLength(length);
  expect(externals(b)).toEqual([]);
  jest.clearAllTimers();
  // Its next life tries again; this one's board gives in late.
  const next = bench(rack, { dir: b.dir });
  next.start();
  await next.pass(5000);
  expect(rack.told.length).toBeGreaterThan(length);
  rack.flip("0.0", "on");
  await next.pass(70_000);
  expect(next.said.get("state/outlet/0.0")).toMatchObject({ supply: "on", cause: "policy-restore" });
  expect(next.alarms.size).toBe(0);
  await next.stop();
});

test.each([
  ["off while it is off", "off"],
  ["on and off", "on"],
])("somebody who says %s meanwhile is obeyed, not the policy", async (_, first) => {
  const rack = new Rack(1, ["0.0"]);
  const b = bench(rack, { power: { min_on_seconds: 0 } });
  await returned(rack, b);
  rack.failing = crc;
  await b.pass(20_000);
  rack.failing = undefined;
  await b.run(`power.${first}`, { outlets: ["0.0"] });
  await b.run("power.off", { outlets: ["0.0"], force: true }, { reason: "smoke" });
  await b.pass(200_000);
  expect(rack.supply("0.0")).toBe("off");
  expect(b.said.get("state/outlet/0.0")).toMatchObject({ supply: "off", cause: "operator" });
  expect(b.alarms.size).toBe(0);
  rack.mains();
  await b.pass(60_000);
  expect(rack.supply("0.0")).toBe("off");
  await b.stop();
});

test("mains that come back twice are one return after the other, for every outlet", async () => {
  const rack = new Rack(1, ["0.0", "0.1"]);
  rack.stuck.add("0.1");
  const b = bench(rack);
  b.start();
  await b.pass(1000);
  await b.run("power.policy", { outlets: ["all"], policy: "last", yes: true });
  rack.mains();
  await b.pass(30_000);
  rack.mains();
  await b.pass(30_000);
  expect([rack.supply("0.0"), rack.supply("0.1")]).toEqual(["on", "off"]);
  rack.stuck.clear();
  await b.pass(130_000);
  expect(rack.supply("0.1")).toBe("on");
  expect(b.events.filter(({ type }) => type === "power.mains-returned")).toHaveLength(2);
  await b.stop();
});

test("a board that hangs while it is restored does not hold up the end of the agent", async () => {
  const rack = new Rack(1, ["0.0"]);
  rack.switch = () => new Promise(() => undefined);
  const b = bench(rack);
  await returned(rack, b);
  // Past the off time: the command is on the wire.
  await b.pass(5000);
  expect(b.said.get("state/outlet/0.0")).toMatchObject({ busy: "on" });
  const startedAt = performance.now();
  await b.stop();
  expect(performance.now() - startedAt).toBeLessThan(100);
});
