import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { dhtId, Known } from "../../agent/update/known.ts";
import { FleetNode, FOLLOWED, listener, ownGroups } from "../fleet.ts";
import { scratch, until } from "../node.ts";
import { headOf, keyHex } from "../trusts.ts";

const HEAD = headOf("bell");
const LATER = headOf("bell", { version: 8n });

test("a head goes through the DHT to whoever follows its key, once, and the next after it", async () => {
  await using one = listener({ name: "one", settings: { dht: true } });
  const bootstrap = [await one.address];
  await using two = listener({ name: "two", settings: { dht: true, bootstrap } });
  await two.swarm.port;
  two.swarm.announce(HEAD);
  await until("it is told", () => one.heads.length > 0);
  await until("two knows that it was taken", () => two.announced.some(({ dht }) => dht > 0));
  two.swarm.announce(LATER);
  await until("the next is told", () => one.heads.length > 1);
  expect(one.heads).toEqual([
    { head: HEAD.toString("hex"), from: "dht" },
    { head: LATER.toString("hex"), from: "dht" },
  ]);
  expect(two.heads).toEqual([]); // its own
}, 30_000);

test("a head goes through the own network at once", async () => {
  const settings = { lan: true, groups: await ownGroups() };
  await using one = listener({ name: "one", settings });
  await using two = listener({ name: "two", settings });
  await Promise.all([one.swarm.port, two.swarm.port]);
  two.swarm.announce(HEAD);
  await until("it is told", () => one.heads.length > 0);
  expect(one.heads).toEqual([{ head: HEAD.toString("hex"), from: "lan" }]);
  await until("two knows that it was said", () => two.announced.some(({ lan }) => lan));
}, 30_000);

test("a head of a key that nobody follows, and one whose signature is false, is told to nobody", async () => {
  const settings = { lan: true, groups: await ownGroups() };
  await using one = listener({ name: "one", settings });
  await using two = new FleetNode({ name: "two", settings });
  await Promise.all([one.swarm.port, two.swarm.port]);
  const false_ = Buffer.from(HEAD);
  const at = false_.indexOf("3:sig64:") + 8;
  false_[at] = (false_[at] ?? 0) ^ 1;
  for (const head of [headOf("eve"), false_, LATER]) two.swarm.announce(head);
  await until("the honest one is told", () => one.heads.length > 0);
  await sleep(600); // two more turns of what is told
  expect(one.heads).toEqual([{ head: LATER.toString("hex"), from: "lan" }]);
}, 30_000);

test("a head that is refused is told, and the next one is heard", async () => {
  const settings = { lan: true, groups: await ownGroups() };
  const heard: Buffer[] = [];
  const refuse = (head: Uint8Array) => {
    heard.push(Buffer.from(head));
    throw new Error("it is for somebody else");
  };
  await using one = listener({ name: "one", settings, swarm: { heard: refuse } });
  await using two = listener({ name: "two", settings });
  await Promise.all([one.swarm.port, two.swarm.port]);
  two.swarm.announce(HEAD);
  await until("it is told", () => heard.length === 1);
  two.swarm.announce(LATER);
  await until("the next is told", () => heard.length === 2);
  expect(one.log.filter((line) => line.startsWith("swarm.head"))).toEqual(
    heard.map(() => 'swarm.head {"from":"lan","why":"it is for somebody else"}'),
  );
}, 30_000);

test("a child that was killed follows and announces the same again", async () => {
  const settings = { lan: true, groups: await ownGroups() };
  await using one = listener({ name: "one", settings });
  await using two = listener({ name: "two", settings });
  await Promise.all([one.swarm.port, two.swarm.port]);
  two.swarm.announce(HEAD);
  await until("it is told", () => one.heads.length === 1);
  for (const node of [one, two]) process.kill(node.swarm.pid ?? 0, "SIGKILL");
  await until("it is told again", () => one.heads.length === 2);
  two.swarm.announce(LATER);
  await until("the next is told", () => one.heads.some(({ head }) => head === LATER.toString("hex")));
}, 30_000);

test("a key that is no longer followed is no longer heard, nor handed on", async () => {
  const settings = { lan: true, groups: await ownGroups(), everyMs: 300 };
  await using one = listener({ name: "one", settings });
  await using two = listener({ name: "two", settings });
  await Promise.all([one.swarm.port, two.swarm.port]);
  two.swarm.announce(HEAD);
  await until("it is told", () => one.heads.length === 1);
  const other = { target: FOLLOWED.target, keys: [keyHex("carl")] };
  for (const node of [one, two]) node.swarm.follow(other);
  const byCarl = headOf("carl");
  two.swarm.announce(byCarl);
  await until("the other key's is told", () => one.heads.length === 2);
  expect(one.heads[1]?.head).toBe(byCarl.toString("hex"));
  // Were it still said every 300 ms, somebody new would hear of it
  await using three = listener({ name: "three", settings });
  three.swarm.follow({ target: FOLLOWED.target, keys: [keyHex("bell"), keyHex("carl")] });
  await until("it hears carl's", () => three.heads.length > 0);
  await sleep(1000);
  expect(three.heads.map(({ head }) => head)).toEqual([byCarl.toString("hex")]);
}, 30_000);

test("what is remembered is bounded, news are written, and not too often", async () => {
  using folder = scratch();
  const path = `${folder.path}/peers.json`;
  let now = 0;
  const known = new Known(path, () => now);
  const address = (n: number) => `192.0.2.${n % 250}:${1024 + n}`;
  const all = (from: number) => Array.from({ length: 64 }, (_, n) => address(from + n));
  const infohash = (n: number) => n.toString(16).padStart(40, "0");
  await known.take({ nodes: all(0), peers: [{ infohash: infohash(1), addresses: [address(1)] }] });
  const first = readFileSync(path, "utf8");
  await known.take({ nodes: all(100), peers: [] });
  expect([known.nodes, readFileSync(path, "utf8")]).toEqual([all(100), first]);
  now += 5 * 60_000;
  for (let n = 2; n < 40; n++)
    await known.take({ nodes: [], peers: [{ infohash: infohash(n), addresses: all(n).slice(0, 32) }] });
  now += 5 * 60_000;
  await known.take({ nodes: [address(500)], peers: [] });
  const read = new Known(path);
  expect([read.nodes.length, read.nodes[0]]).toEqual([64, address(500)]);
  expect([1, 23, 24, 39].map((n) => read.peers(infohash(n)).length)).toEqual([0, 0, 32, 32]);
});

test.each([
  "",
  "{",
  '{"schema":"fruit.peers/2","nodes":[],"peers":[]}',
  '{"schema":"fruit.peers/1","nodes":["x"],"peers":[]}',
])("a file of peers that makes no sense is nothing: %j", (text) => {
  using folder = scratch();
  const known = new Known(folder.file("peers.json", text));
  expect([known.nodes, known.peers("0".repeat(40))]).toEqual([[], []]);
});

test("an id in the DHT follows from what only this node has", () => {
  expect(dhtId("one")).toMatch(/^[0-9a-f]{40}$/);
  expect(dhtId("one")).toBe(dhtId("one"));
  expect(dhtId("one")).not.toBe(dhtId("two"));
});
