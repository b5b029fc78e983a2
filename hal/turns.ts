import { HalError } from "./ports.ts";

/** More than a full bus of 32 outlets and its boards, each asked at once; past that nobody reads the answers. */
const LONGEST_QUEUE = 64;

/** One conversation at a time, first come first served; throws `busy` when too many wait. `what` is for the message. */
export class Turns {
  readonly #what: string;
  #waiting = 0;
  #last: Promise<unknown> = Promise.resolve();

  constructor(what: string) {
    this.#what = what;
  }

  async take<T>(conversation: () => Promise<T>): Promise<T> {
    if (this.#waiting >= LONGEST_QUEUE) {
      throw new HalError("busy", `${this.#what}: ${this.#waiting} requests are waiting already`);
    }
    this.#waiting++;
    const mine = this.#last.then(conversation, conversation);
    this.#last = mine;
    try {
      return await mine;
    } finally {
      this.#waiting--;
    }
  }
}
