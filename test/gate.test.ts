import { afterAll, beforeAll, expect, jest, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import * as v from "valibot";
import { Audit } from "../agent/audit.ts";
import { createClock } from "../agent/clock.ts";
import { type Command, type CommandResult, command } from "../agent/commands.ts";
import { Dispatcher } from "../agent/dispatch.ts";
import { createGate, type ReplyTo } from "../agent/gate.ts";
import { Journal } from "../agent/journal.ts";
import { ROOT } from "../agent/messages.ts";
import { nodeCommands } from "../agent/node.ts";
import { FailureLimit } from "../agent/sign/limit.ts";
import { parseSigners } from "../agent/sign/signers.ts";
import type { OutletId } from "../hal/ports.ts";
import { NODE, payload, SITE, sealed, signers } from "./doors.ts";
import { seeded } from "./fakes.ts";
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

const base = `${ROOT}/${SITE}/${NODE}`;

/** A gate before a small table, with all that it says. */
async function gateway(options: { isSynced?: boolean; random?: () => number; failures?: FailureLimit } = {}) {
  const { isSynced = true, random = () => 0, failures = new FailureLimit() } = options;
  const own = scratch();
  const journal = await Journal.open(join(own.path, "journal"), {
    nowSeconds: () => 0,
    log: () => undefined,
  });
  const audit = await Audit.open(join(own.path, "audit"), { boot: "b", clock: () => "synced" });
  const stop = new AbortController();
  const ran: string[] = [];
  const replies: { to: ReplyTo; result: CommandResult }[] = [];
  const told: Record<string, unknown>[] = [];
  const logged: string[] = [];
  const row = (verb: string, more: Partial<Command>) =>
    command({
      verb,
      summary: verb,
      tier: 0,
      role: "read",
      args: v.strictObject({ outlets: v.optional(v.array(v.string()), []) }),
      outlets: ({ outlets }) => outlets as OutletId[],
      run: async ({ id }) => {
        ran.push(`${verb} ${id}`);
        return { state: "done" };
      },
      ...more,
    });
  const clock = () => ({ synced: isSynced });
  const dispatcher = new Dispatcher({
    table: [
      row("look", { broadcast: true }),
      row("identify", { tier: 1, broadcast: true }),
      row("power.on", { tier: 2, role: "power" }),
      row("power.off", { tier: 2, role: "power" }),
    ],
    journal,
    audit,
    refusalLimit: new FailureLimit({ burst: 60, secondsEach: 10 }),
    clock,
    log: () => undefined,
    signal: stop.signal,
  });
  let challenge = 1;
  const allowed = parseSigners(readFileSync(people.file, "utf8")).signers;
  const gate = createGate({
    site: SITE,
    node: NODE,
    dispatcher,
    signers: { find: (fingerprint) => allowed.find((signer) => signer.fingerprint === fingerprint) },
    failures,
    refusals: new FailureLimit(),
    clock,
    challenge: { current: () => `c${challenge}`, renew: () => void challenge++ },
    unsignedOutlets: new Set(["1.1"]),
    reply: (to, result) => void replies.push({ to, result }),
    tell: (type, facts) => void told.push({ type, ...facts }),
    log: (_, what, fields) => void logged.push(`${what} ${JSON.stringify(fields)}`),
    signal: stop.signal,
    random,
  });
  const say = (topic: string, text: string | Uint8Array, more: Partial<Parameters<typeof gate>[0]> = {}) =>
    gate({
      topic: topic.startsWith(ROOT) ? topic : `${base}/${topic}`,
      payload: typeof text === "string" ? Buffer.from(text) : text,
      retain: false,
      duplicate: false,
      ...more,
    });
  return {
    say,
    ran,
    replies,
    told,
    logged,
    challenge: () => `c${challenge}`,
    lines: () => readFileSync(join(own.path, "audit/audit.jsonl"), "utf8").split("\n").length - 1,
    stop: () => stop.abort(),
    async [Symbol.asyncDispose]() {
      stop.abort();
      await dispatcher.idle();
      await journal.close();
      await audit.close();
      own[Symbol.dispose]();
    },
  };
}

const text = (...from: Parameters<typeof payload>) => JSON.stringify(payload(...from));
const last = <T>(all: readonly T[]) => all.at(-1);

test.each([
  { responseTopic: `${ROOT}/${SITE}/reply/me`, to: `${ROOT}/${SITE}/reply/me` },
  { responseTopic: `${ROOT}/${SITE}/reply/me/1`, to: `${ROOT}/${SITE}/reply/me/1` },
  { responseTopic: `${ROOT}/attic/reply/me`, to: `${base}/res/q` },
  { responseTopic: `${ROOT}/${SITE}/reply`, to: `${base}/res/q` },
  { responseTopic: `${ROOT}/${SITE}/${NODE}/cmd/power.off`, to: `${base}/res/q` },
  { responseTopic: `${ROOT}/${SITE}/reply/+`, to: `${base}/res/q` },
  { responseTopic: `${ROOT}/${SITE}/reply/#`, to: `${base}/res/q` },
  { responseTopic: `${ROOT}/${SITE}/reply/a\0b`, to: `${base}/res/q` },
  { responseTopic: `${ROOT}/${SITE}/reply/`.padEnd(257, "x"), to: `${base}/res/q` },
  { responseTopic: undefined, to: `${base}/res/q` },
])("with response topic $responseTopic the answer goes to $to", async ({ responseTopic, to }) => {
  await using g = await gateway();
  const correlation = Uint8Array.of(1, 2);
  await g.say(
    "cmd/look",
    text("q", "look"),
    responseTopic === undefined ? {} : { responseTopic, correlation },
  );
  expect(g.replies.map(({ result }) => result.state)).toEqual(["done"]);
  const isHeeded = to === responseTopic;
  for (const reply of g.replies)
    expect(reply.to).toEqual({ topic: to, ...(isHeeded ? { correlation } : {}) });
});

test("what cannot be understood is answered where an answer was wished, and nowhere else", async () => {
  await using g = await gateway();
  await g.say("cmd/look", "{");
  expect(g.replies).toEqual([]);
  await g.say("cmd/look", "{", { responseTopic: `${ROOT}/${SITE}/reply/me` });
  expect(g.replies).toMatchObject([{ result: { id: "", state: "refused", code: "bad-json" } }]);
  expect(g.told).toHaveLength(2);
});

test("a topic that is none of this node's is left alone", async () => {
  await using g = await gateway();
  for (const topic of [
    `${ROOT}/${SITE}/pi9/cmd/look`,
    `${ROOT}/attic/${NODE}/cmd/look`,
    "x",
    `${base}/res/q`,
  ])
    await g.say(topic, text("q", "look"));
  expect([g.ran, g.replies, g.told, g.logged]).toEqual([[], [], [], []]);
});

test("clearing a retained topic is no command", async () => {
  await using g = await gateway();
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
  await using g = await gateway();
  await g.say(topic, topic.startsWith("cmd") ? text("q", "power/off") : "");
  expect(g.told.map(({ code }) => code)).toEqual([code]);
  expect(g.ran).toEqual([]);
});

test("plain text switches what node-local configuration lists, and only that", async () => {
  await using g = await gateway();
  await g.say("set/outlet/1.1", "ON");
  await g.say("set/outlet/1.1", "OFF");
  await g.say("set/outlet/1.0", "OFF");
  await g.say("set/identify/main", "");
  expect(g.ran.map((one) => one.split(" ")[0])).toEqual(["power.on", "power.off", "identify"]);
  expect(g.told).toMatchObject([{ verb: "power.off", code: "unauthorised" }]);
});

test("a command for all is taken when it is harmless, after a while, and only if it says so itself", async () => {
  await using g = await gateway();
  const all = `${ROOT}/${SITE}/all/cmd`;
  await g.say(`${all}/look`, text("a1", "look", {}, { node: "all" }));
  expect(g.ran).toEqual(["look a1"]);
  await g.say(`${all}/look`, text("a2", "look"));
  expect(last(g.replies)?.result).toMatchObject({ id: "a2", code: "wrong-node" });
  await g.say(`${all}/power.off`, await sealed(people.keys.alice, "a3", "power.off", {}, { node: "all" }));
  expect(last(g.replies)?.result).toMatchObject({ id: "a3", code: "unauthorised" });
  await g.say("cmd/look", text("a4", "look", {}, { node: "all" }));
  expect(last(g.replies)?.result).toMatchObject({ id: "a4", code: "wrong-node" });
  expect(g.ran).toEqual(["look a1"]);
});

test("no more than sixteen commands for all wait for their moment", async () => {
  jest.useFakeTimers();
  try {
    await using g = await gateway({ random: () => 0.5 });
    const all = Array.from({ length: 40 }, (_, n) =>
      g.say(`${ROOT}/${SITE}/all/cmd/look`, text(`a${n}`, "look", {}, { node: "all" })),
    );
    await Promise.all(all.slice(16));
    expect(g.ran).toEqual([]);
    jest.advanceTimersByTime(2499);
    expect(g.ran).toEqual([]);
    jest.advanceTimersByTime(1);
    await Promise.all(all);
    expect(g.ran).toHaveLength(16);
  } finally {
    jest.useRealTimers();
  }
});

test("commands for all that wait are forgotten when the agent stops", async () => {
  await using g = await gateway({ random: () => 1 });
  const waiting = g.say(`${ROOT}/${SITE}/all/cmd/look`, text("a1", "look", {}, { node: "all" }));
  g.stop();
  await waiting;
  expect(g.ran).toEqual([]);
});

test("without a clock a challenge is used up by the signature that was accepted, not by others", async () => {
  await using g = await gateway({ isSynced: false });
  const send = async (id: string, challenge: string | undefined) => {
    const more = { iat: 5, exp: 10, ...(challenge === undefined ? {} : { challenge }) };
    await g.say("cmd/power.on", await sealed(people.keys.alice, id, "power.on", {}, more));
    return last(g.replies)?.result.code ?? last(g.replies)?.result.state;
  };
  expect(await send("s1", undefined)).toBe("clock");
  expect(await send("s2", "c0")).toBe("clock");
  await g.say("cmd/power.on", text("s3", "power.on", {}, { challenge: "c1" }));
  expect(last(g.replies)?.result.code).toBe("unauthorised");
  expect(g.challenge()).toBe("c1");
  expect(await send("s4", "c1")).toBe("done");
  expect(g.challenge()).toBe("c2");
  expect(await send("s5", "c1")).toBe("clock");
});

test("a flood of rubbish is answered, told ten times, and does not turn the audit log over", async () => {
  await using g = await gateway();
  for (let n = 0; n < 500; n++)
    await g.say("cmd/power.off", n % 2 ? "{" : text(`f${n}`, "power.off"), {
      responseTopic: `${ROOT}/${SITE}/reply/me`,
    });
  expect(g.replies).toHaveLength(500);
  expect(g.told).toHaveLength(10);
  expect(g.lines()).toBe(60);
});

test("whatever bytes arrive, nothing is switched and nothing is thrown", async () => {
  await using g = await gateway({ failures: new FailureLimit({ burst: 1e9 }) });
  const random = seeded(7);
  const seeds = [
    text("z1", "power.off", { outlets: ["1.1"] }),
    await sealed(people.keys.alice, "z2", "power.off", {}, { reason: "ä€𝄞" }),
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
