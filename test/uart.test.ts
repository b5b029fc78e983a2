/** Consoles of simulated Pis. */
import { afterEach, beforeEach, expect, jest, test } from "bun:test";
import { join } from "node:path";
import type { LineEvents, LineSettings, SerialLine } from "../hal/ports.ts";
import { openSim, type SimHal } from "../hal/sim/hal.ts";
import { serveUart } from "../hal/sim/uartwire.ts";
import { failure } from "./fakes.ts";
import { scratch, until } from "./node.ts";

const SETTINGS: LineSettings = { baud: 115_200, data_bits: 8, parity: "none", stop_bits: 1, flow: "none" };

beforeEach(() => {
  jest.useFakeTimers();
  jest.setSystemTime(new Date("2026-11-23T07:00:00Z"));
});
afterEach(() => {
  jest.useRealTimers();
});

function sim(options: { wireTime?: boolean; faults?: string[] } = {}): SimHal {
  return openSim({ seed: 1, boards: [0], wireTime: false, faults: [], clockSynced: true, ...options });
}

/** A line, and what it said so far. */
async function listen(hal: SimHal, device: string, settings: Partial<LineSettings> = {}) {
  const heard: Uint8Array[] = [];
  const gone: string[] = [];
  const events: LineEvents = {
    bytes: (chunk) => void heard.push(chunk),
    gone: ({ code, message }) => void gone.push(`${code} ${message}`),
  };
  const line: SerialLine = await hal.openLine(device, { ...SETTINGS, ...settings }, events);
  await pass(0);
  return {
    line,
    gone,
    type: (text: string) => line.write(Buffer.from(text)),
    /** What it said since the last time. */
    said: () => Buffer.concat(heard.splice(0)).toString("latin1"),
  };
}

async function pass(ms: number): Promise<void> {
  for (let left = ms; left >= 0; left -= 5) {
    jest.advanceTimersByTime(Math.min(5, left));
    await Promise.resolve();
  }
}

/** A console somebody has logged in at. */
async function shell(hal: SimHal, device = "sim:0.1") {
  const console = await listen(hal, device);
  await pass(500);
  await console.type("root\rsecret\r");
  return console;
}

test("a Pi that is switched on boots, says who it is, and is running for its board when it asks for a name", async () => {
  const hal = sim();
  hal.stack.cut("0.1");
  const { said } = await listen(hal, "sim:0.1");
  await pass(500);
  expect(said()).toBe("");
  hal.stack.on("0.1");
  expect(hal.stack.pi("0.1").host).toBe("starting");
  await pass(60);
  expect(said()).toStartWith("[    0.000000] Booting Linux on physical CPU");
  await pass(40);
  expect(said()).toEndWith("\r\n\r\npi0-1 login: ");
  expect(hal.stack.pi("0.1").host).toBe("running");
});

test("the same Pi says the same at the same time", async () => {
  const boot = async () => {
    jest.setSystemTime(new Date("2026-11-23T07:00:00Z"));
    const { said } = await listen(sim(), "sim:0.0");
    await pass(300);
    return said();
  };
  const first = await boot();
  expect(first).toContain("Machine model: Raspberry Pi 4");
  expect(await boot()).toBe(first);
});

test("somebody logs in without their password being shown, and the shell answers", async () => {
  const console = await shell(sim());
  expect(console.said()).toEndWith("login: root\r\nPassword: \r\nWelcome to Alpine!\r\n\r\npi0-1:~# ");
  await console.type("uname -a\r");
  expect(console.said()).toBe(
    "uname -a\r\nLinux pi0-1 6.12.31-0-rpi #1-Alpine SMP PREEMPT aarch64 Linux\r\npi0-1:~# ",
  );
  await console.type("upt\x7f\x7ftime\r");
  expect(console.said()).toContain("-sh: utime: not found");
  await pass(120_000);
  await console.type("uptime\r");
  expect(console.said()).toContain(" up 2 min");
  await console.type("sleep 9\x03");
  expect(console.said()).toEndWith("^C\r\npi0-1:~# ");
  await console.type("\x04");
  expect(console.said()).toEndWith("pi0-1 login: ");
});

test.each([
  { typed: "poweroff", states: ["stopping", "halted"], says: "reboot: System halted" },
  { typed: "reboot", states: ["stopping", "running"], says: "Booting Linux" },
])("$typed is what the board sees, and the console says", async ({ typed, states, says }) => {
  const hal = sim();
  const console = await shell(hal);
  await console.type(`${typed}\r`);
  const seen = [hal.stack.pi("0.1").host];
  await pass(200);
  seen.push(hal.stack.pi("0.1").host);
  expect<unknown>(seen).toEqual(states);
  expect(console.said()).toContain(says);
});

test("the board's signal shuts the Pi down, and the cut silences it", async () => {
  const hal = sim();
  const console = await shell(hal);
  console.said();
  hal.stack.signal("0.1");
  await pass(100);
  expect(console.said()).toContain("The system is going down NOW!");
  expect(hal.stack.pi("0.1").host).toBe("halted");
  hal.stack.cut("0.1");
  await console.type("hello\r");
  await pass(100);
  expect(console.said()).toBe("");
});

