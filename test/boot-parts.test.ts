/** What trials are made of, each alone: checks and time, the yardstick, marks, history, installs, cards that hang. */
import { expect, test } from "bun:test";
import { appendFileSync, readFileSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Baseline, countOf } from "../agent/boot/baseline.ts";
import { openWithin, readThrough, timely } from "../agent/boot/card.ts";
import { HISTORY, History, readHistory } from "../agent/boot/history.ts";
import { CARD_DATA, slotsData } from "../agent/boot/kernel.ts";
import { type Mark, parseMarks } from "../agent/boot/marks.ts";
import { openNodeCard } from "../agent/boot/open.ts";
import type { Plan } from "../agent/boot/plan.ts";
import { Quarantine, quarantined } from "../agent/boot/quarantine.ts";
import { type Situation, settle } from "../agent/boot/settle.ts";
import { clearStarts, countStart } from "../agent/boot/starts.ts";
import { type Check, Trial, type TrialOptions } from "../agent/boot/trial.ts";
import { readInstalling } from "../agent/boot/updates.ts";
import { type Blame, causeOf } from "../agent/boot/verdict.ts";
import { parseConfig } from "../agent/config.ts";
import { Store } from "../agent/store.ts";
import type { Reason } from "../boot/record.ts";
import { openDisk } from "../hal/disk.ts";
import { openSim } from "../hal/sim/hal.ts";
import { FileCard } from "./card.ts";
import { payloadOf, SLOT_OFFSETS } from "./crash/card.ts";
import { seeded } from "./fakes.ts";
import { scratch, until } from "./node.ts";
import { ROOTFS } from "./shell.ts";
import { NEW, OLD, SlotNode } from "./slotnode.ts";

const quiet = () => undefined;
const check = (name: string, look: Check["look"], more: Partial<Check> = {}): Check => ({
  name,
  isFatal: false,
  limitMs: 100,
  ...more,
  look,
});
const good = check("good", async () => ({ boot: "this", isGood: true, message: "well" }));

/** A trial of a few checks; unless said otherwise it ends within 300 ms. */
function trialOf(checks: readonly Check[], more: Partial<TrialOptions> = {}) {
  return new Trial({
    checks,
    boot: "this",
    deadlineMs: performance.now() + 300,
    settleMs: 0,
    everyMs: 10,
    nowMs: () => performance.now(),
    log: quiet,
    changed: quiet,
    ...more,
  });
}

const signal = () => new AbortController().signal;

test("a report of another boot of the machine does not count, however good", async () => {
  const stale = check("stale", async () => ({ boot: "another", isGood: true, message: "well" }));
  const trial = trialOf([good, stale]);
  expect(await trial.run(signal())).toEqual({ is: "failed", reason: "deadline" });
  expect(trial.states).toMatchObject([
    { name: "good", state: "good" },
    { name: "stale", state: "not-run", message: "its report is of another boot, another" },
  ]);
});

test.each([
  ["never answers", () => new Promise<never>(quiet), "no answer within 0.1 s"],
  ["throws", () => Promise.reject(new Error("no such bus")), "no such bus"],
])("a check that %s has not run, and blocks", async (_, look, message) => {
  const trial = trialOf([good, check("mute", look)]);
  expect(await trial.run(signal())).toEqual({ is: "failed", reason: "deadline" });
  expect(trial.states[1]).toMatchObject({ state: "not-run", message });
});

test("every check must stay good for as long as it takes to settle", async () => {
  let looks = 0;
  const flaps = check("flaps", async () => ({ boot: "this", isGood: ++looks !== 8, message: "" }));
  // Time passes with the looks, 10 ms each
  const trial = trialOf([good, flaps], {
    deadlineMs: 5000,
    settleMs: 100,
    everyMs: 1,
    nowMs: () => looks * 10,
  });
  expect(await trial.run(signal())).toEqual({ is: "passed" });
  expect(looks).toBe(19);
});

test("a trial that is told to stop decides nothing", async () => {
  const stop = new AbortController();
  const trial = trialOf([check("mute", () => new Promise<never>(quiet))], {
    deadlineMs: Number.POSITIVE_INFINITY,
  });
  const running = trial.run(stop.signal);
  stop.abort();
  expect(await running).toEqual({ is: "stopped" });
});

