/** A node with a console whose line is in the test's hands, and a person far away who attaches to it over MQTT. */
import { mkdirSync, writeFileSync } from "node:fs";
import { connect } from "node:net";
import { join } from "node:path";
import { runAgent } from "../agent/agent.ts";
import { parseConfig } from "../agent/config.ts";
import type { Channel, Message } from "../agent/console/channel.ts";
import { type Door, openDoor } from "../agent/doors.ts";
import { openHardware } from "../agent/hardware.ts";
import { ROOT } from "../agent/messages.ts";
import type { AuditEntry } from "../agent/record/audit.ts";
import type { Io } from "../agent/terminal.ts";
import type { LineEvents, SerialLine } from "../hal/ports.ts";
import { type Tap, tcp } from "./broker.ts";
import { askSocket, NODE, SITE, signers } from "./doors.ts";
import { until } from "./node.ts";

/** Topics of the node. */
export const BASE = `${ROOT}/${SITE}/${NODE}`;
export const CONSOLE = "rack1-a";
/** The person who has a key. */
export const TECH = "tech@home";

/** A serial line without a kernel: what the node types is collected, what the host says is the test's. */
export class Line {
  readonly typed: Buffer[] = [];
  /** While set, the line takes nothing: flow control. */
  held: Promise<void> | undefined;
  #events: LineEvents | undefined;

  /** The host behind the line says something. */
  say(words: string | Uint8Array): void {
    if (!this.#events) throw new Error("the line is not open");
    this.#events.bytes(Buffer.from(words));
  }

  get text(): string {
    return Buffer.concat(this.typed).toString();
  }

  get isOpen(): boolean {
    return this.#events !== undefined;
  }

  open(events: LineEvents): SerialLine {
    this.#events = events;
    return {
      write: async (bytes) => {
        await this.held;
        this.typed.push(Buffer.from(bytes));
      },
      sendBreak: async () => void this.typed.push(Buffer.from("<break>")),
      setLines: async () => undefined,
      change: async () => undefined,
      close: async () => {
        this.#events = undefined;
      },
    };
  }
}

/** A running agent in this process, with one console. */
export interface FarNode extends AsyncDisposable {
  line: Line;
  folder: string;
  keyFile(name: string): string;
  log: string[];
  /** Everything on record about sessions: `console.session`, how they ended and so on. */
  ends(): Promise<string[]>;
  who(): Promise<unknown[]>;
  stop(): Promise<void>;
}

/** Starts it at a broker. `rights` are the people who have keys. */
export async function farNode(
  root: string,
  port: number,
  options: {
    version?: 3 | 5;
    rights?: Record<string, string>;
    mqtt?: Record<string, unknown>;
    dataDir?: string;
  } = {},
): Promise<FarNode> {
  const folder = join(root, crypto.randomUUID());
  mkdirSync(folder);
  const { file, keyFile } = await signers(folder, options.rights ?? { [TECH]: "roles=console,read" });
  const config = parseConfig("test", {
    site: SITE,
    node: NODE,
    data_dir: options.dataDir ?? join(folder, "data"),
    socket: join(folder, "fruit.sock"),
    consoles: { [CONSOLE]: { device: "/dev/ttyFAR0" } },
    commands: { allowed_signers: file },
    mqtt: {
      url: `mqtt://127.0.0.1:${port}`,
      version: options.version ?? 5,
      backoff_max_seconds: 1,
      will_delay_seconds: 0,
      ...options.mqtt,
    },
  });
  const line = new Line();
  const hal = await openHardware("sim", {}, config);
  hal.openLine = async (_device, _settings, events) => line.open(events);
  const log: string[] = [];
  const stop = new AbortController();
  const running = runAgent(
    config,
    hal,
    (level, what, fields) => void log.push(`${level} ${what} ${JSON.stringify(fields)}`),
    stop.signal,
  );
  running.catch((error) => log.push(String(error)));
  await until("the agent is up", () => line.isOpen && log.some((said) => said.includes("mqtt.connected")));
  const ask = async (verb: string, args: Record<string, unknown> = {}) =>
    (await askSocket(config.socket, verb, args)).at(-1)?.result;
  const end = async () => {
    stop.abort();
    await running;
  };
  return {
    line,
    folder,
    keyFile,
    log,
    ends: async () => {
      const text = await Bun.file(join(config.data_dir, "audit/audit.jsonl")).text();
      const entries = text
        .split("\n")
        .filter(Boolean)
        .map((entry) => JSON.parse(entry) as AuditEntry);
      return entries.flatMap(({ verb, args }) =>
        verb === "console.session" ? [String((args as { why?: string }).why)] : [],
      );
    },
    who: async () => ((await ask("console.who")) as { attached: unknown[] }).attached,
    stop: end,
    async [Symbol.asyncDispose]() {
      await end();
      await hal.close();
    },
  };
}

/** A person's stay at the console. */
export class Stay implements AsyncDisposable {
  readonly door: Door;
  readonly channel: Channel;
  /** What came, in order. */
  readonly heard: Message[] = [];
  /** While set, the person reads nothing more. */
  held: Promise<void> | undefined;
  ended: string | undefined;

