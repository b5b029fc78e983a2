/** One line, many who watch: what each is shown, who may write, and what is said of it. */
import { afterEach, beforeEach, expect, jest, test } from "bun:test";
import { encode } from "../agent/console/channel.ts";
import { KeptLine } from "../agent/console/line.ts";
import { HalError, type SerialLine } from "../hal/ports.ts";
import { consoleBench, settle } from "./consoles.ts";
import { failure } from "./fakes.ts";

beforeEach(() => {
  jest.useFakeTimers();
  jest.setSystemTime(new Date("2026-11-23T07:00:00Z"));
});
afterEach(() => {
  jest.useRealTimers();
});

const BASE = { device: "/dev/ttyUSB0", outlet: "1.0" };

/** What a promise was refused with. */
async function refusal(promise: Promise<unknown> | (() => unknown)): Promise<string> {
  try {
    await (typeof promise === "function" ? promise() : promise);
  } catch (error) {
    return `${(error as { code?: string }).code}: ${(error as Error).message}`;
  }
  return "done";
}

test("the line is open from the start, and what came before anybody attached is replayed with its times", async () => {
  const bench = consoleBench();
  await bench.start();
  expect(bench.line.settings).toEqual({
    baud: 115_200,
    data_bits: 8,
    parity: "none",
    stop_bits: 1,
    flow: "none",
  });
  bench.line.say("U-Boot 2026.01\r\n");
  await bench.pass(2000);
  bench.line.say("Starting kernel ...\r\nlogin: ");
  const alice = bench.attach("local:alice", { replayLines: 200 });
  await settle();
  expect(alice.shown()).toBe(
    "[/dev/ttyUSB0 is open, 115200 8N1]U-Boot 2026.01\r\nStarting kernel ...\r\nlogin: [alice attached and writes]",
  );
  const [first, second] = alice.items.filter(({ kind }) => kind === "bytes");
  expect(first).toMatchObject({ at: Date.parse("2026-11-23T07:00:00Z") });
  expect(second).toMatchObject({ at: Date.parse("2026-11-23T07:00:02Z") });
  bench.line.say("more");
  await settle();
  expect(alice.shown()).toBe("more");
});

test("the first view comes when all is replayed, and says whether one may write", async () => {
  const bench = consoleBench();
  await bench.start();
  bench.line.say("a\nb\nc\n");
  const alice = bench.attach("local:alice", { replayLines: 2 });
  await settle();
  expect(alice.items.map(({ kind }) => kind)).toEqual(["bytes", "view", "mark"]);
  expect(alice.items[0]).toMatchObject({ bytes: Uint8Array.from(Buffer.from("b\nc\n")) });
  expect(alice.views()).toEqual([{ mayWrite: true, writer: "local:alice" }]);
});

test("NUL, 8-bit and control bytes pass unchanged in both directions", async () => {
  const bench = consoleBench();
  await bench.start();
  const alice = bench.attach("local:alice");
  const every = Uint8Array.from({ length: 256 }, (_, byte) => byte);
  bench.line.say(every);
  await settle();
  expect(alice.shown()).toEndWith(Buffer.from(every).toString("latin1"));
  await alice.attachment.write(every);
  expect(bench.line.told).toEqual([Buffer.from(every).toString("latin1")]);
});

test("one writes, the others read, and are told who writes, since when, and the way out", async () => {
  const bench = consoleBench();
  await bench.start();
  const alice = bench.attach("local:alice");
  await bench.pass(60_000);
  const bob = bench.attach("key:bob@desk");
  await settle();
  expect(bob.marks()).toEqual([
    "bob@desk attached and reads; also here: alice",
    "you read: alice writes since 07:00 UTC; ask alice, or take over with ~f or 'fruit console rack1-a --force --reason TEXT'",
  ]);
  expect(bob.views().at(-1)).toEqual({ mayWrite: false, writer: "local:alice" });
  expect(await refusal(bob.attachment.write(Buffer.from("rm")))).toStartWith(
    "busy: console rack1-a: alice writes since 07:00 UTC; ask alice",
  );
  expect(await refusal(bob.attachment.sendBreak())).toStartWith("busy: ");
  expect(await refusal(bob.attachment.change({ baud: 9600 }))).toStartWith("busy: ");
  expect(await refusal(bob.attachment.setLines({ dtr: false }))).toStartWith("busy: ");
  await alice.attachment.write(Buffer.from("ls\r"));
  expect(bench.line.told).toEqual(["ls\r"]);
  expect(alice.marks().at(-1)).toBe("bob@desk attached and reads; also here: alice");
});