test("the yardstick keeps what was missing for a moment, and forgets what has gone", () => {
  using folder = scratch();
  let now = 0;
  const baseline = new Baseline(new Store(folder.path, quiet), () => now);
  baseline.observe(["broker", "i2c:2", "bus:0"], "4");
  now += 14 * 60_000;
  baseline.observe(["i2c:1"], "4");
  expect(baseline.facts).toEqual(["broker", "bus:0", "i2c:1", "i2c:2"]);
  expect(countOf(baseline.facts, "i2c")).toBe(2);
  now += 2 * 60_000;
  baseline.observe(["i2c:1"], "4");
  expect(baseline.facts).toEqual(["i2c:1"]);
});

test("an agent that has only just started measures by what the one before had seen", async () => {
  using folder = scratch();
  const store = new Store(folder.path, quiet);
  const before = new Baseline(store, () => 0);
  before.observe(["broker"], "4");
  await before.save("boot-1");
  const after = new Baseline(new Store(folder.path, quiet), () => 0);
  after.observe([], "4");
  expect(after.facts).toEqual(["broker"]);
});

test("what a version has ever had is missed until it is back, counted where it is counted, and forgotten by the next version", async () => {
  using folder = scratch();
  let now = 0;
  const open = () => new Baseline(new Store(folder.path, quiet), () => now);
  const before = open();
  before.observe(["broker", "i2c:1"], "4");
  before.observe(["bus:0", "i2c:2"], "4");
  now += 16 * 60_000;
  before.observe([], "4");
  expect(before.facts).toEqual([]);
  await before.save("boot-1");
  const after = open();
  expect(after.missing(["i2c:1", "bus:0"])).toEqual(["broker", "i2c:2"]);
  expect(after.missing(["i2c:3", "bus:0", "broker"])).toEqual([]);
  after.observe(["clock"], "5");
  expect(after.missing([])).toEqual(["clock"]);
});

test("marks that make no sense are left out, and what is shown of the others moves no cursor", () => {
  expect(
    parseMarks(
      "7 1 b-1 init\n\nnonsense\n7 x b-1 init\n7 1 b-1 burnt\n7 2 b-2 agent-dead Oops\u001b[2J: 0000\n7 2 b-2 panic\n7 3",
    ),
  ).toEqual([
    { trial: 7, attempt: 1, boot: "b-1", what: "init" },
    { trial: 7, attempt: 2, boot: "b-2", what: "agent-dead", text: "Oops?[2J: 0000" },
  ]);
});

test("whatever stands in the marks, reading them ends and gives whole marks", () => {
  const random = seeded(11);
  const seed = "7 1 b-1 init\n7 1 b-1 agent\n7 2 b-2 agent-dead no heartbeat\n";
  for (let count = Number(process.env.FRUIT_FUZZ ?? 5_000); count > 0; count--) {
    const text = Buffer.from(seed);
    for (let flips = 1 + random() * 6; flips > 0; flips--)
      text[Math.floor(random() * text.length)] = Math.floor(random() * 256);
    for (const mark of parseMarks(text.toString("latin1"))) {
      if (!Number.isInteger(mark.trial) || !Number.isInteger(mark.attempt))
        throw new Error(text.toString("hex"));
      if (mark.text && /\p{Cc}/u.test(mark.text)) throw new Error(text.toString("hex"));
    }
  }
});

const CLOCK = { boot: "b-1", clock: () => "synced" as const };

test("a history whose last line a power cut tore goes on, and says so; one that was changed is found out", async () => {
  using folder = scratch();
  const file = join(folder.path, "history.jsonl");
  {
    const history = await History.open(folder.path, CLOCK);
    await history.add({ what: "installed", slot: "b", version: "5" });
    await history.add({ what: "armed", slot: "b", version: "5" });
    await history.close();
  }
  truncateSync(file, readFileSync(file).length - 9);
  const history = await History.open(folder.path, CLOCK);
  expect(await history.addOnce({ what: "installed", slot: "b", version: "5" })).toBe(false);
  expect(await history.addOnce({ what: "armed", slot: "b", version: "5", cause: "again" })).toBe(true);
  await history.close();
  const whole = await readHistory(folder.path, 10);
  expect(whole.lines.map(({ what }) => what)).toEqual(["installed", "log.torn", "armed"]);
  expect(whole.problems).toEqual([]);
  writeFileSync(file, readFileSync(file, "utf8").replace('"version":"5"', '"version":"6"'));
  expect((await readHistory(folder.path, 10)).problems).toEqual([
    "history.jsonl line 1: changed: it is not the line that the next one follows",
  ]);
});

