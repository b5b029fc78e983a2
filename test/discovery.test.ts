/** Against the facts of Home Assistant's MQTT documentation: its own schema is not published. */
import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseConfig } from "../agent/config.ts";
import { Discovery } from "../agent/mqtt/discovery.ts";
import { type Device, discovery, type Facts } from "../agent/mqtt/entities.ts";
import { discoveryFacts } from "../agent/mqtt/facts.ts";
import { Store } from "../agent/store.ts";
import { METRICS } from "../agent/telemetry/metrics.ts";
import { aedes, Node, Tap, until } from "./broker.ts";

const BASE = "fruit/v1/lab/pi1";
const NODE = "homeassistant/device/pi1/node/config";
const OUTLET = "homeassistant/device/pi1/outlet-0-0/config";
const dirs: string[] = [];
afterAll(() => {
  for (const dir of dirs) rmSync(dir, { recursive: true, force: true });
});

const everything = new Map(
  Object.entries(METRICS).flatMap(([group, { instance, keys }]): [string, Set<string>][] => {
    const names = instance === "main" ? ["main"] : group === "power" ? ["0.0", "input-0"] : ["x0"];
    return names.map((name) => [`${group}/${name}`, new Set(Object.keys(keys))]);
  }),
);
const facts = (more: Partial<Facts> = {}): Facts => ({
  prefix: "homeassistant",
  site: "lab",
  node: "pi1",
  version: "1.2.3",
  telemetry: everything,
  intervalSeconds: () => 60,
  outlets: [
    { id: "0.0", name: "rack1-a", isSwitchable: true },
    { id: "0.1", isSwitchable: false },
  ],
  alarms: ["bus-0"],
  ...more,
});
const document = (topic: string, more: Partial<Facts> = {}) => discovery(facts(more)).get(topic) as Device;
const named = (device: Device, name: string) =>
  Object.values(device.cmps).find((component) => component.name === name);

test("a document per device, on a topic of two levels so that an ACL pattern for the node fits", () => {
  expect([...discovery(facts()).keys()]).toEqual([
    NODE,
    OUTLET,
    "homeassistant/device/pi1/outlet-0-1/config",
  ]);
});

test("every document has device, origin, availability and components; every component a platform, a name and an id of its own", () => {
  const ids: string[] = [];
  for (const device of discovery(facts()).values()) {
    expect(device.dev.identifiers).toHaveLength(1);
    expect(device.o).toEqual({ name: "fruit", sw_version: "1.2.3" });
    expect(device.availability[0]).toEqual({ topic: `${BASE}/status` });
    expect(device.availability_mode).toBe("all");
    for (const [id, component] of Object.entries(device.cmps)) {
      expect(["sensor", "binary_sensor", "switch", "button"]).toContain(component.p);
      expect(component.name).not.toBe("");
      expect(id).toMatch(/^[A-Za-z0-9_-]+$/);
      expect(component.unique_id).toBe(id);
      ids.push(component.unique_id);
      const isInput = component.p === "button";
      expect("state_topic" in component).toBe(!isInput);
      expect("command_topic" in component).toBe(isInput || component.p === "switch");
    }
  }
  expect(new Set(ids).size).toBe(ids.length);
});

test("each outlet is a device of its own, connected through the node", () => {
  const node = document(NODE);
  const outlet = document(OUTLET);
  expect(outlet.dev).toMatchObject({ name: "rack1-a", via_device: (node.dev.identifiers as string[])[0] });
  expect(document("homeassistant/device/pi1/outlet-0-1/config").dev.name).toBe("Outlet 0.1");
  // Unavailable while the board cannot be read, not off.
  expect(outlet.availability[1]).toEqual({
    topic: `${BASE}/state/outlet/0.0`,
    value_template: "{{ 'offline' if value_json.supply == 'unknown' else 'online' }}",
  });
});

test("an outlet is a switch where unsigned switching is allowed, and only shown where it is not", () => {
  expect(named(document(OUTLET), "Supply")).toMatchObject({
    p: "switch",
    command_topic: `${BASE}/set/outlet/0.0`,
    payload_on: "ON",
    payload_off: "OFF",
    state_on: "on",
    state_off: "off",
    optimistic: false,
    retain: false,
  });
  const shown = named(document("homeassistant/device/pi1/outlet-0-1/config"), "Supply");
  expect(shown).toMatchObject({
    p: "binary_sensor",
    device_class: "power",
    payload_on: "on",
    payload_off: "off",
  });
  expect(shown).not.toHaveProperty("command_topic");
});

