/** `fruit boot` from the command line: with an agent, without one, and on machines without slots. */
import { expect, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { RECORD_OFFSETS } from "../boot/layout.ts";
import { FileCard } from "./card.ts";
import { payloadOf, SLOT_OFFSETS } from "./crash/card.ts";
import { fruit, scratch, startAgent, until } from "./node.ts";

const OLD = payloadOf(4n, 200_000);
const NEW = payloadOf(5n, 200_000);

/** A folder with a card, and how an agent on it is configured: U-Boot, by its model, says which slot it runs from. */
function machine() {
  const folder = scratch();
  const card = new FileCard(join(folder.path, "card.img"), OLD);
  const settings = (boot: object = {}) => {
    const { boots } = card.start();
    if (boots !== "a" && boots !== "b") throw new Error(`U-Boot starts ${boots}`);
    return {
      sim: { wire_time: false, root: { disk: card.path, offset: SLOT_OFFSETS[boots] } },
      boot: {
        run_dir: join(folder.path, "run"),
        reboot_command: ["/bin/true"],
        ...{ settle_seconds: 0.2, check_seconds: 0.1, agent_seconds: 0.2 },
        ...boot,
      },
    };
  };
  /** The command line on the same machine while no agent runs. */
  const alone = (...args: string[]) => {
    const config = folder.file("node.json", {
      site: "lab",
      data_dir: join(folder.path, "data"),
      socket: join(folder.path, "fruit.sock"),
      ...settings(),
    });
    return fruit(args, {
      env: { FRUIT_CONFIG: config, FRUIT_SOCKET: join(folder.path, "fruit.sock"), FRUIT_HAL: "sim" },
    });
  };
  return { folder, card, settings, alone, [Symbol.dispose]: () => folder[Symbol.dispose]() };
}

const isLooked = (agent: { cli(...args: string[]): Promise<{ exit: number; out: string }> }) =>
  until("the agent has looked at its card", async () => (await agent.cli("boot", "status")).exit === 0);

/** Several agents and many command lines, one after the other. */
const PATIENCE_MS = 60_000;

test(
  "from staged to good: the whole way by command line, each step with its exit code",
  async () => {
    using node = machine();
    {
      await using agent = await startAgent(node.folder.path, node.settings());
      await isLooked(agent);
      const status = await agent.cli("boot", "status");
      expect(status.out).toContain("running  slot a, version 4, good\n");
      expect(status.out).toMatch(/^trial {4}none$/m);
      expect(await agent.cli("boot", "try", "--reason", "new release")).toMatchObject({
        exit: 4,
        err: expect.stringContaining("slot b is empty: there is nothing to try"),
      });
      node.card.stage("b", NEW);
      expect((await agent.cli("boot", "try", "--no-reboot")).err).toContain("needs a reason");
      expect(await agent.cli("boot", "try", "--no-reboot", "--reason", "new release")).toMatchObject({
        exit: 8,
        out: "slot b (version 5) is tried at the next start (done)\n",
      });
      expect((await agent.cli("boot", "status", "--exit-code")).exit).toBe(8);
      expect((await agent.cli("boot", "status")).out).toContain(
        "slot b, version 5: at the next start, 3 tries left",
      );
    }
    await using trial = await startAgent(node.folder.path, node.settings({ settle_seconds: 30 }));
    await isLooked(trial);
    expect((await trial.cli("boot", "status", "--exit-code")).exit).toBe(9);
    const json = JSON.parse((await trial.cli("boot", "status", "--json")).out);
    expect(json).toMatchObject({
      schema: "fruit.boot.status/1",
      running: "b",
      primary: "a",
      trial: { slot: "b", version: "5", running: true, started: 1, tries_left: 2 },
    });
    expect(json.trial.checks.map(({ name }: { name: string }) => name)).toEqual([
      ...["record", "agent", "slot", "data", "clock", "memory"],
    ]);
    await until("all checks are good", async () => {
      const { trial: now } = JSON.parse((await trial.cli("boot", "status", "--json")).out);
      return now.checks.every(({ state }: { state: string }) => state === "good");
    });
    expect(await trial.cli("boot", "confirm")).toMatchObject({
      exit: 0,
      out: "slot b (version 5) is good (done)\n",
    });
    expect((await trial.cli("boot", "status", "--exit-code")).exit).toBe(0);
    const history = await trial.cli("boot", "history");
    expect(history.out).toMatch(/confirmed +b +5 +\d+ +by local:/);
    expect((await trial.cli("boot", "explain")).out).toContain(
      "This node runs version 5 from slot b (good).",
    );
  },
  PATIENCE_MS,
);

test(
  "without an agent status, history, explain and records come from the card and the data folder",
  async () => {
    using node = machine();
    {
      await using agent = await startAgent(node.folder.path, node.settings());
      await isLooked(agent);
      node.card.stage("b", NEW);
      await agent.cli("boot", "try", "--no-reboot", "--reason", "new release");
    }
    for (let attempt = 1; attempt <= 3; attempt++) expect(node.card.start().boots).toBe("b");
    expect(node.card.start().boots).toBe("a");
    const status = await node.alone("boot", "status", "--exit-code");
    expect(status).toMatchObject({ exit: 10, err: expect.stringContaining("no agent answers") });
    expect(status.out).toMatch(/^b +failed +5 +[0-9a-f]{32} +200000 +tries-spent$/m);
    expect((await node.alone("boot", "history")).out).toMatch(/armed +b +5/);
    expect(status.out).not.toContain("doubted");
    const { hash } = node.card.record.slots.b;
    const doubts = {
      hashes: {},
      rounds: { [hash]: 2 },
      suspects: { [hash]: { trial: 1, what: ["broker"] } },
    };
    writeFileSync(join(node.folder.path, "data/boot/quarantine.json"), JSON.stringify(doubts));
    expect((await node.alone("boot", "status")).out).toContain(
      "doubted  the other slot's release: 2 rounds of 3 without proof against it (broker)\n",
    );
    const { out } = await node.alone("boot", "explain");
    expect(out).toContain("Version 5 in slot b was given up");
    expect(out).toContain("2 trials of it ended without proof against it; after 3 it is not tried any more.");
    expect(out).toContain("It is under suspicion (broker): ");
    const records = await node.alone("boot", "records");
    expect(records.exit).toBe(0);
    expect(records.out.split("\n").filter((line) => /^\d\*? /.test(line))).toHaveLength(4);
    const { schema, places } = JSON.parse((await node.alone("boot", "records", "--json")).out);
    expect(schema).toBe("fruit.boot.records/1");
    expect(places.filter(({ counts }: { counts: boolean }) => counts)).toHaveLength(1);
  },
  PATIENCE_MS,
);

test("a card without a valid record is told place by place", async () => {
  using node = machine();
  const { settings } = node;
  const config = settings();
  for (const offset of RECORD_OFFSETS) node.card.write(offset, new Uint8Array(512).fill(7));
  const file = node.folder.file("bad.json", {
    site: "lab",
    data_dir: join(node.folder.path, "data"),
    ...config,
  });
  const found = await fruit(["boot", "records"], { env: { FRUIT_CONFIG: file, FRUIT_HAL: "sim" } });
  expect(found).toMatchObject({ exit: 1, err: expect.stringContaining("no valid record") });
  expect(found.out.match(/no record: it begins with 0x07070707/g)).toHaveLength(4);
});

test("a machine without slots says so once, publishes nothing, and refuses with what to do", async () => {
  using folder = scratch();
  await using agent = await startAgent(folder.path, {});
  for (const [verb, ...words] of [
    ["status"],
    ["history"],
    ["explain"],
    ["confirm"],
    ["try", "--reason", "x"],
  ])
    expect(await agent.cli("boot", verb ?? "", ...words)).toMatchObject({
      exit: 11,
      err: "fruit: this machine does not run from a card with slots; build one with 'bun run image'\n",
    });
  expect(agent.log().match(/"boot\.no-slots"/g)).toHaveLength(1);
});

test("a card that is laid out otherwise is told by name and left as it is", async () => {
  using folder = scratch();
  const disk = folder.file("card.img", "x".repeat(100_000));
  await using agent = await startAgent(folder.path, { boot: { disk } });
  await until("it is said", () => agent.log().includes('"boot.no-slots"'));
  const status = await agent.cli("boot", "status");
  expect(status).toMatchObject({ exit: 11, err: expect.stringContaining("no partition table") });
  expect(await Bun.file(disk).text()).toBe("x".repeat(100_000));
});
