/** Our own half of node-serialport on pseudo-terminals: what its published cases (`serial-binding.test.ts`) leave open. */
import { expect, test } from "bun:test";
import { closeSync, constants, openSync, readlinkSync } from "node:fs";
import { type Buffered, ioctl } from "../hal/native/libc.ts";
import { serialBinding } from "../hal/native/serial.ts";
import { SerialPort } from "../hal/native/serial-port.ts";
import { type SerialOptions, setUp, Termios } from "../hal/native/termios.ts";
import type { Kind } from "../hal/native/threads.ts";
import { until } from "./node.ts";
import { DEFAULTS, FLAGS, holding, rejection } from "./ports.ts";
import { Pty } from "./pty.ts";

async function opened(
  use: (ends: { pty: Pty; port: SerialPort }) => Promise<void>,
  more: Partial<SerialOptions> = {},
): Promise<void> {
  using pty = new Pty();
  await holding(pty.device, (port) => use({ pty, port }), more);
}

/** More than a pseudo-terminal holds. */
const TOO_MUCH = Buffer.alloc(200_000, "0123456789");

test("a read waits for the first byte, and takes what is there", async () => {
  await opened(async ({ pty, port }) => {
    const buffer = Buffer.alloc(8);
    const reading = port.read(buffer, 2, 6);
    expect(Bun.peek.status(reading)).toBe("pending");
    await pty.write("abc");
    expect(await reading).toMatchObject({ bytesRead: 3 });
    expect(buffer.toString("latin1")).toBe("\0\0abc\0\0\0");
  });
});

test("a line that need not have anything (vmin 0) is waited for all the same", async () => {
  await opened(
    async ({ pty, port }) => {
      const reading = port.read(Buffer.alloc(8), 0, 8);
      await Bun.sleep(20);
      expect(Bun.peek.status(reading)).toBe("pending");
      await pty.write("abc");
      expect(await reading).toMatchObject({ bytesRead: 3 });
    },
    { vmin: 0 },
  );
});

test("a write that is larger than the kernel's room goes out in parts, in order", async () => {
  await opened(async ({ pty, port }) => {
    pty.pause();
    const writing = port.write(TOO_MUCH);
    await Bun.sleep(20);
    expect(Bun.peek.status(writing)).toBe("pending");
    pty.resume();
    await writing;
    await until("all of it", () => pty.received.length === TOO_MUCH.length);
    expect(pty.take().equals(TOO_MUCH)).toBe(true);
  });
});

test("closing cancels a write that waits, and lets the other side have what was taken", async () => {
  await opened(async ({ pty, port }) => {
    pty.pause();
    const writing = rejection(port.write(TOO_MUCH));
    const draining = rejection(port.drain());
    await port.close();
    expect(await writing).toMatchObject({ canceled: true });
    expect(await draining).toMatchObject({ canceled: true });
    pty.resume();
    await until("some of it", () => pty.received.length > 0);
    const taken = pty.take();
    expect(taken.equals(TOO_MUCH.subarray(0, taken.length))).toBe(true);
  });
});

test.each<[string, (port: SerialPort) => Promise<unknown>]>([
  ["read", (port) => port.read(Buffer.alloc(8), 0, 8)],
  ["write", (port) => port.write(TOO_MUCH)],
])("a hang-up ends a %s that waits, as a disconnect, and those that follow", async (_, ask) => {
  await opened(async ({ pty, port }) => {
    pty.pause();
    const before = rejection(ask(port));
    await Bun.sleep(20);
    pty.unplug();
    expect(await before).toMatchObject({ disconnect: true, code: "EIO" });
    expect(await rejection(ask(port))).toMatchObject({ disconnect: true, code: "EIO" });
    expect(await rejection(port.getBaudRate())).toMatchObject({ code: "EIO" });
    await port.close();
    expect(port.isOpen).toBe(false);
  });
});

