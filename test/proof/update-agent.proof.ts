/** A real agent that hears of a release on its broker and gets it from a real seed: whole, killed meanwhile, with its broker gone. */
import { expect, test } from "bun:test";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { readHistory } from "../../agent/boot/history.ts";
import { Swarm } from "../../agent/update/swarm.ts";
import { publicKeyOf } from "../../boot/ed25519.ts";
import { headId } from "../../boot/head.ts";
import { aedes, freePort, Tap } from "../broker.ts";
import { FileCard } from "../card.ts";
import { SLOT_OFFSETS } from "../crash/card.ts";
import { type Executable, SOURCES, scratch, startAgent, until } from "../node.ts";
import { seedOf } from "../releases.ts";
import { readable, seeding } from "../swarm/commands.ts";
import { FOLLOWING, trustText } from "../trusts.ts";
import { announcementOf, releaseOf, UpdateNode } from "../updatenode.ts";

const NINE = releaseOf(9n, { stated: { boards: ["raspberrypi,4-model-b"] } });
const TOPIC = `fruit/v1/lab/all/head/${headId(publicKeyOf(seedOf("anna")), FOLLOWING.target)}`;

/** `fruit update seed`, and its address. */
function seed(fruit: Executable, folder: string, ...more: string[]) {
  const path = join(folder, "fruitos-9");
  writeFileSync(path, NINE.payload);
  writeFileSync(`${path}.side`, NINE.side);
  writeFileSync(`${path}.fruit`, NINE.update);
  return seeding(fruit, `${path}.fruit`, ...more);
}

/** A node whose agent may be started again and again on the same card. */
function machine(fruit: Executable, peer: string) {
  const folder = scratch();
  const card = new FileCard(join(folder.path, "card.img"));
  mkdirSync(join(folder.path, "data"));
  writeFileSync(join(folder.path, "data/trust.json"), trustText(1, { anna: ["release", "trust", "head"] }));
  const start = (broker?: number) =>
    startAgent(
      folder.path,
      {
        sim: { wire_time: false, root: { disk: card.path, offset: SLOT_OFFSETS.a } },
        boot: { run_dir: join(folder.path, "run"), reboot_command: ["/bin/true"], healthy_seconds: 1 },
        update: {
          ...{ policy: "automatic", target: FOLLOWING.target, look_seconds: 1 },
          swarm: { port: 0, lan: false, dht: false, peers: [peer] },
        },
        ...(broker === undefined ? {} : { mqtt: { url: `mqtt://127.0.0.1:${broker}` } }),
      },
      { executable: fruit },
    );
  const told = async () => {
    const { lines, problems } = await readHistory(join(folder.path, "data/boot"), 100);
    expect(problems).toEqual([]);
    return lines;
  };
  return { card, start, told, [Symbol.dispose]: () => folder[Symbol.dispose]() };
}
const armed = ({ card }: ReturnType<typeof machine>) =>
  until("it is armed", () => card.record.slots.b.state === "trying", 60_000);

test("an agent hears of a release on its broker, fetches it, arms it and says so", async () => {
  using fruit = readable();
  using folder = scratch();
  await using giver = await seed(fruit, folder.path);
  await using broker = await aedes();
  await using tap = await Tap.at(broker.port);
  await tap.client.publishAsync(TOPIC, announcementOf(NINE), { qos: 1, retain: true });
  using node = machine(fruit, giver.peer);
  await using agent = await node.start(broker.port);
  await armed(node);
  expect(node.card.record.slots.b.version).toBe(9n);
  const read = Buffer.from(node.card.read(SLOT_OFFSETS.b, NINE.payload.length));
  expect(read.equals(NINE.payload)).toBe(true);
  const lines = (await node.told()).filter(({ what }) => what !== "waits");
  expect(lines.map(({ what }) => what)).toEqual(["announced", "installed", "fetched", "armed"]);
  const status = JSON.parse((await agent.cli("update", "status", "--json")).out);
  expect(status).toMatchObject({ target: FOLLOWING.target, announced: { version: "9", signers: ["anna"] } });
  const { out } = await agent.cli("update", "explain");
  expect(out).toContain("The newest that was announced is version 9, by anna");
  expect((await agent.cli("update", "history")).out).toContain("fetched");
  await until("it is told on the broker", () =>
    tap.heard.some(
      ({ topic, text }) => topic.endsWith("state/update/main") && JSON.parse(text).latest_version === "9",
    ),
  );
}, 120_000);

test("killed in the middle, with its broker gone, it goes on by what it remembers, and tells the next broker", async () => {
  using fruit = readable();
  using folder = scratch();
  await using giver = await seed(fruit, folder.path, "--up", "150000");
  using node = machine(fruit, giver.peer);
  {
    await using broker = await aedes();
    await using tap = await Tap.at(broker.port);
    await tap.client.publishAsync(TOPIC, announcementOf(NINE), { qos: 1, retain: true });
    await using agent = await node.start(broker.port);
    await until(
      "some of it",
      async () => {
        const { installing } = JSON.parse((await agent.cli("update", "status", "--json")).out);
        return (installing?.bytes_from_peers ?? 0) > 100_000;
      },
      60_000,
    );
    agent.kill("SIGKILL");
    await agent.exited;
    expect(node.card.record.slots.b.state).toBe("writing");
    expect(node.card.start().boots).toBe("a");
  }
  await using next = await aedes();
  await using tap = await Tap.at(next.port);
  await using _agent = await node.start(next.port);
  await armed(node);
  const read = Buffer.from(node.card.read(SLOT_OFFSETS.b, NINE.payload.length));
  expect(read.equals(NINE.payload)).toBe(true);
  await until("it tells the broker", () => tap.heard.some(({ topic }) => topic === TOPIC), 40_000);
  await using late = await Tap.at(next.port, { filter: TOPIC });
  await until("the broker keeps it", () => late.heard.some(({ retain }) => retain));
}, 180_000);

test("with no broker and nobody named but a way into the DHT, a node hears of a release and gets it", async () => {
  const stop = new AbortController();
  const port = await freePort();
  const giver = new Swarm({
    ...{ user: 65_534, memoryMib: 512, files: [], command: [...SOURCES.command, "swarm"] },
    settings: { port, lan: false, dht: true, bootstrap: [], everyMs: 2000 },
    log: () => undefined,
  });
  const running = giver.run(stop.signal);
  const seven = releaseOf(7n);
  const share = giver.share(seven.infohash);
  const read = async (at: number, length: number) => seven.payload.subarray(at, at + length);
  const holding = { size: seven.payload.length, has: () => true, put: async () => undefined, read };
  share.begin(seven.update, holding, () => undefined);
  const side = async (at: number, length: number) => seven.side.subarray(at, at + length);
  share.offer({ bytes: seven.side.length, read: side });
  await giver.port;
  giver.follow({
    target: FOLLOWING.target,
    keys: [Buffer.from(publicKeyOf(seedOf("anna"))).toString("hex")],
  });
  giver.announce(announcementOf(seven));
  await using node = new UpdateNode({ swarm: { dht: true, bootstrap: [`127.0.0.1:${port}`] } });
  await node.start([], { swarm: { command: [...SOURCES.command, "swarm"] } });
  await until("it is tried", () => node.other.state === "trying", 90_000);
  expect([node.other.version, node.published]).toEqual([7n, []]);
  stop.abort();
  await running;
}, 120_000);
