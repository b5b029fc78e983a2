import { afterEach, expect, jest, test } from "bun:test";
import { clusterctrl } from "../hal/clusterctrl.ts";
import { HalError, type PowerBus } from "../hal/ports.ts";
import { failure, type I2cLine, PlaybackI2c, passing, scan } from "./fakes.ts";

const BUS: PowerBus = {
  driver: "clusterctrl",
  device: "/dev/i2c-11",
  boards: [5],
  hardware: 3,
  i2c_base: 0x10,
};
const device = 0x20;

/** Layout 2, 5 Pis, order 20, mode 0, type 4 (Stack). */
const IS_STACK: I2cLine = { device, write: "00", read: "02 05 14 00 04" };
/** DATA0, CMD, and then DATA1, DATA0, CMD and STATUS. */
const command = (data0: string, code: string, answer: string): I2cLine[] => [
  { device, write: `0c ${data0}` },
  { device, write: `0d ${code}` },
  { device, write: "0b", read: answer },
];
const nack = new HalError("absent", "/dev/i2c-11: nobody at 0x20");

afterEach(() => {
  jest.useRealTimers();
});

function setUp(lines: I2cLine[], bus: Partial<PowerBus> = {}) {
  const link = new PlaybackI2c(lines);
  return { link, power: clusterctrl(link, { ...BUS, ...bus }) };
}

test.each([
  ["00", "off"],
  ["01", "on"],
  ["ff", "unknown"],
] as const)(
  "power status 0x%s is a supply that is %s, and nothing else is measured",
  async (data0, supply) => {
    const { link, power } = setUp([IS_STACK, ...command("01", "0f", `00 ${data0} 00 00`)]);
    using _ = link;
    expect(await power.read("5.0")).toEqual({ supply });
  },
);

test.each<[string, (power: ReturnType<typeof clusterctrl>) => Promise<void>, string, string]>([
  ["on", (power) => power.switch("5.0", "on"), "01", "03"],
  ["off", (power) => power.switch("5.3", "off"), "04", "04"],
  ["identify lights ALERT", (power) => power.identify("5.1", true), "02", "05"],
  ["and darkens it", (power) => power.identify("5.1", false), "02", "06"],
])("%s: our Pi 0 is the board's P1", async (_, act, data0, code) => {
  const { link, power } = setUp([IS_STACK, ...command(data0, code, `00 ${data0} 00 00`)]);
  using __ = link;
  await act(power);
});

test("a board tells its type and firmware", async () => {
  const { link, power } = setUp([IS_STACK, ...command("00", "f2", "01 06 00 00")]);
  using _ = link;
  expect(await power.readBoard(5)).toEqual({ board: 5, hardware: 4, firmware: 1.6 });
});

test("outlets are known before anything is said: four, or as many as the bus says", () => {
  expect(setUp([]).power.outlets).toEqual(["5.0", "5.1", "5.2", "5.3"]);
  expect(setUp([], { pis: 2 }).power.outlets).toEqual(["5.0", "5.1"]);
  expect([...setUp([]).power.abilities]).toEqual(["identify"]);
});

test("a Pi that this model has not got is absent: the board itself would answer OK", async () => {
  const { link, power } = setUp([{ device, write: "00", read: "02 02 14 00 02" }]);
  using _ = link;
  expect(await failure(power.switch("5.2", "on"))).toMatchObject({
    code: "absent",
    message: "board 5 on /dev/i2c-11 at 0x20: outlet 5.2: it has 2 Pis",
  });
});

