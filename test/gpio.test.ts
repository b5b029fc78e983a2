import { expect, test } from "bun:test";
import { readlinkSync } from "node:fs";
import { listGpio, OpenLine, openGpio } from "../hal/gpio.ts";
import { edgesIn, FLAG, IOCTL } from "../hal/native/gpiochip.ts";
import type { Buffered } from "../hal/native/libc.ts";
import type { GpioUse } from "../hal/ports.ts";
import { failure, seeded } from "./fakes.ts";
import { FakeChips, FakeSysfs, kernelOf, onoffAt } from "./gpio.ts";
import { scratch, until } from "./node.ts";
import { FUZZ } from "./sim.ts";

const LISTEN: GpioUse = { direction: "in", edge: "both" };

test("through sysfs a line is exported under the number its chip begins with", async () => {
  await using sysfs = new FakeSysfs("pinctrl-bcm2711", 512);
  const line = await openGpio(17, { direction: "in" }, kernelOf({ sysfs }));
  expect(sysfs.get("gpio529/direction").trim()).toBe("in");
  sysfs.put("gpio529/value", "1\n");
  expect(await line.read()).toBe(1);
  expect(await line.direction()).toBe("in");
  await line.close();
  await until("given back", () => sysfs.line(17, "value") === undefined);
});

test.each([
  { label: "pinctrl-bcm2835", base: 0 },
  { label: "pinctrl-bcm2711", base: 512 },
  { label: "pinctrl-rp1", base: 569 },
])("the lines of $label begin at $base, wherever other chips begin", async ({ label, base }) => {
  await using sysfs = new FakeSysfs(label, base);
  const line = await openGpio(4, { direction: "out", initial: 1 }, kernelOf({ sysfs }));
  await until("high", () => sysfs.get(`gpio${base + 4}/value`).trim() === "1");
  await line.close();
});

test("off a Pi the first chip is taken, on either way", async () => {
  await using sysfs = new FakeSysfs("9030000.pl061", 504);
  const line = await openGpio(3, { direction: "out", initial: 1 }, kernelOf({ sysfs }));
  expect(sysfs.line(3, "direction")).toMatch(/high|out/);
  await line.close();
  using chips = new FakeChips("other", 40);
  // Those of gpiochip0
  expect(await listGpio(kernelOf({ chips }))).toHaveLength(32);
});

test("on a Pi whose own chip is not shown no other is taken for it, and the message names those that are there", async () => {
  using folder = scratch();
  const model = folder.file("model", "Raspberry Pi 5 Model B Rev 1.0\0");
  await using sysfs = new FakeSysfs("raspberrypi-exp-2", 504);
  using chips = new FakeChips("other", 40);
  const kernel = kernelOf({ sysfs, chips, model });
  expect(await listGpio(kernel)).toEqual([]);
  expect(await failure(openGpio(3, { direction: "in" }, kernel))).toMatchObject({
    code: "absent",
    message:
      "GPIO3: the kernel shows no chip of a Raspberry Pi's own lines, only raspberrypi-exp-2, raspberrypi-exp-gpio, gpio-brcmstb, other",
  });
  expect(sysfs.line(3, "direction")).toBeUndefined();
});

test("through sysfs direction and first level are set in one write, and both stay when the line is closed", async () => {
  await using sysfs = new FakeSysfs();
  const line = await openGpio(22, { direction: "out", initial: 1 }, kernelOf({ sysfs }));
  // What the kernel had not yet seen is what was written.
  expect(sysfs.line(22, "direction")).toBe("high");
  await until("high", () => sysfs.line(22, "direction") === "out\n" && sysfs.line(22, "value") === "1\n");
  await line.write(0);
  expect(sysfs.line(22, "value")?.[0]).toBe("0");
  await line.close();
  await sysfs.settled();
  expect(sysfs.line(22, "direction")).toBe("out\n");
  expect((await failure(line.write(1))).message).toBe("GPIO22: cannot write 1: it is closed");
});

test.each([
  { direction: "out", value: "1" },
  { direction: "out", value: "0" },
  { direction: "in", value: "1" },
])(
  "through sysfs a line opened as it is stays $direction at $value, and so when it is closed",
  async (was) => {
    await using sysfs = new FakeSysfs();
    sysfs.export(17, was);
    const line = await openGpio(17, { direction: "as-is" }, kernelOf({ sysfs }));
    expect(await line.direction()).toBe(was.direction as "in" | "out");
    expect(await line.read()).toBe(Number(was.value) as 0 | 1);
    await line.close();
    await sysfs.settled();
    // Rewritten files would have lost their newlines.
    expect(sysfs.line(17, "direction")).toBe(`${was.direction}\n`);
    expect(sysfs.line(17, "value")).toBe(`${was.value}\n`);
  },
);

