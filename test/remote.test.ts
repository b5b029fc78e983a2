/** The command line over MQTT, as somebody at home uses it. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { spawnSync } from "node:child_process";
import { chmodSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { ROOT } from "../agent/messages.ts";
import { aedes, freePort, HAS_MOSQUITTO, Mosquitto, NEEDS_MOSQUITTO, Tap } from "./broker.ts";
import { OPEN, Person, payload, place, SITE } from "./doors.ts";
import { type Agent, fruit, needs, scratch } from "./node.ts";

setDefaultTimeout(20_000);

type Place = Awaited<ReturnType<typeof place>>;

const folder = scratch();
const key = join(folder.path, "id_ed25519");
const signersFile = join(folder.path, "allowed_signers");
const { isSkipped: noKeygen, title: withKeygen } = needs("", {
  name: "ssh-keygen",
  install: "openssh-client",
});

beforeAll(() => {
  if (noKeygen) return;
  spawnSync("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-C", "tech@home", "-f", key]);
  const [type, base64] = readFileSync(`${key}.pub`, "utf8").split(" ");
  writeFileSync(
    signersFile,
    `tech@home namespaces="fruit-cmd@v1" ${type} ${base64} roles=read,power outlets=*\n`,
  );
});
afterAll(() => folder[Symbol.dispose]());

/** The flags that lead to a node. */
const to = (port: number, node: string, ...more: string[]) => [
  "--broker",
  `mqtt://127.0.0.1:${port}`,
  "--site",
  SITE,
  "--node",
  node,
  ...more,
];

/** A running node on a broker. */
function node(name: string, start: () => Promise<{ port: number } & AsyncDisposable>, settings = {}) {
  let broker: { port: number } & AsyncDisposable;
  let here: Place;
  let agent: Agent;
  beforeAll(async () => {
    broker = await start();
    const version = name === "old" ? 4 : 5;
    here = await place(folder.path, name, broker.port, {
      version,
      settings: { commands: { allowed_signers: signersFile }, ...settings },
    });
    agent = await here.start();
    await here.person.status("online");
  });
  afterAll(async () => {
    await agent[Symbol.asyncDispose]();
    await here[Symbol.asyncDispose]();
    await broker[Symbol.asyncDispose]();
  });
  return {
    boards: () => here.boards,
    agent: () => agent,
    person: () => here.person,
    port: () => broker.port,
    cli: (...words: string[]) => fruit([...words, ...to(broker.port, name)]),
  };
}

const mosquitto = () => Mosquitto.start(OPEN);