test("whoever takes over writes; the one before is told who and why, and reads on", async () => {
  const bench = consoleBench();
  await bench.start();
  const alice = bench.attach("local:alice");
  const bob = bench.attach("local:bob", { force: "kernel test" });
  bench.line.say("x");
  await settle();
  expect(alice.shown()).toContain("[bob took over from alice (kernel test)]");
  expect(alice.shown()).toBe("");
  expect(alice.views().at(-1)).toEqual({ mayWrite: false, writer: "local:bob" });
  expect(bob.views().at(-1)).toEqual({ mayWrite: true, writer: "local:bob" });
  expect(await refusal(alice.attachment.write(Buffer.from("a")))).toStartWith("busy: console rack1-a: bob");
  alice.attachment.takeOver("mine again");
  await alice.attachment.write(Buffer.from("a"));
  expect(await refusal(bob.attachment.write(Buffer.from("b")))).toStartWith("busy: console rack1-a: alice");
  expect(bench.line.told).toEqual(["a"]);
});

test("who lets others write, or leaves, frees the console; nobody becomes writer by typing by mistake", async () => {
  const bench = consoleBench();
  await bench.start();
  const alice = bench.attach("local:alice");
  const bob = bench.attach("local:bob");
  await settle();
  alice.attachment.release();
  await settle();
  expect(bob.marks().at(-1)).toBe("alice only reads now: lets others write");
  expect(await refusal(bob.attachment.write(Buffer.from("b")))).toBe(
    "busy: console rack1-a: you only read; nobody writes, so take over with ~f",
  );
  expect(await refusal(() => bob.attachment.takeOver(" "))).toBe("bad-args: taking over needs a reason");
  bob.attachment.takeOver("she left");
  await bob.attachment.write(Buffer.from("b"));
  bob.attachment.detach();
  expect(bench.service.consoles.get("rack1-a")?.state).toMatchObject({ writer: null, readers: 1 });
  expect(await refusal(bob.attachment.write(Buffer.from("b")))).toBe("stopping: the session is over");
  expect(await refusal(() => bob.attachment.takeOver("again"))).toBe("stopping: the session is over");
  expect(bench.line.told).toEqual(["b"]);
});

test("a program that cannot ask writes when nobody else does", async () => {
  const bench = consoleBench();
  await bench.start();
  const alice = bench.attach("local:alice");
  const raw = bench.attach("raw:127.0.0.1:5", { door: "raw" });
  expect(bench.audited).toEqual([
    {
      src: "raw",
      who: "raw:127.0.0.1:5",
      verb: "console.attach",
      args: { console: "rack1-a" },
      decision: "allowed",
    },
  ]);
  expect(await refusal(raw.attachment.write(Buffer.from("x")))).toStartWith("busy: ");
  alice.attachment.detach();
  const idle = bench.attach("raw:127.0.0.1:6", { door: "raw" });
  await raw.attachment.write(Buffer.from("y"));
  expect(bench.line.told).toEqual(["y"]);
  expect([raw, idle].map(({ attachment }) => attachment.mayWrite)).toEqual([true, false]);
});

test("a writer who types nothing for the limit becomes a reader, to the second, and typing begins it anew", async () => {
  const bench = consoleBench({ consoles: { "rack1-a": { ...BASE, writer_idle_seconds: 60 } } });
  await bench.start();
  const alice = bench.attach("local:alice");
  await bench.pass(59_000);
  await alice.attachment.write(Buffer.from("x"));
  await bench.pass(59_900);
  expect(alice.attachment.mayWrite).toBe(true);
  await bench.pass(200);
  expect(alice.attachment.mayWrite).toBe(false);
  expect(alice.marks().at(-1)).toBe("alice only reads now: typed nothing for 60 s");
});

