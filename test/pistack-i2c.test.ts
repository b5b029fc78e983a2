import { afterEach, expect, jest, test } from "bun:test";
import { crc8 } from "../hal/pistack.ts";
import { pistackI2c } from "../hal/pistack-i2c.ts";
import { HalError, type I2cLink, type OutletId, type PowerBus } from "../hal/ports.ts";
import { bytes, failure, type I2cLine, notation, PlaybackI2c, passing, scan } from "./fakes.ts";

const BUS: PowerBus = {
  driver: "pistack-i2c",
  device: "/dev/i2c-1",
  boards: [3, 4],
  hardware: 3,
  i2c_base: 0x10,
};
const BOARD_3 = 0x13;

afterEach(() => {
  jest.useRealTimers();
});

/** A block read and the CRC register after it. */
const block = (register: string, read: string, device = BOARD_3): I2cLine[] => [
  { device, write: register, read },
  { device, write: "ff", read: notation(Uint8Array.of(crc8(bytes(read)))) },
];
/** The head of board 3: magic, firmware 5, hardware 3, id 3, prefix 0, and the status. */
const head = (status: string) => block("00", `50 05 03 03 00 ${status}`);
/** Argument, then command, then a result that is there at once. */
const command = (pi: string, code: string, result = "00"): I2cLine[] => [
  { device: BOARD_3, write: `07 ${pi}` },
  { device: BOARD_3, write: `06 ${code}` },
  ...block("08", result),
];
const nack = new HalError("absent", "/dev/i2c-1: nobody at 0x13");

function setUp(lines: I2cLine[]) {
  const link = new PlaybackI2c(lines);
  return { link, power: pistackI2c(link, BUS) };
}

test("a reading, byte for byte: the head, that Pi's counts, and the CRC register after each", async () => {
  const { link, power } = setUp([
    { device: 0x13, write: "00", read: "50 05 03 03 00 09" },
    { device: 0x13, write: "ff", read: "0c" },
    { device: 0x13, write: "18", read: "d6 51 7d 70" },
    { device: 0x13, write: "ff", read: "1f" },
  ]);
  using _ = link;
  const reading = await power.read("3.0");
  expect(reading).toMatchObject({ supply: "on", heartbeat: false });
  expect(reading.volts).toBeCloseTo(5.1, 2);
  expect(reading.amperes).toBeCloseTo(0.98, 2);
  expect(reading.watts).toBeCloseTo(4.998, 2);
  expect(power.counters).toMatchObject({ exchanges: 4, retries: 0 });
});

test.each<[OutletId, string, string, "on" | "off", boolean]>([
  ["3.0", "00", "18", "off", false],
  ["3.0", "01", "18", "on", false],
  ["3.0", "05", "18", "on", true],
  ["3.0", "fa", "18", "off", false],
  ["3.1", "02", "1c", "on", false],
  ["3.1", "0a", "1c", "on", true],
  ["3.1", "f5", "1c", "off", false],
])(
  "outlet %s with status 0x%s is read at 0x%s: %s, heartbeat %p",
  async (outlet, status, register, supply, heartbeat) => {
    const { link, power } = setUp([...head(status), ...block(register, "00 00 00 00")]);
    using _ = link;
    expect(await power.read(outlet)).toEqual({ supply, heartbeat, volts: 0, amperes: 0, watts: 0 });
  },
);

test("a board tells its versions, its input, its rail and its counts", async () => {
  const { link, power } = setUp([
    ...head("00"),
    ...block("10", "63 f2 79 04 d2 1a"),
    ...block("40", "00 07 05 01 02"),
  ]);
  using _ = link;
  const board = await power.readBoard(3);
  expect(board).toMatchObject({ board: 3, firmware: 5, hardware: 3, errorCount: 7, bootCount: 258 });
  expect(board.inputVolts).toBeCloseTo(12.02, 2);
  expect(board.inputAmperes).toBeCloseTo(2, 2);
  expect(board.inputWatts).toBeCloseTo(24.05, 1);
  expect(board.railVolts).toBeCloseTo(5, 2);
});

