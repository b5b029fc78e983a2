/** `fruit console` in scripts: files and pipes instead of a person, `send`, `log`, and what the others print. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { join } from "node:path";
import type { ConsoleState } from "../agent/messages.ts";
import { aedes } from "./broker.ts";
import { NODE, SITE } from "./doors.ts";
import { CONSOLE, farNode, newHome, TECH } from "./faraway.ts";
import { type Agent, FRUIT, fruit, scratch, startAgent, until } from "./node.ts";
import { ScriptedNode, type Session, Visitor } from "./visitor.ts";

setDefaultTimeout(30_000);

const folder = scratch();
afterAll(() => folder[Symbol.dispose]());

let nodes = 0;
const node = () => new ScriptedNode(join(folder.path, `${nodes++}.sock`));

/** Starts a command line whose streams are pipes. */
function start(there: ScriptedNode, args: string[], stdin: Uint8Array = new Uint8Array()) {
  const child = Bun.spawn([...FRUIT.command, "console", ...args], {
    stdin,
    stdout: "pipe",
    stderr: "pipe",
    env: { PATH: process.env.PATH ?? "", USER: "alice", FRUIT_SOCKET: there.path, ...FRUIT.env },
  });
  return Object.assign(child, {
    ended: Promise.all([
      new Response(child.stdout).bytes(),
      new Response(child.stderr).text(),
      child.exited,
    ]).then(([out, err, exit]) => ({ exit, out: Buffer.from(out).toString(), bytes: Buffer.from(out), err })),
  });
}

describe("a file as the keyboard", () => {
  test("is all on the line, as it is, and what the line says to that is waited for", async () => {
    using there = node();
    const file = Buffer.from(Array.from({ length: 300_000 }, (_, n) => (n * n) % 256));
    there.begins = async (session: Session) => {
      await session.say("before\n");
      await session.look();
      await session.mark("a mark");
      // Escapes are text in a file; the answer comes when all of it was heard
      session.answers = () => {
        void session.say(Uint8Array.of(0xff, 0x00, 0x0a));
        return { result: [] };
      };
    };
    const { exit, bytes, err } = await start(there, ["rack1-a"], Buffer.concat([Buffer.from("\r~.\r"), file]))
      .ended;
    expect(exit).toBe(0);
    expect(there.sessions[0]?.heard.equals(Buffer.concat([Buffer.from("\r~.\r"), file]))).toBe(true);
    expect(bytes.equals(Buffer.concat([Buffer.from("before\n"), Uint8Array.of(0xff, 0x00, 0x0a)]))).toBe(
      true,
    );
    expect(err).toMatch(
      /^\[fruit [^ ]+: rack1-a: \/dev\/ttyUSB0, 115200 baud; you may type\]\n\[fruit 2026-11-23T07:00:00Z: a mark\]\n$/,
    );
  });

  test("goes nowhere while somebody else writes, which is exit 3", async () => {
    using there = node();
    there.begins = (session) => session.look({ writer: "key:bob@desk" }, false);
    const { exit, err } = await start(there, ["rack1-a"], Buffer.from("reboot\r")).ended;
    expect({ exit, err: err.split("\n").at(-2) }).toEqual({
      exit: 3,
      err: "fruit: console rack1-a: not all was sent: bob@desk writes",
    });
    expect(there.sessions[0]?.heard).toHaveLength(0);
  });

  test("goes nowhere when the line is gone, which is exit 1", async () => {
    using there = node();
    there.begins = (session) => session.look({ state: "gone", error: "unplugged" });
    const { exit, err } = await start(there, ["rack1-a"], Buffer.from("reboot\r")).ended;
    expect({ exit, err: err.split("\n").at(-2) }).toEqual({
      exit: 1,
      err: "fruit: console rack1-a: not all was sent: the line is gone (unplugged)",
    });
  });

  test("that is empty leaves at once, with what was said before", async () => {
    using there = node();
    there.begins = async (session) => {
      await session.say("before");
      await session.look();
    };
    expect(await start(there, ["rack1-a"]).ended).toMatchObject({ exit: 0, out: "before" });
  });

  test("is not read by whoever only looks, who stays until the console ends", async () => {
    using there = node();
    const running = start(there, ["rack1-a", "--ro"], Buffer.from("reboot\r"));
    const session = await there.session();
    await Bun.sleep(300);
    await session.say("later");
    session.channel.close("the agent stops");
    expect(await running.ended).toMatchObject({ exit: 1, out: "later" });
    expect(session.heard).toHaveLength(0);
    expect(there.asked[0]?.args).toMatchObject({ mode: "read" });
  });
});

