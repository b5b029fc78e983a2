/**
 * Adapters on USB that are pulled out and put back, under a real kernel's drivers: serial ones (ftdi_sio) with a Pi Stack
 * or a console behind them, and an I²C one (i2c-tiny-usb), whose bus does plain I²C. The arm64 executable on QEMU's board
 * `virt`, since QEMU 7.2 itself ends when a device that is in use leaves its model of the Pi's own USB controller.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { type GuestAgent, startGuestAgent } from "../emulator/agent.ts";
import { boardsOnWire, serveSerial, suppliesOf } from "../emulator/boards.ts";
import { missingForEmulator } from "../emulator/cache.ts";
import { i2cAdapter } from "../emulator/i2c-adapter.ts";
import { LIMITS } from "../emulator/limits.ts";
import type { Machine } from "../emulator/machine.ts";
import { compileGuest, shipped } from "../emulator/program.ts";
import { serveUsb } from "../emulator/usb.ts";
import { startVirt } from "../emulator/virt.ts";
import { Device } from "../i2c-kernel.ts";
import { until } from "../node.ts";
import { makeStack } from "../sim.ts";

const missing = missingForEmulator();
const PATIENCE = { poll_seconds: 1, retry_seconds: 1, min_on_seconds: 0 };

describe.skipIf(missing !== undefined)(
  `adapters on USB, in emulation${missing ? ` [needs: ${missing}]` : ""}`,
  () => {
    let machine: Machine;
    beforeAll(async () => {
      machine = await startVirt({
        rootFiles: {
          "/usr/bin/fruit": shipped("arm64"),
          "/usr/bin/i2c-calls": await compileGuest("i2c", "arm64"),
        },
        modules: ["ohci-pci", "ftdi_sio", "i2c-dev", "i2c-tiny-usb"],
        devices: ["pci-ohci,num-ports=6"],
      });
    }, LIMITS.test);
    afterAll(() => machine?.[Symbol.asyncDispose]());

    test(
      "a serial adapter that is pulled out makes outlets unknown and a console gone, and both come back with it",
      async () => {
        const { stack } = makeStack({ boards: [0] });
        const plugBoth = async () => {
          const bus = await machine.plug("usb-serial");
          const { breaches } = serveSerial(bus.line, stack);
          await machine.has("/dev/ttyUSB0");
          const desk = await machine.plug("usb-serial");
          await machine.has("/dev/ttyUSB1");
          desk.line.read((chunk) => {
            if (chunk.includes("\r")) desk.line.write("login: ");
          });
          const unplug = async () => void (await Promise.all([bus.unplug(), desk.unplug()]));
          return { breaches, line: desk.line, unplug, [Symbol.asyncDispose]: unplug };
        };
        await using first = await plugBoth();
        await using agent = await startGuestAgent(machine, {
          power: { buses: [{ driver: "pistack-rs485", device: "/dev/ttyUSB0", boards: [0] }], ...PATIENCE },
          consoles: { desk: { device: "/dev/ttyUSB1" } },
        });
        await until("on", async () => (await agent.supplies()) === "on on", LIMITS.event);
        await until("the console is up", async () => (await consoleState(agent)) === "up", LIMITS.event);
        // A bus waits for each answer; a console does not
        const timer = (port: string) =>
          machine.output(`cat /sys/bus/usb-serial/devices/${port}/latency_timer`);
        expect(await timer("ttyUSB0")).toBe("1\n");
        expect(await timer("ttyUSB1")).not.toBe("1\n");

        await first.unplug();
        await until("unknown", async () => (await agent.supplies()) === "unknown unknown", LIMITS.event);
        await until("the console is gone", async () => (await consoleState(agent)) === "gone", LIMITS.event);
        const refused = await agent.cli("console send desk hello");
        expect(refused.exit).not.toBe(0);
        expect(refused.err).toContain("/dev/ttyUSB1: not there: unplugged");
        // The kernel's device is free: nobody keeps what is left of it open.
        expect((await machine.run("ls /dev/ttyUSB*")).out).toBe("");

        await using second = await plugBoth();
        await until("on again", async () => (await agent.supplies()) === "on on", LIMITS.event);
        await until(
          "the console is up again",
          async () => (await consoleState(agent)) === "up",
          LIMITS.event,
        );
        const answered = await agent.cli("console send desk hello --expect 'login: ' --timeout 60");
        expect(answered).toMatchObject({ exit: 0, out: "login: " });
        expect(second.line.text).toBe("hello\r");
        expect((await agent.cli("console log desk")).out).toMatch(
          /: \/dev\/ttyUSB1 is open, [\s\S]*: gone: \/dev\/ttyUSB1: unplugged or hung up[\s\S]*: \/dev\/ttyUSB1 is open, /,
        );
        expect([first.breaches, second.breaches]).toEqual([[], []]);
      },
      LIMITS.test,
    );

    test(
      "every call of i2c-bus works on a bus that does plain I²C",
      async () => {
        const device = new Device();
        await using adapter = await machine.plug("usb-redir");
        const wire = i2cAdapter(async (address, [pointer, ...bytes], read) => {
          // Its id: UM10204 §3.1.17
          if (address === 0x7c && pointer === 0x51 << 1) return Uint8Array.of(0x00, 0x59, 0xab);
          if (address !== 0x51) return undefined;
          if (pointer !== undefined) device.pointer = pointer;
          device.take(bytes);
          return device.give(read);
        });
        serveUsb(adapter.line, wire);
        await machine.has("/dev/i2c-0");
        expect(await machine.output("cat /sys/class/i2c-dev/i2c-0/name")).toContain("i2c-tiny-usb");
        expect(await machine.output("fruit i2c scan 0")).toBe("0x51\n");
        const { out } = await machine.run("i2c-calls 0 0x51");
        const lines = out.trim().split("\n");
        const right = lines.filter((line) => line.startsWith("ok "));
        // This adapter has no way to be told a block's length by the device (I2C_M_RECV_LEN); the i801 has.
        expect(lines.filter((line) => !right.includes(line))).toEqual(
          ["synchronous", "callback", "promise"].map((form) => `wrong readBlock ${form}: 0000000000`),
        );
        for (const form of ["synchronous", "callback", "promise"])
          for (const call of [
            "writeQuick",
            "readI2cBlock",
            "writeBlock",
            "i2cRead",
            "i2cWrite",
            "deviceId",
            "scan",
            "not acknowledged",
          ])
            expect(right).toContain(`ok ${call} ${form}`);
      },
      LIMITS.test,
    );

    test(
      "Pi Stack boards on I²C are found and switched, and unknown while the adapter is out",
      async () => {
        const { stack, pass } = makeStack({ boards: [0, 1] });
        const plug = async () => {
          const adapter = await machine.plug("usb-redir");
          serveUsb(adapter.line, i2cAdapter(boardsOnWire(stack, "pistack")));
          await machine.has("/dev/i2c-0");
          return adapter;
        };
        await using first = await plug();
        await using agent = await startGuestAgent(machine, {
          power: { buses: [{ driver: "pistack-i2c", device: "/dev/i2c-0", boards: [0, 1] }], ...PATIENCE },
        });
        const { boards } = await agent.json<{ boards: { board: number }[] }>("power scan");
        expect(boards.map(({ board }) => board)).toEqual([0, 1]);
        expect((await agent.cli("power off 1.1 --force --reason proof")).exit).toBe(0);
        expect(suppliesOf(stack)).toBe("on on on off");

        await first.unplug();
        await until(
          "unknown",
          async () => /^unknown( unknown){3}$/.test(await agent.supplies()),
          LIMITS.event,
        );
        await using _second = await plug();
        await until("known again", async () => (await agent.supplies()) === "on on on off", LIMITS.event);
        pass(10_000);
        expect((await agent.cli("power on 1.1 --no-wait")).exit).toBe(0);
        expect(suppliesOf(stack)).toBe("on on on on");
      },
      LIMITS.test,
    );

    test(
      "Pis on a ClusterCTRL are found and switched",
      async () => {
        const { stack } = makeStack({ boards: [0, 1] });
        await using adapter = await machine.plug("usb-redir");
        serveUsb(adapter.line, i2cAdapter(boardsOnWire(stack, "clusterctrl")));
        await machine.has("/dev/i2c-0");
        await using agent = await startGuestAgent(machine, {
          power: {
            buses: [{ driver: "clusterctrl", device: "/dev/i2c-0", boards: [20], pis: 4 }],
            ...PATIENCE,
          },
        });
        expect((await agent.cli("power scan")).out).toMatch(/^20 .*clusterctrl.* yes$/m);
        expect((await agent.cli("power off 20.2 --force --reason proof")).exit).toBe(0);
        expect(suppliesOf(stack)).toBe("on on off on");
        expect(await agent.supplies()).toBe("on on off on");
      },
      LIMITS.test,
    );
  },
);

async function consoleState(agent: GuestAgent): Promise<string | undefined> {
  return (await agent.json<{ consoles: { state: string }[] }>("console list")).consoles[0]?.state;
}
