/** The command line as a whole: its words, what it says of wrong ones, and what of an agent that does not answer. */
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { createServer } from "node:net";
import { join } from "node:path";
import { run } from "../agent/cli.ts";
import type { CommandResult } from "../agent/commands.ts";
import { duration, type Io, seconds } from "../agent/terminal.ts";
import { FRUIT, fruit as program, scratch, until } from "./node.ts";

setDefaultTimeout(20_000);

async function fruit(args: string[], more: Partial<Io> = {}) {
  const said = { out: "", err: "" };
  const exit = await run(args, {
    out: (text) => {
      said.out += text;
    },
    err: (text) => {
      said.err += text;
    },
    env: {},
    isTerminal: false,
    stdin: async () => new Uint8Array(),
    signal: new AbortController().signal,
    ...more,
  });
  return { exit, ...said };
}

/** Every line of the overview: words and summary. */
async function overview(): Promise<[words: string, summary: string][]> {
  const { out } = await fruit(["--help"]);
  return [...out.matchAll(/^ {2}([a-z]+(?: [a-z]+)?) {2,}(\S.*)$/gm)].map(([, words = "", summary = ""]) => [
    words,
    summary,
  ]);
}

test("every verb of the overview can be reached, and --help has its own words", async () => {
  const verbs = await overview();
  expect(verbs.map(([words]) => words)).toContain("telemetry boost");
  expect(verbs.length).toBeGreaterThan(25);
  for (const [words, summary] of verbs) {
    const { exit, out } = await fruit([...words.split(" "), "--help"]);
    expect({ words, exit }).toEqual({ words, exit: 0 });
    expect(out).toStartWith(`usage: fruit ${words}`);
    // "console" is a verb and the first word of others
    const family = verbs.filter(([other]) => other === words || other.startsWith(`${words} `));
    expect(out.match(/usage: /g)).toHaveLength(family.length);
    expect(out).toContain(`       ${summary}\n`);
    expect(summary).toMatch(/^[^A-Z]/);
  }
  expect(new Set(verbs.map(([words]) => words)).size).toBe(verbs.length);
});

test.each([
  { words: ["power", "status", "--bogus"], says: "power status: no option --bogus\n" },
  { words: ["power", "status", "-z"], says: "power status: no option -z\n" },
  { words: ["power", "watch", "--for"], says: "power watch: --for needs a value\n" },
  {
    words: ["power", "watch", "--for", "--json=1"],
    says: 'power watch: --for needs a value (one that begins with "-": --for=-…)\n',
  },
  { words: ["job", "get", "-n"], says: "job get: -n needs a value\n" },
  { words: ["power", "on", "0.0", "--yes=1"], says: "power on: --yes takes no value\n" },
  { words: ["locks", "now"], says: 'locks: "now" is one word too many\n' },
  { words: ["lock"], says: "lock: one outlet at a time: an id (0.1) or a name\n" },
  { words: ["unlock", "0.0", "0.1"], says: "unlock: one outlet at a time: an id (0.1) or a name\n" },
  { words: ["power", "explode"], says: 'power explode: there are "power status"' },
  { words: ["explode"], says: 'no verb "explode"; there are agent, ' },
])("$words is a matter of usage, said in a line: $says", async ({ words, says }) => {
  const { exit, out, err } = await fruit([...words]);
  expect({ exit, out }).toEqual({ exit: 2, out: "" });
  expect(err).toStartWith(`fruit: ${says}`);
});

test.each(["1s", "90s", "5m", "2h", "7d", "604801s", "1.5s"])("%s is said as it is read", (text) => {
  expect(duration(seconds("--for", text))).toBe(text);
});

test("a duration is said in the largest unit that is exact", () => {
  expect([60, 7200, 777_600, 5400].map(duration)).toEqual(["1m", "2h", "9d", "90m"]);
});

