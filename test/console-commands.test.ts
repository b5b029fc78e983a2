/** What can be asked of consoles: the rows of the command table, and what is written down of them. */
import { afterEach, beforeEach, expect, jest, test } from "bun:test";
import * as v from "valibot";
import type { Tier } from "../agent/commands.ts";
import type { Channel, Message } from "../agent/console/channel.ts";
import { listTable } from "../agent/console/show.ts";
import { consoleBench, settle } from "./consoles.ts";

beforeEach(() => {
  jest.useFakeTimers();
  jest.setSystemTime(new Date("2026-11-23T07:00:00Z"));
});
afterEach(() => {
  jest.useRealTimers();
});

const TWO = {
  "rack1-a": { device: "/dev/ttyUSB0", outlet: "1.0" },
  "rack1-b": { device: "/dev/ttyUSB1" },
};

async function refusal(promise: Promise<unknown>): Promise<string> {
  return promise.then(
    (outcome) => `no refusal: ${JSON.stringify(outcome)}`,
    (error) => `${error.code}: ${error.message}`,
  );
}

/** A channel whose other end the test holds. */
function channel() {
  const sent: Message[] = [];
  const closed: (string | undefined)[] = [];
  let hear: (message: Message) => void | Promise<void> = () => undefined;
  const end = Promise.withResolvers<string>();
  const own: Channel = {
    send: async (message) => void sent.push(message),
    receive: (heard) => {
      hear = heard;
    },
    ended: end.promise,
    close: (message) => {
      closed.push(message);
      end.resolve(message ?? "left");
    },
  };
  return {
    channel: own,
    sent,
    closed,
    say: async (message: Message) => {
      await hear(message);
      await settle();
    },
    leave: async () => {
      end.resolve("the connection was closed");
      await settle();
    },
    marks: () => sent.flatMap((message) => (message.kind === "mark" ? [message.mark.text] : [])),
    text: () =>
      sent
        .map((message) => (message.kind === "bytes" ? Buffer.from(message.bytes).toString("latin1") : ""))
        .join(""),
  };
}

const SESSION = v.object({ session: v.string() });

test.each<{ verb: string; args: object; tier: Tier; role: string; outlets: string[] }>([
  { verb: "console.list", args: {}, tier: 0, role: "read", outlets: [] },
  { verb: "console.who", args: {}, tier: 0, role: "read", outlets: [] },
  { verb: "console.open", args: { mode: "read" }, tier: 1, role: "console", outlets: ["1.0"] },
  { verb: "console.open", args: {}, tier: 2, role: "console", outlets: ["1.0"] },
  { verb: "console.open", args: { force: true }, tier: 3, role: "console", outlets: ["1.0"] },
  { verb: "console.break", args: {}, tier: 2, role: "console", outlets: ["1.0"] },
  { verb: "console.kick", args: { who: "bob" }, tier: 3, role: "console", outlets: ["1.0"] },
  { verb: "console.set", args: { baud: 9600 }, tier: 2, role: "console", outlets: ["1.0"] },
])("$verb $args is of tier $tier, for the role $role, about the outlet behind the line", (row) => {
  const command = consoleBench({ consoles: TWO }).service.commands.find(({ verb }) => verb === row.verb);
  const isOfAll = row.verb === "console.list" || row.verb === "console.who";
  const args = v.parse(command!.args, { ...(isOfAll ? {} : { console: "rack1-a" }), ...row.args });
  const { tier } = command!;
  expect(typeof tier === "function" ? tier(args) : tier).toBe(row.tier);
  expect<string>(command!.role).toBe(row.role);
  expect<unknown>(command!.outlets?.(args) ?? []).toEqual(row.outlets);
});

