import { afterEach, expect, test } from "bun:test";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import * as v from "valibot";
import type { Caller, Outcome } from "../agent/commands.ts";
import { parseConfig } from "../agent/config.ts";
import { KINDS, type KindName } from "../agent/messages.ts";
import { createStackRole } from "../agent/stack/service.ts";
import { HalError } from "../hal/ports.ts";
import { openSim } from "../hal/sim/hal.ts";
import { LOCAL, signer } from "./desk.ts";
import { scratch, until } from "./node.ts";

const stops: (() => Promise<void>)[] = [];
afterEach(async () => {
  for (const stop of stops.splice(0)) await stop();
});

/** A node in a simulated Pi Stack whose shutdown command writes down that it was run. */
function stackNode(
  options: {
    stack?: object;
    hat?: string;
    command?: (file: string) => string[];
    limits?: { commandMs: number; downMs: number };
    /** Edges are told by what the line is when they are heard, as sysfs does: it is high again. */
    isOver?: boolean;
    /** The controller keeps the edge that we make and tells it when the line is opened anew, as a PL061 does; by then so long has passed. */
    keepsMs?: number;
  } = {},
) {
  const folder = scratch();
  const file = join(folder.path, "went-down");
  const { command = (path: string) => ["/bin/sh", "-c", `echo down >> ${path}`] } = options;
  const config = parseConfig("node.json", {
    site: "lab",
    stack: { role: "on", shutdown_command: command(file), ...options.stack },
  }).stack;
  const sim = openSim({ seed: 1, boards: [0], wireTime: false, faults: [], clockSynced: true });
  const hat = options.hat;
  const machine = {
    ...sim.machine,
    read: (path: string) =>
      path === "/proc/device-tree/hat/product" && hat !== undefined
        ? new TextEncoder().encode(`${hat}\0`)
        : sim.machine.read(path),
  };
  const states: v.InferOutput<(typeof KINDS)["state/stack"]["schema"]>[] = [];
  const alarms = new Map<string, string>();
  const told: string[] = [];
  const hearts: object[] = [];
  const raised: string[] = [];
  const looks: number[] = [];
  let hasKept = false;
  const role = createStackRole({
    config,
    hal: {
      machine,
      openGpio: async (...args) => {
        const line = await sim.openGpio(...args);
        return {
          ...line,
          read: async () => {
            const level = await line.read();
            if (args[0] === 6) looks.push(level);
            return level;
          },
          write: (level) => {
            hasKept ||= args[0] === 6 && options.keepsMs !== undefined;
            return line.write(level);
          },
          onEdge: (happened) => {
            line.onEdge(options.isOver ? () => happened(1) : happened);
            if (!hasKept) return;
            hasKept = false;
            setImmediate(() => {
              Bun.sleepSync(options.keepsMs ?? 0);
              happened(0);
            });
          },
        };
      },
      openHeart: (gpio, times) => {
        hearts.push({ gpio, ...times });
        return sim.openHeart(gpio, times);
      },
    },
    ...(options.limits ? { limits: options.limits } : {}),
    publish: (kind, instance, payload) => {
      v.parse(KINDS[kind as KindName].schema, payload);
      expect(`${kind}/${instance}`).toBe("state/stack/main");
      states.push(payload as (typeof states)[number]);
    },
    alarm: (id, alarm) => {
      if (alarm) raised.push(id);
      if (alarm) alarms.set(id, `${alarm.severity}: ${alarm.message}`);
      else alarms.delete(id);
    },
    tell: (type) => void told.push(type),
    log: () => undefined,
  });
  const stopping = new AbortController();
  let running: Promise<void> | undefined;
  const stop = async () => {
    stopping.abort();
    await running;
  };
  stops.push(async () => {
    await stop();
    await sim.close();
    folder[Symbol.dispose]();
  });
  const run = (verb: string, caller: Caller = LOCAL): Promise<Outcome> => {
    const row = role.commands.find((one) => one.verb === verb);
    if (!row) throw new Error(`no verb ${verb}`);
    return row.run({
      id: "c1",
      args: {},
      reason: "test",
      caller,
      progress: () => undefined,
      signal: stopping.signal,
    });
  };
  return {
    role,
    gpio: sim.gpio,
    states,
    alarms,
    raised,
    told,
    hearts,
    looks,
    file,
    run,
    stop,
    start: () => {
      running = role.part(stopping.signal);
    },
    playing: async () => {
      running ??= role.part(stopping.signal);
      await until("the role", () => states.at(-1)?.beating && sim.gpio.list()[6]?.consumer);
    },
    downs: () => (existsSync(file) ? readFileSync(file, "utf8").trimEnd().split("\n").length : 0),
  };
}

