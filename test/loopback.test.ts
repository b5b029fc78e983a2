import { expect, onTestFinished, test } from "bun:test";
import { readFileSync } from "node:fs";
import { createConnection, createServer, type Server, type Socket } from "node:net";
import { loopback } from "../agent/loopback.ts";
import { freePort } from "./broker.ts";
import { until } from "./node.ts";

/** A door that says hello, and what it said of its port. */
function door(port: number, lastWords?: () => Promise<unknown>) {
  const alarms: (string | undefined)[] = [];
  const logged: string[] = [];
  const stop = new AbortController();
  const over = loopback({
    port,
    name: "a door",
    id: "door",
    most: 2,
    create: () => createServer((socket) => void socket.write("hello")),
    ...(lastWords ? { lastWords } : {}),
    alarm: (_id, alarm) => alarms.push(alarm?.message),
    log: (_level, what) => logged.push(what),
    retryMs: 20,
  })(stop.signal);
  const close = async () => {
    stop.abort();
    await over;
  };
  onTestFinished(close);
  return { alarms, logged, close };
}

/** Connects and waits for the hello. */
async function greeted(port: number, host = "127.0.0.1"): Promise<Socket> {
  const socket = createConnection(port, host).resume();
  socket.on("error", () => undefined);
  onTestFinished(() => void socket.destroy());
  await until("the hello", () => socket.bytesRead === 5 || socket.closed);
  return socket;
}

async function taken(port: number, host: string): Promise<Server> {
  const server = createServer();
  await new Promise<void>((resolve, reject) => server.once("error", reject).listen(port, host, resolve));
  onTestFinished(() => void server.close());
  return server;
}

test("an address that somebody else has is tried again, and those who came by the other stay", async () => {
  const port = await freePort();
  const other = await taken(port, "::1");
  let tries = 0;
  const { alarms, logged } = door(port, () => Promise.resolve(++tries));
  await until("it is said", () => alarms.at(-1)?.includes(`cannot listen on ::1 port ${port} (EADDRINUSE)`));
  const guest = await greeted(port);
  tries = 0;
  await until("it is tried again and again", () => tries > 3);
  expect(guest.closed).toBe(false);
  expect(logged).toEqual(["loopback.failed"]);
  other.close();
  await until("all is well", () => alarms.at(-1) === undefined);
  expect((await greeted(port, "::1")).closed).toBe(false);
});

test("it listens on 127.0.0.1 and ::1, and on no other address", async () => {
  const port = await freePort();
  const { alarms } = door(port);
  await until("both addresses are had", () => alarms.length === 2);
  const hex = port.toString(16).toUpperCase().padStart(4, "0");
  // proc(5): local address, in the machine's byte order, and state 0A for listening
  const listening = ["/proc/net/tcp", "/proc/net/tcp6"].flatMap((file) =>
    readFileSync(file, "utf8")
      .split("\n")
      .map((line) => line.trim().split(/\s+/))
      .flatMap(([, local = "", , state]) => (state === "0A" && local.endsWith(`:${hex}`) ? [local] : [])),
  );
  expect(listening).toEqual([`0100007F:${hex}`, `${"0".repeat(24)}01000000:${hex}`]);
});

test("those too many are turned away without a word, whichever address they come by", async () => {
  const port = await freePort();
  door(port);
  await until("it listens", () => greeted(port).then(({ closed, destroyed }) => !closed && !destroyed));
  expect((await greeted(port, "::1")).closed).toBe(false);
  const third = await greeted(port, "::1");
  expect([third.closed, third.bytesRead]).toEqual([true, 0]);
});

test("when it is told to stop nobody is kept, and last words are waited for", async () => {
  const port = await freePort();
  const words = Promise.withResolvers<void>();
  const { close } = door(port, () => words.promise);
  await until("it listens", () => greeted(port).then((socket) => !socket.closed && socket));
  const guest = await greeted(port, "::1");
  const closing = close();
  expect((await greeted(port)).closed).toBe(true);
  expect(guest.closed).toBe(false);
  words.resolve();
  await closing;
  await until("it is hung up", () => guest.closed);
});
