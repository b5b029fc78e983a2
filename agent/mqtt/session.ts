/**
 * The node's standing link to its site's broker: connects, comes back, and keeps the promises of the topic tree.
 *
 * After every CONNACK, in this order: SUBSCRIBE and its answer; every retained topic with its latest value;
 * `status online`; then, at 20 a second, what was buffered meanwhile.
 *
 * Invariants
 * - `offline` appears however the node goes: by itself on a clean stop (within 2 s), by the last will otherwise.
 * - No wait between tries is shorter or longer than `Retry` says, whatever the broker does.
 */
import { setTimeout as sleep } from "node:timers/promises";
import type { Log } from "../log.ts";
import type { RaiseAlarm } from "../messages.ts";
import type { Part } from "../parts.ts";
import { LinkError, type MqttConfig } from "./connect.ts";
import { type Abilities, type Link, openLink, type SendProblem } from "./link.ts";
import type { Incoming, Outgoing, Subscription } from "./message.ts";
import { Outbox } from "./outbox.ts";
import { Retry, UNDISPUTED_MS } from "./retry.ts";

const GOODBYE_MS = 1_000;
const CLOSE_MS = 500;
/** Reasons of CONNACK for a will that the broker cannot keep (MQTT 5 §3.2.2.2). */
const RETAIN_NOT_SUPPORTED = 0x9a;
const QOS_NOT_SUPPORTED = 0x9b;

/** What a session is made of. */
export interface SessionOptions {
  config: MqttConfig;
  /** `fruit-<node>`: a second client with the same id throws the first one out. */
  clientId: string;
  /** Where `online` and `offline` go. */
  statusTopic: string;
  subscriptions: readonly Subscription[];
  onMessage(incoming: Incoming): void;
  /** A frame can go out, perhaps. */
  onRoom?(): void;
  /** The connection has ended: the frames on it are lost, and nobody answers any more. */
  onLost?(why: string): void;
  alarm: RaiseAlarm;
  log: Log;
  /** Jitter; replaced in tests only. */
  random?: () => number;
}

/** Figures for `tele/agent`. */
export interface SessionStats {
  /** Connections after the first. */
  reconnects: number;
  /** Messages lost: thinned, too many, too large or refused. */
  dropped: number;
  /** Messages waiting for the broker to come back. */
  buffered: number;
  /** Messages acknowledged, or written where nothing acknowledges them. */
  sent: number;
  protocol: 5 | 4 | undefined;
}

/** The link as the rest of the agent sees it. */
export interface Session {
  /** Connects and stays; on abort it says `offline` and returns within 2 s. */
  part: Part;
  publish(message: Outgoing): void;
  /** Whether a frame can go out now. */
  readonly hasRoom: boolean;
  /** Sends a frame now or never; `done` says once what became of it. `retain`: the broker keeps it, and it is not said again from here. */
  sendFrame(topic: string, frame: Uint8Array, done: (problem?: SendProblem) => void, retain?: boolean): void;
  readonly isOnline: boolean;
  readonly stats: Readonly<SessionStats>;
  /** Waits until everything said so far was acknowledged. False if it was not, at once while offline. */
  flush(limitMs: number): Promise<boolean>;
}

/** Makes the session; its part connects. What is published before that waits. */
export function openSession(options: SessionOptions): Session {
  const standing = new Standing(options);
  return {
    part: (signal) => standing.run(signal),
    publish: (message) => standing.outbox.publish(message),
    get hasRoom() {
      return standing.outbox.hasRoom;
    },
    sendFrame: (topic, payload, done, retain = false) =>
      standing.outbox.sendFrame({ topic, payload, qos: 1, retain, class: "frame" }, done),
    get isOnline() {
      return standing.outbox.isOnline;
    },
    get stats() {
      return standing.stats;
    },
    flush: (limitMs) => standing.outbox.flush(limitMs),
  };
}

class Standing {
  readonly outbox: Outbox;
  readonly #options: SessionOptions;
  readonly #retry: Retry;
  #abilities: Abilities = { qos: 1, retain: true };
  #connections = 0;
  #protocol: 5 | 4 | undefined;
  #lastTrouble = "";

