/**
 * What could not be said at once: the broker was away, or slow. In memory (SD cards wear), bounded in bytes.
 * Results and events come before telemetry: they happened once, the next sample comes anyway.
 */
import { bytesOf, type Outgoing } from "./message.ts";

/** One telemetry message per topic in this time (ms) is enough to draw a line through. */
const THIN_MS = 300_000;
/** What an entry costs beside its text: objects, list slots. */
const OVERHEAD = 100;

/** A bounded queue. Full, it drops the oldest telemetry, then the oldest event, then the oldest result. */
export class Backlog {
  readonly #limit: number;
  readonly #now: () => number;
  readonly #results: Outgoing[] = [];
  readonly #events: Outgoing[] = [];
  readonly #tele: Outgoing[] = [];
  readonly #keptAt = new Map<string, number>();
  /** Those that wait for a slow broker only. */
  readonly #live = new Set<Outgoing>();
  #bytes = 0;
  #dropped = 0;

  /** `now` is monotonic, in milliseconds. */
  constructor(limitBytes: number, now: () => number) {
    this.#limit = limitBytes;
    this.#now = now;
  }

  /** Messages waiting. */
  get size(): number {
    return this.#results.length + this.#events.length + this.#tele.length;
  }

  /** What they cost in memory. */
  get bytes(): number {
    return this.#bytes;
  }

  /** Messages nobody will ever see, thinned telemetry included. */
  get dropped(): number {
    return this.#dropped;
  }

  /** Whether a result or an event waits, which no later one may overtake. */
  get hasOrdered(): boolean {
    return this.#results.length + this.#events.length > 0;
  }

  /** Whether the next message was added live. */
  get isNextLive(): boolean {
    const next = this.#results[0] ?? this.#events[0] ?? this.#tele[0];
    return next !== undefined && this.#live.has(next);
  }

  /** Keeps a message, or decides that another one (or this one) is lost. `isLive`: the broker is there. */
  add(message: Outgoing, isLive = false): void {
    if (message.class === "tele" && this.#isTooSoon(message.topic)) {
      this.#dropped += 1;
      return;
    }
    if (isLive) this.#live.add(message);
    this.#keep(message, "last");
  }

  /** The connection broke: puts what was sent in vain, oldest first, before all that waits; nothing is live any more. */
  putBack(messages: readonly Outgoing[]): void {
    this.#live.clear();
    for (const message of messages.toReversed()) this.#keep(message, "first");
  }

  /** The next message to send; an event is marked unless it is live. */
  take(): Outgoing | undefined {
    const message = this.#results.shift() ?? this.#events.shift() ?? this.#tele.shift();
    const isLate = message !== undefined && !this.#live.has(message);
    this.#remove(message);
    if (this.size === 0) this.#keptAt.clear();
    return isLate && message.class === "event" ? marked(message) : message;
  }

  #keep(message: Outgoing, place: "first" | "last"): void {
    const cost = bytesOf(message) + OVERHEAD;
    if (cost > this.#limit) {
      this.#live.delete(message);
      this.#dropped += 1;
      return;
    }
    const queue = this.#queueOf(message);
    if (place === "first") queue.unshift(message);
    else queue.push(message);
    this.#bytes += cost;
    while (this.#bytes > this.#limit) {
      this.#remove(this.#tele.shift() ?? this.#events.shift() ?? this.#results.shift());
      this.#dropped += 1;
    }
  }

  #isTooSoon(topic: string): boolean {
    const last = this.#keptAt.get(topic);
    if (last !== undefined && this.#now() - last < THIN_MS) return true;
    this.#keptAt.set(topic, this.#now());
    return false;
  }

  #queueOf(message: Outgoing): Outgoing[] {
    if (message.class === "tele") return this.#tele;
    return message.class === "result" ? this.#results : this.#events;
  }

  #remove(message: Outgoing | undefined): void {
    if (!message) return;
    this.#bytes -= bytesOf(message) + OVERHEAD;
    this.#live.delete(message);
  }
}

/** Says in the event that it is told later than it happened. */
function marked(message: Outgoing): Outgoing {
  const text = Buffer.from(message.payload as Uint8Array).toString();
  return { ...message, payload: JSON.stringify({ ...JSON.parse(text), buffered: 1 }) };
}
