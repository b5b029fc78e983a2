import { afterAll, afterEach, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { mkdirSync, readFileSync } from "node:fs";
import { createConnection, createServer } from "node:net";
import { join } from "node:path";
import { isProven } from "../agent/commands.ts";
import type { Dispatcher } from "../agent/dispatch.ts";
import { openRest } from "../agent/power/rest.ts";
import { freePort } from "./broker.ts";
import { askSocket, Boards } from "./doors.ts";
import { seeded } from "./fakes.ts";
import { type Agent, scratch, startAgent, until } from "./node.ts";

// Each has an agent of its own, all at once
setDefaultTimeout(20_000);

const folder = scratch();
afterAll(() => folder[Symbol.dispose]());

/** Sends bytes and resolves with all that came back when the other side has closed. */
function say(port: number, text: string | Uint8Array, host = "127.0.0.1"): Promise<string> {
  return new Promise((resolve) => {
    const socket = createConnection(port, host, () => socket.write(text));
    let said = "";
    socket.on("data", (chunk) => {
      said += chunk;
    });
    // A reset is an end as well
    socket.on("error", () => undefined);
    socket.on("close", () => resolve(said));
  });
}

/** A node with two outlets, the first of which may be switched by HTTP. */
async function node(name: string, rest: Record<string, unknown> = {}) {
  const home = join(folder.path, name);
  mkdirSync(home);
  const boards = await Boards.serve(home);
  const port = await freePort();
  const agent = await startAgent(home, {
    node: name,
    power: {
      ...boards.power,
      confirm_seconds: 5,
      retry_seconds: 1,
      outlets: { "0.0": { name: "rack-a" }, "0.1": { name: "rack-b" } },
      rest: { port, outlets: ["0.0"], ...rest },
    },
  });
  const base = `http://127.0.0.1:${port}`;
  await until("it listens", () => fetch(`${base}/outlet/0.0`).catch(() => undefined));
  const get = async (outlet: string, init: RequestInit = {}) => {
    const answer = await fetch(`${base}/outlet/${outlet}`, init);
    return { status: answer.status, text: await answer.text() };
  };
  const put = (outlet: string, body: string, init: RequestInit = {}) =>
    get(outlet, { method: "PUT", body, ...init });
  return {
    agent,
    boards,
    port,
    get,
    put,
    audit: () =>
      readFileSync(join(home, "data/audit/audit.jsonl"), "utf8")
        .trimEnd()
        .split("\n")
        .map((line) => JSON.parse(line)),
    [Symbol.asyncDispose]: async () => {
      await agent[Symbol.asyncDispose]();
      boards[Symbol.dispose]();
    },
  };
}

describe("a node whose first outlet may be switched", () => {
  let here: Awaited<ReturnType<typeof node>>;
  beforeAll(async () => {
    here = await node("open");
  });
  afterAll(() => here[Symbol.asyncDispose]());
  afterEach(async () => {
    expect(await here.put("0.0", "1")).toEqual({ status: 200, text: "1" });
    expect(here.boards.supplies).toBe("0.0 on, 0.1 on");
  });

  test("GET answers the supply as the board has it, in one byte", async () => {
    expect(await here.get("0.0")).toEqual({ status: 200, text: "1" });
    expect(await here.get("rack-b")).toEqual({ status: 200, text: "1" });
    const answer = await say(here.port, "GET /outlet/0.1 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n");
    expect(answer).toEndWith("\r\n\r\n1");
    expect(answer).toContain("connection: close");
  });

  test("PUT and POST switch, and answer when the board has confirmed it", async () => {
    expect(await here.put("0.0", "0")).toEqual({ status: 200, text: "0" });
    expect(here.boards.supplies).toBe("0.0 off, 0.1 on");
    expect(await here.get("rack-a")).toEqual({ status: 200, text: "0" });
    expect(await here.put("0.0", "0")).toEqual({ status: 200, text: "0" });
    expect(await here.put("rack-a", "1\n", { method: "POST" })).toEqual({ status: 200, text: "1" });
    expect(here.boards.supplies).toBe("0.0 on, 0.1 on");
    expect(
      here.audit().filter(({ verb, outcome }) => verb === "power.off" && outcome === "done"),
    ).toMatchObject([{ who: "rest:anybody", src: "socket", args: { outlets: ["0.0"] } }]);
  });

  test.each([
    {
      what: "an outlet that is not listed",
      outlet: "0.1",
      body: "0",
      status: 403,
      says: /rest:anybody may not/,
    },
    { what: "its name", outlet: "rack-b", body: "0", status: 403, says: /rest:anybody may not/ },
    { what: "all of them", outlet: "all", body: "0", status: 404, says: /there is \/outlet/ },
    { what: "a range of them", outlet: "0.0-0.1", body: "0", status: 404, says: /there is \/outlet/ },
    { what: "an outlet nobody has", outlet: "7.0", body: "0", status: 404, says: /no outlet "7.0"/ },
    { what: "nothing", outlet: "", body: "0", status: 404, says: /there is \/outlet/ },
    {
      what: "a path with more in it",
      outlet: "0.0?value=0",
      body: "0",
      status: 404,
      says: /there is \/outlet/,
    },
    { what: "a word", outlet: "0.0", body: "off", status: 400, says: /must be 0 or 1/ },
    { what: "no body", outlet: "0.0", body: "", status: 400, says: /must be 0 or 1/ },
    { what: "two digits", outlet: "0.0", body: "00", status: 400, says: /must be 0 or 1/ },
    { what: "a long body", outlet: "0.0", body: "0".repeat(100_000), status: 413, says: /must be 0 or 1/ },
  ])("PUT of $what switches nothing", async ({ outlet, body, status, says }) => {
    const { switched } = here.boards;
    const answer = await here.put(outlet, body);
    expect(answer).toEqual({ status, text: expect.stringMatching(says) });
    expect(here.boards.switched).toEqual(switched);
  });

  test("reading many outlets at once, and other methods, are refused", async () => {
    expect((await here.get("all")).status).toBe(404);
    expect((await here.get("0.0", { method: "DELETE" })).status).toBe(405);
  });

  test("a lock of somebody else's is a conflict that says who has it", async () => {
    const lock = await askSocket(
      here.agent.socket,
      "lock.set",
      { outlet: "0.0" },
      { reason: "kernel", as: "alice" },
    );
    expect(lock.at(-1)?.state).toBe("done");
    expect(await here.put("0.0", "0")).toEqual({
      status: 409,
      text: expect.stringContaining("locked by alice"),
    });
    await askSocket(here.agent.socket, "lock.clear", { outlet: "0.0" }, { as: "alice" });
  });

  test.each([
    { what: "another host's name (DNS rebinding)", headers: "Host: evil.example" },
    { what: "another host's name that begins like ours", headers: "Host: 127.0.0.1.evil.example" },
    { what: "no host", headers: "Host:" },
    { what: "the page it comes from", headers: "Host: 127.0.0.1\r\nOrigin: http://evil.example" },
    { what: "a page of unknown origin", headers: "Host: localhost\r\nOrigin: null" },
  ])("a web page cannot switch: a request with $what is refused", async ({ headers }) => {
    const { switched } = here.boards;
    for (const method of ["PUT", "POST", "GET"]) {
      const answer = await say(
        here.port,
        `${method} /outlet/0.0 HTTP/1.1\r\n${headers}\r\nContent-Length: 1\r\n\r\n0`,
      );
      expect(answer).toStartWith("HTTP/1.1 403 ");
    }
    expect(here.boards.switched).toEqual(switched);
  });

  test("programs reach it on both addresses of loopback, under each of its names, and nowhere else", async () => {
    const ask = (host: string) => `GET /outlet/0.0 HTTP/1.1\r\nHost: ${host}\r\n\r\n`;
    expect(await say(here.port, ask(`[::1]:${here.port}`), "::1")).toEndWith("\r\n\r\n1");
    expect(await say(here.port, ask("localhost"))).toEndWith("\r\n\r\n1");
    const open = listening(here.agent.pid, here.port);
    expect(open).toEqual(["::1", "127.0.0.1"].sort());
  });

  test("nobody takes all its connections: those too many are turned away, and there is room again", async () => {
    const all = Array.from({ length: 40 }, () => createConnection(here.port, "127.0.0.1"));
    for (const socket of all) socket.on("error", () => undefined);
    await until("most are turned away", () => all.filter(({ closed }) => closed).length >= 20);
    expect(all.filter(({ closed }) => closed).length).toBeLessThan(40);
    for (const socket of all) socket.destroy();
    await until("there is room", () =>
      here.get("0.0").then(
        ({ status }) => status === 200,
        () => false,
      ),
    );
  });

  test("no bytes upset it", async () => {
    const random = seeded(Number(process.env.FRUIT_SEED ?? 1));
    const { switched } = here.boards;
    const seed = Buffer.from("PUT /outlet/0.1 HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1\r\n\r\n0");
    for (let round = 0; round < Number(process.env.FRUIT_FUZZ ?? 5_000) / 200; round++) {
      const wire = Buffer.from(seed);
      for (let change = 0; change < 3; change++)
        wire[Math.floor(random() * wire.length)] = Math.floor(random() * 256);
      const socket = createConnection(here.port, "127.0.0.1", () => socket.end(wire));
      socket.on("error", () => undefined);
      await new Promise((resolve) => socket.resume().once("close", resolve));
    }
    expect((await here.get("0.0")).text).toBe("1");
    expect(here.boards.switched.filter((what) => what.endsWith("0.1"))).toEqual(
      switched.filter((what) => what.endsWith("0.1")),
    );
  });
});

/** The addresses that a process of this name space listens on with this port. */
function listening(pid: number, port: number): string[] {
  const hex = `:${port.toString(16).toUpperCase().padStart(4, "0")}`;
  const lines = (file: string) => readFileSync(`/proc/${pid}/net/${file}`, "utf8").split("\n");
  const found = [...lines("tcp"), ...lines("tcp6")]
    .map((line) => line.trim().split(/\s+/))
    .filter(([, local = "", , state]) => local.endsWith(hex) && state === "0A")
    .map(([, local = ""]) => local.slice(0, -5));
  return found
    .map(
      (address) =>
        ({ "0100007F": "127.0.0.1", "00000000000000000000000001000000": "::1" })[address] ?? address,
    )
    .sort();
}

test.concurrent("with a user and a password nobody else reads or switches, and who switches has that name", async () => {
  const password_file = folder.file("password", "s3cret\n");
  await using here = await node("guarded", { username: "labgrid", password_file });
  const as = (credentials: string) => ({
    headers: { authorization: `Basic ${Buffer.from(credentials).toString("base64")}` },
  });
  const strangers = [
    {},
    as("labgrid:wrong"),
    as("other:s3cret"),
    as("labgrid:s3cret\n"),
    as("labgrid"),
    as(""),
  ];
  const asked = strangers.flatMap((init) => [here.get("0.0", init), here.put("0.0", "0", init)]);
  for (const { status } of await Promise.all(asked)) expect(status).toBe(401);
  expect(here.boards.switched).toEqual([]);
  expect(await here.get("0.0", as("labgrid:s3cret"))).toEqual({ status: 200, text: "1" });
  expect(await here.put("0.0", "0", as("labgrid:s3cret"))).toEqual({ status: 200, text: "0" });
  expect(here.audit().filter(({ who }) => who === "rest:labgrid")).toMatchObject([
    { verb: "power.off" },
    { verb: "power.off", outcome: "done" },
  ]);
  const lock = await askSocket(here.agent.socket, "lock.set", { outlet: "0.0" }, { as: "labgrid" });
  expect(lock.at(-1)?.state).toBe("done");
  // Somebody at the node who goes by the same name is somebody else
  expect(await here.put("0.0", "1", as("labgrid:s3cret"))).toMatchObject({
    status: 409,
    text: expect.stringContaining("locked by labgrid"),
  });
  expect(isProven("rest:labgrid")).toBe(true);
  folder.file("password", "n3w");
  expect((await here.get("0.0", as("labgrid:s3cret"))).status).toBe(401);
  expect((await here.get("0.0", as("labgrid:n3w"))).status).toBe(200);
});

test.concurrent("without its password file it refuses everybody, and says why", async () => {
  await using here = await node("lost", { username: "labgrid", password_file: "/nonexistent/password" });
  const answer = await here.get("0.0", { headers: { authorization: `Basic ${btoa("labgrid:")}` } });
  expect(answer).toEqual({ status: 503, text: expect.stringContaining("/nonexistent/password") });
});

test.concurrent("a port that another program has does not keep the agent from its work", async () => {
  const home = join(folder.path, "taken");
  mkdirSync(home);
  const { port, close } = await taken();
  await using agent: Agent = await startAgent(home, { power: { rest: { port } } });
  await until("it says so", () => agent.log().includes("loopback.failed"));
  expect((await agent.cli("locks")).exit).toBe(0);
  await close();
});

/** A port that another program has. */
async function taken(): Promise<{ port: number; close(): Promise<unknown> }> {
  const other = createServer();
  const port = await new Promise<number>((resolve) =>
    other.listen(0, "127.0.0.1", () => resolve((other.address() as { port: number }).port)),
  );
  return { port, close: () => new Promise((resolve) => other.close(resolve)) };
}

/** The door alone, in this process: whoever gets as far as a command has not been stopped by it. */
async function doorAlone(port: number, limits: { askLimitMs?: number; retryMs?: number }) {
  const alarms: (string | undefined)[] = [];
  const stop = new AbortController();
  const part = await openRest({ port, outlets: [] }, {} as Dispatcher, {
    alarm: (_id, alarm) => alarms.push(alarm?.message),
    log: () => undefined,
    ...limits,
  });
  const over = part(stop.signal);
  return {
    alarms,
    [Symbol.asyncDispose]: async () => {
      stop.abort();
      await over;
    },
  };
}

test.concurrent("a port that another program has is an alarm, and is taken once it is free", async () => {
  const { port, close } = await taken();
  await using here = await doorAlone(port, { retryMs: 20 });
  await until("it is said", () => here.alarms.at(-1)?.includes(`port ${port} (EADDRINUSE)`));
  await close();
  const answer = await until("it is tried again", () =>
    fetch(`http://127.0.0.1:${port}/`).catch(() => undefined),
  );
  expect(answer.status).toBe(404);
  await until("all is well", () => here.alarms.at(-1) === undefined);
});

test.concurrent("a board that cannot be read is no answer, neither 0 nor 1", async () => {
  await using here = await node("dark");
  here.boards.stack.fault("error-reply", true);
  await until("it is noticed", async () => (await here.get("0.0")).status === 503);
  expect((await here.get("0.0")).text).toContain("outlet 0.0");
});

test.concurrent("a board that says yes and does nothing is no success", async () => {
  await using here = await node("stuck");
  here.boards.stack.fault("stuck-on", true);
  const answer = await here.put("0.0", "0");
  expect(answer.status).toBe(503);
  expect(answer.text).not.toMatch(/^[01]$/);
});

test.concurrent("who says nothing, or only half, is not waited for", async () => {
  const port = await freePort();
  await using _here = await doorAlone(port, { askLimitMs: 1000 });
  await until("it listens", () => fetch(`http://127.0.0.1:${port}/`).catch(() => undefined));
  await Promise.all([
    say(port, ""),
    say(port, "GET /outlet/0.0 HTT"),
    say(port, "PUT /outlet/0.0 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n0"),
  ]);
  expect((await fetch(`http://127.0.0.1:${port}/`)).status).toBe(404);
});
