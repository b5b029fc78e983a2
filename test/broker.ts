/** Brokers for tests: a real Mosquitto (MQTT 5), an aedes in this process (3.1.1), and one that does what a test says. */
import { type ChildProcess, spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { connect, createServer, type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { type ConnectionOptions, connect as connectTls } from "node:tls";
import { Aedes, type AedesOptions } from "aedes";
import type { IClientOptions, IPublishPacket, MqttClient } from "mqtt";
import * as clientModule from "mqtt/lib/client";
import mqttPacket, { type Packet } from "mqtt-packet";
import { parseConfig } from "../agent/config.ts";
import type { MqttConfig } from "../agent/mqtt/connect.ts";
import type { Outgoing } from "../agent/mqtt/message.ts";
import { openSession, type Session, type SessionOptions } from "../agent/mqtt/session.ts";

export const HAS_MOSQUITTO = Boolean(Bun.which("mosquitto"));
export const NEEDS_MOSQUITTO = "[needs mosquitto: apt-get install mosquitto]";

/** Waits until something is so; fails the test by name when it is not within `limitMs`. */
export async function until(what: string, isSo: () => unknown, limitMs = 8000): Promise<void> {
  const end = performance.now() + limitMs;
  while (!isSo()) {
    if (performance.now() > end) throw new Error(`waited ${limitMs} ms in vain until ${what}`);
    await sleep(5);
  }
}

/** A port nobody listens on. */
export async function freePort(): Promise<number> {
  const server = createServer();
  const port = await listening(server, 0);
  await new Promise((resolve) => server.close(resolve));
  return port;
}

/** A Mosquitto with this configuration and a listener on loopback; it can go away and come back on the same port. */
export class Mosquitto implements AsyncDisposable {
  readonly port: number;
  readonly dir: string;
  #process: ChildProcess | undefined;
  #said = "";

  private constructor(port: number, dir: string) {
    this.port = port;
    this.dir = dir;
  }

  /** `lines` follow the listener: `allow_anonymous true`, certificates, an ACL file. */
  static start(lines: string[] | ((dir: string) => string[])): Promise<Mosquitto> {
    return Mosquitto.with((dir, port) =>
      [`listener ${port} 127.0.0.1`, ...(typeof lines === "function" ? lines(dir) : lines)].join("\n"),
    );
  }

  /** With a configuration file of its own. */
  static async with(write: (dir: string, port: number) => string): Promise<Mosquitto> {
    const broker = new Mosquitto(await freePort(), mkdtempSync(join(tmpdir(), "fruit-broker-")));
    // Started by root it would become the user mosquitto, who may not read a test's files.
    const user = process.getuid?.() === 0 ? "user root\n" : "";
    writeFileSync(join(broker.dir, "mosquitto.conf"), `${user}${write(broker.dir, broker.port)}\n`);
    await broker.come();
    return broker;
  }

  /** Of the process that runs now; undefined while none does. */
  get pid(): number | undefined {
    return this.#process?.pid;
  }

  /** Starts it (again). */
  async come(): Promise<void> {
    const child = spawn("mosquitto", ["-c", join(this.dir, "mosquitto.conf")], {
      stdio: ["ignore", "ignore", "pipe"],
    });
    child.stderr?.on("data", (text) => {
      this.#said += text;
    });
    this.#process = child;
    this.#said = "";
    // Not by connecting: 2.0.11 counts a connection without CONNECT wrongly, and `max_connections` then lets one more in.
    await until("Mosquitto runs", () => {
      if (child.exitCode !== null) throw new Error(`mosquitto: ${this.#said}`);
      return this.#said.includes(" running");
    });
  }

  /** Kills it: what was retained is gone. */
  async go(): Promise<void> {
    const child = this.#process;
    if (!child || child.exitCode !== null || child.signalCode !== null) return;
    const gone = new Promise((resolve) => child.once("exit", resolve));
    child.kill("SIGKILL");
    await gone;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.go();
    rmSync(this.dir, { recursive: true, force: true });
  }
}

/** An aedes in this process: MQTT 3.1.1 only; `options` may meddle with what it passes on. `drop` hangs up on a client without a word. */
export async function aedes(
  options: AedesOptions = {},
): Promise<{ port: number; drop(id: string): void } & AsyncDisposable> {
  const broker = await Aedes.createBroker(options);
  const server = createServer(broker.handle);
  const sockets = collected(server);
  const clients = new Map<string, { conn: { destroy(): void } }>();
  broker.on("client", (client) => clients.set(client.id, client as never));
  const port = await listening(server, 0);
  return {
    port,
    drop: (id) => clients.get(id)?.conn.destroy(),
    [Symbol.asyncDispose]: async () => {
      for (const socket of sockets) socket.destroy();
      await new Promise<void>((resolve) => broker.close(resolve));
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

/** A TCP server that does whatever the test says with a connection. */
export async function tcp(serve: (socket: Socket) => void): Promise<{ port: number } & AsyncDisposable> {
  const server = createServer(serve);
  const sockets = collected(server);
  return {
    port: await listening(server, 0),
    [Symbol.asyncDispose]: async () => {
      for (const socket of sockets) socket.destroy();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

/** A broker whose every packet is in the test's hands; `heard` collects what the client sent. */
export async function scripted(
  answer: (packet: Packet, say: (packet: Packet) => void, socket: Socket) => void,
  protocolVersion: 5 | 4 = 5,
): Promise<{ port: number; heard: Packet[] } & AsyncDisposable> {
  const heard: Packet[] = [];
  const server = await tcp((socket) => {
    const parser = mqttPacket.parser({ protocolVersion });
    const say = (packet: Packet) => void socket.write(mqttPacket.generate(packet, { protocolVersion }));
    parser.on("packet", (packet: Packet) => {
      heard.push(packet);
      answer(packet, say, socket);
    });
    socket.on("data", (chunk: Buffer) => void parser.parse(chunk));
    socket.on("error", () => undefined);
  });
  return { ...server, heard, [Symbol.asyncDispose]: () => server[Symbol.asyncDispose]() };
}

/** What an obedient broker answers to everything but CONNECT. */
export function obey(packet: Packet, say: (packet: Packet) => void): void {
  if (packet.cmd === "subscribe")
    say({ cmd: "suback", messageId: packet.messageId ?? 0, granted: packet.subscriptions.map(() => 1) });
  if (packet.cmd === "publish" && packet.qos === 1)
    say({ cmd: "puback", messageId: packet.messageId ?? 0, reasonCode: 0 });
  if (packet.cmd === "pingreq") say({ cmd: "pingresp" });
}

/** Somebody else at the broker: hears everything, in order. */
export class Tap implements AsyncDisposable {
  readonly client: MqttClient;
  readonly heard: { topic: string; text: string; retain: boolean; packet: IPublishPacket }[] = [];

  private constructor(client: MqttClient) {
    this.client = client;
    client.on("message", (topic, payload, packet) => {
      this.heard.push({ topic, text: payload.toString(), retain: packet.retain, packet });
    });
    client.on("error", () => undefined);
  }

  static async at(
    port: number,
    options: IClientOptions & { filter?: string; tls?: ConnectionOptions } = {},
  ): Promise<Tap> {
    const { filter = "#", tls, ...rest } = options;
    const stream = () => (tls ? connectTls({ host: "localhost", port, ...tls }) : connect(port, "127.0.0.1"));
    const client = new Client(stream, {
      protocolVersion: 4,
      reconnectPeriod: 0,
      writeCache: false,
      ...rest,
    });
    const tap = new Tap(client);
    await new Promise<void>((resolve, reject) => {
      client.once("connect", () => resolve());
      client.once("error", reject);
      client.once("close", () => reject(new Error("the tap was refused")));
    });
    await client.subscribeAsync(filter, { qos: 1 });
    return tap;
  }

  /** The texts of one topic, in order. */
  texts(topic: string): string[] {
    return this.heard.filter((message) => message.topic === topic).map(({ text }) => text);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.client.endAsync(true);
  }
}

/** A node's session with what it logged, alarmed and heard, already running. */
export class Node implements AsyncDisposable {
  readonly session: Session;
  readonly logged: { level: string; what: string; fields: Record<string, unknown> | undefined }[] = [];
  readonly alarms: [string, unknown][] = [];
  readonly heard: { topic: string; text: string; retain: boolean }[] = [];
  readonly running: Promise<void>;
  readonly #stop = new AbortController();

  constructor(mqtt: Partial<MqttConfig> & { url: string }, more: Partial<SessionOptions> = {}) {
    this.session = openSession({
      config: configOf(mqtt),
      clientId: "fruit-pi1",
      statusTopic: "fruit/v1/lab/pi1/status",
      subscriptions: [{ filter: "fruit/v1/lab/pi1/cmd/+", wantsRetained: false }],
      onMessage: ({ topic, payload, retain }) =>
        this.heard.push({ topic, text: Buffer.from(payload).toString(), retain }),
      alarm: (id, alarm) => this.alarms.push([id, alarm]),
      log: (level, what, fields) => this.logged.push({ level, what, fields }),
      random: () => 0.1,
      ...more,
    });
    this.running = this.session.part(this.#stop.signal);
  }

  /** A message of this node; `path` follows its base topic. */
  say(path: string, payload: string, more: Partial<Outgoing> = {}): void {
    this.session.publish({
      topic: `fruit/v1/lab/pi1/${path}`,
      payload,
      qos: 1,
      retain: false,
      class: "event",
      ...more,
    });
  }

  /** What was logged under a name, as text. */
  log(what: string): string {
    return this.logged
      .filter((entry) => entry.what === what)
      .map(({ fields }) => JSON.stringify(fields))
      .join("\n");
  }

  async online(): Promise<void> {
    await until("the session is online", () => this.session.isOnline);
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    await this.running;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.stop();
  }
}

/** A whole `mqtt` configuration of the few keys a test is about; impatient, so that tests are quick. */
export function configOf(mqtt: Partial<MqttConfig> & { url: string }): MqttConfig {
  const config = parseConfig("test", {
    site: "lab",
    node: "pi1",
    mqtt: { connect_timeout_seconds: 5, backoff_max_seconds: 1, will_delay_seconds: 0, ...mqtt },
  });
  if (!config.mqtt) throw new Error("no mqtt in the configuration");
  return config.mqtt;
}

const Client = (
  typeof clientModule.default === "function"
    ? clientModule.default
    : (clientModule.default as unknown as { default: unknown }).default
) as new (
  build: () => Socket,
  options: IClientOptions,
) => MqttClient;

function listening(server: Server, port: number): Promise<number> {
  return new Promise((resolve, reject) => {
    server.once("error", reject);
    server.listen(port, "127.0.0.1", () => resolve((server.address() as { port: number }).port));
  });
}

function collected(server: Server): Set<Socket> {
  const sockets = new Set<Socket>();
  server.on("connection", (socket) => {
    sockets.add(socket);
    socket.on("error", () => undefined);
    socket.once("close", () => sockets.delete(socket));
  });
  return sockets;
}
