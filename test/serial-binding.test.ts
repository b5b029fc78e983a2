/**
 * node-serialport's own tests of a binding (serialport/bindings-cpp: lib/bindings.test.ts, unix-read.test.ts,
 * unix-write.test.ts, linux-list.test.ts) as cases of ours, under their titles, on a pseudo-terminal whose far side says
 * everything back. With FRUIT_SERIAL=/dev/ttyUSB0 and its TX tied to its RX they run on that port as well.
 * A pseudo-terminal has no control lines, no parity and no speed on a wire: what depends on them is shown there only.
 */
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { serialBinding } from "../hal/native/serial.ts";
import type { SerialPort } from "../hal/native/serial-port.ts";
import { DEFAULTS, FLAGS, holding, rejection } from "./ports.ts";
import { Pty } from "./pty.ts";

const NOTHING = undefined as never;

const HARDWARE = process.env.FRUIT_SERIAL;
const PORTS: { on: string; path: string | undefined }[] = [
  { on: "a pseudo-terminal", path: undefined },
  ...(HARDWARE ? [{ on: HARDWARE, path: HARDWARE }] : []),
];

describe.each(PORTS)("published cases on $on:", ({ path: given }) => {
  let pty: Pty;
  let path: string;
  // A line of its own for each: what one case left over would be the next one's
  beforeEach(() => {
    pty = new Pty();
    pty.onBytes = (chunk) => void pty.write(chunk);
    path = given ?? pty.device;
  });
  afterEach(() => pty[Symbol.dispose]());

  test(".list returns an array", async () => {
    expect(await serialBinding.list()).toBeArray();
  });

  test(".list has objects with undefined when there is no data", async () => {
    for (const port of await serialBinding.list()) {
      expect(Object.keys(port).sort()).toEqual(
        ["path", "manufacturer", "serialNumber", "pnpId", "locationId", "vendorId", "productId"].sort(),
      );
      for (const value of Object.values(port))
        expect([undefined, expect.stringMatching(/./)]).toContainEqual(value);
    }
  });

  test(".open errors when providing a bad port", async () => {
    const error = await rejection(serialBinding.open({ path: "COMBAD", baudRate: 115200 }));
    expect(error.message).toContain("COMBAD");
  });

  test(".open throws when not given a path", async () => {
    expect(await rejection(serialBinding.open({ path: "", baudRate: 115200 }))).toBeInstanceOf(TypeError);
  });

  test(".open throws when not given a baudRate", async () => {
    const error = await rejection(serialBinding.open({ path: "COMBAD", baudRate: NOTHING }));
    expect(error.message).toContain("baudRate");
  });

  test(".open throws when not given options", async () => {
    expect((await rejection(serialBinding.open(NOTHING))).message).toContain("options");
  });

  test(".open keeps open state; #isOpen is true after open and false after close", async () => {
    const port = await serialBinding.open({ ...DEFAULTS, path });
    expect(port.isOpen).toBe(true);
    await port.close();
    expect(port.isOpen).toBe(false);
  });

  test.each([25_000, 1_000_000, 250_000])("opens at %d baud, and sets it successfully", async (baudRate) => {
    const made = await holding(path, (port) => port.getBaudRate(), { baudRate });
    expect(made).toEqual({ baudRate });
  });

  test("locks the port by default", async () => {
    await holding(path, async () => {
      await rejection(serialBinding.open({ path, baudRate: 115200 }));
    });
    await holding(path, async () => undefined);
  });

  test("can unlock the port", async () => {
    await holding(
      path,
      (port) =>
        holding(
          path,
          async (other) => {
            expect([port.isOpen, other.isOpen]).toEqual([true, true]);
          },
          { lock: false },
        ),
      { lock: false },
    );
  });

  test("#close errors when already closed", async () => {
    const port = await serialBinding.open({ ...DEFAULTS, path });
    await port.close();
    await rejection(port.close());
  });

  test("#update errors when not given an object", async () => {
    await holding(path, async (port) => {
      expect(await rejection(port.update(NOTHING))).toBeInstanceOf(TypeError);
    });
  });

  test("#update errors when updating nothing", async () => {
    await holding(path, async (port) => {
      await rejection(port.update({} as never));
    });
  });

  test("#update updates baudRate", async () => {
    await holding(path, async (port) => {
      await port.update({ baudRate: 57600 });
      expect(await port.getBaudRate()).toEqual({ baudRate: 57600 });
    });
  });

  test.each<[string, (port: SerialPort) => Promise<unknown>]>([
    ["update", (port) => port.update({ baudRate: 57600 })],
    ["read", (port) => port.read(Buffer.alloc(5), 0, 5)],
    ["write", (port) => port.write(Buffer.from("data!"))],
    ["drain", (port) => port.drain()],
    ["flush", (port) => port.flush()],
    ["set", (port) => port.set(FLAGS)],
    ["get", (port) => port.get()],
    ["getBaudRate", (port) => port.getBaudRate()],
  ])("#%s errors when closed", async (_, ask) => {
    const port = await serialBinding.open({ ...DEFAULTS, path });
    await port.close();
    expect((await rejection(ask(port))).message).toContain("not open");
  });

  test("#read reads requested number of bytes", async () => {
    await holding(path, async (port) => {
      const buffer = Buffer.alloc(5);
      await port.write(Buffer.from("12345"));
      for (let at = 0; at < 5; ) at += (await port.read(buffer, at, 5 - at)).bytesRead;
      expect(buffer.toString()).toBe("12345");
    });
  });

  test("#read returns at maximum the requested number of bytes and the buffer", async () => {
    await holding(path, async (port) => {
      const buffer = Buffer.alloc(5);
      await port.write(Buffer.from("12345"));
      const { bytesRead, buffer: same } = await port.read(buffer, 0, 1);
      expect(bytesRead).toBe(1);
      expect(same).toBe(buffer);
      expect(buffer).toEqual(Buffer.from([0x31, 0, 0, 0, 0]));
    });
  });

  test("#read cancels the read when the port is closed", async () => {
    const port = await serialBinding.open({ ...DEFAULTS, path });
    const error = rejection(port.read(Buffer.alloc(100), 0, 100));
    await port.close();
    expect((await error).canceled).toBe(true);
  });

  test.each<[string, unknown[]]>([
    ["not a Buffer", ["12345", 0, 5]],
    ["without an offset", [Buffer.alloc(5), Number.NaN, 5]],
    ["without a length", [Buffer.alloc(5), 0]],
    ["longer than the buffer", [Buffer.alloc(5), 1, 5]],
    ["of nothing", [Buffer.alloc(5), 0, 0]],
  ])("#read errors %s", async (_, asked) => {
    await holding(path, async (port) => {
      await rejection(port.read(...(asked as [Buffer, number, number])));
    });
  });

  test("#write errors when not given a buffer", async () => {
    await holding(path, async (port) => {
      expect(await rejection(port.write(NOTHING))).toBeInstanceOf(TypeError);
    });
  });

  test.each([
    ["a small write", Buffer.from("simple write of 24 bytes")],
    ["a large write (2k)", Buffer.alloc(2048)],
    ["an empty write", Buffer.alloc(0)],
  ])("#write resolves after %s", async (_, data) => {
    await holding(path, async (port) => {
      expect(await port.write(data)).toBeUndefined();
    });
  });

  test("#drain drains the port", async () => {
    await holding(path, async (port) => {
      expect(await port.drain()).toBeUndefined();
    });
  });

  test("#drain waits for in progress writes to finish", async () => {
    await holding(path, async (port) => {
      let isWritten = false;
      const write = port.write(Buffer.alloc(2048)).then(() => {
        isWritten = true;
      });
      await port.drain();
      expect(isWritten).toBe(true);
      await write;
    });
  });

  test("#flush flushes the port", async () => {
    await holding(path, async (port) => {
      expect(await port.flush()).toBeUndefined();
    });
  });

  test("#set throws when not called with options", async () => {
    await holding(path, async (port) => {
      expect(await rejection(port.set(NOTHING))).toBeInstanceOf(TypeError);
    });
  });

  test("#set sets flags on the port", async () => {
    await holding(path, async (port) => {
      expect(await port.set(FLAGS)).toBeUndefined();
    });
  });

  // A pseudo-terminal has no such lines
  if (given)
    test("#get gets modem line status from the port", async () => {
      await holding(path, async (port) => {
        const bits = expect.any(Boolean);
        expect(await port.get()).toEqual({ cts: bits, dsr: bits, dcd: bits, ri: bits });
      });
    });
});
