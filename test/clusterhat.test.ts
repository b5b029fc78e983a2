import { expect, test } from "bun:test";
import { parseConfig } from "../agent/config.ts";
import { clusterhat } from "../hal/clusterhat.ts";
import { HalError, type PowerBus } from "../hal/ports.ts";
import { openPower } from "../hal/power.ts";
import { openSim } from "../hal/sim/hal.ts";
import { failure, type I2cLine, PlaybackI2c, scan } from "./fakes.ts";

const BUS: PowerBus = {
  driver: "clusterhat",
  device: "/dev/i2c-1",
  boards: [5],
  hardware: 3,
  i2c_base: 0x10,
};
const device = 0x20;
const PIS = ["5.0", "5.1", "5.2", "5.3"] as const;

const hex = (byte: number) => byte.toString(16).padStart(2, "0");
/** A register that is read: what each of the two reads says, the same unless told. */
const reads = (register: string, first: string, second = first): I2cLine[] =>
  [first, second].map((read) => ({ device, write: register, read }));
/** A register that is written and read back. */
const writes = (register: string, value: string, held = value): I2cLine[] => [
  { device, write: `${register} ${value}` },
  ...reads(register, held),
];
const IS_EXPANDER = reads("02", "00");
/** A pin that is an output already gets another level. */
const drives = (out: string, then: string): I2cLine[] => [
  ...IS_EXPANDER,
  ...reads("01", out),
  ...writes("01", then),
  ...reads("03", "00"),
];
const nack = new HalError("absent", "/dev/i2c-1: nobody at 0x20");

function setUp(lines: I2cLine[], bus: Partial<PowerBus> = {}) {
  const link = new PlaybackI2c(lines);
  return { link, power: clusterhat(link, { ...BUS, ...bus }) };
}

test.each([
  ["its output is high", "5.1", "00", "92", "on"],
  ["its output is low, the others' high", "5.1", "00", "9d", "off"],
  ["nobody has set up the HAT and its pin is low", "5.0", "ff", "f0", "off"],
  ["nobody has set up the HAT and its pin is high", "5.0", "ff", "ff", "unknown"],
  ["its pin alone is an output, and high", "5.3", "f7", "ff", "on"],
  ["its pin alone is an input, and high", "5.3", "08", "9f", "unknown"],
] as const)(
  "when %s, the supply of %s is told by DIR %s and IN %s: %s",
  async (_, outlet, dir, pins, supply) => {
    const { link, power } = setUp([...IS_EXPANDER, ...reads("03", dir), ...reads("00", pins)]);
    using __ = link;
    expect(await power.read(outlet)).toEqual({ supply });
  },
);

test("whatever the other pins are, switching a Pi or ALERT leaves them so", async () => {
  for (let out = 0; out <= 0xff; out++) {
    for (const high of [true, false]) {
      const then = (pin: number) => hex(high ? out | (1 << pin) : out & ~(1 << pin));
      for (const [pin, outlet] of PIS.entries()) {
        const { link, power } = setUp(drives(hex(out), then(pin)));
        using _ = link;
        await power.switch(outlet, high ? "on" : "off");
      }
      const { link, power } = setUp(drives(hex(out), then(6)));
      using _ = link;
      await power.identify("5.2", high);
    }
  }
});

test.each([
  ["on", "5.0", "ff", "fe"],
  ["off", "5.2", "fb", "fb"],
] as const)(
  "on a fresh expander %s of %s sets the level first and then makes that pin alone an output",
  async (to, outlet, out, dir) => {
    const { link, power } = setUp([
      ...IS_EXPANDER,
      ...reads("01", "ff"),
      ...writes("01", out),
      ...reads("03", "ff"),
      ...writes("03", dir),
    ]);
    using _ = link;
    await power.switch(outlet, to);
  },
);

test("two commands at once are one after the other, and neither undoes the other", async () => {
  const { link, power } = setUp([...drives("90", "91"), ...drives("91", "93"), ...drives("93", "92")]);
  using _ = link;
  await Promise.all([power.switch("5.0", "on"), power.switch("5.1", "on"), power.switch("5.0", "off")]);
});

test("a reading waits for a command under way", async () => {
  const { link, power } = setUp([
    ...drives("90", "91"),
    ...IS_EXPANDER,
    ...reads("03", "00"),
    ...reads("00", "91"),
  ]);
  using _ = link;
  const [, reading] = await Promise.all([power.switch("5.0", "on"), power.read("5.0")]);
  expect(reading).toEqual({ supply: "on" });
});

test("a register is believed once it reads the same twice: a wrong bit is another Pi's supply", async () => {
  const { link, power } = setUp([
    ...IS_EXPANDER,
    ...reads("01", "9e", "9f"),
    ...reads("01", "9f"),
    ...writes("01", "9e"),
    ...reads("03", "00"),
  ]);
  using _ = link;
  await power.switch("5.0", "off");
  expect(power.counters).toMatchObject({ retries: 1, crcErrors: 1, timeouts: 0, otherErrors: 0 });
});

test("an output that arrived damaged is said again as it was meant, others' bits and all", async () => {
  const { link, power } = setUp([
    ...IS_EXPANDER,
    ...reads("01", "9f"),
    ...writes("01", "9e", "96"),
    ...writes("01", "9e"),
    ...reads("03", "00"),
  ]);
  using _ = link;
  await power.switch("5.0", "off");
});

