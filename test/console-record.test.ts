/** What a line said, in files: how often they are written, what stands in them, how big they get. */
import { afterEach, beforeEach, expect, jest, test } from "bun:test";
import {
  appendFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { Recording } from "../agent/console/record.ts";
import { Ring } from "../agent/console/ring.ts";
import { Transcript } from "../agent/console/text.ts";
import { consoleBench, settle } from "./consoles.ts";
import { seeded } from "./fakes.ts";
import { scratch } from "./node.ts";
import { FUZZ } from "./sim.ts";

let folder: ReturnType<typeof scratch>;

beforeEach(() => {
  folder = scratch();
  jest.useFakeTimers();
  jest.setSystemTime(new Date("2026-11-23T07:00:00Z"));
});
afterEach(() => {
  jest.useRealTimers();
  folder[Symbol.dispose]();
});

/** A recording whose every write is counted. */
function recording(options: { file_bytes?: number; files?: number; raw?: boolean; dir?: string } = {}) {
  const { dir = join(folder.path, "console") } = options;
  const ring = new Ring();
  const writes: { at: number; bytes: number }[] = [];
  const alarms = new Map<string, string>();
  let failing: Error | undefined;
  const startedAt = performance.now();
  const record = new Recording({
    name: "rack1-a",
    config: { dir, file_bytes: 1_048_576, files: 4, raw: false, ...options },
    ring,
    alarm: (id, alarm) => {
      if (alarm) alarms.set(id, alarm.message);
      else alarms.delete(id);
    },
    append: async (path, bytes) => {
      if (failing) {
        // As a disk that fills up: half of it is there
        appendFileSync(path, bytes.subarray(0, bytes.length / 2));
        throw failing;
      }
      writes.push({ at: Math.round(performance.now() - startedAt), bytes: bytes.length });
      appendFileSync(path, bytes);
    },
  });
  const pass = async (ms: number, step = 100) => {
    for (let left = ms; left > 0; left -= step) {
      jest.advanceTimersByTime(Math.min(step, left));
      await record.idle();
    }
  };
  return {
    record,
    ring,
    writes,
    alarms,
    fail: (error: Error | undefined) => {
      failing = error;
    },
    say: async (text: string | Uint8Array) => {
      ring.push(typeof text === "string" ? Buffer.from(text) : text, Date.now());
      record.wake();
      await record.idle();
    },
    mark: async (text: string) => {
      ring.mark({ at: Date.now(), kind: "power", text });
      record.wake();
      await record.idle();
    },
    pass,
    file: (n = 0) => readFileSync(join(dir, `rack1-a${n === 0 ? "" : `.${n}`}.log`), "latin1"),
    names: () => readdirSync(dir).sort(),
  };
}

test("a line that trickles costs one write a minute, and loses nothing", async () => {
  const one = recording();
  let said = "";
  for (let second = 0; second < 600; second++) {
    await one.say("x");
    said += "x";
    await one.pass(1000, 500);
  }
  // The first after a second, then one each minute
  expect(one.writes.map(({ at }) => Math.round(at / 1000))).toEqual([
    1, 61, 121, 181, 241, 301, 361, 421, 481, 541,
  ]);
  await one.record.close();
  expect(one.file().replace(/^\S+ /, "").trimEnd()).toBe(said);
});

test("what is said after an hour of silence is in the file a second later", async () => {
  const one = recording();
  await one.say("boot\n");
  await one.pass(3_600_000, 600_000);
  await one.say("Kernel panic\n");
  await one.pass(1000);
  expect(one.file()).toContain("Kernel panic\n");
});

test("four kilobytes are written at once, and while the line is busy the rest each second", async () => {
  const one = recording();
  await one.say("x".repeat(4096));
  expect(one.writes.map(({ at }) => at)).toEqual([0]);
  for (let n = 0; n < 50; n++) {
    await one.say("y".repeat(100));
    await one.pass(100);
  }
  expect(one.writes.slice(1).map(({ at }) => Math.round(at / 1000))).toEqual([1, 2, 3, 4, 5]);
});

test("a line at full rate is written in blocks, not in chunks", async () => {
  const one = recording();
  let chunks = 0;
  for (let ms = 0; ms < 10_000; ms += 10) {
    await one.say("x".repeat(115));
    chunks++;
    await one.pass(10, 10);
  }
  expect(chunks).toBe(1000);
  expect(one.writes.length).toBeLessThanOrEqual(Math.ceil((1000 * 115) / 4096) + 1);
});

test("lines have the time at which they began, control sequences are gone, marks stand on lines of their own", async () => {
  const one = recording();
  await one.say("\x1b[32mOK\x1b[0m\r\nlog");
  await one.pass(500);
  await one.say("in: ");
  await one.mark("power: off by alice (kernel test)");
  await one.say("\0\x07after\r\n");
  await one.record.close();
  expect(one.file()).toBe(
    [
      "2026-11-23T07:00:00.000Z OK",
      "2026-11-23T07:00:00.000Z login: ",
      "[fruit 2026-11-23T07:00:00Z: power: off by alice (kernel test)]",
      "2026-11-23T07:00:00.500Z after",
      "",
    ].join("\n"),
  );
});

test("raw, every byte is as it was, with the marks between", async () => {
  const one = recording({ raw: true });
  const every = Uint8Array.from({ length: 256 }, (_, byte) => byte);
  await one.say(every);
  await one.mark("power: off");
  await one.say(every);
  await one.record.close();
  const bytes = Buffer.from(every).toString("latin1");
  expect(one.file()).toBe(`${bytes}\n[fruit 2026-11-23T07:00:00Z: power: off]\n${bytes}`);
});

test("no file grows beyond its size, the oldest goes, and what is left is the end of what was said", async () => {
  const one = recording({ file_bytes: 16_384, files: 3 });
  const lines: string[] = [];
  for (let n = 0; n < 3000; n++) {
    const line = `line ${n} ${"x".repeat(n % 50)}`;
    lines.push(line);
    await one.say(`${line}\n`);
    if (n % 20 === 0) await one.pass(1000, 500);
  }
  await one.record.close();
  expect(one.names()).toEqual(["rack1-a.1.log", "rack1-a.2.log", "rack1-a.log"]);
  const kept = [2, 1, 0].map((n) => one.file(n));
  for (const file of kept) expect(file.length).toBeLessThanOrEqual(16_384);
  // Cut between lines
  for (const file of kept) expect(file).toEndWith("\n");
  const text = kept.join("").replace(/^\S+ /gm, "");
  expect(`${lines.join("\n")}\n`).toEndWith(text);
  expect(text.length).toBeGreaterThan(16_384);
});

test("a line without an end cannot make a file too big either", async () => {
  const one = recording({ file_bytes: 16_384, files: 2 });
  for (let n = 0; n < 30; n++) await one.say("x".repeat(10_000));
  await one.record.close();
  for (const name of one.names())
    expect(statSync(join(folder.path, "console", name)).size).toBeLessThanOrEqual(16_384);
  expect(one.names()).toHaveLength(2);
});

test("one file only is begun anew when it is full", async () => {
  const one = recording({ file_bytes: 16_384, files: 1 });
  for (let n = 0; n < 300; n++) await one.say(`${"y".repeat(99)}\n`);
  await one.record.close();
  expect(one.names()).toEqual(["rack1-a.log"]);
  expect(one.file().length).toBeLessThanOrEqual(16_384);
});

test("a recording goes on where the last run stopped, on a new line, within its size", async () => {
  mkdirSync(join(folder.path, "console"));
  writeFileSync(join(folder.path, "console/rack1-a.log"), "2026-11-22T23:00:00.000Z the agent was kil");
  const one = recording();
  await one.say("again\n");
  await one.record.close();
  expect(one.file()).toBe("2026-11-22T23:00:00.000Z the agent was kil\n2026-11-23T07:00:00.000Z again\n");
});

test("a file that is bigger than one may be now is left as it is, and another begun", async () => {
  mkdirSync(join(folder.path, "console"));
  const old = "a line of old\n".repeat(1200);
  writeFileSync(join(folder.path, "console/rack1-a.log"), old);
  const one = recording({ file_bytes: 16_384 });
  await one.say(`${"x".repeat(99)}\n`.repeat(20));
  await one.record.close();
  expect(one.file(1)).toBe(old);
  expect(one.file().replace(/^\S+ /gm, "")).toBe(`${"x".repeat(99)}\n`.repeat(20));
});

test("a full disk is an alarm, tried again each minute, and nothing is lost or doubled that the ring still has", async () => {
  const one = recording();
  await one.say("before\n");
  await one.pass(1000);
  one.fail(new Error("ENOSPC: no space left on device, write"));
  await one.say(`${"first".repeat(1000)}\n`);
  expect(one.alarms.get("console-record-rack1-a")).toBe(
    "console rack1-a is not recorded: ENOSPC: no space left on device, write; what it says is kept in memory, and tried again each minute",
  );
  await one.say(`${"second".repeat(1000)}\n`);
  await one.pass(59_000, 1000);
  one.fail(undefined);
  await one.pass(2000, 500);
  expect(one.alarms.size).toBe(0);
  await one.pass(2000, 500);
  await one.record.close();
  expect(one.file().replace(/^\S+ /gm, "")).toBe(
    `before\n${"first".repeat(1000)}\n${"second".repeat(1000)}\n`,
  );
});

test("half a line that could not even be taken back is ended before it comes again", async () => {
  const one = recording();
  await one.say("before\n");
  await one.pass(1000);
  one.fail(new Error("EIO: i/o error, write"));
  await one.say(`${"whole".repeat(1000)}\n`);
  // What a disk leaves that fails to truncate as well
  appendFileSync(join(folder.path, "console/rack1-a.log"), "2026-11-23T07:00:01.000Z half");
  one.fail(undefined);
  await one.pass(62_000, 1000);
  await one.record.close();
  expect(one.file().replace(/^\S+Z /gm, "")).toBe(`before\nhalf\n${"whole".repeat(1000)}\n`);
});

test("what the ring had to forget meanwhile is counted at its place", async () => {
  const one = recording();
  one.fail(new Error("ENOSPC"));
  mkdirSync(join(folder.path, "console"));
  await one.say(`${"a".repeat(4999)}\n`);
  for (let n = 0; n < 100; n++) await one.say(`${"b".repeat(4999)}\n`);
  one.fail(undefined);
  await one.pass(62_000, 1000);
  await one.record.close();
  const text = one.file().replace(/^\S+Z /gm, "");
  const skipped = Number(/: (\d+) bytes skipped\]/.exec(text)?.[1]);
  expect(skipped).toBe(500_000 - 262_144);
  expect(text.match(/b/g)?.length ?? 0).toBeGreaterThan(262_000);
  expect(text).toStartWith(`${"a".repeat(4999)}\n[fruit `);
});

