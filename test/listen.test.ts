import { expect, onTestFinished, test } from "bun:test";
import { readFileSync } from "node:fs";
import { createConnection, createServer, type Socket } from "node:net";
import { parseConfig } from "../agent/config.ts";
import type { Client } from "../agent/console/client.ts";
import { openListeners } from "../agent/console/listen.ts";
import type { Item } from "../agent/console/port.ts";
import { rfc2217 } from "../agent/console/rfc2217.ts";
import { createConsoleService } from "../agent/console/service.ts";
import { COM_PORT, escaped, subnegotiation } from "../agent/console/telnet.ts";
import type { Lock } from "../agent/messages.ts";
import {
  HalError,
  type LineEvents,
  type LineSettings,
  type ModemLines,
  type SerialLine,
} from "../hal/ports.ts";
import { freePort } from "./broker.ts";
import { notation } from "./fakes.ts";
import { until } from "./node.ts";
import { needsModule, python } from "./python.ts";

/** The far side of a serial line: what it was told, and a voice. */
class FarSide implements SerialLine {
  readonly written: Uint8Array[] = [];
  readonly told: string[] = [];
  /** While it is set, nothing that is written gets through. */
  held: PromiseWithResolvers<void> | undefined;
  /** What its driver says of the modem lines; by itself it cannot tell. */
  modemLines?: () => Promise<ModemLines>;
  #events: LineEvents | undefined;

  open = async (_device: string, settings: LineSettings, events: LineEvents): Promise<SerialLine> => {
    this.told.push(`open ${settings.baud}`);
    this.#events = events;
    return this;
  };

  say(bytes: Uint8Array | string): void {
    this.#events?.bytes(Buffer.from(bytes));
  }

  unplug(): void {
    this.#events?.gone(new HalError("io", "unplugged"));
  }

  get heard(): Buffer {
    return Buffer.concat(this.written);
  }

  async write(bytes: Uint8Array): Promise<void> {
    await this.held?.promise;
    this.written.push(bytes);
  }

  async sendBreak(ms: number): Promise<void> {
    this.told.push(`break ${ms}`);
  }

  async setLines(lines: { dtr?: boolean; rts?: boolean }): Promise<void> {
    this.told.push(JSON.stringify(lines));
  }

  async change(settings: Partial<LineSettings>): Promise<void> {
    this.told.push(JSON.stringify(settings));
  }

  async close(): Promise<void> {}
}

/** A console with both ports, on a line in the test's hands. */
async function listening(more: Record<string, unknown> = {}) {
  const [raw, rfc2217] = [await freePort(), await freePort()];
  const { consoles: config } = parseConfig("node.json", {
    site: "lab",
    power: { buses: [{ driver: "sim", boards: [0] }] },
    consoles: { a: { device: "/dev/ttyUSB0", outlet: "0.0", raw, rfc2217, ...more } },
  });
  const line = new FarSide();
  const logged: string[] = [];
  const audited: string[] = [];
  const alarms = new Map<string, string | null>();
  let lock: Lock | undefined;
  const service = createConsoleService({
    config,
    hal: { openLine: line.open },
    outlets: { lockOf: () => lock, onChange: () => undefined },
    publish: () => undefined,
    alarm: (id, alarm) => alarms.set(id, alarm?.message ?? null),
    tell: () => undefined,
    audit: ({ verb, who }) => audited.push(`${verb} ${who}`),
    teleSeconds: 0,
    kernelConsoles: [],
    clock: () => ({ synced: true }),
    log: (level, what, fields) => logged.push(`${level} ${what} ${JSON.stringify(fields)}`),
  });
  const stop = new AbortController();
  const over = service.part(stop.signal);
  const close = async () => {
    stop.abort();
    await over;
  };
  onTestFinished(close);
  const console = service.consoles.get("a");
  if (!console) throw new Error("no console");
  await until(
    "it listens",
    () => alarms.get("listener-a-raw") === null && alarms.get("listener-a-rfc2217") === null,
  );
  await until("the line is open", () => console.state.state === "up");
  return {
    raw,
    rfc2217,
    line,
    console,
    logged,
    audited,
    alarms,
    close,
    lock: (owner: string) => {
      lock = {
        outlet: "0.0",
        owner,
        reason: "test",
        since: "2026-11-23T07:00:00Z",
        until: "2099-01-01T00:00:00Z",
      };
    },
  };
}

