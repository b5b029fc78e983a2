/**
 * Our listeners beside ser2net and conserver, on lines of the same kind fed the same bytes: what arrives, both ways, is the same, and an
 * RFC 2217 client leaves the same settings in the kernel.
 */
import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { createConnection, type Socket } from "node:net";
import { join } from "node:path";
import { freePort } from "../broker.ts";
import { seeded } from "../fakes.ts";
import { FRUIT, needs, scratch, startAgent, until } from "../node.ts";
import { Pty } from "../pty.ts";
import { needsModule, python } from "../python.ts";

/** What upsets those that take a line for text or for a protocol: every byte, telnet's commands, flow control's, NULs, no newline. */
const STREAM = Buffer.concat([
  Uint8Array.from({ length: 256 }, (_, n) => n),
  Buffer.from("\r\n\r\0\r\r\n\x05c.~.\n~.\x1c"),
  Uint8Array.of(255, 255, 253, 1, 255, 251, 44, 255, 250, 44, 1, 255, 240, 255, 255, 255, 243, 17, 19),
  Buffer.alloc(10_000),
  noise(500_000),
  Buffer.from("END"),
]);
/** Fits into a line's buffer while one of the peers is elsewhere. */
const PIECE = 2048;

function noise(length: number): Uint8Array {
  const random = seeded(2217);
  return Uint8Array.from({ length }, () => Math.floor(random() * 256));
}

/** A program that runs until the test ends, and then its own end takes its children with it. */
function running(command: string[], env: Record<string, string> = {}): AsyncDisposable {
  const child = Bun.spawn(command, {
    env: { PATH: `${process.env.PATH}:/usr/sbin:/sbin`, ...env },
    stdio: ["ignore", "ignore", "ignore"],
  });
  return {
    [Symbol.asyncDispose]: async () => {
      child.kill("SIGTERM");
      await child.exited;
    },
  };
}

/** A raw TCP client of one port. */
async function client(
  port: number,
): Promise<{ socket: Socket; received: Buffer[]; length: () => number } & Disposable> {
  const received: Buffer[] = [];
  let length = 0;
  const socket = await until(`port ${port} answers`, () => {
    const { promise, resolve } = Promise.withResolvers<Socket | undefined>();
    const socket = createConnection(port, "127.0.0.1", () => resolve(socket));
    socket.on("error", () => resolve(undefined));
    return promise;
  });
  socket.on("data", (chunk: Buffer) => {
    received.push(chunk);
    length += chunk.length;
  });
  return { socket, received, length: () => length, [Symbol.dispose]: () => void socket.destroy() };
}

/** ser2net on a device, raw and RFC 2217 on ports of their own. */
async function ser2net(folder: ReturnType<typeof scratch>, device: string) {
  const [raw, rfc2217] = [await freePort(), await freePort()];
  const config = folder.file(
    "ser2net.yaml",
    `%YAML 1.1
---
connection: &raw
  accepter: tcp,127.0.0.1,${raw}
  connector: serialdev,${device},115200n81,local
connection: &rfc2217
  accepter: telnet(rfc2217=true),tcp,127.0.0.1,${rfc2217}
  connector: serialdev,${device},115200n81,local
`,
  );
  const server = running(["ser2net", "-n", "-u", "-c", config, "-P", join(folder.path, "ser2net.pid")]);
  // Looked at from outside: whoever connects opens the device
  const isListening = (port: number) =>
    readFileSync("/proc/net/tcp", "utf8").includes(
      `0100007F:${port.toString(16).toUpperCase().padStart(4, "0")} 00000000:0000 0A`,
    );
  await until("ser2net listens", () => isListening(raw) && isListening(rfc2217));
  return { raw, rfc2217, [Symbol.asyncDispose]: () => server[Symbol.asyncDispose]() };
}

/** An agent on a device, both ports. */
async function fruit(folder: ReturnType<typeof scratch>, device: string) {
  const [raw, rfc2217] = [await freePort(), await freePort()];
  const agent = await startAgent(
    folder.path,
    { consoles: { pi0: { device, raw, rfc2217 } } },
    { hal: "linux" },
  );
  await until("the line is open", async () => (await agent.cli("console", "list")).out.includes("up"));
  return { agent, raw, rfc2217, [Symbol.asyncDispose]: () => agent[Symbol.asyncDispose]() };
}

const beside = needs("the same bytes go through our raw port and through ser2net's, both ways", {
  name: "ser2net",
  install: "ser2net",
});
test.skipIf(beside.isSkipped)(beside.title, async () => {
  using folder = scratch();
  using ours = new Pty();
  using theirs = new Pty();
  await using server = await ser2net(folder, theirs.device);
  await using node = await fruit(folder, ours.device);
  using there = await client(server.raw);
  using here = await client(node.raw);
  // What came before anybody was there is not for them
  for (const [{ socket }, line] of [[here, ours] as const, [there, theirs] as const]) {
    socket.write("!");
    await until("it is attached", () => line.take().length > 0);
  }
  for (let at = 0; at < STREAM.length; at += PIECE) {
    const piece = STREAM.subarray(at, at + PIECE);
    await Promise.all([ours.write(piece), theirs.write(piece)]);
    await until(`byte ${at} is read`, () =>
      [here, there].every(({ length }) => length() >= at + piece.length),
    );
  }
  expect(Bun.hash(Buffer.concat(here.received))).toBe(Bun.hash(STREAM));
  expect(Bun.hash(Buffer.concat(there.received))).toBe(Bun.hash(STREAM));
  here.socket.write(STREAM);
  there.socket.write(STREAM);
  await until("all is written", () =>
    [ours, theirs].every(({ received }) => received.length >= STREAM.length),
  );
  expect(Bun.hash(ours.take())).toBe(Bun.hash(STREAM));
  expect(Bun.hash(theirs.take())).toBe(Bun.hash(STREAM));
});

