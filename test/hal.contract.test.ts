import { expect, test } from "bun:test";
import { HalError, type OutletId, type PowerBus, type PowerController } from "../hal/ports.ts";
import { openPower } from "../hal/power.ts";
import { openSim } from "../hal/sim/hal.ts";
import { view, viewBoard } from "../hal/sim/meter.ts";
import { SimStack } from "../hal/sim/stack.ts";
import { scan } from "./fakes.ts";

/** One contract, six drivers, one simulated stack of two boards. `real` is the outlet a driver's first outlet is wired to. */
interface Row {
  driver: PowerBus["driver"];
  device: string;
  boards: readonly number[];
  /** GPIO lines of relays. */
  lines?: readonly number[];
  /** What a bus says when nobody answers: a serial line hears nothing, an I²C device does not acknowledge. */
  silence: "timeout" | "absent";
  /** What a dead bus looks like from this side. */
  dead: "timeout" | "io";
  /** How a board that does not do as it is told looks: an expander cannot refuse, but its registers are read back. */
  refusal: "refused" | "bad-reply" | "io";
  /** Whether the board has a start policy, a signal line and meters. */
  isFull: boolean;
}
const DRIVERS: Row[] = [
  {
    driver: "pistack-rs485",
    device: "ttyUSB0",
    boards: [0, 1],
    silence: "timeout",
    dead: "timeout",
    refusal: "refused",
    isFull: true,
  },
  {
    driver: "pistack-i2c",
    device: "i2c-1",
    boards: [0, 1],
    silence: "absent",
    dead: "io",
    refusal: "refused",
    isFull: true,
  },
  {
    driver: "clusterctrl",
    device: "i2c-clusterctrl",
    boards: [0],
    silence: "absent",
    dead: "io",
    refusal: "refused",
    isFull: false,
  },
  {
    driver: "clusterhat",
    device: "i2c-clusterhat",
    boards: [0],
    silence: "absent",
    dead: "io",
    refusal: "bad-reply",
    isFull: false,
  },
  {
    driver: "gpio",
    device: "sim",
    boards: [0],
    lines: [17, 27, 22, 23],
    silence: "absent",
    dead: "io",
    refusal: "io",
    isFull: false,
  },
  {
    driver: "sim",
    device: "sim",
    boards: [0, 1],
    silence: "timeout",
    dead: "timeout",
    refusal: "refused",
    isFull: true,
  },
];
const FULL = DRIVERS.filter((row) => row.isFull);
const FIRST: OutletId = "0.0";

interface Bench {
  stack: SimStack;
  power: PowerController;
  pass: (ms: number) => void;
}

async function bench(row: Row, faults: readonly string[] = []): Promise<Bench> {
  let now = 1_000_000;
  const stack = new SimStack({ boards: [0, 1], seed: 7, now: () => now, faults });
  const hal = openSim({ seed: 7, boards: [], wireTime: false, faults: [], clockSynced: true, stack });
  const { driver, device, boards, lines } = row;
  const power = await openPower(hal, { driver, device, boards, lines, hardware: 3, i2c_base: 0x10 });
  const pass = (ms: number) => {
    now += ms;
  };
  return { stack, power, pass };
}

/** The code of the HalError that it fails with; anything else fails the test. */
async function failure(attempt: Promise<unknown>): Promise<string> {
  const outcome = await attempt.then(
    () => "no failure",
    (error: unknown) => error,
  );
  expect(outcome).toBeInstanceOf(HalError);
  return (outcome as HalError).code;
}

test.each(DRIVERS)("$driver: every outlet of its boards is there, in rack order", async (row) => {
  const { power, stack } = await bench(row);
  expect(power.driver).toBe(row.driver);
  expect(power.outlets).toHaveLength(stack.outlets.length);
  for (const outlet of power.outlets) expect((await power.read(outlet)).supply).toBe("on");
});