test("lines of a newer agent are kept, and read as far as they can be", async () => {
  using folder = scratch();
  const newer = await History.open(folder.path, CLOCK);
  await newer.add({ what: "mirrored", slot: "b", version: "9", peers: 3 } as never);
  await newer.close();
  const history = await History.open(folder.path, CLOCK);
  await history.add({ what: "failed", slot: "b", version: "9" });
  await history.close();
  const { lines, problems } = await readHistory(folder.path, 10);
  expect({ told: lines.map(({ what }) => what), problems }).toEqual({
    told: ["mirrored", "failed"],
    problems: [],
  });
});

test.each([
  { kind: "tryboot", isOverdue: true, isLoop: false, again: ["slot b is tried again"], isAlarm: false },
  { kind: "tryboot", isOverdue: true, isLoop: true, again: [], isAlarm: false },
  { kind: "tryboot", isOverdue: false, isLoop: false, again: [], isAlarm: false },
  { kind: "uboot", isOverdue: true, isLoop: false, again: [], isAlarm: true },
  { kind: "uboot", isOverdue: false, isLoop: false, again: [], isAlarm: false },
] as const)("an armed slot that was not started, $kind, overdue $isOverdue, loop $isLoop", async (given) => {
  const reboots: string[] = [];
  const alarms: string[] = [];
  const left = await settle(
    { is: "armed", slot: "b", isOverdue: given.isOverdue },
    {
      ...{ kind: given.kind, isLoop: given.isLoop, log: quiet },
      old: { has: async () => true, isLate: false },
      ...({ keeper: {}, record: {} } as Pick<Situation, "keeper" | "record">),
      reboot: (why) => void reboots.push(why),
      alarm: (_, alarm) => void (alarm && alarms.push(alarm.message)),
    },
  );
  expect(reboots).toEqual([...given.again]);
  expect(alarms).toHaveLength(given.isAlarm ? 1 : 0);
  expect(left.is).toBe("armed");
});

test("no history is an empty one", async () => {
  expect(await readHistory("/nowhere/at/all", 10)).toEqual({ lines: [], problems: [] });
  expect(HISTORY.name).toBe("history");
});

test("starts are counted once for each boot, until one is healthy", async () => {
  using folder = scratch();
  expect(await countStart(folder.path, "a", "b-1")).toBe(1);
  expect(await countStart(folder.path, "a", "b-1")).toBe(1);
  appendFileSync(join(folder.path, "starts.a"), "\u0000\u0000\n");
  expect(await countStart(folder.path, "a", "b-2")).toBe(2);
  // The other slot has its own
  expect(await countStart(folder.path, "b", "b-2")).toBe(1);
  await clearStarts(folder.path);
  expect(await countStart(folder.path, "a", "b-3")).toBe(1);
});

test("what the initramfs counts is looked for where it counts, wherever the data is", () => {
  const machine = (cmdline: string) => ({ read: () => new TextEncoder().encode(`${cmdline}\n`) });
  expect(slotsData(machine("console=tty1 fruit.slot=b panic=10"), "/mnt/ssd")).toBe("/data/fruit");
  expect(slotsData(machine("console=tty1 root=/dev/sda1"), "/mnt/ssd")).toBe("/mnt/ssd");
  const { data_dir } = parseConfig("node.json", { site: "lab" });
  const said = (file: string) => readFileSync(join(ROOTFS, file), "utf8");
  expect([data_dir, CARD_DATA]).toEqual(["/data/fruit", "/data/fruit"]);
  expect(said("initramfs/init")).toContain("\nfiles=/data\n");
  expect(said("initramfs/lib/fruit/starts.sh")).toContain('"$files/fruit/boot/starts.$slot"');
  expect(said("root/usr/libexec/fruit/watchdog")).toMatch(/\nboot=\$\{FRUIT_BOOT:-\/data\/fruit\/boot\}\n/);
});

