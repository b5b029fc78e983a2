import { expect, test } from "bun:test";
import type { ListedLine } from "../agent/gpio/service.ts";
import { changeText, parseChange } from "../agent/gpio/watch.ts";
import { HalError } from "../hal/ports.ts";
import { ANONYMOUS, signer } from "./desk.ts";
import { node } from "./gpio-bench.ts";
import { until } from "./node.ts";

test("an input is read as the configuration means it, and given back", async () => {
  const { ask, gpio } = node();
  expect(await ask("get", { lines: ["door"] })).toEqual({
    state: "done",
    result: { lines: [{ line: "door", gpio: 24, value: 0 }] },
  });
  gpio.outside(24, 0);
  expect(await ask("get", { lines: ["door"] })).toMatchObject({ result: { lines: [{ value: 1 }] } });
  expect(gpio.list()[24]?.consumer).toBeUndefined();
});

test("without names, all that the configuration names are read, and none of them moves", async () => {
  const { ask, gpio } = node();
  const { result } = await ask("get");
  expect(result).toMatchObject({ lines: [{ line: "door" }, { line: "light" }, { line: "reset" }] });
  expect([...gpio.levels(25), ...gpio.levels(26)]).toEqual([]);
  expect(gpio.list()[25]?.direction).toBe("in");
});

test("an output is set, read back, and kept open until the service ends", async () => {
  const { ask, gpio, opened, service } = node();
  expect(await ask("set", { line: "light", value: 1 })).toEqual({
    state: "done",
    result: { line: "light", gpio: 25, value: 1 },
  });
  expect([gpio.level(25), gpio.list()[25]?.consumer]).toEqual([1, "fruit"]);
  await ask("set", { line: "reset", value: 1 });
  expect(gpio.level(26)).toBe(0);
  await ask("set", { line: "light", value: 0 });
  expect(opened).toEqual(["25 as-is", "26 as-is"]);
  await service.close();
  expect([gpio.level(25), gpio.list()[25]]).toEqual([0, { gpio: 25, name: "GPIO25", direction: "out" }]);
});

test("an output that does not follow is unconfirmed", async () => {
  // The simulated relay behind GPIO17 sticks, and its line with it.
  const { ask, stack } = node({ gpio: { relay: { gpio: 17, direction: "out" } } });
  stack.fault("stuck-on", true);
  expect(await ask("set", { line: "relay", value: 0 })).toMatchObject({
    state: "unconfirmed",
    message: expect.stringContaining("relay: reads 1 after 0 was set"),
  });
});

test("a pulse is the opposite for as long as was asked, and back", async () => {
  const { ask, gpio } = node();
  await ask("set", { line: "reset", value: 0 });
  expect(await ask("pulse", { line: "reset", ms: 60 })).toMatchObject({
    state: "done",
    result: { line: "reset", value: 0, ms: 60 },
  });
  const [before, during, after] = gpio.levels(26);
  expect([before?.level, during?.level, after?.level]).toEqual([1, 0, 1]);
  expect((after?.atMs ?? 0) - (during?.atMs ?? 0)).toBeGreaterThanOrEqual(55);
});

test("a pulse is over at once when the agent stops, with the line as it was", async () => {
  const { ask, gpio, stop } = node();
  const pulse = ask("pulse", { line: "light", ms: 5000 });
  await until("high", () => gpio.level(25) === 1);
  const from = performance.now();
  stop();
  expect(await pulse).toMatchObject({ state: "failed", code: "stopping" });
  expect(performance.now() - from).toBeLessThan(4500);
  expect(gpio.level(25)).toBe(0);
});

test("while a line is pulsed nobody else moves it, and it can be read", async () => {
  const { ask, refused, gpio, stop } = node();
  const pulse = ask("pulse", { line: "light", ms: 5000 });
  await until("high", () => gpio.level(25) === 1);
  expect((await refused("pulse", { line: "light" })).code).toBe("busy");
  expect((await refused("set", { line: "light", value: 1 })).code).toBe("busy");
  expect(await ask("get", { lines: ["light"] })).toMatchObject({ result: { lines: [{ value: 1 }] } });
  stop();
  await pulse;
  expect((await ask("set", { line: "light", value: 1 })).state).toBe("done");
});

