/** A slot that was good and whose starts led to nothing: what the agent in the other slot makes of it, and what it holds against whom. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { appendFileSync, mkdirSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { startsIn } from "../agent/boot/starts.ts";
import { judge } from "../agent/boot/verdict.ts";
import { rollBack } from "../boot/slots.ts";
import { until } from "./node.ts";
import { both } from "./rescuecard.ts";
import { NEW, type Running, SlotNode } from "./slotnode.ts";

setDefaultTimeout(20_000);

/** Boot ids of starts. */
const boots = (count: number) => Array.from({ length: count }, (_, index) => `start-${index}`);

/** Each slot has nearly had its ten starts, and its three dead agents. */
function lists(node: SlotNode): void {
  for (const slot of ["a", "b"]) {
    writeFileSync(
      join(node.dir, `starts.${slot}`),
      boots(9)
        .map((id) => `${id}\n`)
        .join(""),
    );
    writeFileSync(join(node.dir, `dead.${slot}`), "2\n");
  }
}

/** What is held against any slot. */
const left = (node: SlotNode) => readdirSync(node.dir).filter((name) => /^(starts|dead)\./.test(name));

/** The new release has become good in slot b; its node is off. */
async function keptNode(): Promise<SlotNode> {
  const node = new SlotNode();
  await node.armed();
  await node.start();
  await until("it is told", () => node.told.at(-1) === "confirmed");
  await node.off();
  return node;
}

/** What the initramfs does after these starts of slot b, of which the agent was dead in some. */
async function giveWay(
  node: SlotNode,
  starts: readonly string[],
  dead: readonly string[] = [],
): Promise<Running> {
  writeFileSync(join(node.dir, "spent.b"), starts.map((id) => `${id}\n`).join(""));
  for (const id of dead)
    appendFileSync(
      join(node.dir, "marks"),
      `0 0 ${id} agent-dead no heartbeat of the agent since the start\n`,
    );
  appendFileSync(join(node.dir, "marks"), `0 0 last init ${starts.length} starts in a row without health\n`);
  node.card.put((record) => ({ ...rollBack(record, "starts-spent"), sequence: record.sequence + 1 }));
  const old = await node.start();
  expect(old.slot).toBe("a");
  await old.settled();
  return old;
}

test("ten starts without health are told once, with what was seen of them, and blame nobody", async () => {
  await using node = await keptNode();
  const told = node.told.length;
  const old = await giveWay(node, boots(10));
  await until("it is told", () => node.told.length > told);
  expect(node.told.slice(told)).toEqual(["fallen-back starts-spent"]);
  expect(node.history.at(-1)).toMatchObject({
    ...{ what: "fallen-back", slot: "b", version: "5", hash: NEW.content.hash },
    evidence: [
      "slot b was started 10 times in a row, and never stayed up for long enough",
      "nothing was seen of these starts: crashes, hangs and power cuts look the same",
    ],
  });
  expect(old.events.filter(({ type }) => type === "boot.rolled-back")).toEqual([
    expect.objectContaining({
      reason: "starts-spent",
      message: expect.stringContaining("slot b (version 5) was started again and again and never stayed up"),
    }),
  ]);
  expect(await old.explain()).toMatch(
    /Version 5 in slot b was given up.*: it was good, and was then started again and again without staying up, so that the other slot took its place\..* Evidence: slot b was started 10 times/,
  );
  expect(old.alarms.get("boot-failed")).toContain("version 5 failed (starts-spent)");
  // It may be installed again, and is not told again
  const again = await node.start();
  await again.settled();
  expect(again.events.filter(({ type }) => type === "boot.rolled-back")).toEqual([]);
  node.card.stage("b", NEW);
  expect((await again.run("boot.try", { no_reboot: true })).state).toBe("done");
});

test("a content that was installed again, and gives way again, is told again, and after three times waits for a person", async () => {
  await using node = await keptNode();
  for (let round = 1; ; round++) {
    const old = await giveWay(node, boots(10));
    await until(
      "told each time",
      () => node.told.filter((line) => line.startsWith("fallen-back")).length === round,
    );
    node.card.stage("b", NEW);
    if (round === 3) {
      await until("it is blamed", () => node.told.at(-1) === "quarantined starts-spent");
      expect(await old.refusal("boot.try", { no_reboot: true })).toMatch(/^quarantined: /);
      return;
    }
    expect(node.told).not.toContain("quarantined starts-spent");
    await old.run("boot.try", { no_reboot: true });
    await node.start();
    await until("good", () => node.card.record.slots.b.state === "good");
    await until("told", () => node.told.at(-1) === "confirmed");
    await node.off();
  }
}, 60_000);