describe("whoever does not read any more ends", () => {
  /** Runs a command line whose output only two lines of are read; resolves when it has ended itself. */
  async function head(there: ScriptedNode, words: string[]): Promise<string> {
    const child = Bun.spawn(["sh", "-c", `"$@" | head -n 2`, "sh", ...FRUIT.command, ...words], {
      stdout: "pipe",
      stderr: "ignore",
      env: { PATH: process.env.PATH ?? "", FRUIT_SOCKET: there.path, ...FRUIT.env },
    });
    const out = await new Response(child.stdout).text();
    // The shell waits for both
    await child.exited;
    return out;
  }

  /** Two thousand of these are a megabyte, more than any pipe on the way holds. */
  const lineOf = (n: number) => (n < 2 ? `${n}\n` : `${n} ${"x".repeat(500)}\n`);

  test("a log that is followed", async () => {
    using there = node();
    there.begins = async (session) => {
      await session.look();
      for (let line = 0; line < 2000; line++) await session.say(lineOf(line));
    };
    expect(await head(there, ["console", "log", "rack1-a", "-f"])).toBe("0\n1\n");
    expect(await there.sessions[0]?.channel.ended).toBeDefined();
  });

  test("a log that is longer than what is read of it, without an error", async () => {
    using there = node();
    there.begins = async (session) => {
      for (let line = 0; line < 2000; line++) await session.say(lineOf(line));
      await session.look();
    };
    const child = Bun.spawn(
      [
        "bash",
        "-c",
        `"$@" | head -n 1; echo "\${PIPESTATUS[0]}"`,
        "bash",
        ...FRUIT.command,
        "console",
        "log",
        "rack1-a",
      ],
      {
        stdout: "pipe",
        stderr: "pipe",
        env: { PATH: process.env.PATH ?? "", FRUIT_SOCKET: there.path, ...FRUIT.env },
      },
    );
    expect(await new Response(child.stdout).text()).toBe("0\n0\n");
    expect(await new Response(child.stderr).text()).toBe("");
  });

  test("what is printed line by line", async () => {
    using there = node();
    const outlet = (n: number) => ({
      outlet: `0.${n}`,
      supply: "on",
      host: "running",
      busy: null,
      lock: null,
    });
    there.answers = () => ({
      state: "done",
      result: { outlets: [0, 1, there.asked.length + 1].map(outlet), boards: [] },
    });
    const out = await head(there, ["power", "watch", "--jsonl"]);
    expect(out.split("\n")).toHaveLength(3);
  });
});

