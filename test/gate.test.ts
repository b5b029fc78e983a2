import { afterAll, beforeAll, expect, jest, test } from "bun:test";
import { createClock } from "../agent/clock.ts";
import type { Command } from "../agent/commands.ts";
import { ROOT } from "../agent/messages.ts";
import { nodeCommands } from "../agent/node.ts";
import { FailureLimit } from "../agent/sign/limit.ts";
import { NODE, SITE, sealed, signers } from "./doors.ts";
import { seeded } from "./fakes.ts";
import { BASE, gateway, plain } from "./gateway.ts";
import { scratch } from "./node.ts";
import { PaperMachine } from "./paper.ts";
import { bench, Rack } from "./rack.ts";
import { FUZZ } from "./sim.ts";

const folder = scratch();
let people: Awaited<ReturnType<typeof signers>>;
beforeAll(async () => {
  people = await signers(folder.path, { alice: "roles=read,power outlets=*" });
});
afterAll(() => folder[Symbol.dispose]());

const last = <T>(all: readonly T[]) => all.at(-1);

test.each([
  { responseTopic: `${ROOT}/${SITE}/reply/me`, to: `${ROOT}/${SITE}/reply/me` },
  { responseTopic: `${ROOT}/${SITE}/reply/me/1`, to: `${ROOT}/${SITE}/reply/me/1` },
  { responseTopic: `${ROOT}/attic/reply/me`, to: `${BASE}/res/q` },
  { responseTopic: `${ROOT}/${SITE}/reply`, to: `${BASE}/res/q` },
  { responseTopic: `${ROOT}/${SITE}/${NODE}/cmd/power.off`, to: `${BASE}/res/q` },
  { responseTopic: `${ROOT}/${SITE}/reply/+`, to: `${BASE}/res/q` },
  { responseTopic: `${ROOT}/${SITE}/reply/#`, to: `${BASE}/res/q` },
  { responseTopic: `${ROOT}/${SITE}/reply/a\0b`, to: `${BASE}/res/q` },
  { responseTopic: `${ROOT}/${SITE}/reply/`.padEnd(257, "x"), to: `${BASE}/res/q` },
  { responseTopic: undefined, to: `${BASE}/res/q` },
])("with response topic $responseTopic the answer goes to $to", async ({ responseTopic, to }) => {
  await using g = await gateway(people.file);
  const correlation = Uint8Array.of(1, 2);
  await g.say(
    "cmd/look",
    plain("q", "look"),
    responseTopic === undefined ? {} : { responseTopic, correlation },
  );
  expect(g.replies.map(({ result }) => result.state)).toEqual(["done"]);
  const isHeeded = to === responseTopic;
  for (const reply of g.replies)
    expect(reply.to).toEqual({ topic: to, ...(isHeeded ? { correlation } : {}) });
});

test("what cannot be understood is answered where an answer was wished, and nowhere else", async () => {
  await using g = await gateway(people.file);
  await g.say("cmd/look", "{");
  expect(g.replies).toEqual([]);
  await g.say("cmd/look", "{", { responseTopic: `${ROOT}/${SITE}/reply/me` });
  expect(g.replies).toMatchObject([{ result: { id: "", state: "refused", code: "bad-json" } }]);
  expect(g.told).toHaveLength(2);
});

test("a topic that is none of this node's is left alone", async () => {
  await using g = await gateway(people.file);
  for (const topic of [
    `${ROOT}/${SITE}/pi9/cmd/look`,
    `${ROOT}/attic/${NODE}/cmd/look`,
    "x",
    `${BASE}/res/q`,
  ])
    await g.say(topic, plain("q", "look"));
  expect([g.ran, g.replies, g.told, g.logged]).toEqual([[], [], [], []]);
});

test("clearing a retained topic is no command", async () => {
  await using g = await gateway(people.file);
  for (const topic of ["cmd/power.off", "set/outlet/1.1", `${ROOT}/${SITE}/all/cmd/look`])
    await g.say(topic, "", { retain: true });
  expect([g.ran, g.replies, g.told]).toEqual([[], [], []]);
});

test.each([
  { topic: "cmd/power/off", code: "wrong-topic" },
  { topic: "set/outlet/1.1/now", code: "wrong-topic" },
  { topic: "set/outlet", code: "bad-args" },
  { topic: "set/", code: "wrong-topic" },
  { topic: "set/identify/0.0", code: "wrong-topic" },
])("$topic is refused as $code", async ({ topic, code }) => {
  await using g = await gateway(people.file);
  await g.say(topic, topic.startsWith("cmd") ? plain("q", "power/off") : "");
  expect(g.told.map(({ code }) => code)).toEqual([code]);
  expect(g.ran).toEqual([]);
});

