/** `fruit release publish` and `withdraw --publish` as a vendor types them; with a whole fleet in test/proof/discovery.proof.ts. */
import { expect, test } from "bun:test";
import { existsSync, writeFileSync } from "node:fs";
import { parseHead } from "../../boot/head.ts";
import { freePort } from "../broker.ts";
import { announced, FleetNode } from "../fleet.ts";
import { until } from "../node.ts";
import { headOf } from "../trusts.ts";
import { broker, ISSUED, release, vendor } from "../vendor.ts";

const made = announced();
test("nobody fetches it: the time over, that is no success", async () => {
  const at = vendor(made);
  using _ = at.folder;
  await using run = release("publish", at.release, "--key", at.key, "--for", "1s");
  const { exit, last } = await run.ended();
  expect([exit, last?.phase, last?.copies]).toEqual([5, "over", 0]);
}, 60_000);

test("a release whose payload is damaged is not even announced", async () => {
  const at = vendor(made);
  using _ = at.folder;
  const payload = Buffer.from(made.payload);
  payload[200_000] = (payload[200_000] ?? 0) ^ 1;
  writeFileSync(at.release.replace(/\.fruit$/, ""), payload);
  await using mqtt = await broker();
  await using run = release("publish", at.release, "--key", at.key, "--broker", mqtt.url, "--site", "lab");
  expect((await run.ended()).exit).toBe(4);
  expect([existsSync(at.head), mqtt.published]).toEqual([false, []]);
}, 60_000);

test("a head of another release, and one that was changed, are not published", async () => {
  const at = vendor(made);
  using _ = at.folder;
  writeFileSync(at.head, headOf("bell"));
  await using other = release("publish", at.release);
  expect(await other.ended()).toMatchObject({ exit: 4, err: expect.stringContaining("it names 5555") });
  const changed = Buffer.from(made.head);
  const byte = changed.indexOf("3:sig64:") + 8;
  changed[byte] = (changed[byte] ?? 0) ^ 1;
  writeFileSync(at.head, changed);
  await using run = release("publish", at.head);
  expect(await run.ended()).toMatchObject({ exit: 4, err: expect.stringContaining("signature") });
}, 60_000);

test("a withdrawal goes out by one command too, and a broker that is away is told", async () => {
  const at = vendor(made);
  using _ = at.folder;
  await using one = new FleetNode({ name: "one", settings: { dht: true } });
  one.follow();
  const [address, away] = [await one.address, `mqtt://127.0.0.1:${await freePort()}`];
  const words = ["--key", at.key, ...ISSUED, "--publish", "--bootstrap", address];
  await using run = release("withdraw", at.release, ...words);
  expect(await run.ended()).toMatchObject({
    exit: 0,
    last: { phase: "over", withdrawn: true, dht_nodes: 1 },
  });
  await until("it is heard", () => one.told.length > 0);
  expect(parseHead(one.told[0]?.head ?? Buffer.alloc(0)).isWithdrawn).toBe(true);
  await using again = release("publish", at.head, "--bootstrap", address, "--broker", away, "--site", "lab");
  expect(await again.ended()).toMatchObject({
    ...{ exit: 6, err: expect.stringContaining(away) },
    last: { brokers: [], brokers_lost: [away] },
  });
}, 60_000);

test.each([
  [["--broker", "mqtt://127.0.0.1:1"], "--broker needs --site too"],
  [["--peer", "x"], '--peer: "x" is no address'],
  [["--bootstrap", "x"], '--bootstrap: "x" is no address'],
  [["--copies", "-1"], "copies"],
  [["--for", "soon"], "soon"],
])("%j makes no sense, and is said before anything is done", async (words, why) => {
  const at = vendor(made);
  using _ = at.folder;
  await using run = release("publish", at.release, "--key", at.key, ...words);
  expect(await run.ended()).toMatchObject({ exit: 2, err: expect.stringContaining(why) });
  expect(existsSync(at.head)).toBe(false);
});
