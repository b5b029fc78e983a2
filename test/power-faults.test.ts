/** What comes from outside and goes wrong: buses that fail, nodes that speak, doors without a signature. */
import { afterEach, beforeEach, describe, expect, jest, test } from "bun:test";
import { HalError } from "../hal/ports.ts";
import { openPower } from "../hal/power.ts";
import { openSim } from "../hal/sim/hal.ts";
import { bench, outletsOf, Rack } from "./rack.ts";

beforeEach(() => {
  jest.useFakeTimers();
  jest.setSystemTime(new Date("2026-08-24T09:00:00Z"));
});
afterEach(() => {
  jest.useRealTimers();
});

describe("a bus that fails", () => {
  const crc = new HalError("bad-reply", "board 0: CRC error (3 tries)");

  test("makes outlets unknown and raises an alarm, and both recover by themselves", async () => {
    const rack = new Rack(1, ["0.0"]);
    const b = bench(rack);
    b.start();
    await b.pass(1000);
    expect(b.said.get("state/outlet/0.0")).toMatchObject({ supply: "on", source: "board" });
    rack.failing = crc;
    await b.pass(11_000);
    const state = b.said.get("state/outlet/0.0");
    expect(state).toMatchObject({ supply: "unknown", host: "unknown", source: "stale", error: crc.message });
    expect(state).not.toHaveProperty("by");
    expect(b.alarms.get("bus-0")).toBe(
      "critical: bus 0 (scripted): cannot read 0.0, 0.1: board 0: CRC error (3 tries)",
    );
    rack.failing = undefined;
    await b.pass(11_000);
    expect(b.said.get("state/outlet/0.0")).toMatchObject({ supply: "on", source: "board" });
    expect(b.alarms.size).toBe(0);
    await b.stop();
    expect(rack.switched).toEqual([]);
  });

  test("is not written to blindly", async () => {
    const rack = new Rack(1, ["0.0"]);
    rack.failing = crc;
    const b = bench(rack);
    const outcome = await b.run("power.off", { outlets: ["0.0"], force: true }, { reason: "x" });
    expect(outcome).toMatchObject({ state: "failed", code: "bus" });
    expect(outcome.message).toContain("CRC error");
    expect(rack.switched).toEqual([]);
    expect(await b.run("power.status")).toMatchObject({ state: "failed", code: "bus" });
  });

  test("that does not say whether an outlet is on is not written to either", async () => {
    const rack = new Rack(1);
    rack.mute = true;
    const outcome = await bench(rack).run("power.on", { outlets: ["0.0"] });
    expect(outcome).toMatchObject({ state: "failed", code: "bus" });
    expect(rack.switched).toEqual([]);
  });

  test("answers, as a trial asks it, only while every one of its boards does", async () => {
    const [rack, other] = [new Rack(2), new Rack(3)];
    Object.defineProperty(other, "outlets", { value: ["2.0", "2.1"] });
    const { service, start, stop, pass } = bench([rack, other]);
    const { read } = rack;
    expect(service.answering()).toEqual([]);
    start();
    await pass(2000);
    expect(service.answering()).toEqual([0, 1]);
    rack.read = (id) => (id === "1.1" ? Promise.reject(crc) : read.call(rack, id));
    await pass(11_000);
    expect(service.answering()).toEqual([1]);
    rack.read = read;
    await pass(11_000);
    expect(service.answering()).toEqual([0, 1]);
    await stop();
  });

  test("does not take its other bus with it", async () => {
    const rack = new Rack(1, ["0.0"]);
    rack.failing = crc;
    const other = new Rack(2, ["1.0"]);
    Object.defineProperty(other, "outlets", { value: ["1.0", "1.1"] });
    const b = bench([rack, other]);
    b.start();
    await b.pass(2000);
    expect(b.said.get("state/outlet/1.0")).toMatchObject({ supply: "on" });
    expect([...b.alarms.keys()]).toEqual(["bus-0"]);
    await b.stop();
  });

  test("after the command was sent ends unconfirmed, not failed", async () => {
    const rack = new Rack(1);
    rack.stuck.add("0.0");
    const b = bench(rack);
    const on = b.ask("power.on", { outlets: ["0.0"] });
    await b.pass(5000);
    rack.failing = crc;
    const outcome = await b.finish(on);
    expect(outcome.state).toBe("unconfirmed");
    expect(outcome.message).toContain("CRC error");
  });

  test("after a cut is waited for, and the Pi comes on again", async () => {
    const rack = new Rack(1, ["0.0"]);
    const b = bench(rack, { power: { input_volts_min: 11 } });
    const cycle = b.ask("power.cycle", { outlets: ["0.0"] });
    while (rack.supply("0.0") === "on") await b.pass(10);
    await b.pass(1000);
    rack.failing = crc;
    await b.pass(30_000);
    rack.failing = undefined;
    const outcome = await b.finish(cycle);
    expect(outletsOf(outcome)[0]).toMatchObject({ outcome: "done", after: { supply: "on" } });
    expect(rack.switched).toEqual(["signal 0.0", "off 0.0", "on 0.0"]);
  });

  test("for good after a cut does not hide that the Pi is off", async () => {
    const rack = new Rack(1, ["0.0"]);
    const b = bench(rack, { power: { input_volts_min: 11 } });
    const cycle = b.ask("power.cycle", { outlets: ["0.0"] });
    while (rack.supply("0.0") === "on") await b.pass(10);
    await b.pass(1000);
    rack.readBoard = async () => {
      throw crc;
    };
    const outcome = await b.finish(cycle);
    expect(outcome).toMatchObject({
      state: "failed",
      code: "bus",
      message: `outlet 0.0: it is off now and was not switched on again: ${crc.message}`,
    });
    expect(outletsOf(outcome)[0]).toMatchObject({ after: { supply: "off" } });
    expect(outletsOf(outcome)[0]?.duration_s).toBeGreaterThanOrEqual(60);
  });

  test("when on is sent after a cut tells of the cut", async () => {
    const rack = new Rack(1, ["0.0"]);
    const b = bench(rack);
    const cycle = b.ask("power.cycle", { outlets: ["0.0"] });
    while (rack.supply("0.0") === "on") await b.pass(10);
    await b.pass(1000);
    rack.failing = crc;
    const outcome = await b.finish(cycle);
    expect(outcome).toMatchObject({ state: "unconfirmed", code: "bus" });
    expect(outcome.message).toStartWith("outlet 0.0: it was cut and may still be off: on was sent");
    expect(outletsOf(outcome)[0]).toMatchObject({ after: { supply: "unknown" } });
  });

  test.each(["bad-reply", "refused"] as const)(
    "with %s when it is sent once more ends unconfirmed: the first may still come true",
    async (code) => {
      const rack = new Rack(1);
      rack.stuck.add("0.0");
      const b = bench(rack, { power: { input_volts_min: 11 } });
      const on = b.ask("power.on", { outlets: ["0.0"] });
      await b.pass(5000);
      rack.readBoard = async () => {
        throw new HalError(code, "board 0: no");
      };
      expect((await b.finish(on)).state).toBe("unconfirmed");
      expect(b.progress).toContain("0.0: not sent: board 0: no");
    },
  );

  test("a no of the board is final", async () => {
    const rack = new Rack(1);
    rack.switch = async () => {
      throw new HalError("refused", "board 0: bad Pi");
    };
    const outcome = await bench(rack).run("power.on", { outlets: ["0.0"] });
    expect(outcome).toMatchObject({ state: "failed", code: "bus", message: "outlet 0.0: board 0: bad Pi" });
  });
});