test("an install that is under way is published, one whose process has died is not", async () => {
  using folder = scratch();
  const progress = { phase: "writing", version: "6", bytes_done: 10, bytes_total: 100, rate: null, eta_s: 9 };
  const file = (pid: number) => folder.file("update.json", { ...progress, pid });
  file(process.pid);
  expect(await readInstalling(folder.path)).toMatchObject({ phase: "writing", version: "6" });
  file(2 ** 22 + 1);
  expect(await readInstalling(folder.path)).toBeUndefined();
  folder.file("update.json", '{"phase":"wri');
  expect(await readInstalling(folder.path)).toBeUndefined();
  expect(await quarantined(folder.path, OLD.content.hash)).toBeUndefined();
});

test("state/update says idle while nothing is installed, and the phase at once when something is", async () => {
  await using node = new SlotNode();
  const running = await node.start();
  await until("idle", () => running.updates.at(-1)?.phase === "idle");
  expect(running.updates.at(-1)).toEqual({ phase: "idle", installed_version: "4", latest_version: "4" });
  writeFileSync(
    join(node.runDir, "update.json"),
    JSON.stringify({ phase: "writing", version: "6", bytes_done: 1, bytes_total: 2, pid: process.pid }),
  );
  await until("writing", () => running.updates.at(-1)?.phase === "writing");
  expect(running.updates.at(-1)).toMatchObject({ latest_version: "6", bytes_done: 1, bytes_total: 2 });
});

test("what is read of a slot is compared with its record, to the last byte", async () => {
  using folder = scratch();
  const { machine } = openSim({ seed: 1, boards: [0], wireTime: false, faults: [], clockSynced: true });
  const payload = payloadOf(4n, 150_001);
  const card = new FileCard(join(folder.path, "card.img"), payload);
  const open = await openNodeCard({ machine, openDisk }, card.path, "read");
  if (!open) throw new Error("no card");
  const read = () => readThrough(open, "a", payload.content, signal());
  expect(await read()).toBeUndefined();
  const last = SLOT_OFFSETS.a + 150_000;
  card.write(last, Uint8Array.of((card.read(last, 1)[0] ?? 0) ^ 1));
  expect(await read()).toMatch(/^slot a reads as [0-9a-f]{32}, its record says /);
  expect(await readThrough(open, "a", { ...payload.content, payloadBytes: 2 ** 40 }, signal())).toContain(
    "its record speaks of 1099511627776",
  );
  await open.disk.close();
});

test("a card that hangs is given up after a time, and what opens too late is closed", async () => {
  const hangs = timely(
    { kind: "uboot", current: "a", read: () => new Promise(quiet) } as unknown as Parameters<
      typeof timely
    >[0],
    "/dev/mmcblk0",
    50,
  );
  expect(hangs.read()).rejects.toThrow("/dev/mmcblk0: no answer within 0.05 s");
  const closed: string[] = [];
  expect(await openWithin(Promise.resolve("quick"), (late) => closed.push(late))).toBe("quick");
  expect(closed).toEqual([]);
});

test("a slot on trial whose content is damaged is given up at once, and the release is not blamed for it", async () => {
  await using node = new SlotNode();
  await node.armed();
  node.card.write(SLOT_OFFSETS.b + 100_000, Uint8Array.of(1, 2, 3));
  await node.start();
  await until("given up", () => node.card.record.slots.b.state === "failed");
  expect(node.card.record.slots.b.reason).toBe("files-damaged");
  const old = await node.start();
  await until("it is told", () => node.told.some((line) => line.startsWith("rolled-back")));
  node.card.stage("b", NEW);
  expect((await old.run("boot.try", { no_reboot: true })).state).toBe("done");
});

test("nothing is tried while this node switches power for others", async () => {
  await using node = new SlotNode();
  const running = await node.start();
  await running.settled();
  node.card.stage("b", NEW);
  node.worlds.a.isPowerBusy = true;
  expect(await running.refusal("boot.try")).toMatch(/^busy: /);
  node.worlds.a.isPowerBusy = false;
  expect((await running.run("boot.try", { no_reboot: true })).state).toBe("done");
});

test("an agent in a slot touches its heartbeat and, on trial, leaves the deadline for the feeder", async () => {
  await using node = new SlotNode({ settle_seconds: 5 });
  await node.armed();
  const trial = await node.start();
  await until("a trial", () => trial.states.at(-1)?.trial);
  expect(await Bun.file(join(node.runDir, "heartbeat")).exists()).toBe(true);
  expect(await Bun.file(join(node.runDir, "trial")).text()).toBe("20\n");
  expect((await trial.run("boot.confirm", { force: true })).state).toBe("done");
  expect(await Bun.file(join(node.runDir, "trial")).exists()).toBe(false);
});