test.each([
  { verb: "console.open", args: { mode: "read", force: true } },
  { verb: "console.open", args: { replay_lines: 10_001 } },
  { verb: "console.open", args: { key: "short" } },
  { verb: "console.set", args: { baud: 1 } },
  { verb: "console.set", args: { parity: "mark" } },
  { verb: "console.kick", args: {} },
])("$verb with $args is not understood", ({ verb, args }) => {
  const command = consoleBench().service.commands.find((row) => row.verb === verb);
  expect(v.safeParse(command!.args, { console: "rack1-a", ...args }).success).toBe(false);
});

test("an unknown console is refused with those that there are", async () => {
  const bench = consoleBench({ consoles: TWO });
  for (const verb of ["console.who", "console.open", "console.break"])
    expect(await refusal(bench.ask(verb, { console: "rack9" }))).toBe(
      'unknown-console: no console "rack9"; there are rack1-a, rack1-b',
    );
  expect(await refusal(consoleBench({ consoles: {} }).ask("console.open", { console: "x" }))).toBe(
    "unknown-console: this node has no consoles",
  );
});

test("the table shows how long each line was silent, and how much is kept and recorded, where that is known", () => {
  const line = { v: 1, device: "/dev/ttyUSB0", baud: 9600, state: "up", writer: null, readers: 0 } as const;
  const consoles = [
    { ...line, name: "a", idle_seconds: 3720, kept_bytes: 262_144, record_bytes: 4_000_000, outlet: "1.0" },
    { ...line, name: "b", kept_bytes: 0 },
  ];
  expect(listTable(consoles, 0)).toBe(
    [
      "NAME  DEVICE        BAUD  STATE  WRITER  READERS  SINCE  IDLE   KEPT    RECORD   OUTLET",
      "a     /dev/ttyUSB0  9600  up     -       0        -      1h 2m  262144  4000000  1.0",
      "b     /dev/ttyUSB0  9600  up     -       0        -      -      0       -        -",
      "",
    ].join("\n"),
  );
});

test("list and who say how things are", async () => {
  const bench = consoleBench({ consoles: TWO });
  await bench.start();
  const alice = bench.attach("local:alice");
  bench.attach("key:bob@desk", { door: "mqtt", wants: "read" });
  await bench.pass(90_000);
  await alice.attachment.write(Buffer.from("abc"));
  bench.line.say("hello");
  await bench.pass(2000);
  expect((await bench.ask("console.list", {})).result).toMatchObject({
    consoles: [
      { name: "rack1-a", state: "up", writer: "local:alice", readers: 1, idle_seconds: 2, kept_bytes: 5 },
      { name: "rack1-b", state: "up", writer: null, readers: 0, kept_bytes: 0 },
    ],
  });
  const [, silent] = ((await bench.ask("console.list", {})).result as { consoles: object[] }).consoles;
  expect(silent).not.toHaveProperty("idle_seconds");
  expect((await bench.ask("console.who", {})).result).toEqual({
    attached: [
      {
        console: "rack1-a",
        number: 1,
        who: "local:alice",
        door: "socket",
        writes: true,
        since: "2026-11-23T07:00:00.000Z",
        idle_seconds: 2,
        bytes_in: 3,
        bytes_out: 5,
      },
      {
        console: "rack1-a",
        number: 2,
        who: "key:bob@desk",
        door: "mqtt",
        writes: false,
        since: "2026-11-23T07:00:00.000Z",
        bytes_in: 0,
        bytes_out: 5,
      },
    ],
  });
  expect((await bench.ask("console.who", { console: "rack1-b" })).result).toEqual({ attached: [] });
});