  constructor(door: Door, channel: Channel) {
    this.door = door;
    this.channel = channel;
    channel.receive(async (message) => {
      this.heard.push(message);
      await this.held;
    });
    void channel.ended.then((why) => {
      this.ended = why;
    });
  }

  get bytes(): Buffer {
    return Buffer.concat(this.heard.map((one) => (one.kind === "bytes" ? one.bytes : Buffer.alloc(0))));
  }

  get text(): string {
    return this.bytes.toString();
  }

  /** What was marked and shown beside the bytes. */
  get marks(): string[] {
    return this.heard.flatMap((one) => (one.kind === "mark" ? [one.mark.text] : []));
  }

  type(words: string | Uint8Array): Promise<void> {
    return this.channel.send({ kind: "bytes", bytes: Buffer.from(words) });
  }

  over(): Promise<string> {
    return until("the session is over", () => this.ended);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.channel.close("left");
    await this.channel.ended;
    await this.door[Symbol.asyncDispose]();
  }
}

/** Somebody who attaches; `said` is what they were told on their terminal. */
export interface Visitor {
  port: number;
  /** Key file; absent: none. */
  key?: string;
  home: string;
  words?: string[];
  mode?: "write" | "read";
  said?: string[];
}

/** Attaches as `fruit console` does. Rejects as it does. */
export async function attach({
  port,
  key,
  home,
  words = [],
  mode = "write",
  said = [],
}: Visitor): Promise<Stay> {
  const io: Io = {
    out: () => undefined,
    err: (text) => void said.push(text),
    env: { HOME: home },
    isTerminal: false,
    stdin: async () => new Uint8Array(),
    signal: new AbortController().signal,
  };
  const to = ["--broker", `mqtt://127.0.0.1:${port}`, "--site", SITE, "--node", NODE];
  const door = await openDoor([...to, ...(key === undefined ? [] : ["--key", key]), ...words], io);
  try {
    return new Stay(door, await door.attach({ console: CONSOLE, mode, replay_lines: 0 }));
  } catch (error) {
    await door[Symbol.asyncDispose]();
    throw error;
  }
}

/** A home folder of a person's own. */
export const newHome = (root: string) => join(root, crypto.randomUUID());

/** Writes the known nodes of a home. */
export function knows(home: string, lines: string): void {
  const folder = join(home, ".config/fruit");
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, "known_nodes"), lines);
}

/** What a session says when it ends for a frame that should not have come. */
export const TAMPERED = "something on the way loses or forges what travels, so the session is over";

/** The frames that travelled so far: `in` to the node, `out` to the person. */
export const frames = (tap: Tap, way: "in" | "out") =>
  tap.heard.filter(({ topic }) => new RegExp(`^${BASE}/console/[^/]+/${way}$`).test(topic));

/** One who attaches to the node as the technician. */
export const visit = (node: FarNode, port: number, more: Partial<Parameters<typeof attach>[0]> = {}) =>
  attach({ port, key: node.keyFile(TECH), home: newHome(node.folder), ...more });

/** Types and prints until both have arrived. */
export async function talk(node: FarNode, stay: Stay, words: string): Promise<void> {
  await stay.type(`typed ${words}\r`);
  node.line.say(`printed ${words}\r\n`);
  await until(
    `${words} arrived`,
    () => node.line.text.includes(`typed ${words}\r`) && stay.text.includes(`printed ${words}\r\n`),
  );
}

/** A broker behind a listener that writes down every byte that passes. */
export async function wiretapped(broker: { port: number } & AsyncDisposable) {
  const seen: Buffer[] = [];
  const wire = await tcp((socket) => {
    const far = connect(broker.port, "127.0.0.1");
    for (const [from, to] of [
      [socket, far],
      [far, socket],
    ] as const) {
      from.on("data", (chunk: Buffer) => {
        seen.push(chunk);
        to.write(chunk);
      });
      from.on("close", () => to.destroy());
      from.on("error", () => to.destroy());
    }
  });
  return {
    port: wire.port,
    bytes: () => Buffer.concat(seen),
    [Symbol.asyncDispose]: async () => {
      await wire[Symbol.asyncDispose]();
      await broker[Symbol.asyncDispose]();
    },
  };
}