test("through sysfs an input that is written becomes an output with that level, and an input again once closed", async () => {
  await using sysfs = new FakeSysfs();
  const { Line } = onoffAt(sysfs.root);
  const line = await openGpio(6, { direction: "in", edge: "falling" }, kernelOf({ sysfs, Line }));
  expect(sysfs.line(6, "edge")?.trim()).toBe("falling");
  await line.write(0);
  // The kernel refuses to make an output of a line that tells edges.
  expect(sysfs.line(6, "edge")?.trim()).toBe("none");
  expect(sysfs.line(6, "direction")).toBe("low");
  await line.close();
  await until("given back", () => sysfs.line(6, "value") === undefined);
});

test("through sysfs an input that somebody had exported is an input again, and stays exported", async () => {
  await using sysfs = new FakeSysfs();
  sysfs.export(6, { direction: "in", value: "1", edge: "both" });
  const line = await openGpio(6, { direction: "in" }, kernelOf({ sysfs }));
  await line.write(0);
  await sysfs.settled();
  expect(sysfs.line(6, "direction")).toBe("out\n");
  await line.close();
  await sysfs.settled();
  expect(sysfs.line(6, "direction")?.trim()).toBe("in");
});

test("through sysfs edges are told with the level after them, until the line is closed", async () => {
  await using sysfs = new FakeSysfs();
  const { Line, edge } = onoffAt(sysfs.root);
  const line = await openGpio(5, LISTEN, kernelOf({ sysfs, Line }));
  const told: number[] = [];
  line.onEdge((level) => told.push(level));
  for (const level of [1, 0, 1]) {
    sysfs.put("gpio517/value", `${level}\n`);
    edge(517);
  }
  expect(told).toEqual([1, 0, 1]);
  await line.close();
  edge(517);
  expect(told).toEqual([1, 0, 1]);
});

test("what somebody left inverted in sysfs is set right, so that levels are those of the pin", async () => {
  await using sysfs = new FakeSysfs();
  sysfs.export(17, { direction: "out", value: "0" });
  sysfs.put("gpio529/active_low", "1\n");
  const line = await openGpio(17, { direction: "as-is" }, kernelOf({ sysfs }));
  expect(sysfs.line(17, "active_low")?.trim()).toBe("0");
  await line.close();
});

test("where there is no sysfs, the character device of that chip is used, whatever its number", async () => {
  using chips = new FakeChips();
  const line = await openGpio(17, { direction: "out", initial: 1 }, kernelOf({ chips }));
  expect(chips.line(17)).toMatchObject({ consumer: "fruit", level: 1, done: ["output 1"] });
  await line.write(0);
  expect(await line.read()).toBe(0);
  expect(await line.direction()).toBe("out");
  expect(chips.line(17).done).toEqual(["output 1", "level 0"]);
  await line.close();
  expect(chips.isHeld(17)).toBe(false);
  expect((await failure(line.read())).code).toBe("io");
});

test.each([FLAG.output, FLAG.input])(
  "through the character device a line opened as it is keeps direction and level (flags %i)",
  async (flags) => {
    using chips = new FakeChips();
    Object.assign(chips.line(17), { flags, level: 1 });
    const line = await openGpio(17, { direction: "as-is" }, kernelOf({ chips }));
    expect(await line.read()).toBe(1);
    expect(await line.direction()).toBe(flags === FLAG.output ? "out" : "in");
    expect(chips.line(17)).toMatchObject({ flags, level: 1, done: ["as it is"] });
    // It has a level of its own only from now on, in one step.
    await line.write(0);
    await line.write(1);
    expect(chips.line(17).done).toEqual(["as it is", "output 0", "level 1"]);
    await line.close();
  },
);

test("through the character device an input that is written is an input again once closed, also where outputs persist", async () => {
  using chips = new FakeChips();
  const line = await openGpio(6, { direction: "in", edge: "falling", bias: "none" }, kernelOf({ chips }));
  expect(chips.line(6).flags).toBe(FLAG.input | FLAG.falling | FLAG.noBias);
  await line.write(0);
  await line.close();
  expect(chips.line(6).done).toEqual(["input", "output 0", "input"]);
});

test("through the character device every edge is told, also several that came at once", async () => {
  using chips = new FakeChips();
  const line = await openGpio(5, LISTEN, kernelOf({ chips }));
  const told: number[] = [];
  line.onEdge((level) => told.push(level));
  chips.edges(5, [1, 0, 1]);
  await until("three edges", () => told.length === 3);
  chips.edges(5, [0]);
  await until("another", () => told.length === 4);
  expect(told).toEqual([1, 0, 1, 0]);
  await line.close();
});

