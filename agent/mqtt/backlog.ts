/**
 * What could not be said while the broker was away. In memory (SD cards wear), bounded in bytes.
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

  /** Keeps a message, or decides that another one (or this one) is lost. */
  add(message: Outgoing): void {
    const cost = bytesOf(message) + OVERHEAD;
    if (cost > this.#limit || (message.class === "tele" && this.#isTooSoon(message.topic))) {
      this.#dropped += 1;
      return;
    }
    this.#queueOf(message).push(message);
    this.#bytes += cost;
    while (this.#bytes > this.#limit) {
      this.#remove(this.#tele.shift() ?? this.#events.shift() ?? this.#results.shift());
      this.#dropped += 1;
    }
  }

  /** The next message to send, marked if it is an event. */
  take(): Outgoing | undefined {
    const message = this.#remove(this.#results.shift() ?? this.#events.shift() ?? this.#tele.shift());
    if (this.size === 0) this.#keptAt.clear();
    return message?.class === "event" ? marked(message) : message;
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

  #remove(message: Outgoing | undefined): Outgoing | undefined {
    if (message) this.#bytes -= bytesOf(message) + OVERHEAD;
    return message;
  }
}

/** Says in the event that it is told later than it happened. */
function marked(message: Outgoing): Outgoing {
  const text = Buffer.from(message.payload as Uint8Array).toString();
  return { ...message, payload: JSON.stringify({ ...JSON.parse(text), buffered: 1 }) };
}
