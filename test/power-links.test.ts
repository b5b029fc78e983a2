import { expect, test } from "bun:test";
import type { Hal, PowerBus, SerialLink } from "../hal/ports.ts";
import { openPower } from "../hal/power.ts";
import { openSim } from "../hal/sim/hal.ts";
import { failure } from "./fakes.ts";

const BUS: PowerBus = {
  driver: "pistack-rs485",
  device: "/dev/ttyUSB0",
  boards: [0],
  hardware: 3,
  i2c_base: 0x10,
};

/** Hardware that counts how its serial lines come and go. */
function counting(opened: Promise<void> = Promise.resolve()) {
  const lines = { opened: 0, open: 0 };
  const sim = openSim({ seed: 1, boards: [0], wireTime: false, faults: [], clockSynced: true });
  const hal: Hal = {
    ...sim,
    openSerial: async (device): Promise<SerialLink> => {
      const link = await sim.openSerial(device);
      lines.opened++;
      await opened;
      lines.open++;
      return {
        exchange: (...args) => link.exchange(...args),
        close: async () => {
          lines.open--;
          await link.close();
        },
      };
    },
  };
  return { hal, lines };
}

test("a line is opened when it is first used, and never again once it is closed", async () => {
  const { hal, lines } = counting();
  const power = await openPower(hal, BUS);
  expect(lines).toEqual({ opened: 0, open: 0 });
  await power.read("0.0");
  await power.close();
  const { code, message } = await failure(power.read("0.0"));
  expect([code, message]).toEqual(["io", "/dev/ttyUSB0: is closed"]);
  expect(lines).toEqual({ opened: 1, open: 0 });
});

test("a line that is closed while it is being opened does not stay open", async () => {
  const { promise, resolve } = Promise.withResolvers<void>();
  const { hal, lines } = counting(promise);
  const power = await openPower(hal, BUS);
  const reading = failure(power.read("0.0"));
  while (lines.opened === 0) await Promise.resolve();
  await power.close();
  resolve();
  expect((await reading).code).toBe("io");
  expect(lines).toEqual({ opened: 1, open: 0 });
});