test.each(DRIVERS)("$driver: what is switched off reads off, and on again reads on", async (row) => {
  const { power, stack, pass } = await bench(row);
  for (const [position, outlet] of power.outlets.entries()) {
    const wired = stack.outlets[position]!;
    await power.switch(outlet, "off");
    expect((await power.read(outlet)).supply).toBe("off");
    expect(stack.pi(wired).host).toBe("off");
    expect(power.outlets.length - 1).toBe(
      (await Promise.all(power.outlets.map((other) => power.read(other)))).filter((r) => r.supply === "on")
        .length,
    );
    pass(3000);
    await power.switch(outlet, "on");
    expect((await power.read(outlet)).supply).toBe("on");
    expect(stack.pi(wired).host).toBe("starting");
  }
});

test.each(DRIVERS)("$driver: a switch said twice has the effect of one", async (row) => {
  const { power, stack, pass } = await bench(row);
  pass(10_000);
  await power.switch(FIRST, "on");
  expect(stack.pi(FIRST).host).toBe("running");
  await power.switch(FIRST, "off");
  await power.switch(FIRST, "off");
  expect((await power.read(FIRST)).supply).toBe("off");
});

test.each(DRIVERS)("$driver: a silent board is an error and never off", async (row) => {
  const { power, stack } = await bench(row);
  await power.switch(FIRST, "off");
  stack.fault("silent-board", true);
  expect(await failure(power.read(FIRST))).toBe(row.silence);
  expect(await failure(power.switch(FIRST, "on"))).toBe(row.silence);
  expect(power.counters.timeouts).toBeGreaterThan(0);
  stack.fault("silent-board", false);
  expect((await power.read(FIRST)).supply).toBe("off");
});

test.each(DRIVERS)("$driver: a dead bus is an error, and the bus comes back", async (row) => {
  const { power, stack } = await bench(row);
  stack.fault("dead-bus", true);
  expect(await failure(power.read(FIRST))).toBe(row.dead);
  stack.fault("dead-bus", false);
  expect((await power.read(FIRST)).supply).toBe("on");
});

test.each(DRIVERS)("$driver: a board that refuses is believed, and nothing is switched", async (row) => {
  const { power, stack } = await bench(row, ["error-reply"]);
  expect(await failure(power.switch(FIRST, "off"))).toBe(row.refusal);
  stack.fault("error-reply", false);
  expect((await power.read(FIRST)).supply).toBe("on");
});

test.each(DRIVERS)("$driver: a supply that does not follow shows in the reading", async (row) => {
  const { power, stack } = await bench(row, ["stuck-on:0.0"]);
  await power.switch(FIRST, "off");
  expect((await power.read(FIRST)).supply).toBe("on");
  stack.fault("stuck-on", false);
  await power.switch(FIRST, "off");
  stack.fault("stuck-off", true, "0.0");
  await power.switch(FIRST, "on");
  expect((await power.read(FIRST)).supply).toBe("off");
});

test.each(DRIVERS)("$driver: on a bus that loses frames a reading is right or an error", async (row) => {
  const { power, stack } = await bench(row, ["drop"]);
  stack.cut(FIRST);
  let answers = 0;
  for (let round = 0; round < 60; round++) {
    const supply = await power.read(FIRST).then(
      (reading) => reading.supply,
      (error: unknown) => expect((error as HalError).code).toMatch(/timeout|absent/),
    );
    if (supply) {
      expect(supply).toBe("off");
      answers++;
    }
  }
  expect(answers).toBeGreaterThan(10);
  expect(power.counters.timeouts).toBeGreaterThan(0);
});

// Relays have nothing to show themselves with
test.each(DRIVERS.filter(({ driver }) => driver !== "gpio"))(
  "$driver: identify lights the board",
  async (row) => {
    const { power, stack } = await bench(row);
    expect(power.abilities.has("identify")).toBe(true);
    await power.identify(FIRST, true);
    expect(stack.board(0).leds).toBe(true);
    await power.identify(FIRST, false);
    expect(stack.board(0).leds).toBe(false);
  },
);

