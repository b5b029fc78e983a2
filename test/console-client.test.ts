/** `fruit console` as a person has it: a real terminal, the executable, and a node that does what the test says. */

import { afterAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { banner } from "../agent/console/show.ts";
import { scratch, startAgent, until } from "./node.ts";
import { ScriptedNode, type Session, Visitor } from "./visitor.ts";

setDefaultTimeout(30_000);

const folder = scratch();
afterAll(() => folder[Symbol.dispose]());

let nodes = 0;
const node = () => new ScriptedNode(join(folder.path, `${nodes++}.sock`));

/** A node, somebody at one of its consoles, and their session there. */
async function meet(
  options: { args?: string[]; begins?: ScriptedNode["begins"]; env?: Record<string, string> } = {},
) {
  const there = node();
  if (options.begins) there.begins = options.begins;
  const alice = new Visitor(["console", "rack1-a", ...(options.args ?? [])], {
    socket: there.path,
    ...(options.env ? { env: options.env } : {}),
  });
  const session = await there.session();
  return {
    there,
    alice,
    session,
    async [Symbol.asyncDispose]() {
      await alice[Symbol.asyncDispose]();
      there[Symbol.dispose]();
    },
  };
}

/** Lets a console talk until all that may be under way is: its node has to wait. */
async function fill(session: Session): Promise<void> {
  let said = 0;
  void (async () => {
    for (; ; said += 1000) await session.say("x".repeat(1000));
  })().catch(() => undefined);
  await until("the node waits", async () => {
    const before = said;
    await Bun.sleep(300);
    return said > 0 && said === before;
  });
  expect(said).toBeLessThan(1_000_000);
}

const BANNER =
  /\[fruit [-\d]+T[:\d]+Z: rack1-a: \/dev\/ttyUSB0, 115200 baud; you may type; Enter ~\. leaves, ~\? helps\]\r\n/;
const EVERY_BYTE = Uint8Array.from({ length: 256 }, (_, n) => n);

test("a person sees what was said, then where they are, then what is said", async () => {
  const begins = async (session: Session) => {
    await session.say("before\r\nlogin: ");
    await session.look();
    await session.say("now");
  };
  await using met = await meet({ begins });
  await met.alice.sees("now");
  expect(met.alice.text).toMatch(new RegExp(`^before\r\nlogin: \r\n${BANNER.source}now$`));
  expect(met.there.asked).toEqual([
    { verb: "console.open", args: { console: "rack1-a", mode: "write", replay_lines: 200 }, as: "alice" },
  ]);
});

test("every byte that is typed gets to the line as it is, Ctrl-C and 8-bit and NUL too", async () => {
  await using met = await meet();
  await met.alice.sees(BANNER);
  await met.alice.type(EVERY_BYTE);
  await until("all", () => met.session.heard.length === 256);
  expect(met.session.heard.equals(EVERY_BYTE)).toBe(true);
});

test("every byte that the line says gets to the screen as it is, a bare newline too, whatever pieces it comes in", async () => {
  await using met = await meet();
  await met.alice.sees(BANNER);
  const shown = met.alice.bytes.length;
  const said = Buffer.concat([EVERY_BYTE, Buffer.from("grüße 👋\n"), EVERY_BYTE]);
  for (const byte of said) await met.session.say(Uint8Array.of(byte));
  await until("all", () => met.alice.bytes.length >= shown + said.length);
  expect(met.alice.bytes.subarray(shown).equals(said)).toBe(true);
});

describe("the terminal is what it was", () => {
  test.each([
    {
      what: "the person leaves",
      end: async ({ alice }: Met) => alice.type("\r~."),
      exit: 0,
      says: ": left]",
    },
    {
      what: "the console sends them away",
      end: async ({ session }: Met) => session.channel.close("bob sent you away (night shift)"),
      exit: 1,
      says: "fruit: console rack1-a: bob sent you away (night shift)",
    },
    {
      what: "the connection is lost",
      end: async ({ session }: Met) => session.socket.destroy(),
      exit: 1,
      says: "fruit: console rack1-a: the connection was lost",
    },
    {
      what: "the node talks rubbish",
      end: async ({ session }: Met) => void session.socket.write("HTTP/1.1 400 Bad Request\r\n\r\n"),
      exit: 1,
      says: "fruit: console rack1-a: what came is no console: a message of 1213486160 bytes",
    },
    {
      what: "SIGTERM comes",
      end: async ({ alice }: Met) => alice.kill("SIGTERM"),
      exit: 1,
      says: "interrupted",
    },
    ...(["SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGALRM"] as const).map((signal) => ({
      what: `${signal} comes`,
      end: async ({ alice }: Met) => alice.kill(signal),
      exit: 1,
      says: "interrupted",
    })),
    {
      what: "a question is being asked and the connection is lost",
      end: async ({ alice, session }: Met) => {
        await alice.type("\r~f");
        await alice.sees("why do you take over");
        session.socket.destroy();
      },
      exit: 1,
      says: "the connection was lost",
    },
    {
      what: "the node says nothing after a while of talking",
      end: async ({ alice, session }: Met) => {
        // In the middle of an escape sequence
        await session.say("text\x1b[1");
        await alice.type("\r~.");
      },
      exit: 0,
      says: ": left]",
    },
  ])("after $what", async ({ end, exit, says }) => {
    await using met = await meet();
    await met.alice.sees(BANNER);
    expect(met.alice.flags).not.toBe(met.alice.before);
    await end(met);
    expect(await met.alice.exited).toBe(exit);
    expect(met.alice.flags).toBe(met.alice.before);
    await met.alice.sees(says);
    // What follows stands on a line of its own
    expect(met.alice.text).toEndWith("\n");
  });

  type Met = Awaited<ReturnType<typeof meet>>;

  test("after the agent was killed with SIGKILL", async () => {
    using place = scratch();
    await using agent = await startAgent(place.path, { consoles: { "rack1-a": { device: "/dev/ttyUSB0" } } });
    await using alice = new Visitor(["console", "rack1-a"], { socket: agent.socket });
    await alice.sees("you may type");
    agent.kill("SIGKILL");
    expect(await alice.exited).toBe(1);
    expect(alice.flags).toBe(alice.before);
    await alice.sees("fruit: console rack1-a: the connection was lost");
  });

  test("after the program fails in a way that nobody has thought of", async () => {
    const keyboard = join(import.meta.dir, "../agent/keyboard.ts");
    await using alice = new Visitor(
      [
        "-e",
        `import { openKeyboard } from ${JSON.stringify(keyboard)};
         import { Output } from ${JSON.stringify(join(import.meta.dir, "../agent/output.ts"))};
         await openKeyboard(new Output(() => undefined)).raw();
         process.stdout.write("raw");
         setTimeout(() => { throw new Error("unthought of"); }, 100);`,
      ],
      { socket: "", executable: { name: "bun", command: [process.execPath], env: {} } },
    );
    await alice.sees("raw");
    expect(alice.flags).not.toBe(alice.before);
    expect(await alice.exited).toBe(1);
    expect(alice.flags).toBe(alice.before);
    await alice.sees("unthought of");
  });

  test.each([
    { what: "SIGTERM", end: async ({ alice }: Met) => alice.kill("SIGTERM"), exit: 1 },
    { what: "~.", end: async ({ alice }: Met) => alice.type("\r~."), exit: 0 },
  ])(
    "after $what while nothing takes what is shown, and what is typed gets to the line until then",
    async ({ end, exit }) => {
      await using met = await meet();
      const { alice, session } = met;
      await alice.sees(BANNER);
      alice.pty.pause();
      await fill(session);
      await alice.type("abc");
      await until("typed", () => session.heard.toString() === "abc");
      await end(met);
      const startedAt = performance.now();
      expect(await alice.exited).toBe(exit);
      expect(performance.now() - startedAt).toBeLessThan(8000);
      expect(alice.flags).toBe(alice.before);
    },
  );

  test("a log that is followed ends at SIGTERM, too, while the terminal takes nothing", async () => {
    using there = node();
    await using alice = new Visitor(["console", "log", "rack1-a", "-f"], { socket: there.path });
    const session = await there.session();
    await session.say("first\n");
    await alice.sees("first");
    alice.pty.pause();
    await fill(session);
    alice.kill("SIGTERM");
    expect(await alice.exited).toBe(0);
  });

  test("where nobody was let in, and was never anything else", async () => {
    using there = node();
    there.answers = () => ({ state: "refused", code: "busy", message: "console rack1-a: 16 are attached" });
    await using alice = new Visitor(["console", "rack1-a"], { socket: there.path });
    expect(await alice.exited).toBe(3);
    expect(alice.flags).toBe(alice.before);
    await alice.sees(/^fruit: console rack1-a: 16 are attached\r\n$/);
  });
});

describe("keys", () => {
  test("~? helps, ~~ is one for the line, and what is no key is typed", async () => {
    await using met = await meet();
    await met.alice.sees(BANNER);
    await met.alice.type("ls\r~?");
    await met.alice.sees(/ {2}~B {2}send a break\r\n/);
    await met.alice.sees("'stty sane'");
    await met.alice.type("~~root\r~x");
    await until("typed", () => met.session.heard.toString() === "ls\r~root\r~x");
  });

  test("~B, ~d and ~r ask the node, in the order in which they were typed", async () => {
    await using met = await meet();
    await met.alice.sees(BANNER);
    await met.alice.type("a\r~Bb\r~d~r");
    await until("three", () => met.session.asks.length === 3);
    expect(met.session.asks).toEqual([{ do: "break" }, { do: "release" }, { do: "replay", lines: 200 }]);
    expect(met.session.heard.toString()).toBe("a\rb\r");
  });

  test("what is typed before ~B, in one chunk, is on the line before it, and what is typed after after it", async () => {
    await using met = await meet();
    await met.alice.sees(BANNER);
    const breaks: number[] = [];
    met.session.answers = (ask) => {
      if (ask.do === "break") breaks.push(met.session.heard.length);
      return {};
    };
    await met.alice.type(`${"x".repeat(3000)}\r~Bafter`);
    await until("typed", () => met.session.heard.toString().endsWith("after"));
    expect(breaks).toEqual([3001]);
  });

  test("what is typed after ~d goes nowhere, and that is said once", async () => {
    await using met = await meet();
    met.session.answers = (ask) => {
      if (ask.do === "release") void met.session.look({ writer: null }, false);
      return {};
    };
    await met.alice.sees(BANNER);
    await met.alice.type("\r~dreboot");
    await met.alice.sees(/not sent: nobody writes; ~f takes over\]/);
    await until("released", () => met.session.asks.length > 0);
    await met.session.say("still here");
    await met.alice.sees("still here");
    await met.alice.type("x");
    await met.alice.type("\r~t");
    await met.alice.sees("time stamps on");
    expect(met.session.heard.toString()).toBe("\r");
    expect(met.alice.text.match(/not sent/g)).toHaveLength(1);
  });

  test("~w shows who is there, and nothing of theirs that a terminal would obey", async () => {
    await using met = await meet();
    met.session.answers = () => ({
      result: [
        {
          console: "rack1-a",
          number: 7,
          who: "key:bob\x1b[2J@desk",
          door: "mqtt",
          writes: false,
          since: new Date().toISOString(),
          idle_seconds: 90,
          bytes_in: 3,
          bytes_out: 4096,
        },
      ],
    });
    await met.alice.sees(BANNER);
    await met.alice.type("\r~w");
    await met.alice.sees(
      /CONSOLE +NO +WHO +DOOR +MAY +SINCE +IDLE +IN +OUT\r\nrack1-a +7 +bob\?\[2J@desk +mqtt +read +0s +1m +3 +4096\r\n/,
    );
  });

  test("~f takes over with a reason, and without one does not", async () => {
    await using met = await meet({ begins: (session) => session.look({ writer: "key:bob@desk" }, false) });
    await met.alice.sees("you read, bob@desk writes; Enter ~. leaves");
    await met.alice.type("\r~f");
    await met.alice.sees("why do you take over from bob@desk? ");
    // What the console says meanwhile is shown afterwards
    await met.session.say("meanwhile");
    await met.alice.type("wrong\x15night shift");
    await met.alice.sees("night shift");
    expect(met.alice.text).not.toContain("meanwhile");
    await met.alice.type("\r");
    await until("asked", () => met.session.asks.length > 0);
    expect(met.session.asks).toEqual([{ do: "takeover", reason: "night shift" }]);
    await met.alice.sees("meanwhile");
    await met.alice.type("\r~f");
    await met.alice.sees(/why.*why/s);
    await met.alice.type("\x03");
    await met.session.look({ writer: "local:alice" }, true);
    await met.session.say("yours");
    await met.alice.sees("yours");
    await met.alice.type("x");
    await until("typed", () => met.session.heard.toString() === "x");
    expect(met.session.asks).toHaveLength(1);
  });

  test("a refusal is said, and the session goes on", async () => {
    await using met = await meet();
    met.session.answers = () => ({ refused: "outlet 0.0 is locked by bob" });
    await met.alice.sees(BANNER);
    await met.alice.type("\r~B");
    await met.alice.sees(/\[fruit [^ ]+: outlet 0\.0 is locked by bob\]\r\n/);
    await met.alice.type("x");
    await until("typed", () => met.session.heard.toString() === "\rx");
  });

  test.each([
    { args: ["-e", "none"], keys: "\r~.\r~?", typed: "\r~.\r~?" },
    { args: ["-e", "^]"], keys: "\r~.\x1d~", typed: "\r~.\x1d~" },
    { args: ["--raw"], keys: "\r~.", typed: "\r~." },
  ])("$args leaves ~ to the line", async ({ args, keys, typed }) => {
    await using met = await meet({ args: [...args] });
    await met.session.say("ready");
    await met.alice.sees("ready");
    await met.alice.type(keys);
    await until("typed", () => met.session.heard.toString() === typed);
  });

  test("-e ^] makes Ctrl and ] the escape character", async () => {
    await using met = await meet({ args: ["-e", "^]"] });
    await met.alice.sees("Enter ^]. leaves, ^]? helps");
    await met.alice.type("\x1d.");
    expect(await met.alice.exited).toBe(0);
  });

  test("through ssh, which takes the first ~, it is said how to leave", async () => {
    await using met = await meet({ env: { SSH_CONNECTION: "192.0.2.1 5 192.0.2.2 22" } });
    await met.alice.sees("Enter ~~. through ssh leaves");
  });

  test("~l adds what is shown to a file, keeps what it had, and ends at the second", async () => {
    await using met = await meet();
    const file = join(folder.path, "rack1-a.log");
    writeFileSync(file, "of last week\n");
    await met.alice.sees(BANNER);
    await met.session.say("not yet");
    await met.alice.sees("not yet");
    await met.alice.type(`\r~l${file}\r`);
    await met.alice.sees(`log to which file, which is added to? ${file}\r\n`);
    await met.alice.sees(`what is shown is added to ${file}]\r\n`);
    await met.session.say("\x1b[1mKernel panic\x1b[0m\r\n\xff");
    await met.session.mark("power: off by bob");
    await met.alice.sees("power: off by bob]\r\n");
    await met.alice.type("~l");
    await met.alice.sees(`log ${file} is closed]\r\n`);
    await met.session.say("no more");
    await met.alice.sees("no more");
    const shown = met.alice.text.slice(met.alice.text.indexOf("\x1b[1mKernel panic"));
    const logged = shown.slice(0, shown.indexOf("power: off by bob]\r\n") + "power: off by bob]\r\n".length);
    const [before = "", ...rest] = readFileSync(file, "utf8").split(logged);
    expect(before).toMatch(
      /^of last week\n\n\[fruit [-\d]+T[:\d]+Z: log of console rack1-a\]\n\[fruit [^\n]*: what is shown is added to [^\n]*\]\r\n$/,
    );
    expect(rest).toEqual([""]);
  });

  test("~l says in a line why there is no log, the session goes on, and what was begun is whole when it ends", async () => {
    await using met = await meet();
    await met.alice.sees(BANNER);
    await met.alice.type(`\r~l${join(folder.path, "nowhere/a.log")}\r`);
    await met.alice.sees(/\[fruit [^ ]+: ENOENT: no such file or directory[^\r\n]*\]\r\n/);
    await met.alice.type("~l\x03");
    await met.alice.sees(/\[fruit [^ ]+: no log\]\r\n/);
    const file = join(folder.path, "whole.log");
    await met.alice.type(`~l${file}\r`);
    await met.alice.sees("what is shown is added to");
    expect(statSync(file).mode & 0o777).toBe(0o600);
    await met.session.say("the last words");
    await met.alice.sees("the last words");
    await met.alice.type("x\r~.");
    expect(await met.alice.exited).toBe(0);
    expect(met.session.heard.toString()).toBe("\rx\r");
    expect(readFileSync(file, "utf8")).toMatch(/the last words\r\n\[fruit [^ ]+: left\]\r\n$/);
  });

  test("~p without an outlet says so", async () => {
    await using met = await meet();
    await met.alice.sees(BANNER);
    await met.alice.type("\r~p");
    await met.alice.sees("this console has no outlet in the node's configuration");
  });
});

describe("what is typed", () => {
  test("a megabyte at once is all on the line, in order, and the line sets the pace", async () => {
    await using met = await meet();
    await met.alice.sees(BANNER);
    const paste = Buffer.from(Array.from({ length: 1_000_000 }, (_, n) => 32 + ((n * 7) % 90)));
    await met.alice.type(paste);
    await until("all", () => met.session.heard.length === paste.length);
    expect(met.session.heard.equals(paste)).toBe(true);
  });

  test("~. is heard although the line takes nothing", async () => {
    await using met = await meet();
    await met.alice.sees(BANNER);
    met.session.hold = new Promise(() => undefined);
    void met.alice.type(`${"x".repeat(200_000)}\r~.`);
    expect(await met.alice.exited).toBe(0);
    expect(met.alice.flags).toBe(met.alice.before);
  });

  test("what was typed before ~. gets to the line, also when it is more than is under way at once", async () => {
    await using met = await meet();
    await met.alice.sees(BANNER);
    await met.alice.type(`${"x".repeat(60_000)}\r~.`);
    expect(await met.alice.exited).toBe(0);
    expect(met.session.heard.toString()).toBe(`${"x".repeat(60_000)}\r`);
    expect(await met.session.channel.ended).toBe("left");
  });

  test.each([
    {
      what: "somebody else writes",
      look: [{ writer: "local:bob" }, false] as const,
      says: /not sent: bob writes; ~f takes over\]/,
    },
    {
      what: "nobody does",
      look: [{ writer: null }, false] as const,
      says: /not sent: nobody writes; ~f takes over\]/,
    },
    {
      what: "the line is gone",
      look: [{ state: "gone", error: "unplugged" }, true] as const,
      says: /not sent: the line is gone \(unplugged\)\]/,
    },
  ])("is not lost in silence when $what", async ({ look: [change, mayWrite], says }) => {
    await using met = await meet();
    await met.alice.sees(BANNER);
    await met.session.look(change, mayWrite);
    await met.session.say("now");
    await met.alice.sees("now");
    await met.alice.type("rm -rf /\r");
    await met.alice.sees(says);
    // Once, not with every key
    await met.alice.type("abc\r~t");
    await met.alice.sees("time stamps on");
    await met.session.look({ writer: "local:alice", state: "up" }, true);
    await met.session.say("again");
    await met.alice.sees("again");
    await met.alice.type("d");
    await until("typed", () => met.session.heard.length > 0);
    expect(met.session.heard.toString()).toBe("d");
    expect(met.alice.text.match(/not sent/g)).toHaveLength(1);
  });
});