test("plain text switches what node-local configuration lists, and only that", async () => {
  await using g = await gateway(people.file);
  await g.say("set/outlet/1.1", "ON");
  await g.say("set/outlet/1.1", "OFF");
  await g.say("set/outlet/1.0", "OFF");
  await g.say("set/identify/main", "");
  expect(g.ran.map((one) => one.split(" ")[0])).toEqual(["power.on", "power.off", "identify"]);
  expect(g.told).toMatchObject([{ verb: "power.off", code: "unauthorised" }]);
});

test("a command for all is taken when it is harmless, after a while, and only if it says so itself", async () => {
  await using g = await gateway(people.file);
  const all = `${ROOT}/${SITE}/all/cmd`;
  await g.say(`${all}/look`, plain("a1", "look", {}, { node: "all" }));
  expect(g.ran).toEqual(["look a1"]);
  await g.say(`${all}/look`, plain("a2", "look"));
  expect(last(g.replies)?.result).toMatchObject({ id: "a2", code: "wrong-node" });
  await g.say(`${all}/power.off`, await sealed(people.keys.alice, "a3", "power.off", {}, { node: "all" }));
  expect(last(g.replies)?.result).toMatchObject({ id: "a3", code: "unauthorised" });
  await g.say("cmd/look", plain("a4", "look", {}, { node: "all" }));
  expect(last(g.replies)?.result).toMatchObject({ id: "a4", code: "wrong-node" });
  expect(g.ran).toEqual(["look a1"]);
});

test("no more than sixteen commands for all wait for their moment", async () => {
  jest.useFakeTimers();
  try {
    await using g = await gateway(people.file, { random: () => 0.5 });
    const all = Array.from({ length: 40 }, (_, n) =>
      g.say(`${ROOT}/${SITE}/all/cmd/look`, plain(`a${n}`, "look", {}, { node: "all" })),
    );
    await Promise.all(all.slice(16));
    expect(g.ran).toEqual([]);
    jest.advanceTimersByTime(2499);
    expect(g.ran).toEqual([]);
    jest.advanceTimersByTime(1);
    await Promise.all(all);
    expect(g.ran).toHaveLength(16);
    expect(g.told).toHaveLength(10);
    expect(g.told[0]).toMatchObject({ verb: "look", code: "busy", message: expect.stringContaining("16") });
    expect(g.replies).toHaveLength(16);
  } finally {
    jest.useRealTimers();
  }
});

test("commands for all that wait are forgotten when the agent stops", async () => {
  await using g = await gateway(people.file, { random: () => 1 });
  const waiting = g.say(`${ROOT}/${SITE}/all/cmd/look`, plain("a1", "look", {}, { node: "all" }));
  g.stop();
  await waiting;
  expect(g.ran).toEqual([]);
});

test("what goes wrong inside a command for all is not taken for the end of the agent", async () => {
  await using g = await gateway(people.file);
  await g.say(`${ROOT}/${SITE}/all/cmd/slip`, plain("a1", "slip", {}, { node: "all" }));
  expect(g.logged.filter((line) => line.startsWith("gate.failed"))).toEqual([
    expect.stringContaining("a slip"),
  ]);
});

test.each([
  `cmd/${"x".repeat(60_000)}`,
  `cmd/${"x/".repeat(30_000)}`,
  `set/outlet/${"x".repeat(60_000)}`,
  `set/${"x/".repeat(30_000)}`,
])("what is said of a topic of 60,000 characters is short", async (topic) => {
  await using g = await gateway(people.file);
  for (const retain of [false, true]) {
    await g.say(topic, plain("q", "look"), { retain, responseTopic: `${ROOT}/${SITE}/reply/me` });
    await g.say(topic, "ON", { retain });
  }
  expect(g.told.length).toBeGreaterThan(3);
  for (const said of [...g.told, ...g.replies, ...g.logged])
    expect(JSON.stringify(said).length).toBeLessThan(800);
});

