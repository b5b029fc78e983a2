/** Trials of a slot on a simulated node; numbers are those of the cases that every updater must survive. */
import { afterEach, expect, jest, setSystemTime, test } from "bun:test";
import { mkdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { encodeBencode } from "../boot/bencode.ts";
import { NO_HASH } from "../boot/slots.ts";
import { HalError } from "../hal/ports.ts";
import { payloadOf, SLOT_OFFSETS } from "./crash/card.ts";
import { until } from "./node.ts";
import { altered, NEW, OLD, type Running, SlotNode } from "./slotnode.ts";

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

test("39 kernel panic: each is a try, then the old slot runs, and the release is blamed for the panic", async () => {
  await using node = new SlotNode();
  await node.armed();
  for (let attempt = 1; attempt <= 3; attempt++) (await node.start({ agent: false })).mark("panic", "Oops");
  const old = await back(node);
  expect(node.card.record.slots.b).toMatchObject({ state: "failed", reason: "panic" });
  await until("it is blamed", () => node.told.at(-1) === "quarantined panic");
  expect(node.told).toEqual(["installed", "armed", "failed panic", "rolled-back panic", "quarantined panic"]);
  expect(await old.explain()).toContain("its kernel panicked. Evidence: try 1: reached the initramfs");
  await until("the events", () => old.events.length === 3);
  expect(old.events.map(({ type }) => type)).toEqual([
    "boot.trial.failed",
    "boot.rolled-back",
    "boot.quarantined",
  ]);
  expect(await old.refusal("boot.try")).toMatch(/^slot: slot b is failed: there is nothing to try/);
  node.card.stage("b", NEW);
  expect(await old.refusal("boot.try")).toMatch(/^quarantined: version 5 has failed here \(panic: try 1/);
});

test.each([
  ["40 hang before the watchdog driver, power-cycled by a neighbour", false],
  ["43 root missing: the initramfs gives up before it can leave word", false],
])(
  "%s: three starts that nothing was heard of are never-came-up, and the second time the release is blamed",
  async () => {
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
      await until("the alarm", () => old.alarms.get("boot-failed"));
      expect(old.alarms.get("boot-failed")).toContain("version 5 failed (never-came-up)");
      // The same start told again does not count twice
      await (await node.start()).settled();
      if (round === 1) expect(node.told).not.toContain("quarantined never-came-up");
    }
    expect(node.told.filter((line) => line === "quarantined never-came-up")).toHaveLength(1);
  },
);

test.each(["41 hang after the watchdog driver", "42 init loop"])(
  "%s: nothing shows who is to blame, so it may be installed again, three times",
  async () => {
    await using node = new SlotNode();
    for (let round = 1; round <= 3; round++) {
      await node.armed();
      for (let attempt = 1; attempt <= 3; attempt++) await node.start({ agent: false });
      const old = await node.start();
      expect(old.slot).toBe("a");
      await until(
        "it is told",
        () => node.told.filter((line) => line === "rolled-back tries-spent").length === round,
      );
      expect(node.card.record.slots.b).toMatchObject({ state: "failed", reason: "tries-spent" });
    }
    const old = await node.start();
    await old.settled();
    node.card.stage("b", NEW);
    expect(await old.refusal("boot.try")).toMatch(
      /^quarantined: version 5 was tried 3 times and never decided/,
    );
    expect((await old.run("boot.try", { force: true, no_reboot: true })).state).toBe("done");
  },
);

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

test("45 agent killed for want of memory: the feeder says so each time, and the release is blamed", async () => {
  await using node = new SlotNode();
  await node.armed();
  for (let attempt = 1; attempt <= 3; attempt++)
    (await node.start({ agent: false })).mark("agent-dead", "no heartbeat of the agent for 60 s");
  const old = await back(node);
  expect(node.card.record.slots.b.reason).toBe("agent-dead");
  await until("it is blamed", () => node.told.at(-1) === "quarantined agent-dead");
  expect(await old.explain()).toContain("the agent was dead: no heartbeat of the agent for 60 s");
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
  const trial = await node.start();
  const flapping = (async () => {
    while (node.card.record.trial) {
      node.worlds.b.broker = !node.worlds.b.broker;
      await Bun.sleep(200);
    }
  })();
  await failed(node);
  await flapping;
  expect(["check-failed", "deadline"]).toContain(node.card.record.slots.b.reason);
  expect(node.told).not.toContain("confirmed");
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

test("53 new agent that finds records of a newer format reports, changes nothing and is never confirmed", async () => {
  await using node = new SlotNode({ deadline_seconds: 1.5 });
  await node.armed();
  node.card.put((record) => ({ ...record, format: 2 }));
  const trial = await node.start();
  await until("the node goes down", () => trial.reboots === 1);
  expect(node.card.record).toMatchObject({ primary: "a", format: 2, slots: { b: { state: "trying" } } });
  expect(trial.alarms.get("boot-card")).toContain("the newest record has format 2");
  expect(trial.states.at(-1)).toMatchObject({ active: "b", trial: true });
});

test("57 while a slot is on trial no other is tried, and what runs is not written over", async () => {
  await using node = new SlotNode({ settle_seconds: 5 });
  await node.armed();
  const trial = await node.start();
  await until("a status", () => trial.states.at(-1)?.trial);
  expect(await trial.refusal("boot.try")).toMatch(/^on-trial: slot b is on trial itself/);
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
