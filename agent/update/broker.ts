/**
 * Heads on the site's broker: what it retains is heard, and where this node knows better it says so, once, a while later, so that not
 * every node says the same.
 */
import { setTimeout as sleep } from "node:timers/promises";
import type { Head } from "../../boot/head.ts";
import { type Announcements, idOf, isBetter } from "./announcements.ts";

/** What goes to and comes from the broker. */
export interface HeadLink {
  readonly isOnline: boolean;
  /** Says it once, retained; false where it cannot go out now. */
  publish(id: string, bytes: Uint8Array): boolean;
}

/** After so long at most, drawn by lot, a node says what the broker does not know; then not again for so long. */
export const PACE = { jitterMs: 20_000, restMs: 600_000, lookMs: 1000 };

/** What the broker has, as far as this node knows. */
export class BrokerHeads {
  readonly #link: HeadLink;
  readonly #announcements: Announcements;
  readonly #pace: typeof PACE;
  readonly #retained = new Map<string, Head>();
  /** When each may be said, monotonic. */
  readonly #mayMs = new Map<string, number>();

  constructor(link: HeadLink, announcements: Announcements, pace = PACE) {
    this.#link = link;
    this.#announcements = announcements;
    this.#pace = pace;
  }

  /** What came from the broker; its topic is believed no more than its bytes. */
  async heard(bytes: Uint8Array): Promise<void> {
    const head = await this.#announcements.heard(bytes, "mqtt");
    if (head && isBetter(head, this.#retained.get(idOf(head)))) this.#retained.set(idOf(head), head);
  }

  async run(signal: AbortSignal): Promise<void> {
    const { lookMs } = this.#pace;
    while (!signal.aborted) {
      if (this.#link.isOnline) await this.#say(performance.now()).catch(() => undefined);
      // Another broker, or one that forgets, is told anew
      else this.#retained.clear();
      await sleep(lookMs, undefined, { signal }).catch(() => undefined);
    }
  }

  async #say(nowMs: number): Promise<void> {
    const { jitterMs, restMs } = this.#pace;
    for (const head of await this.#announcements.all()) {
      const id = idOf(head);
      if (!isBetter(head, this.#retained.get(id))) continue;
      const mayMs = this.#mayMs.get(id) ?? nowMs + Math.random() * jitterMs;
      this.#mayMs.set(id, mayMs);
      if (nowMs < mayMs || !this.#link.publish(id, head.bytes)) continue;
      this.#retained.set(id, head);
      this.#mayMs.set(id, nowMs + restMs * (1 + Math.random() / 4));
    }
  }
}
