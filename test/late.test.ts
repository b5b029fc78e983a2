/** A card that answers after nobody waits any more: what was told as failed is done all the same. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { setTimeout as sleep } from "node:timers/promises";
import { timely } from "../agent/boot/card.ts";
import type { BootRecord } from "../boot/record.ts";
import type { BootSwitch } from "../boot/switch.ts";
import { until } from "./node.ts";
import { altered, NEW, SlotNode } from "./slotnode.ts";
import { FRESH } from "./tryboot/card.ts";

setDefaultTimeout(20_000);

/** A card whose changes, one after the other, come back when it is let go; nobody waits longer than 0.1 s. */
class Hanging {
  readonly #gone = Promise.withResolvers<void>();
  #turn: Promise<unknown> = this.#gone.promise;

  readonly wrap = (boot: BootSwitch): BootSwitch => {
    const late = <T>(change: () => Promise<T>) => {
      const done = this.#turn.then(change);
      this.#turn = done.catch(() => undefined);
      return done;
    };
    const hangs = altered(boot, {
      setState: (slot, change) => late(() => boot.setState(slot, change)),
      setPrimary: (slot, why) => late(() => boot.setPrimary(slot, why)),
      armTrial: (slot, tries) => late(() => boot.armTrial(slot, tries)),
    });
    const { setState, setPrimary, armTrial } = timely(hangs, "the card", 100);
    return altered(boot, { setState, setPrimary, armTrial });
  };

  /** It answers, and all that it was asked is done. */
  async letGo(): Promise<void> {
    this.#gone.resolve();
    for (let turn: unknown; turn !== this.#turn; await turn) turn = this.#turn;
  }
}

const LATE = "the card: no answer within 0.1 s; it may still be done, 'fruit boot status' says whether it is";

test("23 a write that comes back after a minute: the slot it makes good is good, told once, and nothing is started anew", async () => {
  await using node = new SlotNode();
  await node.armed();
  const card = new Hanging();
  node.wrap = card.wrap;
  const trial = await node.start();
  await until("it takes too long", () => trial.alarms.get("boot-card")?.includes(LATE));
  const { sequence } = node.card.record;
  await card.letGo();
  await until("good all the same", () => node.told.includes("confirmed"));
  await until("no trouble any more", () => !trial.alarms.has("boot-card"));
  // What was asked for meanwhile was refused, and has written nothing
  expect(node.card.record).toMatchObject({
    primary: "b",
    slots: { b: { state: "good" } },
    sequence: sequence + 1,
  });
  expect(node.told.filter((what) => what === "confirmed")).toHaveLength(1);
  expect(trial.reboots).toBe(0);
});

test("23 a write that comes back after the trial's deadline: the node starts anew, from the slot that is good by then", async () => {
  await using node = new SlotNode({ deadline_seconds: 600 });
  await node.armed();
  const card = new Hanging();
  node.wrap = card.wrap;
  let aheadMs = 0;
  const trial = await node.start({ agent: false });
  await trial.startAgent({ nowMs: () => performance.now() + aheadMs });
  await until("it takes too long", () => trial.alarms.get("boot-card")?.includes(LATE));
  aheadMs = 600_000;
  await until("the node goes down", () => trial.reboots === 1);
  await card.letGo();
  expect(node.card.record.primary).toBe("b");
  node.wrap = (boot) => boot;
  const next = await node.start();
  expect(next.slot).toBe("b");
  await until("it is told", () => node.told.includes("confirmed"));
  expect(node.told.filter((what) => /failed|rolled-back|quarantined/.test(what))).toEqual([]);
});

test("23 a trial that is armed too late is said to be uncertain, and is the one that was asked for", async () => {
  await using node = new SlotNode();
  const old = await node.start();
  await old.settled();
  await node.off();
  node.card.stage("b", NEW);
  const card = new Hanging();
  node.wrap = card.wrap;
  const late = await node.start();
  await late.settled();
  await expect(late.run("boot.try", { no_reboot: true })).rejects.toThrow(LATE);
  await card.letGo();
  expect(await late.run("boot.try", { no_reboot: true })).toMatchObject({ state: "unchanged" });
  node.wrap = (boot) => boot;
  expect((await node.start()).slot).toBe("b");
  await until("it is told", () => node.told.includes("confirmed"));
});

test("staging a slot, which on some cards copies a boot set, may take longer than other changes", async () => {
  const answer = Promise.withResolvers<BootRecord>();
  const boot = { kind: "tryboot", setState: () => answer.promise } as unknown as BootSwitch;
  const { setState } = timely(boot, "the card", 50);
  await expect(setState("b", { to: "failed", reason: "by-hand" })).rejects.toThrow("within 0.05 s");
  const file = { offset: 0, bytes: 1, crc32: 0 };
  const content = { version: 1n, hash: "", payloadBytes: 1, kernel: file, initramfs: file };
  const staged = setState("b", { to: "staged", content });
  await sleep(200);
  answer.resolve(FRESH);
  expect(await staged).toBe(FRESH);
});