test.each([
  {
    name: "Processor temperature",
    topic: "thermal/main",
    has: {
      device_class: "temperature",
      unit_of_measurement: "°C",
      state_class: "measurement",
      entity_category: "diagnostic",
    },
  },
  { name: "Processor use", topic: "cpu/main", has: { unit_of_measurement: "%" } },
  { name: "Memory use", topic: "memory/main", has: { unit_of_measurement: "%" } },
  { name: "Started", topic: "system/main", has: { device_class: "timestamp" } },
  {
    name: "x0 signal",
    topic: "wifi/x0",
    has: { device_class: "signal_strength", unit_of_measurement: "dBm" },
  },
  { name: "x0 space used", topic: "fs/x0", has: { unit_of_measurement: "%" } },
  { name: "Fan", topic: "fan/main", has: { unit_of_measurement: "rpm" } },
  { name: "Undervoltage", topic: "firmware/main", has: { p: "binary_sensor", device_class: "problem" } },
  {
    name: "Undervoltage since boot",
    topic: "firmware/main",
    has: { p: "binary_sensor", device_class: "problem" },
  },
  { name: "Throttled", topic: "firmware/main", has: { p: "binary_sensor", device_class: "problem" } },
  {
    name: "input-0 Voltage",
    topic: "power/input-0",
    has: { device_class: "voltage", unit_of_measurement: "V" },
  },
])("$name comes from $topic and is unavailable after three missing messages", ({ name, topic, has }) => {
  expect(named(document(NODE), name)).toMatchObject({
    p: "sensor",
    state_topic: `${BASE}/tele/${topic}`,
    expire_after: 180,
    ...has,
  });
});

test.each([
  { name: "Voltage", has: { device_class: "voltage", unit_of_measurement: "V" } },
  { name: "Current", has: { device_class: "current", unit_of_measurement: "A" } },
  { name: "Power", has: { device_class: "power", unit_of_measurement: "W" } },
  {
    name: "Energy",
    has: { device_class: "energy", unit_of_measurement: "kWh", state_class: "total_increasing" },
  },
])("an outlet's $name is the outlet's", ({ name, has }) => {
  expect(named(document(OUTLET), name)).toMatchObject({ state_topic: `${BASE}/tele/power/0.0`, ...has });
  expect(named(document(NODE), name)).toBeUndefined();
});

test("a node with slots shows its release as an update, its slot and whether it is on trial; another does not", () => {
  expect(named(document(NODE), "Release")).toBeUndefined();
  const telemetry = new Map([["state/boot", new Set(["active", "trial"])]]);
  const device = document(NODE, { telemetry });
  expect(named(device, "Release")).toMatchObject({ p: "update", state_topic: `${BASE}/state/update/main` });
  // Who installs signs: Home Assistant has no key
  expect(Object.keys(named(device, "Release") ?? {})).not.toContain("command_topic");
  expect(named(device, "On trial")).toMatchObject({
    p: "binary_sensor",
    state_topic: `${BASE}/state/boot/main`,
    value_template: "{{ 'ON' if value_json.trial else 'OFF' }}",
  });
  expect(named(device, "Slot")?.value_template).toBe("{{ value_json.active }}");
});

test("there is a button that makes the node visible, and an alarm is a problem while its topic is not empty", () => {
  expect(named(document(NODE), "Identify")).toMatchObject({
    p: "button",
    command_topic: `${BASE}/set/identify/main`,
  });
  expect(named(document(NODE), "Alarm bus-0")).toMatchObject({
    device_class: "problem",
    state_topic: `${BASE}/alarm/bus-0`,
    value_template: "{{ 'ON' if value else 'OFF' }}",
  });
});

