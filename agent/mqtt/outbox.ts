/**
 * Everything on its way to the broker, whether or not there is one right now.
 *
 * Invariants
 * - Each retained topic has one latest value, and only that is sent: a slow broker never gets a stale one after it.
 * - A new link gets every retained topic (the broker may have lost all of them), `status online` last, then the rest.
 * - What is not retained goes out at once or waits in the backlog; nothing else queues.
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
  /** In the order of first publication; a cleared topic stays until the broker acknowledged it. */
  readonly #retained = new Map<string, Outgoing>();
  /** Retained topics whose latest value this link has not been given. */
  #unsent = new Set<string>();
  #link: Link | undefined;
  #online: Outgoing | undefined;
  #isOnline = false;
  #unanswered = 0;
  #sent = 0;
  #lost = 0;
  #timer: NodeJS.Timeout | undefined;
  #waiting: (() => void)[] = [];

  /** `now` is monotonic, in milliseconds. */
  constructor(bufferBytes: number, now: () => number, log: Log) {
    this.#backlog = new Backlog(bufferBytes, now);
    this.#log = log;
  }

  /** The broker has acknowledged `online`. */
  get isOnline(): boolean {
    return this.#isOnline;
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
      this.#pump();
    } else if (this.#isOnline && this.#link?.hasRoom) {
      this.#send(this.#link, message);
    } else {
      this.#backlog.add(message);
      this.#replay();
    }
  }

  /** Starts sending over a link that has subscribed; `online` is what it ends its greeting with. */
  attach(link: Link, online: Outgoing): void {
    this.#link = link;
    this.#online = online;
    this.#retained.delete(online.topic);
    this.#retained.set(online.topic, online);
    this.#unsent = new Set(this.#retained.keys());
    this.#pump();
  }

  /** Stops sending; what was not acknowledged has come back by then. */
  detach(): void {
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
    return this.#unsent.size === 0 && this.#unanswered === 0 && this.#backlog.size === 0;
  }

  #pump(): void {
    for (const topic of this.#unsent) {
      if (!this.#link?.hasRoom) return;
      this.#unsent.delete(topic);
      const message = this.#retained.get(topic);
      if (message) this.#send(this.#link, message);
    }
  }

  #send(link: Link, message: Outgoing): void {
    this.#unanswered += 1;
    link.send(message, (problem) => {
      this.#unanswered -= 1;
      if (problem) this.#failed(message, problem);
      else this.#succeeded(message);
      if (message === this.#online && problem?.kind !== "lost") this.#isOnline = true;
      this.#pump();
      this.#replay();
      this.#wake();
    });
  }

  #succeeded(message: Outgoing): void {
    this.#sent += 1;
    const { topic, retain, payload } = message;
    if (retain && payload.length === 0 && this.#retained.get(topic) === message) this.#retained.delete(topic);
  }

  #failed(message: Outgoing, problem: SendProblem): void {
    if (problem.kind === "lost") {
      // Retained topics are all sent again after the next CONNECT.
      if (!message.retain) this.#backlog.add(message);
      return;
    }
    this.#lost += 1;
    this.#log("error", `mqtt.${problem.kind}`, { topic: message.topic, problem: problem.message });
  }

  #replay(): void {
    if (this.#timer || !this.#isOnline || this.#backlog.size === 0) return;
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      const message = this.#link?.hasRoom && this.#unsent.size === 0 ? this.#backlog.take() : undefined;
      if (message && this.#link) this.#send(this.#link, message);
      this.#replay();
    }, REPLAY_MS);
  }

  #wake(): void {
    for (const resolve of this.#waiting.splice(0)) resolve();
  }
}