describe("send", () => {
  test("brings the bytes to the line, Enter at the end, and waits until it has taken them", async () => {
    using there = node();
    const heard: string[] = [];
    there.begins = async (session) => {
      session.answers = () => {
        heard.push(session.heard.toString());
        return { result: [] };
      };
      await session.look();
      await session.say("not shown");
    };
    for (const words of [["reboot"], ["\\x00ü", "--no-newline"], ["x", "--force", "--reason", "night shift"]])
      expect(await start(there, ["send", "rack1-a", ...words]).ended).toMatchObject({
        exit: 0,
        out: "",
        err: "",
      });
    const opening = (more: object = {}, force = {}) => ({
      verb: "console.open",
      args: { console: "rack1-a", mode: "write", replay_lines: 0, ...force, quiet: true },
      as: "alice",
      ...more,
    });
    // No text among them: over MQTT commands go in the clear
    expect(there.asked).toEqual([opening(), opening(), opening({ reason: "night shift" }, { force: true })]);
    expect(heard).toEqual(["reboot\r", "\0ü", "x\r"]);
    expect(await there.sessions[0]?.channel.ended).toBe("left");
  });

  test.each([
    { change: {}, exit: 3, text: "not sent: bob writes since 07:00 UTC" },
    { change: { state: "gone" as const }, exit: 1, text: "not sent: the line is gone" },
  ])("exits with $exit where the node has not taken all: $text", async ({ change, exit, text }) => {
    using there = node();
    there.begins = async (session) => {
      await session.look();
      session.answers = () => {
        void session.look(change);
        void session.channel.send({ kind: "mark", mark: { at: Date.now(), kind: "notice", text } });
        return { result: [] };
      };
    };
    expect(await start(there, ["send", "rack1-a", "x"]).ended).toMatchObject({
      exit,
      err: `fruit: console rack1-a: not all was sent: ${text.replace("not sent: ", "")}\n`,
    });
  });

  test("says why not", async () => {
    using there = node();
    there.answers = () => ({
      state: "refused",
      code: "busy",
      message: "console rack1-a: 16 are attached",
    });
    expect(await start(there, ["send", "rack1-a", "x"]).ended).toMatchObject({
      exit: 3,
      err: "fruit: console rack1-a: 16 are attached\n",
    });
  });

  test.each([
    { what: "lets nobody in", state: "accepted" as const },
    { what: "does not say how things are", state: "done" as const },
  ])("--timeout counts from the start, also where the node $what", async ({ state }) => {
    using there = node();
    there.answers = () => ({ state, result: {} });
    there.staysSilent = state === "accepted";
    there.begins = async () => undefined;
    const words = ["send", "rack1-a", "x", "--expect", "y", "--timeout", "1s"];
    const startedAt = performance.now();
    expect(await start(there, words).ended).toMatchObject({
      exit: 5,
      err: 'fruit: console rack1-a: "y" did not come within 1 s\n',
    });
    expect(performance.now() - startedAt).toBeLessThan(12_000);
  });

  test("sees all of the answer, also what comes before the line has taken the text, and prints it as it comes", async () => {
    using there = node();
    there.begins = async (session) => {
      await session.look();
      await session.say("idle chatter: login: \n");
      await until("typed", () => session.heard.length === 7);
      for (const byte of Buffer.from("reboot\r\nTemp 40 °C\r\npi login: "))
        await session.say(Uint8Array.of(byte));
    };
    const running = start(there, ["send", "rack1-a", "reboot", "--expect", "°C\\s+^pi login: $"]);
    const { exit, out, err } = await running.ended;
    expect({ exit, err }).toEqual({ exit: 0, err: "" });
    expect(out).toEndWith("reboot\r\nTemp 40 °C\r\npi login: ");
    expect(there.asked[0]).toMatchObject({ verb: "console.open", args: { mode: "write", replay_lines: 0 } });
    expect(await there.sessions[0]?.channel.ended).toBe("left");
  });

  test.each([
    {
      what: "does not come in time",
      next: async (session: Session) => session.say("something else\n"),
      exit: 5,
      out: "something else\n",
      says: 'console rack1-a: "login:" did not come within 2 s',
    },
    {
      what: "cannot come any more",
      next: async (session: Session) => {
        await session.say("half a log");
        session.channel.close("bob sent you away");
      },
      exit: 1,
      out: "half a log",
      says: 'console rack1-a: "login:" did not come: bob sent you away',
    },
    {
      what: "is somebody else's to wait for",
      next: async (session: Session) => session.look({ writer: "local:bob" }, false),
      exit: 1,
      out: "",
      says: 'console rack1-a: "login:" did not come: the right to type was taken away',
    },
    {
      what: "comes with the last words",
      next: async (session: Session) => {
        await session.say("login:");
        session.channel.close("the agent stops");
      },
      exit: 0,
      out: "login:",
      says: "",
    },
  ])("exits with $exit when what is expected $what", async ({ next, exit, out, says }) => {
    const seconds = exit === 5 ? "2" : "15";
    using there = node();
    there.begins = async (session) => {
      await session.look();
      await until("typed", () => session.heard.length > 0);
      await next(session);
    };
    expect(
      await start(there, ["send", "rack1-a", "x", "--expect", "login:", "--timeout", seconds]).ended,
    ).toMatchObject({
      exit,
      out,
      err: says && `fruit: ${says}\n`,
    });
  });

  test.each([
    {
      look: { writer: "key:bob@desk" },
      mayWrite: false,
      exit: 3,
      says: "console rack1-a: bob@desk writes; --force --reason TEXT takes over",
    },
    {
      look: { writer: null },
      mayWrite: false,
      exit: 3,
      says: "console rack1-a: you may only read there; is its outlet locked ('fruit locks')?",
    },
    {
      look: { state: "gone", error: "unplugged" } satisfies Partial<ConsoleState>,
      mayWrite: true,
      exit: 1,
      says: "console rack1-a: the line is gone (unplugged)",
    },
  ])("sends nothing where it may not: $says", async ({ look, mayWrite, exit, says }) => {
    using there = node();
    there.begins = (session) => session.look(look, mayWrite);
    for (const words of [[], ["--expect", "y"]])
      expect(await start(there, ["send", "rack1-a", "x", ...words]).ended).toMatchObject({
        exit,
        err: `fruit: ${says}\n`,
      });
    for (const { heard } of there.sessions) expect(heard).toHaveLength(0);
  });

  test.each([
    { words: ["x", "--expect", "("], says: "--expect: Invalid regular expression" },
    { words: ["\\q"], says: '"\\q": there are \\r \\n \\t \\e \\\\ and \\xHH' },
    { words: [], says: "which console, and which text?" },
    { words: ["two", "words"], says: '"words" is one word too many; put the text in quotes' },
    { words: ["x", "--timeout", "3s"], says: "--timeout goes with --expect" },
    { words: ["x", "--expect", "y", "--timeout", "soon"], says: '--timeout: "soon" is not a duration' },
    { words: ["", "--no-newline"], says: "there is nothing to send" },
  ])("asks nobody where the words are wrong: $says", async ({ words, says }) => {
    using there = node();
    const { exit, err } = await start(there, ["send", "rack1-a", ...words]).ended;
    expect(exit).toBe(2);
    expect(err).toStartWith(`fruit: console send: ${says}`);
    expect(there.asked).toEqual([]);
  });

  test("is over in time, whatever the expression", async () => {
    using there = node();
    there.begins = async (session) => {
      await session.look();
      for (let n = 0; n < 20; n++) await session.say(`${"a".repeat(4000)}!`);
    };
    const words = ["send", "rack1-a", "x", "--expect", "(a+)+$", "--timeout", "1s"];
    const startedAt = performance.now();
    expect(await start(there, words).ended).toMatchObject({ exit: 5 });
    expect(performance.now() - startedAt).toBeLessThan(20_000);
  });
});

