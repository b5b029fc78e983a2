/** What trials are decided by, piece by piece: checks, the yardstick, the list of what is blamed, the floor, the count of starts. */
import { expect, test } from "bun:test";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Baseline } from "../agent/boot/baseline.ts";
import { type CheckOptions, checksOf, hasAround } from "../agent/boot/checks.ts";
import { floorOf } from "../agent/boot/floor.ts";
import { isOf, type Plan } from "../agent/boot/plan.ts";
import { Quarantine } from "../agent/boot/quarantine.ts";
import { LoopBreaker } from "../agent/boot/starts.ts";
import { Trial } from "../agent/boot/trial.ts";
import { parseConfig } from "../agent/config.ts";
import { Store } from "../agent/store.ts";
import { hashPrefix } from "../boot/admit.ts";
import type { BootRecord } from "../boot/record.ts";
import { NO_HASH } from "../boot/slots.ts";
import { parseUpdate } from "../boot/updatefile.ts";
import type { Machine } from "../hal/ports.ts";
import { scratch } from "./node.ts";
import { makeRelease } from "./releases.ts";

const quiet = () => undefined;
const { signal } = new AbortController();

/** A look at one check of a slot on trial, of which `over` says what is not well. */
function look(name: string, over: Partial<CheckOptions> = {}, listed: readonly string[] = []) {
  const machine = { list: () => [...listed], read: () => undefined } as unknown as Machine;
  const check = checksOf({
    config: parseConfig("node.json", { site: "lab" }).boot,
    ...{ boot: "this", machine, socket: "/nowhere", dir: "/nowhere", baseline: [], facts: () => [] },
    ...{ upSeconds: () => 0, marks: async () => [], planProblem: () => undefined },
    readSlot: async () => undefined,
    ...over,
  }).find((one) => one.name === name);
  if (!check) throw new Error(`there is no check ${name}`);
  return () => check.look(signal);
}

test("agents that died in another start are not held against this one", async () => {
  const marks = (boot: string) =>
    [1, 2, 3].map(() => ({ trial: 7, attempt: 1, boot, what: "agent" }) as const);
  expect(await look("agent", { marks: async () => marks("this") })()).toMatchObject({ isGood: false });
  await expect(look("agent", { marks: async () => marks("another") })()).rejects.toThrow("up for 0 s");
});

test("a data folder in memory is none", async () => {
  expect(await look("data", {}, ["data-lost"])()).toMatchObject({
    isGood: false,
    message: expect.stringContaining("in memory"),
  });
});

test("fewer devices of a kind than the old slot had are told", async () => {
  const baseline = ["gpio:1", "i2c:2"];
  expect(await look("devices", { baseline, facts: () => ["gpio:1", "i2c:1"] })()).toMatchObject({
    isGood: false,
    message: "only 1 of 2 i2c",
  });
  expect(await look("devices", { baseline, facts: () => ["gpio:2", "i2c:2"] })()).toMatchObject({
    isGood: true,
  });
});

test("a slot that was read through once is not read again", async () => {
  let reads = 0;
  const again = look("slot", { readSlot: async () => void reads++ });
  for (let turn = 1; turn <= 3; turn++) expect((await again()).isGood).toBe(true);
  expect(reads).toBe(1);
});

test("the old slot has what the new one lacked only if it has all of it", async () => {
  const around = {
    config: parseConfig("node.json", { site: "lab" }).boot,
    machine: { list: () => [] } as unknown as Machine,
    ...{ dir: "/nowhere", baseline: ["broker", "clock"] },
  };
  const has = (facts: string[]) => hasAround(["broker", "clock"], { ...around, facts: () => facts });
  expect([await has(["broker"]), await has(["clock"]), await has(["broker", "clock"])]).toEqual([
    ...[false, false, true],
  ]);
});

test("what becomes good at the deadline has not become good before it", async () => {
  let nowMs = 0;
  const late = async () => {
    await Bun.sleep(0); // the trial has looked at its deadline
    nowMs = 50;
    return { boot: "this", isGood: true, message: "well" };
  };
  const trial = new Trial({
    checks: [{ name: "late", isFatal: false, look: late }],
    ...{ boot: "this", deadlineMs: 50, settleMs: 0, everyMs: 10, nowMs: () => nowMs },
    ...{ log: quiet, changed: quiet },
  });
  expect(await trial.run(signal)).toEqual({ is: "failed", reason: "deadline" });
});

test("the yardstick is written when it has changed, and what was seen before anybody counted is kept", async () => {
  const saved: unknown[] = [];
  const store = {
    load: () => ({ facts: ["broker"], boot: "b", version: "4", ever: [] }),
    save: async (_name: string, document: unknown) => void saved.push(document),
  } as unknown as Store;
  const baseline = new Baseline(store, () => 0);
  expect(baseline.missing([])).toEqual(["broker"]);
  baseline.observe(["broker"], "4");
  await baseline.save("boot");
  await baseline.save("boot");
  expect(saved).toEqual([{ facts: ["broker"], boot: "boot", version: "4", ever: ["broker"] }]);
});

test("a content that nobody knows is not blamed", async () => {
  using folder = scratch();
  const quarantine = new Quarantine(new Store(folder.path, quiet));
  await quarantine.add(NO_HASH, { version: "5", reason: "panic", evidence: [] });
  expect(quarantine.size).toBe(0);
});

test("a plan is of the trial that it names, and of the content", () => {
  const record = { slots: { b: { hash: "11" } }, trial: { id: 7 } } as unknown as BootRecord;
  const plan = (more: Partial<Plan>) => ({ slot: "b", hash: "11", trial: 7, ...more }) as Plan;
  const same = [{}, { trial: 8 }, { hash: "22" }].map((more) => isOf(plan(more), record));
  expect(same).toEqual([true, false, false]);
});

test("the floor is that of the kept release, if that is what the slot holds", async () => {
  using folder = scratch();
  const { update } = makeRelease();
  mkdirSync(join(folder.path, "releases"));
  writeFileSync(join(folder.path, "releases/b.fruit"), update);
  const hash = hashPrefix(parseUpdate(update).info.piecesRoot);
  expect(await floorOf(folder.path, "b", hash)).toBe(7n);
  expect(await floorOf(folder.path, "b", "11".repeat(16))).toBe(0n);
  expect(await floorOf(folder.path, "a", hash)).toBe(0n);
});

test.each([
  { starts: 2, isLoop: false },
  { starts: 3, isLoop: true },
])("with three starts to a loop, $starts of them are one: $isLoop", async ({ starts, isLoop }) => {
  using folder = scratch();
  const run = join(folder.path, "run");
  const config = parseConfig("node.json", { site: "lab", boot: { loop_starts: 3, run_dir: run } }).boot;
  let breaker: LoopBreaker | undefined;
  for (let start = 1; start <= starts; start++) {
    const hal = { machine: { bootId: `boot-${start}` } as Machine } as never;
    breaker = new LoopBreaker(folder.path, { config, alarm: quiet, log: quiet, hal });
    await breaker.count("a");
  }
  expect(breaker?.starts).toBe(isLoop ? starts : undefined);
});
