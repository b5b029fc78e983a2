import { describe, expect, test } from "bun:test";
import type { BindingInterface, BindingPortInterface } from "@serialport/bindings-interface";
import { openI2cLink } from "../hal/i2c.ts";
import { serialBinding } from "../hal/native/serial.ts";
import { pistackRs485 } from "../hal/pistack-rs485.ts";
import type { Hal, PowerBus, SerialLink } from "../hal/ports.ts";
import { openPower } from "../hal/power.ts";
import { openSerialLink } from "../hal/serial.ts";
import { openPort } from "../hal/serial-stream.ts";
import { SimStack } from "../hal/sim/stack.ts";
import { failure, seeded } from "./fakes.ts";
import { until } from "./node.ts";
import { Pty, serveStack } from "./pty.ts";

const never = () => false;
const ofLength = (length: number) => (collected: Uint8Array) => collected.length >= length;

/** A bus on a pseudo-terminal. */
async function bus(use: (pty: Pty, link: SerialLink) => Promise<void>): Promise<void> {
  using pty = new Pty();
  const link = await openSerialLink(pty.device);
  try {
    await use(pty, link);
  } finally {
    await link.close();
  }
}

describe("a half-duplex bus", () => {
  test("is 9600 baud 8N1, raw, and held by one program", async () => {
    await bus(async (pty) => {
      // BOTHER, CREAD, CLOCAL, CS8
      expect([...pty.termios.subarray(0, 4)]).toEqual([0x4, 0, 0x18b0, 0]);
      expect(await failure(openSerialLink(pty.device))).toMatchObject({ code: "busy" });
    });
  });

  test("an exchange ends when the reply is whole, well before its limit", async () => {
    await bus(async (pty, link) => {
      pty.onBytes = (chunk) => void pty.write(`<${chunk}>`);
      const began = performance.now();
      const reply = await link.exchange(Buffer.from("ask"), ofLength(5), 60_000);
      expect(Buffer.from(reply).toString()).toBe("<ask>");
      expect(performance.now() - began).toBeLessThan(30_000);
    });
  });

  test("silence, and a reply that is never whole, last as long as the limit", async () => {
    await bus(async (pty, link) => {
      const began = performance.now();
      expect(await link.exchange(Buffer.from("ask"), never, 60)).toEqual(Buffer.alloc(0));
      expect(performance.now() - began).toBeGreaterThanOrEqual(59);
      pty.onBytes = () => void pty.write("half");
      expect(Buffer.from(await link.exchange(Buffer.from("ask"), never, 500)).toString()).toBe("half");
    });
  });

  test("what nobody read is dropped before each request", async () => {
    await bus(async (pty, link) => {
      pty.onBytes = () => undefined;
      await link.exchange(Buffer.from("ask"), never, 1);
      await pty.write("late reply");
      await until("it was read by the stream, or waits in the kernel", () => pty.unread === 0);
      pty.onBytes = () => void pty.write("new");
      expect(Buffer.from(await link.exchange(Buffer.from("ask"), ofLength(3), 5000)).toString()).toBe("new");
    });
  });

  test("an empty request only listens", async () => {
    await bus(async (pty, link) => {
      const listening = link.exchange(new Uint8Array(), ofLength(4), 5000);
      await Bun.sleep(10);
      await pty.write("late");
      expect(Buffer.from(await listening).toString()).toBe("late");
      expect(pty.received.toString()).toBe("");
    });
  });

  test("a second exchange while one is under way is refused, and the first unharmed", async () => {
    await bus(async (pty, link) => {
      const first = link.exchange(Buffer.from("one"), ofLength(3), 5000);
      expect(await failure(link.exchange(Buffer.from("two"), never, 1))).toMatchObject({ code: "busy" });
      await pty.write("yes");
      expect(Buffer.from(await first).toString()).toBe("yes");
      expect(pty.take().toString()).toBe("one");
    });
  });

  test("noise without end neither fills memory nor outlasts the limit", async () => {
    await bus(async (pty, link) => {
      void pty.write(Buffer.alloc(1024 * 1024, 0x55));
      const collected = await link.exchange(Buffer.from("ask"), never, 5000);
      expect(collected.length).toBeGreaterThanOrEqual(4096);
      expect(collected.length).toBeLessThan(4096 + 64 * 1024);
    });
  });

  test("a line that goes away is an error at once, and so is every exchange after it", async () => {
    await bus(async (pty, link) => {
      const waiting = failure(link.exchange(Buffer.from("ask"), never, 60_000));
      await Bun.sleep(10);
      pty.unplug();
      const error = await waiting;
      expect(error).toMatchObject({ code: "io" });
      expect(error.message).toBe(`${pty.device}: unplugged or hung up (EIO: i/o error)`);
      expect(await failure(link.exchange(Buffer.from("ask"), never, 10))).toBe(error);
    });
  });

  test("a line that takes nothing is an error of the line, not silence", async () => {
    await bus(async (pty, link) => {
      pty.pause();
      const error = await failure(link.exchange(Buffer.alloc(150_000), never, 10));
      expect([error.code, error.message]).toEqual(["io", `${pty.device}: does not send`]);
    });
  });

  test("closed is closed", async () => {
    await bus(async (pty, link) => {
      const waiting = failure(link.exchange(Buffer.from("ask"), never, 60_000));
      await link.close();
      await link.close();
      expect((await waiting).message).toBe(`${pty.device}: is closed`);
      expect((await failure(link.exchange(Buffer.from("ask"), never, 10))).code).toBe("io");
    });
  });
});