test("flushing drops what was not read", async () => {
  await opened(async ({ pty, port }) => {
    await pty.write("old");
    await until("the bytes", () => pty.unread === 3);
    await port.flush();
    const buffer = Buffer.alloc(8);
    await pty.write("new");
    const { bytesRead } = await port.read(buffer, 0, 8);
    expect(buffer.toString("latin1", 0, bytesRead)).toBe("new");
  });
});

test.each([0, 1])(
  "bytes that were flushed between the news of them and the read are no hang-up (vmin %d)",
  async (vmin) => {
    await opened(
      async ({ pty, port }) => {
        const buffer = Buffer.alloc(8);
        const reading = port.read(buffer, 0, 8);
        await pty.write("old");
        // The other thread's news arrive while this one is busy
        Bun.sleepSync(50);
        await port.flush();
        await Bun.sleep(20);
        expect(Bun.peek.status(reading)).toBe("pending");
        await pty.write("new");
        const { bytesRead } = await reading;
        expect(buffer.toString("latin1", 0, bytesRead)).toBe("new");
      },
      { vmin },
    );
  },
);

test("draining waits for a write that waits", async () => {
  await opened(async ({ pty, port }) => {
    pty.pause();
    const order: string[] = [];
    const writing = port.write(TOO_MUCH).then(() => order.push("written"));
    const draining = port.drain().then(() => order.push("drained"));
    await Bun.sleep(20);
    expect(order).toEqual([]);
    pty.resume();
    await Promise.all([writing, draining]);
    expect(order).toEqual(["written", "drained"]);
  });
});

test("what came before the port was opened is not for us", async () => {
  using pty = new Pty();
  await pty.write("old");
  await until("the bytes", () => pty.unread === 3);
  await holding(pty.device, async (port) => {
    await pty.write("new");
    const buffer = Buffer.alloc(8);
    const { bytesRead } = await port.read(buffer, 0, 8);
    expect(buffer.toString("latin1", 0, bytesRead)).toBe("new");
  });
});

test("bytes that are written during a break wait for its end", async () => {
  await opened(async ({ pty, port }) => {
    await port.set({ ...FLAGS, brk: true });
    const writing = port.write(Buffer.from("after"));
    await Bun.sleep(20);
    expect(pty.received.toString()).toBe("");
    await port.set(FLAGS);
    await writing;
    await until("the bytes", () => pty.received.toString() === "after");
  });
});

test("a port without control lines says so when one is to go down, and when they are asked", async () => {
  await opened(async ({ port }) => {
    expect(await rejection(port.set({ ...FLAGS, rts: false }))).toMatchObject({ code: "ENOTTY" });
    expect(await rejection(port.get())).toMatchObject({ code: "ENOTTY" });
  });
});

test("only one read and one write at a time", async () => {
  await opened(async ({ pty, port }) => {
    pty.pause();
    const [reading, writing] = [rejection(port.read(Buffer.alloc(8), 0, 8)), rejection(port.write(TOO_MUCH))];
    expect((await rejection(port.read(Buffer.alloc(8), 0, 8))).message).toContain("under way");
    expect((await rejection(port.write(TOO_MUCH))).message).toContain("under way");
    await port.close();
    await Promise.all([reading, writing]);
  });
});

/** _IOR('T', 0x40, int), asm-generic/ioctls.h: whether a terminal is for its holders alone. */
const TIOCGEXCL = 0x80045440;

function isExclusive(path: string): boolean {
  const file = openSync(path, "r+");
  const answer = new Uint32Array(1);
  ioctl(file, TIOCGEXCL, answer);
  closeSync(file);
  return answer[0] === 1;
}