describe("marks", () => {
  test("stand on a line of their own, with their time in UTC", async () => {
    await using met = await meet();
    await met.alice.sees(BANNER);
    await met.session.say("login: ");
    await met.session.mark("power: off by bob");
    await met.session.mark("second\x1b[2J");
    await met.session.say("x");
    await met.alice.sees(
      "login: \r\n[fruit 2026-11-23T07:00:00Z: power: off by bob]\r\n[fruit 2026-11-23T07:00:00Z: second?[2J]\r\nx",
    );
  });

  test.each([
    { what: "an escape sequence", pieces: ["\x1b[1;3", "1mred"], shows: "\x1b[1;31m\r\n[M]\r\nred" },
    { what: "a title", pieces: ["\x1b]0;ti", "tle\x07x"], shows: "\x1b]0;title\x07\r\n[M]\r\nx" },
    {
      what: "a title that ends with ST",
      pieces: ["\x1b]0;t\x1b", "\\x"],
      shows: "\x1b]0;t\x1b\\\r\n[M]\r\nx",
    },
    {
      what: "a character",
      pieces: [Uint8Array.of(0xf0, 0x9f), Uint8Array.of(0x91, 0x8b, 0x78)],
      shows: "👋\r\n[M]\r\nx",
    },
    { what: "a line", pieces: ["one\r\n", "two"], shows: "one\r\n[M]\r\ntwo" },
  ])("wait for the end of $what", async ({ pieces: [first = "", second = ""], shows }) => {
    await using met = await meet();
    await met.alice.sees(BANNER);
    await met.session.say(first);
    await met.session.mark("M");
    await met.session.say(second);
    await met.alice.sees(shows.replace("[M]", "[fruit 2026-11-23T07:00:00Z: M]"));
  });

  test("do not wait for ever: a sequence without an end is called off", async () => {
    await using met = await meet();
    await met.alice.sees(BANNER);
    await met.session.say("\x1b]0;never ending");
    await met.session.mark("M");
    await met.alice.sees("never ending\x18\r\n[fruit 2026-11-23T07:00:00Z: M]\r\n");
  });

  test("--raw shows the line's bytes and nothing else", async () => {
    await using met = await meet({ args: ["--raw", "--no-replay"] });
    await met.session.mark("power: off");
    await met.session.say("only this");
    await met.alice.sees("only this");
    met.session.channel.close("over");
    expect(await met.alice.exited).toBe(1);
    await met.alice.sees("over");
    expect(met.alice.text).toBe("only thisfruit: console rack1-a: over\r\n");
    expect(met.there.asked[0]?.args).toMatchObject({ replay_lines: 0 });
  });

  test("--timestamps shows when a line began, in local time; ~t turns it off", async () => {
    await using met = await meet({ args: ["--timestamps"], env: { TZ: "Europe/Zurich" } });
    await met.alice.sees(BANNER);
    const at = Date.UTC(2026, 10, 23, 7, 8, 9, 42);
    await met.session.say("one\r\n\r\ntwo", at);
    await met.session.say(" more\n\rthree", at + 1000);
    await met.session.say("\r\nundated");
    await met.alice.sees(
      "[08:08:09.042] one\r\n\r[08:08:09.042] \n[08:08:09.042] two more\n\r[08:08:10.042] three\r\n[--:--:--.---] undated",
    );
    await met.alice.type("\r~t");
    await met.alice.sees("time stamps off");
    await met.session.say("\r\nplain\r\n", at);
    await met.alice.sees("]\r\n\r\nplain\r\n");
  });
});

test.each([
  { readers: 0, mayWrite: true, says: "you may type; Enter" },
  { readers: 2, mayWrite: true, says: "you may type; 2 others read; Enter" },
  { readers: 2, mayWrite: false, says: "you read, bob writes; 1 other reads; Enter" },
])("the first words count who else is there: $says", ({ readers, mayWrite, says }) => {
  const view = { v: 1, name: "rack1-a", device: "tty", baud: 9600, state: "up", readers } as const;
  const options = { mayWrite, wants: "write", escape: 0x7e, isThroughSsh: false } as const;
  expect(banner({ ...view, writer: mayWrite ? "local:me" : "local:bob" }, options)).toContain(says);
});
