/** The agent killed at each of its places around a trial: what starts then is whole, goes on, and tells everything once. */
import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { readHistory } from "../../agent/boot/history.ts";
import { FileCard } from "../card.ts";
import { payloadOf, SLOT_OFFSETS } from "../crash/card.ts";
import { type Agent, scratch, startAgent, until } from "../node.ts";

const NEW = payloadOf(5n, 100_000);

/** A node whose agent may be killed anywhere. */
function machine() {
  const folder = scratch();
  const card = new FileCard(join(folder.path, "card.img"), payloadOf(4n, 100_000));
  let isWell = true;
  const start = (env: Record<string, string> = {}): Promise<Agent> => {
    const { boots } = card.start();
    if (boots !== "a" && boots !== "b") throw new Error(`U-Boot starts ${boots}`);
    const settings = {
      sim: { wire_time: false, root: { disk: card.path, offset: SLOT_OFFSETS[boots] } },
      boot: {
        run_dir: join(folder.path, "run"),
        reboot_command: ["/bin/true"],
        ...{ settle_seconds: 0, check_seconds: 0.05, agent_seconds: 0.05 },
        checks: [
          { name: "site", command: [isWell ? "/bin/true" : "/bin/false"], timeout_seconds: 5, fatal: true },
        ],
      },
    };
    return startAgent(folder.path, settings, { env });
  };
  const told = async () => {
    const { lines, problems } = await readHistory(join(folder.path, "data/boot"), 100);
    expect(problems).toEqual([]);
    return lines.map(({ what }) => what);
  };
  return {
    card,
    start,
    told,
    sicken: () => {
      isWell = false;
    },
    plan: () => readFileSync(join(folder.path, "data/boot/trial.json"), "utf8").trim(),
    [Symbol.dispose]: () => folder[Symbol.dispose](),
  };
}

const isLooked = (agent: Agent) =>
  until("the agent has looked at its card", async () => (await agent.cli("boot", "status")).exit === 0);
const isGood = ({ card }: { card: FileCard }) =>
  until("slot b is good", () => card.record.slots.b.state === "good");

/** Armed by an agent that is killed at a place, or by one that is not. */
async function arm(node: ReturnType<typeof machine>, failpoint = ""): Promise<void> {
  await using agent = await startArming(node, failpoint);
  const answer = await agent.cli("boot", "try", "--no-reboot", "--reason", "test");
  if (failpoint !== "") expect(await agent.exited).not.toBe(0);
  else expect(answer.exit).toBe(8);
}

async function startArming(node: ReturnType<typeof machine>, failpoint: string): Promise<Agent> {
  const agent = await node.start(failpoint === "" ? {} : { FRUIT_FAILPOINT: failpoint });
  await isLooked(agent);
  node.card.stage("b", NEW);
  return agent;
}

test("54 killed before it is armed: nothing is tried, and arming again works", async () => {
  using node = machine();
  await arm(node, "trial.before-arm");
  expect(node.card.record).toMatchObject({ primary: "a", slots: { b: { state: "staged" } } });
  await arm(node);
  await using _trial = await node.start();
  await isGood(node);
});

test("54 killed just after it is armed: the trial runs, and is confirmed by what was written down before", async () => {
  using node = machine();
  await arm(node, "trial.armed");
  expect(JSON.parse(node.plan()).trial).toBeUndefined();
  await using _trial = await node.start();
  await isGood(node);
  await until("it is told", async () => (await node.told()).includes("confirmed"));
});

test.each(["trial.before-confirm", "trial.confirmed"])(
  "54 killed at %s: the slot becomes good once, and that is told once",
  async (failpoint) => {
    using node = machine();
    await arm(node);
    {
      await using trial = await node.start({ FRUIT_FAILPOINT: failpoint });
      expect(await trial.exited).not.toBe(0);
    }
    await using again = await node.start();
    await isGood(node);
    await until("it is told", async () => (await node.told()).includes("confirmed"));
    await until("its plan is gone", () => node.plan() === "null");
    expect((await node.told()).filter((what) => what === "confirmed")).toHaveLength(1);
    expect((await again.cli("boot", "status")).out).toContain("slot b, version 5, good");
  },
);

test.each(["trial.before-fail", "trial.failed"])(
  "54 killed at %s: the slot is given up once, and that is told once with its evidence",
  async (failpoint) => {
    using node = machine();
    await arm(node);
    node.sicken();
    {
      await using trial = await node.start({ FRUIT_FAILPOINT: failpoint });
      expect(await trial.exited).not.toBe(0);
    }
    if (node.card.record.trial) {
      await using _again = await node.start();
      await until("it is given up", () => node.card.record.slots.b.state === "failed");
    }
    await using _old = await node.start();
    expect(node.card.record.primary).toBe("a");
    await until("it is told", async () => (await node.told()).includes("quarantined"));
    const told = await node.told();
    for (const what of ["failed", "rolled-back", "quarantined"])
      expect(told.filter((one) => one === what)).toHaveLength(1);
  },
);

test("54 killed each time the history has grown by a line: it stays whole, and nothing is told twice", async () => {
  using node = machine();
  await arm(node);
  node.sicken();
  for (let isTold = false, kills = 0; !isTold && kills < 10; kills++) {
    await using agent = await node.start({ FRUIT_FAILPOINT: "history.appended" });
    const end = await Promise.race([
      agent.exited,
      until("all is told", async () => (await node.told()).includes("rolled-back")),
    ]);
    isTold = end === true;
  }
  await using _last = await node.start();
  await until("it is told", async () => (await node.told()).includes("rolled-back"));
  const told = (await node.told()).filter((what) => what !== "started");
  // Each line of a trial cost it a try, which says nothing against the release
  expect(told).toEqual(["installed", "armed", "failed", "rolled-back"]);
  expect(node.card.record.slots.b.reason).toBe("tries-spent");
});