/**
 * The binding on a pseudo-terminal, which has no control lines: these are written down instead of set, and so is when
 * bytes were given to the kernel and when they had left.
 */
function recording(said: string[], atMs: number[]): BindingInterface {
  const say = (what: string) => {
    said.push(what);
    atMs.push(performance.now());
  };
  return {
    list: () => serialBinding.list(),
    async open(options) {
      const port = await serialBinding.open(options as never);
      const recorded: BindingPortInterface = {
        openOptions: port.openOptions,
        get isOpen() {
          return port.isOpen;
        },
        close: () => port.close(),
        read: (...asked) => port.read(...asked),
        write: async (bytes) => {
          await port.write(bytes);
          say(`wrote ${bytes}`);
        },
        update: (settings) => port.update(settings),
        set: async ({ rts, dtr }) => {
          say(`rts ${rts ? "up" : "down"}, dtr ${dtr ? "up" : "down"}`);
        },
        get: () => port.get(),
        getBaudRate: () => port.getBaudRate(),
        flush: async () => {
          await port.flush();
          say("dropped what was unread");
        },
        drain: async () => {
          await port.drain();
          say("left");
        },
      };
      return recorded;
    },
  };
}

test("the control lines that come in are asked of the driver, and a driver without them says so", async () => {
  using pty = new Pty();
  const events = { heard: () => undefined, gone: () => undefined };
  const lines = { cts: true, dsr: false, dcd: true, ri: true };
  const binding = recording([], []);
  const open = async (options: never) => {
    const port = await binding.open(options);
    port.get = async () => lines;
    return port;
  };
  const port = await openPort(pty.device, { baudRate: 9600 }, events, { ...binding, open });
  expect(await port.get()).toEqual(lines);
  await port.close();
  expect((await failure(port.get())).code).toBe("io");
  const real = await openPort(pty.device, { baudRate: 9600 }, events);
  expect(await failure(real.get())).toMatchObject({
    code: "refused",
    message: expect.stringContaining("ENOTTY"),
  });
  await real.close();
});

test.each([
  ["high", "up", "down"],
  ["low", "down", "up"],
] as const)(
  "RTS is %s while we send, until the last bit has left, and never while we listen",
  async (rts, sends, rests) => {
    using pty = new Pty();
    const said: string[] = [];
    const atMs: number[] = [];
    const link = await openSerialLink(pty.device, { rts }, recording(said, atMs));
    pty.onBytes = () => void pty.write("yes");
    await link.exchange(Buffer.from("question"), ofLength(3), 5000);
    await link.exchange(new Uint8Array(), never, 1);
    await link.close();
    const line = (level: string) => `rts ${level}, dtr up`;
    expect(said.slice(0, 7)).toEqual([
      line(rests),
      "dropped what was unread",
      line(sends),
      "wrote question",
      "left",
      line(rests),
      "dropped what was unread",
    ]);
    expect(said.slice(7)).not.toContain(line(sends));
    // Eight bytes at 9600 baud, by the clock: a pseudo-terminal has sent at once
    const [, , , wroteMs = 0, , restedMs = 0] = atMs;
    expect(restedMs - wroteMs).toBeGreaterThan(8);
  },
);

test("a request that does not leave is an error of the line, and lets go of RTS, so that the bus is the boards' again", async () => {
  using pty = new Pty();
  const said: string[] = [];
  const binding = recording(said, []);
  const failing: BindingInterface = {
    ...binding,
    open: async (options) =>
      Object.assign(await binding.open(options), {
        write: () => {
          said.push("sends nothing");
          return new Promise<void>(() => undefined);
        },
      }),
  };
  const link = await openSerialLink(pty.device, { rts: "high" }, failing);
  expect((await failure(link.exchange(Buffer.from("question"), never, 10))).code).toBe("io");
  await link.close();
  expect(said.slice(2, 5)).toEqual(["rts up, dtr up", "sends nothing", "rts down, dtr up"]);
});

