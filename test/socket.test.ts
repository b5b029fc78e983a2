import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, readFileSync, statSync } from "node:fs";
import { createConnection, type Socket } from "node:net";
import { join } from "node:path";
import { setInterval } from "node:timers/promises";
import type { CommandResult } from "../agent/commands.ts";
import type { Dispatcher } from "../agent/dispatch.ts";
import { openSocket } from "../agent/socket.ts";
import { askSocket, Boards, rawAsk } from "./doors.ts";
import { type Agent, fruit, scratch, startAgent, until } from "./node.ts";

setDefaultTimeout(20_000);

const folder = scratch();
let boards: Boards;
let agent: Agent;

beforeAll(async () => {
  boards = await Boards.serve(folder.path);
  agent = await startAgent(folder.path, { power: boards.power });
});
afterAll(async () => {
  await agent[Symbol.asyncDispose]();
  boards[Symbol.dispose]();
  folder[Symbol.dispose]();
});

const STATUS = JSON.stringify({ verb: "power.status", args: { outlets: ["0.0"] } });

/** A connection that stays as it is. */
function hold(path = agent.socket): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = createConnection(path, () => resolve(socket));
    socket.on("error", reject);
  });
}

const last = (text: string) => JSON.parse(text.trimEnd().split("\n").at(-1) ?? "") as CommandResult;

test("only its owner can open the socket", () => {
  expect(statSync(agent.socket).mode & 0o777).toBe(0o600);
});

test("not even for a moment can anybody else, whatever the umask", async () => {
  using other = scratch();
  const paths = Array.from({ length: 30 }, (_, n) => join(other.path, `${n}.sock`));
  // A thread that does nothing but look: bind and chmod are two steps, and it has many chances to come between.
  const looker = new Worker(
    URL.createObjectURL(
      new Blob([
        `const { lstatSync } = require("node:fs");
         for (const path of ${JSON.stringify(paths)}) {
           postMessage(path);
           let found;
           while (!found) found = lstatSync(path, { throwIfNoEntry: false });
           postMessage(found.mode & 0o777);
         }`,
      ]),
    ),
  );
  const heard: unknown[] = [];
  looker.addEventListener("message", ({ data }) => heard.push(data));
  const before = process.umask(0);
  const stop = new AbortController();
  try {
    for (const path of paths) {
      await until("it looks", () => heard.includes(path));
      // Nobody asks: there is nothing to dispatch.
      const part = await openSocket(path, { idle: async () => undefined } as Dispatcher, () => undefined);
      void part(stop.signal);
    }
    await until("it has seen all", () => heard.length === 2 * paths.length);
  } finally {
    process.umask(before);
    stop.abort();
    looker.terminate();
  }
  expect(new Set(heard.filter((one) => typeof one === "number"))).toEqual(new Set([0o600]));
});

test("several ask at once, and each gets its own answers", async () => {
  const answers = await Promise.all([
    askSocket(agent.socket, "power.status", { outlets: ["0.0"] }),
    askSocket(agent.socket, "job.get"),
    askSocket(agent.socket, "lock.list"),
  ]);
  expect(answers.map((all) => all.map(({ verb, state }) => `${verb} ${state}`))).toEqual([
    ["power.status done"],
    ["job.get done"],
    ["lock.list done"],
  ]);
});

test.each([
  { what: "garbage", bytes: "GET / HTTP/1.1\r\n\r\n", code: "bad-json" },
  { what: "an empty line", bytes: "\n", code: "bad-json" },
  { what: "bytes that are no UTF-8", bytes: Buffer.from('{"verb":"\xff"}\n', "latin1"), code: "bad-utf8" },
  { what: "a list", bytes: "[]\n", code: "bad-envelope" },
  { what: "no verb", bytes: "{}\n", code: "bad-envelope" },
  { what: "a key nobody knows", bytes: '{"verb":"job.get","who":"root"}\n', code: "bad-envelope" },
  { what: "a name with a newline", bytes: '{"verb":"job.get","as":"a\\nb"}\n', code: "bad-envelope" },
  { what: "an unknown verb", bytes: '{"verb":"power.explode"}\n', code: "unknown-verb" },
  { what: "an unknown argument", bytes: '{"verb":"job.get","args":{"lst":1}}\n', code: "bad-args" },
  {
    what: "an unknown outlet",
    bytes: '{"verb":"power.off","args":{"outlets":["7.0"]}}\n',
    code: "unknown-outlet",
  },
  { what: "a line of 17 KiB", bytes: `${STATUS.padEnd(17_000)}\n`, code: "too-large" },
  { what: "17 KiB without a newline", bytes: "x".repeat(17_000), code: "too-large" },
  { what: "a megabyte without a newline", bytes: "x".repeat(1_000_000), code: "too-large" },
])("$what is refused as $code and the connection ends", async ({ bytes, code }) => {
  expect(last(await rawAsk(agent.socket, bytes))).toMatchObject({ state: "refused", code });
  expect(boards.switched).toEqual([]);
});

test("what follows a request is not kept, however long the command takes", async () => {
  using other = scratch();
  using own = await Boards.serve(other.path);
  own.stack.fault("hang", true);
  await using busy = await startAgent(other.path, { power: own.power });
  const socket = await hold(busy.socket);
  socket.write('{"verb":"power.shutdown","args":{"outlets":["0.0"]}}\n');
  await until("it is under way", () => own.switched.includes("signal 0.0"));
  const before = memory(busy);
  const flood = Buffer.alloc(1 << 20, 0x78);
  for (let n = 0; n < 128; n++) await new Promise<void>((resolve) => socket.write(flood, () => resolve()));
  expect((await askSocket(busy.socket, "lock.list")).at(-1)?.state).toBe("done");
  expect(memory(busy) - before).toBeLessThan(64 << 20);
  socket.destroy();
});

