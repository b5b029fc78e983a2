/**
 * Everything that can be wrong with what comes in or with what the node stands on: each has a named code, leaves power
 * as it is, and the node goes on.
 */
import { afterAll, afterEach, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { spawnSync } from "node:child_process";
import { appendFileSync, mkdirSync, rmSync } from "node:fs";
import { connect, type Socket } from "node:net";
import { join } from "node:path";
import type { CommandResult } from "../agent/commands.ts";
import { ROOT } from "../agent/messages.ts";
import { aedes, HAS_MOSQUITTO, Mosquitto, NEEDS_MOSQUITTO, tcp } from "./broker.ts";
import {
  askSocket,
  Boards,
  NODE,
  OPEN,
  type Person,
  payload,
  place,
  SITE,
  sealed,
  signers,
} from "./doors.ts";
import { type Agent, FRUIT, fruit, scratch, startAgent, until } from "./node.ts";

setDefaultTimeout(20_000);

type Place = Awaited<ReturnType<typeof place>>;

const folder = scratch();
let people: Awaited<ReturnType<typeof signers>>;

beforeAll(async () => {
  people = await signers(folder.path, {
    alice: "roles=read,power outlets=*",
    reader: "roles=read",
    carol: "roles=read,power outlets=1.*",
    stranger: undefined,
  });
});
afterAll(() => {
  if (disk) spawnSync("umount", ["-l", disk]);
  folder[Symbol.dispose]();
});

const commands = () => ({ allowed_signers: people.file, unsigned_outlets: ["1.1"] });

/** The node still answers, and what it was told before is still known. */
async function isWell(agent: Agent): Promise<void> {
  const [answer] = (await askSocket(agent.socket, "lock.list")).slice(-1);
  expect(answer).toMatchObject({ state: "done", result: { locks: [{ outlet: "1.0", reason: "mine" }] } });
}

async function takeLock(agent: Agent): Promise<void> {
  const [answer] = (await askSocket(agent.socket, "lock.set", { outlet: "1.0" }, { reason: "mine" })).slice(
    -1,
  );
  expect(answer?.state).toBe("done");
}

const OFF = { outlets: ["0.0"] };
const now = () => Math.floor(Date.now() / 1000);
const json = (document: unknown) => JSON.stringify(document);
const alice = (...from: Parameters<typeof payload>) => sealed(people.keys.alice, ...from);

/** A command that was signed, and then changed. */
async function tampered(id: string): Promise<string> {
  const envelope = JSON.parse(await alice(id, "power.off", { outlets: ["0.1"] }));
  const bytes = Buffer.from(envelope.p, "base64").toString().replace("0.1", "0.0");
  return json({ ...envelope, p: Buffer.from(bytes).toString("base64") });
}

/** A signature that is good, and was made for something else than commands. */
async function elsewhere(id: string): Promise<string> {
  const { alice } = people.keys;
  if (!alice) throw new Error("no key");
  const message = Buffer.from(json(payload(id, "power.off", OFF)));
  return json({ p: message.toString("base64"), s: await alice.sign("file", message), k: alice.fingerprint });
}

/** One node for a group of tests, with a look after each whether all is as it was. */
function sharedNode(
  node: string,
  settings: Record<string, unknown> = {},
  before: (person: Person) => Promise<void> = async () => undefined,
) {
  let broker: Mosquitto;
  let here: Place;
  let agent: Agent;
  let supplies: string;
  beforeAll(async () => {
    broker = await Mosquitto.start(OPEN);
    here = await place(folder.path, node, broker.port, {
      boards: [0, 1],
      settings: { commands: commands(), ...settings },
    });
    await before(here.person);
    agent = await here.start();
    await here.person.status("online");
    await takeLock(agent);
    ({ supplies } = here.boards);
  });
  afterAll(async () => {
    await agent[Symbol.asyncDispose]();
    await here[Symbol.asyncDispose]();
    await broker[Symbol.asyncDispose]();
  });
  afterEach(async () => {
    expect(here.boards.switched).toEqual([]);
    expect(here.boards.supplies).toBe(supplies);
    await isWell(agent);
  });
  return { agent: () => agent, boards: () => here.boards, person: () => here.person };
}

interface Row {
  what: string;
  code: string;
  /** Below the node's topic; `cmd/power.off` unless said otherwise. */
  path?: string;
  retain?: boolean;
  send: (id: string) => string | Buffer | Promise<string>;
}

/** What is wrong with a command that should switch outlet 0.0 off. */
const COMMANDS: Row[] = [
  { what: "malformed JSON", code: "bad-json", send: () => '{"id":"x","verb":"power.off"' },
  { what: "an empty payload", code: "bad-json", send: () => "" },
  { what: "bytes that are no UTF-8", code: "bad-utf8", send: () => Buffer.from('{"id":"\xff"}', "latin1") },
  {
    what: "more than 16 KiB",
    code: "too-large",
    send: (id) => json(payload(id, "power.off", OFF)).padEnd(16_385),
  },
  { what: "JSON that is no envelope", code: "bad-envelope", send: () => "[]" },
  { what: "null", code: "bad-envelope", send: () => "null" },
  { what: "an envelope without exp", code: "bad-envelope", send: (id) => json({ id, verb: "power.off" }) },
  {
    what: "an id that would be a topic of its own",
    code: "bad-envelope",
    send: () => json(payload("../cmd/x", "power.off", OFF)),
  },
  {
    what: "an id of 65 characters",
    code: "bad-envelope",
    send: () => json(payload("x".repeat(65), "power.off", OFF)),
  },
  {
    what: "a key nobody knows in the envelope",
    code: "bad-envelope",
    send: (id) => json({ ...payload(id, "power.off", OFF), force: true }),
  },
  {
    what: "arguments that are a list",
    code: "bad-envelope",
    send: (id) => json({ ...payload(id, "power.off"), args: ["0.0"] }),
  },
  {
    what: "half a signature",
    code: "bad-envelope",
    send: async (id) => json({ ...JSON.parse(await alice(id, "power.off", OFF)), k: undefined }),
  },
  {
    what: "an unknown verb",
    code: "unknown-verb",
    path: "cmd/power.explode",
    send: (id) => alice(id, "power.explode", OFF),
  },
  {
    what: "a verb that every object has",
    code: "unknown-verb",
    path: "cmd/constructor",
    send: (id) => alice(id, "constructor"),
  },
  {
    what: "an unknown argument",
    code: "bad-args",
    send: (id) => alice(id, "power.off", { ...OFF, focre: true }),
  },
  {
    what: "an argument of the wrong type",
    code: "bad-args",
    send: (id) => alice(id, "power.off", { outlets: "0.0" }),
  },
  {
    what: "an argument a thousand lists deep",
    code: "bad-args",
    send: (id) => alice(id, "power.off", { outlets: JSON.parse(`${"[".repeat(1000)}${"]".repeat(1000)}`) }),
  },
  { what: "no outlet", code: "bad-args", send: (id) => alice(id, "power.off", { outlets: [] }) },
  {
    what: "force without a reason",
    code: "bad-args",
    send: (id) => alice(id, "power.off", { ...OFF, force: true }),
  },
  {
    what: "an unknown outlet",
    code: "unknown-outlet",
    send: (id) => alice(id, "power.off", { outlets: ["9.1"] }),
  },
  { what: "all, once", code: "rule.P19", send: (id) => alice(id, "power.off", { outlets: ["all"] }) },
  {
    what: "a topic of another verb",
    code: "wrong-topic",
    path: "cmd/power.status",
    send: (id) => alice(id, "power.off", OFF),
  },
  {
    what: "a command that has expired",
    code: "expired",
    send: (id) => alice(id, "power.off", OFF, { iat: now() - 300, exp: now() - 240 }),
  },
  {
    what: "a command for longer than five minutes",
    code: "bad-envelope",
    send: (id) => alice(id, "power.off", OFF, { exp: now() + 3600 }),
  },
  {
    what: "a command that expired before it was made",
    code: "bad-envelope",
    send: (id) => alice(id, "power.off", OFF, { exp: now() - 10 }),
  },
  {
    what: "a command from tomorrow",
    code: "clock",
    send: (id) => alice(id, "power.off", OFF, { iat: now() + 86_400, exp: now() + 86_460 }),
  },
  {
    what: "a command for another node, replayed here",
    code: "wrong-node",
    send: (id) => alice(id, "power.off", OFF, { node: "pi9" }),
  },
  {
    what: "a command for another site",
    code: "wrong-site",
    send: (id) => alice(id, "power.off", OFF, { site: "attic" }),
  },
  {
    what: "a command published retained",
    code: "retained",
    retain: true,
    send: (id) => alice(id, "power.off", OFF),
  },
  {
    what: "no signature (downgrade)",
    code: "unauthorised",
    send: (id) => json(payload(id, "power.off", OFF)),
  },
  { what: "a signed command that was changed", code: "unauthorised", send: tampered },
  { what: "a signature made for something else", code: "unauthorised", send: elsewhere },
  {
    what: "an unknown key",
    code: "unauthorised",
    send: (id) => sealed(people.keys.stranger, id, "power.off", OFF),
  },
  {
    what: "a key without the role",
    code: "unauthorised",
    send: (id) => sealed(people.keys.reader, id, "power.off", OFF),
  },
  {
    what: "a key that may not have this outlet",
    code: "unauthorised",
    send: (id) => sealed(people.keys.carol, id, "power.off", OFF),
  },
  {
    what: "a key that may not have all of these outlets",
    code: "unauthorised",
    send: (id) => sealed(people.keys.carol, id, "power.off", { outlets: ["1.0", "0.0"] }),
  },
];

describe.skipIf(!HAS_MOSQUITTO)(`on MQTT 5 ${NEEDS_MOSQUITTO}`, () => {
  const { agent, boards, person } = sharedNode(NODE, {}, async (person) => {
    // Stored on the broker before the node was ever there.
    await person.say("cmd/power.off", await alice("stored", "power.off", OFF), { retain: true });
    await person.say("set/outlet/1.1", "OFF", { retain: true });
  });

  test.each(COMMANDS)("$what is refused as $code", async ({ code, path = "cmd/power.off", retain, send }) => {
    const id = `row-${COMMANDS.findIndex((row) => row.send === send)}`;
    const text = await send(id);
    const answer = await person().ask(path, text, { retain: retain ?? false });
    expect(answer).toMatchObject({ state: code === "expired" ? "expired" : "refused", code });
    expect(answer.message).toBeString();
    // A refused signature says no more than that it was refused.
    if (code === "unauthorised" && answer.message?.includes("signature"))
      expect(answer.message).toBe("signature not accepted");
    if (retain) await person().say(path, "", { retain: true });
  });

  test("a command stored on the broker before is not even heard", async () => {
    await boards().looked();
    expect(person().tap.heard.map(({ topic }) => topic)).not.toContain(`${ROOT}/${SITE}/${NODE}/res/stored`);
    // Had it arrived it would have been refused as retained.
    expect(agent().log()).not.toContain('"verb":"set.outlet"');
  });

  test("the same command twice is a duplicate, and its id with other bytes a replay", async () => {
    const first = await alice("twice", "power.on", OFF);
    expect(await person().ask("cmd/power.on", first)).toMatchObject({ state: "unchanged" });
    expect(await person().ask("cmd/power.on", first)).toMatchObject({
      state: "refused",
      code: "duplicate",
    });
    const other = await alice("twice", "power.off", OFF);
    expect(await person().ask("cmd/power.off", other)).toMatchObject({
      state: "refused",
      code: "replay",
    });
  });

  test("a packet of more than 256 KiB does not reach the node", async () => {
    await person().say("cmd/power.off", Buffer.alloc(300_000, 0x20));
    const body = json(payload("after-large", "power.status"));
    expect(await person().ask("cmd/power.status", body)).toMatchObject({ state: "done" });
    expect(person().tap.texts(`${ROOT}/${SITE}/${NODE}/status`)).toEqual(["online"]);
  });

  test.each([
    { topic: `${ROOT}/${SITE}/${NODE}/set/outlet/1.1`, where: "a topic that nodes obey" },
    { topic: `${ROOT}/attic/reply/me`, where: "another site" },
    { topic: `${ROOT}/${SITE}/replyx/me`, where: "beside the tree of replies" },
    { topic: `${ROOT}/${SITE}/reply/${"x".repeat(300)}`, where: "too long" },
  ])("a response topic $where is not written to: the answer goes to res/<id>", async ({ topic }) => {
    const id = `deputy-${topic.length}`;
    await person().say("cmd/power.status", json(payload(id, "power.status")), {
      properties: { responseTopic: topic },
    });
    expect(await person().final(`${ROOT}/${SITE}/${NODE}/res/${id}`)).toMatchObject({ state: "done" });
    expect(
      person()
        .tap.texts(topic)
        .filter((text) => text.includes(id)),
    ).toEqual([]);
  });

  test("all that was refused stands in an audit log that holds", async () => {
    const answer = await person().ask(
      "cmd/power.off",
      await alice("audited", "power.off", { outlets: ["7.7"] }),
    );
    expect(answer.code).toBe("unknown-outlet");
    const { exit, out } = await agent().cli("audit", "tail", "-n", "100");
    expect(exit).toBe(0);
    expect(out).toMatch(/key:alice +power\.off +\{"outlets":\["7\.7"\]\} +refused unknown-outlet/);
    expect(await agent().cli("audit", "verify")).toMatchObject({ exit: 0 });
  });
});

describe.skipIf(!HAS_MOSQUITTO)(`what nobody waits for, on MQTT 5 ${NEEDS_MOSQUITTO}`, () => {
  const { boards, person } = sharedNode("pi2");

  // Ten refusals are told at once, so there are no more than ten rows.
  test.each<{ what: string; path: string; text: string | Buffer; retain?: boolean; code: string }>([
    { what: "malformed JSON", path: "cmd/power.off", text: "{", code: "bad-json" },
    { what: "an outlet that is not listed", path: "set/outlet/0.0", text: "OFF", code: "unauthorised" },
    { what: "all outlets", path: "set/outlet/all", text: "OFF", code: "unauthorised" },
    { what: "an outlet that is not there", path: "set/outlet/9.9", text: "OFF", code: "unknown-outlet" },
    { what: "neither ON nor OFF", path: "set/outlet/1.1", text: "off", code: "bad-args" },
    { what: "a retained OFF", path: "set/outlet/1.1", text: "OFF", retain: true, code: "retained" },
    { what: "a long text", path: "set/outlet/1.1", text: "OFF".padEnd(65), code: "too-large" },
    { what: "no text", path: "set/outlet/1.1", text: Buffer.from([0xff, 0xfe]), code: "bad-utf8" },
    { what: "a thing nobody can set", path: "set/clock/main", text: "ON", code: "wrong-topic" },
  ])("$what on $path is told as an event with code $code", async ({ path, text, retain, code }) => {
    const before = person().refusals.length;
    await person().say(path, text, { retain: retain ?? false });
    await until("it is told", () => person().refusals.length > before);
    expect(person().refusals.slice(before)).toEqual([code]);
    if (retain) await person().say(path, "", { retain: true });
  });

  test("a topic that no node listens on changes nothing", async () => {
    for (const path of ["cmd/power/off", "cmd", "set/outlet", "set/outlet/1.1/now", "power.off"])
      await person().say(path, "OFF");
    await boards().looked();
  });
});

describe.skipIf(!HAS_MOSQUITTO)(`when signatures are bad, on MQTT 5 ${NEEDS_MOSQUITTO}`, () => {
  const { person } = sharedNode("pi3");

  test("eleven bad signatures in a row are rate-limited, and a good one is not", async () => {
    const codes: unknown[] = [];
    for (let n = 0; n < 12; n++) {
      const text = await sealed(people.keys.stranger, `flood-${n}`, "power.off", OFF, { node: "pi3" });
      codes.push((await person().ask("cmd/power.off", text)).code);
    }
    expect(codes).toEqual([...Array(10).fill("unauthorised"), "rate-limited", "rate-limited"]);
    const good = await alice("after-flood", "power.on", OFF, { node: "pi3" });
    expect(await person().ask("cmd/power.on", good)).toMatchObject({ state: "unchanged" });
  });
});

describe.skipIf(!HAS_MOSQUITTO)(`when the clock is at 1970, on MQTT 5 ${NEEDS_MOSQUITTO}`, () => {
  const { person } = sharedNode("pi4", { sim: { clock_synced: false } });
  /** Made by somebody whose clock is as wrong as the node's. */
  const early = { node: "pi4", iat: 100, exp: 160 };

  test("reading needs no challenge, and nothing that is said carries a time", async () => {
    const text = json(payload("read-1970", "power.status", {}, early));
    const answer = await person().ask("cmd/power.status", text);
    expect(answer).toMatchObject({ state: "done" });
    expect(answer).not.toHaveProperty("ts");
    expect(person().heard("info").at(-1)).toMatchObject({ clock: "unsynced" });
    expect(person().heard("event/agent.started").at(-1)).not.toHaveProperty("ts");
  });

  test("a signed command needs the challenge that stands in info, and each is good for one", async () => {
    const challenge = () => String(person().heard("info").at(-1)?.challenge);
    const send = async (id: string, more: Record<string, unknown>) =>
      person().ask("cmd/power.on", await alice(id, "power.on", OFF, { ...early, ...more }));
    const first = challenge();
    expect(await send("none", {})).toMatchObject({ state: "refused", code: "clock" });
    expect(await send("wrong", { challenge: "AAAAAAAAAAAAAAAAAAAAAA" })).toMatchObject({ code: "clock" });
    expect(await send("right", { challenge: first })).toMatchObject({ state: "unchanged" });
    await until("another challenge", () => challenge() !== first);
    expect(await send("again", { challenge: first })).toMatchObject({ state: "refused", code: "clock" });
    expect(await send("next", { challenge: challenge() })).toMatchObject({ state: "unchanged" });
  });
});

test.concurrent.skipIf(!HAS_MOSQUITTO)(
  `a dead bus is an answer with code bus, an alarm and unknown, and over when it is over ${NEEDS_MOSQUITTO}`,
  async () => {
    await using broker = await Mosquitto.start(OPEN);
    await using here = await place(folder.path, "dark", broker.port, {
      settings: { commands: { allowed_signers: people.file } },
    });
    const { boards, person } = here;
    await using agent = await here.start();
    await until("on", () => person.heard("state/outlet/0.1").at(-1)?.supply === "on");
    boards.stack.fault("dead-bus", true);
    const text = await alice("dark", "power.off", OFF, { node: "dark" });
    const [overMqtt, bySocket] = await Promise.all([
      person.ask("cmd/power.off", text),
      agent.cli("power", "off", "0.1"),
    ]);
    expect(overMqtt).toMatchObject({ state: "failed", code: "bus" });
    expect(bySocket.exit).toBe(6);
    await until("the alarm", () => person.heard("alarm/bus-0").at(-1)?.severity === "critical");
    expect(person.heard("state/outlet/0.0").at(-1)).toMatchObject({ supply: "unknown" });
    boards.stack.fault("dead-bus", false);
    await until("it is over", () => person.tap.texts(`${ROOT}/${SITE}/dark/alarm/bus-0`).at(-1) === "");
    expect(person.heard("state/outlet/0.0").at(-1)).toMatchObject({ supply: "on" });
    expect(boards.switched).toEqual([]);
  },
);

test.concurrent.skipIf(!HAS_MOSQUITTO)(
  `while the broker is gone the node goes on, and loses no event ${NEEDS_MOSQUITTO}`,
  async () => {
    await using broker = await Mosquitto.start(OPEN);
    let isThere = true;
    const connections = new Set<Socket>();
    await using road = await tcp((socket) => {
      const there = isThere ? connect(broker.port, "127.0.0.1") : undefined;
      there?.pipe(socket).pipe(there);
      there?.on("error", () => socket.destroy()).on("close", () => socket.destroy());
      socket.on("close", () => there?.destroy());
      if (there) connections.add(socket);
      else socket.destroy();
    });
    const mqtt = { url: `mqtt://127.0.0.1:${road.port}`, backoff_max_seconds: 1, will_delay_seconds: 0 };
    await using here = await place(folder.path, "gone", broker.port, { settings: { mqtt } });
    const { boards, person } = here;
    await using agent = await here.start();
    await person.status("online");
    isThere = false;
    for (const socket of connections) socket.destroy();
    await person.status("offline");

    await until("it is noticed", () => agent.log().includes("mqtt.down"));
    expect(await agent.cli("power", "status", "0.0")).toMatchObject({ exit: 0 });
    expect(await agent.cli("lock", "0.0", "--reason", "mine")).toMatchObject({ exit: 0 });
    expect(await agent.cli("unlock", "0.0")).toMatchObject({ exit: 0 });
    expect(await agent.cli("lock", "0.1", "--reason", "mine")).toMatchObject({ exit: 0 });
    expect(boards.switched).toEqual([]);

    isThere = true;
    await person.status("online");
    await until("what happened is told", () => person.heard("event/lock.set").length === 2);
    expect(person.heard("event/lock.set")).toMatchObject([
      { outlet: "0.0", buffered: 1 },
      { outlet: "0.1", buffered: 1 },
    ]);
    expect(person.heard("state/lock/0.1").at(-1)).toMatchObject({ reason: "mine" });
    const numbers = person.tap.heard
      .filter(({ topic }) => topic.includes("/gone/event/"))
      .map(({ text }) => JSON.parse(text).seq)
      .sort((a, b) => a - b);
    expect(numbers).toEqual(numbers.map((_, index) => index + 1));
  },
);

test.concurrent.skipIf(!HAS_MOSQUITTO)(
  `a broker that is full is waited for, and the node works meanwhile ${NEEDS_MOSQUITTO}`,
  async () => {
    await using broker = await Mosquitto.start([...OPEN, "max_connections 1"]);
    await using here = await place(folder.path, "full", broker.port);
    await using agent = await here.start();
    await until("it was turned away", () => agent.log().includes('"mqtt.down"'));
    expect(await agent.cli("power", "status", "0.0")).toMatchObject({ exit: 0 });
    expect(agent.log()).not.toContain("mqtt.connected");
    await here.person[Symbol.asyncDispose]();
    await until("it got in", () => agent.log().includes('"mqtt.connected"'));
    expect(here.boards.switched).toEqual([]);
  },
);

test.concurrent("on MQTT 3.1.1 a retained command is done once at most, and what was stored before never", async () => {
  await using broker = await aedes();
  await using here = await place(folder.path, "old", broker.port, {
    version: 4,
    settings: { commands: { allowed_signers: people.file } },
  });
  const { boards, person } = here;
  await person.say("cmd/power.off", await alice("stored", "power.off", OFF, { node: "old" }), {
    retain: true,
  });
  await using agent = await here.start();
  await until("it is refused", () => person.refusals.length > 0);
  expect(person.refusals).toEqual(["retained"]);
  await person.say("cmd/power.off", "", { retain: true });

  // Published while the node listens it cannot be told from a good one: 3.1.1 does not say.
  const text = json(payload("live", "power.identify", { outlets: ["0.0"] }, { node: "old" }));
  await person.say("cmd/power.identify", text, { retain: true });
  expect(await person.final(`${ROOT}/${SITE}/old/res/live`)).toMatchObject({ state: "done" });
  // A third time within a minute would look like a second node with this name.
  for (const times of [1, 2]) {
    const before = person.refusals.length;
    const connections = agent.log().split('"mqtt.connected"').length;
    broker.drop("fruit-old");
    await until(`reconnected ${times}`, () => agent.log().split('"mqtt.connected"').length > connections);
    await until("it is refused", () => person.refusals.length > before);
    expect(person.refusals.slice(before)).toEqual(["retained"]);
  }
  await person.say("cmd/power.identify", text);
  await until("the same unretained", () => person.refusals.at(-1) === "duplicate");
  expect(boards.said.filter((what) => what === "ledsOn 0")).toHaveLength(1);
  expect(boards.switched).toEqual([]);
});

/** Starts the node on files that cannot grow beyond a few lines; the signal that says so is ignored, as a service does. */
const CRAMPED = {
  ...FRUIT,
  command: ["sh", "-c", 'trap "" XFSZ; ulimit -f 6; exec "$@"', "sh", ...FRUIT.command],
};

/** Harmless commands until one cannot be recorded. */
async function fillUp(agent: Agent): Promise<CommandResult> {
  for (let n = 0; n < 100; n++) {
    const [answer] = (await askSocket(agent.socket, "power.identify", { outlets: ["0.0"], on: false })).slice(
      -1,
    );
    if (answer && answer.state !== "done") return answer;
  }
  throw new Error("a hundred commands were recorded");
}

test.concurrent("what cannot be recorded in the audit log is not done", async () => {
  const own = join(folder.path, "cramped");
  mkdirSync(own);
  using boards = await Boards.serve(own);
  await using agent = await startAgent(own, { power: boards.power }, { executable: CRAMPED });
  expect(await fillUp(agent)).toMatchObject({ state: "refused", code: "audit" });
  const off = await agent.cli("power", "off", "0.0", "--force", "--reason", "test");
  expect(off.exit).not.toBe(0);
  expect(off.err).toContain("the audit log cannot be written: EFBIG");
  expect(boards.switched).toEqual([]);
  expect(await agent.cli("power", "status", "0.0")).toMatchObject({ exit: 0 });
  expect(await agent.cli("audit", "verify")).toMatchObject({ exit: 0 });
});

/** A file system of 128 KiB, where this user may mount one. */
function tinyDisk(): string | undefined {
  const path = join(folder.path, "disk");
  mkdirSync(path);
  const { status } = spawnSync("mount", ["-t", "tmpfs", "-o", "size=128k", "tmpfs", path]);
  return status === 0 ? path : undefined;
}
const disk = tinyDisk();

test.concurrent.skipIf(!disk)(
  "on a full disk nothing is switched, and as soon as there is room it is again [needs root, to mount a tmpfs]",
  async () => {
    const own = join(folder.path, "full-disk");
    mkdirSync(own);
    using boards = await Boards.serve(own);
    await using agent = await startAgent(own, { power: boards.power, data_dir: disk });
    const filler = join(String(disk), "filler");
    expect(() => {
      for (;;) appendFileSync(filler, Buffer.alloc(4096));
    }).toThrow("ENOSPC");
    // Which of the two records has the last free bytes of a block is the disk's business.
    expect(await fillUp(agent)).toMatchObject({
      state: "refused",
      code: expect.stringMatching(/^(audit|disk)$/),
    });
    expect((await agent.cli("power", "off", "0.0", "--force", "--reason", "test")).err).toContain("ENOSPC");
    expect(boards.switched).toEqual([]);
    rmSync(filler);
    const off = await agent.cli("power", "off", "0.0", "--force", "--reason", "test");
    expect(off).toMatchObject({ exit: 0 });
    expect(boards.switched).toEqual(["forceOff 0.0"]);
    expect(await fruit(["audit", "verify", "--dir", join(String(disk), "audit")])).toMatchObject({ exit: 0 });
  },
);