test.each([
  ["a Cluster HAT's expander, its Pis on", "8f 8f 00 00 ff"],
  ["an expander with pull-ups on seven pins", "02 02 00 00 7f"],
  ["an expander that repeats one register", "02 02 02 02 02"],
  ["nobody, the bus floating", "ff ff ff ff ff"],
  ["an unknown layout", "03 05 14 00 04"],
  ["a board without Pis", "02 00 14 00 04"],
])("nothing is written to %s", async (_, read) => {
  const stranger: I2cLine = { device, write: "00", read };
  const { link, power } = setUp([stranger, stranger]);
  using __ = link;
  expect(await failure(power.switch("5.0", "off"))).toMatchObject({
    code: "absent",
    message: `board 5 on /dev/i2c-11 at 0x20: no ClusterCTRL (registers 0 to 4 read ${read.replaceAll(" ", "")})`,
  });
  expect(await scan(power)).toEqual([]);
});

test.each([
  ["01", "not supported (0x01)"],
  ["02", "no such Pi (0x02)"],
  ["03", "unknown command (0x03)"],
  ["09", "an undocumented status (0x09)"],
])("status 0x%s is a refusal: %s", async (status, text) => {
  const { link, power } = setUp([IS_STACK, ...command("01", "0f", `00 ff 00 ${status}`)]);
  using _ = link;
  expect(await failure(power.read("5.0"))).toMatchObject({
    code: "refused",
    message: `board 5 on /dev/i2c-11 at 0x20: powerStatus 1: ${text}`,
  });
});

test("a board at work, acknowledging nothing or showing its command, is polled", async () => {
  jest.useFakeTimers();
  const { link, power } = setUp([
    IS_STACK,
    ...command("03", "0f", "00 03 0f 00"),
    { device, write: "0b", fails: nack },
    { device, write: "0b", read: "00 01 00 00" },
  ]);
  using _ = link;
  expect(await passing(power.read("5.2"))).toEqual({ supply: "on" });
  expect(power.counters.timeouts).toBe(0);
});

test("a board that never gets done is given up after three tries of 100 ms", async () => {
  jest.useFakeTimers();
  const stuck: I2cLine = { device, write: "0b", read: "00 01 03 00" };
  const once = [...command("01", "03", "00 01 03 00"), ...Array.from({ length: 19 }, () => stuck)];
  const { link, power } = setUp([IS_STACK, ...once, ...once, ...once]);
  using _ = link;
  expect(await failure(passing(power.switch("5.0", "on")))).toMatchObject({
    code: "timeout",
    message: "board 5 on /dev/i2c-11 at 0x20: on 1: not done after 100 ms",
  });
  expect(power.counters).toMatchObject({ retries: 2, timeouts: 3 });
});

test("a command is said again together with its Pi: DATA0 may hold the last answer by then", async () => {
  const { link, power } = setUp([
    IS_STACK,
    { device, write: "0c 03" },
    { device, write: "0d 0f", fails: nack },
    ...command("03", "0f", "00 00 00 00"),
  ]);
  using _ = link;
  expect(await power.read("5.2")).toEqual({ supply: "off" });
  expect(power.counters).toMatchObject({ retries: 1, timeouts: 1 });
});

test("what the board cannot do is refused without a word on the bus", async () => {
  const { link, power } = setUp([]);
  using _ = link;
  for (const act of [power.signal("5.0"), power.startPolicy("5.0"), power.setStartPolicy("5.0", "on")]) {
    const caught = await failure(act);
    expect(caught.code).toBe("refused");
    expect(caught.message).toStartWith("outlet 5.0: a ClusterCTRL cannot ");
  }
  expect((await failure(power.switch("4.0", "on"))).code).toBe("absent");
  expect((await failure(power.readBoard(4))).code).toBe("absent");
});

test("a scan finds the one board of the bus", async () => {
  const { link, power } = setUp([IS_STACK, ...command("00", "f2", "01 03 00 00")]);
  using _ = link;
  expect(await scan(power)).toEqual([{ board: 5, hardware: 4, firmware: 1.3 }]);
});

test("a bus with two boards is a mistake: they all answer at 0x20", () => {
  expect(() => setUp([], { boards: [5, 6] })).toThrow("/dev/i2c-11: a ClusterCTRL bus has one board, not 2");
});
