/** The shipped ACL file, as a real Mosquitto understands it: found out by what arrives. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { execFileSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { HAS_MOSQUITTO, Mosquitto, Tap, until } from "./broker.ts";

const CAN = HAS_MOSQUITTO && Boolean(Bun.which("mosquitto_passwd"));
const USERS = ["pi1", "pi2", "stack", "telegraf", "alice", "hass"];
const NAMES: Record<string, string> = {
  SITE: "lab",
  CONTROLLER: "stack",
  READER: "telegraf",
  TECHNICIAN: "alice",
  HOMEASSISTANT: "hass",
};
const BASE = "fruit/v1/lab";

let broker: Mosquitto | undefined;
const taps = new Map<string, Tap>();

beforeAll(async () => {
  if (!CAN) return;
  const shipped = readFileSync(join(import.meta.dir, "../image/site/mosquitto.acl"), "utf8");
  const acl = shipped
    .split("\n")
    .map((line) =>
      line.startsWith("#") ? line : line.replace(/\b[A-Z]{4,}\b/g, (name) => NAMES[name] ?? name),
    )
    .join("\n");
  broker = await Mosquitto.start((dir) => {
    writeFileSync(join(dir, "acl"), acl, { mode: 0o600 });
    writeFileSync(join(dir, "passwords"), USERS.map((user) => `${user}:secret\n`).join(""), { mode: 0o600 });
    execFileSync("mosquitto_passwd", ["-U", join(dir, "passwords")]);
    return [
      "allow_anonymous false",
      `password_file ${join(dir, "passwords")}`,
      `acl_file ${join(dir, "acl")}`,
    ];
  });
  for (const username of USERS)
    taps.set(username, await Tap.at(broker.port, { username, password: Buffer.from("secret") }));
});
afterAll(async () => {
  for (const tap of taps.values()) await tap[Symbol.asyncDispose]();
  await broker?.[Symbol.asyncDispose]();
});

const at = (user: string) => taps.get(user) as Tap;

/** Who of all users hears what one of them publishes. */
async function hearers(from: string, topic: string): Promise<string[]> {
  const mark = crypto.randomUUID();
  await at(from).client.publishAsync(topic, mark, { qos: 1 });
  // A message that everybody hears, sent after it on the same way, shows that it would have come by now.
  const end = crypto.randomUUID();
  for (const user of USERS) {
    const node = user.startsWith("pi") || user === "stack" ? user : undefined;
    if (node) await at("alice").client.publishAsync(`${BASE}/${node}/cmd/end`, end, { qos: 1 });
  }
  await until("the end was heard", () =>
    ["pi1", "pi2", "stack", "telegraf", "alice", "hass"].every((user) =>
      at(user).heard.some(({ text }) => text === end),
    ),
  );
  return USERS.filter((user) =>
    at(user).heard.some(({ text, topic: where }) => text === mark && where === topic),
  );
}

