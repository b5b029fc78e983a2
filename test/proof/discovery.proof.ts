/**
 * A fleet of real swarm children finds a release with each way of discovery taken away in turn, and with each one alone; one command of a
 * vendor starts it; and a flood of announcements costs whoever sends it more than the node that hears it.
 */
import { expect, test } from "bun:test";
import { existsSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { headId, parseHead } from "../../boot/head.ts";
import { type Announced, announced, FleetNode, listener, type NodeOptions, ownGroups } from "../fleet.ts";
import { SOURCES, scratch, until } from "../node.ts";
import { tracker } from "../trackers.ts";
import { headOf } from "../trusts.ts";
import { desk } from "../updates.ts";
import { broker, ISSUED, release, vendor } from "../vendor.ts";

const WAYS = ["mqtt", "lan", "dht", "pex", "tracker", "web", "hand"] as const;
type Way = (typeof WAYS)[number];
const NODES = 4;
const CONVERGES_MS = 60_000;
/** Memory that a flood may cost a node: what is read a hundred thousand times a second is garbage for a moment. */
const FLOOD_MIB = 80;

/** A server of one payload that keeps to ranges. */
function webSeed(payload: Buffer) {
  const server = Bun.serve({
    port: 0,
    hostname: "127.0.0.1",
    fetch: (request) => {
      const [, from = "0", to = ""] = /^bytes=(\d+)-(\d*)$/.exec(request.headers.get("range") ?? "") ?? [];
      const end = to === "" ? payload.length - 1 : Math.min(Number(to), payload.length - 1);
      return new Response(Uint8Array.from(payload.subarray(Number(from), end + 1)), {
        status: 206,
        headers: { "content-range": `bytes ${from}-${end}/${payload.length}` },
      });
    },
  });
  return { url: `http://127.0.0.1:${server.port}/payload`, [Symbol.asyncDispose]: () => server.stop(true) };
}

/** A first seed, and a fleet that has these ways and no others; `use` it once all have begun. */
async function fleet(
  on: ReadonlySet<Way>,
  use: (nodes: readonly FleetNode[], made: Announced) => Promise<void>,
): Promise<void> {
  await using open = new AsyncDisposableStack();
  const trackers = on.has("tracker") ? [open.use(await tracker()).http] : [];
  const made = announced({ stated: { trackers } });
  const web = on.has("web") ? [open.use(webSeed(made.payload)).url] : [];
  const settings = { lan: on.has("lan"), dht: on.has("dht"), groups: await ownGroups() };
  const isAlone = on.size === 1;
  const first = open.use(new FleetNode({ name: "first", settings }));
  const address = await first.address;
  // A web server alone: then no peer gives anything
  if (!(isAlone && on.has("web"))) first.seed(made);
  first.swarm.announce(made.head);
  const nodes = Array.from({ length: NODES }, (_, n) => {
    const known = nodeOf(n, made, on, { address, isAlone, web });
    return open.use(new FleetNode({ ...known, settings: { ...settings, ...known.settings } }));
  });
  for (const node of nodes) node.follow();
  await Promise.all(nodes.map((node) => node.swarm.port));
  if (on.has("pex")) await introduce([first, ...nodes], made, open);
  for (const node of nodes) begin(node, made, on, address);
  await use(nodes, made);
}

/** What a node is told to do. One that hears of no head is told what to look for. */
function begin(node: FleetNode, { head, release }: Announced, on: ReadonlySet<Way>, address: string): void {
  if (on.has("mqtt")) node.hear(head);
  if (on.has("hand")) node.fetch(release.infohash).meet(address);
  else if (!isAnnounced(on)) node.fetch(release.infohash);
}

const isAnnounced = (on: ReadonlySet<Way>) => (["mqtt", "lan", "dht"] as const).some((way) => on.has(way));

/** All of a fleet have it when this resolves. */
async function converge(on: ReadonlySet<Way>): Promise<void> {
  const begunMs = performance.now();
  await fleet(on, async (nodes, made) => {
    const names = [...on].join(", ");
    await until(`all have it by ${names}`, () => nodes.every((node) => node.isWhole(made)), CONVERGES_MS);
    if (isAnnounced(on))
      expect(nodes.map((node) => node.wants)).toEqual(nodes.map(() => made.release.infohash));
    console.log(`${names}: ${Math.round(performance.now() - begunMs)} ms`);
  });
}

/** What the ways mean for one node before it starts. */
function nodeOf(
  n: number,
  { update, side }: Announced,
  on: ReadonlySet<Way>,
  { address, isAlone, web }: { address: string; isAlone: boolean; web: string[] },
): NodeOptions {
  // A retained head names no peers: alone it is of use to nodes whose configuration does
  const peers = isAlone && on.has("mqtt") ? { peers: [address] } : {};
  // Trackers stand in the update file, web seeds give payloads only: what names them is in hand
  const isFile = isAlone && (on.has("tracker") || on.has("web"));
  return {
    name: `node ${n}`,
    settings: { ...peers, ...(on.has("dht") ? { bootstrap: [address] } : {}) },
    inHand: { ...(isFile ? { update } : {}), ...(isAlone && on.has("web") ? { side } : {}), webSeeds: web },
  };
}

/** Somebody who has nothing of it connects to all: that is where they hear of each other. */
async function introduce(
  nodes: readonly FleetNode[],
  { release }: Announced,
  open: AsyncDisposableStack,
): Promise<void> {
  const share = open.use(new FleetNode({ name: "host" })).swarm.share(release.infohash);
  for (const one of nodes) share.meet(await one.address);
}

test.each(WAYS)(
  "without %s it converges all the same",
  (way) => converge(new Set(WAYS.filter((one) => one !== way))),
  90_000,
);

test.each(WAYS)("by %s alone it converges", (way) => converge(new Set([way])), 90_000);

test(
  "with none of them nobody finds anything",
  () =>
    fleet(new Set(), async (nodes) => {
      await sleep(6000);
      expect(nodes.map(({ has, told }) => [has.size, told.length])).toEqual(nodes.map(() => [0, 0]));
    }),
  30_000,
);

test("one command, and it ends when two others have all of it: the vendor may go, and a third still gets it", async () => {
  const made = announced();
  const at = vendor(made);
  using _ = at.folder;
  await using mqtt = await broker();
  await using run = release(
    "publish",
    at.release,
    "--key",
    at.key,
    ...ISSUED,
    "--broker",
    mqtt.url,
    "--site",
    "lab",
    // So slowly that they are connected long before they have it
    "--up",
    "150000",
  );
  await until("it gives", () => run.lines.length > 0, 30_000);
  const bootstrap = [`127.0.0.1:${run.lines[0]?.port}`];
  await using one = new FleetNode({ name: "one", settings: { dht: true, bootstrap } });
  await using two = new FleetNode({ name: "two", settings: { dht: true, bootstrap } });
  for (const node of [one, two]) node.follow();
  const { exit, err, last } = await run.ended();
  expect([exit, err]).toEqual([0, ""]);
  expect(last).toMatchObject({
    ...{ phase: "over", copies: 2, version: "7", brokers: [mqtt.url], brokers_lost: [] },
    infohash: made.release.infohash,
  });
  expect(last?.dht_nodes).toBeGreaterThan(0);
  expect([one.isWhole(made), two.isWhole(made)]).toEqual([true, true]);
  const bytes = readFileSync(at.head);
  expect(mqtt.published).toEqual([
    {
      topic: `fruit/v1/lab/all/head/${headId(Buffer.from(parseHead(bytes).key, "hex"), parseHead(bytes).target)}`,
      retain: true,
      payload: bytes,
    },
  ]);
  // Nothing of the vendor's runs any more
  await using three = new FleetNode({
    name: "three",
    settings: { dht: true, bootstrap: [await one.address] },
  });
  three.follow();
  await until("the third has it", () => three.isWhole(made), 30_000);
}, 90_000);

test("a file in hand names a tracker: that is enough to find the rest of it", async () => {
  await using asked = await tracker();
  const stated = { trackers: [asked.http] };
  using giver = desk({ stated });
  using taker = desk({ stated });
  for (const name of ["fruitos-9", "fruitos-9.side"]) rmSync(taker.file(name));
  const config = JSON.parse(readFileSync(taker.file("node.json"), "utf8"));
  taker.put("node.json", JSON.stringify({ ...config, update: { swarm: { lan: false, dht: false } } }));
  const env = { PATH: process.env.PATH ?? "", HOME: "/" };
  const giving = Bun.spawn([...SOURCES.command, "update", "seed", giver.file("fruitos-9.fruit")], {
    ...{ env, stdin: "ignore", stdout: "pipe", stderr: "inherit" },
  });
  await giving.stdout.getReader().read();
  const taking = Bun.spawn([...SOURCES.command, ...taker.words("--json")], {
    ...{ env, stdin: "ignore", stdout: "pipe", stderr: "pipe" },
  });
  const { bytes_from_peers } = JSON.parse(await new Response(taking.stdout).text());
  expect([await taking.exited, bytes_from_peers]).toEqual([0, giver.release.payload.length]);
  giving.kill("SIGTERM");
  await giving.exited;
}, 60_000);

test("who answered is asked first after the next start, with nobody named", async () => {
  const made = announced();
  using folder = scratch();
  const remembers = join(folder.path, "data/peers.json");
  await using far = new FleetNode({ name: "far", settings: { dht: true } });
  await far.swarm.port;
  far.seed(made);
  {
    await using one = new FleetNode({
      name: "one",
      remembers,
      settings: { dht: true, bootstrap: [await far.address] },
    });
    one.fetch(made.release.infohash).meet(await far.address);
    await until("it is whole", () => one.isWhole(made));
    await until(
      "it is remembered",
      () => existsSync(remembers) && readFileSync(remembers, "utf8").includes("infohash"),
    );
  }
  const { nodes, peers } = JSON.parse(readFileSync(remembers, "utf8"));
  expect([nodes, peers]).toEqual([
    [await far.address],
    [{ infohash: made.release.infohash, addresses: [await far.address] }],
  ]);
  await using again = listener({ name: "one", remembers, settings: { dht: true } });
  far.swarm.announce(made.head);
  await until("it hears by the DHT", () => again.heads.length > 0);
  await using alone = new FleetNode({ name: "alone", remembers });
  alone.fetch(made.release.infohash);
  await until("it is whole from whom it knew", () => alone.isWhole(made));
}, 60_000);

test("trackers and web seeds of a release are asked only where they may be", async () => {
  const seen = new Set<string>();
  await using server = Bun.serve({
    port: 0,
    hostname: "127.0.0.1",
    fetch: ({ url }) => {
      seen.add(new URL(url).pathname);
      return new Response("", { status: 404 });
    },
  });
  const asking = async (name: string, isOn: boolean) => {
    const url = `http://127.0.0.1:${server.port}/${name}`;
    const { update, side, release } = announced({ stated: { trackers: [`${url}/tracker`] } });
    const node = new FleetNode({
      name,
      settings: { trackers: isOn, webSeeds: isOn },
      inHand: { update, side, webSeeds: [`${url}/web`] },
    });
    node.fetch(release.infohash);
    await until("it has begun", () => node.share?.status?.phase === "fetching");
    return node;
  };
  await using _ = await asking("off", false);
  await using __ = await asking("on", true);
  await until("one has asked both, which began after the other", () => seen.size >= 2);
  expect([...seen].sort()).toEqual(["/on/tracker", "/on/web"]);
}, 30_000);

/** Seconds of processor that a process has had: proc_pid_stat(5), in ticks of 10 ms. */
function cpuSeconds(pid: number): number {
  const fields = readFileSync(`/proc/${pid}/stat`, "utf8").split(") ")[1]?.split(" ") ?? [];
  return (Number(fields[11]) + Number(fields[12])) / 100;
}
const residentMib = (pid: number) =>
  Number(/^VmRSS:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1]) / 1024;