describe("nodes behind the outlets", () => {
  const power = { outlets: { "0.0": { node: "pi2" } } };

  test.each([
    ["state/update", '{"phase":"writing"}', '{"phase":"idle"}'],
    ["state/boot", '{"active":"a","trial":true}', '{"active":"a","trial":false}'],
    ["state/update", '{"phase":"writing"}', ""],
    ["state/boot", '{"active":"a","trial":true}', ""],
  ] as const)("%s %s keeps its supply until %s", async (kind, busy, idle) => {
    const rack = new Rack(1, ["0.0"]);
    const b = bench(rack, { power });
    b.service.heard("pi2", kind, busy);
    b.service.heard("pi2", kind, "{torn");
    b.service.heard("pi3", kind, idle);
    expect(await b.run("power.off", { outlets: ["0.0"] })).toMatchObject({ code: "rule.P12" });
    expect(rack.switched).toEqual([]);
    b.service.heard("pi2", kind, idle);
    expect((await b.run("power.off", { outlets: ["0.0"] })).state).toBe("done");
  });

  test("a status of offline stands in for a heartbeat that no line carries", async () => {
    const rack = new Rack(1, ["0.0"]);
    rack.blind.add("0.0");
    const b = bench(rack, { power });
    b.service.heard("pi2", "status", "online");
    await b.run("power.status");
    expect(b.said.get("state/outlet/0.0")).toMatchObject({ host: "running", node_status: "online" });
    const off = b.ask("power.off", { outlets: ["0.0"] });
    await b.pass(8000);
    expect(rack.switched).toEqual(["signal 0.0"]);
    b.service.heard("pi2", "status", "offline");
    const outcome = await b.finish(off);
    expect(outletsOf(outcome)[0]?.outcome).toBe("done");
  });

  test("an online of before the cut is not taken for a Pi that has booted", async () => {
    const rack = new Rack(1, ["0.0"]);
    rack.blind.add("0.0");
    const b = bench(rack, { power });
    b.service.heard("pi2", "status", "online");
    await b.run("power.status");
    await b.run("power.reset", { outlets: ["0.0"] }, { reason: "x" });
    expect(b.said.get("state/outlet/0.0")).toMatchObject({ supply: "on", host: "unknown" });
    b.service.heard("pi2", "status", "online");
    expect(b.said.get("state/outlet/0.0")).toMatchObject({ host: "running" });
  });
});