test("with no limit a writer stays one", async () => {
  const bench = consoleBench({ consoles: { "rack1-a": { ...BASE, writer_idle_seconds: 0 } } });
  await bench.start();
  const alice = bench.attach("local:alice");
  await bench.pass(100_000);
  expect(alice.attachment.mayWrite).toBe(true);
});

test("sixteen may attach; the next is told what to do", async () => {
  const bench = consoleBench();
  await bench.start();
  const all = Array.from({ length: 16 }, (_, n) => bench.attach(`local:p${n}`, { wants: "read" }));
  expect(await refusal(() => bench.attach("local:late"))).toBe(
    "busy: console rack1-a: 16 are attached; see 'fruit console who', or send one away with 'fruit console kick'",
  );
  all[3]?.attachment.detach();
  bench.attach("local:late");
});

test("a reader who stops is skipped with the exact count at the place; the ring and the others lose nothing", async () => {
  const bench = consoleBench();
  await bench.start();
  const alice = bench.attach("local:alice");
  const bob = bench.attach("local:bob");
  await settle();
  bob.stop(true);
  bench.line.say("first");
  await settle();
  alice.shown();
  bob.shown();
  // A minute of 115200 baud
  const all: string[] = [];
  for (let n = 0; n < 600; n++) {
    const chunk = `${n}`.padStart(8, "0").repeat(144);
    all.push(chunk);
    bench.line.say(chunk);
    await bench.pass(100);
  }
  const whole = all.join("");
  expect(alice.shown()).toBe(whole);
  expect(bob.shown()).toBe("");
  expect(bench.service.consoles.get("rack1-a")).toMatchObject({
    numbers: { rx_bytes_total: 5 + whole.length, skipped_bytes_total: whole.length - 65_536 },
  });
  bob.stop(false);
  await settle();
  expect(bob.shown()).toBe(`[${whole.length - 65_536} bytes skipped]${whole.slice(-65_536)}`);
  bob.attachment.detach();
  expect(bench.service.consoles.get("rack1-a")).toMatchObject({
    numbers: { skipped_bytes_total: whole.length - 65_536 },
  });
  const carol = bench.attach("local:carol", { wants: "read", replayLines: 10_000 });
  await settle();
  expect(carol.shown()).toBe(
    `${whole.slice(-262_144)}[bob detached; still here: alice][carol attached and reads; also here: alice]`,
  );
});

test("ten megabytes without a newline are shown whole to who reads, and take no more memory", async () => {
  const bench = consoleBench();
  await bench.start();
  const alice = bench.attach("local:alice");
  await settle();
  alice.shown();
  const chunk = new Uint8Array(65_536).fill(0x78);
  let shown = 0;
  for (let n = 0; n < 160; n++) {
    bench.line.say(chunk);
    await settle();
    shown += alice.shown().length;
    alice.items.length = 0;
    alice.shown();
  }
  expect(shown).toBe(160 * 65_536);
  expect(bench.service.consoles.get("rack1-a")).toMatchObject({ numbers: { skipped_bytes_total: 0 } });
});

test("a reader whose door fails is gone, and nobody else is troubled", async () => {
  const bench = consoleBench();
  await bench.start();
  const alice = bench.attach("local:alice");
  const bob = bench.attach("local:bob", {
    take: async (item) => {
      if (item.kind === "bytes") throw new Error("no room in the channel");
    },
  });
  bench.line.say("x");
  await settle();
  bench.line.say("y");
  await settle();
  expect(alice.shown()).toContain("x[bob detached; still here: alice]y");
  expect(bob.ended).toEqual(["no room in the channel"]);
  expect(bench.events.at(-1)).toMatchObject({ type: "console.detached", why: "no room in the channel" });
});

test("a reader may leave, or be sent away, while it is being shown something", async () => {
  const bench = consoleBench();
  await bench.start();
  const bob = bench.attach("local:bob");
  await settle();
  bob.stop(true);
  bench.line.say("x");
  bob.attachment.detach();
  bench.line.say("y");
  bob.stop(false);
  await settle();
  expect(bob.shown()).toEndWith("x");
});