test("a break and a key reach the kernel, and five seconds after it the key is a key", async () => {
  const hal = sim();
  const console = await shell(hal);
  console.said();
  await console.line.sendBreak(300);
  await console.type("h");
  expect(console.said()).toContain("sysrq: HELP");
  await console.line.sendBreak(300);
  await pass(5001);
  await console.type("b");
  expect(console.said()).toBe("b");
  await console.line.sendBreak(300);
  await console.type("b");
  expect(console.said()).toContain("sysrq: Resetting");
  expect(hal.stack.pi("0.1").host).toBe("starting");
});

test("a Pi that does not boot says nothing", async () => {
  const hal = sim({ faults: ["wont-boot"] });
  const { said } = await listen(hal, "sim:0.0");
  hal.stack.cut("0.0");
  hal.stack.on("0.0");
  await pass(1000);
  expect(said()).toBe("");
});

test("any other device is a Pi that is always on; an outlet that is not there is no device", async () => {
  const hal = sim();
  const { said } = await listen(hal, "/dev/ttyUSB0");
  await pass(500);
  expect(said()).toEndWith("raspberrypi login: ");
  const error = await failure(hal.openLine("sim:7.0", SETTINGS, { bytes() {}, gone() {} }));
  expect(error).toMatchObject({ code: "absent", message: "sim: no outlet 7.0; there are 0.0, 0.1" });
});

test("a line is one program's; pulled out it is gone, and cannot be opened until it is put in again", async () => {
  const hal = sim();
  const first = await listen(hal, "/dev/ttyUSB0");
  const open = () => hal.openLine("/dev/ttyUSB0", SETTINGS, { bytes() {}, gone() {} });
  expect((await failure(open())).code).toBe("busy");
  hal.uarts.unplug("/dev/ttyUSB0");
  expect(first.gone).toEqual(["io /dev/ttyUSB0: unplugged"]);
  expect((await failure(first.line.write(Buffer.from("x")))).code).toBe("io");
  expect((await failure(open())).code).toBe("absent");
  hal.uarts.plug("/dev/ttyUSB0");
  await (await open()).close();
  await (await open()).close();
  expect(first.gone).toHaveLength(1);
});

test("with wire time nothing is faster than its baud rate, and nothing is lost", async () => {
  const whole = await listen(sim(), "/dev/ttyUSB0");
  await pass(500);
  const all = whole.said().replace(/^\[.*?\]/gm, "");
  const hal = sim({ wireTime: true });
  const { said } = await listen(hal, "/dev/ttyUSB0");
  let text = "";
  for (let ms = 0; ms < 10_000; ms += 100) {
    await pass(100);
    const part = said();
    // 11.52 bytes each millisecond
    expect(part.length).toBeLessThanOrEqual(1300);
    text += part;
  }
  expect(text.replace(/^\[.*?\]/gm, "")).toBe(all);
});

test("with wire time a long answer takes its time", async () => {
  const console = await listen(sim({ wireTime: true }), "sim:0.1");
  await pass(20_000);
  const typing = console.type(`root\r\recho ${"x".repeat(500)}\r`);
  await pass(50);
  await typing;
  console.said();
  await pass(30);
  expect(console.said().length).toBeLessThanOrEqual(4 * 116);
  await pass(200);
  expect(console.said()).toEndWith("xxx\r\npi0-1:~# ");
});

test("two ends that do not agree on their speed hear rubbish", async () => {
  const console = await listen(sim(), "/dev/ttyUSB0", { baud: 9600 });
  await pass(500);
  expect(console.said()).not.toContain("Linux");
  await console.line.change({ baud: 115_200 });
  await console.type("\r");
  expect(console.said()).toBe("\r\nraspberrypi login: ");
});

test("a Pi of another process is reached over a socket, breaks and all, and missed when it is gone", async () => {
  jest.useRealTimers();
  using folder = scratch();
  const path = join(folder.path, "pi.tty.sock");
  const hal = sim();
  expect((await failure(hal.openLine(path, SETTINGS, { bytes() {}, gone() {} }))).code).toBe("absent");
  const happened: string[] = [];
  const stop = new AbortController();
  const say = await serveUart(
    path,
    {
      typed: (bytes) => void happened.push(Buffer.from(bytes).toString("hex")),
      broke: () => void happened.push("break"),
    },
    stop.signal,
  );
  const { line, gone, said } = await (async () => {
    const heard: Uint8Array[] = [];
    const gone: string[] = [];
    const line = await hal.openLine(path, SETTINGS, {
      bytes: (chunk) => void heard.push(chunk),
      gone: ({ message }) => void gone.push(message),
    });
    return { line, gone, said: () => Buffer.concat(heard).toString("hex") };
  })();
  await line.write(Uint8Array.of(1, 0xff, 0, 0xff, 0xff));
  await line.sendBreak(300);
  await line.write(Uint8Array.of(2));
  await until("all of it is there", () => happened.join("").endsWith("break02"));
  expect(happened.join(" ").replaceAll(" ", "")).toBe("01ff00ffffbreak02");
  say(Uint8Array.of(0xff, 0, 0x80));
  await until("it is heard", () => said() === "ff0080");
  stop.abort();
  await until("it is missed", () => gone.length > 0);
  expect(gone).toEqual([`${path}: the simulated Pi is gone`]);
});
