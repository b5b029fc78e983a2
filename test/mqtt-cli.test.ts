import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { run } from "../agent/cli.ts";
import { aedes, freePort, HAS_MOSQUITTO, Mosquitto, NEEDS_MOSQUITTO, Node, Tap, tcp } from "./broker.ts";

const dir = mkdtempSync(join(tmpdir(), "fruit-mqtt-cli-"));
afterAll(() => rmSync(dir, { recursive: true, force: true }));

/** Runs `fruit …` with a configuration for a broker on loopback. */
async function fruit(words: string, port: number, more: Record<string, unknown> = {}) {
  const file = join(dir, `${crypto.randomUUID()}.json`);
  const url = `mqtt://127.0.0.1:${port}`;
  const mqtt = { url, connect_timeout_seconds: 1, ...more };
  const outlets = {
    power: { buses: [{ driver: "sim", boards: [0] }] },
    commands: { unsigned_outlets: ["0.1"] },
  };
  writeFileSync(file, JSON.stringify({ site: "lab", node: "pi1", mqtt, ...outlets }));
  let out = "";
  let err = "";
  const exit = await run(words.split(" "), {
    out: (text) => {
      out += text;
    },
    err: (text) => {
      err += text;
    },
    env: { FRUIT_CONFIG: file },
    isTerminal: false,
    stdin: async () => new Uint8Array(),
    signal: new AbortController().signal,
  });
  return { exit, out, err };
}

describe.skipIf(!HAS_MOSQUITTO)(`at a Mosquitto with the shipped ACL file ${NEEDS_MOSQUITTO}`, () => {
  const start = () =>
    Mosquitto.start((at) => {
      const acl = readFileSync(join(import.meta.dir, "../image/site/mosquitto.acl"), "utf8");
      writeFileSync(join(at, "acl"), acl.replaceAll("/SITE", "/lab"), { mode: 0o600 });
      return ["allow_anonymous true", `acl_file ${join(at, "acl")}`];
    });

  test("mqtt test goes step by step to the shut door, and is content", async () => {
    await using broker = await start();
    const { exit, out } = await fruit("mqtt test", broker.port, { username: "pi1" });
    expect(out.replaceAll(String(broker.port), "PORT")).toMatchInlineSnapshot(`
      "ok    resolve   127.0.0.1
      ok    tcp       127.0.0.1:PORT answers
      ok    mqtt      connected as pi1, MQTT 5
      ok    publish   fruit/v1/lab/pi1/test/main: written and read back
      ok    acl       fruit/v1/lab/not-pi1/test/main: Publish error: Not authorized, as it should be
      "
    `);
    expect(exit).toBe(0);
  });

  test("mqtt test fails where the node may not write its own topics", async () => {
    await using broker = await start();
    const { exit, out } = await fruit("mqtt test", broker.port, { username: "pi2" });
    expect(out).toMatch(/^FAIL {2}publish .*fruit\/v1\/lab\/pi1\/test\/main: /m);
    expect(exit).toBe(1);
  });

  test("mqtt forget clears what the node has said and its discovery, with the node's own rights", async () => {
    await using broker = await start();
    const url = `mqtt://127.0.0.1:${broker.port}`;
    {
      await using node = new Node({ url, username: "pi1" });
      node.say("alarm/bus-0", "{}", { retain: true, class: "alarm" });
      node.session.publish({
        topic: "homeassistant/device/pi1/node/config",
        payload: "{}",
        qos: 1,
        retain: true,
        class: "state",
      });
      await node.online();
      const refused = await fruit("mqtt forget", broker.port, { username: "pi1" });
      expect(refused).toMatchObject({ exit: 4, out: expect.stringContaining("pi1 is online") });
    }
    const { exit, out } = await fruit("mqtt forget --json", broker.port, { username: "pi1" });
    expect(exit).toBe(0);
    expect(JSON.parse(out).steps.map(({ message }: { message: string }) => message)).toEqual([
      "fruit/v1/lab/pi1/alarm/bus-0",
      "fruit/v1/lab/pi1/status",
      "homeassistant/device/pi1/node/config",
      "3 retained topics of pi1",
    ]);
    const again = await fruit("mqtt forget", broker.port, { username: "pi1" });
    expect(again.out).toBe("ok    forget    0 retained topics of pi1\n");
  });
});

