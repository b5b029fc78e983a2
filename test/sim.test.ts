import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { HalError } from "../hal/ports.ts";
import { activity, chance } from "../hal/sim/activity.ts";
import { codes } from "../hal/sim/board.ts";
import { openSim, simSerial } from "../hal/sim/hal.ts";
import { view, viewBoard } from "../hal/sim/meter.ts";
import { BOOT_MS, HALT_MS } from "../hal/sim/pi.ts";
import { type SimHost, SimStack } from "../hal/sim/stack.ts";
import { FUZZ, makeStack } from "./sim.ts";

const folder = mkdtempSync(join(tmpdir(), "fruit-sim-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

// Electricity

test("Pis that start together pull the supply down further than Pis that start one after another", () => {
  const { stack, pass } = makeStack();
  const sag = () => viewBoard(stack, 0).inputVolts;
  for (const outlet of stack.outlets) stack.cut(outlet);
  pass(60_000);
  const atRest = sag();
  let lowestInTurn = atRest;
  for (const outlet of stack.outlets) {
    stack.on(outlet);
    lowestInTurn = Math.min(lowestInTurn, sag());
    pass(1000);
  }
  for (const outlet of stack.outlets) stack.cut(outlet);
  pass(60_000);
  for (const outlet of stack.outlets) stack.on(outlet);
  const together = sag();
  pass(150);
  const afterwards = sag();
  expect(atRest).toBeGreaterThan(12);
  expect(lowestInTurn).toBeGreaterThan(11.5);
  expect(together).toBeLessThan(lowestInTurn - 0.3);
  expect(afterwards).toBeGreaterThan(together + 0.4);
});

test("a weak supply sags several times as much", () => {
  const { stack, pass } = makeStack();
  pass(60_000);
  const normal = 12.1 - viewBoard(stack, 0).inputVolts;
  stack.fault("weak-supply", true);
  expect(12.1 - viewBoard(stack, 0).inputVolts).toBeGreaterThan(4 * normal);
});

test("an hour's energy is that of working Pis, and the supply gives more than they take", () => {
  const { stack, pass } = makeStack();
  pass(60_000);
  let taken = 0;
  let given = 0;
  for (let second = 0; second < 3600; second += 10) {
    pass(10_000);
    for (const outlet of stack.outlets) {
      const { volts, amperes } = view(stack, outlet);
      taken += volts * amperes * 10;
    }
    for (const board of stack.boards) {
      const { inputVolts, inputAmperes } = viewBoard(stack, board);
      given += inputVolts * inputAmperes * 10;
    }
  }
  const wattsPerPi = taken / 3600 / stack.outlets.length;
  expect(wattsPerPi).toBeGreaterThan(1.7); // an idle Pi 3
  expect(wattsPerPi).toBeLessThan(4.9); // a busy one
  expect(taken / given).toBeGreaterThan(0.75);
  expect(taken / given).toBeLessThan(0.92);
});

test("the current follows what the Pi is doing", () => {
  const { stack, pass } = makeStack({ boards: [0] });
  const amperes = () => view(stack, "0.0").amperes;
  expect(amperes()).toBeGreaterThan(1.5); // inrush
  pass(1000);
  expect(amperes()).toBeCloseTo(0.55, 2); // starting
  pass(BOOT_MS);
  const loads: number[] = [];
  for (let i = 0; i < 200; i++) {
    pass(10_000);
    loads.push(amperes());
  }
  expect(Math.min(...loads)).toBeGreaterThanOrEqual(0.35);
  expect(Math.max(...loads)).toBeLessThanOrEqual(0.95);
  expect(Math.max(...loads) - Math.min(...loads)).toBeGreaterThan(0.1);
  stack.signal("0.0");
  expect(amperes()).toBeCloseTo(0.45, 2); // stopping
  pass(HALT_MS);
  expect(amperes()).toBeCloseTo(0.07, 2); // halted
  expect(view(stack, "0.0").volts).toBeGreaterThan(5);
  stack.cut("0.0");
  expect(view(stack, "0.0")).toMatchObject({ amperes: 0, volts: 0 });
});

test("two simulators with one seed agree on a Pi's load at any time, and it does not jump", () => {
  const ours = activity(42);
  const theirs = activity(42);
  const other = activity(43);
  let differs = 0;
  for (let at = 1_700_000_000_000; at < 1_700_000_600_000; at += 1000) {
    expect(ours(at)).toBe(theirs(at));
    expect(ours(at)).toBeGreaterThanOrEqual(0);
    expect(ours(at)).toBeLessThanOrEqual(1);
    expect(Math.abs(ours(at + 100) - ours(at))).toBeLessThan(0.05);
    if (ours(at) !== other(at)) differs++;
  }
  expect(differs).toBeGreaterThan(500);
});

// The Pis and their boards' timers

test("a Pi boots, beats, and is taken for well until its last heartbeat is too old", () => {
  const { stack, pass } = makeStack({ boards: [0] });
  pass(BOOT_MS - 1);
  expect(stack.pi("0.0").host).toBe("starting");
  expect(view(stack, "0.0").heartbeat).toBe(false);
  pass(1);
  expect(stack.pi("0.0").host).toBe("running");
  expect(view(stack, "0.0").heartbeat).toBe(true);
  pass(3_600_000);
  expect(view(stack, "0.0").heartbeat).toBe(true);
  stack.signal("0.0");
  pass(6000);
  expect(stack.pi("0.0").host).toBe("halted");
  expect(view(stack, "0.0").heartbeat).toBe(true);
  pass(7000);
  expect(view(stack, "0.0").heartbeat).toBe(false);
});

test.each([
  { asks: "the master", ask: (stack: SimStack) => stack.off("0.0"), delay: "offDelay" as const },
  { asks: "the Pi", ask: (stack: SimStack) => stack.askOff("0.0"), delay: "signalOffDelay" as const },
])("when $asks asks for off the Pi goes down first and the $delay cuts its supply", ({ ask: off, delay }) => {
  const { stack, pass } = makeStack({ boards: [0] });
  stack.set("0.0", delay, 7);
  pass(60_000);
  off(stack);
  expect(stack.pi("0.0").host).toBe("stopping");
  pass(6999);
  expect(stack.pi("0.0")).toMatchObject({ host: "halted", supply: true });
  pass(1);
  expect(stack.pi("0.0")).toMatchObject({ host: "off", supply: false });
});

test("on ends a shutdown that would have cut the supply", () => {
  const { stack, pass } = makeStack({ boards: [0] });
  pass(60_000);
  stack.off("0.0");
  stack.on("0.0");
  pass(600_000);
  expect(stack.pi("0.0").supply).toBe(true);
});

test("an attached host hears what happens to its Pi when it happens, and the boards believe its reports", () => {
  const { stack, pass } = makeStack({ boards: [0] });
  const heard: string[] = [];
  const host: SimHost = {
    powered: () => heard.push("powered"),
    cut: () => heard.push("cut"),
    signalled: () => heard.push("signalled"),
  };
  stack.attach("0.1", host);
  pass(60_000);
  expect(view(stack, "0.1").heartbeat).toBe(false);
  stack.report("0.1", "running");
  expect(view(stack, "0.1").heartbeat).toBe(true);
  stack.signal("0.1");
  stack.report("0.1", "halted");
  stack.cut("0.1");
  stack.cut("0.1");
  stack.report("0.1", "running");
  expect(stack.pi("0.1").host).toBe("off");
  stack.on("0.1");
  stack.on("0.1");
  stack.mainsLoss();
  expect(heard).toEqual(["signalled", "cut", "powered", "cut", "powered"]);
});

// What survives

test("with a state file the end of the process changes nothing, and a loss of supply what the boards keep", () => {
  const statePath = join(folder, "survives.json");
  const first = makeStack({ boards: [0, 1], statePath }).stack;
  first.set("1.0", "onAtStart", 0);
  first.set("0.0", "offDelay", 99);
  first.store(0);
  first.store(1);
  first.cut("0.1");
  const second = makeStack({ boards: [0, 1, 2], statePath }).stack;
  expect(second.pi("0.1").supply).toBe(false);
  expect(second.pi("1.0").supply).toBe(true);
  expect(second.pi("2.0").supply).toBe(true);
  expect(second.board(0).bootCount).toBe(1);
  second.mainsLoss();
  const third = makeStack({ boards: [0, 1], statePath }).stack;
  expect(third.pi("0.1").supply).toBe(true);
  expect(third.pi("1.0").supply).toBe(false);
  expect(third.pi("0.0").live.offDelay).toBe(99);
  expect(third.board(0).bootCount).toBe(2);
});

test("a clock that was set back neither undoes what happened nor starts a Pi twice", () => {
  const statePath = join(folder, "clock.json");
  let now = 1_000_000;
  const stack = () => new SimStack({ boards: [0], seed: 1, now: () => now, statePath });
  const first = stack();
  now += 60_000;
  first.signal("0.1");
  now = 5000;
  const second = stack();
  expect(second.pi("0.0").host).toBe("running");
  expect(view(second, "0.0").amperes).toBeLessThan(1);
  now += HALT_MS;
  expect(second.pi("0.1").host).toBe("halted");
});

test.each([
  { content: "{", says: /is not JSON/ },
  { content: "null", says: /it is no object/ },
  { content: '{"at":0}', says: /boards is no object/ },
  { content: '{"at":"x","boards":{}}', says: /at is "x"/ },
  { content: '{"at":-1,"boards":{}}', says: /at is -1/ },
  { content: '{"at":0,"boards":{"0":{"prefix":0}}}', says: /boards\.0\.storedPrefix is undefined/ },
])("a state file with $content is refused by name and left alone", ({ content, says }) => {
  const statePath = join(folder, "broken.json");
  writeFileSync(statePath, content);
  expect(() => makeStack({ statePath })).toThrow(HalError);
  expect(() => makeStack({ statePath })).toThrow(says);
  expect(() => makeStack({ statePath })).toThrow(/broken\.json/);
  expect(readFileSync(statePath, "utf8")).toBe(content);
});

test("a state file that cannot be written is an error with its name", () => {
  expect(() => makeStack({ statePath: join(folder, "missing", "state.json") })).toThrow(
    /missing\/state\.json/,
  );
});

test("a damaged state file is read as it is or refused by a HalError", () => {
  const statePath = join(folder, "fuzz.json");
  makeStack({ boards: [0, 1], statePath });
  const sound = readFileSync(statePath, "utf8");
  let draws = 0;
  const die = (sides: number) => Math.floor(chance(97, draws++) * sides);
  let refused = 0;
  for (let round = 0; round < FUZZ / 20; round++) {
    const at = die(sound.length);
    const middle = ["", "null", "-1", '"x"', "{}", "[]", "9e99", ","][die(8)];
    writeFileSync(statePath, sound.slice(0, at) + middle + sound.slice(at + die(6)));
    try {
      const { stack } = makeStack({ boards: [0, 1], statePath });
      stack.mainsLoss();
      for (const outlet of stack.outlets) view(stack, outlet);
      for (const board of stack.boards) codes(stack.board(board));
    } catch (error) {
      expect(error).toBeInstanceOf(HalError);
      refused++;
    }
  }
  expect(refused).toBeGreaterThan(FUZZ / 50);
});

// The node

test("a simulated node has a serial number like a Pi's, of its seed or its configuration", () => {
  const open = (options: { serial?: string; seed: number }) =>
    openSim({ boards: [0], wireTime: false, faults: [], clockSynced: true, ...options });
  expect(open({ seed: 1 }).machine.serial).toMatch(/^0{8}[0-9a-f]{8}$/);
  expect(open({ seed: 1 }).machine.serial).toBe(simSerial(1));
  expect(open({ seed: 2 }).machine.serial).not.toBe(simSerial(1));
  expect(open({ seed: 2, serial: "1000abcd" }).machine.serial).toBe("000000001000abcd");
});
