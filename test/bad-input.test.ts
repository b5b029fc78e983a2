/** Everything that can be wrong with what comes in: each has a named code, leaves power as it is, and the node goes on. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { ROOT } from "../agent/messages.ts";
import { HAS_MOSQUITTO, NEEDS_MOSQUITTO } from "./broker.ts";
import { NODE, payload, SITE, sealed, signers } from "./doors.ts";
import { scratch, until } from "./node.ts";
import { sharedNode } from "./shared.ts";

setDefaultTimeout(20_000);

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
afterAll(() => folder[Symbol.dispose]());

const settings = () => ({ commands: { allowed_signers: people.file, unsigned_outlets: ["1.1"] } });

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
  const { agent, boards, person } = sharedNode(folder.path, NODE, settings, async (person) => {
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
  const { boards, person } = sharedNode(folder.path, "pi2", settings);

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
  const { person } = sharedNode(folder.path, "pi3", settings);

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
  const { person } = sharedNode(folder.path, "pi4", () => ({ ...settings(), sim: { clock_synced: false } }));
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
