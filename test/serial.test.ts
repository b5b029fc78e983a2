import { describe, expect, jest, test } from "bun:test";
import type { BindingInterface } from "@serialport/bindings-interface";
import { serialBinding } from "../hal/native/serial.ts";
import type { HalError, LineSettings, SerialLine } from "../hal/ports.ts";
import { openLine, openSerialLink } from "../hal/serial.ts";
import { failure } from "./fakes.ts";
import { until } from "./node.ts";
import { Pty } from "./pty.ts";

const SETTINGS: LineSettings = { baud: 115200, data_bits: 8, parity: "none", stop_bits: 1, flow: "none" };

/** A console's line on a pseudo-terminal, and what it told. */
class Console implements AsyncDisposable {
  readonly pty = new Pty();
  readonly gone: HalError[] = [];
  readonly #heard: Uint8Array[] = [];
  #line: SerialLine | undefined;

  static async open(settings: Partial<LineSettings> = {}): Promise<Console> {
    const console = new Console();
    console.#line = await openLine(
      console.pty.device,
      { ...SETTINGS, ...settings },
      {
        bytes: (chunk) => console.#heard.push(chunk),
        gone: (error) => console.gone.push(error),
      },
    );
    return console;
  }

  get line(): SerialLine {
    if (!this.#line) throw new Error("not open");
    return this.#line;
  }

  /** All that came, each chunk still its receiver's. */
  get heard(): Buffer {
    return Buffer.concat(this.#heard);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#line?.close();
    this.pty[Symbol.dispose]();
  }
}

/** Lets the fake clock run while something real is waited for. */
async function turning<T>(promise: Promise<T>): Promise<T> {
  while (Bun.peek.status(promise) === "pending") {
    await Bun.file(import.meta.path).text();
    jest.advanceTimersByTime(50);
  }
  return promise;
}

describe("a console's line", () => {
  test("carries every byte there is, in both directions", async () => {
    await using console = await Console.open();
    const every = Buffer.from(Array.from({ length: 256 }, (_, byte) => byte));
    await console.line.write(every);
    await until("ours", () => console.pty.received.length === 256);
    expect(console.pty.take()).toEqual(every);
    await console.pty.write(every);
    await until("theirs", () => console.heard.length === 256);
    expect(console.heard).toEqual(every);
  });

  test("tells a byte as soon as it is there", async () => {
    await using console = await Console.open();
    for (const byte of "login:") {
      const before = console.heard.length;
      await console.pty.write(byte);
      await until(byte, () => console.heard.length === before + 1);
    }
    expect(console.heard.toString()).toBe("login:");
  });

  test("writes in the order of the calls, however many are under way", async () => {
    await using console = await Console.open({ baud: 100 });
    const words = Array.from({ length: 50 }, (_, i) => `line ${i}\n`);
    await Promise.all(words.map((word) => console.line.write(Buffer.from(word))));
    await until("all", () => console.pty.received.toString() === words.join(""));
  });

  test("refuses more writes than anybody waits for", async () => {
    await using console = await Console.open();
    console.pty.pause();
    const writes = Array.from({ length: 80 }, () => console.line.write(Buffer.alloc(10_000)));
    const settled = Promise.allSettled(writes);
    for (const write of writes.slice(64)) expect(await failure(write)).toMatchObject({ code: "busy" });
    console.pty.resume();
    expect((await settled).slice(0, 64).every(({ status }) => status === "fulfilled")).toBe(true);
  });

  test("a write resolves only when the line has taken it", async () => {
    await using console = await Console.open();
    console.pty.pause();
    const much = Buffer.alloc(150_000, "abc");
    const writing = console.line.write(much);
    await Bun.sleep(30);
    expect(Bun.peek.status(writing)).toBe("pending");
    console.pty.resume();
    await writing;
    await until("all of it", () => console.pty.received.length === much.length);
    expect(console.pty.take().equals(much)).toBe(true);
  });

  test("a write gives up when nothing was taken for ten seconds; the line works again when it is let go", async () => {
    await using console = await Console.open({ baud: 50_000 });
    console.pty.pause();
    jest.useFakeTimers();
    try {
      const began = Date.now();
      const array = Buffer.alloc(100_000, "x");
      const stuck = failure(console.line.write(array));
      const { code, message } = await turning(stuck);
      expect([code, message]).toEqual([
        "timeout",
        `${console.pty.device}: took nothing for 10 s (flow control?)`,
      ]);
      expect(Date.now() - began).toBeGreaterThanOrEqual(10_000);
      const behind = failure(console.line.write(Buffer.from("y")));
      expect((await turning(behind)).code).toBe("timeout");
      // It is its owner's again
      array.fill("z");
    } finally {
      jest.useRealTimers();
    }
    console.pty.resume();
    await console.line.write(Buffer.from("done"));
    await until("the last write", () => console.pty.received.toString().endsWith("done"));
    // A second's worth was on its way; what was given up behind it never comes
    const arrived = console.pty.take().toString();
    expect(arrived).toMatch(/^x+done$/);
    expect(arrived.length).toBeLessThan(70_000);
  });

  test.each<[string, (line: SerialLine) => Promise<void>]>([
    ["a break", (line) => line.sendBreak(20)],
    ["raised lines", (line) => line.setLines({ dtr: true, rts: true })],
    ["another speed", (line) => line.change({ baud: 9600 })],
  ])("takes %s and goes on", async (_, act) => {
    await using console = await Console.open();
    await act(console.line);
    await console.line.write(Buffer.from("after"));
    await until("it", () => console.pty.received.toString() === "after");
  });

  test("a break lasts as long as it was asked to, and what is written waits for its end", async () => {
    await using console = await Console.open();
    const began = performance.now();
    const breaking = console.line.sendBreak(80);
    await console.line.setLines({}); // takes its turn behind the break
    expect(performance.now() - began).toBeGreaterThan(75);
    await breaking;
  });

  test("changes take effect, and leave what they do not name", async () => {
    await using console = await Console.open({ flow: "rtscts" });
    const cflag = () => console.pty.termios[2]! >>> 0;
    expect((cflag() & 0x8000_0000) >>> 0).toBe(0x8000_0000);
    await console.line.change({ stop_bits: 2 });
    expect(cflag()).toBe((0x8000_0000 | 0x18b0 | 0x40) >>> 0);
    await console.line.change({ flow: "xonxoff" });
    expect(cflag()).toBe(0x18b0 | 0x40);
    expect(console.pty.termios[0]).toBe(0x1404);
  });

  test("says what a line cannot do, and goes on", async () => {
    await using console = await Console.open();
    const error = await failure(console.line.setLines({ rts: false }));
    expect(error).toMatchObject({ code: "refused" });
    expect(error.message).toBe(
      `${console.pty.device}: its driver refuses that (ENOTTY: inappropriate ioctl for device)`,
    );
    await console.line.sendBreak(1);
    expect(console.gone).toEqual([]);
  });

  test("is gone once when it is unplugged, with the kernel's word, and says nothing afterwards", async () => {
    await using console = await Console.open();
    console.pty.pause();
    const waiting = failure(console.line.write(Buffer.alloc(150_000)));
    await Bun.sleep(20);
    console.pty.unplug();
    const why = `${console.pty.device}: unplugged or hung up (EIO: i/o error)`;
    expect(await waiting).toMatchObject({ code: "io", message: why });
    await until("gone", () => console.gone.length > 0);
    for (const act of [
      () => console.line.write(Buffer.from("x")),
      () => console.line.sendBreak(1),
      () => console.line.setLines({ dtr: false }),
      () => console.line.change({ baud: 9600 }),
    ]) {
      expect(await failure(act())).toMatchObject({ code: "io", message: why });
    }
    await console.line.close();
    expect(console.gone.map(({ code, message }) => [code, message])).toEqual([["io", why]]);
  });

  test("a write that is the first to notice is told the same, and it is still said once", async () => {
    await using console = await Console.open();
    console.pty.unplug();
    const why = `${console.pty.device}: unplugged or hung up (EIO: i/o error)`;
    expect((await failure(console.line.write(Buffer.from("x")))).message).toBe(why);
    await until("gone", () => console.gone.length > 0);
    await Bun.sleep(20);
    expect(console.gone.map(({ message }) => message)).toEqual([why]);
  });

  test("unplugged during a break is unplugged, for the bytes that waited for its end too", async () => {
    await using console = await Console.open();
    const breaking = failure(console.line.sendBreak(300));
    const waiting = failure(console.line.write(Buffer.from("after")));
    await Bun.sleep(20);
    console.pty.unplug();
    const why = `${console.pty.device}: unplugged or hung up (EIO: i/o error)`;
    expect((await waiting).message).toBe(why);
    expect((await breaking).message).toBe(why);
    expect(console.gone.map(({ message }) => message)).toEqual([why]);
  });

  test("a line that was idle is gone as soon as it is unplugged", async () => {
    await using console = await Console.open();
    console.pty.unplug();
    await until("gone", () => console.gone.length === 1);
  });

  test("closing twice is once; nothing is told any more, and whoever still asks hears that it is closed", async () => {
    await using console = await Console.open();
    await Promise.all([console.line.close(), console.line.close()]);
    await console.line.close();
    await console.pty.write("late");
    expect((await failure(console.line.write(Buffer.from("x")))).message).toEndWith("is closed");
    console.pty.unplug();
    await Bun.sleep(20);
    expect(console.heard.toString()).toBe("");
    expect(console.gone).toEqual([]);
  });

  test("what was written before the close arrives", async () => {
    await using console = await Console.open();
    // More than goes through at once, and less than the kernel takes
    const much = Buffer.alloc(8000, "exit\r");
    console.pty.pause();
    const written = console.line.write(much);
    await console.line.close();
    await written;
    console.pty.resume();
    await until("it", () => console.pty.received.equals(much));
  });

  test("closing a line that takes nothing ends soon, and the port can be opened again", async () => {
    await using console = await Console.open();
    console.pty.pause();
    const stuck = failure(console.line.write(Buffer.alloc(150_000)));
    await Bun.sleep(20);
    const closing = console.line.close();
    await console.pty.write("late");
    await closing;
    expect((await stuck).message).toEndWith("is closed");
    expect(console.heard.toString()).toBe("");
    const again = await openLine(console.pty.device, SETTINGS, { bytes: () => {}, gone: () => {} });
    await again.close();
  });
});

describe("a line that is not there", () => {
  const events = { bytes: () => undefined, gone: () => undefined };

  test.each<[string, string, string, string]>([
    ["no device", "/dev/ttyUSB-none", "absent", "not there: unplugged, or it has another name"],
    ["no terminal", "/dev/null", "io", "is no serial line (ENOTTY"],
    ["a folder", "/dev", "io", "is no serial line (EISDIR"],
  ])("%s is an error that says so", async (_, device, code, words) => {
    for (const open of [() => openLine(device, SETTINGS, events), () => openSerialLink(device)]) {
      const error = await failure(open());
      expect(error).toMatchObject({ code: code as HalError["code"] });
      expect(error.message).toStartWith(`${device}: ${words}`);
    }
  });

  test("a second opener is told that another program holds it, and the first goes on", async () => {
    await using console = await Console.open();
    const { device } = console.pty;
    const error = await failure(openLine(device, { ...SETTINGS, baud: 9600 }, events));
    expect(error).toMatchObject({ code: "busy" });
    expect(error.message).toStartWith(`${device}: another program holds it`);
    expect(await failure(openSerialLink(device))).toMatchObject({ code: "busy" });
    await console.line.write(Buffer.from("still here"));
    await until("it", () => console.pty.received.toString() === "still here");
  });

  test.each(["EACCES", "EBUSY", "ENXIO", "EIO"] as const)(
    "%s of the kernel is passed on in words",
    async (code) => {
      const words = {
        EACCES: ["io", "dialout"],
        EBUSY: ["busy", "another program holds it"],
        ENXIO: ["absent", "no hardware"],
        EIO: ["io", "cannot be opened (EIO: something)"],
      }[code];
      const kernel = { ...serialBinding, open: async () => Promise.reject(refusal(code)) };
      const error = await failure(openSerialLink("/dev/ttyUSB7", {}, kernel as BindingInterface));
      expect([error.code, error.message]).toEqual([words[0]!, expect.stringContaining(words[1]!)]);
    },
  );
});

const refusal = (code: string) => Object.assign(new Error(`${code}: something, open '/dev/x'`), { code });