test.each<[string, (power: ReturnType<typeof pistackI2c>) => Promise<void>, I2cLine[]]>([
  ["on is 0x11", (power) => power.switch("3.0", "on"), command("00", "11")],
  ["off is force off, 0x13", (power) => power.switch("3.1", "off"), command("01", "13")],
  ["signal is 0x21", (power) => power.signal("3.1"), command("01", "21")],
  ["identify lights the board", (power) => power.identify("3.0", true), command("00", "04")],
  ["and darkens it", (power) => power.identify("3.0", false), command("00", "05")],
  [
    "a start policy is written and saved",
    (power) => power.setStartPolicy("3.1", "on"),
    [{ device: BOARD_3, write: "3c 01" }, ...command("01", "f0")],
  ],
  [
    "and taken back",
    (power) => power.setStartPolicy("3.0", "off"),
    [{ device: BOARD_3, write: "34 00" }, ...command("00", "f0")],
  ],
])("%s: the head, the argument, the command, the result", async (_, act, lines) => {
  const { link, power } = setUp([...head("00"), ...lines]);
  using __ = link;
  await act(power);
});

test.each<[OutletId, string, string, "on" | "off"]>([
  ["3.0", "34", "01", "on"],
  ["3.1", "3c", "00", "off"],
])("the start policy of %s is register 0x%s: %s is %s", async (outlet, register, value, policy) => {
  const { link, power } = setUp([...head("00"), ...block(register, value)]);
  using _ = link;
  expect(await power.startPolicy(outlet)).toBe(policy);
});

test("a refused command names the board and the reason, and is not said again", async () => {
  const { link, power } = setUp([...head("00"), ...command("01", "11", "14")]);
  using _ = link;
  expect(await failure(power.switch("3.1", "on"))).toMatchObject({
    code: "refused",
    message: "board 3 on /dev/i2c-1 at 0x13: on: no such Pi (0x14)",
  });
});

test("a busy board is polled until it is done", async () => {
  jest.useFakeTimers();
  const { link, power } = setUp([
    ...head("00"),
    ...command("00", "11", "fe"),
    ...block("08", "fe"),
    ...block("08", "00"),
  ]);
  using _ = link;
  await passing(power.switch("3.0", "on"));
});

test("a board that stays busy is given up after 300 ms", async () => {
  jest.useFakeTimers();
  const busy = Array.from({ length: 59 }, () => block("08", "fe")).flat();
  const { link, power } = setUp([...head("00"), ...command("00", "11", "fe"), ...busy]);
  using _ = link;
  expect(await failure(passing(power.switch("3.0", "on")))).toMatchObject({
    code: "timeout",
    message: "board 3 on /dev/i2c-1 at 0x13: on: still busy after 300 ms",
  });
  expect(power.counters.timeouts).toBe(1);
});

test("a block that fails its CRC is read again", async () => {
  const [read, crc] = head("01") as [I2cLine, I2cLine];
  const { link, power } = setUp([
    { ...read, read: "50 05 03 03 00 00" },
    crc,
    read,
    crc,
    ...block("18", "00 00 00 00"),
  ]);
  using _ = link;
  expect(await power.read("3.0")).toMatchObject({ supply: "on" });
  expect(power.counters).toMatchObject({ exchanges: 6, retries: 1, crcErrors: 1 });
});

test("three blocks that fail their CRC are an error that shows the bytes", async () => {
  const damaged: I2cLine[] = [
    { device: BOARD_3, write: "00", read: "50 05 03 03 00 01" },
    { device: BOARD_3, write: "ff", read: "00" },
  ];
  const { link, power } = setUp([...damaged, ...damaged, ...damaged]);
  using _ = link;
  expect(await failure(power.switch("3.0", "off"))).toMatchObject({
    code: "bad-reply",
    message: "board 3 on /dev/i2c-1 at 0x13: CRC error in register 0x00: 500503030001",
  });
  expect(power.counters).toMatchObject({ retries: 2, crcErrors: 3 });
});

