import { afterEach, expect, test } from "bun:test";
import {
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir, uptime } from "node:os";
import { join } from "node:path";
import { textOf } from "../agent/telemetry/cursor.ts";
import { GROUPS } from "../agent/telemetry/metrics.ts";
import { createSampler } from "../agent/telemetry/sampler.ts";
import { openLinux } from "../hal/linux.ts";
import { kernelClock, mailbox } from "../hal/native/libc.ts";
import { failure } from "./fakes.ts";

const open: (() => void)[] = [];
afterEach(() => {
  for (const close of open.splice(0)) close();
});

function linux() {
  const hal = openLinux();
  open.push(() => hal.machine.close());
  return hal.machine;
}

/** Descriptors of this process that lead to kernel files. */
function kernelFiles(): string[] {
  return readdirSync("/proc/self/fd")
    .map((fd) => linkOf(`/proc/self/fd/${fd}`))
    .filter((target) => /^\/(proc|sys)\//.test(target) && !target.endsWith("/fd"));
}

function linkOf(path: string): string {
  try {
    return readlinkSync(path);
  } catch {
    // The descriptor of the listing itself.
    return "";
  }
}

test("a kernel file is opened once and read anew each time", () => {
  const machine = linux();
  const before = kernelFiles().length;
  const first = Number(textOf(machine.read("/proc/uptime"))?.split(" ")[0]);
  for (let round = 0; round < 500; round++) machine.read("/proc/uptime");
  expect(kernelFiles().length).toBe(before + 1);
  const deadline = Date.now() + 2000;
  let now = first;
  while (now === first && Date.now() < deadline)
    now = Number(textOf(machine.read("/proc/uptime"))?.split(" ")[0]);
  expect(now).toBeGreaterThan(first);
});

test("however many files are read, a bounded number stays open, and all are closed in the end", () => {
  const before = kernelFiles().length;
  const machine = linux();
  const files = readdirSync("/proc/sys/kernel", { withFileTypes: true, recursive: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name));
  const read = files.filter((file) => machine.read(file) !== undefined);
  expect(read.length).toBeGreaterThan(64);
  expect(kernelFiles().length - before).toBe(64);
  machine.close();
  expect(kernelFiles().length).toBe(before);
});

test("full sets of samples neither open nor keep more than the first did", () => {
  const machine = linux();
  const sampler = createSampler(machine, { filesystems: { root: "/" }, nowMs: () => performance.now() });
  for (const group of GROUPS) sampler.sample(group, true);
  const kept = kernelFiles().sort();
  for (let round = 0; round < 20; round++) for (const group of GROUPS) sampler.sample(group, true);
  expect(kernelFiles().sort()).toEqual(kept);
});

test("a file whose owner has gone is absent, and its descriptor is closed", async () => {
  const machine = linux();
  const child = Bun.spawn(["sleep", "60"]);
  const path = `/proc/${child.pid}/stat`;
  const before = kernelFiles().length;
  expect(textOf(machine.read(path))).toContain(`${child.pid} (`);
  expect(kernelFiles().length).toBe(before + 1);
  child.kill();
  await child.exited;
  expect(machine.read(path)).toBeUndefined();
  expect(kernelFiles().length).toBe(before);
});

test("a list longer than a page comes whole", () => {
  const machine = linux();
  const length = () => machine.read("/proc/self/maps")?.length ?? 0;
  const text = textOf(machine.read("/proc/self/maps")) ?? "";
  expect(length()).toBeGreaterThan(4096);
  const last = readFileSync("/proc/self/maps", "utf8").trimEnd().split("\n").at(-1);
  expect(text.split("\n").at(-1)).toBe(last as string);
});

test("a file longer than the buffer makes it grow", () => {
  const dir = mkdtempSync(join(tmpdir(), "fruit-linux-"));
  try {
    const text = "0123456789abcdef".repeat(10_000);
    writeFileSync(join(dir, "long"), text);
    expect(textOf(linux().read(join(dir, "long")))).toBe(text);
  } finally {
    rmSync(dir, { recursive: true });
  }
});

test("a file that is not the kernel's is never kept: its successor is what is read", () => {
  const dir = mkdtempSync(join(tmpdir(), "fruit-linux-"));
  try {
    const machine = linux();
    writeFileSync(join(dir, "release"), "old");
    expect(textOf(machine.read(join(dir, "release")))).toBe("old");
    writeFileSync(join(dir, "next"), "new");
    renameSync(join(dir, "next"), join(dir, "release"));
    expect(textOf(machine.read(join(dir, "release")))).toBe("new");
  } finally {
    rmSync(dir, { recursive: true });
  }
});

test.each(["/proc/no-such-file", "/sys/class/thermal/thermal_zone99/temp", "/proc", "/proc/self/mem"])(
  "%s, which cannot be read, is absent and leaves nothing open",
  (path) => {
    const machine = linux();
    const before = kernelFiles().length;
    for (let round = 0; round < 5; round++) expect(machine.read(path)).toBeUndefined();
    expect(kernelFiles().length).toBe(before);
  },
);

test("what is not there is absent, whatever is asked", () => {
  const machine = linux();
  expect(machine.list("/sys/class/no-such-class")).toEqual([]);
  expect(machine.link("/proc/uptime")).toBeUndefined();
  expect(machine.space("/no/such/mount")).toBeUndefined();
  expect(machine.list("/proc/self")).toContain("status");
  expect(machine.space("/")?.sizeBytes).toBeGreaterThan(0);
});

test("the C library answers, and the kernel's clock is asked through it", () => {
  const clock = kernelClock();
  expect(clock).toBeDefined();
  expect(Math.abs(clock?.offsetSeconds ?? Number.NaN)).toBeLessThan(1000);
  expect(linux().clock()).toMatchObject({ synced: clock?.synced ?? false });
});

test.skipIf(existsSync("/dev/vcio"))("without the firmware's mailbox there is no throttle word", () => {
  expect(mailbox(0x00030046)).toBeUndefined();
  expect(linux().throttled()).toBeUndefined();
});

test.skipIf(existsSync("/sys/class/leds/ACT"))("a machine without an LED says that it cannot be seen", () => {
  expect(linux().identify(true)).toBe(false);
  expect(linux().identify(false)).toBe(false);
});

test("the boot has an id, and the machine's uptime is the system's", () => {
  const machine = linux();
  expect(machine.bootId).toMatch(/^[0-9a-f]{8}-[0-9a-f-]{27}$/);
  const before = uptime();
  const seen = Number(textOf(machine.read("/proc/uptime"))?.split(" ")[0]);
  // os.uptime may leave out time asleep and counts in whole seconds.
  expect(seen).toBeGreaterThan(before - 2);
});

test.each([
  { open: "openSerial", device: "/dev/ttyUSB4711" },
  { open: "openI2c", device: "/dev/i2c-4711" },
] as const)("$open names the device that is missing", async ({ open: how, device }) => {
  expect((await failure(openLinux()[how](device))).message).toStartWith(`${device}: `);
});