test.each([
  { ms: 19, says: "reset: 19 ms; a pulse of it takes 20 to 400 ms" },
  { ms: 401, says: "reset: 401 ms; a pulse of it takes 20 to 400 ms" },
])("a pulse of $ms ms is refused with the limits of its line, and nothing moves", async ({ ms, says }) => {
  const { refused, gpio } = node();
  expect(await refused("pulse", { line: "reset", ms })).toMatchObject({ code: "bad-args", message: says });
  expect(gpio.levels(26)).toEqual([]);
});

test.each([
  {
    verb: "set",
    args: { line: "door", value: 1 },
    says: 'door: is an input; to set it, say "direction": "out"',
  },
  { verb: "pulse", args: { line: "door" }, says: 'door: is an input; to pulse it, say "direction": "out"' },
  { verb: "watch", args: { lines: ["light"] }, says: "light: is an output; it changes when it is set" },
])("gpio $verb is refused for a line that goes the other way", async ({ verb, args, says }) => {
  const { refused, gpio } = node();
  expect(await refused(verb, args)).toMatchObject({ code: "bad-args", message: says });
  expect(gpio.list().filter(({ consumer }) => consumer)).toEqual([]);
});

test.each([
  { word: "window", says: 'no line "window"; there are door, light, reset' },
  { word: "13", says: 'no line "13"; there are door, light, reset' },
  { word: "GPIO5", says: "GPIO5 is taken: Pi Stack heartbeat; there are door, light, reset" },
  { word: "14", says: "GPIO14 is taken: console rack1-a; there are door, light, reset" },
  { word: "0", says: "GPIO0 is taken: HAT ID EEPROM; there are door, light, reset" },
])("$word is refused, by whose it is", async ({ word, says }) => {
  const { refused, opened } = node({ consoles: { "rack1-a": { device: "/dev/serial0" } } }, true);
  expect(await refused("set", { line: word, value: 1 })).toMatchObject({
    code: "unknown-gpio",
    message: says,
  });
  expect((await refused("get", { lines: [word] })).code).toBe("unknown-gpio");
  expect(opened).toEqual([]);
});

test("a line that a driver of the kernel has is refused by its name; one that fails is an error, and is opened anew", async () => {
  const { ask, refused, gpio, opened } = node();
  gpio.takenBy(25, "spi0 CS1");
  const busy = { code: "busy", message: "light: GPIO25: is taken by spi0 CS1" };
  expect(await refused("set", { line: "light", value: 1 })).toMatchObject(busy);
  gpio.takenBy(25, undefined);
  gpio.fail(25, new HalError("io", "GPIO25: EIO"));
  expect(await ask("set", { line: "light", value: 1 }).catch((error) => error.code)).toBe("io");
  gpio.fail(25, undefined);
  expect((await ask("set", { line: "light", value: 1 })).state).toBe("done");
  gpio.fail(25, new HalError("io", "GPIO25: EIO"));
  expect(await ask("get", { lines: ["light"] }).catch((error) => error.code)).toBe("io");
  gpio.fail(25, undefined);
  opened.length = 0;
  expect(await ask("get", { lines: ["light"] })).toMatchObject({ result: { lines: [{ value: 1 }] } });
  expect(opened).toEqual(["25 as-is"]);
});

test("the list says of each line who has it: the configuration first, then the kernel", async () => {
  const stack = { heartbeat_gpio: 5, shutdown_gpio: 6 };
  const power = {
    buses: [
      { driver: "gpio", boards: [9], lines: [17, 27] },
      { driver: "pistack-i2c", device: "/dev/i2c-1", boards: [0] },
    ],
  };
  const consoles = { "rack1-a": { device: "/dev/ttyAMA0" } };
  const { ask, gpio, machine } = node({ stack, power, consoles }, true);
  machine.read = () => new TextEncoder().encode("Pi stack\0");
  gpio.takenBy(4, "onewire@0");
  gpio.takenBy(17, "fruit");
  const { result } = await ask("list", {}, ANONYMOUS);
  const { lines } = result as { lines: ListedLine[] };
  expect(lines).toHaveLength(28);
  expect(Object.fromEntries(lines.flatMap((l) => (l.used_by ? [[l.gpio, l.used_by]] : [])))).toEqual({
    0: "HAT ID EEPROM (Pi stack)",
    1: "HAT ID EEPROM (Pi stack)",
    2: "I2C bus 1",
    3: "I2C bus 1",
    4: "onewire@0",
    5: "Pi Stack heartbeat (Pi stack)",
    6: "Pi Stack shutdown line (Pi stack)",
    14: "console rack1-a",
    15: "console rack1-a",
    17: "relay of outlet 9.0",
    27: "relay of outlet 9.1",
  });
  expect(lines[24]).toEqual({ gpio: 24, label: "GPIO24", line: "door", direction: "in" });
});

