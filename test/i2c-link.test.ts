/** The I²C link that drivers get, over i2c-bus on a simulated kernel; and `fruit i2c`. */
import { describe, expect, jest, test } from "bun:test";
import { run } from "../agent/cli.ts";
import { scan } from "../agent/i2c/cli.ts";
import { EXIT } from "../agent/terminal.ts";
import { type I2cBus, i2cLink, openI2cLink } from "../hal/i2c.ts";
import { HalError, type HalErrorCode, type I2cLink } from "../hal/ports.ts";
import { bytes, failure, passing } from "./fakes.ts";
import { type Failure, packageOn, SimKernel } from "./i2c-kernel.ts";
import { until } from "./node.ts";

describe("a link", () => {
  const open = (kernel: SimKernel): I2cLink =>
    i2cLink("/dev/i2c-1", () => packageOn(kernel).openPromisified(1));
  const filled = (kernel: SimKernel) => {
    const device = kernel.device(0x20);
    for (let n = 0; n < 256; n++) device.registers[n] = n ^ 0x55;
    return device;
  };

  test.each([
    { write: "", read: 1, gives: "55", isPlain: false },
    { write: "10", read: 1, gives: "45", isPlain: false },
    { write: "10", read: 2, gives: "45 44", isPlain: false },
    { write: "10", read: 5, gives: "45 44 47 46 41", isPlain: false },
    { write: "e0", read: 32, gives: [...Array(32).keys()].map((n) => (0xe0 + n) ^ 0x55), isPlain: false },
    { write: "10", read: 0, gives: "", isPlain: false },
    { write: "", read: 3, gives: "55 54 57", isPlain: true },
  ])("writes $write and reads $read bytes in one transfer", async ({ write, read, gives, isPlain }) => {
    for (const hasPlain of isPlain ? [true] : [true, false]) {
      const kernel = new SimKernel(1);
      kernel.hasPlain = hasPlain;
      filled(kernel);
      const link = open(kernel);
      const answer = await link.exchange(0x20, bytes(write), read);
      expect([...answer]).toEqual(typeof gives === "string" ? [...bytes(gives)] : gives);
      // One transfer, and nothing else was on the bus
      expect(kernel.log).toEqual(["open", "slave 0x20", isPlain ? "plain 0x20" : "smbus 0x20"]);
      await link.close();
    }
  });

  test.each(["10 01", "10 01 02", `10 ${"ab ".repeat(31)}ff`])("writes %s", async (write) => {
    const kernel = new SimKernel(1);
    kernel.hasPlain = false;
    const device = filled(kernel);
    const link = open(kernel);
    expect(await link.exchange(0x20, bytes(write), 0)).toEqual(new Uint8Array());
    const [register = 0, ...values] = bytes(write);
    expect([...device.registers.subarray(register, register + values.length)]).toEqual(values);
    expect(device.registers[register + values.length]).toBe((register + values.length) ^ 0x55);
    expect(kernel.log).toEqual(["open", "slave 0x20", "smbus 0x20"]);
    await link.close();
  });

  test.each([
    { write: "10 11", read: 1 },
    { write: "10", read: 33 },
    { write: "", read: 0 },
    { write: "00 ".repeat(34), read: 0 },
  ])("refuses what does not fit into one transfer ($write, $read), and sends nothing", async (row) => {
    const kernel = new SimKernel(1);
    filled(kernel);
    const link = open(kernel);
    const error = await failure(link.exchange(0x20, bytes(row.write), row.read));
    expect(error.code).toBe("refused");
    expect(error.message).toStartWith("/dev/i2c-1 at 0x20: ");
    expect(kernel.log).toEqual([]);
  });

  test.each<[Failure, HalErrorCode, string]>([
    ["ENXIO", "absent", "no acknowledgement (ENXIO: no such device or address, readByte)"],
    ["EREMOTEIO", "absent", "no acknowledgement (EREMOTEIO: remote I/O error, readByte)"],
    ["ETIMEDOUT", "timeout", "ETIMEDOUT: connection timed out, readByte"],
    ["EBUSY", "busy", "EBUSY: resource busy or locked, readByte"],
    ["EAGAIN", "busy", "EAGAIN: resource temporarily unavailable, readByte"],
    ["EOPNOTSUPP", "refused", "the adapter cannot do this"],
    ["EBADF", "io", "EBADF: bad file descriptor, readByte"],
    ["ENODEV", "io", "ENODEV: no such device, readByte"],
    ["EIO", "io", "EIO: i/o error, readByte"],
  ])("what the kernel says as %s is %s", async (says, code, words) => {
    const kernel = new SimKernel(1);
    filled(kernel);
    kernel.failures.set(0x20, says);
    const link = open(kernel);
    const error = await failure(link.exchange(0x20, bytes("01"), 1));
    expect(error.code).toBe(code);
    expect(error.message).toStartWith(`/dev/i2c-1 at 0x20: ${words}`);
    await link.close();
  });

  test("an address that a driver of the kernel holds is busy, and nothing is ever sent to address 0 instead", async () => {
    const kernel = new SimKernel(1);
    filled(kernel);
    kernel.device(0x00);
    kernel.taken.add(0x20);
    const link = open(kernel);
    for (let again = 0; again < 2; again++) {
      const error = await failure(link.exchange(0x20, bytes("10 01"), 0));
      expect(error.code).toBe("busy");
      expect(error.message).toBe("/dev/i2c-1 at 0x20: a driver of the kernel holds this address");
    }
    kernel.taken.clear();
    await link.exchange(0x20, bytes("10 01"), 0);
    await link.close();
    expect(kernel.log.filter((line) => line.startsWith("smbus"))).toEqual(["smbus 0x20"]);
    expect(kernel.files.size).toBe(0);
  });

  test("one exchange at a time, in order, and no more waiting than there is room for", async () => {
    const kernel = new SimKernel(1);
    filled(kernel);
    const link = open(kernel);
    const exchanges = Array.from({ length: 80 }, (_, n) => link.exchange(0x20, bytes("10"), 1 + (n % 2)));
    const answers = await Promise.allSettled(exchanges);
    const done = answers.filter(({ status }) => status === "fulfilled");
    const errors = answers.filter((answer) => answer.status === "rejected").map(({ reason }) => reason);
    expect(done.length).toBeGreaterThan(30);
    expect(errors.length).toBeGreaterThan(0);
    expect(errors.every(({ code }) => code === "busy")).toBe(true);
    // However many wait, the address was set once, on one file.
    expect(kernel.log.filter((line) => !line.startsWith("smbus"))).toEqual(["open", "slave 0x20"]);
    await link.close();
  });

  test("closes once, after what is under way, and then says so", async () => {
    const kernel = new SimKernel(1);
    filled(kernel);
    const link = open(kernel);
    const under = link.exchange(0x20, bytes("10"), 1);
    const waiting = link.exchange(0x20, bytes("11"), 1);
    while (!kernel.log.includes("open")) await new Promise((resolve) => setImmediate(resolve));
    const closing = [link.close(), link.close()];
    const [first, error] = await Promise.all([under, failure(waiting)]);
    expect([...first]).toEqual([0x45]);
    expect(error.message).toBe("/dev/i2c-1: is closed");
    await Promise.all(closing);
    await link.close();
    expect((await failure(link.exchange(0x20, bytes("10"), 1))).code).toBe("io");
    expect(kernel.log.filter((line) => line === "close")).toHaveLength(1);
    expect(kernel.files.size).toBe(0);
  });

  test("a kernel that never answers is a timeout", async () => {
    jest.useFakeTimers();
    const stuck = { readByte: () => new Promise(() => undefined), close: async () => undefined };
    const link = i2cLink("/dev/i2c-1", async () => stuck as unknown as I2cBus);
    const error = await failure(passing(link.exchange(0x20, bytes("10"), 1)));
    jest.useRealTimers();
    expect(error.code).toBe("timeout");
    expect(error.message).toContain("/dev/i2c-1 at 0x20: the kernel does not answer within 5 s");
  });

  test("a bus is not closed under a call that the kernel has not answered yet, and nobody waits for it", async () => {
    jest.useFakeTimers();
    const read = Promise.withResolvers<number>();
    let closed = 0;
    const stuck = { readByte: () => read.promise, close: async () => void closed++ };
    const link = i2cLink("/dev/i2c-1", async () => stuck as unknown as I2cBus);
    const error = await failure(passing(link.exchange(0x20, bytes("10"), 1)));
    jest.useRealTimers();
    expect(error.code).toBe("timeout");
    await link.close();
    expect(closed).toBe(0);
    read.resolve(1);
    await until("closed", () => closed === 1);
  });

  test("a bus that is missing says what to do, another file that it is none", async () => {
    const missing = await failure(openI2cLink("/dev/i2c-4711"));
    expect(missing.code).toBe("absent");
    expect(missing.message).toBe(
      "/dev/i2c-4711: does not exist; on a Pi, put dtparam=i2c_arm=on into config.txt and load the module i2c-dev",
    );
    const other = await failure(openI2cLink("/dev/null"));
    expect(other.message).toBe("/dev/null: is no I²C bus; those are called /dev/i2c-<number>");
  });
});