for (const { version, name, start, isSkipped } of [
  { version: `MQTT 5 ${NEEDS_MOSQUITTO}`, name: "new", start: mosquitto, isSkipped: !HAS_MOSQUITTO },
  { version: "MQTT 3.1.1 (aedes)", name: "old", start: aedes, isSkipped: false },
])
  describe.skipIf(isSkipped)(`over ${version}`, () => {
    const n = node(name, start);

    test.skipIf(noKeygen)(
      `a command signed with ssh-keygen's key is done, and the audit log says by whom${withKeygen}`,
      async () => {
        const { boards } = n;
        const off = await n.cli("power", "off", "0.1", "--force", "--reason", "from home", "--key", key);
        expect(off).toEqual({
          exit: 0,
          out: expect.stringMatching(/^0\.1: power cut \.\.\. confirmed by board/),
          err: "",
        });
        expect(boards().supplies).toBe("0.0 on, 0.1 off");
        const { out } = await n.agent().cli("audit", "tail");
        expect(out).toMatch(/key:tech@home +power\.off .*from home/);
      },
    );

    test("reading needs no key", async () => {
      const { exit, out, err } = await n.cli("power", "status");
      expect({ exit, err }).toEqual({ exit: 0, err: "" });
      expect(out).toMatch(/^OUTLET +NAME .*\n0\.0 /m);
      const json = await n.cli("power", "status", "0.1", "--json");
      expect(JSON.parse(json.out)).toMatchObject({ schema: "fruit.power.status/1" });
    });

    test("switching without a key is refused with exit 7, and nothing happens", async () => {
      const before = n.boards().switched.length;
      const { exit, err } = await n.cli("power", "off", "0.0", "--force", "--reason", "x");
      expect({ exit, err }).toEqual({ exit: 7, err: expect.stringContaining('the role "power" is needed') });
      expect(n.boards().switched).toHaveLength(before);
    });

    test.concurrent("a node that nobody knows is said within seconds, exit 6", async () => {
      const { exit, err } = await fruit(["power", "status", ...to(n.port(), "pi9")]);
      expect({ exit, err }).toEqual({
        exit: 6,
        err: `fruit: mqtt://127.0.0.1:${n.port()}: no node "pi9" at site "${SITE}" is known there (or this user may not read it)\n`,
      });
    });

    test("a node that is offline is said at once, exit 6", async () => {
      for (const [topic, text] of [
        ["status", "offline"],
        ["info", "{}"],
      ] as const)
        await n.person().say(`${ROOT}/${SITE}/away/${topic}`, text, { retain: true });
      const { exit, err } = await fruit(["power", "status", ...to(n.port(), "away")]);
      expect({ exit, err }).toEqual({ exit: 6, err: "fruit: node away is offline\n" });
    });

    test("what is no result of the node is not taken for one", async () => {
      const { person } = n;
      for (const [topic, text] of [
        ["status", "online"],
        ["info", '{"clock":"synced"}'],
      ] as const)
        await person().say(`${ROOT}/${SITE}/parrot/${topic}`, text, { retain: true });
      const answer = async (topic: string, text: string) => {
        const [, , , to, kind, verb] = topic.split("/");
        if (to !== "parrot" || kind !== "cmd") return;
        const { id } = JSON.parse(text);
        const done = { id, verb, state: "done", result: { jobs: [] } };
        for (const said of ["", "5", "null", "nonsense", "[]", '{"state":"done"}', JSON.stringify(done)])
          await person().say(`${ROOT}/${SITE}/parrot/res/${id}`, said);
      };
      person().tap.client.on("message", (topic, bytes) => void answer(topic, String(bytes)));
      const { exit, out, err } = await fruit(["job", "get", ...to(n.port(), "parrot")]);
      expect({ exit, out, err }).toEqual({ exit: 0, out: expect.stringMatching(/^ID +VERB/), err: "" });
    });
  });

describe.skipIf(!HAS_MOSQUITTO)(`a node without a clock ${NEEDS_MOSQUITTO}`, () => {
  const n = node("lost", mosquitto, { sim: { clock_synced: false } });

  test.skipIf(noKeygen)(
    `is sent its challenge without being asked for it, each time the new one${withKeygen}`,
    async () => {
      expect(n.person().heard("info").at(-1)).toMatchObject({ clock: "unsynced" });
      for (const _ of [1, 2, 3]) {
        const { exit, out } = await n.cli("power", "on", "0.0", "--key", key);
        expect({ exit, out }).toEqual({ exit: 0, out: "0.0: already on (unchanged)\n" });
      }
    },
  );

  const rr = needs("mosquitto_rr gets its answer on its response topic", {
    name: "mosquitto_rr",
    install: "mosquitto-clients",
  });
  test.skipIf(rr.isSkipped)(rr.title, async () => {
    const body = JSON.stringify(payload("rr-1", "power.status", { outlets: ["0.0"] }, { node: "lost" }));
    const words = [
      "-p",
      String(n.port()),
      "-t",
      `${ROOT}/${SITE}/lost/cmd/power.status`,
      "-e",
      `${ROOT}/${SITE}/reply/rr`,
      "-m",
      body,
      "-W",
      "5",
    ];
    const asking = Bun.spawn(["mosquitto_rr", ...words], { stdout: "pipe" });
    // It leaves with the first message.
    expect(JSON.parse(await new Response(asking.stdout).text())).toMatchObject({
      id: "rr-1",
      state: "done",
      result: { outlets: [{ outlet: "0.0", supply: "on" }] },
    });
  });
});