test("break and set are the writer's while there is one, whom a key proves and a local name does not", async () => {
  const bench = consoleBench();
  await bench.start();
  const bob = bench.attach("local:bob");
  const busy =
    "busy: console rack1-a: bob writes since 07:00 UTC; ask bob, or take over with ~f or 'fruit console rack1-a --force --reason TEXT'; whoever it is can give the right back with ~d";
  for (const who of ["local:alice", "local:bob"]) {
    expect(await refusal(bench.ask("console.break", { console: "rack1-a" }, { who }))).toBe(busy);
    expect(await refusal(bench.ask("console.set", { console: "rack1-a", baud: 9600 }, { who }))).toBe(busy);
  }
  expect(bench.line.told).toEqual([]);
  bob.attachment.detach();
  bench.attach("key:bob@desk", { door: "mqtt" });
  const from = { who: "key:bob@desk", door: "mqtt" } as const;
  await bench.ask("console.break", { console: "rack1-a" }, { ...from, reason: "SysRq" });
  const set = () => bench.ask("console.set", { console: "rack1-a", baud: 9600 }, from);
  expect(await set()).toEqual({
    state: "done",
    result: {
      console: "rack1-a",
      baud: 9600,
      data_bits: 8,
      parity: "none",
      stop_bits: 1,
      flow: "none",
    },
  });
  expect((await set()).state).toBe("unchanged");
  expect(bench.line.told).toEqual(["(break 300 ms)", '(change {"baud":9600})']);
});

test("when nobody writes, anybody who may sends a break", async () => {
  const bench = consoleBench();
  await bench.start();
  bench.attach("local:bob", { wants: "read" });
  await bench.ask("console.break", { console: "rack1-a" });
  expect(bench.line.told).toEqual(["(break 300 ms)"]);
});

test("what is asked of a line that is gone fails and says why", async () => {
  const bench = consoleBench();
  await bench.start();
  bench.line.lose();
  await settle();
  for (const [verb, args] of [
    ["console.break", {}],
    ["console.set", { baud: 9600 }],
  ] as const)
    expect(await refusal(bench.ask(verb, { console: "rack1-a", ...args }))).toBe(
      "io: /dev/ttyUSB0 is gone: /dev/ttyUSB0: unplugged",
    );
});

test("kick sends away by either form of the name, and says who is there where nobody is meant", async () => {
  const bench = consoleBench();
  await bench.start();
  const alice = bench.attach("local:alice");
  const bob = bench.attach("key:bob@desk", { door: "mqtt" });
  const kick = (who: string) =>
    bench.ask("console.kick", { console: "rack1-a", who }, { who: "local:carol", reason: "lunch" });
  expect(await kick("mallory")).toEqual({
    state: "unchanged",
    message: "console rack1-a: mallory is not attached; there is 1 (local:alice), 2 (key:bob@desk)",
  });
  expect(await kick("alice")).toEqual({ state: "done" });
  expect(alice.ended).toEqual(["carol sent you away (lunch)"]);
  await settle();
  expect(bob.marks().slice(-2)).toEqual([
    "carol sends alice away (lunch)",
    "alice detached; still here: bob@desk",
  ]);
  expect(await kick("key:bob@desk")).toEqual({ state: "done" });
  expect((await kick("bob@desk")).message).toEndWith("there is nobody");
});

test("of several by one name the one with the number is sent away, and without it nobody", async () => {
  const bench = consoleBench();
  await bench.start();
  bench.attach("local:root").attachment.detach();
  const [first, second] = [bench.attach("local:root"), bench.attach("local:root")];
  const kick = (who: string) =>
    bench.ask("console.kick", { console: "rack1-a", who }, { who: "local:root", reason: "lunch" });
  expect(await refusal(kick("root"))).toBe(
    "bad-args: console rack1-a: root is attached 2 times; name the number: 2 (local:root, socket), 3 (local:root, socket)",
  );
  expect((await kick("1")).state).toBe("unchanged");
  expect([first.ended, second.ended]).toEqual([[], []]);
  expect(await kick("3")).toEqual({ state: "done" });
  expect([first.ended.length, second.ended.length]).toEqual([0, 1]);
  expect(await kick("root")).toEqual({ state: "done" });
  expect(first.ended).toHaveLength(1);
});