describe("the unsigned door", () => {
  test("switches only what is listed, and the rules hold there too", async () => {
    const rack = new Rack(1, ["0.0", "0.1"]);
    const b = bench(rack, { unsigned: ["0.0"] });
    const from = { door: "set", who: "set" } as const;
    expect(await b.run("power.off", { outlets: ["0.1"] }, from)).toMatchObject({ code: "unauthorised" });
    await b.run("lock.set", { outlet: "0.0" }, { who: "key:bob", reason: "kernel test" });
    expect(await b.run("power.off", { outlets: ["0.0"] }, from)).toMatchObject({ code: "locked" });
    await b.run("lock.clear", { outlet: "0.0" }, { who: "key:bob" });
    expect(await b.run("power.off", { outlets: ["0.0"] }, from)).toMatchObject({ state: "done" });
  });
});

test("no payload of a neighbour makes the service fall over, nor forget that it updates", async () => {
  const rack = new Rack(1, ["0.0"]);
  const b = bench(rack, { power: { outlets: { "0.0": { node: "pi2" } } } });
  const kinds = ["status", "state/boot", "state/update"] as const;
  const seeds = [
    "online",
    '{"active":"a","trial":true}',
    '{"phase":"writing","installed_version":"1"}',
    "null",
    "[]",
    '"idle"',
  ];
  let random = 1;
  // Numerical Recipes' generator: enough to be different, the same every time.
  const draw = (below: number) => {
    random = (random * 1_664_525 + 1_013_904_223) >>> 0;
    return Math.floor((random / 2 ** 32) * below);
  };
  b.service.heard("pi2", "state/update", '{"phase":"writing"}');
  for (let i = Number(process.env.FRUIT_FUZZ ?? 5_000); i > 0; i--) {
    const bytes = Buffer.from(seeds[draw(seeds.length)] ?? "");
    for (let flips = 1 + draw(3); flips > 0; flips--) bytes[draw(bytes.length)] = draw(256);
    b.service.heard(
      "pi2",
      kinds[draw(kinds.length)] ?? "status",
      bytes.subarray(0, 1 + draw(bytes.length)).toString(),
    );
  }
  b.service.heard("pi2", "state/update", "x".repeat(100_000));
  expect(await b.run("power.off", { outlets: ["0.0"] })).toMatchObject({ code: "rule.P12" });
  expect(rack.told).toEqual([]);
});

test("each failed exchange of a bus that dies is counted, whatever the bus", async () => {
  const counting = new Rack(1);
  counting.counters = { exchanges: 5, retries: 1, crcErrors: 1, timeouts: 2, otherErrors: 3 };
  const sim = openSim({ seed: 1, boards: [0], wireTime: false, faults: [], clockSynced: true });
  const dying = await openPower(
    {
      ...sim,
      openI2c: async () => {
        throw new HalError("absent", "/dev/i2c-1: does not exist");
      },
    },
    { driver: "pistack-i2c", device: "/dev/i2c-1", boards: [1], hardware: 3, i2c_base: 0x10 },
  );
  const b = bench([counting, dying]);
  const errors = () => {
    const { crcErrors, timeouts, otherErrors } = b.service.counters();
    return crcErrors + timeouts + otherErrors;
  };
  expect(errors()).toBe(6);
  b.start();
  await b.pass(11_000);
  const first = errors();
  expect(first).toBeGreaterThan(6);
  await b.pass(11_000);
  expect(errors()).toBeGreaterThan(first);
  await b.stop();
  await sim.close();
});