test("a write whose acknowledgement is lost is said again", async () => {
  const { link, power } = setUp([
    ...IS_EXPANDER,
    ...reads("01", "90"),
    { device, write: "01 91", fails: nack },
    ...writes("01", "91"),
    ...reads("03", "00"),
  ]);
  using _ = link;
  await power.switch("5.0", "on");
  expect(power.counters).toMatchObject({ retries: 1, timeouts: 1 });
});

test("an output that does not hold what was written is an error, and no pin becomes an output", async () => {
  const deaf = writes("01", "fe", "ff");
  const { link, power } = setUp([...IS_EXPANDER, ...reads("01", "ff"), ...deaf, ...deaf, ...deaf]);
  using _ = link;
  expect(await failure(power.switch("5.0", "off"))).toMatchObject({
    code: "bad-reply",
    message: "board 5 on /dev/i2c-1 at 0x20: OUT reads 0xff after 0xfe",
  });
});

test.each([
  ["a ClusterCTRL, its order there", "14"],
  ["nobody, the bus floating", "ff"],
])("nothing is written to %s", async (_, order) => {
  const stranger = reads("02", order);
  const { link, power } = setUp([...stranger, ...stranger, ...stranger]);
  using __ = link;
  for (const act of [power.switch("5.0", "off"), power.identify("5.0", true)]) {
    expect(await failure(act)).toMatchObject({
      code: "absent",
      message: `board 5 on /dev/i2c-1 at 0x20: no Cluster HAT (register 2 reads 0x${order})`,
    });
  }
  expect(await scan(power)).toEqual([]);
});

test("each of the two drivers of 0x20 refuses the other's board", async () => {
  const hal = openSim({ seed: 7, boards: [0, 1], wireTime: false, faults: [], clockSynced: true });
  for (const [driver, device] of [
    ["clusterhat", "i2c-clusterctrl"],
    ["clusterctrl", "i2c-clusterhat"],
  ] as const) {
    const power = await openPower(hal, { ...BUS, driver, device });
    expect((await failure(power.switch("5.0", "off"))).code).toBe("absent");
    expect(await scan(power)).toEqual([]);
  }
  expect(hal.stack.outlets.map((outlet) => hal.stack.pi(outlet).supply)).toEqual([true, true, true, true]);
});

test("a simulated pin that is an input switches nothing, and its Pi's supply is not known to be on", async () => {
  const hal = openSim({ seed: 7, boards: [0, 1], wireTime: false, faults: [], clockSynced: true });
  const supplies = () => hal.stack.outlets.map((outlet) => hal.stack.pi(outlet).supply);
  const link = await hal.openI2c("i2c-clusterhat");
  await link.exchange(device, Uint8Array.of(0x03, 0xff), 0);
  await link.exchange(device, Uint8Array.of(0x01, 0x00), 0);
  expect(supplies()).toEqual([true, true, true, true]);
  const power = clusterhat(link, BUS);
  expect(await power.read("5.1")).toEqual({ supply: "unknown" });
  await power.switch("5.1", "off");
  expect(await power.read("5.1")).toEqual({ supply: "off" });
  expect(supplies()).toEqual([true, false, true, true]);
});

test("a HAT that does not answer is absent after three tries", async () => {
  const silent: I2cLine = { device, write: "02", fails: nack };
  const { link, power } = setUp([silent, silent, silent]);
  using _ = link;
  expect(await failure(power.read("5.0"))).toMatchObject({ code: "absent" });
  expect(power.counters).toMatchObject({ exchanges: 3, retries: 2, timeouts: 3 });
});

test("what the HAT cannot do is refused without a word on the bus", async () => {
  const { link, power } = setUp([]);
  using _ = link;
  for (const act of [power.signal("5.0"), power.startPolicy("5.0"), power.setStartPolicy("5.0", "on")]) {
    const caught = await failure(act);
    expect(caught.code).toBe("refused");
    expect(caught.message).toStartWith("outlet 5.0: a Cluster HAT cannot ");
  }
  for (const act of [power.switch("5.4", "on"), power.read("4.0"), power.identify("5.6", true)])
    expect((await failure(act)).code).toBe("absent");
  expect((await failure(power.readBoard(4))).code).toBe("absent");
});

test("it has four outlets, and identify is all it can do besides", () => {
  const { power } = setUp([]);
  expect(power.outlets).toEqual(PIS);
  expect([...power.abilities]).toEqual(["identify"]);
});

test("a scan finds the one board of the bus", async () => {
  const { link, power } = setUp(IS_EXPANDER);
  using _ = link;
  expect(await scan(power)).toEqual([{ board: 5 }]);
});

test("a bus with two boards is a mistake: they all answer at 0x20", () => {
  expect(() => setUp([], { boards: [5, 6] })).toThrow("/dev/i2c-1: a Cluster HAT bus has one board, not 2");
});

test.each([
  [{ boards: [0, 1] }, "boards: a clusterhat board is alone on its bus, always at address 0x20"],
  [{ boards: [0], pis: 2 }, "pis: a Cluster HAT has four"],
])("a configuration that contradicts itself names the place: %j", (bus, problem) => {
  const document = {
    site: "here",
    power: { buses: [{ driver: "clusterhat", device: "/dev/i2c-1", ...bus }] },
  };
  expect(() => parseConfig("node.json", document)).toThrow(`power.buses.0.${problem}`);
});
