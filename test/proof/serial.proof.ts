/**
 * Our serial binding on drivers of a real kernel, in emulation: a 16550A and an FTDI adapter (8250, ftdi_sio); and what
 * takes its time on a pseudo-terminal.
 */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { SimStack } from "../../hal/sim/stack.ts";
import { missingForEmulator } from "../emulator/cache.ts";
import { LIMITS } from "../emulator/limits.ts";
import type { Line } from "../emulator/line.ts";
import type { Machine } from "../emulator/machine.ts";
import { compileGuest } from "../emulator/program.ts";
import { startQ35 } from "../emulator/q35.ts";
import { scratch, startAgent, until } from "../node.ts";
import { Pty, serveStack } from "../pty.ts";

const missing = missingForEmulator();
const proof = test.skipIf(missing !== undefined);
const titled = (title: string) => (missing ? `${title} [needs: ${missing}]` : title);

let machine: Machine | undefined;

beforeAll(async () => {
  if (missing) return;
  const program = await compileGuest("serial", "amd64");
  machine = await startQ35({
    rootFiles: { "/bin/serial": program },
    modules: ["xhci-pci", "ftdi_sio"],
    devices: ["qemu-xhci"],
  });
}, LIMITS.test);

afterAll(async () => {
  await machine?.[Symbol.asyncDispose]();
});

function guest(): Machine {
  if (!machine) throw new Error("the machine did not start");
  return machine;
}

/** Runs the guest's program; all of what it says must be well. */
async function said(command: string): Promise<string> {
  const { exit, out, err } = await guest().run(command);
  expect([exit, out.match(/^wrong .*$/gm), err]).toEqual([0, null, ""]);
  return out;
}

/** Starts the guest's program; the first of what is returned waits until it says something, the other until it has ended, and all must be well. */
async function begin(
  command: string,
): Promise<{ says(what: string): Promise<unknown>; ended(): Promise<string> }> {
  await guest().output(`(${command}; echo ended) </dev/null >/tmp/said 2>&1 &`);
  const said = () => guest().output("cat /tmp/said");
  const says = (what: string) => until(what, async () => (await said()).includes(what), LIMITS.event);
  const ended = async () => {
    await says("ended");
    const out = await said();
    expect(out.match(/^(?!ok |gone ).*$/gm)).toEqual(["ended", ""]);
    return out;
  };
  return { says, ended };
}

function sayBack(line: Line): void {
  line.read((chunk) => line.write(chunk));
}

proof(
  titled(
    "a 16550A has the published cases that need hardware; held, it takes no more, bears a break, and sends on when it is let go",
  ),
  async () => {
    const line = guest().line("ttyS1");
    sayBack(line);
    const out = await said("serial port /dev/ttyS1 250000 9600 115200 57600");
    expect(out.match(/^ok .*$/gm)).toHaveLength(10);
    // After them, since what it leaves on the line would come back
    line.forget();
    line.read(undefined);
    const running = await begin("serial held /dev/ttyS1");
    await line.waitFor(/READY/);
    line.write("\x13");
    await running.says("a held line has not sent");
    line.write("\x11");
    expect((await running.ended()).match(/^ok .*$/gm)).toHaveLength(4);
    await line.waitFor(/x+END$/);
  },
  LIMITS.test,
);

proof(
  titled("an FTDI adapter has them, and odd speeds; the list names it without udev"),
  async () => {
    const { line, unplug } = await guest().plug("usb-serial");
    sayBack(line);
    await guest().has("/dev/ttyUSB0");
    const out = await said("serial port /dev/ttyUSB0 12000000 9600 25000 250000 1000000 3000000");
    expect(out.match(/^ok .*$/gm)).toHaveLength(12);
    expect(out).toContain('"vendorId":"0403"');
    expect(out).toContain('"productId":"6001"');
    expect(out).toMatch(/"locationId":"\d+-\d+:1\.0"/);
    await unplug();
  },
  LIMITS.test,
);

proof(
  titled("an adapter that is pulled out is gone, absent, and there again under its name"),
  async () => {
    const first = await guest().plug("usb-serial");
    await guest().has("/dev/ttyUSB0");
    const running = await begin("serial unplugged /dev/ttyUSB0");
    await first.line.waitFor(/READY/);
    await first.unplug();
    await running.says("while it is out it is absent");
    const second = await guest().plug("usb-serial");
    await second.line.waitFor(/BACK/);
    expect((await running.ended()).match(/^ok .*$/gm)).toHaveLength(3);
    await second.unplug();
  },
  LIMITS.test,
);

test("a scan finds the boards on a serial line, configured or not", async () => {
  using here = scratch();
  using pty = new Pty();
  serveStack(pty, new SimStack({ boards: [0, 3], seed: 9 }));
  const buses = [{ driver: "pistack-rs485", device: pty.device, boards: [0] }];
  await using agent = await startAgent(here.path, { power: { buses } }, { hal: "linux" });
  const { exit, out } = await agent.cli("power", "scan", "--json");
  expect(exit).toBe(0);
  expect([...out.matchAll(/"board":\s*(\d+)/g)].map(([, board]) => Number(board))).toEqual([0, 3]);
});
