/** How much of something is let through: a token bucket for each source and one for all of them. */
import { sourceOf } from "./address.ts";

/** So many at once, then so many a second. */
export interface Rate {
  burst: number;
  perSecond: number;
}

/** Sources that are remembered. Those forgotten first are the ones not heard for longest: their buckets are full again anyway. */
const MOST_SOURCES = 1024;

/** One token bucket. */
export class Bucket {
  readonly #rate: Rate;
  readonly #now: () => number;
  #tokens: number;
  #at: number;

  /** `now` in milliseconds, of a clock that nobody sets. */
  constructor(rate: Rate, now: () => number = () => performance.now()) {
    this.#rate = rate;
    this.#now = now;
    this.#tokens = rate.burst;
    this.#at = now();
  }

  /** Counts one; false when there was none left. */
  take(): boolean {
    const now = this.#now();
    const { burst, perSecond } = this.#rate;
    this.#tokens = Math.min(burst, this.#tokens + ((now - this.#at) / 1000) * perSecond);
    this.#at = now;
    if (this.#tokens < 1) return false;
    this.#tokens--;
    return true;
  }
}

/** Token buckets of sources that anybody can invent, in bounded memory. */
export class SourceLimit {
  readonly #each: Rate;
  readonly #now: () => number;
  readonly #all: Bucket;
  readonly #sources = new Map<string, Bucket>();

  constructor({ each, all, now = () => performance.now() }: { each: Rate; all: Rate; now?: () => number }) {
    this.#each = each;
    this.#now = now;
    this.#all = new Bucket(all, now);
  }

  /** Counts one of this host. A source over its own limit takes nothing from the others. */
  take(host: string): boolean {
    const source = sourceOf(host);
    const bucket = this.#sources.get(source) ?? new Bucket(this.#each, this.#now);
    this.#sources.delete(source);
    this.#sources.set(source, bucket);
    const [oldest] = this.#sources.keys();
    if (this.#sources.size > MOST_SOURCES && oldest !== undefined) this.#sources.delete(oldest);
    return bucket.take() && this.#all.take();
  }
}