/** Bytes of the process's own memory. */
function memory({ pid }: Agent): number {
  const line = /^RssAnon:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"));
  return Number(line?.[1]) * 1024;
}

test("whoever leaves before the answer hurts nobody, and the command is still on record", async () => {
  const socket = await hold();
  socket.end('{"verb":"power.identify","args":{"outlets":["0.0"],"on":false}}\n');
  socket.destroy();
  await until("it is on record", async () => {
    const text = JSON.stringify(await askSocket(agent.socket, "job.get"));
    return text.includes('"verb":"power.identify","state":"done"');
  });
});

test.concurrent("half a request and then silence, or a byte now and then, ends after five seconds", async () => {
  using other = scratch();
  await using patient = await startAgent(other.path, {});
  const silent = await hold(patient.socket);
  const slow = await hold(patient.socket);
  const ends = [silent, slow].map(
    (socket) => new Promise<number>((resolve) => socket.on("close", () => resolve(performance.now()))),
  );
  const startedAt = performance.now();
  silent.write(STATUS.slice(0, 20));
  const drip = new AbortController();
  void (async () => {
    for await (const _ of setInterval(300, undefined, { signal: drip.signal })) slow.write("x");
  })().catch(() => undefined);
  expect((await askSocket(patient.socket, "lock.list")).at(-1)?.state).toBe("done");
  const lived = (await Promise.all(ends)).map((at) => at - startedAt);
  drip.abort();
  for (const ms of lived) expect(ms).toBeGreaterThan(4500);
  for (const ms of lived) expect(ms).toBeLessThan(10_000);
});

test.concurrent("the 33rd connection is told that it is one too many, and the 32 are served", async () => {
  using other = scratch();
  await using crowded = await startAgent(other.path, {});
  const held = await Promise.all(Array.from({ length: 32 }, () => hold(crowded.socket)));
  expect(last(await rawAsk(crowded.socket, `${STATUS}\n`))).toMatchObject({ state: "refused", code: "busy" });
  expect(await crowded.cli("job", "get")).toMatchObject({
    exit: 3,
    err: "fruit: job get: 32 connections are open; try again later\n",
  });
  const [first, ...rest] = held;
  const answered = new Promise<string>((resolve) => first?.on("data", (chunk) => resolve(String(chunk))));
  first?.write('{"verb":"job.get"}\n');
  expect(await answered).toContain('"done"');
  for (const socket of rest) socket.destroy();
  await until("there is room again", async () => (await crowded.cli("job", "get")).exit === 0);
});

test.concurrent("SIGTERM does not wait for somebody who holds a connection", async () => {
  using other = scratch();
  const stopping = await startAgent(other.path, {});
  const socket = await hold(stopping.socket);
  const closed = new Promise((resolve) => socket.on("close", resolve));
  const startedAt = performance.now();
  stopping.kill("SIGTERM");
  expect(await stopping.exited).toBe(0);
  expect(performance.now() - startedAt).toBeLessThan(3000);
  await closed;
  expect(existsSync(stopping.socket)).toBe(false);
});

test.concurrent("a socket left by an agent that was killed is replaced", async () => {
  using other = scratch();
  const first = await startAgent(other.path, {});
  first.kill("SIGKILL");
  await first.exited;
  expect(existsSync(first.socket)).toBe(true);
  await using second = await startAgent(other.path, {});
  expect(await second.cli("job", "get")).toMatchObject({ exit: 0 });
});

test.concurrent("a file that is no socket is left alone, and said", async () => {
  using other = scratch();
  const precious = other.file("fruit.sock", "precious");
  const config = other.file("node.json", {
    site: "lab",
    data_dir: join(other.path, "data"),
    socket: precious,
  });
  const { exit, err } = await fruit(["agent", "--hal", "sim", "--config", config]);
  expect({ exit, err }).toEqual({
    exit: 1,
    err: `fruit: ${precious}: is there and is no socket; move it away, or name another\n`,
  });
  expect(readFileSync(precious, "utf8")).toBe("precious");
});

test.concurrent("a second agent ends with exit 3 and touches nothing of the first", async () => {
  using other = scratch();
  using own = await Boards.serve(other.path);
  own.stack.fault("hang", true);
  await using first = await startAgent(other.path, { power: own.power });
  const cut = first.cli("power", "off", "0.0");
  await until("a command is under way", () => own.switched.includes("signal 0.0"));
  const files = () =>
    ["audit/audit.jsonl", "journal/journal.jsonl"].map((name) =>
      readFileSync(join(other.path, "data", name), "utf8"),
    );
  const before = files();
  const sameSocket = other.file("second.json", {
    site: "lab",
    data_dir: join(other.path, "second"),
    socket: first.socket,
  });
  const sameFolder = other.file("third.json", {
    site: "lab",
    data_dir: join(other.path, "data"),
    socket: join(other.path, "third.sock"),
  });
  for (const config of [first.config, sameSocket, sameFolder])
    expect(await fruit(["agent", "--hal", "sim", "--config", config])).toMatchObject({
      exit: 3,
      err: expect.stringMatching(/^fruit: \S+: another agent is running there.*\n$/),
    });
  expect(files()).toEqual(before);
  // What the first one records from now on reaches the disk, where a restart finds it.
  expect(await first.cli("lock", "0.1", "--reason", "mine")).toMatchObject({ exit: 0 });
  expect(files()[1]).toContain('"verb":"lock.set"');
  expect(await first.cli("audit", "verify")).toMatchObject({ exit: 0 });
  first.kill("SIGTERM");
  expect((await cut).exit).toBe(5);
});
