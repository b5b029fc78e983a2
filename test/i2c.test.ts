/**
 * i2c-bus with our native part, on a kernel played at the ioctl boundary: the package's own integration tests as they
 * are published, every call in its three forms, and errors.
 */
import { describe, expect, test } from "bun:test";
import assert from "node:assert";
import { dirname, join } from "node:path";
import { isDeepStrictEqual } from "node:util";
import { I2C, i2cNative } from "../hal/native/i2c.ts";
import { busCalls, FORMS, problemOf } from "./i2c-calls.ts";
import { load, packageOn, SimKernel } from "./i2c-kernel.ts";
import { until } from "./node.ts";

const PUBLISHED = join(dirname(Bun.resolveSync("i2c-bus", import.meta.dir)), "integration-test");
const DS1621 = 0x48;
const TSL2561 = 0x39;

describe("i2c-bus's own integration tests pass", () => {
  test.each(["sync", "async", "async-promise", "scan", "busses", "errors", "sync-many-instances"])(
    "%s.js",
    async (name) => {
      const kernel = new SimKernel(1);
      kernel.device(DS1621);
      kernel.device(TSL2561);
      const said: string[] = [];
      load(
        join(PUBLISHED, `${name}.js`),
        { "../": packageOn(kernel), assert, lodash: { isEqual: isDeepStrictEqual } },
        { log: (...words: unknown[]) => said.push(words.join(" ")) },
      );
      await until(`${name}.js`, () => said.some((line) => line.includes("ok")));
      expect(said.at(-1)).toBe(`ok - ${name}`);
      // This one leaves two files to the end of its process
      expect(kernel.files.size).toBe(name === "sync-many-instances" ? 2 : 0);
    },
  );
});

describe.each(Object.keys(FORMS))("the %s form", (form) => {
  const call = FORMS[form]!;
  const start = () => {
    const kernel = new SimKernel(1);
    const device = kernel.device(DS1621);
    return { kernel, device, bus: packageOn(kernel).openSync(1) };
  };

  test("does every call", async () => {
    const { kernel, device, bus } = start();
    const problems = [];
    for (const one of busCalls(0x5a)) problems.push(await problemOf(form, bus, DS1621, one));
    expect(problems.filter((problem) => problem !== undefined)).toEqual([]);
    expect(device.quicks).toEqual([0]);
    await call(bus, "writeQuick", [DS1621, 1]);
    expect(device.quicks).toEqual([0, 1]);
    expect(kernel.log).not.toContain("smbus 0x00");
  });

  test("scans, asks what the adapter can do, and who a device is", async () => {
    const { kernel, bus } = start();
    kernel.device(TSL2561);
    kernel.taken.add(0x50);
    expect(await call(bus, "scan", [])).toEqual([TSL2561, DS1621]);
    expect(await call(bus, "scan", [0x40, 0x4f])).toEqual([DS1621]);
    expect(await call(bus, "deviceId", [DS1621])).toEqual({
      manufacturer: 5,
      product: 0x9ab,
      name: "Analog Devices",
    });
    expect(await call(bus, "i2cFuncs", [])).toMatchObject({
      i2c: true,
      tenBitAddr: false,
      smbusQuick: true,
      smbusWriteI2cBlock: true,
      smbusPec: false,
    });
    bus.closeSync();
    kernel.hasPlain = false;
    const smbus = packageOn(kernel).openSync(1);
    expect(await call(smbus, "i2cFuncs", [])).toMatchObject({ i2c: false, smbusReadByte: true });
  });

  const broken = async (work: Promise<unknown>) => work.then(String, (error: NodeJS.ErrnoException) => error);

  test("fails with the kernel's error, named after the call", async () => {
    const { kernel, bus } = start();
    const name = form === "synchronous" ? "readByteSync" : "readByte";
    expect(await broken(call(bus, "readByte", [0x20, 1]))).toMatchObject({
      code: "ENXIO",
      errno: -6,
      syscall: name,
      message: `ENXIO: no such device or address, ${name}`,
    });
    kernel.failures.set(DS1621, "EREMOTEIO");
    expect(await broken(call(bus, "readByte", [DS1621, 1]))).toMatchObject({
      code: "EREMOTEIO",
      errno: -121,
    });
    kernel.taken.add(0x30);
    expect(await broken(call(bus, "receiveByte", [0x30]))).toMatchObject({ code: "EBUSY" });
    const none = packageOn(kernel).openSync(7);
    expect(await broken(call(none, "receiveByte", [0x30]))).toMatchObject({ code: "ENOENT" });
    const buffer = Buffer.alloc(40);
    expect(await broken(call(bus, "writeBlock", [0x21, 0, 33, buffer]))).toMatchObject({ code: "EINVAL" });
  });

  test("a device that says more than the buffer holds overwrites nothing", async () => {
    const { device, bus } = start();
    device.registers[0x10] = 9;
    const memory = Buffer.alloc(16, 0xaa);
    expect(await broken(call(bus, "readBlock", [DS1621, 0x10, memory.subarray(0, 8)]))).toMatchObject({
      code: "EMSGSIZE",
    });
    device.registers[0x10] = 250;
    expect(await broken(call(bus, "readBlock", [DS1621, 0x10, memory]))).toMatchObject({
      code: "EMSGSIZE",
    });
    expect([...memory]).toEqual(Array(16).fill(0xaa));
  });

  test("forced access reaches a device that a driver of the kernel holds", async () => {
    const { kernel, bus } = start();
    kernel.taken.add(DS1621);
    expect(await broken(call(bus, "receiveByte", [DS1621]))).toMatchObject({ code: "EBUSY" });
    const forced = packageOn(kernel).openSync(1, { forceAccess: true });
    expect(await call(forced, "receiveByte", [DS1621])).toBe(0);
    expect(kernel.log).toContain("force 0x48");
  });
});

