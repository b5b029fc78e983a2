import { performance } from "node:perf_hooks";

/**
 * How often something is looked at: so many at once, then one each so many seconds, for each name; ten and sixty
 * unless said otherwise. Names are the caller's and few (the keys of a file, the doors).
 */
export class FailureLimit {
  readonly #burst: number;
  readonly #seconds: number;
  readonly #now: () => number;
  /** Tokens left and when that was true, for names that have taken some. */
  readonly #buckets = new Map<string, { tokens: number; at: number }>();

  /** `nowSeconds` must not jump: a clock that is set forward would forgive, one set back would punish. */
  constructor({
    burst = 10,
    secondsEach = 60,
    nowSeconds = () => performance.now() / 1000,
  }: { burst?: number; secondsEach?: number; nowSeconds?: () => number } = {}) {
    this.#burst = burst;
    this.#seconds = secondsEach;
    this.#now = nowSeconds;
  }

  /** Whether one more is looked at; takes nothing. */
  isOpen(name = ""): boolean {
    return this.#tokens(name) >= 1;
  }

  /** Counts one. False when there was none left. */
  take(name = ""): boolean {
    const tokens = this.#tokens(name);
    if (tokens < 1) return false;
    this.#buckets.set(name, { tokens: tokens - 1, at: this.#now() });
    return true;
  }

  #tokens(name: string): number {
    const bucket = this.#buckets.get(name);
    if (!bucket) return this.#burst;
    return Math.min(this.#burst, bucket.tokens + (this.#now() - bucket.at) / this.#seconds);
  }
}