const STACK: PowerBus = { driver: "pistack-rs485", device: "", boards: [0, 1], hardware: 3, i2c_base: 0x10 };

/** How a reply may arrive. */
const ARRIVALS: Record<string, (pty: Pty, reply: Uint8Array, random: () => number) => Promise<unknown>> = {
  "at once": (pty, reply) => pty.write(reply),
  "byte by byte": async (pty, reply) => {
    for (const byte of reply) {
      await pty.write(Uint8Array.of(byte));
      await Bun.sleep(1);
    }
  },
  "late, within the limit": async (pty, reply) => {
    await Bun.sleep(40);
    await pty.write(reply);
  },
  "after noise": async (pty, reply, random) => {
    await pty.write(Uint8Array.from({ length: 5 }, () => random() * 256));
    await pty.write(reply);
  },
  "after our own echo": async (pty, reply) => {
    await pty.write(Uint8Array.of(0x03, 0x00, 0x03, 0x3d));
    await pty.write(reply);
  },
  "with noise behind it": async (pty, reply) => {
    await pty.write(reply);
    await pty.write("\x7f\x7f");
  },
};

test.each(Object.keys(ARRIVALS))("the Pi Stack's driver understands replies that arrive %s", async (how) => {
  await bus(async (pty, link) => {
    const stack = new SimStack({ boards: [0, 1], seed: 3 });
    const random = seeded(5);
    serveStack(pty, stack, (reply) => ARRIVALS[how]?.(pty, reply, random));
    const power = pistackRs485(link, { ...STACK, device: pty.device });
    expect(await power.read("1.0")).toMatchObject({ supply: "on" });
    await power.switch("1.0", "off");
    expect(stack.pi("1.0").supply).toBe(false);
    expect(stack.pi("1.1").supply).toBe(true);
    expect(await power.readBoard(1)).toMatchObject({ board: 1, hardware: 3 });
    expect(power.counters).toMatchObject({ retries: 0, timeouts: 0, crcErrors: 0 });
  });
});

test("a probe finds the boards that answer, and nobody where there is silence", async () => {
  await bus(async (pty, link) => {
    serveStack(pty, new SimStack({ boards: [0, 1], seed: 3 }));
    const power = pistackRs485(link, { ...STACK, device: pty.device });
    expect([await power.probe(0), await power.probe(1), await power.probe(2)]).toEqual([
      { board: 0, hardware: 3, firmware: 4 },
      { board: 1, hardware: 3, firmware: 4 },
      undefined,
    ]);
  });
});

test("a bus that goes away is an error, and works again by itself when it is back", async () => {
  using pty = new Pty();
  const stack = new SimStack({ boards: [0], seed: 3 });
  const hal = { openSerial: openSerialLink } as unknown as Hal;
  const power = await openPower(hal, { ...STACK, boards: [0], device: pty.device });
  serveStack(pty, stack);
  expect((await power.read("0.0")).supply).toBe("on");
  pty.unplug();
  expect(await failure(power.read("0.0"))).toMatchObject({ code: "io" });
  expect(await failure(power.switch("0.0", "off"))).toMatchObject({ code: "io" });
  expect(stack.pi("0.0").supply).toBe(true);
  pty.plug();
  expect((await power.read("0.0")).supply).toBe("on");
  await power.switch("0.0", "off");
  expect(stack.pi("0.0").supply).toBe(false);
  await power.close();
});

test.each([
  { driver: "pistack-rs485", device: "/dev/ttyUSB99" },
  { driver: "pistack-i2c", device: "/dev/i2c-99" },
  { driver: "clusterctrl", device: "/dev/i2c-99" },
] as const)(
  "$driver on a device that is missing: one try, one error of its own kind, and a scan says so",
  async (row) => {
    let opened = 0;
    const hal = {
      openSerial: (device: string) => {
        opened++;
        return openSerialLink(device);
      },
      openI2c: (device: string) => {
        opened++;
        return openI2cLink(device);
      },
    } as unknown as Hal;
    const power = await openPower(hal, { ...row, boards: [0], hardware: 3, i2c_base: 0x10 });
    const error = await failure(power.read("0.0"));
    expect([error.code, error.message.startsWith(`${row.device}: `)]).toEqual(["io", true]);
    expect(opened).toBe(1);
    expect(power.counters).toMatchObject({ retries: 0, crcErrors: 0, timeouts: 0, otherErrors: 1 });
    expect((await failure(power.probe(power.addresses[0] ?? 0))).code).toBe("io");
    await power.close();
  },
);
