/** What consoles cost, and what they add to the way of a byte, beside ser2net in the same run. */
import { createHash } from "node:crypto";
import { connect, type Socket } from "node:net";
import { join } from "node:path";
import { freePort } from "../broker.ts";
import { FRUIT, scratch, startAgent, until } from "../node.ts";
import { Pty } from "../pty.ts";
import { type Usage, usage } from "./process.ts";
import { digits, quantile, ratio, type Table } from "./table.ts";

/** Bytes per second of 115200 baud 8N1, and of 3 Mbaud. */
const RATE = 11_520;
const FAST_RATE = 300_000;
const CONSOLES = 16;
/** How often a source says something: a UART's FIFO is emptied about as often. */
const TICK_MS = 10;
const ECHOES = 1000;
const SETTLE_MS = 500;

/** A server of serial lines on loopback, one TCP port each: ours or ser2net. */
interface Server extends AsyncDisposable {
  name: string;
  pid: number;
  ports: readonly number[];
}

type Start = (folder: string, lines: readonly Pty[]) => Promise<Server>;

/** Sixteen consoles for 30 s, one at 3 Mbaud, and a thousand echoes through each server. */
export async function consoles(): Promise<Table> {
  const seconds = Number(process.env.FRUIT_BENCH_SECONDS) || 30;
  const servers: Start[] = Bun.which("ser2net") ? [startFruit, startSer2net] : [startFruit];
  const rows: string[][] = [];
  for (const { what, count, rate } of [
    { what: `${CONSOLES} consoles, 115200 baud`, count: CONSOLES, rate: RATE },
    { what: "1 console, 3 Mbaud", count: 1, rate: FAST_RATE },
  ]) {
    let theirs: Flow | undefined;
    for (const start of servers.toReversed()) {
      const flow = await carry(start, count, rate, seconds);
      const than = theirs ? ratio(flow.cpu, theirs.cpu) : "";
      rows.push([
        `${flow.name}, ${what}, ${seconds} s`,
        String(flow.lost),
        flow.isIntact ? "yes" : "NO",
        `${digits(flow.cpu * 100, 1)} %`,
        than,
        digits(flow.use.rssKib / 1024, 1),
        "",
        "",
      ]);
      theirs ??= flow;
    }
  }
  for (const { name, times } of await echoes(servers))
    rows.push([
      `${name}, ${ECHOES} echoes of one byte`,
      "",
      "",
      "",
      "",
      "",
      digits(quantile(times, 0.5), 3),
      digits(quantile(times, 0.99), 3),
    ]);
  return {
    title: "Serial consoles",
    head: ["", "lost", "intact", "CPU", "×", "RSS MiB", "echo p50 ms", "p99 ms"],
    rows,
    notes: [
      `${FRUIT.name}; PTYs for lines, one reader of each over raw TCP on loopback; CPU in shares of one core`,
      "lost: bytes that were sent by the far side and did not reach the reader; intact: the SHA-256 of both agree",
      "fruit records each line in its ring as well and publishes nothing here; ser2net only carries",
      ...(servers.length < 2 ? ["ser2net is not here: apt-get install ser2net"] : []),
    ],
  };
}

interface Flow {
  name: string;
  lost: number;
  isIntact: boolean;
  cpu: number;
  use: Usage;
}

/** Sends at a rate through each of so many lines, and counts what comes out. */
async function carry(start: Start, count: number, rate: number, seconds: number): Promise<Flow> {
  using folder = scratch();
  const lines = Array.from({ length: count }, (_, at) => new Pty(`ttyUSB${at}`));
  try {
    await using server = await start(folder.path, lines);
    const ends = await Promise.all(server.ports.map((port) => Reader.at(port)));
    // A connection is there before whoever accepts it has looked, and what the line says meanwhile is not for it
    await Bun.sleep(SETTLE_MS);
    const before = usage(server.pid).cpuMs;
    const startedAt = performance.now();
    const sent = await Promise.all(lines.map((line, at) => feed(line, at, rate, seconds)));
    const total = sent.reduce((sum, { length }) => sum + length, 0);
    const came = () => ends.reduce((sum, { length }) => sum + length, 0);
    await until("the last byte", () => came() >= total, 3000).catch(() => undefined);
    const use = usage(server.pid);
    const cpu = (use.cpuMs - before) / (performance.now() - startedAt);
    for (const end of ends) end.close();
    return {
      name: server.name,
      lost: total - came(),
      isIntact: sent.every(({ digest }, at) => digest === ends[at]?.digest()),
      cpu,
      use,
    };
  } finally {
    for (const line of lines) line[Symbol.dispose]();
  }
}

