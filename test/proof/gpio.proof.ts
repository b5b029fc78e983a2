/**
 * GPIO with interrupts on a real kernel: the arm64 executable on QEMU's board `virt`, whose PL061 lines are driven from
 * outside, as a Pi Stack board drives a Pi's; the emulated Pi's own raise none. Off a Pi, the first chip's lines are taken.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { startGuestAgent } from "../emulator/agent.ts";
import { missingForEmulator } from "../emulator/cache.ts";
import { LIMITS } from "../emulator/limits.ts";
import type { Machine } from "../emulator/machine.ts";
import { shipped } from "../emulator/program.ts";
import { startVirt } from "../emulator/virt.ts";
import { until } from "../node.ts";

const missing = missingForEmulator();
/** The Pi Stack's lines. */
const HEART = 5;
const SHUTDOWN = 6;

describe.skipIf(missing !== undefined)(
  `GPIO edges in emulation${missing ? ` [needs: ${missing}]` : ""}`,
  () => {
    let machine: Machine;
    let chip: string;
    const drive = (pin: number, level: 0 | 1) => machine.pins.drive(chip, pin, level);
    const changesOf = (line: number) => machine.pins.changes.filter(({ pin }) => pin === line);
    /** Resolves when the heart has beaten so often again: 5 s each, in which the agent has looked at its lines. */
    const beaten = (times: number) => {
      const before = changesOf(HEART).length;
      return until(`${times} beats`, () => changesOf(HEART).length >= before + 2 * times, LIMITS.event);
    };
    beforeAll(async () => {
      machine = await startVirt({ rootFiles: { "/usr/bin/fruit": shipped("arm64") } });
      const found = (await machine.monitor.devices()).find(({ type }) => type === "pl061");
      chip = found?.path ?? "";
      await machine.pins.watch(chip);
    }, LIMITS.test);
    afterAll(() => machine?.[Symbol.asyncDispose]());

    test.each([
      { way: "sysfs", door: 2, relay: 3, prepare: "true" },
      { way: "the character device", door: 4, relay: 7, prepare: "mount -t tmpfs none /sys/class/gpio" },
    ])(
      "edges reach 'gpio watch' through $way, and what is driven is seen outside",
      async ({ door, relay, prepare }) => {
        await machine.output(prepare);
        await using agent = await startGuestAgent(machine, {
          gpio: { door: { gpio: door }, relay: { gpio: relay, direction: "out" } },
        });
        await machine.output(
          "FRUIT_SOCKET=/run/fruit.sock fruit gpio watch door --for 600s >/tmp/watch 2>&1 &",
        );
        const watched = async () => {
          const lines = (await machine.output("cat /tmp/watch")).trim().split("\n");
          return lines.map((line) => line.split(" ").slice(1).join(" ")).join(", ");
        };
        const says = (what: string) => until(what, async () => (await watched()) === what, LIMITS.event);
        await says("door 0");
        await drive(door, 1);
        await says("door 0, door 1");
        await drive(door, 0);
        await says("door 0, door 1, door 0");

        for (const level of [1, 0]) {
          const set = await agent.cli(`gpio set relay ${level}`);
          expect(set).toMatchObject({ exit: 0, out: `relay ${level}\n` });
          await until(`${level} outside`, () => changesOf(relay).at(-1)?.level === level, LIMITS.event);
        }
        expect((await machine.run("ls -d /sys/class/gpio/gpio5*")).exit === 0).toBe(prepare === "true");
        await machine.run("umount /sys/class/gpio");
      },
      LIMITS.test,
    );

    test(
      "the heart beats as the board expects, and the board's request shuts the node down",
      async () => {
        await drive(SHUTDOWN, 1);
        await using agent = await startGuestAgent(machine, {
          stack: { role: "on", shutdown_command: ["/bin/sh", "-c", "echo down >>/tmp/down"] },
        });
        await until("three beats", () => changesOf(HEART).length >= 6, LIMITS.event);
        const beats = changesOf(HEART).slice(0, 6);
        expect(beats.map(({ level }) => level)).toEqual([1, 0, 1, 0, 1, 0]);
        // Two intervals of 5 s, as far as a busy machine lets us see.
        expect((beats[4]?.atMs ?? 0) - (beats[0]?.atMs ?? 0)).toBeGreaterThan(5000);

        expect(changesOf(SHUTDOWN)).toEqual([]);
        expect((await agent.cli("stack announce")).exit).toBe(0);
        expect(changesOf(SHUTDOWN).at(-1)?.level).toBe(0);
        // It is given back, and our own edge was not taken for a request.
        const direction = async () => {
          const { lines } = await agent.json<{ lines: { gpio: number; direction: string }[] }>("gpio list");
          return lines.find(({ gpio }) => gpio === SHUTDOWN)?.direction;
        };
        await until("an input again", async () => (await direction()) === "in", LIMITS.event);
        // The PL061 has kept it, and told it when the line was opened anew.
        await beaten(2);
        expect((await machine.run("cat /tmp/down")).out).toBe("");

        // The board's pull-up, which the emulated controller does not know while the line is an output.
        const asked = async () => {
          await drive(SHUTDOWN, 1);
          await beaten(1);
          await drive(SHUTDOWN, 0);
          return (await machine.run("cat /tmp/down")).out;
        };
        await until("it goes down", asked, LIMITS.event);
        expect(await asked()).toBe("down\n");
        expect(await agent.log()).toContain('"stack.shutdown","why":"the board asks for it"');
      },
      LIMITS.test,
    );
  },
);
