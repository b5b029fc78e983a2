/**
 * Our serial binding on a real driver: `serial CHECK DEVICE [BAUD…]`, a far side that says everything back being at the
 * other end. Compiled for the guest of the proof; says `ok NAME` or `wrong NAME: WHY`, a line each.
 */
import { readdirSync, readlinkSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { ioctl } from "../../hal/native/libc.ts";
import { serialBinding } from "../../hal/native/serial.ts";
import type { SerialPort } from "../../hal/native/serial-port.ts";
import { LINE, REQUEST } from "../../hal/native/termios.ts";
import type { LineSettings, SerialLine } from "../../hal/ports.ts";
import { openLine } from "../../hal/serial.ts";

const [check = "", path = "", ...more] = process.argv.slice(2);
const FLAGS = { brk: false, dtr: true, rts: true };

async function say(name: string, claim: () => Promise<unknown>): Promise<void> {
  try {
    await claim();
    process.stdout.write(`ok ${name}\n`);
  } catch (error) {
    process.stdout.write(`wrong ${name}: ${error}\n`);
    process.exitCode = 1;
  }
}

function same(found: unknown, expected: unknown): void {
  const [is, should] = [JSON.stringify(found), JSON.stringify(expected)];
  if (is !== should) throw new Error(`${is} instead of ${should}`);
}

async function holding(options: object, use: (port: SerialPort) => Promise<void>): Promise<void> {
  const port = await serialBinding.open({ path, baudRate: 9600, ...options });
  try {
    await use(port);
  } finally {
    await port.close();
  }
}

/** What the driver has, asked past the binding of its open file: to open the port once more would raise RTS and DTR. */
function asked(request: number, length: number): Uint32Array {
  const file = readdirSync("/proc/self/fd").find((name) => {
    try {
      return readlinkSync(`/proc/self/fd/${name}`) === path;
    } catch {
      return false;
    }
  });
  const answer = new Uint32Array(length);
  ioctl(Number(file), request, answer);
  return answer;
}

async function readBack(port: SerialPort, length: number): Promise<Buffer> {
  const buffer = Buffer.alloc(length);
  for (let at = 0; at < length; ) at += (await port.read(buffer, at, length - at)).bytesRead;
  return buffer;
}

/** What node-serialport's published cases ask of hardware, and what a pseudo-terminal cannot show. */
async function port(): Promise<void> {
  const [impossible = 0, ...bauds] = more.map(Number);
  for (const baudRate of bauds) {
    await say(`makes ${baudRate} baud`, () =>
      holding({ baudRate }, async (port) => {
        const made = (await port.getBaudRate()).baudRate;
        if (Math.abs(made - baudRate) > baudRate * 0.03) throw new Error(`${made}`);
      }),
    );
  }
  await say(`refuses ${impossible} baud`, async () => {
    const error = await holding({ baudRate: impossible }, async () => undefined).catch((error) => error);
    if (!/^makes \d+ baud instead of/.test(error?.message)) throw new Error(`${error}`);
  });
  await say("says everything back, and has sent it when drained", () =>
    holding({ baudRate: 115200 }, async (port) => {
      const data = Buffer.from(Array.from({ length: 2048 }, (_, i) => i & 0xff));
      const heard = readBack(port, data.length);
      await port.write(data);
      await port.drain();
      same(asked(REQUEST.unsent, 1)[0], 0);
      same((await heard).equals(data), true);
    }),
  );
  await say("reads the modem lines", () =>
    holding({}, async (port) => {
      const { cts, dsr, dcd, ri } = await port.get();
      same(
        [cts, dsr, dcd, ri].map((is) => typeof is),
        ["boolean", "boolean", "boolean", "boolean"],
      );
    }),
  );
  await say("sets RTS and DTR, each alone", () =>
    holding({}, async (port) => {
      for (const [dtr, rts] of [
        [true, false],
        [false, true],
        [false, false],
        [true, true],
      ] as const) {
        await port.set({ ...FLAGS, dtr, rts });
        const bits = asked(REQUEST.getLines, 1)[0] ?? 0;
        same([(bits & LINE.dtr) !== 0, (bits & LINE.rts) !== 0], [dtr, rts]);
      }
    }),
  );
  await say("has parity, data and stop bits as asked", () =>
    holding({ dataBits: 7, parity: "odd", stopBits: 2 }, async (port) => {
      const CSIZE_CSTOPB_PARENB_PARODD = 0x370;
      same((asked(REQUEST.getTermios, 11)[2] ?? 0) & CSIZE_CSTOPB_PARENB_PARODD, 0x360);
      await port.update({ baudRate: 9600, dataBits: 8, parity: "none", stopBits: 1 });
      same((asked(REQUEST.getTermios, 11)[2] ?? 0) & CSIZE_CSTOPB_PARENB_PARODD, 0x030);
    }),
  );
  await say("takes a break, and goes on", () =>
    holding({ baudRate: 115200 }, async (port) => {
      await port.set({ ...FLAGS, brk: true });
      const writing = port.write(Buffer.from("after"));
      await port.set(FLAGS);
      await writing;
      same((await readBack(port, 5)).toString(), "after");
    }),
  );
  await say("is in the list", async () => {
    const found = (await serialBinding.list()).find((port) => port.path === path);
    same(found?.path, path);
    process.stdout.write(`list ${JSON.stringify(found)}\n`);
  });
}

/** The far side holds the line with XOFF when it hears READY, and lets it go when it is said that nothing was sent. */
async function held(): Promise<void> {
  await holding({ baudRate: 115200, xon: true }, async (port) => {
    await port.write(Buffer.from("READY"));
    await port.drain();
    let [isTaken, hasLeft] = [false, false];
    // Until the line stands still: more than any driver's room
    const writing = (async () => {
      for (let i = 0; i < 100 && !isTaken; i++) await port.write(Buffer.alloc(1000, "x"));
      isTaken = true;
    })();
    await sleep(3000);
    await say("a held line takes no more", async () => same(isTaken, false));
    const draining = port.drain().then(
      () => {
        hasLeft = true;
      },
      () => undefined,
    );
    const began = performance.now();
    await say("a break gets through a held line, and the event loop goes on", async () => {
      let turns = 0;
      const ticking = (async () => {
        for (; turns < 1e6 && !isTaken; turns++) await sleep(10);
      })();
      await port.set({ ...FLAGS, brk: true });
      const tookMs = performance.now() - began;
      await port.set(FLAGS);
      if (tookMs > 20_000 || turns < 20) throw new Error(`${tookMs} ms, ${turns} turns`);
      void ticking;
    });
    await say("a held line has not sent", async () => same(hasLeft, false));
    await writing;
    await draining;
    await port.write(Buffer.from("END"));
    await port.drain();
    await say("a line that was let go sends on", async () => same(hasLeft, true));
  });
}

const SETTINGS: LineSettings = { baud: 115200, data_bits: 8, parity: "none", stop_bits: 1, flow: "none" };

/** The adapter is pulled out when it says READY, and plugged in again when it was found absent. */
async function unplugged(): Promise<void> {
  const gone = Promise.withResolvers<Error>();
  const line = await openLine(path, SETTINGS, { bytes: () => undefined, gone: gone.resolve });
  await line.write(Buffer.from("READY"));
  const error = await gone.promise;
  await say("unplugged is gone", async () => {
    if (!error.message.startsWith(`${path}: unplugged or hung up (`)) throw error;
    process.stdout.write(`gone ${error.message}\n`);
  });
  await line.close();
  const open = () => openLine(path, SETTINGS, { bytes: () => undefined, gone: () => undefined });
  await say("while it is out it is absent", async () => {
    const error = await open().catch((error) => error);
    same(error.code, "absent");
  });
  const codes = new Set<string>();
  const back = async (): Promise<SerialLine> => {
    for (;;) {
      try {
        return await open();
      } catch (error) {
        codes.add(Object(error).code);
        await sleep(50);
      }
    }
  };
  const again = await back();
  await again.write(Buffer.from("BACK"));
  await again.close();
  codes.delete("absent");
  await say("it was nothing else until it was back", async () => same([...codes], []));
}

const CHECKS: Record<string, () => Promise<void>> = { port, held, unplugged };
await CHECKS[check]?.();