test("without a clock a challenge is used up by the signature that was accepted, not by others", async () => {
  await using g = await gateway(people.file, { isSynced: false });
  const send = async (id: string, challenge: string | undefined) => {
    const more = { iat: 5, exp: 10, ...(challenge === undefined ? {} : { challenge }) };
    await g.say("cmd/power.on", await sealed(people.keys.alice, id, "power.on", {}, more));
    return last(g.replies)?.result.code ?? last(g.replies)?.result.state;
  };
  expect(await send("s1", undefined)).toBe("clock");
  expect(await send("s2", "c0")).toBe("clock");
  await g.say("cmd/power.on", plain("s3", "power.on", {}, { challenge: "c1" }));
  expect(last(g.replies)?.result.code).toBe("unauthorised");
  expect(g.challenge()).toBe("c1");
  expect(await send("s4", "c1")).toBe("done");
  expect(g.challenge()).toBe("c2");
  expect(await send("s5", "c1")).toBe("clock");
});

test("a flood of rubbish is answered, told ten times, and does not turn the audit log over", async () => {
  await using g = await gateway(people.file);
  for (let n = 0; n < 500; n++)
    await g.say("cmd/power.off", n % 2 ? "{" : plain(`f${n}`, "power.off"), {
      responseTopic: `${ROOT}/${SITE}/reply/me`,
    });
  expect(g.replies).toHaveLength(500);
  expect(g.told).toHaveLength(10);
  expect(g.lines()).toBe(60);
});

test("whatever bytes arrive, nothing is switched and nothing is thrown", async () => {
  await using g = await gateway(people.file, { failures: new FailureLimit({ burst: 1e9 }) });
  const random = seeded(7);
  const seeds = [
    plain("z1", "power.off", { outlets: ["1.1"] }),
    await sealed(people.keys.alice, "z2", "power.off", {}, { reason: "ä€𝄞", iat: 1, exp: 2 }),
    "ON",
    '{"p":"","s":"","k":""}',
    '{"id":"a","verb":"power.off","args":{"__proto__":{"outlets":["1.1"]}},"iat":1e999,"exp":-0}',
    `${"[".repeat(8000)}`,
    "\u{feff}{}",
  ].map((seed) => Buffer.from(seed));
  const topics = ["cmd/power.off", "cmd/power.on", "set/outlet/0.0", "set/x/y"];
  for (let n = 0; n < FUZZ; n++) {
    const bytes = Buffer.from(seeds[Math.floor(random() * seeds.length)] ?? "");
    for (let change = 0; change <= random() * 4; change++)
      bytes[Math.floor(random() * bytes.length)] = Math.floor(random() * 256);
    const cut = bytes.subarray(0, random() < 0.2 ? Math.floor(random() * bytes.length) : bytes.length);
    await g.say(topics[Math.floor(random() * topics.length)] ?? "", cut, { retain: random() < 0.05 });
  }
  expect(g.ran).toEqual([]);
  expect(g.logged).toEqual([]);
}, 20_000);

test("of the real table, whatever disrupts needs more than the right to read", () => {
  using own = scratch();
  const { service } = bench(new Rack(1), { dir: own.path });
  const node = nodeCommands({
    machine: new PaperMachine(),
    journal: undefined as never,
    boost: () => undefined,
  });
  const rows = [...service.commands, ...node];
  const tier = (row: Command) =>
    typeof row.tier === "number"
      ? row.tier
      : Math.max(
          ...[{}, { force: true }, { policy: "on" }, { kick: true }].map((args) =>
            Number((row.tier as (a: object) => number)(args)),
          ),
        );
  const disruptive = rows.filter((row) => tier(row) >= 2);
  expect(disruptive.map(({ verb }) => verb).sort()).toEqual([
    "lock.clear",
    "lock.set",
    "power.cycle",
    "power.off",
    "power.on",
    "power.policy",
    "power.reset",
    "power.shutdown",
  ]);
  expect(disruptive.filter(({ role }) => role === "read")).toEqual([]);
  expect(disruptive.filter(({ broadcast }) => broadcast)).toEqual([]);
});

test("a clock that shows 1970 is not believed, whatever the kernel says", () => {
  const machine = Object.assign(new PaperMachine(), { clock: () => ({ synced: true }) });
  jest.useFakeTimers();
  try {
    jest.setSystemTime(0);
    expect(createClock(machine)().synced).toBe(false);
    jest.setSystemTime(new Date("2026-08-24T09:00:00Z"));
    expect(createClock(machine)().synced).toBe(true);
  } finally {
    jest.useRealTimers();
  }
});