test.each<{ stack: { role: string }; hat?: string; isOn: boolean }>([
  { stack: { role: "auto" }, hat: "Pi stack", isOn: true },
  { stack: { role: "auto" }, hat: "PI STACK", isOn: true },
  { stack: { role: "auto" }, hat: "Sense HAT", isOn: false },
  { stack: { role: "auto" }, isOn: false },
  { stack: { role: "off" }, hat: "Pi stack", isOn: false },
  { stack: { role: "on" }, isOn: true },
])("with %j the role is played only where it should be", async ({ stack, hat, isOn }) => {
  const node = stackNode({ stack, ...(hat === undefined ? {} : { hat }) });
  expect(node.role.isOn).toBe(isOn);
  if (isOn) await node.playing();
  else node.start();
  expect(node.states.at(-1)).toEqual({
    v: 1,
    ...(hat === undefined ? {} : { hat }),
    role: isOn,
    beating: isOn,
  });
  expect(node.gpio.list()[5]?.consumer).toBe(isOn ? "fruit" : undefined);
});

test("the heart beats for 0.2 s, and when the agent stops its line is low and given back, and nothing is announced", async () => {
  const node = stackNode();
  await node.playing();
  await until("a whole beat", () => node.gpio.levels(5).filter(({ level }) => level === 0).length >= 2);
  const [low, rise, fall] = node.gpio.levels(5);
  expect([low?.level, rise?.level, fall?.level]).toEqual([0, 1, 0]);
  expect((fall?.atMs ?? 0) - (rise?.atMs ?? 0)).toBeGreaterThan(150);
  await node.stop();
  expect(node.gpio.level(5)).toBe(0);
  expect(node.gpio.list()[5]?.consumer).toBeUndefined();
  expect(node.gpio.list()[6]).toMatchObject({ direction: "in" });
  expect(node.gpio.levels(6)).toEqual([]);
  expect(node.states.at(-1)?.beating).toBe(false);
  expect(node.told).toEqual([]);
});

test("a board that pulls the line low has the node shut down, once however often it asks", async () => {
  const node = stackNode();
  await node.playing();
  for (const level of [0, 1, 0] as const) node.gpio.outside(6, level);
  await until("down", () => node.downs() === 1);
  for (const level of [1, 0, 1, 0, 1, 0] as const) {
    node.gpio.outside(6, level);
    await sleep(30);
  }
  expect(node.downs()).toBe(1);
  expect(node.told).toEqual(["stack.shutdown"]);
  expect(node.states.at(-1)).toMatchObject({ goes_down: "the board asks for it" });
  // It knows already: the script at power-off need not tell it.
  expect(await node.run("stack.announce")).toMatchObject({ state: "unchanged" });
  expect(node.gpio.levels(6).map(({ level }) => level)).toEqual([0, 1, 0, 1, 0, 1, 0, 1, 0]);
});