test("a second opener is refused and changes nothing, and the port is free after the first", async () => {
  await opened(async ({ pty, port }) => {
    expect(isExclusive(pty.device)).toBe(true);
    const before = pty.termios;
    const second = serialBinding.open({ path: pty.device, baudRate: 1200 });
    expect(await rejection(second)).toMatchObject({
      code: "EAGAIN",
      message: expect.stringContaining(pty.device),
    });
    expect(pty.termios).toEqual(before);
    expect(isExclusive(pty.device)).toBe(true);
    await port.close();
    expect(isExclusive(pty.device)).toBe(false);
    await holding(pty.device, async () => undefined);
  });
});

test.each([
  ["/dev/null", "/dev/null", "ENOTTY"],
  ["a folder", "/dev", "EISDIR"],
  ["a file", import.meta.path, "ENOTTY"],
])("%s is no serial port", async (_, path, code) => {
  expect(await rejection(serialBinding.open({ path, baudRate: 9600 }))).toMatchObject({ code });
});

test.each<[string, object]>([
  ["a parity nobody knows", { parity: "mark" }],
  ["half a stop bit", { stopBits: 1.5 }],
  ["nine data bits", { dataBits: 9 }],
  ["a speed that is no number", { baudRate: "fast" }],
  ["a negative speed", { baudRate: -9600 }],
])("%s is refused, and the port is free afterwards", async (_, wrong) => {
  using pty = new Pty();
  const options = { ...DEFAULTS, path: pty.device, ...wrong };
  expect(await rejection(serialBinding.open(options))).toBeInstanceOf(TypeError);
  expect(isExclusive(pty.device)).toBe(false);
  await holding(pty.device, async () => undefined);
});

const COMPLETE: Required<SerialOptions> = { ...DEFAULTS, path: "", vmin: 1, vtime: 0 } as never;

// c_iflag and c_cflag as `stty -F … -g` prints them, computed from asm-generic/termbits.h by hand
test.each<[string, Partial<SerialOptions>, string, string]>([
  ["8N1", {}, "4", "18b0"],
  ["7E1", { dataBits: 7, parity: "even" }, "4", "19a0"],
  ["7O2", { dataBits: 7, parity: "odd", stopBits: 2 }, "4", "1be0"],
  ["5N2", { dataBits: 5, stopBits: 2 }, "4", "18c0"],
  ["6N1", { dataBits: 6 }, "4", "1890"],
  ["with hardware flow control", { rtscts: true }, "4", "800018b0"],
  ["with XON and XOFF", { xon: true, xoff: true }, "1404", "18b0"],
  ["with XANY", { xany: true }, "804", "18b0"],
  ["that hangs up at the end", { hupcl: true }, "4", "1cb0"],
])("a line %s is these flags, raw", (_, options, iflag, cflag) => {
  const termios = new Termios();
  termios.bytes.fill(0xff);
  termios.set({ ...COMPLETE, ...options });
  const flags = [...new Uint32Array(termios.bytes.slice(0, 16).buffer)].map((word) => word.toString(16));
  expect(flags).toEqual([iflag, "0", cflag, "0"]);
  expect(termios.baudRate).toBe(115200);
  // VTIME and VMIN among the control characters
  expect([...termios.bytes.subarray(22, 24)]).toEqual([0, 1]);
});

/** A line whose hardware makes one speed only, and what it was given. */
function oneSpeed(made: number) {
  const given: number[] = [];
  const kernel = {
    ioctl: (_: number, __: number, argument: Buffered | number) => {
      new DataView((argument as Uint8Array).buffer).setUint32(40, made, true);
      return 0;
    },
    ioctlAside: async (_: Kind, __: number, ___: number, argument: Buffered | number) => {
      given.push(new DataView((argument as Uint8Array).slice().buffer).getUint32(40, true));
      return 0;
    },
  };
  return { given, set: (baudRate: number) => setUp(3, { ...COMPLETE, baudRate }, kernel) };
}

