import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { crc8, errorFrame, OPS, type OpName, REGISTERS, requestFrame } from "../hal/pistack.ts";
import { openPower } from "../hal/power.ts";
import { chance } from "../hal/sim/activity.ts";
import { openSim } from "../hal/sim/hal.ts";
import { I2C_BASE, I2cBus } from "../hal/sim/i2c.ts";
import { BYTE_MS, Rs485Link, TURNAROUND_MS } from "../hal/sim/rs485.ts";
import { SimStack } from "../hal/sim/stack.ts";
import { serveBus } from "../hal/sim/wire.ts";
import { ask, FUZZ, hex, makeStack } from "./sim.ts";

const folder = mkdtempSync(join(tmpdir(), "fruit-sim-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

// Firmware and registers

test.each([
  { asked: "0304033d", answers: "00ff04030b", why: "hardware version, board 4" },
  { asked: "1100040 08c".replace(" ", ""), answers: "00ff0363", why: "Pi 0 on, board 0" },
  { asked: "120304 01be".replace(" ", ""), answers: "00ff0363", why: "Pi 1 off, board 3" },
  { asked: "1303040131", answers: "00ff0363", why: "Pi 1 force off, board 3" },
  { asked: hex(requestFrame("powered", 3, [2])), answers: "01ff04149a", why: "a Pi that is not there" },
  { asked: "0304033e", answers: hex(errorFrame(0x11)), why: "a CRC that is wrong" },
  { asked: hex(seal([0x77, 4, 3])), answers: hex(errorFrame(0x12)), why: "an op nobody published" },
  { asked: hex(seal([0x10, 4, 3])), answers: hex(errorFrame(0x13)), why: "an argument that is missing" },
  { asked: hex(seal([0x10, 4, 9, 0])), answers: hex(errorFrame(0x13)), why: "a length that is wrong" },
  { asked: "0304", answers: hex(errorFrame(0x10)), why: "a frame that breaks off" },
  { asked: hex(requestFrame("powered", 9, [0])), answers: "", why: "a board that is not there" },
  { asked: hex(requestFrame("powered", 0xff, [0])), answers: "", why: "the master itself" },
])("on the wire, $asked ($why) is answered $answers", async ({ asked, answers }) => {
  const { stack } = makeStack({ boards: [0, 3, 4] });
  const link = new Rs485Link(stack, "bus", false);
  expect(hex(await link.exchange(Buffer.from(asked, "hex"), () => false, 300))).toBe(answers);
});

function seal(body: number[]): Uint8Array {
  return Uint8Array.of(...body, crc8(Uint8Array.from(body)));
}

test.each(Object.keys(OPS) as OpName[])(
  "op %s is answered with as many bytes as are published",
  async (op) => {
    const { stack } = makeStack({ boards: [3] });
    const link = new Rs485Link(stack, "bus", false);
    const reply = await ask(link, op, 3, ...Array.from({ length: OPS[op].args }, () => 0));
    expect(crc8(reply)).toBe(0);
    expect([...reply.subarray(0, 3)]).toEqual([0, 0xff, 3 + OPS[op].reply]);
    expect(reply).toHaveLength(4 + OPS[op].reply);
  },
);

test("the error buffer tells what happened, oldest first, and is forgotten when told", async () => {
  const { stack } = makeStack({ boards: [0] });
  const link = new Rs485Link(stack, "bus", false);
  await link.exchange(Buffer.from("0200", "hex"), () => false, 300);
  await ask(link, "powered", 0, 7);
  expect(hex((await ask(link, "readErrors", 0)).subarray(3, -1))).toBe("0f1014");
  expect(hex((await ask(link, "errorCount", 0)).subarray(3, -1))).toBe("0002");
  for (let i = 0; i < 30; i++) await ask(link, "powered", 0, 7);
  expect(await ask(link, "readErrors", 0)).toHaveLength(4 + 16);
  await ask(link, "clearErrors", 0);
  await ask(link, "clearCounts", 0);
  expect(hex((await ask(link, "readErrors", 0)).subarray(3, -1))).toBe("00");
  expect(hex((await ask(link, "errorCount", 0)).subarray(3, -1))).toBe("0000");
});

test("a board moves with its prefix, and back home when an unsaved one is lost", async () => {
  const { stack } = makeStack({ boards: [3] });
  const link = new Rs485Link(stack, "bus", false);
  stack.setPrefix(3, 0x40);
  expect(await ask(link, "fullId", 3)).toHaveLength(0);
  expect((await ask(link, "fullId", 0x43))[3]).toBe(0x43);
  stack.mainsLoss();
  expect((await ask(link, "fullId", 3))[3]).toBe(3);
  await ask(link, "setPrefix", 3, 0x40);
  stack.mainsLoss();
  expect((await ask(link, "fullId", 0x43))[3]).toBe(0x43);
});

test("settings written to I²C registers last only once saved", async () => {
  const { stack } = makeStack({ boards: [0] });
  const bus = new I2cBus(stack, "i2c-1");
  const offDelay = REGISTERS.settings + 8 + 2; // of Pi 1
  const write = (...bytes: number[]) => bus.exchange(I2C_BASE, Uint8Array.from(bytes), 0);
  const read = async () => (await bus.exchange(I2C_BASE, Uint8Array.of(offDelay), 1))[0];
  await write(offDelay, 55);
  expect(await read()).toBe(55);
  stack.mainsLoss();
  expect(await read()).toBe(20);
  await write(offDelay, 55);
  await write(REGISTERS.command, 0xf0);
  stack.mainsLoss();
  expect(await read()).toBe(55);
  expect(stack.pi("0.0").live.offDelay).toBe(20);
});

// Time and doors
test("a serial line named .sock is the bus of a stack in another process", async () => {
  const { stack } = makeStack({ boards: [5] });
  const stop = new AbortController();
  const link = new Rs485Link(stack, "bus", false);
  const device = join(folder, "rs485.sock");
  await serveBus(
    device,
    (request) => link.exchange(request, () => false, 300),
    (bytes) => bytes.length > (bytes[2] ?? 255),
    stop.signal,
  );
  const hal = openSim({ seed: 1, boards: [0], wireTime: false, faults: [], clockSynced: true });
  const power = await openPower(hal, {
    driver: "pistack-rs485",
    device,
    boards: [5],
    hardware: 3,
    i2c_base: I2C_BASE,
  });
  await power.switch("5.1", "off");
  expect(stack.pi("5.1").supply).toBe(false);
  await power.close();
  stop.abort();
});

test("with wire time an exchange takes at least its bytes at 9600 baud, and says how much", async () => {
  const stack = new SimStack({ boards: [0], seed: 1 });
  const link = new Rs485Link(stack, "bus", true);
  const bytes = requestFrame("inputVolts", 0).length + 6;
  const started = performance.now();
  for (let i = 0; i < 3; i++)
    await link.exchange(requestFrame("inputVolts", 0), (collected) => collected.length === 6, 300);
  const wireMs = 3 * (bytes * BYTE_MS + TURNAROUND_MS);
  expect(performance.now() - started).toBeGreaterThanOrEqual(wireMs);
  expect(link.wireMs).toBeCloseTo(wireMs, 2);
});

test("a silent bus with wire time takes the whole limit", async () => {
  const link = new Rs485Link(new SimStack({ boards: [0], seed: 1 }), "bus", true);
  const started = performance.now();
  expect(await link.exchange(requestFrame("powered", 9, [0]), () => true, 20)).toHaveLength(0);
  expect(performance.now() - started).toBeGreaterThanOrEqual(20 + 5 * BYTE_MS);
});

test("the wire carries one exchange at a time, and none when it is closed", async () => {
  const stack = new SimStack({ boards: [0], seed: 1 });
  const link = new Rs485Link(stack, "bus", true);
  const first = ask(link, "ledsOn", 0);
  await expect(ask(link, "ledsOn", 0)).rejects.toMatchObject({ code: "busy" });
  expect(await first).toHaveLength(4);
  await link.close();
  await expect(ask(link, "ledsOn", 0)).rejects.toMatchObject({ code: "io" });
});

// Foreign bytes

test("whatever is said on the wire, boards answer sound frames or nothing, and only sound requests switch", async () => {
  const { stack } = makeStack({ boards: [0, 3] });
  const link = new Rs485Link(stack, "bus", false);
  const seeds = (Object.keys(OPS) as OpName[]).map((op) =>
    requestFrame(op, 3, Array<number>(OPS[op].args).fill(1)),
  );
  let draws = 0;
  const die = (sides: number) => Math.floor(chance(99, draws++) * sides);
  for (let round = 0; round < FUZZ; round++) {
    const frame = Uint8Array.from([...(seeds[die(seeds.length)] ?? []), ...(die(4) ? [] : [die(256)])]);
    frame[die(frame.length)] = die(256);
    const cut = frame.subarray(0, die(8) ? frame.length : die(frame.length));
    const supplies = stack.outlets.map((outlet) => stack.pi(outlet).supply);
    const heard = await link.exchange(cut, () => false, 300);
    if (heard.length > 0) {
      expect(crc8(heard)).toBe(0);
      expect(heard[2]).toBe(heard.length - 1);
    }
    if (crc8(cut) !== 0) expect(stack.outlets.map((outlet) => stack.pi(outlet).supply)).toEqual(supplies);
  }
});

test.each(["i2c-1", "i2c-clusterctrl", "i2c-clusterhat"])(
  "whatever is written to %s, it answers as many bytes as were asked",
  async (name) => {
    const { stack } = makeStack({ boards: [0, 1] });
    const bus = new I2cBus(stack, name);
    let draws = 0;
    const die = (sides: number) => Math.floor(chance(98, draws++) * sides);
    for (let round = 0; round < FUZZ / 4; round++) {
      const address = name === "i2c-1" ? I2C_BASE + die(2) : 0x20;
      const write = Uint8Array.from({ length: die(5) }, (_, i) => die(i === 0 && die(2) ? 16 : 256));
      const read = die(33);
      expect(await bus.exchange(address, write, read)).toHaveLength(read);
    }
  },
);