test("calls to two devices at once, begun before either has its address, do not mix", async () => {
  const kernel = new SimKernel(1);
  for (const [address, value] of [
    [0x20, 0xaa],
    [0x21, 0xbb],
  ] as const)
    kernel.device(address).registers.fill(value);
  const bus = packageOn(kernel).openSync(1).promisifiedBus();
  const reads = Array.from({ length: 40 }, (_, n) => bus.readByte(n % 2 ? 0x21 : 0x20, n));
  expect(await Promise.all(reads)).toEqual(Array.from({ length: 40 }, (_, n) => (n % 2 ? 0xbb : 0xaa)));
  expect(kernel.log).not.toContain("smbus 0x00");
});

test("what a callback throws is an exception of the process and no lost promise", async () => {
  const kernel = new SimKernel(1);
  kernel.device(DS1621);
  const script = `
    import { SimKernel, packageOn } from "${join(import.meta.dir, "i2c-kernel.ts")}";
    process.on("uncaughtException", (error) => { console.log("uncaught", error.message); });
    process.on("unhandledRejection", (error) => { console.log("unhandled", error.message); });
    const kernel = new SimKernel(1);
    kernel.device(0x48);
    packageOn(kernel).openSync(1).readByte(0x48, 1, () => { throw new Error("mine"); });`;
  const child = Bun.spawn([process.execPath, "-e", script], { stdout: "pipe", stderr: "inherit" });
  expect(await new Response(child.stdout).text()).toBe("uncaught mine\n");
});

test("the real native part reaches the kernel in both forms", async () => {
  const native = I2C as Record<string, (...args: unknown[]) => unknown>;
  const { openSync, closeSync } = await import("node:fs");
  const file = openSync("/dev/null", "r+");
  try {
    const error = await new Promise((resolve) => native.readByteAsync?.(file, 1, resolve));
    expect(error).toMatchObject({ code: "ENOTTY", errno: -25, syscall: "readByte" });
    expect(() => native.readByteSync?.(file, 1)).toThrow("ENOTTY");
  } finally {
    closeSync(file);
  }
  // And it is what the package gets
  expect(require("bindings")("i2c.node")).toBe(I2C);
});

test("a kernel that cannot be called is an error of the call, not of the process", async () => {
  const broken = () => {
    throw new Error("no C here");
  };
  const native = i2cNative({ ioctl: broken, ioctlAside: async () => broken() });
  const call = native.readByteAsync as (...args: unknown[]) => void;
  const error = await new Promise<Error>((resolve) => call(3, 1, resolve));
  expect(error.message).toBe("no C here");
  expect(native.readByteSync).toThrow("no C here");
});
