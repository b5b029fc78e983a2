/**
 * One connection to the broker, from TCP to the last byte: mqtt.js's client on a stream of ours, without its
 * reconnecting, queueing and storing, which are the session's.
 *
 * Invariants
 * - Never more QoS 1 messages unacknowledged than the broker's Receive Maximum (and 20, Mosquitto's own window).
 * - Every message handed to `send` gets exactly one answer, the end of the connection included.
 * - A packet of more than 256 KiB is not collected in memory: the connection ends.
 */

import type { Socket } from "node:net";
import type { IClientOptions, IConnackPacket, MqttClient } from "mqtt";
// The whole of "mqtt" brings WebSockets, SOCKS and a command line (3 MB of memory) and a deprecation warning.
import * as clientModule from "mqtt/lib/client";
import { ReasonCodes } from "mqtt/lib/handlers/ack";
import { credentials, endpoint, isTlsError, LinkError, type MqttConfig, openStream } from "./connect.ts";
import { PacketLimit } from "./frames.ts";
import { bytesOf, type Incoming, type Outgoing, type Subscription } from "./message.ts";

/** Most bytes of one packet from the broker: a command is at most 16 KiB, its refusal needs the whole of it. */
export const MAX_PACKET = 262_144;
const WINDOW = 20;
/** Bytes the kernel has not taken yet: beyond that the broker is slow and telemetry waits. */
const MAX_UNSENT = 65_536;
/** Fixed header, topic length, packet id, properties' length: never more than this around topic and payload. */
const PACKET_OVERHEAD = 20;

/** What the will and the first packets need to know. */
export interface LinkOptions {
  config: MqttConfig;
  clientId: string;
  /** Where the last will says `offline`; absent: no will. */
  statusTopic?: string;
  version: 5 | 4;
  /** What the broker is known not to do. */
  abilities: Abilities;
  onMessage(incoming: Incoming): void;
}

/** What a broker may refuse: brokers exist that keep nothing and acknowledge nothing. */
export interface Abilities {
  qos: 0 | 1;
  retain: boolean;
}

/** Why a message did not reach anybody: `lost` may be sent again, the others would fail again. */
export type SendProblem = { kind: "lost" | "too-large" | "refused"; message: string };

/** Node hands a CommonJS module over as the default export, Bun takes the default out of it. */
const Client = unwrap<new (build: () => Socket, options: IClientOptions) => MqttClient>(clientModule);

/** Connects, verifies, says CONNECT with the will, and waits for CONNACK. Throws `LinkError`. */
export async function openLink(options: LinkOptions, signal: AbortSignal): Promise<Link> {
  const { config } = options;
  const { name } = endpoint(config.url);
  const limitMs = config.connect_timeout_seconds * 1000;
  // Before the stream: a password file that cannot be read must not leave one behind.
  const said = clientOptions(options);
  const startedAt = performance.now();
  const stream = await openStream(config, limitMs, signal);
  const connectTimeout = Math.max(100, limitMs - (performance.now() - startedAt));
  const limit = new PacketLimit(MAX_PACKET);
  stream.on("data", (chunk: Uint8Array) => {
    if (!limit.accepts(chunk)) stream.destroy(new Error(`a packet of more than ${MAX_PACKET} bytes`));
  });
  const client = new Client(() => stream, { ...said, connectTimeout });
  const link = new Link(client, stream, options);
  const abort = () => stream.destroy();
  signal.addEventListener("abort", abort);
  try {
    await link.connected;
  } catch (error) {
    throw error instanceof LinkError
      ? new LinkError(error.kind, `${name}: ${error.message}`, error.reason, { cause: error })
      : error;
  } finally {
    signal.removeEventListener("abort", abort);
  }
  return link;
}