test("a disturbance that is over at once is no request", async () => {
  const node = stackNode();
  await node.playing();
  for (let i = 0; i < 10; i++) {
    node.gpio.outside(6, 0);
    node.gpio.outside(6, 1);
  }
  // Whatever those were taken for came before this one, which is held.
  node.gpio.outside(6, 0);
  await until("down", () => node.downs() > 0);
  expect(node.told).toEqual(["stack.shutdown"]);
  expect(node.downs()).toBe(1);
});

test.each([false, true])(
  "a request that is told late, and over by then, is one all the same (%p)",
  async (isOver) => {
    const node = stackNode({ isOver });
    await node.playing();
    // What the kernel had to say in that time comes now
    Bun.sleepSync(300);
    node.gpio.outside(6, 0);
    node.gpio.outside(6, 1);
    await until("down", () => node.downs() === 1);
  },
);

test("the heart beats as a Pi Stack expects it: 0.2 s every 5 s, and rests after a minute of silence", async () => {
  const node = stackNode();
  await node.playing();
  expect(node.hearts).toEqual([{ gpio: 5, everyMs: 5000, highMs: 200, deadMs: 60_000 }]);
});

test("a line that is low when the agent starts may float, and is no request; an edge of it is", async () => {
  const node = stackNode();
  node.gpio.outside(6, 0);
  await node.playing();
  // The line fails and is opened anew: still never seen high.
  node.gpio.fail(6, new HalError("io", "GPIO6: EIO"));
  await until("failed", () => node.alarms.has("stack-role"));
  node.gpio.fail(6, undefined);
  await until("listened to", () => !node.alarms.has("stack-role"));
  expect(node.told).toEqual([]);
  for (const level of [1, 0] as const) node.gpio.outside(6, level);
  await until("down", () => node.downs() === 1);
});

test("a request that came while the line could not be listened to is heard when it can", async () => {
  const node = stackNode();
  await node.playing();
  node.gpio.fail(6, new HalError("io", "GPIO6: EIO"));
  await until("failed", () => node.alarms.has("stack-role"));
  node.gpio.outside(6, 0);
  await until("the edge was missed", () => node.gpio.level(6) === 0);
  expect(node.told).toEqual([]);
  node.gpio.fail(6, undefined);
  await until("down", () => node.downs() === 1);
  expect(node.told).toEqual(["stack.shutdown"]);
});

test("an agent that is stopped during an announcement ends its pulse first", async () => {
  const node = stackNode();
  await node.playing();
  const announcing = node.run("stack.announce");
  await until("low", () => node.gpio.level(6) === 0);
  await node.stop();
  expect(await announcing).toMatchObject({ state: "done" });
  const [fall, rise, ...more] = node.gpio.levels(6);
  expect([fall?.level, rise?.level, more.length]).toEqual([0, 1, 0]);
  expect((rise?.atMs ?? 0) - (fall?.atMs ?? 0)).toBeGreaterThanOrEqual(195);
  expect(node.told).toEqual(["stack.announced"]);
});

test.each([
  {
    what: "returned well and left the node up",
    command: ["/bin/true"],
    limits: { commandMs: 5000, downMs: 200 },
    says: "it is still up after 0.2 s",
  },
  {
    what: "failed long after nobody waited for it any more",
    command: ["/bin/sh", "-c", "sleep 0.3; exit 4"],
    limits: { commandMs: 50, downMs: 60_000 },
    says: "/bin/sh: failed with exit code 4",
  },
  {
    what: "does not end",
    command: ["/bin/sleep", "3"],
    limits: { commandMs: 50, downMs: 200 },
    says: "it is still up after 0.2 s",
  },
])("a shutdown command that $what is an alarm, and the node may be shut down again", async (row) => {
  const node = stackNode({ command: () => [...row.command], limits: row.limits });
  await node.playing();
  expect(await node.run("stack.halt")).toMatchObject({ state: "done" });
  const said = await until("the alarm", () => node.alarms.get("stack-shutdown"));
  expect(said).toContain(row.says);
  expect(node.states.at(-1)?.goes_down).toBeUndefined();
  expect(await node.run("stack.halt")).toMatchObject({ state: "done" });
  expect(node.told.filter((type) => type === "stack.announced")).toHaveLength(2);
});

