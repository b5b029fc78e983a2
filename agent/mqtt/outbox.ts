/**
 * Everything on its way to the broker, whether or not there is one right now.
 *
 * Invariants
 * - Each retained topic has one latest value, and only that is sent: a slow broker never gets a stale one after it.
 * - A new link gets every retained topic (the broker may have lost all of them), `status online` last, then the rest.
 * - What is not retained goes out at once or waits in the backlog; nothing else queues. Frames never wait here.
 * - No result or event overtakes an earlier one of its class, whatever the connection does.
 */
import type { Log } from "../log.ts";
import { Backlog } from "./backlog.ts";
import type { Link, SendProblem } from "./link.ts";
import type { Outgoing } from "./message.ts";

/** Between two buffered messages: 20 a second, so that a site's nodes do not drown a broker that just came back. */
const REPLAY_MS = 50;

/** Where a link is plugged in and out, and messages go in at any time. */
export class Outbox {
  readonly #log: Log;
  readonly #backlog: Backlog;
  readonly #onRoom: () => void;
  /** In the order of first publication; a cleared topic stays until the broker acknowledged it. */
  readonly #retained = new Map<string, Outgoing>();
  /** Retained topics whose latest value this link has not been given. */
  #unsent = new Set<string>();
  #link: Link | undefined;
  #online: Outgoing | undefined;
  #isOnline = false;
  /** In the order they were sent. */
  readonly #unanswered = new Set<Outgoing>();
  #isAdvancing = false;
  #sent = 0;
  #lost = 0;
  #timer: NodeJS.Timeout | undefined;
  #waiting: (() => void)[] = [];

  /** `now` is monotonic, in milliseconds; `onRoom` is called when a frame can go out, often for nothing. */
  constructor(bufferBytes: number, now: () => number, log: Log, onRoom: () => void = () => undefined) {
    this.#backlog = new Backlog(bufferBytes, now);
    this.#log = log;
    this.#onRoom = onRoom;
  }

  /** The broker has acknowledged `online`. */
  get isOnline(): boolean {
    return this.#isOnline;
  }

  /** Whether a frame can go out now. */
  get hasRoom(): boolean {
    return this.#isOnline && this.#link?.hasRoom === true;
  }

  /** Messages sent, lost for good, and waiting. */
  get counts(): { sent: number; dropped: number; buffered: number } {
    return { sent: this.#sent, dropped: this.#lost + this.#backlog.dropped, buffered: this.#backlog.size };
  }

  /** Sends now or keeps for later. */
  publish(message: Outgoing): void {
    if (message.retain) {
      this.#retained.set(message.topic, message);
      this.#unsent.add(message.topic);
    } else if (this.#link?.hasRoom && this.#mayGoDirect(message)) {
      this.#send(this.#link, message);
    } else {
      this.#backlog.add(message, this.#isOnline);
    }
    this.#advance();
  }

  /** Sends a frame now or never; `done` says once what became of it. */
  sendFrame(frame: Outgoing, done: (problem?: SendProblem) => void): void {
    if (!this.#link || !this.hasRoom) {
      done({ kind: "lost", message: "the broker is away, or slow" });
      return;
    }
    this.#link.send(frame, (problem) => {
      if (!problem) this.#sent += 1;
      done(problem);
      this.#advance();
    });
  }

  /** Starts sending over a link that has subscribed; `online` is what it ends its greeting with. */
  attach(link: Link, online: Outgoing): void {
    this.#link = link;
    this.#online = online;
    this.#retained.delete(online.topic);
    this.#retained.set(online.topic, online);
    this.#unsent = new Set(this.#retained.keys());
    this.#advance();
  }

  /** Stops sending; what was not acknowledged waits again. */
  detach(): void {
    // Retained topics are all sent again after the next CONNECT.
    this.#backlog.putBack([...this.#unanswered].filter(({ retain }) => !retain));
    this.#unanswered.clear();
    this.#link = undefined;
    this.#online = undefined;
    this.#isOnline = false;
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#wake();
  }

  /** Waits until all was acknowledged. False when it was not within `limitMs`, at once while offline. */
  async flush(limitMs: number): Promise<boolean> {
    const until = performance.now() + limitMs;
    while (this.#isOnline && !this.#isSettled && performance.now() < until) {
      const { promise, resolve } = Promise.withResolvers<void>();
      this.#waiting.push(resolve);
      const timer = setTimeout(resolve, until - performance.now());
      await promise;
      clearTimeout(timer);
    }
    return this.#isOnline && this.#isSettled;
  }

  get #isSettled(): boolean {
    return this.#unsent.size === 0 && this.#unanswered.size === 0 && this.#backlog.size === 0;
  }

  /** Telemetry passes what waits: the next sample is what it is about, and kept it would be thinned. */
  #mayGoDirect(message: Outgoing): boolean {
    return this.#isOnline && (message.class === "tele" || !this.#backlog.hasOrdered);
  }

  /** Sends all that can go now. An answer that comes while it does has nothing to add. */
  #advance(): void {
    if (this.#isAdvancing) return;
    this.#isAdvancing = true;
    try {
      while (this.#link?.hasRoom) {
        const message = this.#nextRetained() ?? this.#nextWaiting();
        if (!message) break;
        this.#send(this.#link, message);
      }
    } finally {
      this.#isAdvancing = false;
    }
    // Behind everything else that waits
    if (this.hasRoom) this.#onRoom();
  }

  #nextRetained(): Outgoing | undefined {
    for (const topic of this.#unsent) {
      this.#unsent.delete(topic);
      const message = this.#retained.get(topic);
      if (message) return message;
    }
    return undefined;
  }

  /** What waited for room goes when there is room; what waited for a broker goes at its pace. */
  #nextWaiting(): Outgoing | undefined {
    if (!this.#isOnline || this.#backlog.size === 0) return undefined;
    if (this.#backlog.isNextLive) return this.#backlog.take();
    if (this.#timer) return undefined;
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      this.#advance();
    }, REPLAY_MS);
    return this.#backlog.take();
  }

  #send(link: Link, message: Outgoing): void {
    this.#unanswered.add(message);
    link.send(message, (problem) => {
      // What was lost stays among the unanswered: `detach` puts all of it back, in its order.
      if (problem?.kind !== "lost") {
        this.#unanswered.delete(message);
        if (problem) this.#failed(message, problem);
        else this.#succeeded(message);
        if (message === this.#online) this.#isOnline = true;
      }
      this.#advance();
      this.#wake();
    });
  }

  #succeeded(message: Outgoing): void {
    this.#sent += 1;
    const { topic, retain, payload } = message;
    if (retain && payload.length === 0 && this.#retained.get(topic) === message) this.#retained.delete(topic);
  }

  #failed({ topic }: Outgoing, { kind, message }: SendProblem): void {
    this.#lost += 1;
    this.#log("error", `mqtt.${kind}`, { topic, problem: message });
  }

  #wake(): void {
    for (const resolve of this.#waiting.splice(0)) resolve();
  }
}