test("a speed that the hardware cannot make is refused with the one it would make, and the old settings are back", async () => {
  const { given, set } = oneSpeed(115_200);
  expect(await rejection(set(4_000_000))).toMatchObject({
    code: "EINVAL",
    message: "makes 115200 baud instead of 4000000",
  });
  expect(given).toEqual([4_000_000, 115_200]);
});

test.each([
  { asked: 112_000, isRight: true },
  { asked: 118_700, isRight: true },
  { asked: 111_000, isRight: false },
  { asked: 119_000, isRight: false },
])("of a line that makes 115200 baud, $asked is good enough: $isRight", async ({ asked, isRight }) => {
  const { set } = oneSpeed(115_200);
  expect(
    await set(asked).then(
      () => true,
      () => false,
    ),
  ).toBe(isRight);
});

/** A port whose calls in the other thread end when the test says so. */
function withHeldCalls(pty: Pty) {
  const call = Promise.withResolvers<number>();
  const file = openSync(pty.device, constants.O_RDWR | constants.O_NOCTTY | constants.O_NONBLOCK);
  const name = readlinkSync(`/proc/self/fd/${file}`);
  const isOpen = () => {
    try {
      return readlinkSync(`/proc/self/fd/${file}`) === name;
    } catch {
      return false;
    }
  };
  const port = new SerialPort(file, { ...COMPLETE, path: pty.device }, () => call.promise);
  return { port, isOpen, answer: () => call.resolve(0) };
}

test("a port is closed after the calls in the other thread, never before", async () => {
  using pty = new Pty();
  const { port, isOpen, answer } = withHeldCalls(pty);
  const call = port.get();
  const closing = port.close();
  await Bun.sleep(50);
  expect([isOpen(), Bun.peek.status(closing)]).toEqual([true, "pending"]);
  answer();
  await Promise.all([call, closing]);
  expect(isOpen()).toBe(false);
});

test.each([
  { bits: 0x020, on: "cts" },
  { bits: 0x040, on: "dcd" },
  { bits: 0x080, on: "ri" },
  { bits: 0x100, on: "dsr" },
  { bits: 0x006, on: "" },
])(
  "a driver that answers TIOCMGET with $bits says that '$on' is on, and nothing else",
  async ({ bits, on }) => {
    using pty = new Pty();
    const file = openSync(pty.device, constants.O_RDWR | constants.O_NOCTTY | constants.O_NONBLOCK);
    const port = new SerialPort(
      file,
      { ...COMPLETE, path: pty.device },
      async (_kind, _file, request, into) => {
        expect(request).toBe(0x5415);
        (into as Uint32Array)[0] = bits;
        return 0;
      },
    );
    const lines = await port.get();
    expect(Object.entries(lines).filter(([, isOn]) => isOn)).toEqual(on === "" ? [] : [[on, true]]);
    await port.close();
  },
);

test("a call that hangs in a driver holds up nobody who closes, and the file goes when it is back", async () => {
  using pty = new Pty();
  const { port, isOpen, answer } = withHeldCalls(pty);
  const call = port.get();
  await port.close();
  expect([port.isOpen, isOpen()]).toEqual([false, true]);
  answer();
  await call;
  await until("closed", () => !isOpen());
});

test("the kernel has the settings a port was opened with, and those it was changed to", async () => {
  await opened(
    async ({ pty, port }) => {
      expect([...pty.termios.subarray(0, 4)]).toEqual([0x1404, 0, 0x800018b0, 0]);
      await port.update({ baudRate: 12_345, rtscts: false, xon: false, xoff: false, parity: "even" });
      // A pseudo-terminal takes parity for itself: 8N
      expect([...pty.termios.subarray(0, 4)]).toEqual([0x4, 0, 0x18b0, 0]);
      expect(await port.getBaudRate()).toEqual({ baudRate: 12_345 });
      expect(port.openOptions).toMatchObject({ baudRate: 12_345, parity: "even", path: pty.device });
    },
    { rtscts: true, xon: true, xoff: true },
  );
});
