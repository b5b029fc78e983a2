import { setTimeout as sleep } from "node:timers/promises";

/** Lights that people find things by, and that go out by themselves. One that is lit anew stays as long as it was last asked to. */
export class Lights<Key> {
  readonly #lit = new Map<Key, AbortController>();

  /** To be told before a light is lit: it goes out after so many seconds. Where the agent stops before, or it fails, it stays. */
  darken(key: Key, seconds: number, dark: () => unknown, signal: AbortSignal): void {
    this.keep(key);
    const replaced = new AbortController();
    this.#lit.set(key, replaced);
    void sleep(seconds * 1000, undefined, { signal: AbortSignal.any([signal, replaced.signal]) })
      .then(dark)
      // Lit anew, stopped, or gone: none of it is worth more than a light that stays on.
      .catch(() => undefined)
      .finally(() => {
        if (this.#lit.get(key) === replaced) this.#lit.delete(key);
      });
  }

  /** It stays as it is. */
  keep(key: Key): void {
    this.#lit.get(key)?.abort();
    this.#lit.delete(key);
  }
}
