/**
 * The arm64 executable on an emulated Raspberry Pi 3: started by U-Boot, under Debian's kernel, through that kernel's own
 * drivers for both UARTs, a USB serial adapter and GPIO. What is not there in emulation stands in `emulator/pi.ts`.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { startGuestAgent } from "../emulator/agent.ts";
import { serveSerial, suppliesOf } from "../emulator/boards.ts";
import { missingForEmulator } from "../emulator/cache.ts";
import { LIMITS } from "../emulator/limits.ts";
import type { Machine } from "../emulator/machine.ts";
import { PI_GPIO, pinOf, startPi, TTYS1_NOISE, uartDivisor } from "../emulator/pi.ts";
import { shipped } from "../emulator/program.ts";
import { until } from "../node.ts";
import { drive, makeStack } from "../sim.ts";

const missing = missingForEmulator();

describe.skipIf(missing !== undefined)(`a Pi 3 in emulation${missing ? ` [needs: ${missing}]` : ""}`, () => {
  let pi: Machine;
  /** What was said on the line that later carries boards. */
  let booting = "";
  beforeAll(async () => {
    pi = await startPi({
      rootFiles: { "/usr/bin/fruit": shipped("arm64") },
      tree: ["fdt mknode / hat", 'fdt set /hat product "Pi Stack"'],
    });
    booting = pi.line("ttyS1").text;
  }, LIMITS.test);
  afterAll(() => pi?.[Symbol.asyncDispose]());

  test(
    "was started by U-Boot, and the one file of the executable runs",
    async () => {
      expect(booting).toContain("U-Boot 2023");
      expect(JSON.parse(await pi.output("fruit version --json"))).toMatchObject({ arch: "arm64" });
      expect(await pi.output("find / -xdev -name '*.node'")).toBe("");
      const { out } = await pi.run("fruit doctor");
      expect(out).toMatch(/^ok {3}board: Raspberry Pi 3 Model B, .*pic0ffee00$/m);
      expect(out).toMatch(/^ok {3}executable: \/usr\/bin\/fruit, arm64$/m);
    },
    LIMITS.test,
  );

  test(
    "finds, measures and switches Pi Stack boards on ttyAMA0 and ttyS1",
    async () => {
      // Time stands still unless told, so that what is measured does not change.
      const { stack, pass } = makeStack({ boards: [0, 1, 2] });
      pass(120_000);
      const reference = await drive(stack);
      const truth = await Promise.all(
        reference.outlets.map(async (outlet) => ({ outlet, ...(await reference.read(outlet)) })),
      );
      const buses = { ttyAMA0: [0], ttyS1: [1, 2] };
      const heard = Object.keys(buses).map((name) => serveSerial(pi.line(name), stack, TTYS1_NOISE));
      await using agent = await startGuestAgent(pi, {
        power: {
          buses: Object.entries(buses).map(([name, boards]) => ({
            driver: "pistack-rs485",
            device: `/dev/${name}`,
            boards,
          })),
          min_on_seconds: 0,
        },
      });

      const { boards } = await agent.json<{ boards: object[] }>("power scan");
      // Every board answers on either line; whose it is stands in the configuration.
      expect(boards).toHaveLength(6);
      const last = { bus: "bus 1 (pistack-rs485)", board: 2, hardware: 3, firmware: 4, configured: true };
      expect(boards).toContainEqual(last);
      for (const name of Object.keys(buses))
        expect(await pi.output(`stty -a -F /dev/${name}`)).toMatch(
          /-parenb[\s\S]* cs8[\s\S]*-cstopb[\s\S]*-crtscts/,
        );
      // 48 MHz / (16 × 312.5) is 9600 baud: as the UART was told, since QEMU's passes bytes at any.
      expect(await uartDivisor(pi)).toBe(312.5);

      const { outlets } = await agent.json<{ outlets: object[] }>("power status");
      expect(outlets).toHaveLength(6);
      for (const [index, { outlet, supply, volts = 0, amperes = 0 }] of truth.entries()) {
        expect(volts).toBeGreaterThan(4);
        const told = { volts: expect.closeTo(volts, 3), amperes: expect.closeTo(amperes, 3) };
        expect(outlets[index]).toMatchObject({ outlet, supply, ...told });
      }

      expect((await agent.cli("power off 0.1 2.0 --force --reason proof")).exit).toBe(0);
      expect(suppliesOf(stack)).toBe("on off on on off on");
      pass(10_000);
      expect((await agent.cli("power on 2.0 --no-wait")).exit).toBe(0);
      expect(suppliesOf(stack)).toBe("on off on on on on");
      const [status] = (await agent.json<{ outlets: object[] }>("power status 0.1")).outlets;
      expect(status).toMatchObject({ supply: "off", volts: 0, by: "local:root", reason: "proof" });

      const switching = heard.map(({ said }) =>
        said.filter((what) => /^(on|off|forceOff|signal) /.test(what)),
      );
      expect(switching).toEqual([["forceOff 0.1"], ["forceOff 2.0", "on 2.0"]]);
      expect(heard.flatMap(({ breaches }) => breaches)).toEqual([]);
    },
    LIMITS.test,
  );

  test(
    "carries consoles on a UART and on a USB adapter, and leaves the kernel's own alone",
    async () => {
      const uart = pi.line("ttyAMA0");
      const { line: adapter } = await pi.plug("usb-serial");
      await pi.has("/dev/ttyUSB1");
      const far = { uart, adapter };
      for (const line of Object.values(far)) {
        line.forget();
        line.read((chunk) => {
          if (chunk.includes("\r")) line.write("\r\nLinux far 6.1.0\r\n# ");
        });
      }
      await using agent = await startGuestAgent(pi, {
        consoles: {
          uart: { device: "/dev/ttyAMA0" },
          adapter: { device: "/dev/ttyUSB1", baud: 57_600 },
          kernel: { device: "/dev/ttyS1" },
        },
      });
      // Recorded with nobody attached.
      for (const [name, line] of Object.entries(far)) {
        await until(
          `console ${name} is up`,
          async () => (await agent.cli("console list")).out.match(RegExp(`^${name} .* up `, "m")),
          LIMITS.event,
        );
        line.write("booting\r\n");
      }
      for (const [name, line] of Object.entries(far)) {
        const sent = await agent.cli(
          `console send ${name} 'uname -sr' --expect 'Linux .* [0-9.]+' --timeout 60`,
        );
        expect(sent).toMatchObject({ exit: 0, out: expect.stringContaining("Linux far 6.1.0") });
        expect(line.text).toBe("uname -sr\r");
        const { out } = await agent.cli(`console log ${name}`);
        expect(out).toMatch(/ is open, \d+ 8N1\]\nbooting\n[\s\S]*Linux far 6\.1\.0\n#/);
      }
      // 48 MHz / (16 × 115200) in steps of 1/64
      expect(await uartDivisor(pi)).toBe(26 + 3 / 64);
      expect((await agent.cli("console break uart")).exit).toBe(0);
      const { exit, err } = await agent.cli("console send kernel hello");
      expect(exit).not.toBe(0);
      expect(err).toContain("the kernel's own console");
    },
    LIMITS.test,
  );

  test(
    "drives a line through sysfs and beats the heart of the Pi Stack whose HAT it found",
    async () => {
      await pi.pins.watch(PI_GPIO);
      const agent = await startGuestAgent(pi, { gpio: { relay: { gpio: 17, direction: "out" } } });
      for (const level of [1, 0, 1]) {
        expect(await agent.cli(`gpio set relay ${level}`)).toMatchObject({
          exit: 0,
          out: `relay ${level}\n`,
        });
        expect(await pinOf(pi, 17)).toEqual({ isOutput: true, level });
      }
      const rises = () => pi.pins.changes.filter(({ pin, level }) => pin === 5 && level === 1);
      await until("three beats", () => rises().length >= 3, LIMITS.event);
      expect((await agent.cli("stack status")).out).toMatch(/^HAT +Pi Stack$[\s\S]*^heart +beating$/m);
      expect((await agent.cli("gpio set relay 0")).exit).toBe(0);
      await until("the board sees it fall", () =>
        pi.pins.changes.some(({ pin, level }) => pin === 17 && level === 0),
      );
      expect((await agent.cli("gpio set relay 1")).exit).toBe(0);
      await agent[Symbol.asyncDispose]();
      // An agent that ends changes no relay.
      expect(await pinOf(pi, 17)).toEqual({ isOutput: true, level: 1 });
    },
    LIMITS.test,
  );

  test(
    "drives a line through the character device where the kernel has no sysfs",
    async () => {
      await pi.output("mount -t tmpfs none /sys/class/gpio");
      const agent = await startGuestAgent(pi, { gpio: { relay: { gpio: 27, direction: "out" } } });
      for (const level of [1, 0, 1]) {
        expect(await agent.cli(`gpio set relay ${level}`)).toMatchObject({
          exit: 0,
          out: `relay ${level}\n`,
        });
        expect(await pinOf(pi, 27)).toEqual({ isOutput: true, level });
      }
      await agent[Symbol.asyncDispose]();
      // The kernel takes back what a program had that has ended: why relays belong on sysfs.
      expect((await pinOf(pi, 27)).isOutput).toBe(false);
      await pi.output("umount /sys/class/gpio");
    },
    LIMITS.test,
  );
});
