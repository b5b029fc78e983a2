/** Who hears how a command ended: nobody can end somebody else's, and whoever is refused hears of it where there is a way. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { ROOT } from "../agent/messages.ts";
import { SITE, sealed, signers } from "./doors.ts";
import { BASE, gateway, plain } from "./gateway.ts";
import { scratch, until } from "./node.ts";

const folder = scratch();
let people: Awaited<ReturnType<typeof signers>>;
beforeAll(async () => {
  people = await signers(folder.path, { alice: "roles=read,power outlets=*", stranger: undefined });
});
afterAll(() => folder[Symbol.dispose]());
const responseTopic = `${ROOT}/${SITE}/reply/me`;

/** A command of Alice's that is under way, and everything that was published on its topic. */
async function underWay() {
  const g = await gateway(people.file);
  const sent = await sealed(people.keys.alice, "c1", "slow.off");
  const running = g.say("cmd/slow.off", sent);
  const heard = () => g.replies.filter(({ to }) => to.topic === `${BASE}/res/c1`).map(({ result }) => result);
  await until("it runs", () => heard().length === 2);
  return {
    ...g,
    sent,
    heard,
    end: async () => {
      g.finish();
      await running;
    },
  };
}

test.each<{ what: string; topic: string; text: () => string | Promise<string>; retain?: boolean }>([
  { what: "a command that is not allowed", topic: "cmd/power.off", text: () => plain("c1", "power.off") },
  { what: "an unknown verb", topic: "cmd/nothing", text: () => plain("c1", "nothing") },
  { what: "another topic", topic: "cmd/look", text: () => plain("c1", "power.off") },
  { what: "another site", topic: "cmd/look", text: () => plain("c1", "look", {}, { site: "attic" }) },
  { what: "one that expired", topic: "cmd/look", text: () => plain("c1", "look", {}, { iat: 1, exp: 2 }) },
  { what: "reading", topic: "cmd/look", text: () => plain("c1", "look") },
  { what: "what is harmless", topic: "cmd/identify", text: () => plain("c1", "identify") },
  { what: "a retained one", topic: "cmd/look", text: () => plain("c1", "look"), retain: true },
  { what: "no envelope", topic: "cmd/look", text: () => '{"id":"c1"}' },
  {
    what: "a bad signature",
    topic: "cmd/power.off",
    text: () => sealed(people.keys.stranger, "c1", "power.off"),
  },
  {
    what: "Alice's own next command",
    topic: "cmd/power.off",
    text: () => sealed(people.keys.alice, "c1", "power.off"),
  },
])("$what with the id of a command of somebody else's says nothing on its topic", async (row) => {
  await using g = await underWay();
  const text = await row.text();
  const send = (more = {}) => g.say(row.topic, text, { retain: row.retain ?? false, ...more });
  await send();
  expect(g.heard().map(({ state }) => state)).toEqual(["accepted", "running"]);
  await g.end();
  await send();
  expect(g.heard().map(({ state }) => state)).toEqual(["accepted", "running", "done"]);
  await send({ responseTopic });
  expect(g.heard()).toHaveLength(3);
  expect(g.replies.at(-1)).toMatchObject({ to: { topic: responseTopic }, result: { id: "c1" } });
});

test("the same bytes once more are answered with what is known of the command", async () => {
  await using g = await underWay();
  await g.say("cmd/slow.off", g.sent);
  expect(g.heard().map(({ state }) => state)).toEqual(["accepted", "running", "running"]);
  await g.end();
  await g.say("cmd/slow.off", g.sent);
  const [done, again] = g.heard().slice(-2);
  expect(done).toMatchObject({ state: "done", by: "key:alice" });
  expect(again).toEqual(done);
  await g.say("cmd/slow.off", g.sent, { responseTopic });
  expect(g.replies.at(-1)).toMatchObject({ to: { topic: responseTopic }, result: { code: "duplicate" } });
  expect(g.heard()).toHaveLength(5);
  expect(g.told.map(({ code }) => code)).toEqual(["duplicate", "duplicate", "duplicate"]);
  expect(g.ran).toEqual([]);
});

test("of two reads with one id that run at once, the first has its topic", async () => {
  await using g = await gateway(people.file);
  const first = g.say("cmd/slow.look", plain("r", "slow.look"));
  await g.say("cmd/look", plain("r", "look"));
  expect(g.replies).toEqual([]);
  g.finish();
  await first;
  await g.say("cmd/look", plain("r", "look"));
  expect(g.replies.map(({ result }) => result.verb)).toEqual(["slow.look", "look"]);
});

test("a signature that is not accepted is answered where the sender can hear it, also when there were too many", async () => {
  await using g = await gateway(people.file);
  const codes = async (more: object) => {
    const before = g.replies.length;
    for (let n = 0; n < 11; n++)
      await g.say("cmd/power.off", await sealed(people.keys.stranger, `s${n}`, "power.off"), more);
    return g.replies.slice(before).map(({ to, result }) => `${to.topic} ${result.id} ${result.code}`);
  };
  expect(await codes({ responseTopic })).toEqual([
    ...Array.from({ length: 10 }, (_, n) => `${responseTopic} s${n} unauthorised`),
    `${responseTopic} s10 rate-limited`,
  ]);
  expect((await codes({})).at(-1)).toBe(`${BASE}/res/s10 s10 rate-limited`);
  await g.say("cmd/power.off", await sealed(people.keys.alice, "good", "power.off"));
  expect(g.replies.at(-1)?.result).toMatchObject({ id: "good", state: "done" });
});

test.each([undefined, responseTopic])(
  "a command that expired ends as expired, with response topic %p",
  async (topic) => {
    await using g = await gateway(people.file);
    const more = topic === undefined ? {} : { responseTopic: topic };
    await g.say("cmd/look", plain("c1", "look", {}, { iat: 1, exp: 2 }), more);
    expect(g.replies).toMatchObject([
      { to: { topic: topic ?? `${BASE}/res/c1` }, result: { state: "expired", code: "expired" } },
    ]);
  },
);

test("refusals of anybody do not keep those of a signer from being told", async () => {
  await using g = await gateway(people.file);
  for (let n = 0; n < 50; n++) await g.say("cmd/power.off", plain(`f${n}`, "power.off"));
  await g.say("cmd/nothing", await sealed(people.keys.alice, "real", "nothing"));
  await g.say("set/outlet/1.0", "OFF");
  expect(g.told).toHaveLength(12);
  expect(g.told.slice(-2)).toMatchObject([{ id: "real", code: "unknown-verb" }, { code: "unauthorised" }]);
});