test("a folder that is taken away is made again; one that cannot be is an alarm", async () => {
  const one = recording();
  await one.say("one\n");
  await one.pass(1000);
  rmSync(join(folder.path, "console"), { recursive: true });
  await one.pass(60_000, 10_000);
  await one.say("two\n");
  await one.pass(2000);
  expect(one.alarms.get("console-record-rack1-a")).toContain("ENOENT");
  await one.pass(60_000, 10_000);
  expect(one.alarms.size).toBe(0);
  expect(one.file()).toContain("two\n");
  const other = recording({ dir: join(folder.file("plain", "a file"), "console") });
  await other.say("x".repeat(5000));
  await other.pass(100);
  expect(other.alarms.get("console-record-rack1-a")).toContain("ENOTDIR");
});

test("a console is recorded from the agent's start, with who came and went, and to the end", async () => {
  const dir = join(folder.path, "rec");
  const bench = consoleBench({ consoles: { "rack1-a": { device: "/dev/ttyUSB0", record: { dir } } } });
  await bench.start();
  bench.line.say("boot\r\n");
  const alice = bench.attach("local:alice");
  await alice.attachment.write(Buffer.from("hunter2"));
  await settle();
  await bench.stop();
  expect(readFileSync(join(dir, "rack1-a.log"), "utf8")).toBe(
    [
      "[fruit 2026-11-23T07:00:00Z: /dev/ttyUSB0 is open, 115200 8N1]",
      "2026-11-23T07:00:00.000Z boot",
      "[fruit 2026-11-23T07:00:00Z: alice attached and writes]",
      "[fruit 2026-11-23T07:00:00Z: alice detached]",
      "",
    ].join("\n"),
  );
  expect(statSync(join(dir, "rack1-a.log")).mode & 0o777).toBe(0o600);
  expect(statSync(dir).mode & 0o777).toBe(0o700);
});

