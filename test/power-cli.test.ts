/** The words of a technician's session, with the service behind them. */
import { afterEach, beforeEach, describe, expect, jest, test } from "bun:test";
import { type CommandResult, Refusal } from "../agent/commands.ts";
import { POWER_VERBS } from "../agent/power/cli.ts";
import { EXIT, type Exit, type Send, UsageError } from "../agent/terminal.ts";
import { HalError } from "../hal/ports.ts";
import { type Bench, bench, Rack } from "./rack.ts";

beforeEach(() => {
  jest.useFakeTimers();
  jest.setSystemTime(new Date("2026-08-24T09:00:00Z"));
});
afterEach(() => {
  jest.useRealTimers();
});

const NAMES = {
  outlets: {
    "0.0": { name: "rack1-a", node: "pi1" },
    "0.1": { name: "rack1-b" },
    "1.0": { name: "rack1-c" },
    "1.1": { name: "rack1-d" },
  },
};

/** A command line on a bench; refusals travel as they do through a door. */
function terminal(b: Bench, who = "local:alice") {
  const sent: { verb: string; args: Record<string, unknown> }[] = [];
  const begin = async (line: string, { json = false, signal = new AbortController().signal } = {}) => {
    const words = line.split(" ");
    const verb =
      POWER_VERBS.find((row) => row.words === words.slice(0, 2).join(" ")) ??
      POWER_VERBS.find((row) => row.words === words[0]);
    if (!verb) throw new Error(`no verb in "${line}"`);
    let out = "";
    let err = "";
    const send: Send = async (name, args, { reason, onProgress } = {}) => {
      sent.push({ verb: name, args });
      const from = b.progress.length;
      const final = (rest: Partial<CommandResult>) => ({
        id: "1",
        verb: name,
        state: "refused" as const,
        ...rest,
      });
      try {
        const outcome = await b.ask(name, args, { who, ...(reason === undefined ? {} : { reason }) });
        for (const message of b.progress.slice(from)) onProgress?.(final({ state: "running", message }));
        // Doors hand every result to whoever follows the progress, the final one too.
        onProgress?.(final(outcome));
        return final(outcome);
      } catch (error) {
        if (!(error instanceof Refusal)) throw error;
        return final({ code: error.code, message: error.message });
      }
    };
    const io = {
      out: (text: string) => {
        out += text;
      },
      err: (text: string) => {
        err += text;
      },
      env: {},
      isTerminal: false,
      stdin: async () => new Uint8Array(),
      signal,
    };
    const args = words.slice(verb.words.split(" ").length).map((word) => word.replaceAll("_", " "));
    const exit: Exit = await verb.run({
      args,
      io,
      json,
      send,
      attach: () => Promise.reject(new Error("power attaches to no console")),
    });
    return { exit, out, err };
  };
  const type = (line: string, options?: Parameters<typeof begin>[1]) => b.finish(begin(line, options));
  return { begin, type, sent };
}