test("an opened session begins when its channel is there, once, and ends with it", async () => {
  const bench = consoleBench();
  await bench.start();
  bench.line.say("boot\n");
  const opened = await bench.ask("console.open", { console: "rack1-a" }, { who: "local:alice" });
  const { session } = v.parse(SESSION, opened.result);
  expect(bench.service.consoles.get("rack1-a")?.attached).toEqual([]);
  const alice = channel();
  expect(bench.service.claim(session, alice.channel)).toBe(true);
  await settle();
  expect(alice.text()).toBe("boot\n");
  expect(alice.sent.map(({ kind }) => kind)).toEqual(["mark", "bytes", "view", "mark"]);
  expect(bench.service.claim(session, channel().channel)).toBe(false);
  await alice.say({ kind: "bytes", bytes: Buffer.from("ls\r") });
  expect(bench.line.told).toEqual(["ls\r"]);
  await alice.leave();
  expect(bench.service.consoles.get("rack1-a")?.attached).toEqual([]);
  expect(bench.audited.at(-1)).toMatchObject({ args: { why: "the connection was closed", bytes_in: 3 } });
});

test("a session nobody claims within five seconds is forgotten, and one nobody promised is none", async () => {
  const bench = consoleBench();
  await bench.start();
  const { session } = v.parse(SESSION, (await bench.ask("console.open", { console: "rack1-a" })).result);
  await bench.pass(5100);
  expect(bench.service.claim(session, channel().channel)).toBe(false);
  expect(bench.service.claim("made-up", channel().channel)).toBe(false);
});

test("a session that cannot begin any more when it is claimed ends with the reason", async () => {
  const bench = consoleBench();
  await bench.start();
  const { session } = v.parse(SESSION, (await bench.ask("console.open", { console: "rack1-a" })).result);
  for (let n = 0; n < 16; n++) bench.attach(`local:p${n}`);
  const late = channel();
  bench.service.claim(session, late.channel);
  expect(late.closed[0]).toStartWith("console rack1-a: 16 are attached; see");
  expect(await refusal(bench.ask("console.open", { console: "rack1-a" }))).toStartWith("busy: ");
});

test("a session asks for break, right, who and replay, and is answered; what it may not is said why", async () => {
  const bench = consoleBench();
  await bench.start();
  bench.line.say("one\ntwo\n");
  bench.attach("local:bob");
  const opened = await bench.ask("console.open", { console: "rack1-a", replay_lines: 0 });
  const alice = channel();
  bench.service.claim(v.parse(SESSION, opened.result).session, alice.channel);
  await settle();
  await alice.say({ kind: "ask", n: 1, ask: { do: "break" } });
  await alice.say({ kind: "bytes", bytes: Buffer.from("a") });
  await alice.say({ kind: "bytes", bytes: Buffer.from("b") });
  await alice.say({ kind: "ask", n: 2, ask: { do: "takeover", reason: "mine" } });
  await alice.say({ kind: "ask", n: 3, ask: { do: "break" } });
  await alice.say({ kind: "ask", n: 4, ask: { do: "who" } });
  await alice.say({ kind: "ask", n: 5, ask: { do: "replay", lines: 1 } });
  await alice.say({ kind: "ask", n: 6, ask: { do: "release" } });
  const answers = alice.sent.filter(({ kind }) => kind === "answer");
  const busy =
    "console rack1-a: bob writes since 07:00 UTC; ask bob, or take over with ~f or 'fruit console rack1-a --force --reason TEXT'";
  expect<unknown[]>(answers).toEqual([
    { kind: "answer", n: 1, refused: busy },
    { kind: "answer", n: 2, result: undefined },
    { kind: "answer", n: 3, result: undefined },
    {
      kind: "answer",
      n: 4,
      result: [
        expect.objectContaining({ who: "local:bob", writes: false }),
        expect.objectContaining({ who: "local:alice", writes: true, idle_seconds: 0 }),
      ],
    },
    { kind: "answer", n: 5, result: undefined },
    { kind: "answer", n: 6, result: undefined },
  ]);
  // Each key is not a message of its own
  expect(alice.marks().filter((text) => text.startsWith("not sent"))).toEqual([`not sent: ${busy}`]);
  expect(bench.line.told).toEqual(["(break 300 ms)"]);
  expect(alice.text()).toBe("two\n");
});