describe("log", () => {
  const at = Date.UTC(2026, 10, 23, 7);
  const begins = async (session: Session) => {
    await session.say("\x1b[31mone\x1b[0m\r\n", at);
    await session.mark("power: off by bob");
    await session.say(Uint8Array.of(0xc3), at);
    await session.say(Uint8Array.of(0xbc, 0x07, 0x0d, 0x0a), at);
    await session.look();
    await session.say("live\r\n", at);
  };
  const MARK = "[fruit 2026-11-23T07:00:00Z: power: off by bob]\n";

  test.each([
    { what: "as text, marks and all", words: [], out: `one\n${MARK}ü\n` },
    {
      what: "with times",
      words: ["--timestamps"],
      out: `2026-11-23T07:00:00.000Z one\n${MARK}2026-11-23T07:00:00.000Z ü\n`,
    },
    { what: "as the bytes that came", words: ["--raw"], out: "\x1b[31mone\x1b[0m\r\nü\x07\r\n" },
  ])("shows what was said, $what", async ({ words, out }) => {
    using there = node();
    there.begins = begins;
    expect(await start(there, ["log", "rack1-a", "-n", "50", ...words]).ended).toMatchObject({
      exit: 0,
      out,
      err: "",
    });
    expect(there.asked[0]).toMatchObject({
      verb: "console.open",
      args: { console: "rack1-a", mode: "read", replay_lines: 50, quiet: true },
    });
  });

  test("-f shows what is said, too, until it is told to stop", async () => {
    using there = node();
    there.begins = begins;
    const running = start(there, ["log", "rack1-a", "-f"]);
    await (await there.session()).say("more");
    await Bun.sleep(500);
    running.kill("SIGINT");
    expect(await running.ended).toMatchObject({ exit: 0, out: `one\n${MARK}ü\nlive\nmore\n`, err: "" });
    // A stay, not an errand
    expect(there.asked[0]?.args).not.toHaveProperty("quiet");
  });

  test("-f ends with the console, and says why", async () => {
    using there = node();
    const running = start(there, ["log", "rack1-a", "-f"]);
    (await there.session()).channel.close("the agent stops");
    expect(await running.ended).toMatchObject({ exit: 1, err: "fruit: console rack1-a: the agent stops\n" });
  });
});