/** A process that sends datagrams as fast as it can for so long; the datagrams and its own seconds of processor. */
async function flood(what: object): Promise<{ sent: number; tokens: number; cpu: number }> {
  const child = Bun.spawn([process.execPath, `${import.meta.dir}/../swarm/flood.ts`, JSON.stringify(what)], {
    stdout: "pipe",
    stderr: "inherit",
  });
  const text = await new Response(child.stdout).text();
  expect(await child.exited).toBe(0);
  return JSON.parse(text);
}

test.each([
  { by: "beacon", from: "one", kind: "copies" },
  { by: "beacon", from: "one", kind: "signed by nobody" },
  { by: "beacon", from: "many", kind: "signed by nobody" },
  { by: "dht", from: "one", kind: "signed by nobody" },
  { by: "dht", from: "many", kind: "signed by nobody" },
] as const)(
  "a flood by $by from $from, $kind: it costs the sender more, and an honest head comes through",
  async ({ by, from, kind }) => {
    const groups = await ownGroups();
    await using node = new FleetNode({
      name: "node",
      settings: { lan: true, dht: true, groups, everyMs: 500 },
    });
    await using honest = new FleetNode({
      name: "honest",
      settings: {
        lan: by === "beacon",
        dht: by === "dht",
        groups,
        bootstrap: [await node.address],
        everyMs: 500,
      },
    });
    node.follow();
    await honest.swarm.port;
    await sleep(2000);
    const pid = node.swarm.pid ?? 0;
    const [cpu, mib] = [cpuSeconds(pid), residentMib(pid)];
    let [most, heardAt] = [mib, Number.POSITIVE_INFINITY];
    const begunMs = performance.now();
    const flooding = flood({ by, from, kind, group: groups.heads, port: await node.swarm.port, seconds: 8 });
    await sleep(2000);
    honest.swarm.announce(headOf("bell"));
    let isOver = false;
    void flooding.then(() => {
      isOver = true;
    });
    while (!isOver) {
      most = Math.max(most, residentMib(pid));
      if (node.told.length > 0) heardAt = Math.min(heardAt, performance.now() - begunMs);
      await sleep(100);
    }
    const attacker = await flooding;
    const used = cpuSeconds(pid) - cpu;
    console.log(
      `${by}, ${from}, ${kind}: ${attacker.sent} datagrams, ${attacker.tokens} tokens; processor ${attacker.cpu.toFixed(2)} s : ${used.toFixed(2)} s = ${(attacker.cpu / used).toFixed(1)}; memory ${mib.toFixed(0)} -> at most ${most.toFixed(0)} MiB; the honest head after ${Math.round(heardAt - 2000)} ms`,
    );
    await until("the honest head is told", () => node.told.length > 0, 20_000);
    expect(node.told.map(({ head }) => head.equals(headOf("bell")))).toEqual([true]);
    expect(node.swarm.pid).toBe(pid);
    expect(most - mib).toBeLessThan(FLOOD_MIB);
    expect(attacker.cpu).toBeGreaterThan(used);
  },
  60_000,
);