/** Sets a line up and sends all bytes; what comes back must be the same. */
const PEER = `
import sys, serial
port = serial.serial_for_url("rfc2217://127.0.0.1:%s?ign_set_control&timeout=3" % sys.argv[1], baudrate=9600, timeout=10)
port.parity = serial.PARITY_EVEN
port.stopbits = 2
port.bytesize = 7
port.bytesize = 8
port.rtscts = False
every = bytes(range(256)) * 8
port.write(every)
assert port.read(len(every)) == every
try:
    port.baudrate = 3
    print("3 baud are fine")
except ValueError:
    print("3 baud are refused")
`;

const alike = needsModule(
  "pyserial finds the same serial port behind ours and behind ser2net's RFC 2217",
  "serial",
  "ser2net python3-serial",
);
test.skipIf(alike.isSkipped || beside.isSkipped)(alike.title, async () => {
  using folder = scratch();
  using ours = new Pty();
  using theirs = new Pty();
  for (const pty of [ours, theirs]) pty.onBytes = (chunk) => void pty.write(chunk);
  await using server = await ser2net(folder, theirs.device);
  await using node = await fruit(folder, ours.device);
  const [here, there] = [
    await python(PEER, String(node.rfc2217)),
    await python(PEER, String(server.rfc2217)),
  ];
  expect({ who: "fruit", ...here }).toMatchObject({ exit: 0, out: "3 baud are refused\n" });
  expect({ who: "ser2net", ...there }).toMatchObject({ exit: 0 });
  // c_cflag: baud rate, size, parity, stop bits, flow control
  expect(ours.termios[2]).toBe(theirs.termios[2] ?? -1);
});

const CONSERVER = [
  { name: "conserver", install: "conserver-server" },
  { name: "console", install: "conserver-client" },
];
const shown = needs(
  "conserver shows the same bytes on a line of its own and on ours, by its shipped configuration",
  ...CONSERVER,
);
test.skipIf(shown.isSkipped)(shown.title, async () => {
  using folder = scratch();
  using cleanup = new DisposableStack();
  const line = () => cleanup.use(new Pty());
  const lines = { pi0: line(), pi1: line(), telnet: line(), tty: line() };
  const [raw, rfc2217, port, second] = await Promise.all([freePort(), freePort(), freePort(), freePort()]);
  await using agent = await startAgent(
    folder.path,
    {
      consoles: {
        pi0: { device: lines.pi0.device, raw },
        pi1: { device: lines.pi1.device },
        pi2: { device: lines.telnet.device, rfc2217 },
      },
    },
    { hal: "linux" },
  );
  await until(
    "the lines are open",
    async () => (await agent.cli("console", "list")).out.match(/\bup\b/g)?.length === 3,
  );
  const shipped = readFileSync(join(import.meta.dir, "../../image/site/conserver.cf"), "utf8");
  const log = (name: string) => join(folder.path, `${name}.log`);
  const config = folder.file(
    "conserver.cf",
    `${shipped
      .replace("port 2301;", `port ${raw};\n\tlogfile ${log("pi0")};`)
      .replace('exec "fruit console', `logfile ${log("pi1")};\n\texec "${FRUIT.command.join(" ")} console`)}
console tty { master localhost; include fruit; type device; device ${lines.tty.device}; baud 115200; parity none; logfile ${log("tty")}; }
console telnet { master localhost; include fruit; type host; host 127.0.0.1; port ${rfc2217}; protocol telnet; logfile ${log("telnet")}; }
`,
  );
  await using _server = running(
    [
      "conserver",
      "-C",
      config,
      "-p",
      String(port),
      "-b",
      String(second),
      "-M",
      "127.0.0.1",
      "-P",
      folder.file("passwd", "*any*:\n"),
    ],
    { ...FRUIT.env, FRUIT_SOCKET: agent.socket },
  );
  const names = Object.keys(lines);
  const said = (name: string) => readFileSync(log(name));
  await until("conserver is attached", async () => {
    const { out } = await agent.cli("console", "who");
    return /^pi0 +\d+ +raw:/m.test(out) && /^pi1 +\d+ +root/m.test(out) && /^pi2 +\d+ +rfc2217:/m.test(out);
  });
  await until("its logs begin", () => names.every((name) => said(name).includes("Console up")));
  const before = new Map(names.map((name) => [name, said(name).length]));
  for (let at = 0; at < STREAM.length; at += PIECE) {
    const piece = STREAM.subarray(at, at + PIECE);
    await Promise.all(Object.values(lines).map((line) => line.write(piece)));
    await until(`byte ${at} is read`, () =>
      names.every((name) => said(name).length >= (before.get(name) ?? 0) + at + piece.length),
    );
  }
  for (const name of names)
    expect({ name, hash: Bun.hash(said(name).subarray(before.get(name))) }).toEqual({
      name,
      hash: Bun.hash(STREAM),
    });
  // "l0" asks for a break, which telnet carries as IAC BRK
  const person = Bun.spawn(["console", "-M", "127.0.0.1", "-p", String(port), "-l", "root", "-f", "telnet"], {
    stdin: "pipe",
    stdout: "ignore",
    stderr: "ignore",
  });
  person.stdin.write("\x05cl0");
  await person.stdin.flush();
  const audit = join(agent.folder, "data/audit/audit.jsonl");
  await until("a break is on record", () =>
    /"rfc2217:[^"]*","verb":"console.break"/.test(readFileSync(audit, "utf8")),
  );
  person.kill();
  await person.exited;
});