test("a line that goes away is a mark, a state and an alarm; it is tried at 1, 3, 7, 15, 31, 61 s, and comes back by itself", async () => {
  const bench = consoleBench();
  await bench.start();
  const alice = bench.attach("local:alice");
  await bench.pass(40_000);
  bench.line.failing = new HalError("absent", "/dev/ttyUSB0: no such device");
  const lostAt = performance.now();
  bench.line.lose();
  await settle();
  expect(alice.marks().at(-1)).toBe("gone: /dev/ttyUSB0: unplugged");
  expect(bench.alarms.get("console-rack1-a")).toBe(
    "warning: console rack1-a: /dev/ttyUSB0: unplugged; it is tried again until it is there",
  );
  expect((await failure(alice.attachment.write(Buffer.from("x")))).message).toBe(
    "/dev/ttyUSB0 is gone: /dev/ttyUSB0: unplugged",
  );
  await bench.pass(92_000);
  expect(bench.line.opened.slice(1).map((at) => Math.round((at - lostAt) / 1000))).toEqual([
    1, 3, 7, 15, 31, 61, 91,
  ]);
  expect(bench.said.get("state/console/rack1-a")).toMatchObject({
    state: "gone",
    error: "/dev/ttyUSB0: no such device",
    writer: "local:alice",
  });
  // Attempts that fail are not news
  expect(alice.marks().filter((text) => text.startsWith("gone"))).toHaveLength(1);
  bench.line.failing = undefined;
  await bench.pass(31_000);
  expect(alice.marks().at(-1)).toBe("/dev/ttyUSB0 is open, 115200 8N1");
  expect(bench.alarms.size).toBe(0);
  expect(bench.said.get("state/console/rack1-a")).toMatchObject({ state: "up" });
  await alice.attachment.write(Buffer.from("x"));
  bench.line.say("hello");
  await settle();
  expect(alice.shown()).toEndWith("hello");
  expect(bench.service.errors()).toBe(1);
});

test("a line that is held by somebody else at the start is an alarm that says so, and is had later", async () => {
  const bench = consoleBench();
  bench.line.failing = new HalError("busy", "/dev/ttyUSB0: is used by minicom");
  await bench.start();
  expect(bench.alarms.get("console-rack1-a")).toContain("is used by minicom; it is tried again");
  const alice = bench.attach("local:alice");
  bench.line.failing = undefined;
  await bench.pass(1000);
  expect(alice.marks().at(-1)).toBe("/dev/ttyUSB0 is open, 115200 8N1");
  expect(bench.service.errors()).toBe(0);
});

test("a line that is lost again and again is not tried ever faster", async () => {
  const bench = consoleBench();
  await bench.start();
  for (let n = 0; n < 5; n++) {
    bench.line.lose();
    await settle();
    await bench.pass(2 ** n * 1000);
  }
  const [, ...again] = bench.line.opened;
  const apart = again.map((at, n) => Math.round((at - (again[n - 1] ?? 0)) / 1000));
  expect(apart.slice(1)).toEqual([2, 4, 8, 16]);
});

test("the kernel's own console is never opened, under whatever name, and the alarm says what to do", async () => {
  const bench = consoleBench({
    consoles: {
      serial: { device: "/dev/ttyAMA0" },
      // A link that leads to it, as /dev/serial0 does
      link: { device: "/dev/stdout" },
      other: { device: "/dev/ttyUSB0" },
      main: { device: "/dev/console" },
    },
    kernelConsoles: ["/dev/ttyAMA0", await linkTarget("/dev/stdout")],
  });
  await bench.start();
  await bench.pass(120_000);
  expect([...bench.lines].filter(([, line]) => line.opened.length > 0).map(([device]) => device)).toEqual([
    "/dev/ttyUSB0",
  ]);
  expect(bench.alarms.get("console-serial")).toBe(
    "critical: console serial: /dev/ttyAMA0 is the kernel's own console and is not opened; name another device, or take it out of the kernel's command line (console=), then start the agent again",
  );
  expect(bench.alarms.get("console-link")).toStartWith("critical: console link: /dev/stdout (");
  expect(bench.alarms.get("console-main")).toStartWith("critical: console main: /dev/console is");
});