test("the shutdown command is of a group of its own, which outlives the agent's", async () => {
  const node = stackNode({
    command: (file) => ["/bin/sh", "-c", `echo $$ $(cut -d' ' -f5 /proc/$$/stat) > ${file}`],
  });
  await node.playing();
  await node.run("stack.halt");
  const [pid, group] = readFileSync(node.file, "utf8").trim().split(" ");
  expect(Number(pid)).toBeGreaterThan(0);
  expect(group).toBe(pid as string);
});

test("our own announcement is 0.2 s low and an input again, and is not taken for the board's request", async () => {
  const node = stackNode();
  await node.playing();
  const before = node.looks.length;
  expect(await node.run("stack.announce")).toMatchObject({ state: "done" });
  await until("an input", () => node.gpio.list()[6]?.direction === "in");
  const [fall, rise, ...more] = node.gpio.levels(6);
  expect([fall?.level, rise?.level, more.length]).toEqual([0, 1, 0]);
  expect((rise?.atMs ?? 0) - (fall?.atMs ?? 0)).toBeGreaterThanOrEqual(195);
  expect(node.told).toEqual(["stack.announced"]);
  expect(await node.run("stack.announce")).toMatchObject({
    state: "unchanged",
    message: "the board was told already",
  });
  await until("listened to again", () => node.looks.slice(before).filter(Boolean).length === 2);
  node.gpio.outside(6, 0);
  await until("down", () => node.downs() === 1);
  expect(node.raised).toEqual([]);
});

test.each([
  { pull: 0, keepsMs: 0, what: "on a line that stays low" },
  { pull: 0, keepsMs: 300, what: "on a line that stays low, late" },
  { pull: 1, keepsMs: 0, what: "on a line that is high again" },
  { pull: 1, keepsMs: 300, what: "on a line that is high again, late" },
] as const)(
  "our own edge, which the controller kept until the line is listened to again, is no request $what",
  async ({ pull, keepsMs }) => {
    const node = stackNode({ keepsMs });
    await node.playing();
    const announcing = node.run("stack.announce");
    await until("low", () => node.gpio.level(6) === 0);
    node.gpio.outside(6, pull);
    await announcing;
    // Looks at the line of a second later: whatever was to become of that edge has
    const looks = node.looks.length;
    await until("it is looked at again", () => node.looks.length >= looks + 4);
    expect(node.told).toEqual(["stack.announced"]);
    node.gpio.outside(6, 1);
    const before = node.looks.length;
    await until("seen high", () => node.looks.slice(before).includes(1));
    node.gpio.outside(6, 0);
    await until("down", () => node.downs() === 1);
  },
);

test("halt tells the board first and then runs the command", async () => {
  const node = stackNode();
  await node.playing();
  const outcome = await node.run("stack.halt");
  expect(outcome).toMatchObject({ state: "done", message: expect.stringContaining("the board was told; ") });
  expect(node.downs()).toBe(1);
  expect(node.told).toEqual(["stack.announced", "stack.shutdown"]);
  expect(await node.run("stack.halt")).toMatchObject({ state: "unchanged" });
  expect(node.downs()).toBe(1);
});

test("two who halt it at once halt it once", async () => {
  const node = stackNode();
  await node.playing();
  const outcomes = await Promise.all([node.run("stack.halt"), node.run("stack.halt")]);
  expect(outcomes.map(({ state }) => state)).toEqual(["done", "done"]);
  expect(node.downs()).toBe(1);
  expect(node.told).toEqual(["stack.announced", "stack.shutdown"]);
  expect(node.gpio.levels(6).map(({ level }) => level)).toEqual([0, 1]);
});