test.each([
  { words: [], says: "console: which console? See 'fruit console list'" },
  { words: ["a", "b"], says: 'console: "b" is one word too many' },
  { words: ["a", "--replay", "many"], says: 'console: --replay: "many" is no number of lines (0 to 10000)' },
  { words: ["a", "--replay", "5", "--no-replay"], says: "console: --replay or --no-replay?" },
  { words: ["a", "--ro", "--force"], says: "console: --force is for whoever wants to type" },
  { words: ["a", "-e", "~~"], says: 'console: -e: "~~" is no escape character' },
  { words: ["a", "--json"], says: "console: a session has no JSON" },
  { words: ["log", "a", "-n", "-1"], says: "console log: -n needs a value" },
  { words: ["kick", "a"], says: "console kick: which console, and who?" },
  { words: ["set", "a"], says: "console set: what is to be set? baud=9600" },
  { words: ["set", "a", "speed=9600"], says: 'console set: "speed=9600": there are baud=9600' },
  { words: ["set", "a", "baud"], says: 'console set: "baud": there are baud=9600' },
])("$words is a matter of usage: $says", async ({ words, says }) => {
  const { exit, err } = await fruit(["console", ...words], { env: { FRUIT_SOCKET: "/nonexistent" } });
  expect(exit).toBe(2);
  expect(err).toStartWith(`fruit: ${says}`);
});

test.each([
  { words: ["rack1-a"] },
  { words: ["send", "rack1-a", "x", "--expect", "y"] },
  { words: ["log", "rack1-a"] },
  { words: ["list"] },
])("without an agent $words is exit 6, and it is said what to do", async ({ words }) => {
  const path = join(folder.path, "nobody.sock");
  expect(await fruit(["console", ...words], { env: { FRUIT_SOCKET: path } })).toMatchObject({
    exit: 6,
    err: `fruit: agent: nobody answers on ${path}; is the agent running ('fruit agent')? Another socket: --socket or FRUIT_SOCKET\n`,
  });
});

test("an agent that leaves before it has let anybody in leaves nothing open: exit 6", async () => {
  using there = node();
  there.answers = () => ({ state: "accepted" });
  expect(await start(there, ["rack1-a"]).ended).toMatchObject({
    exit: 6,
    err: "fruit: agent: the agent closed the connection before it had answered\n",
  });
});

test("fruit console --help shows all there is about consoles", async () => {
  const { exit, out } = await fruit(["console", "--help"]);
  expect(exit).toBe(0);
  expect(out).toStartWith("usage: fruit console [attach] NAME");
  for (const verb of ["list", "who", "log", "send", "break", "kick", "set", "key"])
    expect(out).toContain(`usage: fruit console ${verb} `);
  expect((await fruit(["console", "send", "--help"])).out.match(/usage:/g)).toHaveLength(1);
});