test("a release whose agent was dead in three of the starts is blamed, and not tried again by itself", async () => {
  await using node = await keptNode();
  const old = await giveWay(node, boots(3), boots(3));
  await until("it is blamed", () => node.told.at(-1) === "quarantined starts-spent");
  expect(node.history.at(-1)?.evidence).toEqual([
    "slot b was started 3 times in a row, and never stayed up for long enough",
    "in 3 of these starts its agent was dead",
    ...boots(3).map(
      (id) => `the agent was dead: no heartbeat of the agent since the start (boot ${id.slice(0, 8)})`,
    ),
  ]);
  node.card.stage("b", NEW);
  expect(await old.refusal("boot.try", { no_reboot: true })).toMatch(/^quarantined: /);
});

test.each([
  ["of two", boots(2)],
  ["of others, months ago", ["old-1", "old-2", "old-3"]],
  ["of one, three times", ["start-1", "start-1", "start-1"]],
])("dead agents %s of the starts are no proof", (_, dead) => {
  const marks = dead.map((boot) => ({ trial: 0, attempt: 0, boot, what: "agent-dead" as const }));
  const record = rollBack(both, "starts-spent");
  const verdict = judge({ record, current: "a", marks, boot: "now", spent: boots(10) });
  expect(verdict).toMatchObject({ is: "fallen-back", slot: "b", cause: { blame: "round" } });
});

test.each([
  ["and then the other slot's", ["start-0", "start-1", "start-2", "after-0"], "round"],
  ["and the other slot's months ago", ["long-ago", "start-0", "start-1", "start-2"], "quarantine"],
] as const)(
  "of an agent that died in three starts, %s, the release is to blame only where it is the one",
  (_, dead, blame) => {
    const marks = dead.map((boot) => ({ trial: 0, attempt: 0, boot, what: "agent-dead" as const }));
    const record = rollBack(both, "starts-spent");
    const verdict = judge({ record, current: "a", marks, boot: "now", spent: boots(3) });
    expect(verdict).toMatchObject({ is: "fallen-back", slot: "b", cause: { blame } });
    const said = (verdict as { cause: { evidence: string[] } }).cause.evidence.at(-1);
    if (blame === "round") expect(said).toBe("since then the agent of the other slot was dead as well");
  },
);

test("without the list of starts it is told all the same", () => {
  const verdict = judge({ record: rollBack(both, "starts-spent"), current: "a", marks: [], boot: "now" });
  expect(verdict).toMatchObject({
    is: "fallen-back",
    cause: { blame: "round", evidence: [expect.stringContaining("again and again"), expect.any(String)] },
  });
});

test("a trial that is still written down does not make a trial's failure of it", () => {
  const plan = {
    ...{ slot: "b" as const, hash: both.slots.b.hash, version: "11", floor: "0", trial: 5, tries: 3 },
    ...{ boot: "before", by: "anna", baseline: [] },
  };
  const record = rollBack(both, "starts-spent");
  expect(judge({ record, current: "a", marks: [], boot: "now", plan }).is).toBe("fallen-back");
});

test("starts of what ran before are not held against a slot that becomes good, or that a person goes back to", async () => {
  await using node = new SlotNode();
  await node.armed();
  lists(node);
  const trial = await node.start();
  await until("it is told", () => node.told.at(-1) === "confirmed");
  expect(left(node)).toEqual([]);
  lists(node);
  await trial.run("boot.rollback", { no_reboot: true });
  expect(left(node)).toEqual([]);
});

test("what the agent is told to end is no start in vain; a crash is, and so is what it starts anew by itself", async () => {
  await using node = new SlotNode({ healthy_seconds: 600 });
  const first = await node.start();
  await first.settled();
  expect(await startsIn(node.dir, "a")).toEqual(["boot-1"]);
  await node.off();
  const second = await node.start();
  await second.settled();
  expect(await startsIn(node.dir, "a")).toEqual(["boot-1", "boot-2"]);
  await second.stopAgent();
  expect(await startsIn(node.dir, "a")).toEqual(["boot-1"]);
  // It is begun again in the same start
  await second.startAgent();
  await until("counted", async () => (await startsIn(node.dir, "a")).includes("boot-2"));
  node.card.stage("b", NEW);
  await second.run("boot.try");
  await second.stopAgent();
  expect(await startsIn(node.dir, "a")).toEqual(["boot-1", "boot-2"]);
});

test.each<[string, (node: SlotNode) => void]>([
  ["the data takes no more", (node) => mkdirSync(join(node.dir, "baseline.json.new"))],
  ["the history cannot be opened", (node) => mkdirSync(join(node.dir, "history.jsonl"), { recursive: true })],
])("a system that stays up is healthy, though %s", async (_, spoil) => {
  await using node = new SlotNode({ healthy_seconds: 1 });
  mkdirSync(node.dir, { recursive: true });
  spoil(node);
  lists(node);
  const start = await node.start({ agent: false });
  // It has run for a second as soon as there is trouble
  const nowMs = () => performance.now() + (start.alarms.has("boot-card") ? 1000 : 0);
  await start.startAgent({ nowMs });
  await until("nothing is held against it", () => left(node).length === 0);
});
