/** What goes wrong with serial lines, made to happen on pseudo-terminals; and the whole agent on one. */
import { expect, test } from "bun:test";
import { createHash } from "node:crypto";
import { readdirSync, readlinkSync, rmSync } from "node:fs";
import { dirname, join } from "node:path";
import type { HalError, LineSettings, SerialLine } from "../hal/ports.ts";
import { openLine } from "../hal/serial.ts";
import { SimStack } from "../hal/sim/stack.ts";
import { failure, seeded } from "./fakes.ts";
import { needs, scratch, startAgent, until } from "./node.ts";
import { Pty, serveStack } from "./pty.ts";

const SETTINGS: LineSettings = { baud: 115200, data_bits: 8, parity: "none", stop_bits: 1, flow: "none" };
const MEGABYTE = 1024 * 1024;

/** Bytes of every value, NUL among them, and no end of line. */
function anything(length: number, seed: number): Buffer {
  const random = seeded(seed);
  const block = Buffer.from(Array.from({ length: 64 * 1024 }, () => random() * 256)).map((byte) =>
    byte === 10 || byte === 13 ? 0 : byte,
  );
  return Buffer.concat(
    Array.from({ length: Math.ceil(length / block.length) }, () => block),
    length,
  );
}

const digest = (bytes: Uint8Array) => createHash("sha256").update(bytes).digest("hex");

/** What arrives, without keeping it. */
function counting() {
  const hash = createHash("sha256");
  const seen = {
    bytes: 0,
    gone: [] as HalError[],
    take: (chunk: Uint8Array) => {
      hash.update(chunk);
      seen.bytes += chunk.length;
    },
    digest: () => hash.copy().digest("hex"),
  };
  return seen;
}

async function onLine(
  pty: Pty,
  use: (line: SerialLine, seen: ReturnType<typeof counting>) => Promise<void>,
): Promise<void> {
  const seen = counting();
  const line = await openLine(pty.device, SETTINGS, {
    bytes: seen.take,
    gone: (error) => seen.gone.push(error),
  });
  try {
    await use(line, seen);
  } finally {
    await line.close();
  }
}

test("10 MB without an end of line, with NUL and 8-bit bytes, arrive whole in both directions at once", async () => {
  using pty = new Pty();
  const far = counting();
  pty.onBytes = far.take;
  await onLine(pty, async (line, seen) => {
    const [there, back] = [anything(10 * MEGABYTE, 1), anything(10 * MEGABYTE, 2)];
    await Promise.all([line.write(there), pty.write(back)]);
    await until("all of it", () => far.bytes === there.length && seen.bytes === back.length);
    expect(far.digest()).toBe(digest(there));
    expect(seen.digest()).toBe(digest(back));
  });
}, 30_000);

test("a far side that stops reading holds up the writer, and loses nothing when it goes on", async () => {
  using pty = new Pty();
  const far = counting();
  pty.onBytes = far.take;
  pty.pause();
  await onLine(pty, async (line, seen) => {
    const much = anything(300_000, 3);
    const writing = line.write(much);
    // The line is not held up in the other direction
    await pty.write("alive");
    await until("five bytes", () => seen.bytes === 5);
    expect(Bun.peek.status(writing)).toBe("pending");
    pty.resume();
    await writing;
    await until("all of it", () => far.bytes === much.length);
    expect(far.digest()).toBe(digest(much));
  });
});

test("an event loop that is held up loses nothing", async () => {
  using pty = new Pty();
  await onLine(pty, async (_, seen) => {
    const much = anything(100_000, 4);
    const sending = pty.write(much);
    for (let hold = 0; hold < 5; hold++) {
      Bun.sleepSync(40);
      await Bun.sleep(1);
    }
    await sending;
    await until("all of it", () => seen.bytes === much.length);
    expect(seen.digest()).toBe(digest(much));
  });
});

