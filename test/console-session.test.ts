/** Sessions over the agent's socket: how a connection becomes one, what bounds them, how they end. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { readFileSync } from "node:fs";
import { createConnection, type Socket } from "node:net";
import { join } from "node:path";
import type { CommandResult, Request } from "../agent/commands.ts";
import type { Channel, Message } from "../agent/console/channel.ts";
import { attachLocally } from "../agent/console/local.ts";
import { Dispatcher } from "../agent/dispatch.ts";
import { Audit } from "../agent/record/audit.ts";
import { Journal } from "../agent/record/journal.ts";
import { openSocket } from "../agent/socket.ts";
import { consoleBench } from "./consoles.ts";
import { askSocket } from "./doors.ts";
import { type Agent, type Executable, FRUIT, SOURCES, scratch, startAgent, until } from "./node.ts";

setDefaultTimeout(20_000);

const never = new AbortController().signal;

/** Somebody attached over a socket, and what they saw. */
async function person(
  path: string,
  as: string,
  options: {
    console?: string;
    mode?: "read" | "write";
    force?: boolean;
    reason?: string;
    replay_lines?: number;
  } = {},
) {
  const channel: Channel = await attachLocally(
    path,
    { console: "rack1-a", mode: "write", replay_lines: 1000, ...options, as },
    never,
  );
  const heard: Message[] = [];
  let ended: string | undefined;
  let gate: PromiseWithResolvers<void> | undefined;
  channel.receive(async (message) => {
    heard.push(message);
    await gate?.promise;
  });
  void channel.ended.then((why) => {
    ended = why;
  });
  const text = () =>
    heard
      .map((message) => {
        if (message.kind === "bytes") return Buffer.from(message.bytes).toString("latin1");
        return message.kind === "mark" ? `[${message.mark.text}]` : "";
      })
      .join("");
  return {
    channel,
    heard,
    text,
    ended: () => ended,
    type: (text: string) => channel.send({ kind: "bytes", bytes: Buffer.from(text) }),
    /** Waits until it was shown. */
    sees: (what: string) => until(`${as} sees ${what}`, () => text().includes(what)),
    hold: () => {
      gate = Promise.withResolvers();
    },
    release: () => gate?.resolve(),
  };
}

/** A door with a scripted line behind it, in this process. */
async function door(folder: string, askLimitMs?: number) {
  const bench = consoleBench();
  const log = () => undefined;
  const journal = await Journal.open(join(folder, "journal"), { nowSeconds: () => Date.now() / 1000, log });
  const audit = await Audit.open(join(folder, "audit"), { boot: "b1", clock: () => "synced" });
  const stop = new AbortController();
  const dispatcher = new Dispatcher({
    table: bench.service.commands,
    journal,
    audit,
    clock: () => ({ synced: true }),
    log,
    signal: stop.signal,
  });
  const path = join(folder, "fruit.sock");
  const part = await openSocket(path, dispatcher, log, bench.service.claim, askLimitMs);
  const running = Promise.all([part(stop.signal), bench.service.part(stop.signal)]);
  await until("the line is open", () => bench.line.isOpen);
  return {
    bench,
    path,
    attached: () => bench.service.consoles.get("rack1-a")?.attached ?? [],
    async [Symbol.asyncDispose]() {
      stop.abort();
      await running;
      await journal.close();
      await audit.close();
    },
  };
}

function connected(path: string): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = createConnection(path, () => resolve(socket));
    socket.on("error", reject);
  });
}

test.concurrent("what a client says right behind its question is the session's, and nothing of the answer is lost", async () => {
  using folder = scratch();
  await using one = await door(folder.path);
  const socket = await connected(one.path);
  const frame = Buffer.from([0, 0, 0, 4, 1, 0x6c, 0x73, 0x0d]);
  const question = '{"verb":"console.open","args":{"console":"rack1-a"},"as":"alice"}\n';
  socket.write(Buffer.concat([Buffer.from(question), frame.subarray(0, 3)]));
  await until("she is attached", () => one.attached().length === 1);
  socket.write(frame.subarray(3));
  await until("it is typed", () => one.bench.line.told.join("") === "ls\r");
  expect(one.attached()).toMatchObject([{ who: "local:alice", door: "socket", writes: true, bytesIn: 3 }]);
  socket.destroy();
  await until("she is gone", () => one.attached().length === 0);
});