function clientOptions({ config, clientId, statusTopic, version, abilities }: LinkOptions): IClientOptions {
  const delay = config.will_delay_seconds;
  return {
    clientId,
    ...credentials(config),
    protocolVersion: version,
    clean: true,
    keepalive: config.keepalive_seconds,
    reconnectPeriod: 0,
    resubscribe: false,
    queueQoSZero: false,
    timerVariant: "native",
    // Off: saves 5 MB, 65,536 little buffers with every number in them.
    writeCache: false,
    ...(statusTopic
      ? {
          will: {
            topic: statusTopic,
            payload: Buffer.from("offline"),
            qos: abilities.qos,
            retain: abilities.retain,
            ...(version === 5 && delay > 0 ? { properties: { willDelayInterval: delay } } : {}),
          },
        }
      : {}),
    ...(version === 5
      ? {
          properties: {
            // A will waits no longer than its session lives (MQTT 5 §3.1.3.2.2). Clean start still discards
            // whatever was queued for us meanwhile.
            sessionExpiryInterval: statusTopic ? delay : 0,
            maximumPacketSize: MAX_PACKET,
          },
        }
      : {}),
  };
}

/** One open connection. */
export class Link {
  readonly version: 5 | 4;
  /** Resolves with CONNACK, rejects with `LinkError`. */
  readonly connected: Promise<void>;
  /** Resolves with the reason when the connection has ended, never rejects. */
  readonly closed: Promise<LinkError>;
  readonly #client: MqttClient;
  readonly #stream: Socket;
  readonly #unanswered = new Set<(problem?: SendProblem) => void>();
  readonly #limitMs: number;
  #inFlight = 0;
  #window = WINDOW;
  #maxPacket = Number.POSITIVE_INFINITY;
  #abilities: Abilities;
  #ended: LinkError | undefined;

  constructor(client: MqttClient, stream: Socket, options: LinkOptions) {
    this.version = options.version;
    this.#client = client;
    this.#stream = stream;
    this.#abilities = options.abilities;
    this.#limitMs = options.config.connect_timeout_seconds * 1000;
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    this.connected = promise;
    client.on("connect", (connack) => {
      this.#heed(connack);
      resolve();
    });
    this.closed = this.#watch();
    void this.closed.then(reject);
    client.on("message", (topic, payload, packet) => {
      const { responseTopic, correlationData } = packet.properties ?? {};
      options.onMessage({
        topic,
        payload,
        retain: packet.retain,
        duplicate: packet.dup,
        ...(responseTopic ? { responseTopic } : {}),
        ...(correlationData ? { correlation: correlationData } : {}),
      });
    });
  }

  /** What the broker said it can do. */
  get abilities(): Abilities {
    return this.#abilities;
  }

  /** Whether a message can go out now rather than wait in a queue. */
  get hasRoom(): boolean {
    return !this.#ended && this.#inFlight < this.#window && this.#stream.writableLength < MAX_UNSENT;
  }

  /** Sends now. `done` is called once: without a problem when it was acknowledged (QoS 1) or written (QoS 0). */
  send(message: Outgoing, done: (problem?: SendProblem) => void): void {
    const obstacle = this.#obstacle(message);
    if (obstacle) {
      done(obstacle);
      return;
    }
    const qos = this.#abilities.qos === 0 ? 0 : message.qos;
    const answer = (problem?: SendProblem) => {
      if (!this.#unanswered.delete(answer)) return;
      if (qos === 1) this.#inFlight -= 1;
      done(problem);
    };
    this.#unanswered.add(answer);
    if (qos === 1) this.#inFlight += 1;
    this.#client.publish(
      message.topic,
      message.payload as Buffer,
      {
        qos,
        retain: message.retain && this.#abilities.retain,
        ...(message.correlation ? { properties: { correlationData: Buffer.from(message.correlation) } } : {}),
      },
      // Only a PUBACK's reason is a number; without one it was the connection that failed. No error may come as null.
      (error) =>
        answer(error ? { kind: isReasoned(error) ? "refused" : "lost", message: error.message } : undefined),
    );
  }