test.concurrent.skipIf(!HAS_MOSQUITTO)(
  `a wrong password is exit 7, the right one works ${NEEDS_MOSQUITTO}`,
  async () => {
    using own = scratch();
    const passwords = join(own.path, "passwords");
    expect(spawnSync("mosquitto_passwd", ["-b", "-c", passwords, "tech", "right"]).status).toBe(0);
    chmodSync(passwords, 0o600);
    await using broker = await Mosquitto.start(["allow_anonymous false", `password_file ${passwords}`]);
    const ask = (password: string) =>
      fruit([
        "job",
        "get",
        ...to(broker.port, "pi1", "--user", "tech", "--password-file", own.file("password", `${password}\n`)),
      ]);
    const wrong = await ask("wrong");
    expect(wrong.exit).toBe(7);
    expect(wrong.err).toMatch(/^fruit: 127\.0\.0\.1:\d+: refused by the broker: .*authori[sz]ed/i);
    await using tap = await Tap.at(broker.port, { username: "tech", password: "right" });
    for (const [kind, text] of [
      ["status", "offline"],
      ["info", "{}"],
    ] as const)
      await tap.client.publishAsync(`${ROOT}/${SITE}/pi1/${kind}`, text, { qos: 1, retain: true });
    // It got in, and is told what it asked for.
    expect(await ask("right")).toMatchObject({ exit: 6, err: "fruit: node pi1 is offline\n" });
  },
);

test.skipIf(!HAS_MOSQUITTO)(
  `a broker that dies after the command was sent leaves it unconfirmed, exit 5 ${NEEDS_MOSQUITTO}`,
  async () => {
    await using broker = await mosquitto();
    await using person = await Person.at(broker.port);
    for (const [topic, text] of [
      ["status", "online"],
      ["info", "{}"],
    ] as const)
      await person.say(topic, text, { retain: true });
    person.tap.client.on("message", (topic) => {
      if (topic.includes("/cmd/")) void broker.go();
    });
    const door = to(broker.port, "pi1");
    const { exit, err } = await fruit(["identify", ...door]);
    expect({ exit, err: err.replace(/[0-9a-f-]{36}/, "ID") }).toEqual({
      exit: 5,
      err: expect.stringMatching(
        new RegExp(`what became of the command is not known, see 'fruit job get ID ${door.join(" ")}'\\n$`),
      ),
    });
  },
);

test("no broker there is exit 6, and says where it looked", async () => {
  const port = await freePort();
  const { exit, err } = await fruit(["power", "status", ...to(port, "pi1")]);
  expect({ exit, err }).toEqual({ exit: 6, err: expect.stringContaining(`127.0.0.1:${port}`) });
  expect(err).not.toContain("    at ");
});

test.each([
  {
    what: "a broker without a site",
    words: ["--broker", "mqtt://x", "--node", "pi1"],
    exit: 2,
    says: "--broker needs --site too",
  },
  {
    what: "a broker without a node",
    words: ["--broker", "mqtt://x", "--site", "lab"],
    exit: 2,
    says: "--broker needs --node too",
  },
  {
    what: "a broker and nothing else",
    words: ["--broker", "mqtt://x"],
    exit: 2,
    says: "--broker needs --site and --node too",
  },
  {
    what: "a CA without TLS, and a certificate without its key",
    words: [...to(1, "pi1"), "--ca", "ca.pem", "--cert", "/c.pem"],
    exit: 2,
    says: "--cert, --tls-key: one without the other",
  },
  { what: "a flag without a value", words: ["--broker"], exit: 2, says: "--broker needs a value" },
  {
    what: "a broker that is no URL",
    words: ["--broker", "x", "--site", "lab", "--node", "pi1"],
    exit: 2,
    says: 'power status: --broker: "x": expected mqtt://host[:port]',
  },
  {
    what: "a site that is a topic",
    words: ["--broker", "mqtt://x", "--site", "lab/#", "--node", "pi1"],
    exit: 2,
    says: 'power status: --site: "lab/#" is no site',
  },
  {
    what: "a key that is not there",
    words: [...to(1, "pi1"), "--key", "/none"],
    exit: 2,
    says: "/none: the key cannot be read",
  },
])("$what is exit $exit", async ({ words, exit, says }) => {
  const run = await fruit(["power", "status", ...words]);
  expect({ exit: run.exit, err: run.err }).toEqual({ exit, err: expect.stringContaining(says) });
  expect(run.err).not.toContain("    at ");
});

test("the environment may name the door, and --socket decides over it", async () => {
  const port = await freePort();
  const env = { FRUIT_BROKER: `mqtt://127.0.0.1:${port}`, FRUIT_SITE: "lab", FRUIT_NODE: "pi1" };
  expect((await fruit(["job", "get"], { env })).err).toContain(`127.0.0.1:${port}`);
  const bySocket = await fruit(["job", "get", "--socket", "/none/fruit.sock"], { env });
  expect(bySocket).toMatchObject({
    exit: 6,
    err: expect.stringContaining("nobody answers on /none/fruit.sock"),
  });
});
