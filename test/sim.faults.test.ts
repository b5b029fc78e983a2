import { expect, test } from "bun:test";
import { crc8, errorFrame } from "../hal/pistack.ts";
import { HalError } from "../hal/ports.ts";
import { FAULTS } from "../hal/sim/faults.ts";
import { view } from "../hal/sim/meter.ts";
import { Rs485Link } from "../hal/sim/rs485.ts";
import { ask, drive, hex, makeStack } from "./sim.ts";

test.each(Object.keys(FAULTS))("fault %s can be configured, and is named in the help", (name) => {
  const { stack } = makeStack({ faults: [name] });
  expect(stack.faults.board(name as keyof typeof FAULTS)).toBe(true);
  stack.fault(name, false);
  expect(stack.faults.board(name as keyof typeof FAULTS)).toBe(false);
  expect(FAULTS[name as keyof typeof FAULTS].length).toBeGreaterThan(20);
});

test.each([
  { fault: "crk", says: /no fault "crk"; there are crc, drop,/ },
  { fault: "toString", says: /no fault "toString"/ },
  { fault: "crc:9", says: /crc:9: no such target; there are 0, 1$/ },
  { fault: "crc:0.1", says: /crc:0\.1: no such target; there are 0, 1$/ },
  { fault: "hang:0.2", says: /hang:0\.2: no such target; there are 0, 1, 0\.0, 0\.1, 1\.0, 1\.1$/ },
  { fault: "hang:", says: /hang:: no such target/ },
  { fault: "dead-bus:0", says: /dead-bus is of the whole stack/ },
])("fault $fault is refused with what there is", ({ fault, says }) => {
  expect(() => makeStack({ boards: [0, 1], faults: [fault] })).toThrow(HalError);
  expect(() => makeStack({ boards: [0, 1], faults: [fault] })).toThrow(says);
});

test("a fault with a target leaves the others alone", async () => {
  const { stack, pass } = makeStack({ faults: ["silent-board:2", "hang:0.1"] });
  const power = await drive(stack);
  pass(60_000);
  await expect(power.read("2.0")).rejects.toMatchObject({ code: "timeout" });
  for (const outlet of ["0.0", "0.1"] as const) {
    await power.signal(outlet);
    expect((await power.read(outlet)).supply).toBe("on");
  }
  pass(60_000);
  expect(stack.pi("0.0").host).toBe("halted");
  expect(stack.pi("0.1").host).toBe("running");
});

test.each([
  { fault: "crc", driver: "pistack-rs485", counts: "crcErrors" },
  { fault: "crc", driver: "pistack-i2c", counts: "crcErrors" },
  { fault: "drop", driver: "pistack-rs485", counts: "timeouts" },
  { fault: "drop", driver: "pistack-i2c", counts: "timeouts" },
  { fault: "delay", driver: "pistack-rs485", counts: "timeouts" },
  { fault: "delay", driver: "pistack-i2c", counts: "timeouts" },
  { fault: "short", driver: "pistack-rs485", counts: "otherErrors" },
  { fault: "short", driver: "pistack-i2c", counts: "crcErrors" },
] as const)(
  "$fault shows in $driver's $counts and never as a wrong supply",
  async ({ fault, driver, counts }) => {
    const { stack, pass } = makeStack({ boards: [0], faults: [fault] });
    const power = await drive(stack, driver);
    stack.cut("0.1");
    let answers = 0;
    for (let round = 0; round < 100; round++) {
      pass(5000);
      const [on, off] = await Promise.allSettled([power.read("0.0"), power.read("0.1")]);
      if (on.status === "fulfilled" && off.status === "fulfilled") {
        expect([on.value.supply, off.value.supply]).toEqual(["on", "off"]);
        answers++;
      }
    }
    expect(answers).toBeGreaterThan(20);
    expect(power.counters[counts]).toBeGreaterThan(10);
    expect(power.counters.retries).toBeGreaterThan(10);
  },
);