test("through a broker a person has the same console, and a script the same log", async () => {
  const seen: string[] = [];
  await using broker = await aedes({
    authorizePublish: (_client, { topic, payload }, done) => {
      seen.push(`${topic} ${payload}`);
      done(null);
    },
  });
  await using far = await farNode(folder.path, broker.port, { version: 3 });
  const door = ["--broker", `mqtt://127.0.0.1:${broker.port}`, "--site", SITE, "--node", NODE];
  const words = [CONSOLE, ...door, "--key", far.keyFile(TECH)];
  const env = { HOME: newHome(folder.path) };
  await using alice = new Visitor(["console", ...words], { socket: "", env });
  await alice.sees("you may type; Enter ~. leaves");
  await alice.type("uname\r");
  await until("typed", () => far.line.text === "uname\r");
  far.line.say("Linux 6\r\n");
  await alice.sees("Linux 6\r\n");
  await alice.type("\r~w");
  await alice.sees(new RegExp(`${CONSOLE} +\\d+ +${TECH} +mqtt +write `));
  const { exit, out } = await fruit(["console", "log", ...words], { env });
  expect({ exit, out }).toEqual({ exit: 0, out: expect.stringContaining("Linux 6\n") });
  await alice.type("\r~.");
  expect(await alice.exited).toBe(0);
  expect(alice.flags).toBe(alice.before);
  expect(await fruit(["console", "send", ...words, "passphrase"], { env })).toEqual({
    exit: 0,
    out: "",
    err: "",
  });
  expect(far.line.text).toEndWith("passphrase\r");
  // What is typed and said is for the two ends alone
  expect(seen.join("\n")).toContain("/cmd/console.open");
  for (const secret of ["passphrase", "uname", "Linux 6"])
    for (const form of ["utf8", "hex", "base64"] as const)
      expect(seen.join("\n")).not.toContain(Buffer.from(secret).toString(form));
});

