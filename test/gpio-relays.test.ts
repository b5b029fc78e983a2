import { expect, test } from "bun:test";
import { openGpio } from "../hal/gpio.ts";
import { gpioRelays } from "../hal/gpio-relays.ts";
import { FLAG } from "../hal/native/gpiochip.ts";
import { type GpioUse, HalError, type PowerBus } from "../hal/ports.ts";
import { openSim } from "../hal/sim/hal.ts";
import { failure, scan } from "./fakes.ts";
import { FakeChips, FakeSysfs, kernelOf } from "./gpio.ts";

const BUS: PowerBus = {
  driver: "gpio",
  device: "sim",
  boards: [9],
  lines: [5, 13],
  hardware: 3,
  i2c_base: 0x10,
};

/** Relays on lines that nothing else hangs on. */
function relays(bus: Partial<PowerBus> = {}) {
  const { gpio, openGpio } = openSim({ seed: 1, boards: [], wireTime: false, faults: [], clockSynced: true });
  const opened: string[] = [];
  const hal = {
    openGpio: (line: number, use: GpioUse) => {
      opened.push(`${line} ${use.direction}`);
      return openGpio(line, use);
    },
  };
  return { gpio, opened, power: gpioRelays(hal, { ...BUS, ...bus }) };
}

test("the n-th line is the n-th outlet, and nothing else moves", async () => {
  const { gpio, power } = relays();
  expect(power.outlets).toEqual(["9.0", "9.1"]);
  await power.switch("9.1", "on");
  expect([gpio.level(13), gpio.list()[5]?.direction]).toEqual([1, "in"]);
  expect(await power.read("9.1")).toEqual({ supply: "on" });
  await power.switch("9.1", "off");
  expect([gpio.level(13), gpio.list()[13]?.direction]).toEqual([0, "out"]);
  expect(await power.read("9.1")).toEqual({ supply: "off" });
});

test("where low switches on, the level is the opposite, from the first moment that the line is driven", async () => {
  const { gpio, power } = relays({ active_low: true });
  await power.switch("9.0", "on");
  expect(gpio.levels(5).map(({ level }) => level)).toEqual([0]);
  expect(await power.read("9.0")).toEqual({ supply: "on" });
  await power.switch("9.0", "off");
  expect(gpio.level(5)).toBe(1);
  expect(await power.read("9.0")).toEqual({ supply: "off" });
});

test.each([
  { active_low: false, level: 0, supply: "off" },
  { active_low: false, level: 1, supply: "unknown" },
  { active_low: true, level: 1, supply: "off" },
  { active_low: true, level: 0, supply: "unknown" },
] as const)(
  "a line that nobody drives and that is $level is $supply (active_low $active_low)",
  async (row) => {
    const { gpio, power } = relays({ active_low: row.active_low });
    gpio.outside(5, row.level);
    expect(await power.read("9.0")).toEqual({ supply: row.supply });
  },
);

test("opening, reading and closing move no line", async () => {
  const { gpio, opened, power } = relays();
  expect(opened).toEqual([]);
  await power.read("9.0");
  await power.readBoard(9);
  await scan(power);
  await power.close();
  expect(opened).toEqual(["5 as-is", "13 as-is"]);
  expect([...gpio.levels(5), ...gpio.levels(13)]).toEqual([]);
  expect(gpio.list()[5]).toEqual({ gpio: 5, name: "GPIO5", direction: "in" });
  expect((await failure(power.read("9.0"))).code).toBe("io");
});

test("what is read is what the pin says now: somebody else's switching shows", async () => {
  await using sysfs = new FakeSysfs();
  sysfs.export(5, { direction: "out", value: "1" });
  const power = gpioRelays({ openGpio: (gpio, use) => openGpio(gpio, use, kernelOf({ sysfs })) }, BUS);
  expect(await power.read("9.0")).toEqual({ supply: "on" });
  sysfs.put("gpio517/value", "0\n");
  expect(await power.read("9.0")).toEqual({ supply: "off" });
  await power.close();
  expect(sysfs.line(5, "direction")).toBe("out\n");
});

test("on the character device a relay that is on stays on when the agent opens its line", async () => {
  using chips = new FakeChips();
  Object.assign(chips.line(5), { flags: FLAG.output, level: 1 });
  const power = gpioRelays({ openGpio: (gpio, use) => openGpio(gpio, use, kernelOf({ chips })) }, BUS);
  expect(await power.read("9.0")).toEqual({ supply: "on" });
  expect(chips.line(5).done).toEqual(["as it is"]);
  await power.switch("9.0", "off");
  expect(chips.line(5).done).toEqual(["as it is", "output 0"]);
  await power.close();
});

test("a line that failed is opened anew, and what failed is counted", async () => {
  const { gpio, opened, power } = relays();
  await power.switch("9.0", "on");
  gpio.fail(5, new HalError("io", "GPIO5: EIO"));
  expect((await failure(power.read("9.0"))).code).toBe("io");
  expect((await failure(power.read("9.0"))).code).toBe("io");
  gpio.fail(5, undefined);
  expect(await power.read("9.0")).toEqual({ supply: "on" });
  expect(opened).toEqual(["5 as-is", "5 as-is", "5 as-is"]);
  expect(power.counters).toEqual({ exchanges: 4, retries: 0, crcErrors: 0, timeouts: 0, otherErrors: 2 });
});

test("a line that somebody else has makes its outlet an error that says whose it is, and no other", async () => {
  const { gpio, power } = relays();
  gpio.takenBy(5, "spi0 CS0");
  expect(await failure(power.read("9.0"))).toMatchObject({
    code: "busy",
    message: "GPIO5: is taken by spi0 CS0",
  });
  expect(await power.read("9.1")).toEqual({ supply: "off" });
  expect((await failure(power.readBoard(9))).code).toBe("busy");
});

test("two at once open a line once", async () => {
  const { opened, power } = relays();
  await Promise.all([power.read("9.0"), power.read("9.0"), power.switch("9.0", "on")]);
  expect(opened).toEqual(["5 as-is"]);
});

test.each([
  { bus: { boards: [1, 2] }, says: "2 boards and 2 lines" },
  { bus: { lines: undefined }, says: "1 boards and 0 lines" },
])("a bus of $says is refused", ({ bus, says }) => {
  expect(() => relays(bus)).toThrow(says);
});