test.each(DRIVERS)("$driver: scan finds the boards that answer", async (row) => {
  const { power, stack } = await bench(row);
  expect((await scan(power)).map(({ board }) => board)).toEqual([...row.boards]);
  stack.fault("silent-board", true, 0);
  // Relays hang on this node's own lines: where those fail nobody else is missing.
  if (row.driver === "gpio") return void expect(await failure(scan(power))).toBe("absent");
  expect((await scan(power)).map(({ board }) => board)).toEqual(row.boards.slice(1));
});

test.each(DRIVERS)("$driver: an outlet that is not on the bus is absent", async (row) => {
  const { power } = await bench(row);
  expect(await failure(power.read("9.0"))).toBe("absent");
  expect(await failure(power.switch("0.7", "off"))).toBe("absent");
});

test.each(DRIVERS)("$driver: each exchange is counted, and a healthy bus counts no errors", async (row) => {
  const { power } = await bench(row);
  await power.read(FIRST);
  const { exchanges, ...errors } = power.counters;
  expect(exchanges).toBeGreaterThan(0);
  expect(errors).toEqual({ retries: 0, crcErrors: 0, timeouts: 0, otherErrors: 0 });
});

test.each(DRIVERS)("$driver: what it says it cannot do it refuses", async (row) => {
  const { power, stack, pass } = await bench(row);
  pass(10_000);
  const isRefused = async (attempt: Promise<unknown>) =>
    (await attempt.catch((error) => error.code)) === "refused";
  expect(await isRefused(power.signal(FIRST))).toBe(!power.abilities.has("signal"));
  expect(await isRefused(power.startPolicy(FIRST))).toBe(!power.abilities.has("start-policy"));
  expect(await isRefused(power.identify(FIRST, true))).toBe(!power.abilities.has("identify"));
  expect(stack.pi(FIRST).host).toBe(power.abilities.has("signal") ? "stopping" : "running");
});

test.each(FULL)("$driver: a signalled Pi goes down and keeps its supply", async (row) => {
  const { power, stack, pass } = await bench(row);
  pass(10_000);
  expect(await power.read(FIRST)).toMatchObject({ supply: "on", heartbeat: true });
  await power.signal(FIRST);
  pass(20_000);
  const reading = await power.read(FIRST);
  expect(reading).toMatchObject({ supply: "on", heartbeat: false });
  expect(reading.amperes).toBeCloseTo(0.07, 3);
  expect(stack.pi(FIRST).host).toBe("halted");
});

test.each(FULL)("$driver: a start policy is kept over a loss of supply, and obeyed", async (row) => {
  const { power, stack } = await bench(row);
  expect(await power.startPolicy("1.1")).toBe("on");
  await power.setStartPolicy("1.1", "off");
  const { bootCount } = await power.readBoard(1);
  stack.mainsLoss();
  expect(await power.startPolicy("1.1")).toBe("off");
  expect((await power.read("1.1")).supply).toBe("off");
  expect((await power.read("1.0")).supply).toBe("on");
  expect((await power.readBoard(1)).bootCount).toBe((bootCount ?? 0) + 1);
});

test.each(FULL)(
  "$driver: volts, amperes and watts are what the board has, within its counts",
  async (row) => {
    const { power, stack, pass } = await bench(row);
    pass(60_000);
    const truth = view(stack, "1.0");
    const reading = await power.read("1.0");
    expect(reading.volts).toBeCloseTo(truth.volts, 3);
    expect(reading.amperes).toBeCloseTo(truth.amperes, 3);
    expect(reading.watts).toBeCloseTo(truth.volts * truth.amperes, 2);
    const board = await power.readBoard(1);
    expect(board.inputVolts).toBeCloseTo(viewBoard(stack, 1).inputVolts, 2);
    expect(board.inputAmperes).toBeCloseTo(viewBoard(stack, 1).inputAmperes, 3);
    expect(board.railVolts).toBeCloseTo(viewBoard(stack, 1).railVolts, 3);
    expect(board).toMatchObject({ board: 1, hardware: 3, firmware: 4, errorCount: 0, bootCount: 1 });
  },
);
