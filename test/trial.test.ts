/** Trials of a slot on a simulated node; numbers are those of the cases that every updater must survive. */
import { afterEach, expect, jest, setDefaultTimeout, setSystemTime, test } from "bun:test";
import { createHash } from "node:crypto";
import { closeSync, existsSync, mkdirSync, openSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { openNodeCard } from "../agent/boot/open.ts";
import { type Installed, install } from "../agent/update/install.ts";
import { encodeBencode } from "../boot/bencode.ts";
import { RECORD_OFFSETS, SECTOR } from "../boot/layout.ts";
import { decodeRecord, encodeRecord } from "../boot/record.ts";
import { NO_HASH } from "../boot/slots.ts";
import { openDisk } from "../hal/disk.ts";
import { HalError } from "../hal/ports.ts";
import { openSim } from "../hal/sim/hal.ts";
import { payloadOf, SLOT_BYTES, SLOT_OFFSETS } from "./crash/card.ts";
import { until } from "./node.ts";
import { BOARD, makePayload, makeRelease } from "./releases.ts";
import { altered, NEW, OLD, type Running, SlotNode } from "./slotnode.ts";

// Above what `until` waits: it says what did not come. A node that starts ten times waits for the disk of a busy machine
setDefaultTimeout(20_000);

afterEach(() => {
  setSystemTime();
  jest.useRealTimers();
});

/** The old slot runs again, and has told what became of the new one. */
async function back(node: SlotNode): Promise<Running> {
  const old = await node.start();
  expect(old.slot).toBe("a");
  await until("it is told", () => node.told.some((line) => line.startsWith("rolled-back")));
  return old;
}

const hashOfFile = (path: string) => createHash("sha256").update(readFileSync(path)).digest("hex");

/** For several trials that fail at their deadline. */
const LONG_MS = 30_000;

const good = (node: SlotNode) => until("the slot is good", () => node.card.record.slots.b.state === "good");
const failed = (node: SlotNode) =>
  until("the slot has failed and it is told", () => {
    const isTold = node.told.some((line) => line.startsWith("failed"));
    return isTold && node.card.record.slots.b.state === "failed";
  });

test("a trial whose checks are all good becomes good, and the history says by what evidence", async () => {
  await using node = new SlotNode();
  await node.armed();
  const trial = await node.start();
  expect(trial.slot).toBe("b");
  await good(node);
  const { primary, trial: open, confirmed } = node.card.record;
  expect({ primary, open, confirmed }).toEqual({
    primary: "b",
    open: undefined,
    confirmed: expect.any(Number),
  });
  await until("it is told", () => node.told.includes("confirmed"));
  // There is no deadline any more that the feeder would keep
  await until("the deadline is gone", () => !existsSync(join(node.runDir, "trial")));
  expect(node.told).toEqual(["installed", "armed", "started", "confirmed"]);
  expect(node.history.at(-1)).toMatchObject({
    slot: "b",
    version: "5",
    hash: NEW.content.hash,
    evidence: expect.arrayContaining([expect.stringMatching(/^slot: all of it/)]),
  });
  await until("state/boot", () => trial.states.at(-1)?.confirmed === true);
  expect(trial.events.map(({ type }) => type)).toEqual(["boot.trial.started", "boot.trial.confirmed"]);
  expect(trial.states.at(-1)).toMatchObject({ active: "b", trial: false });
});

// Neither a hang of the kernel nor a root that never appears comes as far as the data: no try leaves a mark (43: `rootwait.test.ts`)
test("40, 43 verdict of starts that nothing was heard of: never-came-up, and the second time the release is blamed", async () => {
  await using node = new SlotNode();
  for (let round = 1; round <= 2; round++) {
    await node.armed();
    for (let attempt = 1; attempt <= 3; attempt++) await node.start({ init: false });
    const old = await node.start();
    expect(old.slot).toBe("a");
    await until(
      "it is told",
      () => node.told.filter((line) => line === "rolled-back never-came-up").length === round,
    );
    expect(node.card.record.slots.b).toMatchObject({ state: "failed", reason: "never-came-up" });
    expect(node.history.at(-1)?.evidence).toEqual([
      "none of its 3 starts left a mark: it may not have reached the initramfs, or the power went before",
    ]);
    await until("the alarm", () => old.alarms.get("boot-failed"));
    expect(old.alarms.get("boot-failed")).toContain("version 5 failed (never-came-up)");
    // The same start told again does not count twice
    await (await node.start()).settled();
    if (round > 1) continue;
    expect(node.told).not.toContain("quarantined never-came-up");
    node.card.stage("b", NEW);
    const again = await node.start();
    await again.settled();
    const told = await again.explain();
    expect(told).toContain("1 trial of it ended without proof against it; after 3 it is not tried any more.");
    expect(told).toContain("It is under suspicion (never-came-up): what is around this node may have been");
    expect(told).toContain("Version 5 is whole in slot b and can be tried again: 'fruit boot try --reason");
  }
  expect(node.told.filter((line) => line === "quarantined never-came-up")).toHaveLength(1);
});

const REACHED = "reached the initramfs";
const silentIn = (which: string) =>
  `went silent after the initramfs in ${which}: a kernel panic, a first program that ends, a hang, or power that failed`;
const NO_INIT = "slot b: its root has no /sbin/init";

// What ends a try, and what starts the node again, is not simulated: the verdict goes by the marks that each try has left
test.each<[title: string, marks: [first: string[], second: string[], third: string[]], evidence: string[]]>([
  [
    "39 verdict of a kernel panic, which nothing notes",
    [["init"], ["init"], ["init"]],
    [`try 1: ${REACHED}`, `try 2: ${REACHED}`, `try 3: ${REACHED}`, silentIn("each of its 3 tries")],
  ],
  [
    "39 verdict of a kernel panic, once before the initramfs",
    [["init"], [], ["init"]],
    [`try 1: ${REACHED}`, `try 3: ${REACHED}`, silentIn("2 of its 3 tries")],
  ],
  [
    "41 verdict of a hang after the watchdog driver, once behind the start of the agent",
    [["init"], ["init", "agent"], ["init"]],
    [`try 1: ${REACHED}`, `try 2: ${REACHED}`, "try 2: the agent started", `try 3: ${REACHED}`],
  ],
  [
    "42 verdict of an init loop, whose cause the initramfs has seen",
    [
      ["init", `init ${NO_INIT}`],
      ["init", `init ${NO_INIT}`],
      ["init", `init ${NO_INIT}`],
    ],
    [1, 2, 3].flatMap((attempt) => [`try ${attempt}: ${REACHED}`, `try ${attempt}: ${REACHED}: ${NO_INIT}`]),
  ],
])("%s: nobody is to blame, so it may be installed again, three times", async (_, tries, seen) => {
  await using node = new SlotNode();
  for (let round = 1; round <= 3; round++) {
    await node.armed();
    for (const marks of tries) {
      const start = await node.start({ init: false });
      for (const mark of marks) start.mark(mark);
    }
    const old = await node.start();
    expect(old.slot).toBe("a");
    await until(
      "it is told",
      () => node.told.filter((line) => line === "rolled-back tries-spent").length === round,
    );
    expect(node.card.record.slots.b).toMatchObject({ state: "failed", reason: "tries-spent" });
    const { evidence } = node.history.findLast(({ what }) => what === "rolled-back") ?? {};
    expect(evidence?.map((line) => line.replace(/ \(boot boot-\d+\)$/, ""))).toEqual(seen);
    expect(node.told).not.toContain("quarantined tries-spent");
    await old.settled();
    const told = await old.explain();
    expect(told).toContain(
      round < 3
        ? `${round} trial${round > 1 ? "s" : ""} of it ended without proof against it; after 3 it is not tried any more.\nThe release itself is not blamed: it may be installed again.`
        : "3 trials of it ended without proof against it: it is not tried any more until somebody has found out why; once it was installed again, 'fruit boot try --force --reason TEXT' does it all the same.",
    );
    expect(told).not.toContain("suspicion");
    expect(await old.status()).toMatchObject({ rounds: round });
  }
  const old = await node.start();
  await old.settled();
  node.card.stage("b", NEW);
  expect(await old.explain()).toMatch(
    /^3 trials of it .* found out why; 'fruit boot try --force .*\nVersion 5 is whole in slot b\.$/m,
  );
  expect(await old.refusal("boot.try")).toMatch(
    /^quarantined: version 5 was tried 3 times and never decided/,
  );
  expect((await old.run("boot.try", { force: true, no_reboot: true })).state).toBe("done");
});

test("44 agent crash loop: the third agent of one start gives the slot up at once", async () => {
  await using node = new SlotNode({ settle_seconds: 5 });
  await node.armed();
  const trial = await node.start();
  for (let crash = 1; crash <= 2; crash++) {
    await until("the agent's mark", () => node.marks.filter(({ what }) => what === "agent").length === crash);
    await trial.killAgent();
    await trial.startAgent();
  }
  await failed(node);
  expect(node.card.record.slots.b.reason).toBe("fatal-check");
  expect(node.history.at(-1)?.evidence).toContain("agent bad: it died 2 times in this trial");
  await until("the node goes down", () => trial.reboots === 1);
  await back(node);
  await until("it is blamed", () => node.told.at(-1) === "quarantined fatal-check");
  expect(node.told.at(-2)).toBe("rolled-back fatal-check");
});

test("45 verdict of an agent that is killed for want of memory, each time as the feeder notes it: the release is blamed", async () => {
  await using node = new SlotNode();
  await node.armed();
  for (let attempt = 1; attempt <= 3; attempt++)
    (await node.start({ agent: false })).mark("agent-dead", "no heartbeat of the agent for 60 s");
  const old = await back(node);
  expect(node.card.record.slots.b.reason).toBe("agent-dead");
  await until("it is blamed", () => node.told.at(-1) === "quarantined agent-dead");
  expect(await old.explain()).toContain("the agent was dead: no heartbeat of the agent for 60 s");
  expect(await old.explain()).toContain(
    "The release is blamed (agent-dead) and not tried again by itself; 'fruit update install FILE --force' puts it there again, and 'fruit boot try --force --reason TEXT' does it all the same.",
  );
  await until("the events", () => old.events.length === 3);
  expect(old.events.map(({ type }) => type)).toEqual([
    "boot.trial.failed",
    "boot.rolled-back",
    "boot.quarantined",
  ]);
  expect(await old.refusal("boot.try")).toMatch(/^slot: slot b is failed: there is nothing to try/);
  node.card.stage("b", NEW);
  expect(await old.refusal("boot.try")).toMatch(
    /^quarantined: version 5 has failed here \(agent-dead: try 1/,
  );
  expect(await old.explain()).toContain(
    "The release is blamed (agent-dead) and not tried again by itself; 'fruit boot try --force --reason TEXT' does it all the same.\nVersion 5 is whole in slot b.",
  );
});

test("45 one agent that is killed and comes back loses what it had seen, and may still pass", async () => {
  await using node = new SlotNode({ settle_seconds: 0.5 });
  await node.armed();
  const trial = await node.start();
  await until("a trial", () => trial.states.at(-1)?.trial);
  await until("a good check", async () =>
    (await trial.status()).trial?.checks?.some(({ state }) => state === "good"),
  );
  await trial.killAgent();
  await trial.startAgent();
  await until("a status", () =>
    trial.run("boot.status").then(
      (answer) => answer,
      () => false,
    ),
  );
  const { trial: again } = await trial.status();
  expect(again?.checks?.every(({ good_for_s = 0 }) => good_for_s === 0)).toBe(true);
  await good(node);
});

test("46 network down in both slots: the new one need not have it", async () => {
  await using node = new SlotNode();
  node.worlds.a.broker = false;
  node.worlds.b.broker = false;
  await node.armed();
  const trial = await node.start();
  await good(node);
  expect((await trial.status()).trial).toBeUndefined();
});

test(
  "47 network down only in the new slot: rolled back, and blamed when it happens again and the old one reaches the broker",
  async () => {
    await using node = new SlotNode({ deadline_seconds: 3 });
    const suspects = async () =>
      JSON.parse(
        await Bun.file(join(node.dir, "quarantine.json"))
          .text()
          .catch(() => "{}"),
      ).suspects ?? {};
    node.worlds.b.broker = false;
    await node.armed();
    await node.start();
    await failed(node);
    expect(node.card.record.slots.b.reason).toBe("check-failed");
    expect(node.history.at(-1)?.evidence).toEqual([
      "broker bad: the old slot had the broker, this one has not",
    ]);
    node.worlds.a.broker = false;
    const dark = await back(node);
    await until("all of it was judged", () => dark.states.length > 0);
    expect(node.told.at(-1)).toBe("rolled-back check-failed");
    expect(dark.events.some(({ type }) => type === "boot.quarantined")).toBe(false);
    expect(await suspects()).toEqual({});
    node.worlds.a.broker = true;
    await (await node.start()).settled();
    await until("it is suspected", async () => Object.keys(await suspects()).length === 1);
    expect(node.told).not.toContain("quarantined check-failed");
    await node.armed();
    await node.start();
    await until(
      "it fails again",
      () => node.told.filter((line) => line === "failed check-failed").length === 2,
    );
    const light = await node.start();
    await until("it is blamed", () => node.told.at(-1) === "quarantined check-failed");
    await until("the event", () => light.events.some(({ type }) => type === "boot.quarantined"));
    expect(light.events).toHaveLength(2);
  },
  LONG_MS,
);

test(
  "47 an outage of the network and the disk in both trials condemns nothing: the old slot has it too, and then time is over",
  async () => {
    await using node = new SlotNode({ deadline_seconds: 2 });
    for (let round = 1; round <= 2; round++) {
      Object.assign(node.worlds.a, { broker: true, clock: true });
      await node.armed();
      Object.assign(node.worlds.a, { broker: false, clock: false });
      Object.assign(node.worlds.b, { broker: false, clock: false });
      await node.start();
      await until(
        "it fails",
        () => node.told.filter((line) => line === "failed check-failed").length === round,
      );
      const dark = await node.start();
      await dark.settled();
      await until(
        "it is told",
        () => node.told.filter((line) => line === "rolled-back check-failed").length === round,
      );
      // Past the time in which the old slot could have shown that it has what the new one had not
      await until("the window has passed", () => dark.upSeconds > 2);
      await dark.killAgent();
      Object.assign(node.worlds.a, { broker: true, clock: true });
      await dark.startAgent();
      await until(
        "the plan is gone",
        async () => (await Bun.file(join(node.dir, "trial.json")).text()).trim() === "null",
      );
    }
    const { rounds, suspects, hashes } = JSON.parse(await Bun.file(join(node.dir, "quarantine.json")).text());
    expect({ rounds, suspects, hashes }).toEqual({
      rounds: { [NEW.content.hash]: 2 },
      suspects: {},
      hashes: {},
    });
  },
  LONG_MS,
);

test("48 flapping health: a check that does not stay good does not count", async () => {
  await using node = new SlotNode({ deadline_seconds: 2, settle_seconds: 0.6 });
  await node.armed();
  const trial = await node.start({ agent: false });
  // Time passes with the looks, so that no phase is missed however slow they are
  let looks = 0;
  Object.defineProperty(node.worlds.b, "broker", { get: () => Math.floor(++looks / 20) % 2 === 0 });
  await trial.startAgent({ nowMs: () => looks * 10 });
  await failed(node);
  expect(["check-failed", "deadline"]).toContain(node.card.record.slots.b.reason);
  expect(node.told).not.toContain("confirmed");
  await until("the events", () => trial.events.length === 2);
  expect(trial.events.map(({ type }) => type)).toEqual(["boot.trial.started", "boot.trial.failed"]);
});

test.each([
  ["cannot be started", ["/nowhere/check"], /^network not-run: \/nowhere\/check: /],
  ["says no", ["/bin/sh", "-c", "echo no route; exit 3"], /^network bad: exit code 3: no route$/],
  ["does not end", ["/bin/sleep", "100"], /^network bad: no end within 0.2 s$/],
])("49 a health check that %s blocks, and the trial fails at its deadline", async (_, command, evidence) => {
  const checks = [{ name: "network", command, timeout_seconds: 0.2 }];
  await using node = new SlotNode({ deadline_seconds: 1, checks });
  await node.armed();
  await node.start();
  await failed(node);
  expect(node.history.at(-1)?.evidence).toContainEqual(expect.stringMatching(evidence));
  expect(node.told).not.toContain("confirmed");
});

test("49 a fatal check that says no ends the trial at once; one that says yes counts like any other", async () => {
  const flag = (node: SlotNode) => join(node.folder.path, "flag");
  await using node = new SlotNode();
  const command = ["/bin/sh", "-c", `test -e ${flag(node)} && echo all is well`];
  Object.assign(node.settings, { checks: [{ name: "site", command, timeout_seconds: 5, fatal: true }] });
  await node.armed();
  const began = performance.now();
  const trial = await node.start();
  await failed(node);
  expect(performance.now() - began).toBeLessThan(10_000);
  expect(node.card.record.slots.b.reason).toBe("fatal-check");
  await until("the node goes down", () => trial.reboots === 1);
  await back(node);
  writeFileSync(flag(node), "");
  await node.armed(payloadOf(6n, 200_000));
  await node.start();
  await good(node);
});

test("49 without the trial's own record nothing is confirmed, however good the checks", async () => {
  await using node = new SlotNode({ deadline_seconds: 1 });
  await node.armed();
  rmSync(join(node.dir, "trial.json"));
  const trial = await node.start();
  await until("a status", () => trial.states.at(-1)?.trial);
  expect(await trial.refusal("boot.confirm")).toMatch(/^on-trial: not good yet: /);
  await failed(node);
  expect(node.card.record.slots.b.reason).toBe("deadline");
  expect(node.history.at(-1)?.evidence).toContainEqual(
    expect.stringMatching(/^record not-run: .*trial\.json does not say/),
  );
});

test("49 the trial's own record of another release does not count", async () => {
  await using node = new SlotNode({ deadline_seconds: 1 });
  await node.armed();
  const file = join(node.dir, "trial.json");
  writeFileSync(file, JSON.stringify({ ...JSON.parse(await Bun.file(file).text()), hash: OLD.content.hash }));
  await node.start();
  await failed(node);
  expect(node.card.record.slots.b.reason).toBe("deadline");
});

test.each([
  [
    "before the record is written",
    (write: () => Promise<unknown>, cut: () => never) => Promise.resolve().then(cut).then(write),
    "a",
  ],
  ["just after", (write: () => Promise<unknown>, cut: () => never) => write().then(cut), "b"],
] as const)(
  "50 watchdog fires during commit, %s: what starts then is whole, and told once",
  async (_, order, slot) => {
    await using node = new SlotNode();
    await node.armed();
    const cut = () => {
      throw new HalError("io", "the power is gone");
    };
    node.wrap = (boot) =>
      altered(boot, { setPrimary: (to, why) => order(() => boot.setPrimary(to, why), cut) as never });
    const trial = await node.start();
    await until("the commit is tried", () => trial.alarms.get("boot-card")?.includes("the power is gone"));
    await node.off();
    node.wrap = (boot) => boot;
    expect(node.card.record.primary).toBe(slot);
    const next = await node.start();
    expect(next.slot).toBe("b");
    await good(node);
    await until("it is told", () => node.told.includes("confirmed"));
    expect(node.told.filter((line) => line === "confirmed")).toHaveLength(1);
  },
);

test("51 user reboots in the trial: a try without blame", async () => {
  await using node = new SlotNode({ settle_seconds: 5 });
  await node.armed();
  const first = await node.start();
  await until("the agent's mark", () => node.marks.some(({ what }) => what === "agent"));
  await first.stopAgent();
  expect(node.marks.at(-1)).toMatchObject({ what: "stopped", attempt: 1 });
  Object.assign(node.settings, { settle_seconds: 0.1 });
  const second = await node.start();
  expect((await second.status().catch(() => undefined))?.trial?.tries_left ?? 1).toBe(1);
  await good(node);
});

test("51 three reboots by a person spend the tries, and blame nobody", async () => {
  await using node = new SlotNode({ settle_seconds: 5 });
  await node.armed();
  for (let attempt = 1; attempt <= 3; attempt++) {
    const trial = await node.start();
    await until(
      "the agent's mark",
      () => node.marks.filter(({ what }) => what === "agent").length === attempt,
    );
    await trial.stopAgent();
  }
  await back(node);
  expect(node.told.slice(-2)).toEqual(["failed tries-spent", "rolled-back tries-spent"]);
  expect(node.history.at(-1)?.evidence).toContainEqual(
    expect.stringContaining("shut down in an orderly way"),
  );
});

test.each([-20, 20])(
  "52 clock jumps in the trial by %d years: neither its deadline nor its checks mind",
  async (years) => {
    await using node = new SlotNode({ settle_seconds: 0.5 });
    await node.armed();
    const trial = await node.start();
    await until("a status", () => trial.states.length > 0);
    setSystemTime(new Date(Date.now() + years * 365 * 86_400_000));
    await good(node);
    await until("it is told", () => node.told.includes("confirmed"));
  },
);

/** In the newest place only, as whoever writes next leaves it. */
function reformat(node: SlotNode, format: number): void {
  const { sequence } = node.card.record;
  for (const offset of RECORD_OFFSETS) {
    const record = decodeRecord(node.card.read(offset, SECTOR));
    if (typeof record !== "string" && record.sequence === sequence)
      node.card.write(offset, encodeRecord({ ...record, format }));
  }
}

test.each([2, 0xffff_ffff])(
  "53 new agent that finds a record of a newer format, %d, reports, changes nothing and is never confirmed",
  async (format) => {
    await using node = new SlotNode({ deadline_seconds: 1.5 });
    await node.armed();
    reformat(node, format);
    const trial = await node.start();
    await until("the node goes down", () => trial.reboots === 1);
    expect(node.card.record).toMatchObject({ primary: "a", format, slots: { b: { state: "trying" } } });
    expect(trial.alarms.get("boot-card")).toContain(`the newest record has format ${format}`);
    expect(trial.states.at(-1)).toMatchObject({ active: "b", trial: true });
  },
);

test("53 new agent that finds a record of an older format understands it, and goes on in its own", async () => {
  await using node = new SlotNode();
  await node.armed();
  const trial = await node.start({ agent: false });
  reformat(node, 0);
  expect(node.card.record).toMatchObject({ format: 0, trial: { triesLeft: 2 } });
  await trial.startAgent();
  await good(node);
  expect(node.card.record).toMatchObject({ primary: "b", format: 1 });
  await until("it is told", () => node.told.includes("confirmed"));
});

/** Installs this release on the card of a node that runs from slot b, as the command line does. */
async function installOn(node: SlotNode, payload: ReturnType<typeof makePayload>): Promise<Installed> {
  const { update, side, trust } = makeRelease({ payload, stated: { expires: 4_000_000_000 } });
  const sim = openSim({ seed: 1, boards: [0], wireTime: false, faults: [], clockSynced: true });
  const root = () => ({ disk: node.card.path, offset: SLOT_OFFSETS.b, bytes: SLOT_BYTES });
  const hal = { machine: { ...sim.machine, root }, openDisk };
  const card = await openNodeCard(hal, node.card.path, "write");
  if (!card) throw new Error("no card");
  const file = (name: string, bytes: Uint8Array) => {
    writeFileSync(join(node.folder.path, name), bytes);
    return join(node.folder.path, name);
  };
  try {
    return await install({
      ...{ hal, card, trust, dataDir: join(node.folder.path, "data"), compatible: [BOARD], force: true },
      update: { path: "a release", bytes: update },
      side: file("release.side", side),
      payload: file("release", payload.payload),
      signal: new AbortController().signal,
      ...{ begins: () => undefined, report: () => undefined, warn: () => undefined },
    });
  } finally {
    await card.disk.close();
  }
}

test("57 while a slot is on trial no other is tried, and neither it nor the one to come back to is written over", async () => {
  await using node = new SlotNode({ settle_seconds: 15 });
  await node.armed();
  const trial = await node.start();
  await until("a status", () => trial.states.at(-1)?.trial);
  expect(await trial.refusal("boot.try")).toMatch(/^on-trial: slot b is on trial itself/);
  const next = makePayload({ version: 9n, name: "fruitos-9", rootBytes: 200_000 });
  const before = hashOfFile(node.card.path);
  await expect(installOn(node, next)).rejects.toThrow(
    /^slot a is the one this node starts from; it is never/,
  );
  expect(hashOfFile(node.card.path)).toBe(before);
  expect(existsSync(join(node.folder.path, "data/releases"))).toBe(false);
  // The same order, once the trial is decided
  await trial.run("boot.confirm", { force: true });
  const { slot } = await installOn(node, next);
  expect(slot).toBe("a");
  expect(Buffer.compare(node.card.read(SLOT_OFFSETS.a, next.payload.length), next.payload)).toBe(0);
  expect(node.card.record).toMatchObject({ primary: "b", slots: { a: { state: "staged", version: 9n } } });
});

test("58 state unwritable: nothing becomes good, and at the deadline the node goes down", async () => {
  await using node = new SlotNode({ deadline_seconds: 1 });
  await node.armed();
  const broken = () => Promise.reject(new HalError("io", "card: write at byte 4194304: EROFS"));
  node.wrap = (boot) => altered(boot, { setPrimary: broken, setState: broken });
  const trial = await node.start();
  await until("the node goes down", () => trial.reboots === 1);
  expect(node.card.record).toMatchObject({ primary: "a", slots: { b: { state: "trying" } } });
  expect(await Bun.file(join(node.runDir, "trial")).text()).toBe("0\n");
  expect(trial.alarms.get("boot-card")).toContain("EROFS");
});

test("59 abort: an armed slot is not tried any more, and the release is not blamed", async () => {
  await using node = new SlotNode();
  await node.armed();
  node.card.put((record) => ({
    ...record,
    trial: undefined as never,
    slots: { ...record.slots, b: { ...record.slots.b, state: "staged" } },
  }));
  const old = await node.start();
  await old.settled();
  await old.run("boot.try", { no_reboot: true });
  expect((await old.status()).trial).toMatchObject({ slot: "b", running: false, tries_left: 3 });
  const outcome = await old.run("boot.rollback");
  expect(outcome.message).toBe("slot b is not tried; slot a goes on");
  expect(node.card.record).toMatchObject({
    primary: "a",
    slots: { b: { state: "failed", reason: "by-hand" } },
  });
  expect(node.card.record.trial).toBeUndefined();
  expect((await node.start()).slot).toBe("a");
});

test("a slot that is armed is overdue in another boot than that which armed it, and not before", async () => {
  await using node = new SlotNode();
  const old = await node.start();
  await old.settled();
  node.card.stage("b", NEW);
  await old.run("boot.try", { no_reboot: true });
  await old.killAgent();
  const said = old.states.length;
  await old.startAgent();
  await until("a status of the agent that was started again", () => old.states.length > said);
  expect(old.alarms.has("boot-trial")).toBe(false);
  // U-Boot could not count the try, and starts the old slot
  const { trial } = node.card.record;
  node.card.put(({ trial: _, ...record }) => record);
  const later = await node.start({ agent: false });
  node.card.put((record) => ({ ...record, ...(trial ? { trial } : {}) }));
  await later.startAgent();
  await until("the alarm", () =>
    later.alarms.get("boot-trial")?.includes("was to be tried and was not started"),
  );
});

test("the power goes between arming a slot and noting which trial that is: it is confirmed all the same", async () => {
  await using node = new SlotNode();
  node.wrap = (boot) =>
    altered(boot, {
      armTrial: async (slot, tries) => {
        await boot.armTrial(slot, tries);
        throw new HalError("io", "the power goes");
      },
    });
  const old = await node.start();
  await old.settled();
  node.card.stage("b", NEW);
  await expect(old.run("boot.try", { no_reboot: true })).rejects.toThrow("the power goes");
  expect((await node.start()).slot).toBe("b");
  await good(node);
});

test("a release that became good has nothing held against it any more", async () => {
  await using node = new SlotNode();
  mkdirSync(node.dir, { recursive: true });
  const { hash } = NEW.content;
  const file = join(node.dir, "quarantine.json");
  const doubts = { hashes: {}, rounds: { [hash]: 2 }, suspects: { [hash]: { trial: 1, what: ["broker"] } } };
  writeFileSync(file, JSON.stringify(doubts));
  await node.armed();
  await node.start();
  await good(node);
  await until("it is forgotten", () => !readFileSync(file, "utf8").includes(hash));
});

test("a kernel that was started for another trial than the record's confirms nothing", async () => {
  await using node = new SlotNode({ deadline_seconds: 1 });
  await node.armed();
  node.files["/proc/cmdline"] = "console=tty1 fruit.slot=b fruit.trial=1 fruit.try=1\n";
  await node.start();
  await failed(node);
  expect(node.history.at(-1)?.evidence).toContainEqual(
    expect.stringContaining("record not-run: the kernel was started for trial 1, the record speaks of "),
  );
});

test("59 abort: on trial, rollback gives the slot up and starts the node anew", async () => {
  await using node = new SlotNode({ settle_seconds: 5 });
  await node.armed();
  const trial = await node.start();
  await until("a status", () => trial.states.at(-1)?.trial);
  expect((await trial.run("boot.rollback")).message).toBe(
    "back to slot a (version 4): this node starts anew",
  );
  expect(node.card.record.slots.b).toMatchObject({ state: "failed", reason: "by-hand" });
  await until("the node goes down", () => trial.reboots === 1);
  const old = await node.start();
  await old.settled();
  expect(node.told.at(-1)).toBe("rolled-back a test");
  expect(node.told.filter((line) => line.startsWith("failed"))).toEqual([]);
  expect(old.alarms.has("boot-failed")).toBe(false);
});

test.each([
  { verb: "boot.rollback", told: "rolled-back a test", args: {} },
  { verb: "boot.confirm", told: "confirmed a test", args: { force: true } },
])(
  "59 abort: on trial, a $verb at once is told after the beginning of the trial",
  async ({ verb, told, args }) => {
    await using node = new SlotNode({ settle_seconds: 5 });
    await node.armed();
    const trial = await node.start({ agent: false });
    const marks = join(node.dir, "marks");
    let asked = 0;
    // Once before the other slot is read through, and once after it
    Object.defineProperty(node.worlds.b, "isPowerBusy", { get: () => ++asked < 0 });
    await trial.startAgent({
      log: (_level, what) => {
        if (what !== "boot.start") return;
        rmSync(marks);
        Bun.spawnSync(["mkfifo", marks]); // the agent's mark waits until somebody opens the other end
      },
    });
    await until("a status", () => trial.states.at(-1)?.trial);
    const going = trial.run(verb, args);
    if (verb === "boot.rollback") await until("all is in order for it", () => asked === 2);
    const states: string[] = [];
    for (let look = 1; look <= 5; look++) states.push((await trial.status()).slots.b.state);
    const end = openSync(marks, "r+");
    rmSync(marks);
    await going;
    closeSync(end);
    expect(states).toEqual(Array(5).fill("trying"));
    expect(node.told.slice(-2)).toEqual(["started", told]);
  },
);

test("59 abort: a good slot is left for the other good one, and not for one below the floor", async () => {
  await using node = new SlotNode();
  await node.armed();
  const trial = await node.start();
  await good(node);
  await until("it is told", () => node.told.includes("confirmed"));
  node.card.put((record) => ({ ...record, floor: 5n }));
  expect(await trial.refusal("boot.rollback")).toMatch(
    /^slot: slot a has version 4, and nothing below 5 comes back/,
  );
  node.card.put((record) => ({ ...record, floor: 4n }));
  expect((await trial.run("boot.rollback", { no_reboot: true })).result).toEqual({
    slot: "a",
    reboot_needed: true,
  });
  expect((await node.start()).slot).toBe("a");
});

test("59 abort: the healthy slot that was left by hand is what U-Boot falls back to", async () => {
  await using node = new SlotNode({}, { b: NEW });
  const old = await node.start();
  await old.settled();
  expect((await old.run("boot.rollback", { no_reboot: true })).result).toMatchObject({ slot: "b" });
  expect(node.card.record).toMatchObject({
    primary: "b",
    slots: { a: { state: "good", reason: "by-hand" } },
  });
  expect(await old.refusal("boot.try")).toMatch(/^on-trial: this node starts from slot b next/);
  await old.killAgent();
  await old.startAgent();
  await until("somebody is told", () =>
    old.alarms.get("boot-trial")?.includes("slot a runs and is good; slot b is the one to start from"),
  );
  const other = await node.start();
  expect(other.slot).toBe("b");
  await other.settled();
  expect(other.alarms.has("boot-failed")).toBe(false);
  expect(await other.explain()).toMatch(
    /Somebody went back from version 4.* a test\.\nVersion 4 in slot a is good too/,
  );
  await node.off();
  node.card.write(SLOT_OFFSETS.b + (NEW.content.kernel.offset + 100), Uint8Array.of(1, 2, 3));
  const back = await node.start();
  expect(back.slot).toBe("a");
  await until("it is told", () => node.told.at(-1) === "fallen-back files-damaged");
});

test("59 abort: nobody is sent to a slot that reads otherwise than its record says, off a trial neither", async () => {
  await using node = new SlotNode({ settle_seconds: 5 });
  await node.armed();
  const trial = await node.start();
  await until("a status", () => trial.states.at(-1)?.trial);
  node.card.write(SLOT_OFFSETS.a + 100_000, Uint8Array.of(1, 2, 3));
  expect(await trial.refusal("boot.rollback")).toMatch(
    /^slot: slot a reads as [0-9a-f]{32}, its record says /,
  );
  expect(node.card.record).toMatchObject({ primary: "a", slots: { b: { state: "trying" } } });
  await trial.run("boot.confirm", { force: true });
  expect(await trial.refusal("boot.rollback")).toMatch(/^slot: slot a reads as /);
  expect(node.card.record).toMatchObject({
    primary: "b",
    slots: { a: { state: "good" }, b: { state: "good" } },
  });
});

/** What the installer keeps of a release, as far as it is asked here. */
const updateOf = ({ bytes, release }: typeof NEW) =>
  encodeBencode({
    info: {
      length: bytes.length,
      name: release.name,
      "piece length": 65_536,
      pieces: new Uint8Array(Math.ceil(bytes.length / 65_536) * 20),
      "pieces root": release.piecesRoot,
    },
  });

test("a slot that the rescue found is tried as the release that is kept for it, through to good", async () => {
  await using node = new SlotNode({}, { b: NEW });
  node.card.put(({ slots, ...record }) => ({
    ...record,
    reason: "repaired",
    slots: {
      a: { ...slots.a, hash: NO_HASH, reason: "repaired" },
      b: { ...slots.b, hash: NO_HASH, state: "staged", reason: "repaired" },
    },
  }));
  const old = await node.start();
  await old.settled();
  expect(await old.refusal("boot.try")).toMatch(/^slot: .*no release is kept .*; install it again$/);
  const kept = join(node.folder.path, "data/releases");
  mkdirSync(kept, { recursive: true });
  writeFileSync(join(kept, "b.fruit"), updateOf(payloadOf(6n, 190_000)));
  expect(await old.refusal("boot.try")).toMatch(/^slot: .*no release is kept .*; install it again$/);
  writeFileSync(join(kept, "b.fruit"), updateOf(payloadOf(6n, 200_000)));
  expect(await old.refusal("boot.try")).toMatch(
    /^slot: .*reads as [0-9a-f]{32}, its release says .*install it again$/,
  );
  expect(node.card.record.slots.b).toMatchObject({ state: "staged", hash: NO_HASH });
  writeFileSync(join(kept, "b.fruit"), updateOf(NEW));
  expect((await old.run("boot.try", { no_reboot: true })).state).toBe("done");
  expect((await old.status()).slots.b).toMatchObject({ state: "trying", hash: NEW.content.hash });
  await node.start();
  await good(node);
  expect(node.card.record.slots.b).toMatchObject({ ...NEW.content, state: "good", reason: "none" });
});

/** What the installer keeps of a release that states this floor. */
const signedWith = (floor: bigint) =>
  makeRelease({ stated: { version: 5n, floor }, info: { piecesRoot: NEW.release.piecesRoot } }).update;
/** What a root says of itself, as the builder writes it. */
const released = (version: string, floor: unknown) => JSON.stringify({ name: "fruitos", version, floor });

test.each([
  { what: "its own, where the release's file was lost", inside: released("5", "4"), floor: 4n },
  { what: "the kept release's, where that is higher", kept: 5n, inside: released("5", "3"), floor: 5n },
  { what: "its own, where that is higher", kept: 3n, inside: released("5", "4"), floor: 4n },
  {
    what: "the record's, where that is the highest",
    recorded: 4n,
    kept: 3n,
    inside: released("5", "2"),
    floor: 4n,
  },
  { what: "none, by what is about another release", inside: released("6", "5"), floor: 0n },
  { what: "none, by one above its version", inside: released("5", "6"), floor: 0n },
  { what: "none, by what is no number", inside: released("5", "five"), floor: 0n },
  { what: "none, by what is no JSON", inside: "{", floor: 0n },
  { what: "none, by nothing", floor: 0n },
])("what is good raises the floor to $what", async ({ recorded = 0n, kept, inside, floor }) => {
  await using node = new SlotNode();
  node.card.put((record) => ({ ...record, floor: recorded }));
  if (inside !== undefined) node.files["/etc/fruit/release.json"] = inside;
  if (kept !== undefined) {
    mkdirSync(join(node.folder.path, "data/releases"), { recursive: true });
    writeFileSync(join(node.folder.path, "data/releases/b.fruit"), signedWith(kept));
  }
  await node.armed();
  await node.start();
  await good(node);
  expect(node.card.record.floor).toBe(floor);
});

test("what this version has had and has not now is named, and nothing is tried for want of it", async () => {
  await using node = new SlotNode();
  const before = await node.start();
  await before.settled();
  node.card.stage("b", NEW);
  Object.assign(node.worlds.a, { broker: false, devices: ["gpiochip0"] });
  const later = await node.start();
  await later.settled();
  expect(await later.refusal("boot.try")).toMatch(
    /^busy: this node has had broker, i2c:1, serial:1 and has not now/,
  );
  node.worlds.a.broker = true;
  expect(await later.refusal("boot.try")).toMatch(/^busy: this node has had i2c:1, serial:1 and/);
  expect((await later.run("boot.try", { no_reboot: true, force: true })).state).toBe("done");
});

test("63 reboot loop breaker: nothing is tried, the feeder is told, and health ends it", async () => {
  await using node = new SlotNode({ loop_starts: 3, healthy_seconds: 1 });
  Object.assign(node.settings, { healthy_seconds: 30 });
  for (let start = 1; start <= 3; start++) await (await node.start()).settled();
  const loop = await node.start();
  await loop.settled();
  node.card.stage("b", NEW);
  expect(loop.alarms.get("reboot-loop")).toMatch(/^critical: this node was started 4 times/);
  expect(await Bun.file(join(node.runDir, "loop")).exists()).toBe(true);
  expect(await loop.refusal("boot.try")).toMatch(/^reboot-loop: /);
  expect(loop.states.at(-1)?.loop).toBe(4);
  await loop.killAgent();
  Object.assign(node.settings, { healthy_seconds: 1 });
  await loop.startAgent();
  await until("the alarm is cleared", () => loop.logged.length > 0 && !loop.alarms.has("reboot-loop"));
  expect(await Bun.file(join(node.runDir, "loop")).exists()).toBe(false);
  expect((await loop.run("boot.try", { no_reboot: true })).state).toBe("done");
});