describe.skipIf(!CAN)(
  "the shipped ACL file [needs mosquitto: apt-get install mosquitto mosquitto-clients]",
  () => {
    test.each([
      ["status", ["pi1", "stack", "telegraf", "alice", "hass"]],
      ["info", ["pi1", "telegraf", "alice", "hass"]],
      ["tele/cpu/main", ["telegraf", "alice", "hass"]],
      ["state/outlet/0.0", ["pi1", "telegraf", "alice", "hass"]],
      ["state/boot/main", ["pi1", "stack", "telegraf", "alice", "hass"]],
      ["state/update/main", ["pi1", "stack", "telegraf", "alice", "hass"]],
      ["alarm/bus-0", ["pi1", "telegraf", "alice", "hass"]],
      ["event/agent.started", ["telegraf", "alice", "hass"]],
      ["res/1", ["telegraf", "alice", "hass"]],
      ["test/main", ["pi1", "telegraf", "alice", "hass"]],
      ["console/c1/out", ["telegraf", "alice", "hass"]],
    ])("a node's own %s is heard by %j", async (path, who) => {
      expect(await hearers("pi1", `${BASE}/pi1/${path}`)).toEqual(who as string[]);
    });

    test.each([
      "status",
      "info",
      "tele/cpu/main",
      "state/boot/main",
      "alarm/x",
      "event/x",
      "res/1",
      "cmd/power.off",
      "set/outlet/0.0",
      "console/c1/in",
      "console/c1/out",
    ])("neither node nor controller can write another node's %s", async (path) => {
      expect(await hearers("pi1", `${BASE}/pi2/${path}`)).toEqual([]);
      expect(await hearers("pi2", `${BASE}/pi1/${path}`)).toEqual([]);
      expect(await hearers("stack", `${BASE}/pi1/${path}`)).toEqual([]);
    });

    test("an announcement from any node is heard by everybody, and kept nowhere else", async () => {
      expect(await hearers("pi1", `${BASE}/all/head/${"0".repeat(40)}`)).toEqual(USERS);
      expect(await hearers("pi1", `${BASE}/all/head/x/y`)).toEqual([]);
      expect(await hearers("pi1", `${BASE}/all/other`)).toEqual([]);
    });

    test("a node cannot command itself, all nodes, nor speak for Home Assistant or other sites", async () => {
      for (const topic of [
        `${BASE}/pi1/cmd/power.off`,
        `${BASE}/pi1/set/outlet/0.0`,
        `${BASE}/all/cmd/identify`,
        "homeassistant/status",
        "homeassistant/device/pi2/node/config",
        "fruit/v1/elsewhere/pi1/status",
      ])
        expect([topic, await hearers("pi1", topic)]).toEqual([topic, []]);
    });

    test("a technician's command reaches its node alone, one for all reaches all", async () => {
      expect(await hearers("alice", `${BASE}/pi1/cmd/power.status`)).toEqual([
        "pi1",
        "telegraf",
        "alice",
        "hass",
      ]);
      expect(await hearers("alice", `${BASE}/all/cmd/identify`)).toEqual([
        "pi1",
        "pi2",
        "stack",
        "telegraf",
        "alice",
        "hass",
      ]);
    });

    test("what a technician types on a console reaches its node alone; nobody else types, nor speaks for a node there", async () => {
      const readers = ["telegraf", "alice", "hass"];
      expect(await hearers("alice", `${BASE}/pi1/console/c1/in`)).toEqual(["pi1", ...readers]);
      expect(await hearers("pi1", `${BASE}/pi1/console/c1/in`)).toEqual([]);
      for (const user of ["telegraf", "hass"])
        for (const way of ["in", "out"])
          expect([user, way, await hearers(user, `${BASE}/pi1/console/c1/${way}`)]).toEqual([user, way, []]);
      for (const path of ["console/c1/out", "console/c1", "console/c1/in/more"])
        expect([path, await hearers("alice", `${BASE}/pi1/${path}`)]).toEqual([path, []]);
    });

    test("an answer under reply/<user> reaches its user, and the readers of everything, not the nodes", async () => {
      expect(await hearers("pi1", `${BASE}/reply/alice/7`)).toEqual(["telegraf", "alice", "hass"]);
    });

    test("a reader says nothing; a technician does not use unsigned switches; nobody writes a node's state", async () => {
      for (const path of ["cmd/identify", "set/outlet/0.0", "status", "state/outlet/0.0"])
        expect([path, await hearers("telegraf", `${BASE}/pi1/${path}`)]).toEqual([path, []]);
      for (const path of ["set/outlet/0.0", "status", "state/outlet/0.0"])
        expect([path, await hearers("alice", `${BASE}/pi1/${path}`)]).toEqual([path, []]);
    });

    test("Home Assistant is born for all nodes, reads discovery and presses switches", async () => {
      expect(await hearers("hass", "homeassistant/status")).toEqual(USERS);
      expect(await hearers("pi1", "homeassistant/device/pi1/node/config")).toEqual(["pi1", "hass"]);
      expect(await hearers("hass", `${BASE}/pi1/set/outlet/0.0`)).toEqual([
        "pi1",
        "telegraf",
        "alice",
        "hass",
      ]);
      expect(await hearers("hass", `${BASE}/pi1/cmd/power.off`)).toEqual([]);
    });
  },
);