test("a pull is set through the character device, as sysfs cannot", async () => {
  await using sysfs = new FakeSysfs("pinctrl-rp1");
  using chips = new FakeChips();
  const kernel = kernelOf({ sysfs, chips });
  const line = await openGpio(24, { direction: "in", bias: "pull-up" }, kernel);
  expect(chips.line(24).flags).toBe(FLAG.input | FLAG.up);
  expect(sysfs.line(24, "value")).toBeUndefined();
  await line.close();
  // Without the character device, no pull at all is as good as the firmware left it.
  const other = await openGpio(25, { direction: "in", bias: "none" }, kernelOf({ sysfs }));
  expect(sysfs.line(25, "direction")?.trim()).toBe("in");
  await other.close();
});

test("the kernel's lines are listed with their names, who has them and which way they go", async () => {
  using chips = new FakeChips("pinctrl-bcm2835", 54);
  Object.assign(chips.line(0), { name: "ID_SDA" });
  Object.assign(chips.line(29), { consumer: "ACT", flags: FLAG.output });
  const lines = await listGpio(kernelOf({ chips }));
  expect(lines).toHaveLength(54);
  expect(lines[0]).toEqual({ gpio: 0, name: "ID_SDA", direction: "in" });
  expect(lines[29]).toEqual({ gpio: 29, name: "GPIO29", consumer: "ACT", direction: "out" });
});

test("where only sysfs is, the list says which lines somebody has exported; where nothing is, it is empty", async () => {
  await using sysfs = new FakeSysfs();
  sysfs.export(17, { direction: "out", value: "0" });
  const lines = await listGpio(kernelOf({ sysfs }));
  expect(lines).toHaveLength(58);
  expect(lines[17]).toEqual({ gpio: 17, consumer: "sysfs", direction: "unknown" });
  expect(lines[18]).toEqual({ gpio: 18, direction: "unknown" });
  expect(await listGpio(kernelOf({}))).toEqual([]);
});

test("a line that a driver has is busy, and the message says whose it is", async () => {
  using chips = new FakeChips();
  chips.line(4).consumer = "onewire@0";
  const error = await failure(openGpio(4, LISTEN, kernelOf({ chips })));
  expect(error).toMatchObject({ code: "busy", message: "GPIO4: is taken by onewire@0" });
});

test("a line that somebody exported in sysfs is busy for the character device, and the message says how to get it back", async () => {
  using chips = new FakeChips();
  await using sysfs = new FakeSysfs("pinctrl-rp1", 512);
  chips.line(4).consumer = "sysfs";
  const open = openGpio(4, { direction: "in", bias: "pull-up" }, kernelOf({ chips, sysfs }));
  expect((await failure(open)).message).toContain(`echo 516 > ${sysfs.root}/unexport`);
});

test("a line that no chip has is absent, and the message says which there are", async () => {
  using chips = new FakeChips("pinctrl-rp1", 28);
  const use: GpioUse = { direction: "in" };
  expect(await failure(openGpio(40, use, kernelOf({ chips })))).toMatchObject({
    code: "absent",
    message: "GPIO40: pinctrl-rp1 has 28 lines, GPIO0 to GPIO27",
  });
  await using sysfs = new FakeSysfs();
  expect((await failure(openGpio(58, use, kernelOf({ sysfs })))).code).toBe("absent");
  expect(await failure(openGpio(4, use, kernelOf({})))).toMatchObject({
    code: "absent",
    message: expect.stringContaining("the kernel shows no GPIO lines"),
  });
});

test("a chip that is not ours to open is an error that says what to do", async () => {
  using chips = new FakeChips();
  const denied = Object.assign(new Error("EACCES: permission denied"), { code: "EACCES" });
  const kernel = {
    ...kernelOf({ chips }),
    ioctl: () => {
      throw denied;
    },
  };
  expect(await failure(openGpio(4, { direction: "in" }, kernel))).toMatchObject({
    code: "io",
    message: expect.stringContaining("no permission; run as root"),
  });
});

test("what fails to open leaves no file of the chip behind", async () => {
  using chips = new FakeChips();
  chips.line(4).consumer = "onewire@0";
  const open = () => [...new Bun.Glob("*").scanSync({ cwd: "/proc/self/fd", onlyFiles: false })].length;
  await failure(openGpio(4, LISTEN, kernelOf({ chips })));
  const before = open();
  for (let i = 0; i < 20; i++) await failure(openGpio(4, LISTEN, kernelOf({ chips })));
  await listGpio(kernelOf({ chips }));
  // Something else of this process may have been closed meanwhile; one left behind each time would be twenty
  expect(open()).toBeLessThan(before + 5);
});