/** Says numbered lines at a rate, by the clock: what one tick was late the next one makes up for. */
async function feed(
  line: Pty,
  which: number,
  rate: number,
  seconds: number,
): Promise<{ length: number; digest: string }> {
  const hash = createHash("sha256");
  const startedAt = performance.now();
  let length = 0;
  for (let number = 0, ms = 0; ms < seconds * 1000; ms = performance.now() - startedAt) {
    let chunk = "";
    while (length + chunk.length < (ms / 1000) * rate)
      chunk += `${which} ${number++} the quick brown fox jumps over the lazy dog\r\n`;
    hash.update(chunk);
    length += chunk.length;
    await line.write(chunk);
    await Bun.sleep(TICK_MS);
  }
  return { length, digest: hash.digest("hex") };
}

/** Somebody who reads a port to the end. */
class Reader {
  length = 0;
  readonly #hash = createHash("sha256");
  readonly #socket: Socket;

  private constructor(socket: Socket) {
    this.#socket = socket;
    socket.on("data", (chunk: Buffer) => {
      this.length += chunk.length;
      this.#hash.update(chunk);
    });
  }

  static async at(port: number): Promise<Reader> {
    return new Reader(await open(port));
  }

  digest(): string {
    return this.#hash.digest("hex");
  }

  close(): void {
    this.#socket.destroy();
  }
}

/** One byte there and back again, in turn through each server, so that what else the machine does hits all alike. */
async function echoes(servers: readonly Start[]): Promise<{ name: string; times: number[] }[]> {
  using folder = scratch();
  await using stack = new AsyncDisposableStack();
  const lines = servers.map((_, at) => stack.use(new Pty(`ttyUSB${at}`)));
  for (const line of lines) line.onBytes = (chunk) => void line.write(chunk);
  const running: { name: string; socket: Socket; times: number[] }[] = [];
  for (const [at, start] of servers.entries()) {
    const server = stack.use(await start(folder.path, lines.slice(at, at + 1)));
    const socket = await open(server.ports[0] ?? 0);
    stack.defer(() => void socket.destroy());
    running.push({ name: server.name, socket, times: [] });
  }
  for (let i = 0; i < ECHOES; i++)
    for (const { socket, times } of running) {
      const startedAt = performance.now();
      const back = new Promise<void>((resolve) => socket.once("data", () => resolve()));
      socket.write(Buffer.of(0x41 + (i % 26)));
      await back;
      times.push(performance.now() - startedAt);
    }
  return running;
}

async function open(port: number): Promise<Socket> {
  return until(
    "a connection",
    () =>
      new Promise<Socket | undefined>((resolve) => {
        const socket = connect({ port, host: "127.0.0.1", noDelay: true });
        socket.once("connect", () => resolve(socket));
        socket.once("error", () => resolve(undefined));
      }),
  );
}

const startFruit: Start = async (folder, lines) => {
  const ports = await Promise.all(lines.map(() => freePort()));
  const agent = await startAgent(
    folder,
    {
      node: "pi1",
      consoles: Object.fromEntries(
        lines.map(({ device }, at) => [`c${at}`, { device, baud: 115_200, raw: ports[at] }]),
      ),
    },
    { hal: "linux" },
  );
  return {
    name: "fruit",
    pid: agent.pid,
    ports,
    [Symbol.asyncDispose]: () => agent[Symbol.asyncDispose](),
  };
};

const startSer2net: Start = async (folder, lines) => {
  const ports = await Promise.all(lines.map(() => freePort()));
  const config = join(folder, "ser2net.yaml");
  const blocks = lines.map(
    ({ device }, at) =>
      `connection: &c${at}\n  accepter: tcp(nodelay=true),127.0.0.1,${ports[at]}\n  connector: serialdev(nouucplock=true),${device},115200n81,local\n`,
  );
  await Bun.write(config, blocks.join(""));
  const child = Bun.spawn(["ser2net", "-n", "-u", "-c", config], {
    stdin: "ignore",
    stdout: "ignore",
    stderr: "ignore",
  });
  return {
    name: "ser2net",
    pid: child.pid,
    ports,
    [Symbol.asyncDispose]: async () => {
      child.kill();
      await child.exited;
    },
  };
};