test("a session: look, cycle, lock, be refused", async () => {
  const rack = new Rack(2, ["0.0", "0.1", "1.0"]);
  rack.hangs.add("1.0");
  const b = bench(rack, { power: NAMES, node: "pi1" });
  const alice = terminal(b);
  const bob = terminal(b, "key:bob@rack");

  expect((await alice.type("power status")).out).toMatchInlineSnapshot(`
    "OUTLET  NAME     SUPPLY  HOST      VOLT  AMP   WATT  SINCE  BY  LOCK
    0.0     rack1-a  on      running   5.00  0.60  3.0   -      -   -
    0.1     rack1-b  on      running   5.00  0.60  3.0   -      -   -
    1.0     rack1-c  on      starting  5.00  0.60  3.0   -      -   -
    1.1     rack1-d  off     off       0.00  0.00  0.0   -      -   -
    board 0  input 12.00 V   5 V rail 5.05 V
    board 1  input 12.00 V   5 V rail 5.05 V
    "
  `);

  const cycle = await alice.type("power cycle rack1-c --reason hung_in_U-Boot");
  expect(cycle.exit).toBe(EXIT.unconfirmed);
  expect(cycle.out).toMatchInlineSnapshot(`
    "1.0 rack1-c: asking to shut down ...
    1.0 rack1-c: no answer after 30 s
    1.0 rack1-c: power cut (forced after timeout), off 3 s
    1.0 rack1-c: power on ... confirmed by board in 0.0 s
    "
  `);
  expect(cycle.err).toBe(
    "fruit: outlet 1.0: its supply is on, but it shows no sign of life after 120 s; look at its console\n",
  );

  expect((await bob.type("lock 0.1 --for 2h --reason kernel_test")).out).toMatchInlineSnapshot(`
    "OUTLET  OWNER     SINCE      UNTIL      REASON
    0.1     bob@rack  09:02 UTC  11:02 UTC  kernel test
    "
  `);

  const refused = await alice.type("power off 0.1");
  expect(refused).toMatchObject({ exit: EXIT.busy, out: "" });
  expect(refused.err).toMatchInlineSnapshot(`
    "fruit: outlet 0.1: locked by bob@rack (kernel test) since 09:02 UTC until 11:02 UTC; ask bob@rack, wait, or 'fruit unlock 0.1 --kick --reason TEXT'
    "
  `);

  expect((await alice.type("power status 0.1-1.0")).out).toMatchInlineSnapshot(`
    "OUTLET  NAME     SUPPLY  HOST     VOLT  AMP   WATT  SINCE  BY     LOCK
    0.1     rack1-b  on      running  5.00  0.60  3.0   -      -      bob@rack until 11:02 UTC (kernel test)
    1.0     rack1-c  on      silent   5.00  0.60  3.0   2m     alice  -
    board 0  input 12.00 V   5 V rail 5.05 V
    board 1  input 12.00 V   5 V rail 5.05 V
    "
  `);
  expect((await alice.type("locks")).out).toMatchInlineSnapshot(`
    "OUTLET  OWNER     SINCE      UNTIL      REASON
    0.1     bob@rack  09:02 UTC  11:02 UTC  kernel test
    "
  `);
  expect((await alice.type("unlock 0.1")).exit).toBe(EXIT.busy);
  expect(await alice.type("unlock 0.1 --kick --reason bob_is_away")).toEqual({
    exit: EXIT.done,
    out: "outlet 0.1: unlocked\n",
    err: "",
  });
  expect(await alice.type("unlock 0.1")).toEqual({
    exit: EXIT.done,
    out: "outlet 0.1: not locked (unchanged)\n",
    err: "",
  });
  expect((await alice.type("locks")).out).toBe("no locks\n");
});

test.each<[string, Exit, string]>([
  ["power on 0.1", EXIT.done, ""],
  ["power off 1.1", EXIT.done, ""],
  [
    "power off 0.0",
    EXIT.refused,
    "fruit: outlet 0.0: it feeds this node (P11); add --self if that is meant\n",
  ],
  [
    "power cycle 1.1",
    EXIT.refused,
    "fruit: outlet 1.1: it is off, and cycle does not switch on what is off (P3); use 'fruit power on 1.1'\n",
  ],
  ["power off all", EXIT.refused, `fruit: "all" needs a second word (P19); 'fruit power off all --yes'\n`],
  ["power off 0.1 --force", EXIT.usage, "fruit: outlet 0.1: --force needs a reason; add --reason TEXT\n"],
  [
    "power off 7.0",
    EXIT.usage,
    'fruit: no outlet "7.0"; there are 0.0 rack1-a, 0.1 rack1-b, 1.0 rack1-c, 1.1 rack1-d\n',
  ],
  [
    "lock 0.1 --for 8d",
    EXIT.usage,
    "fruit: a lock lasts 7d at most (lock_max_seconds), not 8d; take it again when it ends\n",
  ],
  ["lock all", EXIT.usage, 'fruit: "all": one outlet at a time: an id (0.1) or a name\n'],
  ["power identify rack1-b 30s", EXIT.done, ""],
  ["power policy 0.1 last", EXIT.done, ""],
  ["power scan", EXIT.done, ""],
])("%s ends with %i", async (line, exit, err) => {
  const b = bench(new Rack(2, ["0.0", "0.1"]), { power: NAMES, node: "pi1" });
  const ran = await terminal(b).type(line);
  expect({ exit: ran.exit, err: ran.err }).toEqual({ exit, err });
});