test("unplugged and back, ten times: each time it is gone once, and opens again under its name; no file is left", async () => {
  const open = () =>
    readdirSync("/proc/self/fd").filter((file) => {
      try {
        return /\/dev\/(pts|ptmx)/.test(readlinkSync(`/proc/self/fd/${file}`));
      } catch {
        return false;
      }
    }).length;
  const before = open();
  {
    using pty = new Pty();
    for (let round = 0; round < 10; round++) {
      await onLine(pty, async (line, seen) => {
        await pty.write(`boot ${round}`);
        await until("bytes", () => seen.bytes === 6);
        const writing = round % 2 ? failure(line.write(anything(200_000, round))) : undefined;
        pty.unplug();
        expect((await writing)?.code ?? "io").toBe("io");
        await until("gone", () => seen.gone.length === 1);
        expect(await failure(openLine(pty.device, SETTINGS, NOBODY))).toMatchObject({ code: "absent" });
        pty.plug();
      });
    }
  }
  await until("no open file", () => open() === before);
});

const NOBODY = { bytes: () => undefined, gone: () => undefined };

test("of two openers at once one gets the line, and the other hears why", async () => {
  using pty = new Pty();
  for (let round = 0; round < 5; round++) {
    const both = await Promise.allSettled([1, 2].map(() => openLine(pty.device, SETTINGS, NOBODY)));
    const lines = both.flatMap((outcome) => (outcome.status === "fulfilled" ? [outcome.value] : []));
    const errors = both.flatMap((outcome) => (outcome.status === "rejected" ? [outcome.reason.code] : []));
    expect([lines.length, errors]).toEqual([1, ["busy"]]);
    await lines[0]?.close();
  }
});

const flock = needs("another program that locks is refused, and refuses us", {
  name: "flock",
  install: "util-linux",
});
test.skipIf(flock.isSkipped)(flock.title, async () => {
  using pty = new Pty();
  const other = (...command: string[]) => Bun.spawn(["flock", "--nonblock", pty.device, ...command]);
  await onLine(pty, async () => {
    expect(await other("true").exited).toBe(1);
  });
  const holder = Bun.spawn(["flock", pty.device, "sh", "-c", "echo held; read _"], {
    stdin: "pipe",
    stdout: "pipe",
  });
  await holder.stdout.getReader().read();
  expect(await failure(openLine(pty.device, SETTINGS, NOBODY))).toMatchObject({ code: "busy" });
  holder.stdin.end();
  await holder.exited;
  await onLine(pty, async (line) => line.write(Buffer.from("free")));
});

/** Runs a program of ours that says something when it is ready; it goes with the test. */
async function program(source: string) {
  const child = Bun.spawn([process.execPath, "-e", source], {
    cwd: join(import.meta.dir, ".."),
    stdout: "pipe",
    stderr: "inherit",
  });
  const { value } = await child.stdout.getReader().read();
  return {
    child,
    said: Buffer.from(value ?? "")
      .toString()
      .trim(),
    async [Symbol.asyncDispose]() {
      child.kill("SIGKILL");
      await child.exited;
    },
  };
}

test("the far side is killed in the middle of a write: an error, once, and nothing hangs", async () => {
  await using far = await program(`
    import { Pty } from "./test/pty.ts";
    const pty = new Pty();
    pty.pause();
    console.log(pty.device);
    setTimeout(() => {}, 60_000);
  `);
  const gone: HalError[] = [];
  const line = await openLine(far.said, SETTINGS, {
    bytes: () => undefined,
    gone: (error) => gone.push(error),
  });
  const writing = failure(line.write(anything(MEGABYTE, 5)));
  await Bun.sleep(20);
  far.child.kill("SIGKILL");
  expect(await writing).toMatchObject({ code: "io" });
  await until("gone", () => gone.length === 1);
  await line.close();
  expect(gone).toHaveLength(1);
  // Its name outlives a program that was killed
  rmSync(dirname(far.said), { recursive: true });
});