describe("fruit i2c", () => {
  const cli = async (line: string) => {
    let out = "";
    let err = "";
    const exit = await run(line.split(" "), {
      out: (text) => (out += text),
      err: (text) => (err += text),
      env: { FRUIT_HAL: "sim" },
      isTerminal: false,
      stdin: async () => new Uint8Array(),
      signal: new AbortController().signal,
    });
    return { exit, out, err };
  };

  test("scan lists who answers", async () => {
    expect(await cli("i2c scan 1")).toEqual({ exit: EXIT.done, out: "0x10\n", err: "" });
    expect(JSON.parse((await cli("i2c scan /dev/i2c-clusterctrl --json")).out)).toEqual({
      v: 1,
      devices: [{ address: "0x20", state: "answers" }],
    });
  });

  test("an address is held by a driver only where the kernel refuses the address itself", async () => {
    const busy = (code: string, syscall: string) => {
      const cause = Object.assign(new Error(code), { code, syscall });
      return new HalError("busy", `0x21: ${code}`, { cause });
    };
    const link = (error: HalError): I2cLink => ({
      exchange: async (address) => {
        throw address === 0x21 ? error : new HalError("absent", "no acknowledgement");
      },
      close: async () => undefined,
    });
    const { signal } = new AbortController();
    expect(await scan(link(busy("EBUSY", "setAddr")), signal)).toEqual([{ address: "0x21", state: "taken" }]);
    for (const error of [
      busy("EAGAIN", "receiveByte"),
      new HalError("busy", "64 requests are waiting already"),
    ])
      expect(await failure(scan(link(error), signal))).toBe(error);
  });

  test("get reads registers, in hex or as JSON", async () => {
    expect(await cli("i2c get 1 0x10 0")).toMatchObject({ exit: EXIT.done, out: "0x50\n" });
    expect(await cli("i2c get 1 16 0x00 3")).toMatchObject({ out: "0x50 0x04 0x03\n" });
    expect(JSON.parse((await cli("i2c get 1 0x10 0 3 --json")).out)).toEqual({ v: 1, bytes: [80, 4, 3] });
  });

  test("set writes, and prints nothing", async () => {
    expect(await cli("i2c set 1 0x10 0x06 1")).toEqual({ exit: EXIT.done, out: "", err: "" });
  });

  test.each([
    ["i2c get 1 0x50 0", EXIT.unreachable, "fruit: /dev/i2c-1 at 0x50: no acknowledgement"],
    ["i2c get 1 0x80 0", EXIT.usage, 'ADDRESS: "0x80" is no number from 0x00 to 0x7f'],
    ["i2c get 1 0x20 256", EXIT.usage, 'REGISTER: "256"'],
    ["i2c get 1 0x20 0 33", EXIT.usage, 'LENGTH: "33"'],
    ["i2c get 1 0x20 0x", EXIT.usage, 'REGISTER: "0x"'],
    ["i2c set 1 0x20 0 1e1", EXIT.usage, 'VALUE: "1e1"'],
    ["i2c set 1 0x20 0", EXIT.usage, "a word is missing"],
    ["i2c get 1 2 3 4 5", EXIT.usage, '"5" is one word too many'],
    ["i2c scan", EXIT.usage, "a word is missing"],
    ["i2c scan 77 --hal linux", EXIT.unreachable, "fruit: /dev/i2c-77: does not exist"],
  ])("%s fails with %p", async (line, exit, words) => {
    const found = await cli(line);
    expect(found).toMatchObject({ exit, out: "" });
    expect(found.err).toContain(words);
  });
});