describe("at a real agent with simulated Pis", () => {
  let place: ReturnType<typeof scratch>;
  let agent: Agent;
  beforeAll(async () => {
    place = scratch();
    agent = await startAgent(place.path, {
      sim: { wire_time: false },
      power: { buses: [{ driver: "sim", boards: [0] }] },
      consoles: { "rack1-a": { device: "sim:0.0", outlet: "0.0" }, list: { device: "sim:0.1" } },
    });
  });
  afterAll(async () => {
    await agent[Symbol.asyncDispose]();
    place[Symbol.dispose]();
  });
  const json = async (...words: string[]) => {
    const { exit, out } = await agent.cli("console", ...words, "--json");
    return { exit, ...JSON.parse(out) };
  };

  test("list shows every line, as a table and for machines", async () => {
    const { exit, out } = await agent.cli("console", "list");
    expect(exit).toBe(0);
    expect(out).toMatch(/^NAME +DEVICE +BAUD +STATE +WRITER +READERS +SINCE +IDLE +KEPT +RECORD +OUTLET\n/);
    expect(out).toMatch(/^rack1-a +sim:0\.0 +115200 +up +- +0 +\d+s +(\d+s|-) +\d+ +- +0\.0$/m);
    expect(await json("list")).toMatchObject({
      exit: 0,
      schema: "fruit.console.list/1",
      consoles: [{ name: "rack1-a", device: "sim:0.0", state: "up", writer: null }, { name: "list" }],
    });
  });

  test("a session is seen by who, and ended by kick", async () => {
    await using alice = new Visitor(["console", "rack1-a", "--no-replay"], { socket: agent.socket });
    await alice.sees("you may type");
    expect((await agent.cli("console", "who")).out).toMatch(
      /^rack1-a +\d+ +alice +socket +write +\d+s +- +0 +\d+$/m,
    );
    expect(await json("who", "rack1-a")).toMatchObject({
      schema: "fruit.console.who/1",
      attached: [{ console: "rack1-a", who: "local:alice", door: "socket", writes: true }],
    });
    expect(await agent.cli("console", "kick", "rack1-a", "alice")).toMatchObject({ exit: 2 });
    expect(await agent.cli("console", "kick", "rack1-a", "carol", "--reason", "x")).toMatchObject({
      exit: 0,
      out: expect.stringContaining("carol is not attached"),
    });
    const [, number = ""] = /^rack1-a +(\d+) +alice/m.exec((await agent.cli("console", "who")).out) ?? [];
    expect(await agent.cli("console", "kick", "rack1-a", number, "--reason", "night shift")).toMatchObject({
      exit: 0,
      out: `console rack1-a: ${number} was sent away (done)\n`,
    });
    expect(await alice.exited).toBe(1);
    await alice.sees(/fruit: console rack1-a: .* sent you away \(night shift\)\r\n$/);
  });

  test("set says how the line talks then, and refuses what no line can", async () => {
    expect(await agent.cli("console", "set", "list", "baud=9600", "parity=even")).toMatchObject({
      exit: 0,
      out: "console list: 9600 baud, 8 data bits, parity even, 1 stop bit, flow control none\n",
    });
    expect(await agent.cli("console", "set", "list", "baud=9600")).toMatchObject({
      exit: 0,
      out: expect.stringContaining("(as before)"),
    });
    expect(await agent.cli("console", "set", "list", "baud=1")).toMatchObject({ exit: 2 });
    expect(await json("set", "list", "baud=115200", "parity=none")).toMatchObject({
      schema: "fruit.console.set/1",
      state: "done",
      baud: 115_200,
    });
  });

  test("send brings its text to the line, and nothing while somebody else writes", async () => {
    await agent.cli("power", "on", "0.0");
    expect(await agent.cli("console", "send", "rack1-a", "echo by send")).toEqual({
      exit: 0,
      out: "",
      err: "",
    });
    const log = async () => (await agent.cli("console", "log", "rack1-a")).out;
    await until("echoed", async () => (await log()).includes("echo by send"));
    await using alice = new Visitor(["console", "rack1-a", "--no-replay"], { socket: agent.socket });
    await alice.sees("you may type");
    expect(await agent.cli("console", "send", "rack1-a", "echo too late")).toMatchObject({
      exit: 3,
      err: "fruit: console rack1-a: alice writes; --force --reason TEXT takes over\n",
    });
    expect(await log()).not.toContain("too late");
  });

  test("a console that is called like a verb is reached with attach, and break gets to it", async () => {
    await using alice = new Visitor(["console", "attach", "list", "--ro"], { socket: agent.socket });
    await alice.sees("list: sim:0.1, 115200 baud; you read");
    expect(await agent.cli("console", "break", "list")).toMatchObject({
      exit: 0,
      out: "console list: a break was sent (done)\n",
    });
    await alice.sees(/: break by .*\]\r\n/);
  });

  test("a console that is not there is exit 2 for every verb, and those that are there are named", async () => {
    for (const words of [["nosuch"], ["log", "nosuch"], ["send", "nosuch", "x"], ["break", "nosuch"]])
      expect(await agent.cli("console", ...words)).toMatchObject({
        exit: 2,
        out: "",
        err: 'fruit: no console "nosuch"; there are rack1-a, list\n',
      });
  });

  test("more than fits in one answer is replayed, all of it", async () => {
    await agent.cli("power", "on", "0.0");
    await using alice = new Visitor(["console", "rack1-a"], { socket: agent.socket });
    await alice.sees("you may type");
    await alice.type(`${"0123456789".repeat(10)}\r`.repeat(300));
    await until("echoed", async () => {
      const { out } = await agent.cli("console", "log", "rack1-a", "-n", "5000");
      return out.length > 25_000;
    });
  });

  test("the power of a console's outlet is in reach of whoever sits at it, with the same rules and words", async () => {
    await using alice = new Visitor(["console", "rack1-a", "--no-replay"], { socket: agent.socket });
    await alice.sees("you may type");
    await alice.type("\r~p");
    await alice.sees("power of outlet 0.0: s status, o on, x off, c cycle; any other key goes back: ");
    await alice.type("s");
    await alice.sees(/OUTLET +NAME +SUPPLY[^\n]+\r\n0\.0 +/);
    // As a script types it, all at once
    await alice.type("\r~poykernel test\r");
    await alice.sees("power on outlet 0.0? y for yes: y\r\nreason, or just Enter: kernel test\r\n");
    await alice.sees("0.0: already on (unchanged)\r\n");
    // Called off
    await alice.type("\r~pxn");
    await alice.sees("power off outlet 0.0? y for yes: n\r\n");
    await agent.cli("lock", "0.0", "--reason", "mine");
    await alice.sees(/alice only reads now: outlet 0\.0 is locked by /);
    await alice.type("\r~pxy\r");
    await alice.sees(/fruit: outlet 0\.0: .*locked by /);
    await agent.cli("unlock", "0.0");
    expect((await agent.cli("power", "status", "0.0")).out).toMatch(/^0\.0 +- +on /m);
  });
});