test("list says how much is on the disk, what earlier runs left too; what is no file any more is not counted", async () => {
  const dir = join(folder.path, "rec");
  mkdirSync(dir);
  writeFileSync(join(dir, "rack1-a.log"), "old\n");
  writeFileSync(join(dir, "rack1-a.1.log"), "older\n");
  writeFileSync(join(dir, "rack1-a.2.log"), "of a run that kept more files\n");
  const record = { dir, files: 2, raw: true };
  const bench = consoleBench({ consoles: { "rack1-a": { device: "/dev/ttyUSB0", record } } });
  const listed = async () => (await bench.ask("console.list", {})).result;
  expect(await listed()).toMatchObject({ consoles: [{ record_bytes: 10, kept_bytes: 0 }] });
  await bench.start();
  bench.line.say("x".repeat(5000));
  await bench.pass(10);
  const bytes = 6 + statSync(join(dir, "rack1-a.log")).size;
  expect(bytes).toBeGreaterThan(5010);
  expect(await listed()).toMatchObject({
    consoles: [{ record_bytes: bytes, kept_bytes: 5000, idle_seconds: 0 }],
  });
  await bench.stop();
  rmSync(dir, { recursive: true });
  writeFileSync(dir, "");
  const [line] = ((await listed()) as { consoles: object[] }).consoles;
  expect(line).not.toHaveProperty("record_bytes");
});