test("we are killed in the middle of a write: the line is free, and what was taken arrives in order", async () => {
  using pty = new Pty();
  pty.pause();
  const killed = await program(`
    import { openLine } from "./hal/serial.ts";
    const line = await openLine(${JSON.stringify(pty.device)}, ${JSON.stringify(SETTINGS)},
      { bytes() {}, gone() {} });
    line.write(Buffer.alloc(1_000_000, "0123456789"));
    console.log("writing");
    setTimeout(() => {}, 60_000);
  `);
  expect(killed.said).toBe("writing");
  expect(await failure(openLine(pty.device, SETTINGS, NOBODY))).toMatchObject({ code: "busy" });
  await killed[Symbol.asyncDispose]();
  await onLine(pty, async (line) => {
    pty.resume();
    await line.write(Buffer.from("next"));
    await until("the next one", () => pty.received.toString().endsWith("next"));
    const before = pty.take().subarray(0, -4);
    expect(before.equals(Buffer.alloc(before.length, "0123456789"))).toBe(true);
  });
});

test("fifteen lines that never fall silent do not hold up a sixteenth, nor the event loop", async () => {
  const ptys = Array.from({ length: 16 }, (_, i) => new Pty(`ttyUSB${i}`));
  const seen = ptys.map(counting);
  const lines = await Promise.all(
    ptys.map((pty, i) =>
      openLine(pty.device, SETTINGS, { ...NOBODY, bytes: (chunk) => seen[i]?.take(chunk) }),
    ),
  );
  const [quiet, ...loud] = ptys;
  const much = anything(100_000, 6);
  let isEnough = false;
  let rounds = 0;
  const floods = loud.map(async (pty) => {
    while (!isEnough) {
      await pty.write(much);
      rounds++;
    }
  });
  for (let asked = 1; asked <= 20; asked++) {
    await quiet?.write("?");
    await until("the answer", () => seen[0]?.bytes === asked);
  }
  isEnough = true;
  await Promise.all(floods);
  const sum = () => seen.slice(1).reduce((bytes, one) => bytes + one.bytes, 0);
  await until("all of it", () => sum() === rounds * much.length);
  // None of the fifteen was left behind either
  expect(Math.min(...seen.slice(1).map(({ bytes }) => bytes))).toBeGreaterThanOrEqual(much.length);
  await Promise.all(lines.map((line) => line.close()));
  for (const pty of ptys) pty[Symbol.dispose]();
}, 30_000);

test("the agent reads and switches boards on a serial line, and bears that it goes and comes", async () => {
  using folder = scratch();
  using pty = new Pty();
  const stack = new SimStack({ boards: [0, 3], seed: 9, faults: ["no-heartbeat"] });
  serveStack(pty, stack);
  await using agent = await startAgent(
    folder.path,
    {
      power: {
        buses: [{ driver: "pistack-rs485", device: pty.device, boards: [0, 3] }],
        poll_seconds: 1,
        min_on_seconds: 0,
        changes_per_hour: 1000,
      },
    },
    { hal: "linux" },
  );
  const supply = async (outlet: string) => {
    const { out } = await agent.cli("power", "status", outlet, "--json");
    return /"supply":\s*"(\w+)"/.exec(out)?.[1];
  };
  await until("a reading", async () => (await supply("3.1")) === "on");
  const off = await agent.cli("power", "off", "3.1", "--force", "--reason", "test");
  expect([off.exit, stack.pi("3.1").supply, stack.pi("3.0").supply]).toEqual([0, false, true]);
  pty.unplug();
  await until("unknown", async () => (await supply("3.1")) === "unknown");
  const refused = await agent.cli("power", "on", "3.1", "--no-wait");
  expect(refused.exit).not.toBe(0);
  pty.plug();
  await until("off again", async () => (await supply("3.1")) === "off");
  const on = await agent.cli("power", "on", "3.1", "--no-wait");
  expect([on.exit, stack.pi("3.1").supply]).toEqual([0, true]);
}, 60_000);