test.concurrent("what a client says while its question is being answered is the session's too", async () => {
  using folder = scratch();
  const answered = Promise.withResolvers<void>();
  const heard: string[] = [];
  let isAsked = false;
  const dispatcher = {
    idle: async () => undefined,
    execute: async ({ id, verb }: Request, answer: (result: CommandResult) => void) => {
      isAsked = true;
      await answered.promise;
      const result: CommandResult = { id, verb, state: "done", result: { session: "s1" } };
      answer(result);
      return result;
    },
  } as unknown as Dispatcher;
  const claimed: string[] = [];
  const path = join(folder.path, "fruit.sock");
  const part = await openSocket(
    path,
    dispatcher,
    () => undefined,
    (session, channel) => {
      claimed.push(session);
      channel.receive((message) => {
        if (message.kind === "bytes") heard.push(Buffer.from(message.bytes).toString());
      });
      return true;
    },
  );
  const stop = new AbortController();
  const running = part(stop.signal);
  const socket = await connected(path);
  socket.write('{"verb":"console.open"}\n');
  await until("it is asked", () => isAsked);
  socket.write(Buffer.from([0, 0, 0, 3, 1, 0x6c, 0x73]));
  // Time in which it would be read and forgotten
  await Bun.sleep(50);
  answered.resolve();
  await until("it is heard", () => heard.join("") === "ls");
  expect(claimed).toEqual(["s1"]);
  socket.destroy();
  stop.abort();
  await running;
});

test.concurrent("a session outlives the time a question has, and ends when its client is gone", async () => {
  using folder = scratch();
  const askLimitMs = 1000;
  await using one = await door(folder.path, askLimitMs);
  const silent = await connected(one.path);
  const socket = await connected(one.path);
  socket.write('{"verb":"console.open","args":{"console":"rack1-a"},"as":"bob"}\n');
  await until("he is attached", () => one.attached().length === 1);
  await until("the limit is over for one who asks nothing", () => silent.closed);
  await Bun.sleep(askLimitMs / 2);
  expect(one.attached()).toMatchObject([{ who: "local:bob" }]);
  socket.destroy();
  await until("he is gone", () => one.attached().length === 0);
});

test.concurrent("a refused opening is answered and hung up on like any question", async () => {
  using folder = scratch();
  await using one = await door(folder.path);
  const opening = attachLocally(one.path, { console: "rack9", mode: "read", as: "alice" }, never);
  expect(await opening.catch((error: Error) => error.message)).toBe('no console "rack9"; there are rack1-a');
  const forced = attachLocally(
    one.path,
    { console: "rack1-a", mode: "write", force: true, as: "alice" },
    never,
  );
  expect(await forced.catch((error: Error) => error.message)).toContain("needs a reason");
});

test.concurrent("sessions take no room from questions, and have a bound of their own", async () => {
  using folder = scratch();
  await using one = await door(folder.path);
  const socket = async () => {
    const connection = await connected(one.path);
    connection.write('{"verb":"console.open","args":{"console":"rack1-a","mode":"read"}}\n');
    return connection;
  };
  const sessions = await Promise.all(Array.from({ length: 16 }, socket));
  await until("all are attached", () => one.attached().length === 16);
  // Those who come too late for the console are refused by it, and are no sessions
  expect((await askSocket(one.path, "console.open", { console: "rack1-a" })).at(-1)).toMatchObject({
    state: "refused",
    code: "busy",
  });
  const held = await Promise.all(Array.from({ length: 31 }, () => connected(one.path)));
  expect((await askSocket(one.path, "console.list")).at(-1)?.state).toBe("done");
  for (const connection of [...sessions, ...held]) connection.destroy();
  await until("all are gone", () => one.attached().length === 0);
});