test("mqtt test finds a broker that lets every node write for every other", async () => {
  await using broker = await aedes();
  const { exit, out } = await fruit("mqtt test", broker.port);
  expect(out).toMatch(/^ok {4}mqtt .*MQTT 3\.1\.1$/m);
  expect(out).toMatch(/^FAIL {2}acl .*not-pi1/m);
  expect(exit).toBe(1);
});

test("mqtt forget --force clears a node that is online; other nodes keep theirs", async () => {
  await using broker = await aedes();
  await using tap = await Tap.at(broker.port, { filter: "none" });
  for (const node of ["pi1", "pi2"])
    await tap.client.publishAsync(`fruit/v1/lab/${node}/status`, "online", { qos: 1, retain: true });
  expect((await fruit("mqtt forget", broker.port)).exit).toBe(4);
  expect((await fruit("mqtt forget --force", broker.port)).exit).toBe(0);
  await using late = await Tap.at(broker.port, { filter: "fruit/#" });
  await late.client.publishAsync("fruit/end", "end", { qos: 1 });
  expect(late.heard.filter(({ retain }) => retain).map(({ topic }) => topic)).toEqual([
    "fruit/v1/lab/pi2/status",
  ]);
});

test.each([
  { what: "nobody listens", step: "tcp", port: () => freePort() },
  { what: "no broker answers", step: "mqtt", port: async () => silent() },
])("where $what, mqtt test stops at $step with exit 6, and mqtt forget likewise", async ({ step, port }) => {
  const at = await port();
  const tried = await fruit("mqtt test", at);
  expect(tried.out.split("\n").at(-2)).toMatch(new RegExp(`^FAIL {2}${step} .*127.0.0.1:${at}`));
  expect(tried.exit).toBe(6);
  const forgot = await fruit("mqtt forget", at);
  expect(forgot).toMatchObject({ exit: 6, err: expect.stringContaining(`127.0.0.1:${at}`) });
});

const silents: AsyncDisposable[] = [];
afterAll(async () => {
  for (const server of silents) await server[Symbol.asyncDispose]();
});
async function silent(): Promise<number> {
  const server = await tcp(() => undefined);
  silents.push(server);
  return server.port;
}

test("a name that does not resolve stops mqtt test at once", async () => {
  const { exit, out } = await fruit("mqtt test", 0, { url: "mqtt://broker.invalid" });
  expect(out).toMatch(/^FAIL {2}resolve .*broker\.invalid/);
  expect(exit).toBe(6);
});

test("mqtt schema prints a table, and documents for programs", async () => {
  const { out } = await fruit("mqtt schema", 1);
  expect(out).toMatch(/^fruit\/v1\/<site>\/<node>\/state\/outlet\/<board>\.<pi> +out +1 +yes /m);
  expect(JSON.parse((await fruit("mqtt schema --jsonschema", 1)).out).$defs.status).toBeDefined();
  expect(JSON.parse((await fruit("mqtt schema --asyncapi", 1)).out).asyncapi).toBe("3.0.0");
  const ha = JSON.parse((await fruit("mqtt schema --ha", 1, { discovery_prefix: "ha" })).out);
  expect(Object.keys(ha)).toEqual([
    "ha/device/pi1/node/config",
    "ha/device/pi1/outlet-0-0/config",
    "ha/device/pi1/outlet-0-1/config",
  ]);
  const platforms = Object.values(
    ha["ha/device/pi1/outlet-0-1/config"].cmps as Record<string, { p: string }>,
  );
  expect(platforms.map(({ p }) => p)).toContain("switch");
  expect((await fruit("mqtt schema --ha --asyncapi", 1)).exit).toBe(2);
});