describe("an agent that does not answer", () => {
  /** Something that listens like an agent and says this to every question. */
  async function listen(
    path: string,
    answers: Partial<CommandResult>[],
    then: "hang up" | "wait" | "nonsense",
  ) {
    const asked: string[] = [];
    const server = createServer((socket) => {
      socket.on("error", () => undefined);
      socket.on("data", (chunk) => {
        asked.push(JSON.parse(String(chunk)).verb);
        for (const answer of answers) socket.write(`${JSON.stringify({ verb: "x", ...answer })}\n`);
        if (then === "hang up") socket.destroySoon();
        if (then === "nonsense") socket.write("HTTP/1.1 400 Bad Request\n");
      });
    });
    await new Promise<void>((resolve) => server.listen(path, resolve));
    return { asked, [Symbol.dispose]: () => void server.close() };
  }
  const ACCEPTED = { id: "c-1", state: "accepted" } as const;

  test("after it accepted leaves the command unconfirmed, and says how to look it up through the same door", async () => {
    using folder = scratch();
    const path = join(folder.path, "fruit.sock");
    using _server = await listen(path, [ACCEPTED], "hang up");
    const off = ["power", "off", "0.0"];
    expect(await fruit([...off, "--socket", path])).toEqual({
      exit: 5,
      out: "",
      err: `fruit: agent: the agent closed the connection before it had answered; what became of the command is not known, see 'fruit job get c-1 --socket ${path}'\n`,
    });
    const byEnv = await fruit(off, { env: { FRUIT_SOCKET: path } });
    expect(byEnv).toMatchObject({ exit: 5, err: expect.stringContaining("see 'fruit job get c-1'") });
  });

  test("at all leaves unconfirmed what changes something, and is unreachable for what only looks", async () => {
    using folder = scratch();
    const path = join(folder.path, "fruit.sock");
    using server = await listen(path, [], "hang up");
    const env = { FRUIT_SOCKET: path };
    expect(await fruit(["lock", "0.0"], { env })).toMatchObject({
      exit: 5,
      err: expect.stringContaining("see 'fruit job get'"),
    });
    for (const words of [["power", "status"], ["locks"], ["job", "get"]]) {
      const { exit, err } = await fruit(words, { env });
      expect({ words, exit }).toEqual({ words, exit: 6 });
      expect(err).not.toContain("what became");
    }
    expect(server.asked).toEqual(["lock.set", "power.status", "lock.list", "job.get"]);
  });

  test("like an agent is said to be none", async () => {
    using folder = scratch();
    const path = join(folder.path, "fruit.sock");
    using _server = await listen(path, [], "nonsense");
    expect(await fruit(["power", "status", "--socket", path])).toMatchObject({
      exit: 6,
      err: "fruit: agent: what answers there is no agent\n",
    });
  });

  test("leaves a command that Ctrl-C ends unconfirmed", async () => {
    using folder = scratch();
    const path = join(folder.path, "fruit.sock");
    using server = await listen(path, [ACCEPTED], "wait");
    const child = Bun.spawn([...FRUIT.command, "power", "cycle", "0.0", "--socket", path], {
      env: { PATH: process.env.PATH ?? "", ...FRUIT.env },
      stdin: "ignore",
      stdout: "ignore",
      stderr: "pipe",
    });
    await until("it is asked", () => server.asked.length > 0);
    // The answer and the signal race: asked is enough, accepted gives the id.
    child.kill("SIGINT");
    expect(await child.exited).toBe(5);
    expect(await new Response(child.stderr).text()).toMatch(
      /^fruit: agent: interrupted; what became of the command is not known, see 'fruit job get( c-1)? --socket \S+'\n$/,
    );
  });

  test("because it is not there is unreachable, whatever was asked", async () => {
    using folder = scratch();
    const path = join(folder.path, "none.sock");
    for (const words of [["power", "off", "0.0"], ["locks"]])
      expect(await fruit([...words, "--socket", path])).toMatchObject({
        exit: 6,
        err: expect.stringContaining(`nobody answers on ${path}`),
      });
  });
});

describe("with simulated hardware", () => {
  const SIM = { site: "lab", sim: { serial: "00000000abc123" } };

  test.each([
    { by: "the flag", flags: ["--hal", "sim"], env: {} },
    { by: "FRUIT_HAL", flags: [], env: { FRUIT_HAL: "sim" } },
  ])("$by decides the node id everywhere", async ({ flags, env }) => {
    using folder = scratch();
    const FRUIT_CONFIG = folder.file("node.json", SIM);
    const ran = (...words: string[]) => fruit([...words, ...flags], { env: { FRUIT_CONFIG, ...env } });
    expect(Object.keys(JSON.parse((await ran("mqtt", "schema", "--ha")).out))).toEqual([
      "homeassistant/device/piabc123/node/config",
    ]);
    expect((await ran("doctor")).out).toMatch(/^ok {3}board: .*, piabc123$/m);
    expect((await ran("telemetry", "once", "--influx")).out).toMatch(/^system,site=lab,node=piabc123,/m);
  });
});

test("doctor says the node id that is configured", async () => {
  using folder = scratch();
  const FRUIT_CONFIG = folder.file("node.json", { site: "lab", node: "frontdoor" });
  const { out } = await fruit(["doctor", "--hal", "sim"], { env: { FRUIT_CONFIG } });
  expect(out).toMatch(/^ok {3}board: .*, frontdoor$/m);
});

test.skipIf(await Bun.file("/etc/fruit/node.json").exists())(
  "mqtt schema --ha works where no node is configured, and says that it is an example",
  async () => {
    const { exit, out, err } = await program(["mqtt", "schema", "--ha"]);
    expect({ exit, err }).toEqual({
      exit: 0,
      err: expect.stringMatching(/^fruit: no \/etc\/fruit\/node\.json: this is an example, node pi1234/),
    });
    expect(Object.keys(JSON.parse(out))).toEqual([
      "homeassistant/device/pi1234/node/config",
      "homeassistant/device/pi1234/outlet-0-0/config",
      "homeassistant/device/pi1234/outlet-0-1/config",
    ]);
    expect((await program(["mqtt", "schema", "--ha", "--config", "/none.json"])).exit).toBe(78);
  },
);