test("a board that acknowledges nothing is tried three times and absent", async () => {
  const line: I2cLine = { device: BOARD_3, write: "00", fails: nack };
  const { link, power } = setUp([line, line, line]);
  using _ = link;
  expect(await failure(power.read("3.1"))).toBe(nack);
  expect(power.counters).toMatchObject({ exchanges: 3, retries: 2, timeouts: 3 });
});

test("a write that was not acknowledged is written again", async () => {
  const { link, power } = setUp([
    ...head("00"),
    { device: BOARD_3, write: "07 00", fails: nack },
    ...command("00", "13"),
  ]);
  using _ = link;
  await power.switch("3.0", "off");
  expect(power.counters.retries).toBe(1);
});

test("a link that returns too few bytes is a bad reply", async () => {
  const link: I2cLink = { exchange: async () => bytes("50 05"), close: async () => {} };
  expect(await failure(pistackI2c(link, BUS).read("3.0"))).toMatchObject({
    code: "bad-reply",
    message: "board 3 on /dev/i2c-1 at 0x13: 2 bytes where 6 were asked",
  });
});

test("nothing is written to a device that is no Pi Stack", async () => {
  const clock = block("00", "23 59 12 01 31 12");
  for (const act of ["switch", "setStartPolicy"] as const) {
    const { link, power } = setUp(clock);
    using _ = link;
    expect(await failure(power[act]("3.0", "on"))).toMatchObject({
      code: "absent",
      message: "board 3 on /dev/i2c-1 at 0x13: no Pi Stack (magic 0x23)",
    });
  }
});

test("commands of many callers do not mix their arguments", async () => {
  const { link, power } = setUp([
    ...head("00"),
    ...command("00", "11"),
    ...head("00"),
    ...command("01", "13"),
    ...head("00"),
    ...block("18", "00 00 00 00"),
  ]);
  using _ = link;
  await Promise.all([power.switch("3.0", "on"), power.switch("3.1", "off"), power.read("3.0")]);
});

test("an outlet of another bus is absent, and nothing is said", async () => {
  const { link, power } = setUp([]);
  using _ = link;
  expect(await failure(power.switch("5.0", "off"))).toMatchObject({
    code: "absent",
    message: "outlet 5.0: not on /dev/i2c-1",
  });
});

test("a scan finds Pi Stacks and passes other devices over", async () => {
  const asked = new Set<number>();
  let last: Uint8Array = new Uint8Array();
  const link: I2cLink = {
    exchange: async (device, write, read) => {
      asked.add(device);
      if (device === 0x18) return new Uint8Array(read).fill(0xff); // somebody else, who has no CRC register
      if (device !== 0x13 && device !== 0x1f) throw new HalError("absent", "nobody");
      if (write[0] === 0xff) return Uint8Array.of(crc8(last));
      last = bytes("50 05 03 03 00 00").subarray(0, read);
      return last;
    },
    close: async () => {},
  };
  const power = pistackI2c(link, BUS);
  expect(await scan(power)).toEqual([
    { board: 3, firmware: 5, hardware: 3 },
    { board: 15, firmware: 5, hardware: 3 },
  ]);
  expect(power.counters).toMatchObject({ retries: 0, timeouts: 0, crcErrors: 0 });
  expect([Math.min(...asked), Math.max(...asked)]).toEqual([0x10, 0x1f]);
});

test("a bus that is broken is not taken for one without boards", async () => {
  const fails = new HalError("io", "/dev/i2c-1: no such device");
  const link: I2cLink = {
    exchange: async () => {
      throw fails;
    },
    close: async () => {},
  };
  expect(await failure(scan(pistackI2c(link, BUS)))).toBe(fails);
});