test.concurrent("sixty-four sessions are open at most; the next is told so, and let in when one has left", async () => {
  using folder = scratch();
  const dispatcher = {
    idle: async () => undefined,
    execute: async ({ id, verb }: Request, answer: (result: CommandResult) => void) => {
      const result: CommandResult = { id, verb, state: "done", result: { session: id } };
      answer(result);
      return result;
    },
  } as unknown as Dispatcher;
  const path = join(folder.path, "fruit.sock");
  const claimed: Channel[] = [];
  const log = () => undefined;
  const part = await openSocket(path, dispatcher, log, (_session, channel) => claimed.push(channel) > 0);
  const stop = new AbortController();
  const running = part(stop.signal);
  const open = async () => {
    const socket = await connected(path);
    let said = "";
    socket.on("data", (chunk) => {
      said += chunk;
    });
    socket.write('{"verb":"console.open"}\n');
    await until("it is answered", () => said.includes('"state"'));
    return { socket, said };
  };
  const first = await open();
  for (let n = 1; n < 64; n++) await open();
  await until("all are sessions", () => claimed.length === 64);
  expect((await open()).said).toContain('"code":"busy","message":"64 sessions are open; try again later"');
  first.socket.destroy();
  await until("there is room", async () => (await open()).said.includes('"state":"done"'));
  for (const channel of claimed) channel.close();
  stop.abort();
  await running;
});

test.concurrent("who says what nobody knows and never reads that it was heard is cut off", async () => {
  using folder = scratch();
  await using one = await door(folder.path);
  const socket = await connected(one.path);
  socket.write('{"verb":"console.open","args":{"console":"rack1-a","mode":"read"}}\n');
  await until("it is attached", () => one.attached().length === 1);
  socket.pause();
  socket.on("error", () => undefined);
  // Messages of a type that no release has, the shortest that there are
  const unknown = Buffer.concat(Array.from({ length: 4000 }, () => Buffer.from([0, 0, 0, 1, 200])));
  for (let n = 0; n < 400 && one.attached().length > 0; n++) {
    socket.write(unknown);
    await Bun.sleep(1);
  }
  await until("it is cut off", () => one.attached().length === 0);
  expect(one.bench.audited.at(-1)).toMatchObject({
    verb: "console.session",
    args: { why: expect.stringMatching(/\d+ bytes are not read/) },
  });
  socket.destroy();
});

test.concurrent.each([0, 501, 65_470])(
  "a reason of %i characters to take over ends the session of who gives it, and no other's",
  async (length) => {
    using folder = scratch();
    await using one = await door(folder.path);
    const alice = await person(one.path, "alice");
    const bob = await person(one.path, "bob", { mode: "read" });
    await bob.sees("attached");
    await bob.channel.send({ kind: "ask", n: 1, ask: { do: "takeover", reason: "x".repeat(length) } });
    await until("he is gone", () => bob.ended()?.includes("what came is no console"));
    await alice.type("x");
    await until("she still types", () => one.bench.line.told.join("") === "x");
    expect((await person(one.path, "carol")).ended()).toBeUndefined();
  },
);

test.concurrent("a reader who stops for long takes nothing from the ring, the line or the others", async () => {
  using folder = scratch();
  await using one = await door(folder.path);
  const alice = await person(one.path, "alice");
  const bob = await person(one.path, "bob", { mode: "read" });
  await bob.sees("attached");
  bob.hold();
  let said = 0;
  const chunk = new Uint8Array(1000).fill(0x78);
  const shown = () =>
    alice.heard.reduce((sum, item) => sum + (item.kind === "bytes" ? item.bytes.length : 0), 0);
  for (let n = 0; n < 4000; n++) {
    one.bench.line.say(chunk);
    said += chunk.length;
    if (n % 60 === 0) await until("she has it all", () => shown() === said);
  }
  await until("she has it all", () => shown() === said);
  bob.release();
  await bob.sees("bytes skipped");
  one.bench.line.say("end");
  await bob.sees("end");
  const skipped = [...bob.text().matchAll(/\[(\d+) bytes skipped\]/g)].reduce(
    (sum, [, n]) => sum + Number(n),
    0,
  );
  expect(skipped).toBeGreaterThan(2_000_000);
  expect(skipped + (bob.text().match(/x/g)?.length ?? 0)).toBe(said);
  expect(one.bench.service.consoles.get("rack1-a")).toMatchObject({
    numbers: { rx_bytes_total: said + 3, skipped_bytes_total: skipped },
  });
});