/** A program that has connected, and all it was sent. */
class Program {
  readonly socket: Socket;
  readonly #received: Buffer[] = [];

  private constructor(socket: Socket) {
    this.socket = socket;
    socket.on("data", (chunk: Buffer) => this.#received.push(chunk));
    socket.on("error", () => undefined);
    onTestFinished(() => void socket.destroy());
  }

  static async on(port: number, host = "127.0.0.1"): Promise<Program> {
    const program = new Program(createConnection(port, host));
    await until("it is connected", () => !program.socket.connecting);
    return program;
  }

  get received(): Buffer {
    return Buffer.concat(this.#received);
  }

  take(): Buffer {
    return Buffer.concat(this.#received.splice(0));
  }

  /** Waits for bytes, in the usual notation, and takes them with all before. */
  async hears(what: string): Promise<void> {
    await until(`${what} is heard`, () => notation(this.received).includes(what));
    this.take();
  }
}

/** Waits until so many are attached. */
const attached = (here: Awaited<ReturnType<typeof listening>>, count: number) =>
  until(`${count} are attached`, () => here.console.attached.length === count);

const EVERY_BYTE = Uint8Array.from({ length: 512 }, (_, n) => n % 256);

test("raw TCP carries every byte both ways, on both addresses, and nothing of its own", async () => {
  const here = await listening();
  here.line.say("before anybody came");
  const first = await Program.on(here.raw);
  await attached(here, 1);
  const second = await Program.on(here.raw, "::1");
  await attached(here, 2);
  first.socket.write(EVERY_BYTE);
  await until("all is written", () => here.line.heard.length === EVERY_BYTE.length);
  expect(notation(here.line.heard)).toBe(notation(EVERY_BYTE));
  here.line.say(EVERY_BYTE);
  here.line.unplug();
  await until("it is back", () => here.line.told.length === 2);
  here.line.say("after");
  const expected = notation(Buffer.concat([EVERY_BYTE, Buffer.from("after")]));
  await until("both heard all", () => [first, second].every(({ received }) => received.length >= 517));
  expect([first, second].map(({ received }) => notation(received))).toEqual([expected, expected]);
  expect(here.console.attached.map(({ who, writes }) => [who.replace(/\d+$/, "N"), writes])).toEqual([
    ["raw:127.0.0.1:N", true],
    ["raw:[::1]:N", false],
  ]);
});

test("whoever types first writes; what others send is forgotten until nobody writes any more", async () => {
  const here = await listening();
  const second = await Program.on(here.raw);
  await attached(here, 1);
  const first = await Program.on(here.raw);
  await attached(here, 2);
  expect(here.console.attached.map(({ writes }) => writes)).toEqual([false, false]);
  expect(here.audited.map((line) => line.replace(/ .*/, ""))).toEqual(["console.attach", "console.attach"]);
  first.socket.write("the ");
  await until("the first is heard", () => here.line.heard.length > 0);
  second.socket.write("from the second\n");
  await until("it is said", () => here.logged.some((line) => line.includes("console.refused")));
  second.socket.write("and again\n");
  first.socket.write("first\n");
  await until("the first is heard again", () => here.line.heard.includes("first"));
  first.socket.end();
  await attached(here, 1);
  second.socket.write("now the second\n");
  await until("the second is heard", () => here.line.heard.includes("now"));
  expect(here.line.heard.toString()).toBe("the first\nnow the second\n");
  expect(here.logged.filter((line) => line.includes("console.refused"))).toHaveLength(1);
});

test("who connects, sends and leaves is heard to the end, also by a line that takes its time", async () => {
  const here = await listening();
  here.line.held = Promise.withResolvers();
  const program = await Program.on(here.raw);
  program.socket.write("re");
  await until("the first bytes wait for the line", () => here.console.attached[0]?.bytesIn === 2);
  program.socket.end("boot\n");
  await until("it has left", () => program.socket.closed);
  here.line.held.resolve();
  await until("it is heard", () => here.line.heard.toString() === "reboot\n");
  await attached(here, 0);
});

test("who has said all it wanted to and still listens gets the answer, and is hung up on when the line is quiet", async () => {
  const here = await listening();
  const program = await Program.on(here.raw);
  await attached(here, 1);
  program.socket.end("version\n");
  await until("the line has it", () => here.line.heard.toString() === "version\n");
  await Bun.sleep(20);
  here.line.say("1.2.3\n");
  await until("it is let go", () => program.socket.destroyed);
  expect(program.received.toString()).toBe("1.2.3\n");
  await attached(here, 0);
});

test("who has left does not stay the writer of a line that takes nothing", async () => {
  const here = await listening();
  here.line.held = Promise.withResolvers();
  const program = await Program.on(here.raw);
  program.socket.write("re");
  await until("the first bytes wait for the line", () => here.console.attached[0]?.bytesIn === 2);
  program.socket.write("boot");
  program.socket.destroy();
  await attached(here, 0);
  expect(here.console.state.writer).toBeNull();
  here.line.held.resolve();
  const next = await Program.on(here.raw);
  next.socket.write("next");
  await until("another is heard", () => here.line.heard.includes("next"));
  // What was under way already cannot be called back
  expect(here.line.heard.toString()).toBe("renext");
});

test("who left while it was not read from, of a line that takes nothing, is hung up on in the end", async () => {
  const here = await listening();
  here.line.held = Promise.withResolvers();
  const port = await freePort();
  const stop = new AbortController();
  const over = openListeners({
    consoles: new Map([["a", here.console]]),
    config: parseConfig("node.json", { site: "lab", consoles: { a: { device: "x", raw: port } } }).consoles,
    alarm: () => undefined,
    log: (_level, _what, fields) => here.logged.push(JSON.stringify(fields)),
    stuckMs: 500,
  })(stop.signal);
  const program = await until("it listens", () => Program.on(port).catch(() => undefined));
  await attached(here, 1);
  program.socket.write(Buffer.alloc(300_000));
  await until("it writes", () => here.console.state.writer !== null);
  await Bun.sleep(100);
  program.socket.destroy();
  await attached(here, 0);
  expect(here.console.state.writer).toBeNull();
  expect(here.logged.join()).toContain("nothing was taken for 0.5 s");
  stop.abort();
  await over;
});

test("who connects again and again waits for a turn, so that what is on record of it is bounded; who came before is served", async () => {
  const here = await listening();
  const staying = await Program.on(here.raw);
  await attached(here, 1);
  for (let n = 0; n < 60; n++) {
    const one = await Program.on(here.raw);
    one.socket.destroy();
    await until("it is gone", () => one.socket.closed);
  }
  staying.socket.write("staying ");
  await until("who waited is served in turn", () => here.line.heard.includes("staying"));
  expect(here.audited.filter((line) => line.startsWith("console.attach")).length).toBeLessThan(30);
  staying.socket.destroy();
  await until("another has a turn", async () => {
    const late = await Program.on(here.raw);
    late.socket.write("late");
    await Bun.sleep(200);
    return here.line.heard.includes("late");
  });
});

test("while its outlet is locked by somebody, programs only read", async () => {
  const here = await listening();
  const program = await Program.on(here.raw);
  await attached(here, 1);
  here.lock("local:alice");
  program.socket.write("x");
  await until("it is said", () => here.logged.some((line) => line.includes("locked by alice")));
  expect(here.line.heard).toHaveLength(0);
  here.line.say("still read");
  await until("it reads", () => program.received.toString() === "still read");
});

test("a program that does not read holds up nobody, and misses bytes without a word among them", async () => {
  const here = await listening();
  const slow = await Program.on(here.raw);
  await attached(here, 1);
  slow.socket.pause();
  const quick = await Program.on(here.raw);
  await attached(here, 2);
  let heard = 0;
  quick.socket.removeAllListeners("data").on("data", (chunk: Buffer) => {
    heard += chunk.length;
  });
  const pieces = 500;
  // Not ASCII, so that a word of ours would be seen
  for (let n = 1; n <= pieces; n++) {
    here.line.say(Buffer.alloc(32_768, 128 + (n % 100)));
    while (heard < n * 32_768) await new Promise(setImmediate);
  }
  slow.socket.resume();
  here.line.say("END");
  await until("the slow one hears the end", () => slow.received.subarray(-3).toString() === "END");
  const { received } = slow;
  expect(received.length).toBeLessThan(pieces * 32_768);
  expect(received.subarray(0, -3).every((byte) => byte >= 128)).toBe(true);
});

test("a program that sends more than the line takes has to wait, and nothing of it is lost", async () => {
  const here = await listening();
  here.line.held = Promise.withResolvers();
  const program = await Program.on(here.raw);
  // More than the kernel keeps for two sockets
  const all = Buffer.from(Uint32Array.from({ length: 8_000_000 }, (_, n) => n).buffer);
  program.socket.write(all);
  let waiting = 0;
  await until("nothing more is taken", async () => {
    const before = waiting;
    await Bun.sleep(100);
    waiting = program.socket.writableLength;
    return waiting === before;
  });
  expect(waiting).toBeGreaterThan(8_000_000);
  here.line.held.resolve();
  here.line.held = undefined;
  const sum = () => here.line.written.reduce((sum, { length }) => sum + length, 0);
  await until("all is written", () => sum() === all.length);
  expect(Bun.hash(here.line.heard)).toBe(Bun.hash(all));
});

test("a fifth program is turned away, and there is room when one leaves", async () => {
  const here = await listening();
  const programs = [];
  for (let n = 0; n < 4; n++) programs.push(await Program.on(here.raw));
  await attached(here, 4);
  const fifth = await Program.on(here.raw);
  await until("it is turned away", () => fifth.socket.closed);
  expect(fifth.received).toHaveLength(0);
  programs[0]?.socket.destroy();
  await attached(here, 3);
  await Program.on(here.raw);
  await attached(here, 4);
});

test("a web page cannot type: what a browser sends is hung up on before its first byte reaches the line", async () => {
  const here = await listening();
  const greetings = [
    "POST / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nrm -rf /\n",
    // Longer than what comes at once
    `GET /${"a".repeat(200_000)}`,
    // TLS, as a page with https:// in it makes it begin
    Uint8Array.of(0x16, 3, 1, 2, 0, 1, 0),
  ];
  for (const port of [here.raw, here.rfc2217])
    for (const greeting of greetings) {
      const browser = await Program.on(port);
      browser.socket.write(greeting);
      await until("it is hung up on", () => browser.socket.closed);
    }
  const halting = await Program.on(here.raw);
  for (const part of ["P", "OST", " ", "/ HTTP/1.1\r\n\r\nreboot\n"]) {
    halting.socket.write(part);
    await Bun.sleep(5);
  }
  await until("it is hung up on", () => halting.socket.closed);
  expect(here.line.heard).toHaveLength(0);
  const modem = await Program.on(here.raw);
  modem.socket.write("AT\r");
  await until("a program is heard", () => here.line.heard.length > 0);
  modem.socket.write("GET / HTTP/1.1\r\n\r\n");
  await until("it may say what it likes later", () => here.line.heard.includes("GET"));
  expect(here.line.heard.toString()).toBe("AT\rGET / HTTP/1.1\r\n\r\n");
});

test("what might have become a browser is heard after a moment, and when it leaves", async () => {
  const here = await listening();
  const slow = await Program.on(here.raw);
  slow.socket.write("LO");
  await until("it is heard", () => here.line.heard.toString() === "LO");
  slow.socket.end("GIN");
  await attached(here, 0);
  const quick = await Program.on(here.raw);
  quick.socket.end("HALT");
  await until("it is heard", () => here.line.heard.toString() === "LOGINHALT");
});

test("a peer that is gone without a word is noticed: keepalive is on", async () => {
  const here = await listening();
  const program = await Program.on(here.raw);
  await attached(here, 1);
  const mine = `:${here.raw.toString(16).toUpperCase().padStart(4, "0")}`;
  const theirs = `:${(program.socket.localPort ?? 0).toString(16).toUpperCase().padStart(4, "0")}`;
  const row = readFileSync("/proc/self/net/tcp", "utf8")
    .split("\n")
    .map((line) => line.trim().split(/\s+/))
    .find(([, local = "", remote = ""]) => local.endsWith(mine) && remote.endsWith(theirs));
  // proc(5): timer 2 is keepalive; its rest in jiffies of 1/100 s
  const [timer = "", left = ""] = row?.[5]?.split(":") ?? [];
  expect(timer).toBe("02");
  expect(Number.parseInt(left, 16)).toBeLessThanOrEqual(1500);
});

test("when the agent stops its programs are let go, and its ports are free", async () => {
  const here = await listening();
  const programs = [await Program.on(here.raw), await Program.on(here.rfc2217)];
  await attached(here, 2);
  await here.close();
  await until("they are let go", () => programs.every(({ socket }) => socket.closed));
  for (const port of [here.raw, here.rfc2217]) {
    const server = createServer();
    await new Promise<void>((resolve, reject) =>
      server.once("error", reject).listen(port, "127.0.0.1", resolve),
    );
    server.close();
  }
});

test("a port that somebody else has is an alarm and ends nothing", async () => {
  const other = createServer();
  await new Promise<void>((resolve) => other.listen(0, "127.0.0.1", resolve));
  onTestFinished(() => void other.close());
  const { port } = other.address() as { port: number };
  const { consoles: config } = parseConfig("node.json", {
    site: "lab",
    consoles: { a: { device: "x", raw: port } },
  });
  const here = await listening();
  const alarms: (string | undefined)[] = [];
  const stop = new AbortController();
  const over = openListeners({
    consoles: new Map([["a", here.console]]),
    config,
    alarm: (id, alarm) => alarms.push(`${id}: ${alarm?.message}`),
    log: () => undefined,
    retryMs: 20,
  })(stop.signal);
  await until("it is said", () => alarms.some((alarm) => alarm?.includes(`port ${port} (EADDRINUSE)`)));
  other.close();
  await until("it listens", () => alarms.at(-1) === "listener-a-raw: undefined");
  stop.abort();
  await over;
});

/** A request as it goes over the wire, and its answer in the usual notation. */
const ask = (...body: number[]) => subnegotiation(COM_PORT, Uint8Array.from(body));
const answered = (body: string) => `ff fa 2c ${body} ff f0`;

test("RFC 2217 carries every byte both ways whatever the chunks", async () => {
  const here = await listening();
  const program = await Program.on(here.rfc2217);
  await program.hears("ff fd 2c");
  program.socket.write(Uint8Array.of(255, 251, 0, 255, 253, 0));
  const wire = escaped(EVERY_BYTE);
  for (let at = 0; at < wire.length; at += 7) {
    program.socket.write(wire.slice(at, at + 7));
    await Bun.sleep(0);
  }
  await until("all is written", () => here.line.heard.length === EVERY_BYTE.length);
  expect(notation(here.line.heard)).toBe(notation(EVERY_BYTE));
  here.line.say(EVERY_BYTE.subarray(0, 100));
  here.line.say(EVERY_BYTE.subarray(100));
  await until("all is read", () => program.received.length >= wire.length);
  expect(notation(program.take())).toBe(notation(wire));
});

test("settings are the writer's: a reader is told what is in force, and both are answered at once", async () => {
  const here = await listening();
  const writer = await Program.on(here.rfc2217);
  await attached(here, 1);
  const reader = await Program.on(here.rfc2217);
  await attached(here, 2);
  writer.socket.write(ask(1, 0, 0, 0x25, 0x80));
  await writer.hears(answered("65 00 00 25 80"));
  reader.socket.write(ask(1, 0, 1, 0xc2, 0));
  await reader.hears(answered("65 00 00 25 80"));
  reader.socket.write(ask(5, 5));
  await reader.hears(answered("69 06"));
  writer.socket.write(ask(5, 5));
  await writer.hears(answered("69 05"));
  writer.socket.write(ask(5, 9));
  await writer.hears(answered("69 09"));
  reader.socket.write(ask(5, 7));
  await reader.hears(answered("69 09"));
  writer.socket.write(Uint8Array.of(255, 243));
  await until("telnet's own break is one too", () => here.line.told.length === 5);
  expect(here.line.told).toEqual(["open 115200", '{"baud":9600}', "break 300", '{"dtr":false}', "break 300"]);
  await until("it is on record", () => here.audited.length === 6);
  expect(here.audited.map((line) => line.replace(/ .*/, ""))).toEqual([
    "console.attach",
    "console.attach",
    "console.set",
    "console.break",
    "console.lines",
    "console.break",
  ]);
  expect(here.console.settings.baud).toBe(9600);
});

test("what was typed before a change reaches the line before it, and who waits for the line is still answered", async () => {
  const here = await listening();
  here.line.held = Promise.withResolvers();
  const program = await Program.on(here.rfc2217);
  program.socket.write("typed");
  program.socket.write(ask(1, 0, 0, 0x25, 0x80));
  program.socket.write(ask(12, 3));
  await program.hears(answered("70 03"));
  expect(here.line.told).toEqual(["open 115200"]);
  here.line.held.resolve();
  await program.hears(answered("65 00 00 25 80"));
  expect(here.line.heard.toString()).toBe("typed");
});

test("a suspended client is sent nothing until it resumes; what it missed then is an overrun, not a mark", async () => {
  const here = await listening();
  const program = await Program.on(here.rfc2217);
  program.socket.write(ask(10, 2));
  await program.hears(answered("6e 02"));
  program.socket.write(ask(8));
  program.socket.write(ask(12, 1));
  await program.hears(answered("70 01"));
  for (let n = 0; n < 30; n++) here.line.say(Buffer.alloc(10_000, 65 + (n % 26)));
  await Bun.sleep(50);
  expect(program.received).toHaveLength(0);
  program.socket.write(ask(9));
  here.line.say("END");
  await until("it hears the end", () => program.received.includes("END"));
  expect(notation(program.received)).toContain(answered("6a 02"));
  expect(program.received.includes("fruit")).toBe(false);
  expect(program.received.length).toBeLessThan(300_000);
});

test("a suspended client that leaves holds nothing: what was to be shown to it ends", async () => {
  const here = await listening();
  const events: string[] = [];
  const client = {
    send: () => true,
    type: () => undefined,
    later: () => undefined,
    drained: async () => undefined,
    try: async () => true,
  } as unknown as Client;
  const speech = rfc2217(client, here.console);
  speech.heard(ask(8));
  const shown = speech.take({ kind: "bytes", bytes: Buffer.from("x") }).then(() => events.push("shown"));
  await Bun.sleep(0);
  expect(events).toEqual([]);
  speech.end?.();
  await shown;
});

test("DTR and RTS that a client has set hold when the line comes back, for whoever asks", async () => {
  const here = await listening();
  const program = await Program.on(here.rfc2217);
  program.socket.write(ask(5, 9));
  await program.hears(answered("69 09"));
  here.line.unplug();
  await until("it is back", () => here.line.told.length === 4);
  expect(here.line.told).toEqual(["open 115200", '{"dtr":false}', "open 115200", '{"dtr":false,"rts":true}']);
  const other = await Program.on(here.rfc2217);
  other.socket.write(ask(5, 7));
  await other.hears(answered("69 09"));
});

test("a line that is unplugged is a lost carrier, and the client stays", async () => {
  const here = await listening();
  const program = await Program.on(here.rfc2217);
  program.socket.write(ask(5, 0));
  await program.hears(answered("6b b0"));
  here.line.unplug();
  await program.hears(answered("6b 0b"));
  await program.hears(answered("6b bb"));
  here.line.say("back");
  await until("it reads on", () => program.received.toString() === "back");
});

test("the modem lines of a port that has them are told to a client, also when they change; of one that has none, that it is there", async () => {
  const here = await listening();
  const lines = { cts: true, dsr: false, dcd: false, ri: false };
  let asked = 0;
  let failing: HalError | undefined;
  here.line.modemLines = async () => {
    asked++;
    if (failing) throw failing;
    return lines;
  };
  const program = await Program.on(here.rfc2217);
  program.socket.write(ask(0));
  await program.hears(answered("6b 10"));
  lines.dcd = true;
  await program.hears(answered("6b 98"));
  failing = new HalError("io", "not now");
  program.socket.write(ask(7));
  await program.hears(answered("6b 90"));
  failing = new HalError("refused", "/dev/ttyUSB0: its driver refuses that (ENOTTY)");
  here.line.unplug();
  await program.hears(answered("6b 09"));
  // It came back without any
  await program.hears(answered("6b bb"));
  const before = asked;
  program.socket.write(ask(7));
  await program.hears(answered("6b b0"));
  expect(asked).toBe(before);
});

/** How long pyserial waits for an answer, seconds. Its own limit is 3: too short where the answers come from a process that shares a busy machine. */
const PATIENCE = 30;

const MODEM = `
import sys, time, serial
port = serial.serial_for_url("rfc2217://127.0.0.1:%s?timeout=${PATIENCE}" % sys.argv[1], baudrate=115200)
def wait(*lines):
    until = time.monotonic() + ${PATIENCE}
    while (port.cts, port.dsr, port.cd, port.ri) != lines:
        assert time.monotonic() < until, (port.cts, port.dsr, port.cd, port.ri)
        time.sleep(0.01)
wait(False, True, False, True)
port.write(b"off")
wait(True, True, False, False)
port.close()
`;

const modem = needsModule(
  "pyserial sees the modem lines of a port that has them, and what becomes of them",
  "serial",
  "python3-serial",
);
test.skipIf(modem.isSkipped)(
  modem.title,
  async () => {
    const here = await listening();
    here.line.modemLines = async () => {
      const isOff = here.line.heard.toString() === "off";
      return { cts: isOff, dsr: true, dcd: false, ri: !isOff };
    };
    let asked = 0;
    const { modemLines } = here.line;
    here.line.modemLines = () => {
      asked++;
      return modemLines();
    };
    const { exit, err } = await python(MODEM, String(here.rfc2217));
    expect({ exit, said: err.split("\n").slice(-3).join("\n") }).toMatchObject({ exit: 0 });
    // Nobody looks any more
    await attached(here, 0);
    const before = asked;
    await Bun.sleep(1500);
    expect(asked).toBe(before);
  },
  60_000,
);

test("a driver that does not answer is asked once by all, and nobody waits for it longer than a second", async () => {
  const here = await listening();
  const never = Promise.withResolvers<ModemLines>();
  let asked = 0;
  here.line.modemLines = () => {
    asked++;
    return never.promise;
  };
  const programs = [await Program.on(here.rfc2217), await Program.on(here.rfc2217)];
  for (const { socket } of programs) socket.write(Buffer.concat([ask(7), ask(2, 0)]));
  for (const program of programs) await program.hears(answered("66 08"));
  for (const program of programs) await program.hears(answered("6b b0"));
  for (const { socket } of programs) socket.write(ask(7));
  for (const program of programs) await program.hears(answered("6b b0"));
  expect(asked).toBe(1);
});

test("a client that asks and asks and never reads the answers takes no memory", async () => {
  const here = await listening();
  const program = await Program.on(here.rfc2217);
  program.socket.pause();
  const question = Buffer.concat(Array.from({ length: 2000 }, () => ask(0)));
  for (let n = 0; n < 2000 && program.socket.writableLength < 4_000_000; n++) {
    program.socket.write(question);
    await Bun.sleep(0);
  }
  expect(program.socket.writableLength).toBeGreaterThanOrEqual(4_000_000);
  expect((await Program.on(here.raw)).socket.destroyed).toBe(false);
}, 60_000);

test("marks are told to people beside the programs", async () => {
  const here = await listening();
  const items: Item[] = [];
  here.console.attach({
    who: "local:alice",
    door: "socket",
    wants: "read",
    replayLines: 0,
    take: async (item) => void items.push(item),
    ended: () => undefined,
  });
  const program = await Program.on(here.rfc2217);
  program.socket.write(ask(3, 3));
  await program.hears(answered("67 03"));
  program.socket.destroy();
  const marks = () => items.flatMap((item) => (item.kind === "mark" ? [item.mark.text] : []));
  await until("it has left", () => marks().some((text) => /rfc2217:127\.0\.0\.1:\d+ detached/.test(text)));
  expect(marks().some((text) => /115200 8N1 became 115200 8E1 by rfc2217:/.test(text))).toBe(true);
});

const PYSERIAL = `
import sys, serial
port = serial.serial_for_url("rfc2217://127.0.0.1:%s?%stimeout=${PATIENCE}" % (sys.argv[1], sys.argv[2]), baudrate=57600, timeout=${PATIENCE})
every = bytes(range(256)) * 2
port.write(b"ping" + every)
got = port.read(4 + len(every))
assert got == b"pong" + every, got
port.baudrate = 9600
port.bytesize = 7
port.parity = serial.PARITY_EVEN
port.stopbits = 2
port.rts = False
port.dtr = False
port.send_break(0.01)
port.rtscts = True
assert port.cts and port.cd and port.dsr and not port.ri
port.reset_input_buffer()
port.reset_output_buffer()
try:
    port.baudrate = 5
    raise SystemExit("5 baud were accepted")
except ValueError:
    pass
port.close()
`;

const pyserial = needsModule(
  "pyserial, with and without answers to its control requests, finds a serial port",
  "serial",
  "python3-serial",
);
test.skipIf(pyserial.isSkipped)(
  pyserial.title,
  async () => {
    for (const flags of ["", "ign_set_control&"]) {
      const here = await listening();
      const answer = setTimeout(function echo() {
        if (here.line.heard.length < 516) return void setTimeout(echo, 10);
        here.line.say("pong");
        here.line.say(here.line.heard.subarray(4));
      }, 10);
      const { exit, err } = await python(PYSERIAL, String(here.rfc2217), flags);
      clearTimeout(answer);
      expect({ exit, said: err.split("\n").slice(-3).join("\n") }).toMatchObject({ exit: 0 });
      expect(here.line.told).toEqual([
        "open 115200",
        '{"baud":57600}',
        '{"baud":9600}',
        '{"data_bits":7}',
        '{"parity":"even"}',
        '{"stop_bits":2}',
        '{"rts":false}',
        '{"dtr":false}',
        "break 300",
        '{"flow":"rtscts"}',
      ]);
      await here.close();
    }
  },
  60_000,
);