test.each(["stack.halt", "stack.announce"])(
  "%s is refused from anywhere but the node itself",
  async (verb) => {
    const node = stackNode();
    await node.playing();
    const refused = await node.run(verb, signer("alice@desk")).catch((error) => error);
    expect(refused).toMatchObject({
      code: "unauthorised",
      message: expect.stringContaining("only from this node's own terminal"),
    });
    expect(node.gpio.levels(6)).toEqual([]);
    expect(node.downs()).toBe(0);
  },
);

test("a node in no Pi Stack has nobody to tell, and is not halted as if it were in one", async () => {
  const node = stackNode({ stack: { role: "auto" } });
  node.start();
  expect(await node.run("stack.announce")).toMatchObject({ state: "unchanged" });
  expect(await node.run("stack.halt")).toMatchObject({ state: "failed" });
  expect(node.gpio.levels(6)).toEqual([]);
  expect(node.downs()).toBe(0);
});

test.each([
  { what: "fails", command: ["/bin/sh", "-c", "exit 3"], says: "/bin/sh: failed with exit code 3" },
  { what: "does not exist", command: ["/nowhere/poweroff"], says: "/nowhere/poweroff: " },
])("a shutdown command that $what is an alarm, and is tried again when the board asks again", async (row) => {
  const node = stackNode({ command: () => [...row.command] });
  await node.playing();
  node.gpio.outside(6, 0);
  const said = await until("the alarm", () => node.alarms.get("stack-shutdown"));
  expect(said).toContain("critical: this node was to shut down (the board asks for it) and did not: ");
  expect(said).toContain(row.says);
  expect(node.states.at(-1)?.goes_down).toBeUndefined();
  const tries = () => node.told.filter((type) => type === "stack.shutdown").length;
  expect(tries()).toBe(1);
  node.gpio.outside(6, 1);
  node.gpio.outside(6, 0);
  await until("another try", () => tries() === 2);
});

test("a line that somebody else has is an alarm and no exit; the other half goes on, and it recovers by itself", async () => {
  const node = stackNode();
  node.gpio.takenBy(6, "onewire@0");
  node.start();
  const said = await until("the alarm", () => node.alarms.get("stack-role"));
  expect(said).toContain("GPIO6: is taken by onewire@0");
  await until("beating", () => node.states.at(-1)?.beating);
  expect(node.states.at(-1)?.error).toBe("GPIO6: is taken by onewire@0");
  expect(await node.run("stack.announce").catch((error) => error.code)).toBe("busy");
  node.gpio.takenBy(6, undefined);
  await until("recovered", () => !node.alarms.has("stack-role"));
  expect(node.states.at(-1)).toEqual({ v: 1, role: true, beating: true });
  node.gpio.outside(6, 0);
  await until("down", () => node.downs() === 1);
});

test("a line that fails while the role is played is an alarm until it is well again", async () => {
  const node = stackNode();
  await node.playing();
  node.gpio.fail(5, new HalError("io", "GPIO5: EIO"));
  node.gpio.fail(6, new HalError("io", "GPIO6: EIO"));
  const said = await until("both", () => {
    const message = node.alarms.get("stack-role") ?? "";
    return message.includes("GPIO5") && message.includes("GPIO6") ? message : undefined;
  });
  expect(said).toStartWith("critical: ");
  expect(node.states.at(-1)?.beating).toBe(false);
  node.gpio.fail(5, undefined);
  node.gpio.fail(6, undefined);
  await until("well again", () => !node.alarms.has("stack-role") && node.states.at(-1)?.beating);
});

test("status says what the HAT is, which lines are used and whether the heart beats", async () => {
  const node = stackNode({ hat: "Pi stack", stack: { heartbeat_gpio: 20 } });
  node.start();
  await until("beating", () => node.states.at(-1)?.beating);
  expect(await node.run("stack.status", signer("bob"))).toMatchObject({
    state: "done",
    result: { hat: "Pi stack", role: true, beating: true, heartbeat_gpio: 20, shutdown_gpio: 6 },
  });
});