test("whoever types faster than the line takes is made to wait", async () => {
  const bench = consoleBench();
  await bench.start();
  const opened = await bench.ask("console.open", { console: "rack1-a" });
  const alice = channel();
  bench.service.claim(v.parse(SESSION, opened.result).session, alice.channel);
  const slow = Promise.withResolvers<void>();
  bench.line.blocked = slow.promise;
  let isHeard = false;
  const heard = alice.say({ kind: "bytes", bytes: Buffer.from("x") }).then(() => {
    isHeard = true;
  });
  await settle();
  expect(isHeard).toBe(false);
  slow.resolve();
  await heard;
  expect(bench.line.told).toEqual(["x"]);
});

test("a session over MQTT is sealed, begins at once and goes by the command's id; without a key it is refused", async () => {
  const bench = consoleBench();
  await bench.start();
  const key = Buffer.alloc(32).toString("base64");
  const from = { who: "key:alice@desk", door: "mqtt" } as const;
  expect(await refusal(bench.ask("console.open", { console: "rack1-a" }, from))).toBe(
    "bad-args: args.key: missing; a session over MQTT is sealed with it",
  );
  expect(await refusal(bench.ask("console.open", { console: "rack1-a", key }, from))).toBe(
    "bad-args: args.key: this node carries no sessions over MQTT; use its socket",
  );
  const alice = channel();
  const asked: unknown[] = [];
  bench.service.useSealed(({ caller, ...opening }) => {
    asked.push({ ...opening, who: caller.who });
    return { channel: alice.channel, answer: { key: "node's", proof: "signed" } };
  });
  expect((await bench.ask("console.open", { console: "rack1-a", key }, from)).result).toEqual({
    session: "cmd-1",
    console: "rack1-a",
    key: "node's",
    proof: "signed",
  });
  expect(asked).toEqual([{ session: "cmd-1", id: "cmd-1", key, who: "key:alice@desk", outlet: "1.0" }]);
  expect(bench.service.consoles.get("rack1-a")?.attached).toMatchObject([
    { who: "key:alice@desk", door: "mqtt", writes: true },
  ]);
});

test("a refused opening asks for no channel", async () => {
  const bench = consoleBench();
  await bench.start();
  bench.service.useSealed(() => {
    throw new Error("nobody should ask");
  });
  bench.locks.set("1.0", {
    outlet: "1.0",
    owner: "local:bob",
    reason: "",
    since: "2026-11-23T07:00:00.000Z",
    until: "2026-11-23T09:00:00.000Z",
  });
  const key = Buffer.alloc(32).toString("base64");
  const open = bench.ask("console.open", { console: "rack1-a", force: true, key }, { reason: "now" });
  expect(await refusal(open)).toStartWith("locked: outlet 1.0: locked by bob");
});

test("no row takes or gives what a line says or is told", () => {
  const rows = consoleBench().service.commands.map(({ verb, args }) => ({
    verb,
    args: Object.keys((args as unknown as { entries?: object }).entries ?? {}).sort(),
  }));
  expect(rows).toEqual([
    { verb: "console.list", args: [] },
    { verb: "console.who", args: ["console"] },
    { verb: "console.open", args: ["console", "force", "key", "mode", "quiet", "replay_lines"] },
    { verb: "console.break", args: ["console"] },
    { verb: "console.kick", args: ["console", "who"] },
    { verb: "console.set", args: ["baud", "console", "data_bits", "flow", "parity", "stop_bits"] },
  ]);
});

test("a session that was promised is one of sixty-four; the next must wait until some were forgotten", async () => {
  const bench = consoleBench();
  await bench.start();
  const open = () => bench.ask("console.open", { console: "rack1-a", mode: "read" });
  for (let n = 0; n < 64; n++) await open();
  expect(await refusal(open())).toBe("busy: 64 sessions are about to begin; try again");
  await bench.pass(5100);
  expect((await open()).state).toBe("done");
});