test.concurrent("when the agent stops, sessions are told, also one that does not listen, and none holds it up", async () => {
  using folder = scratch();
  const one = await door(folder.path);
  const alice = await person(one.path, "alice");
  const bob = await person(one.path, "bob", { mode: "read" });
  bob.hold();
  for (let n = 0; n < 100; n++) one.bench.line.say(new Uint8Array(10_000));
  const deaf = await connected(one.path);
  deaf.write('{"verb":"console.open","args":{"console":"rack1-a","mode":"read"}}\n');
  await until("three are attached", () => one.attached().length === 3);
  const startedAt = performance.now();
  await one[Symbol.asyncDispose]();
  await until("she is told", () => alice.ended() === "the agent stops");
  const closed = new Promise((resolve) => deaf.once("close", resolve));
  deaf.resume();
  await closed;
  expect(performance.now() - startedAt).toBeLessThan(10_000);
  bob.release();
  await until("he is told", () => bob.ended() !== undefined);
});

describe.each<Executable>([SOURCES, ...(FRUIT === SOURCES ? [] : [FRUIT])])("$name", (executable) => {
  const folder = scratch();
  let agent: Agent;
  const start = (path: string) =>
    startAgent(
      path,
      {
        power: { buses: [{ driver: "sim", boards: [0] }], poll_seconds: 1, off_time_seconds: 2 },
        sim: { boards: 1, wire_time: false },
        consoles: {
          "rack1-a": { device: "sim:0.0", outlet: "0.0", record: { dir: join(path, "rec") } },
          free: { device: "/dev/ttyUSB7" },
        },
      },
      { executable },
    );

  beforeAll(async () => {
    agent = await start(folder.path);
  });
  afterAll(async () => {
    await agent[Symbol.asyncDispose]();
    folder[Symbol.dispose]();
  });

  test("a technician sees the boot log, logs in, cycles the Pi and sees it boot again", async () => {
    const alice = await person(agent.socket, "alice");
    await alice.sees("pi0-0 login: ");
    expect(alice.text()).toContain("sim:0.0 is open, 115200 8N1");
    await alice.type("root\rsecret\r");
    await alice.sees("pi0-0:~# ");
    await alice.type("uname\r");
    await alice.sees("uname\r\nLinux\r\n");
    expect(alice.text()).not.toContain("secret");
    const cycled = agent.cli("power", "reset", "0.0", "--reason", "kernel test");
    await alice.sees("[power: on by ");
    await until("it boots again", () => alice.text().split("Booting Linux").length === 3);
    const order = [...alice.text().matchAll(/power: \w+ by|Booting/g)].map(([what]) => what);
    expect(order).toEqual(["Booting", "power: off by", "power: on by", "Booting"]);
    expect((await cycled).exit).toBe(0);
    alice.channel.close("left");
    const audit = join(folder.path, "data/audit/audit.jsonl");
    await until("it is on record", () => readFileSync(audit, "utf8").includes('"console.session"'));
  });

  test("somebody takes over with a reason, and somebody is sent away", async () => {
    const alice = await person(agent.socket, "alice", { console: "free" });
    await alice.sees("alice attached and writes");
    const bob = await person(agent.socket, "bob", { console: "free", force: true, reason: "mine" });
    await alice.sees("bob took over from alice (mine)");
    expect(
      (
        await askSocket(agent.socket, "console.kick", { console: "free", who: "bob" }, { reason: "enough" })
      ).at(-1)?.state,
    ).toBe("done");
    await until("he is told", () => bob.ended() === "root sent you away (enough)");
    alice.channel.close("left");
  });

  test("SIGTERM ends sessions with a word, writes the recording to its end, and does not wait for one who does not listen", async () => {
    using own = scratch();
    await using stopping = await start(own.path);
    const alice = await person(stopping.socket, "alice");
    await alice.sees("pi0-0 login: ");
    await alice.type("root\rsecret\r");
    await alice.sees("pi0-0:~# ");
    const deaf = await connected(stopping.socket);
    deaf.write('{"verb":"console.open","args":{"console":"rack1-a","mode":"read"}}\n');
    await alice.sees("root attached");
    const startedAt = performance.now();
    stopping.kill("SIGTERM");
    expect(await stopping.exited).toBe(0);
    expect(performance.now() - startedAt).toBeLessThan(10_000);
    await until("she is told", () => alice.ended() === "the agent stops");
    const recorded = readFileSync(join(own.path, "rec/rack1-a.log"), "utf8");
    expect(recorded).toContain("alice attached");
    expect(recorded).toEndWith("detached]\n");
    expect(recorded).not.toContain("secret");
    deaf.destroy();
  });
});