test("crc damages requests, which the board says, and replies, which the master sees", async () => {
  const { stack } = makeStack({ boards: [0], faults: ["crc"] });
  const link = new Rs485Link(stack, "bus", false);
  let there = 0;
  let back = 0;
  for (let round = 0; round < 200; round++) {
    const heard = await ask(link, "hardwareVersion", 0);
    if (hex(heard) === hex(errorFrame(0x11))) there++;
    if (crc8(heard) !== 0) back++;
  }
  expect(there).toBeGreaterThan(5);
  expect(back).toBeGreaterThan(5);
  expect(stack.board(0).errorCount).toBeGreaterThanOrEqual(there);
});

test("stray bytes before a reply are there on the wire, and the driver reads past them", async () => {
  const { stack } = makeStack({ boards: [0], faults: ["stray"] });
  const link = new Rs485Link(stack, "bus", false);
  const lengths = new Set<number>();
  for (let round = 0; round < 50; round++) lengths.add((await ask(link, "hardwareVersion", 0)).length);
  expect([...lengths].sort()).toEqual([5, 6, 7, 8]);
  const power = await drive(stack);
  for (let round = 0; round < 50; round++) expect((await power.read("0.0")).supply).toBe("on");
});

test("a late reply turns up in the next exchange", async () => {
  const { stack, pass } = makeStack({ boards: [0], faults: ["delay"] });
  const link = new Rs485Link(stack, "bus", false);
  let wasSilent = false;
  let both = 0;
  for (let round = 0; round < 100; round++) {
    const heard = await ask(link, "hardwareVersion", 0);
    if (wasSilent && heard.length === 10) both++;
    wasSilent = heard.length === 0;
    pass(300);
  }
  expect(both).toBeGreaterThan(0);
});

test("half of the frames that are lost are replies to a command that was carried out", async () => {
  const { stack } = makeStack({ boards: [0], faults: ["drop"] });
  const link = new Rs485Link(stack, "bus", false);
  const outcomes = { done: 0, lost: 0 };
  for (let round = 0; round < 400; round++) {
    stack.on("0.0");
    const heard = await ask(link, "forceOff", 0, 0);
    if (heard.length === 0) outcomes[stack.pi("0.0").supply ? "lost" : "done"]++;
  }
  expect(outcomes.done).toBeGreaterThan(20);
  expect(outcomes.lost).toBeGreaterThan(20);
});

test("a Pi that will not boot has power and no heartbeat, until it is started without the fault", () => {
  const { stack, pass } = makeStack({ boards: [0], faults: ["wont-boot:0.0"] });
  pass(600_000);
  expect(stack.pi("0.0")).toMatchObject({ supply: true, host: "starting" });
  expect(view(stack, "0.0")).toMatchObject({ heartbeat: false });
  expect(view(stack, "0.0").amperes).toBeCloseTo(0.2, 3);
  stack.fault("wont-boot", false);
  pass(600_000);
  expect(view(stack, "0.0").heartbeat).toBe(false);
  stack.cut("0.0");
  stack.on("0.0");
  pass(10_000);
  expect(view(stack, "0.0").heartbeat).toBe(true);
});

test("a heartbeat that the board does not see leaves the Pi running", () => {
  const { stack, pass } = makeStack({ boards: [0], faults: ["no-heartbeat:0.0"] });
  pass(60_000);
  expect(view(stack, "0.0").heartbeat).toBe(false);
  expect(view(stack, "0.1").heartbeat).toBe(true);
  expect(stack.pi("0.0").host).toBe("running");
});

test("a seed repeats a run exactly, and another seed does not", async () => {
  const run = async (seed: number) => {
    const { stack, pass } = makeStack({ seed, faults: ["crc", "drop", "delay", "stray", "short"] });
    const link = new Rs485Link(stack, "bus", false);
    const transcript: string[] = [];
    for (let round = 0; round < 200; round++) {
      transcript.push(hex(await ask(link, "piAmperes", round & 3, round & 1)));
      pass(100);
    }
    return transcript;
  };
  const first = await run(5);
  expect(await run(5)).toEqual(first);
  expect(await run(6)).not.toEqual(first);
});