test("a key that may switch only some outlets moves no line", async () => {
  const { refused, gpio } = node();
  const limited = { ...signer("alice@desk"), mayOutlet: (outlet: string) => outlet.startsWith("0.") };
  for (const verb of ["set", "pulse"])
    expect(
      await refused(verb, { line: "light", ...(verb === "set" ? { value: 1 } : {}) }, limited),
    ).toMatchObject({
      code: "unauthorised",
      message: expect.stringContaining("only with outlets=*"),
    });
  expect(gpio.levels(25)).toEqual([]);
});

test("reading is for all, moving needs the role power and a signature", () => {
  const { service } = node();
  const rows = service.commands.map(({ verb, tier, role }) => `${verb} ${tier} ${role}`);
  expect(rows).toEqual([
    "gpio.list 0 read",
    "gpio.get 0 read",
    "gpio.set 2 power",
    "gpio.pulse 2 power",
    "gpio.watch 0 read",
  ]);
});

test("a watch tells how a line is and then each change, to all who watch, until they stop", async () => {
  const { ask, gpio, said } = node();
  const watches = [
    ask("watch", { lines: ["door"], seconds: 1 }),
    ask("watch", { lines: ["door"], seconds: 1 }),
  ];
  await until("both", () => said.length === 2);
  gpio.outside(24, 0);
  gpio.outside(24, 1);
  // Reading goes on meanwhile, on the same line.
  expect(await ask("get", { lines: ["door"] })).toMatchObject({ result: { lines: [{ value: 0 }] } });
  const [one] = await Promise.all(watches);
  expect(one).toEqual({ state: "done", result: { changes: 2, not_told: 0 } });
  expect(said.map((text) => parseChange(text)?.value)).toEqual([0, 0, 1, 1, 0, 0]);
  expect(said.map((text) => parseChange(text)?.line)).toEqual(Array(6).fill("door"));
  expect(gpio.list()[24]?.consumer).toBeUndefined();
});

test("a watch that ends leaves the line to the one that goes on", async () => {
  const { ask, gpio, said, stop } = node();
  const long = ask("watch", { lines: ["door"], seconds: 60 });
  await until("the first", () => said.length === 1);
  await ask("watch", { lines: ["door"], seconds: 1 });
  gpio.outside(24, 0);
  expect(said).toHaveLength(3);
  stop();
  expect(await long).toMatchObject({ result: { changes: 1 } });
});

test("a line that chatters floods nobody: what is left out is counted", async () => {
  const { ask, gpio, said } = node();
  const watch = ask("watch", { lines: ["door"], seconds: 1 });
  await until("the first", () => said.length === 1);
  for (let i = 0; i < 500; i++) gpio.outside(24, (i % 2) as 0 | 1);
  const { result } = await watch;
  const { changes, not_told } = result as { changes: number; not_told: number };
  expect(changes).toBeGreaterThanOrEqual(499);
  // A second may have ended meanwhile.
  expect(said.length - 1).toBeLessThanOrEqual(60);
  expect(not_told).toBe(changes - (said.length - 1));
  // However it chattered, the last that is told is how it is.
  expect(gpio.level(24)).toBe(1);
  expect(parseChange(said.at(-1) ?? "")?.value).toBe(0);
});

test("after a burst the line's value is told when the second is over, though nothing changes any more", async () => {
  const { ask, gpio, said, stop } = node();
  const watch = ask("watch", { lines: ["door"], seconds: 3600 });
  await until("the first", () => said.length === 1);
  for (let i = 0; i < 300; i++) gpio.outside(24, (i % 2) as 0 | 1);
  await until("how it is", () => parseChange(said.at(-1) ?? "")?.not_told);
  expect(parseChange(said.at(-1) ?? "")?.value).toBe(0);
  stop();
  await watch;
});

