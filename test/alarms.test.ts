import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import * as v from "valibot";
import { createAlarms } from "../agent/alarms.ts";
import { parseConfig } from "../agent/config.ts";
import { Discovery } from "../agent/mqtt/discovery.ts";
import { discoveryFacts } from "../agent/mqtt/facts.ts";
import { createPublisher } from "../agent/publisher.ts";
import { Store } from "../agent/store.ts";
import { aedes, Node, Tap, until } from "./broker.ts";

const BROKEN = { severity: "critical", message: "rs485-0: no answer" } as const;
const Alarms = v.object({ alarms: v.array(v.string()) });
const dir = mkdtempSync(join(tmpdir(), "fruit-alarms-"));
afterAll(() => rmSync(dir, { recursive: true, force: true }));

/** The alarms with everything they said. */
function alarms() {
  const said: unknown[] = [];
  const raise = createAlarms(
    (_, id, payload) => void said.push([id, payload]),
    (type, facts) => void said.push([type, facts.alarm]),
    () => ({ synced: false }),
  );
  return { said, raise };
}

test("an alarm is said when it is raised, when its words change and when it clears, with an event each, and once", () => {
  const { said, raise } = alarms();
  const worse = { severity: "critical", message: "all of it" } as const;
  for (const alarm of [BROKEN, BROKEN, worse, null, null]) raise("bus-0", alarm);
  expect(said).toEqual([
    ["bus-0", { id: "bus-0", ...BROKEN }],
    ["alarm.raised", "bus-0"],
    ["bus-0", { id: "bus-0", ...worse }],
    ["alarm.raised", "bus-0"],
    ["bus-0", null],
    ["alarm.cleared", "bus-0"],
  ]);
});

test("an alarm that was never raised is cleared once, for what the broker may have, and that is no event", () => {
  const { said, raise } = alarms();
  for (const id of ["bus-0", "bus-0", "bus-1"]) raise(id, null);
  expect(said).toEqual([
    ["bus-0", null],
    ["bus-1", null],
  ]);
  raise("bus-0", BROKEN);
  raise("bus-0", null);
  expect(said.slice(2)).toEqual([
    ["bus-0", { id: "bus-0", ...BROKEN }],
    ["alarm.raised", "bus-0"],
    ["bus-0", null],
    ["alarm.cleared", "bus-0"],
  ]);
});

/** A node from its start on, as far as alarms go. */
async function life(port: number, store: Store, alarmsMs: number, isEnabled: boolean) {
  const url = `mqtt://127.0.0.1:${port}`;
  const node = new Node({ url });
  const discovery = new Discovery({
    isEnabled,
    facts: discoveryFacts(parseConfig("test", { site: "lab", mqtt: { url } }), "pi1", {}, []),
    session: node.session,
    store,
    log: () => undefined,
    timing: { tickMs: 10, settleMs: 1e9, alarmsMs, random: () => 0 },
  });
  const clock = () => ({ synced: false });
  const { publish, tell } = createPublisher({ site: "lab", node: "pi1", boot: "b" }, clock, (message) => {
    discovery.observe(message);
    node.session.publish(message);
  });
  const stop = new AbortController();
  const running = discovery.part(stop.signal);
  return {
    node,
    alarm: createAlarms(publish, tell, clock),
    [Symbol.asyncDispose]: async () => {
      stop.abort();
      await running;
      await node.stop();
    },
  };
}

/** Waits until just these alarms stand at the broker, as a newcomer sees them: what is stored may reach it late. */
async function stands(port: number, wanted: string[]): Promise<void> {
  let seen: string[] = [];
  const limit = performance.now() + 5000;
  do seen = (await standing(port)).sort();
  while (seen.join() !== wanted.join() && performance.now() < limit);
  expect(seen).toEqual(wanted);
}

async function standing(port: number): Promise<string[]> {
  await using tap = await Tap.at(port, { filter: "fruit/v1/lab/pi1/#" });
  await tap.client.publishAsync("fruit/v1/lab/pi1/end", "", { qos: 1 });
  await until("the end came", () => tap.texts("fruit/v1/lab/pi1/end").length > 0);
  return tap.heard
    .filter(({ retain, topic }) => retain && topic.includes("/alarm/"))
    .map(({ topic }) => topic);
}

test.each([true, false])(
  "after a restart an alarm stands only if it is raised again; discovery is on: %p",
  async (isEnabled) => {
    await using broker = await aedes();
    const store = new Store(join(dir, String(isEnabled)), () => undefined);
    const remembered = () => JSON.stringify(store.load("discovery", Alarms, { alarms: [] }).alarms);
    const alarmOf = (id: string) => `fruit/v1/lab/pi1/alarm/${id}`;
    {
      await using before = await life(broker.port, store, 1e9, isEnabled);
      for (const id of ["bus-0", "bus-1", "bus-2"]) before.alarm(id, BROKEN);
      await before.node.online();
      await until("they are remembered", () => remembered().includes("bus-2"));
    }
    await stands(broker.port, ["bus-0", "bus-1", "bus-2"].map(alarmOf));
    {
      // Stopped before the time was over: nothing is lost of what is to be cleared.
      await using _short = await life(broker.port, store, 1e9, isEnabled);
      await _short.node.online();
    }
    await using tap = await Tap.at(broker.port, { filter: "fruit/v1/lab/pi1/#" });
    await using after = await life(broker.port, store, 300, isEnabled);
    after.alarm("bus-0", BROKEN);
    after.alarm("bus-1", null);
    await until("nobody spoke of bus-2", () => tap.texts(alarmOf("bus-2")).at(-1) === "");
    await until("it is forgotten", () => !remembered().includes("bus-2"));
    await stands(broker.port, [alarmOf("bus-0")]);
    expect(tap.texts("fruit/v1/lab/pi1/event/alarm.cleared")).toEqual([]);
  },
);

test("the clearing of a forgotten alarm is not given up because the broker is away", async () => {
  const store = new Store(join(dir, "away"), () => undefined);
  await using broker = await aedes();
  const remembered = () => store.load("discovery", Alarms, { alarms: [] }).alarms;
  {
    await using before = await life(broker.port, store, 1e9, true);
    before.alarm("bus-2", BROKEN);
    await until("it is remembered", () => remembered().length > 0);
    await before.node.online();
  }
  {
    const written = () => statSync(join(dir, "away", "discovery.json")).mtimeMs;
    const before = written();
    await using _away = await life(1, store, 0, true);
    await until("it was cleared into the void, and noted", () => written() !== before);
  }
  expect(remembered()).toEqual(["bus-2"]);
  await using _after = await life(broker.port, store, 0, true);
  await until("it is forgotten", () => remembered().length === 0);
  await stands(broker.port, []);
});