test("what a node does not publish has no entity, nor has what needs another number that is missing", () => {
  const telemetry = new Map([
    ["thermal/main", new Set(["ts"])],
    ["memory/main", new Set(["available_bytes"])],
    ["cpu/main", new Set(["usage_ratio"])],
  ]);
  const { cmps } = document(NODE, { telemetry, alarms: [] });
  expect(Object.values(cmps).map(({ name }) => name)).toEqual(["Processor use", "Identify"]);
});

test("the configuration decides names, switches and intervals", () => {
  const config = parseConfig("test", {
    site: "lab",
    name: "Rack 1",
    mqtt: { url: "mqtt://broker", discovery_prefix: "ha" },
    telemetry: { interval_seconds: 30, groups: { cpu: 10 } },
    power: { buses: [{ driver: "sim", boards: [0] }], outlets: { "0.0": { name: "rack1-a" } } },
    commands: { unsigned_outlets: ["0.1"] },
  });
  const { intervalSeconds, ...rest } = discoveryFacts(config, "pi1", { model: "Pi 4" }, ["0.0", "0.1"]);
  expect(rest).toMatchObject({
    prefix: "ha",
    name: "Rack 1",
    model: "Pi 4",
    outlets: [
      { id: "0.0", name: "rack1-a", isSwitchable: false },
      { id: "0.1", isSwitchable: true },
    ],
  });
  expect([intervalSeconds("cpu"), intervalSeconds("thermal")]).toEqual([10, 30]);
});

/** A node with its discovery at a broker, everything in a hurry. */
async function living(
  port: number,
  dir: string,
  options: { settleMs?: number; isEnabled?: boolean; outlets?: Facts["outlets"] } = {},
) {
  const { settleMs = 1e9, isEnabled = true, outlets = facts().outlets } = options;
  let discovering: Discovery | undefined;
  const node = new Node(
    { url: `mqtt://127.0.0.1:${port}` },
    {
      subscriptions: [{ filter: "homeassistant/status", wantsRetained: false }],
      onMessage: (incoming) => void discovering?.heard(incoming),
    },
  );
  const { telemetry: _, alarms: __, ...rest } = facts({ outlets });
  discovering = new Discovery({
    isEnabled,
    facts: rest,
    session: node.session,
    store: new Store(dir, () => undefined),
    log: () => undefined,
    timing: { tickMs: 10, settleMs, alarmsMs: 1e9, random: () => 0 },
  });
  const stop = new AbortController();
  const running = discovering.part(stop.signal);
  await node.online();
  const say = (instance: string, keys: Record<string, number>) =>
    discovering?.observe({
      topic: `${BASE}/tele/${instance}`,
      payload: JSON.stringify({ ts: 1, ...keys }),
      qos: 0,
      retain: false,
      class: "tele",
    });
  return {
    node,
    say,
    raise: (id: string) =>
      discovering?.observe({
        topic: `${BASE}/alarm/${id}`,
        payload: "{}",
        qos: 1,
        retain: true,
        class: "alarm",
      }),
    [Symbol.asyncDispose]: async () => {
      await node.session.flush(1000);
      stop.abort();
      await running;
      await node.stop();
    },
  };
}

function place(): string {
  const dir = mkdtempSync(join(tmpdir(), "fruit-discovery-"));
  dirs.push(dir);
  return dir;
}

/** What is retained now, as a newcomer sees it. */
async function retained(port: number): Promise<Map<string, Device>> {
  await using tap = await Tap.at(port, { filter: "homeassistant/#" });
  await tap.client.subscribeAsync("none");
  tap.client.publish("homeassistant/end", "end", { qos: 1 });
  await until("the end came", () => tap.texts("homeassistant/end").length > 0);
  return new Map(
    tap.heard
      .filter(({ retain, text }) => retain && text)
      .map(({ topic, text }) => [topic, JSON.parse(text)]),
  );
}

const names = (device: Device | undefined) => Object.values(device?.cmps ?? {}).map(({ name }) => name);