test("a pulse that begins while the line is set waits for it, and returns to what was set", async () => {
  const { ask, gpio, refused } = node();
  const both = Promise.all([
    ask("set", { line: "light", value: 1 }),
    ask("pulse", { line: "light", ms: 20 }),
  ]);
  expect((await refused("set", { line: "light", value: 0 })).message).toContain("is being pulsed");
  expect((await both).map(({ state }) => state)).toEqual(["done", "done"]);
  expect(gpio.levels(25).map(({ level }) => level)).toEqual([1, 0, 1]);
});

test("a line that fails during a pulse, when somebody reads it, is opened anew and put back", async () => {
  const { ask, gpio } = node();
  const pulse = ask("pulse", { line: "light", ms: 300 });
  await until("up", () => gpio.level(25) === 1);
  gpio.fail(25, new HalError("io", "GPIO25: EIO"));
  await ask("get", { lines: ["light"] }).catch(() => undefined);
  gpio.fail(25, undefined);
  expect((await pulse).state).toBe("done");
  expect(gpio.level(25)).toBe(0);
});

test("the kernel's console and an I²C bus that is there have their lines of the header", async () => {
  const { ask, machine } = node();
  machine.read = (path) =>
    path === "/sys/class/tty/console/active" ? new TextEncoder().encode("tty1 ttyS0\n") : undefined;
  machine.list = (path) => (path === "/sys/class/i2c-dev" ? ["i2c-1"] : []);
  const { result } = await ask("list");
  const { lines } = result as { lines: ListedLine[] };
  expect([2, 3, 14, 15].map((gpio) => lines[gpio]?.used_by)).toEqual([
    "I2C bus 1",
    "I2C bus 1",
    "the kernel's console",
    "the kernel's console",
  ]);
});

test("a line that the configuration names and the kernel's console or a bus has is left alone", async () => {
  const { gpio, machine, refused } = node({
    gpio: { light: { gpio: 14, direction: "out" }, lamp: { gpio: 2, direction: "out" } },
  });
  machine.read = (path) =>
    path === "/sys/class/tty/console/active" ? new TextEncoder().encode("tty1 ttyS0\n") : undefined;
  machine.list = (path) => (path === "/sys/class/i2c-dev" ? ["i2c-1"] : []);
  expect(await refused("set", { line: "light", value: 1 })).toMatchObject({
    code: "busy",
    message: "light: GPIO14 is taken: the kernel's console",
  });
  expect(await refused("get", { lines: ["lamp"] })).toMatchObject({
    code: "busy",
    message: "lamp: GPIO2 is taken: I2C bus 1",
  });
  expect([...gpio.levels(14), ...gpio.levels(2)]).toEqual([]);
});

test("a watch ends with the agent, and its line is given back", async () => {
  const { ask, gpio, said, stop } = node();
  const watch = ask("watch", { lines: ["door"], seconds: 3600 });
  await until("the first", () => said.length === 1);
  stop();
  expect((await watch).state).toBe("done");
  expect(gpio.list()[24]?.consumer).toBeUndefined();
});

test("there are so many watches and no more, and anybody's leave room for those who answer for theirs", async () => {
  const { ask, refused, said, stop } = node();
  const args = { lines: ["door"], seconds: 60 };
  const watches = Array.from({ length: 4 }, () => ask("watch", args, ANONYMOUS));
  await until("four", () => said.length === 4);
  expect((await refused("watch", args, ANONYMOUS)).code).toBe("busy");
  for (let i = 0; i < 4; i++) watches.push(ask("watch", args));
  await until("eight", () => said.length === 8);
  expect((await refused("watch", args)).code).toBe("busy");
  stop();
  await Promise.all(watches);
});

test.each([{ not_told: 0 }, { not_told: 17 }])(
  "what a change is told as can be taken apart again: %j",
  (more) => {
    const change = { at: "2026-11-23T07:00:00.123Z", line: "door", value: 1 as const, ...more };
    const { not_told, ...plain } = change;
    expect(parseChange(changeText(change))).toEqual(not_told ? change : plain);
    expect(parseChange("outlet 0.0: on")).toBeUndefined();
  },
);