test("without being asked to, nothing is written", async () => {
  const bench = consoleBench();
  await bench.start();
  bench.line.say("x".repeat(10_000));
  await bench.stop();
  expect(existsSync("/run/fruit/console/rack1-a.log")).toBe(false);
});

test.each([
  { what: "colours", said: "\x1b[1;31mred\x1b[0m", text: "red" },
  { what: "a window's title", said: "\x1b]0;root@pi\x07$ ", text: "$ " },
  { what: "cursor movement", said: "a\x1b[2J\x1b[1;1Hb", text: "ab" },
  { what: "newlines of every kind", said: "a\r\nb\nc\r\r\nd", text: "a\nb\nc\nd" },
  { what: "progress on one line", said: "10%\r20%\r\n", text: "10%\n20%\n" },
  { what: "NUL, bell, backspace, delete", said: "a\0\x07b\b\x7fc", text: "abc" },
  { what: "tabs", said: "a\tb", text: "a\tb" },
  { what: "UTF-8", said: "grün 🍓", text: "grün 🍓" },
])("of $what text is left, in whatever pieces it comes", ({ said, text }) => {
  const bytes = Buffer.from(said);
  const whole = new Transcript({ isStamped: false });
  expect(whole.add({ kind: "bytes", bytes })).toBe(text);
  for (let cut = 1; cut < bytes.length; cut++) {
    const parts = new Transcript({ isStamped: false });
    const first = parts.add({ kind: "bytes", bytes: bytes.subarray(0, cut) });
    expect(first + parts.add({ kind: "bytes", bytes: bytes.subarray(cut) })).toBe(text);
  }
});

test("rubbish that begins like a sequence is not waited for, and nothing a terminal obeys is left of it", () => {
  const transcript = new Transcript({ isStamped: false });
  let text = "";
  for (let n = 0; n < 100; n++)
    text += transcript.add({ kind: "bytes", bytes: Buffer.from("\x1b]0;aaaaaaa") });
  expect(text.length).toBeGreaterThan(500);
  expect(text).not.toMatch(/\p{Cc}/u);
});

test("whatever a line says, its text has nothing that a terminal obeys, and is no longer than it should be", () => {
  const random = seeded(5);
  const words = [
    "\x1b[",
    "\x1b]0;",
    "\x1b",
    "\r",
    "\n",
    "\x07",
    "\x9b",
    "1;31m",
    "m",
    "abc",
    "\xc3\x9f",
    "\xff",
    "\0",
    "\x1bP",
  ];
  const transcript = new Transcript({ isStamped: false });
  const stamped = new Transcript({ isStamped: true });
  let said = 0;
  let text = 0;
  for (let round = 0; round < FUZZ; round++) {
    let chunk = "";
    for (let n = random() * 6; n > 0; n--)
      chunk +=
        random() < 0.8
          ? words[Math.floor(random() * words.length)]
          : String.fromCharCode(Math.floor(random() * 256));
    const bytes = Buffer.from(chunk, "latin1");
    const plain = transcript.add({ kind: "bytes", bytes });
    const dated = stamped.add({ kind: "bytes", bytes, at: 0 });
    if (/[^\P{Cc}\t\n]/u.test(plain + dated))
      throw new Error(`${JSON.stringify(chunk)} left ${JSON.stringify(plain)}`);
    if (dated.replaceAll("1970-01-01T00:00:00.000Z ", "") !== plain)
      throw new Error(`${JSON.stringify(chunk)}: ${JSON.stringify(dated)} is not ${JSON.stringify(plain)}`);
    said += bytes.length;
    text += plain.length;
  }
  expect(text).toBeLessThanOrEqual(said);
  expect(text).toBeGreaterThan(said / 10);
});

test.each(["\r", "\n\r", "\x1b", "\x1b[;", "\x1b];a", "\x9b(", "\x1bP"])(
  "a megabyte of %j takes no longer than text does",
  (said) => {
    const transcript = new Transcript({ isStamped: true });
    const bytes = Buffer.from(said.repeat((1 << 20) / said.length), "latin1");
    for (let at = 0; at < bytes.length; at += 16_384)
      transcript.add({ kind: "bytes", bytes: bytes.subarray(at, at + 16_384), at: 0 });
  },
  2000,
);