  /** Subscribes in one packet and returns the filters that the broker refused. Throws `LinkError`. */
  async subscribe(subscriptions: readonly Subscription[]): Promise<string[]> {
    if (subscriptions.length === 0) return [];
    const map = Object.fromEntries(
      subscriptions.map(({ filter, wantsRetained, wantsOwn = false }) => [
        filter,
        { qos: 1 as const, nl: !wantsOwn, rap: true, rh: wantsRetained ? 0 : 2 },
      ]),
    );
    const timer = setTimeout(() => this.#stream.destroy(new Error("no answer to SUBSCRIBE")), this.#limitMs);
    const granted = await new Promise<number[] | undefined>((resolve) => {
      this.#client.subscribe(map, (_error, _filters, packet) => resolve(packet?.granted as number[]));
    });
    clearTimeout(timer);
    if (!granted) throw this.#ended ?? new LinkError("lost", "the connection ended before SUBACK");
    return subscriptions.filter((_, at) => (granted[at] ?? 0x80) >= 0x80).map(({ filter }) => filter);
  }

  /** Says DISCONNECT, so that the will does not fire, and closes; hangs up when that takes longer than `limitMs`. */
  async close(limitMs: number): Promise<void> {
    this.#client.end(false, this.version === 5 ? { properties: { sessionExpiryInterval: 0 } } : {});
    const timer = setTimeout(() => this.destroy(), limitMs);
    await this.closed;
    clearTimeout(timer);
  }

  /** Hangs up without a word: the broker publishes the will. */
  destroy(): void {
    this.#stream.destroy();
  }

  #obstacle(message: Outgoing): SendProblem | undefined {
    if (this.#ended) return { kind: "lost", message: this.#ended.message };
    const size = bytesOf(message) + PACKET_OVERHEAD;
    if (size <= this.#maxPacket) return undefined;
    return { kind: "too-large", message: `${size} bytes, the broker takes ${this.#maxPacket}` };
  }

  #heed(connack: IConnackPacket): void {
    const { receiveMaximum, maximumPacketSize, maximumQoS, retainAvailable } = connack.properties ?? {};
    this.#window = Math.min(WINDOW, receiveMaximum ?? WINDOW);
    this.#maxPacket = maximumPacketSize ?? this.#maxPacket;
    this.#abilities = {
      qos: maximumQoS === 0 ? 0 : this.#abilities.qos,
      retain: retainAvailable !== false && this.#abilities.retain,
    };
  }

  /** Listens for whatever ends it; the first cause is the one that is told. */
  #watch(): Promise<LinkError> {
    return new Promise((resolve) => {
      let cause: LinkError | undefined;
      this.#client.on("disconnect", ({ reasonCode }) => {
        cause ??= new LinkError("closed", `closed by the broker: ${reason(reasonCode)}`, reasonCode);
        this.#stream.destroy();
      });
      const fail = (error: Error) => {
        cause ??= causeOf(error);
        this.#stream.destroy();
      };
      this.#client.on("error", fail);
      this.#stream.on("error", fail);
      this.#stream.on("close", () => {
        const ended = cause ?? new LinkError("closed", "closed by the broker");
        this.#ended = ended;
        for (const answer of [...this.#unanswered]) answer({ kind: "lost", message: ended.message });
        resolve(ended);
      });
    });
  }
}

function isReasoned(error: Error): boolean {
  return "code" in error && typeof error.code === "number";
}

function causeOf(error: Error): LinkError {
  const code = "code" in error ? error.code : undefined;
  if (error.message.startsWith("Connection refused") && typeof code === "number") {
    return new LinkError("refused", `refused by the broker: ${reason(code)}`, code);
  }
  if (error.message === "connack timeout") return new LinkError("silent", "no CONNACK in time");
  if (isTlsError(error)) return new LinkError("tls", error.message);
  if (code === "ECONNRESET") return new LinkError("closed", "reset by the broker");
  return new LinkError("lost", error.message);
}

/** `Session taken over (0x8e)` */
function reason(code = 0): string {
  return `${(ReasonCodes as Record<number, string>)[code] || "no reason"} (0x${code.toString(16).padStart(2, "0")})`;
}

function unwrap<T>(module: unknown): T {
  return typeof module === "function" ? (module as T) : unwrap((module as { default: unknown }).default);
}