async function linkTarget(path: string): Promise<string> {
  const { realpath } = await import("node:fs/promises");
  return realpath(path).catch(() => path);
}

test("somebody else's lock makes the console read-only, in power's own words, and force does not help", async () => {
  const bench = consoleBench();
  await bench.start();
  bench.locks.set("1.0", {
    outlet: "1.0",
    owner: "local:bob",
    reason: "kernel test",
    since: "2026-11-23T06:30:00.000Z",
    until: "2026-11-23T09:00:00.000Z",
  });
  const words =
    "locked by bob (kernel test) since 06:30 UTC until 09:00 UTC; ask bob, wait, or 'fruit unlock 1.0 --kick --reason TEXT'";
  const alice = bench.attach("local:alice");
  await settle();
  expect(alice.marks().at(-1)).toBe(`you read: outlet 1.0 is ${words}`);
  expect(await refusal(alice.attachment.write(Buffer.from("x")))).toBe(`locked: outlet 1.0: ${words}`);
  expect(await refusal(() => alice.attachment.takeOver("urgent"))).toBe(`locked: outlet 1.0: ${words}`);
  expect(await refusal(() => bench.attach("local:carol", { force: "urgent" }))).toBe(
    `locked: outlet 1.0: ${words}`,
  );
  for (const verb of ["console.break", "console.set"])
    expect(await refusal(bench.ask(verb, { console: "rack1-a" }))).toBe(`locked: outlet 1.0: ${words}`);
  const bob = bench.attach("local:bob");
  await bob.attachment.write(Buffer.from("y"));
  expect(bench.line.told).toEqual(["y"]);
});

test("a writer whose outlet another locks becomes a reader; so does one whose lock is taken away", async () => {
  const bench = consoleBench();
  await bench.start();
  const alice = bench.attach("local:alice");
  const lock = {
    outlet: "1.0",
    owner: "local:bob",
    reason: "",
    since: "2026-11-23T07:00:00.000Z",
    until: "2026-11-23T09:00:00.000Z",
  };
  bench.locks.set("1.0", lock);
  bench.happen("1.0", { kind: "lock", what: "1.0 locked by bob until 09:00 UTC" });
  await settle();
  expect(alice.marks().slice(-2)).toEqual([
    "1.0 locked by bob until 09:00 UTC",
    "alice only reads now: outlet 1.0 is locked by bob since 07:00 UTC until 09:00 UTC; ask bob, wait, or 'fruit unlock 1.0 --kick --reason TEXT'",
  ]);
  expect(alice.views().at(-1)).toEqual({ mayWrite: false, writer: null });
  bench.locks.set("1.0", { ...lock, owner: "local:alice" });
  alice.attachment.takeOver("mine");
  bench.locks.delete("1.0");
  bench.happen("1.0", { kind: "lock", what: "bob took the lock of alice on 1.0", lost: "local:alice" });
  expect(alice.attachment.mayWrite).toBe(false);
  alice.attachment.takeOver("mine");
  // One that ended by itself leaves her where anybody may write
  bench.happen("1.0", { kind: "lock", what: "the lock of alice on 1.0 has ended" });
  expect(alice.attachment.mayWrite).toBe(true);
});

test("what happens to its outlet is marked at the moment, and to no other", async () => {
  const bench = consoleBench({
    consoles: { "rack1-a": BASE, "rack1-b": { device: "/dev/ttyUSB1", outlet: "1.1" } },
  });
  await bench.start();
  const alice = bench.attach("local:alice");
  const bob = bench.attach("local:bob", { console: "rack1-b" });
  await settle();
  alice.shown();
  bob.shown();
  bench.line.say("bye");
  bench.happen("1.0", { kind: "power", what: "off by alice (kernel test)" });
  bench.line.say("boot");
  await settle();
  expect(alice.shown()).toBe("bye[power: off by alice (kernel test)]boot");
  expect(bob.shown()).toBe("");
});

