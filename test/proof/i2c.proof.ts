/**
 * I²C through the kernel's own driver of an SMBus controller (i2c-i801): the x64 executable on an emulated PC. What QEMU's
 * controller gets wrong is shown on the kernel's i2c-stub instead; plain I²C, which neither does, in `usb.proof.ts`.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { missingForEmulator } from "../emulator/cache.ts";
import { LIMITS } from "../emulator/limits.ts";
import type { Machine } from "../emulator/machine.ts";
import { compileGuest, shipped } from "../emulator/program.ts";
import { startQ35 } from "../emulator/q35.ts";

const missing = missingForEmulator();
const FORMS = ["synchronous", "callback", "promise"];

describe.skipIf(missing !== undefined)(`SMBus in emulation${missing ? ` [needs: ${missing}]` : ""}`, () => {
  let pc: Machine;
  beforeAll(async () => {
    pc = await startQ35({
      rootFiles: {
        "/usr/bin/fruit": shipped("amd64"),
        "/usr/bin/i2c-calls": await compileGuest("i2c", "amd64"),
      },
      // The stub does all of SMBus once it is told so (linux/i2c.h, I2C_FUNC_SMBUS_…).
      modules: ["i2c-i801", "i2c-dev", "i2c-stub chip_addr=0x51 functionality=0x0fff0000"],
    });
  }, LIMITS.test);
  afterAll(() => pc?.[Symbol.asyncDispose]());

  test(
    "the executable finds who answers, reads what it wrote, and says who does not answer",
    async () => {
      expect(await pc.output("cat /sys/class/i2c-dev/i2c-0/name")).toContain("SMBus I801 adapter");
      const { devices } = JSON.parse(await pc.output("fruit i2c scan 0 --json"));
      const addresses = devices.map(({ address }: { address: string }) => address);
      // QEMU's eight EEPROMs.
      expect(addresses).toEqual(["0x50", "0x51", "0x52", "0x53", "0x54", "0x55", "0x56", "0x57"]);
      expect(await pc.output("fruit i2c get 0 0x52 0x10")).toBe("0x00\n");
      await pc.output("fruit i2c set 0 0x52 0x10 0xa5");
      expect(await pc.output("fruit i2c get 0 0x52 0x10")).toBe("0xa5\n");
      expect(await pc.output("fruit i2c get 0 0x53 0x10")).toBe("0x00\n");
      expect(await pc.run("fruit i2c get 0 0x30 0")).toMatchObject({
        exit: 6,
        out: "",
        err: expect.stringMatching(/^fruit: \/dev\/i2c-0 at 0x30: no acknowledgement \(ENXIO: .*\)\n$/),
      });
      expect(await pc.run("fruit i2c get 7 0x30 0")).toMatchObject({
        exit: 6,
        err: expect.stringContaining("/dev/i2c-7: does not exist"),
      });
    },
    LIMITS.test,
  );

  test.each([
    {
      bus: 0,
      name: "i2c-i801",
      // QEMU 7.2 leaves out the last byte of an I²C block that is read, and takes none of 32 bytes; a program in C sees the same.
      wrong: FORMS.flatMap((form, round) => [
        `readI2cBlock ${form}: ${[0, 1, 2, 3].map((n) => (0x21 + round + n).toString(16)).join("")}000000`,
        `writeI2cBlock ${form}: Error: ETIMEDOUT: connection timed out, writeI2cBlock${round === 0 ? "Sync" : ""}`,
        `readI2cBlock ${form}: ${"00".repeat(32)}`,
      ]),
      right: [
        "writeQuick",
        "sendByte",
        "receiveByte",
        "readWord",
        "writeI2cBlock",
        "readBlock",
        "writeBlock",
      ],
    },
    {
      bus: 1,
      name: "i2c-stub",
      // Its words are not two bytes, and it says ENODEV where nobody answers (drivers/i2c/i2c-stub.c).
      wrong: FORMS.flatMap((form, round) => [
        `readByte ${form}: 0 instead of 190`,
        `Error: ENODEV: no such device, readByte${round === 0 ? "Sync" : ""}`,
      ]),
      right: ["writeQuick", "sendByte", "receiveByte", "readWord", "readI2cBlock", "readBlock", "writeBlock"],
    },
  ])(
    "every SMBus call of i2c-bus does in its three forms on $name what that bus can do",
    async ({ bus, wrong, right }) => {
      const { out } = await pc.run(`i2c-calls ${bus} 0x51`);
      const lines = out.trim().split("\n");
      expect(lines.filter((line) => !line.startsWith("ok "))).toEqual(wrong.map((what) => `wrong ${what}`));
      for (const form of FORMS)
        for (const call of [...right, "readByte", "writeByte", "writeWord", "scan", "i2cFuncs"])
          expect(lines).toContain(`ok ${call} ${form}`);
    },
    LIMITS.test,
  );
});