test("power scan prints the boards it found and says on stderr which bus did not answer", async () => {
  const missing = new Rack(1);
  missing.failing = new HalError("io", "/dev/i2c-7: does not exist");
  Object.defineProperty(missing, "outlets", { value: ["1.0", "1.1"] });
  const ran = await terminal(bench([new Rack(1), missing])).type("power scan");
  expect(ran.exit).toBe(EXIT.unreachable);
  expect(ran.out).toMatch(/^0 +bus 0/m);
  expect(ran.err).toBe("fruit: bus 1 (scripted): /dev/i2c-7: does not exist\n");
});

test.each([
  ["power on", "which outlet?"],
  ["power on ,", "which outlet?"],
  ["power on 0.0 --off-time 5x", '--off-time: "5x" is not a duration'],
  ["power on 0.0 --frobnicate", "--frobnicate"],
  ["power policy 0.0 --once", "--once goes with on, off or last"],
  ["power policy off", "which outlet?"],
  ["lock 0.0,0.1", "one outlet at a time"],
  ["unlock", "one outlet at a time"],
  ["power scan now", "now"],
])("%s is a matter of usage", async (line, words) => {
  const { type, sent } = terminal(bench(new Rack(1)));
  const error = await type(line).catch((thrown) => thrown);
  // util.parseArgs has errors of its own, which the program treats alike.
  expect(error instanceof UsageError || String(error.code).startsWith("ERR_PARSE_ARGS")).toBe(true);
  expect(error.message).toContain(words);
  expect(sent).toEqual([]);
});

test("flags become arguments, and only those that were given", async () => {
  const { type, sent } = terminal(bench(new Rack(1)));
  await type("power off 0.0,0.1 --timeout 40s --no-wait");
  await type("power reset 0.0 --off-time 5 --reason x --dry-run --self --yes --force");
  expect(sent).toEqual([
    { verb: "power.off", args: { outlets: ["0.0", "0.1"], wait: false, timeout_seconds: 40 } },
    {
      verb: "power.reset",
      args: {
        outlets: ["0.0"],
        wait: true,
        off_time_seconds: 5,
        dry_run: true,
        self: true,
        yes: true,
        force: true,
      },
    },
  ]);
});

test("unconfirmed is exit 5", async () => {
  const rack = new Rack(1);
  rack.stuck.add("0.0");
  const ran = await terminal(bench(rack)).type("power on 0.0");
  expect(ran.exit).toBe(EXIT.unconfirmed);
  expect(ran.out).toBe("0.0: board says off after 30 s: sending on once more\n");
  expect(ran.err).toStartWith("fruit: outlet 0.0: on was sent and not confirmed within 60 s");
});

test("a bus that fails shows unknown, why, and exit 6", async () => {
  const rack = new Rack(1);
  rack.failing = new HalError("bad-reply", "board 0: CRC error (3 tries)");
  const ran = await terminal(bench(rack)).type("power status");
  expect(ran.exit).toBe(EXIT.unreachable);
  expect(ran.out).toMatchInlineSnapshot(`
    "OUTLET  NAME  SUPPLY   HOST     VOLT  AMP  WATT  SINCE  BY  LOCK
    0.0     -     unknown  unknown  -     -    -     -      -   -     board 0: CRC error (3 tries)
    0.1     -     unknown  unknown  -     -    -     -      -   -     board 0: CRC error (3 tries)
    input unknown: board 0: CRC error (3 tries)
    "
  `);
  expect(ran.err).toBe("fruit: outlet 0.0, 0.1: board 0: CRC error (3 tries)\n");
});

test("a dry run reads as what would happen", async () => {
  const ran = await terminal(bench(new Rack(1, ["0.0"]))).type("power off 0.0 --dry-run --timeout 2s");
  expect(ran.exit).toBe(EXIT.refused);
  expect(ran.out).toMatchInlineSnapshot(`
    "0.0: would ask it to shut down and wait up to 2 s (P4)
    0.0: would cut the supply
    0.0: would confirm by read-back, send once more after 30 s, end unconfirmed after 60 s (P14)
    0.0: would be refused, rule.P4: 2 s are too few to shut down in (P4: at least 5 s); give it more with --timeout, or cut with --force --reason TEXT
    "
  `);
});