  constructor(options: SessionOptions) {
    this.#options = options;
    const now = () => performance.now();
    this.outbox = new Outbox(options.config.buffer_bytes, now, options.log, () => options.onRoom?.());
    this.#retry = new Retry({
      maxMs: options.config.backoff_max_seconds * 1000,
      version: options.config.version === 3 ? 4 : 5,
      now,
      random: options.random ?? Math.random,
    });
  }

  get stats(): SessionStats {
    return {
      reconnects: Math.max(0, this.#connections - 1),
      ...this.outbox.counts,
      protocol: this.#protocol,
    };
  }

  async run(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      const version = this.#retry.version;
      const { error, livedMs } = await this.#connection(version, signal);
      if (signal.aborted) return;
      const { waitMs, isCloned } = this.#retry.next({
        kind: error.kind,
        reason: error.reason,
        version,
        livedMs,
      });
      this.#report(error, waitMs, isCloned);
      await sleep(waitMs, undefined, { signal }).catch(() => undefined);
    }
  }

  /** One connection from its beginning to its end, and how that came. */
  async #connection(
    version: 5 | 4,
    signal: AbortSignal,
  ): Promise<{ error: LinkError; livedMs: number | undefined }> {
    let link: Link;
    try {
      link = await openLink({ ...this.#options, version, abilities: this.#abilities }, signal);
    } catch (error) {
      if (!(error instanceof LinkError)) throw error;
      if (error.reason === RETAIN_NOT_SUPPORTED) this.#abilities = { ...this.#abilities, retain: false };
      if (error.reason === QOS_NOT_SUPPORTED) this.#abilities = { ...this.#abilities, qos: 0 };
      return { error, livedMs: undefined };
    }
    const since = performance.now();
    this.#connections += 1;
    this.#protocol = version;
    const undisputed = setTimeout(() => this.#options.alarm("cloned-identity", null), UNDISPUTED_MS);
    try {
      await this.#serve(link, signal);
      const error = await link.closed;
      this.#options.onLost?.(error.message);
      return { error, livedMs: performance.now() - since };
    } finally {
      clearTimeout(undisputed);
      this.#protocol = undefined;
      this.outbox.detach();
    }
  }

  /** Greets the broker, then stays until the link ends or the agent stops. */
  async #serve(link: Link, signal: AbortSignal): Promise<void> {
    const { log, subscriptions, config } = this.#options;
    const hangUp = Promise.withResolvers<void>();
    const stop = () => hangUp.resolve();
    signal.addEventListener("abort", stop, { once: true });
    if (signal.aborted) stop();
    void link.closed.then(stop);
    try {
      const refused = await Promise.race([
        link.subscribe(subscriptions).catch(() => undefined),
        hangUp.promise,
      ]);
      if (refused) {
        if (refused.length > 0) log("error", "mqtt.subscription-refused", { filters: refused });
        log("info", "mqtt.connected", { url: config.url, protocol: link.version });
        this.#lastTrouble = "";
        this.outbox.attach(link, this.#status("online"));
      }
      await hangUp.promise;
    } finally {
      signal.removeEventListener("abort", stop);
    }
    if (signal.aborted) await this.#sayGoodbye(link);
  }

  async #sayGoodbye(link: Link): Promise<void> {
    this.outbox.detach();
    if (link.hasRoom) {
      const acknowledged = Promise.withResolvers<void>();
      link.send(this.#status("offline"), () => acknowledged.resolve());
      const timer = setTimeout(acknowledged.resolve, GOODBYE_MS);
      await acknowledged.promise;
      clearTimeout(timer);
    }
    await link.close(CLOSE_MS);
  }

  #status(payload: "online" | "offline"): Outgoing {
    return { topic: this.#options.statusTopic, payload, qos: 1, retain: true, class: "status" };
  }

  /** A broker that is away for a night says so once, not every five minutes. */
  #report(error: LinkError, waitMs: number, isCloned: boolean): void {
    const { log, alarm, clientId } = this.#options;
    const isNews = error.message !== this.#lastTrouble;
    this.#lastTrouble = error.message;
    log(isNews ? "warn" : "debug", "mqtt.down", {
      kind: error.kind,
      error: error.message,
      retry_seconds: Math.round(waitMs / 100) / 10,
    });
    if (!isCloned) return;
    const message = `another client connects as ${clientId}: two nodes with one identity, or one agent started twice`;
    alarm("cloned-identity", { severity: "critical", message });
  }
}