test("a mark is one line of printable text, whatever somebody gives as a reason", async () => {
  const bench = consoleBench();
  await bench.start();
  const alice = bench.attach("local:alice");
  bench.attach("local:bob", { force: "x]\r\n\x1b[2Jroot" });
  await settle();
  expect(alice.shown()).toContain("[bob took over from alice (x]???[2Jroot)]");
});

test("a mark is bounded, and fits a message, however long a reason is", async () => {
  const bench = consoleBench();
  await bench.start();
  const alice = bench.attach("local:alice");
  const bob = bench.attach("local:bob");
  bob.attachment.takeOver("x".repeat(70_000));
  await settle();
  expect(alice.marks().at(-1)).toMatch(/^bob took over from alice \(x{900,1000}…$/);
  for (const item of alice.items) if (item.kind === "mark") encode(item);
  expect(bench.service.consoles.get("rack1-a")?.attached).toHaveLength(2);
});

test("who takes the right from whom and why is on record and seen by all, also where nobody had it", async () => {
  const bench = consoleBench();
  await bench.start();
  const alice = bench.attach("local:alice");
  const bob = bench.attach("key:bob@desk", { door: "mqtt" });
  bob.attachment.takeOver("kernel test");
  bob.attachment.takeOver("has it already");
  bob.attachment.release();
  alice.attachment.takeOver("he left");
  await settle();
  expect(bob.marks().slice(-3)).toEqual([
    "bob@desk took over from alice (kernel test)",
    "bob@desk only reads now: lets others write",
    "alice writes now (he left)",
  ]);
  expect(bench.audited.map(({ who, verb, args }) => ({ who, verb, args }))).toEqual([
    {
      who: "key:bob@desk",
      verb: "console.takeover",
      args: { console: "rack1-a", from: "local:alice", reason: "kernel test" },
    },
    {
      who: "local:alice",
      verb: "console.takeover",
      args: { console: "rack1-a", from: null, reason: "he left" },
    },
  ]);
});

test("a break that the line did not take is no mark", async () => {
  const bench = consoleBench();
  await bench.start();
  const alice = bench.attach("local:alice");
  bench.line.lose();
  await settle();
  expect(await refusal(alice.attachment.sendBreak())).toStartWith("io: ");
  expect(alice.marks().filter((text) => text.startsWith("break"))).toEqual([]);
});

test("an errand leaves no marks of coming and going, only of what it typed, and is on record", async () => {
  const bench = consoleBench();
  await bench.start();
  const alice = bench.attach("local:alice", { wants: "read" });
  await settle();
  const [told, views] = [alice.marks().length, alice.views().length];
  bench.attach("local:bob", { quiet: true, wants: "read" }).attachment.detach();
  await settle();
  expect([alice.marks().length, alice.views().length]).toEqual([told, views]);
  const carol = bench.attach("local:carol", { quiet: true, reason: "script" });
  expect(bench.service.consoles.get("rack1-a")?.attached).toHaveLength(2);
  await carol.attachment.write(Buffer.from("ls\r"));
  carol.attachment.detach();
  await settle();
  expect(alice.marks().slice(told)).toEqual(["carol sent 3 bytes (script)"]);
  expect(
    alice
      .views()
      .slice(views)
      .map(({ writer }) => writer),
  ).toEqual(["local:carol", null]);
  expect(bench.events.map(({ who }) => who)).toEqual(["local:alice"]);
  expect(bench.audited.map(({ verb, who }) => `${verb} ${who}`)).toEqual([
    "console.session local:bob",
    "console.session local:carol",
  ]);
});

test("breaks and settings are the writer's, marked, on record, and hold when the line comes back", async () => {
  const bench = consoleBench();
  await bench.start();
  const alice = bench.attach("local:alice");
  await alice.attachment.sendBreak();
  await alice.attachment.change({ baud: 9600, parity: "even" });
  await alice.attachment.change({ baud: 9600 });
  await alice.attachment.setLines({ dtr: false });
  await alice.attachment.setLines({ dtr: false, rts: true });
  await settle();
  expect(bench.line.told).toEqual([
    "(break 300 ms)",
    '(change {"baud":9600,"parity":"even"})',
    '(lines {"dtr":false})',
  ]);
  expect(alice.marks().slice(-3)).toEqual([
    "break by alice",
    "115200 8N1 became 9600 8E1 by alice",
    "DTR on, RTS on became DTR off, RTS on by alice",
  ]);
  expect(bench.audited.map(({ verb, who, args }) => ({ verb, who, args }))).toEqual([
    { verb: "console.break", who: "local:alice", args: { console: "rack1-a" } },
    { verb: "console.set", who: "local:alice", args: { console: "rack1-a", baud: 9600, parity: "even" } },
    { verb: "console.lines", who: "local:alice", args: { console: "rack1-a", dtr: false } },
  ]);
  bench.line.lose();
  await settle();
  await bench.pass(1000);
  expect(bench.line.settings).toMatchObject({ baud: 9600, parity: "even" });
  expect(bench.line.told.at(-1)).toBe('(lines {"dtr":false,"rts":true})');
  expect(bench.service.consoles.get("rack1-a")?.state.baud).toBe(9600);
});

test("who toggles a line in a loop turns neither the record nor the audit log over", async () => {
  const bench = consoleBench();
  await bench.start();
  const { attachment } = bench.attach("rfc2217:127.0.0.1:5", { door: "rfc2217" });
  for (let n = 0; n < 60; n++) await attachment.setLines({ dtr: n % 2 === 1 });
  expect(await refusal(attachment.setLines({ dtr: false }))).toStartWith("busy: too many breaks and changes");
  expect(await refusal(attachment.sendBreak())).toStartWith("busy: ");
  expect(bench.audited.filter(({ verb }) => verb === "console.lines")).toHaveLength(60);
});

test("the fact of a session is on record with its bytes and its end; what was typed is nowhere", async () => {
  const bench = consoleBench();
  await bench.start();
  const alice = bench.attach("key:alice@desk", { door: "mqtt" });
  await alice.attachment.write(Buffer.from("hunter2\r"));
  bench.line.say("Password: \r\n");
  await bench.pass(5000);
  alice.attachment.detach("the connection was closed");
  expect(bench.audited).toEqual([
    {
      src: "mqtt",
      who: "key:alice@desk",
      verb: "console.session",
      args: { console: "rack1-a", bytes_in: 8, bytes_out: 12, why: "the connection was closed" },
      decision: "allowed",
      duration_s: 5,
    },
  ]);
  expect(bench.events.map(({ type, message }) => `${type} ${message}`)).toEqual([
    "console.attached alice@desk attached to console rack1-a",
    "console.detached alice@desk detached from console rack1-a",
  ]);
  expect(JSON.stringify([bench.audited, bench.events, bench.logged, [...bench.said]])).not.toContain(
    "hunter2",
  );
  alice.attachment.detach();
  expect(bench.audited).toHaveLength(1);
});

test("the state is published on change, not per byte, and not more than about once a second", async () => {
  const bench = consoleBench();
  await bench.start();
  await bench.pass(5000);
  const before = bench.states.length;
  for (let n = 0; n < 100; n++) bench.line.say("x".repeat(1000));
  await bench.pass(5000);
  expect(bench.states.length).toBe(before);
  for (let n = 0; n < 40; n++) {
    bench.attach("local:alice").attachment.detach();
    await bench.pass(100);
  }
  await bench.pass(5000);
  expect(bench.states.length - before).toBeLessThanOrEqual(6);
  bench.attach("local:bob");
  await bench.pass(2000);
  expect(bench.said.get("state/console/rack1-a")).toEqual({
    v: 1,
    name: "rack1-a",
    device: "/dev/ttyUSB0",
    baud: 115_200,
    outlet: "1.0",
    state: "up",
    writer: "local:bob",
    readers: 0,
    since: "2026-11-23T07:00:00.000Z",
  });
});

test("numbers are published at their interval, with the skipped bytes of who is stopped right now", async () => {
  const bench = consoleBench({ teleSeconds: 60 });
  await bench.start();
  const alice = bench.attach("local:alice");
  await settle();
  alice.stop(true);
  bench.line.say("x");
  await settle();
  bench.line.say(new Uint8Array(70_000));
  await alice.attachment.write(Buffer.from("abc"));
  await bench.pass(31_000);
  expect(bench.said.get("tele/console/rack1-a")).toEqual({
    ts: Date.parse("2026-11-23T07:00:30Z") / 1000,
    up: 1,
    rx_bytes_total: 70_001,
    tx_bytes_total: 3,
    skipped_bytes_total: 70_000 - 65_536,
    readers: 1,
  });
  bench.said.delete("tele/console/rack1-a");
  await bench.pass(58_000);
  expect(bench.said.has("tele/console/rack1-a")).toBe(false);
  await bench.pass(2000);
  expect(bench.said.has("tele/console/rack1-a")).toBe(true);
});

test("when the agent stops everybody is told, the line is closed, and nobody can attach any more", async () => {
  const bench = consoleBench();
  await bench.start();
  const alice = bench.attach("local:alice");
  const bob = bench.attach("local:bob");
  bob.stop(true);
  const startedAt = performance.now();
  await bench.stop();
  expect(performance.now() - startedAt).toBeLessThan(1000);
  expect([alice.ended, bob.ended]).toEqual([["the agent stops"], ["the agent stops"]]);
  expect(bench.line.closed).toBe(1);
  expect(bench.audited.map(({ verb }) => verb)).toEqual(["console.session", "console.session"]);
  expect(bench.said.get("state/console/rack1-a")).toMatchObject({ writer: null, readers: 0 });
  expect(await refusal(() => bench.attach("local:carol"))).toBe("stopping: the agent stops");
});

test("the agent stops in time though a line cannot be opened, or its driver does not let go", async () => {
  const bench = consoleBench({
    consoles: { "rack1-a": BASE, "rack1-b": { device: "/dev/ttyUSB1" } },
  });
  const stuck = bench.lines.get("/dev/ttyUSB1");
  if (!stuck) throw new Error("no second line");
  const never = new Promise<never>(() => undefined);
  bench.line.open = () => never;
  const open = stuck.open.bind(stuck);
  stuck.open = async (...how) => ({ ...(await open(...how)), close: () => never });
  await bench.start();
  const startedAt = performance.now();
  await bench.stop();
  expect(performance.now() - startedAt).toBeLessThan(1500);
});

test("a writer who loses the right while the line is slow has what was sent before written, and no more", async () => {
  const bench = consoleBench();
  await bench.start();
  const alice = bench.attach("local:alice");
  const slow = Promise.withResolvers<void>();
  bench.line.blocked = slow.promise;
  const first = alice.attachment.write(Buffer.from("first"));
  const bob = bench.attach("local:bob", { force: "mine" });
  const second = bob.attachment.write(Buffer.from("second"));
  expect(await refusal(alice.attachment.write(Buffer.from("third")))).toStartWith("busy: ");
  slow.resolve();
  await Promise.all([first, second]);
  expect(bench.line.told).toEqual(["first", "second"]);
});

test("a line whose driver hangs while it is opened is said to be gone, and up when it comes back", async () => {
  const opening = Promise.withResolvers<SerialLine>();
  const told: string[] = [];
  const line = new KeptLine({
    device: "/dev/ttyUSB0",
    settings: { baud: 9600, data_bits: 8, parity: "none", stop_bits: 1, flow: "none" },
    hal: { openLine: () => opening.promise },
    kernelConsoles: [],
    events: {
      bytes: () => undefined,
      up: () => told.push("up"),
      gone: (why) => told.push(why),
    },
  });
  const stop = new AbortController();
  const kept = line.keep(stop.signal);
  await settle();
  jest.advanceTimersByTime(9_999);
  expect(told).toEqual([]);
  jest.advanceTimersByTime(1);
  expect(told).toEqual(["/dev/ttyUSB0 was not opened within 10 s: its driver hangs"]);
  opening.resolve({ close: async () => undefined } as SerialLine);
  await settle();
  expect(told.at(-1)).toBe("up");
  stop.abort();
  await kept;
});