test("whatever a line's file gives, it is a list of levels", () => {
  const random = seeded(26);
  for (let round = 0; round < FUZZ; round++) {
    const bytes = Uint8Array.from({ length: Math.floor(random() * 200) }, () => random() * 256);
    const levels = edgesIn(bytes);
    expect(levels).toHaveLength(Math.floor(bytes.length / 48));
    if (!levels.every((level) => level === 0 || level === 1)) throw new Error(`${bytes}`);
  }
});

const openFiles = () => [...new Bun.Glob("*").scanSync({ cwd: "/proc/self/fd", onlyFiles: false })].length;

test("a line that is closed leaves no file open, nor does a chip when a later one is not ours to open", async () => {
  using chips = new FakeChips("other", 40);
  const kernel = kernelOf({ chips });
  const denying = {
    ...kernel,
    ioctl: (file: number, request: number, argument: Buffered | number) => {
      if (readlinkSync(`/proc/self/fd/${file}`).endsWith("gpiochip4"))
        throw Object.assign(new Error("EACCES"), { code: "EACCES" });
      return chips.ioctl(file, request, argument);
    },
  };
  await (await openGpio(4, { direction: "in" }, kernel)).close();
  const before = openFiles();
  for (let i = 0; i < 20; i++) await (await openGpio(4, { direction: "in" }, kernel)).close();
  for (let i = 0; i < 20; i++) await failure(openGpio(4, { direction: "in" }, denying));
  await until("all are closed", () => openFiles() <= before);
});

test("a line of sysfs that cannot be set up is given back, and no file of it stays open", async () => {
  await using sysfs = new FakeSysfs();
  const { Line } = onoffAt(sysfs.root);
  class Broken extends Line {
    override setDirection(): void {
      throw Object.assign(new Error("EIO: i/o error"), { code: "EIO" });
    }
  }
  const before = openFiles();
  const use: GpioUse = { direction: "out", initial: 0 };
  expect((await failure(openGpio(9, use, kernelOf({ sysfs, Line: Broken })))).code).toBe("io");
  await until("given back", () => sysfs.line(9, "value") === undefined);
  await until("all are closed", () => openFiles() <= before);
});

test("where sysfs is all there is, a pull is refused for what it is", async () => {
  await using sysfs = new FakeSysfs();
  const error = await failure(openGpio(4, { direction: "in", bias: "pull-up" }, kernelOf({ sysfs })));
  expect(error.message).toBe(
    "GPIO4: sysfs cannot set a pull, and there is no /nowhere/gpiochip* of pinctrl-bcm2711",
  );
});

test("a kernel that refuses a line it has is not said to lack it", async () => {
  using chips = new FakeChips();
  const kernel = {
    ...kernelOf({ chips }),
    ioctl: (file: number, request: number, argument: Buffered | number) => {
      if (request === IOCTL.request) throw Object.assign(new Error("EINVAL: no"), { code: "EINVAL" });
      return chips.ioctl(file, request, argument);
    },
  };
  expect(await failure(openGpio(4, LISTEN, kernel))).toMatchObject({
    code: "io",
    message: "GPIO4: EINVAL: no",
  });
});

test("whoever listens to edges and throws ends nothing, and is told the next one", async () => {
  using chips = new FakeChips();
  const line = await openGpio(4, LISTEN, kernelOf({ chips }));
  const told: number[] = [];
  line.onEdge((value) => {
    told.push(value);
    throw new Error("a listener's own");
  });
  chips.edges(4, [1, 0]);
  await until("both", () => told.length === 2);
  chips.edges(4, [1]);
  await until("the third", () => told.length === 3);
  expect(told).toEqual([1, 0, 1]);
  await line.close();
});

test("a line is closed after what is under way", async () => {
  const read = Promise.withResolvers<0 | 1>();
  const done: string[] = [];
  const line = new OpenLine(4, {
    read: () => read.promise,
    close: () => void done.push("closed"),
  } as unknown as ConstructorParameters<typeof OpenLine>[1]);
  const reading = line.read().then(() => done.push("read"));
  const closing = line.close();
  expect((await failure(line.read())).message).toContain("it is closed");
  expect(done).toEqual([]);
  read.resolve(1);
  await Promise.all([reading, closing]);
  expect(done.toSorted()).toEqual(["closed", "read"]);
});