test("a data partition that could not be used is an alarm, and none where it can", async () => {
  await using node = new SlotNode();
  const well = await node.start();
  await well.settled();
  expect(well.alarms.has("data-lost")).toBe(false);
  await well.killAgent();
  writeFileSync(join(node.runDir, "data-lost"), "/dev/mmcblk0p4 cannot be used\n");
  await well.startAgent();
  await until("the alarm", () => well.alarms.get("data-lost"));
  expect(well.alarms.get("data-lost")).toMatch(/^critical: the data partition cannot be used: /);
});

test("without the trial's own record nobody knows whether a mark could be written", () => {
  const cause = causeOf("tries-spent", undefined, []);
  expect(cause).toMatchObject({ reason: "tries-spent", blame: "round" });
  expect(cause.evidence).toEqual([expect.stringContaining("the trial's own record is missing")]);
});

test("a trial of which nothing was kept is not held against the release for good", () => {
  expect(causeOf("deadline", undefined, [])).toMatchObject({ reason: "deadline", blame: "round" });
  const plan = { trial: 7, failed: { attempt: 1, checks: ["memory"], evidence: ["memory: 3 MB"] } } as Plan;
  expect(causeOf("deadline", plan, [])).toMatchObject({ blame: "quarantine", evidence: ["memory: 3 MB"] });
  // The disk was full: what the slot said of itself was lost
  expect(causeOf("deadline", { trial: 7 } as Plan, [])).toMatchObject({ blame: "round" });
  const mark: Mark = { trial: 7, attempt: 1, boot: "b-1", what: "deadline" };
  expect(causeOf("deadline", { trial: 7 } as Plan, [mark])).toMatchObject({ blame: "quarantine" });
});

test.each<{ reason: Reason; checks: string[]; blame: Blame }>([
  { reason: "check-failed", checks: ["broker"], blame: "suspect" },
  { reason: "check-failed", checks: ["broker", "clock", "stack"], blame: "suspect" },
  { reason: "deadline", checks: ["data"], blame: "suspect" },
  { reason: "check-failed", checks: ["devices", "power"], blame: "suspect" },
  { reason: "check-failed", checks: ["clock", "site"], blame: "suspect" },
  { reason: "check-failed", checks: ["site"], blame: "quarantine" },
  { reason: "check-failed", checks: ["devices", "site"], blame: "quarantine" },
  { reason: "fatal-check", checks: ["broker", "site"], blame: "quarantine" },
  { reason: "check-failed", checks: ["broker", "memory"], blame: "quarantine" },
  { reason: "deadline", checks: ["agent", "broker"], blame: "quarantine" },
])("$reason of $checks: $blame", ({ reason, checks, blame }) => {
  const plan = { trial: 7, failed: { attempt: 1, checks, evidence: [] } } as unknown as Plan;
  expect(causeOf(reason, plan, []).blame).toBe(blame);
});

test("three starts without a mark are told as that, and no more", () => {
  const cause = causeOf("tries-spent", { trial: 7, tries: 3 } as Plan, []);
  expect(cause).toMatchObject({ reason: "never-came-up", blame: "suspect" });
  expect(cause.evidence).toEqual([
    "none of its 3 starts left a mark: it may not have reached the initramfs, or the power went before",
  ]);
});

test("a content is condemned by a second trial that ends as the first did, not by the same one told twice", async () => {
  using folder = scratch();
  const open = () => new Quarantine(new Store(folder.path, quiet));
  const hash = NEW.content.hash;
  expect(await open().suspect(hash, 7, ["broker", "clock"])).toBe(false);
  expect(await open().suspect(hash, 7, ["broker"])).toBe(false);
  expect(await open().suspect(hash, 8, ["never-came-up"])).toBe(false);
  expect(await open().suspect(hash, 9, ["broker"])).toBe(false);
  expect(await open().suspect(OLD.content.hash, 10, ["broker"])).toBe(false);
  expect(await open().suspect(hash, 11, ["broker"])).toBe(true);
  await open().lift(hash);
  expect(await open().suspect(hash, 12, ["broker"])).toBe(false);
});
