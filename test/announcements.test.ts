/** Heads from everywhere: what is believed, how much of it is looked at, and who tells the broker. */
import { expect, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { Announcements } from "../agent/update/announcements.ts";
import { BrokerHeads } from "../agent/update/broker.ts";
import { publicKeyOf } from "../boot/ed25519.ts";
import { type Head, headId } from "../boot/head.ts";
import { scratch, until } from "./node.ts";
import { seedOf, TIMES } from "./releases.ts";
import { FOLLOWING, headOf, trustText } from "./trusts.ts";

const ALL = ["release", "trust", "head"] as const;
const ID = headId(publicKeyOf(seedOf("anna")), FOLLOWING.target);
const hex = (number: number) => String(number).repeat(20);

function listener(folder: { path: string }) {
  const path = `${folder.path}/trust.json`;
  writeFileSync(path, trustText(1, { anna: ALL, bert: ALL }));
  const taken: Head[] = [];
  const announcements = new Announcements({
    ...{ dataDir: folder.path, trustPath: undefined, following: FOLLOWING, log: () => undefined },
    now: () => TIMES.now,
    taken: (head) => taken.push(head),
  });
  return { announcements, taken, path };
}

test("what is signed is remembered and told once; garbage, nothing, strangers and what is older are passed over", async () => {
  using folder = scratch();
  const { announcements, taken } = listener(folder);
  const eight = headOf("anna", { version: 8n, infohash: hex(88) });
  expect((await announcements.heard(eight, "mqtt"))?.version).toBe(8n);
  expect((await announcements.heard(eight, "swarm"))?.version).toBe(8n);
  for (const bytes of [new Uint8Array(), Buffer.from("garbage"), Buffer.alloc(5000), headOf("mallory")])
    expect(await announcements.heard(bytes, "mqtt")).toBeUndefined();
  expect((await announcements.heard(headOf("anna"), "mqtt"))?.version).toBe(7n);
  expect(taken.map(({ version }) => version)).toEqual([8n]);
  expect((await announcements.newest())?.infohash).toBe(hex(88));
  const again = listener(folder);
  expect((await again.announcements.newest())?.version).toBe(8n);
});

test("a key that leaves trust.json has said nothing", async () => {
  using folder = scratch();
  const { announcements, path } = listener(folder);
  await announcements.heard(headOf("anna"), "mqtt");
  writeFileSync(path, trustText(2, { bert: ALL }));
  expect(await announcements.newest()).toBeUndefined();
  writeFileSync(path, trustText(3, { anna: ALL }));
  expect(await announcements.newest()).toBeUndefined();
});

test("a flood of one way is not looked at, and takes nothing from the others", async () => {
  using folder = scratch();
  const { announcements } = listener(folder);
  for (let one = 0; one < 80; one++)
    await announcements.heard(headOf("mallory", { issued: TIMES.now - one - 1 }), "swarm");
  expect(await announcements.heard(headOf("anna"), "swarm")).toBeUndefined();
  expect((await announcements.heard(headOf("anna"), "mqtt"))?.version).toBe(7n);
});

test("more than can wait is dropped, not kept", async () => {
  using folder = scratch();
  const { announcements } = listener(folder);
  const all = await Promise.all(
    Array.from({ length: 40 }, () => announcements.heard(headOf("anna"), "mqtt")),
  );
  expect(all.filter((head) => head !== undefined).length).toBe(32);
});

/** A broker, as far as heads are concerned. */
function site(announcements: Announcements, pace = { jitterMs: 20, restMs: 600_000, lookMs: 5 }) {
  const said: { id: string; bytes: Uint8Array }[] = [];
  const state = { isOnline: true };
  const link = {
    get isOnline() {
      return state.isOnline;
    },
    publish: (id: string, bytes: Uint8Array) => said.push({ id, bytes }) > 0,
  };
  const stop = new AbortController();
  const heads = new BrokerHeads(link, announcements, pace);
  return {
    ...{ heads, said, state },
    run: () => heads.run(stop.signal),
    [Symbol.dispose]: () => stop.abort(),
  };
}

test("a broker that knows nothing, or less, is told once; one that knows as much is told nothing", async () => {
  using folder = scratch();
  const { announcements } = listener(folder);
  const eight = headOf("anna", { version: 8n });
  await announcements.heard(eight, "swarm");
  using knows = site(announcements);
  await knows.heads.heard(eight);
  using knowsLess = site(announcements);
  await knowsLess.heads.heard(headOf("anna"));
  using lies = site(announcements);
  await lies.heads.heard(headOf("mallory", { version: 9n }));
  for (const one of [knows, knowsLess, lies]) void one.run();
  await until("told", () => knowsLess.said.length + lies.said.length === 2);
  await Bun.sleep(100);
  expect([knows.said, knowsLess.said.length, lies.said.length]).toEqual([[], 1, 1]);
  expect(knowsLess.said[0]).toEqual({ id: ID, bytes: Uint8Array.from(eight) });
});

test("a broker that was away is told anew, but no more often than it has to be", async () => {
  using folder = scratch();
  const { announcements } = listener(folder);
  await announcements.heard(headOf("anna"), "swarm");
  using rests = site(announcements);
  using soon = site(announcements, { jitterMs: 5, restMs: 10, lookMs: 5 });
  for (const one of [rests, soon]) void one.run();
  await until("told", () => rests.said.length + soon.said.length === 2);
  for (const one of [rests, soon]) one.state.isOnline = false;
  await Bun.sleep(50);
  for (const one of [rests, soon]) one.state.isOnline = true;
  await until("told anew", () => soon.said.length === 2);
  expect(rests.said.length).toBe(1);
});