test("what the node really says is announced, retained, as it appears", async () => {
  await using broker = await aedes();
  await using tap = await Tap.at(broker.port, { filter: "homeassistant/#" });
  await using node = await living(broker.port, place());
  await until("the first announcement", () => tap.texts(NODE).length === 1);
  node.say("cpu/main", { usage_ratio: 0.1 });
  node.say("thermal/main", { temp_celsius: 40 });
  node.raise("bus-0");
  await until("the second", () => names(JSON.parse(tap.texts(NODE).at(-1) ?? "{}")).length === 4);
  node.say("cpu/main", { usage_ratio: 0.2 });
  await node.node.session.flush(1000);
  const stored = await retained(broker.port);
  expect(names(stored.get(NODE))).toEqual([
    "Processor use",
    "Processor temperature",
    "Alarm bus-0",
    "Identify",
  ]);
  expect([...stored.keys()]).toHaveLength(3);
});

test("everything is announced again when Home Assistant says that it starts, and only then", async () => {
  await using broker = await aedes();
  await using tap = await Tap.at(broker.port, { filter: "homeassistant/#" });
  await using _node = await living(broker.port, place());
  await until("the announcement", () => tap.texts(OUTLET).length === 1);
  await tap.client.publishAsync("homeassistant/status", "offline", { qos: 1 });
  await tap.client.publishAsync("homeassistant/status", "online", { qos: 1 });
  await until("it was announced again", () => tap.texts(OUTLET).length === 2);
  expect(tap.texts(NODE)).toHaveLength(2);
});

test("an outlet that left the configuration is cleared after a restart, and once", async () => {
  await using broker = await aedes();
  const dir = place();
  {
    await using tap = await Tap.at(broker.port, { filter: "homeassistant/#" });
    await using _node = await living(broker.port, dir);
    await until("it was announced", () => tap.texts(OUTLET).length > 0);
  }
  const fewer = { outlets: facts().outlets.slice(1) };
  {
    await using tap = await Tap.at(broker.port, { filter: "homeassistant/#" });
    await using _node = await living(broker.port, dir, fewer);
    await until("it was cleared", () => tap.texts(OUTLET).at(-1) === "");
    await until(
      "that is remembered",
      () => !readFileSync(join(dir, "discovery.json"), "utf8").includes(OUTLET),
    );
  }
  expect([...(await retained(broker.port)).keys()]).not.toContain(OUTLET);
  await using tap = await Tap.at(broker.port, { filter: "homeassistant/#" });
  await using _node = await living(broker.port, dir, fewer);
  await until("the node was announced", () => tap.texts(NODE).length >= 2);
  expect(tap.texts(OUTLET)).toEqual([]);
});

test("what was known before a restart is announced at once, and removed when it does not come any more", async () => {
  await using broker = await aedes();
  await using tap = await Tap.at(broker.port, { filter: "homeassistant/#" });
  const last = () => names(JSON.parse(tap.texts(NODE).at(-1) ?? "{}"));
  const dir = place();
  {
    await using node = await living(broker.port, dir);
    node.say("wifi/wlan0", { signal_dbm: -50 });
    node.say("cpu/main", { usage_ratio: 0.1 });
    await until("both are announced", () => last().length === 3);
  }
  const before = tap.texts(NODE).length;
  await using node = await living(broker.port, dir, { settleMs: 300 });
  await until("it was announced again", () => tap.texts(NODE).length > before);
  expect(last()).toEqual(["wlan0 signal", "Processor use", "Identify"]);
  node.say("cpu/main", { usage_ratio: 0.1 });
  await until("the other one was removed", () => !last().includes("wlan0 signal"));
  const { cmps } = JSON.parse(tap.texts(NODE).at(-1) ?? "{}") as Device;
  // A platform and nothing else removes a component.
  expect(cmps.fruit_lab_pi1_wifi_wlan0_signal_dbm as unknown).toEqual({ p: "sensor" });
  expect(last()).toContain("Processor use");
});

test("switched off in the configuration, all of it is cleared", async () => {
  await using broker = await aedes();
  await using tap = await Tap.at(broker.port, { filter: "homeassistant/#" });
  const dir = place();
  {
    await using _node = await living(broker.port, dir);
    await until("all are announced", () => new Set(tap.heard.map(({ topic }) => topic)).size === 3);
  }
  expect((await retained(broker.port)).size).toBe(3);
  await using _node = await living(broker.port, dir, { isEnabled: false });
  await until("all are cleared", () => tap.heard.filter(({ text }) => text === "").length === 3);
  expect((await retained(broker.port)).size).toBe(0);
});