describe("--json", () => {
  test("prints one object with its schema, and nothing else on stdout", async () => {
    const rack = new Rack(1, ["0.0"]);
    rack.inputVolts = () => 12.000_400_01;
    const b = bench(rack, { power: { outlets: { "0.0": { name: "rack1-a" } } } });
    const { type } = terminal(b);
    const status = JSON.parse((await type("power status", { json: true })).out);
    expect(status).toMatchObject({
      schema: "fruit.power.status/1",
      state: "done",
      outlets: [
        { outlet: "0.0", supply: "on" },
        { outlet: "0.1", supply: "off" },
      ],
      boards: [{ board: 0, input_volts: 12 }],
    });
    const off = JSON.parse((await type("power off rack1-a --reason x", { json: true })).out);
    expect(off).toMatchObject({
      schema: "fruit.power.off/1",
      state: "done",
      outlets: [
        {
          outlet: "0.0",
          name: "rack1-a",
          verb: "off",
          outcome: "done",
          before: { supply: "on", host: "running" },
          after: { supply: "off", host: "off" },
          by: "local:alice",
          reason: "x",
        },
      ],
    });
    const refused = await type("power on 9.9", { json: true });
    expect(JSON.parse(refused.out)).toMatchObject({
      schema: "fruit.power.on/1",
      state: "refused",
      code: "unknown-outlet",
    });
    expect(refused.exit).toBe(EXIT.usage);
    for (const line of [
      "power scan",
      "locks",
      "lock 0.0",
      "unlock 0.0",
      "power policy",
      "power identify 0.0 off",
    ]) {
      const { schema } = JSON.parse((await type(line, { json: true })).out);
      expect(schema).toMatch(/^fruit\.[a-z.]+\/1$/);
    }
  });
});

describe("watch", () => {
  test("prints the table once, then what changes, until its time is over", async () => {
    const rack = new Rack(1, ["0.0"]);
    const b = bench(rack);
    const watching = terminal(b).begin("power watch --for 20s");
    await b.pass(5000);
    void b.ask("power.reset", { outlets: ["0.0"] }, { reason: "hung" });
    const { exit, out } = await b.finish(watching);
    expect(exit).toBe(EXIT.done);
    const [heading, ...lines] = out.trimEnd().split("\n");
    expect(heading).toStartWith("OUTLET");
    const changes = lines.filter((line) => /^\d\d:\d\d:\d\d /.test(line)).map((line) => line.slice(9));
    expect(changes).toEqual([
      "0.0: supply on -> off (alice: hung), host running -> off, reset under way",
      "0.0: supply off -> on (alice: hung), host off -> starting, reset ended",
    ]);
  });

  test.each([
    { flags: "", json: true },
    { flags: " --jsonl", json: false },
  ])("prints an object a line from the start (--json $json$flags)", async ({ flags, json }) => {
    const b = bench(new Rack(1, ["0.0"]));
    const watching = terminal(b).begin(`power watch --for 20s${flags}`, { json });
    await b.pass(5000);
    void b.ask("power.reset", { outlets: ["0.0"] }, { reason: "hung" });
    const { out } = await b.finish(watching);
    const lines = out
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line));
    for (const line of lines) expect(line).toMatchObject({ schema: "fruit.power.watch/1", v: 1 });
    expect(lines.map(({ outlet, supply, change }) => [outlet, supply, change?.split(" (")[0]])).toEqual([
      ["0.0", "on", undefined],
      ["0.1", "off", undefined],
      ["0.0", "off", "0.0: supply on -> off"],
      ["0.0", "on", "0.0: supply off -> on"],
    ]);
  });

  test("ends when it is interrupted", async () => {
    const b = bench(new Rack(1));
    const stop = new AbortController();
    const watching = terminal(b).begin("power watch", { signal: stop.signal });
    await b.pass(3000);
    stop.abort();
    expect((await b.finish(watching)).exit).toBe(EXIT.done);
  });
});
