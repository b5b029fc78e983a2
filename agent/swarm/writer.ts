/** The way out of either end of the pipe between the agent and its swarm child. */
import { FrameError } from "./frames.ts";

/** The one way out: frames go one after the other, and only so many wait. */
export class FrameWriter {
  readonly #write: (bytes: Uint8Array) => Promise<void>;
  readonly #most: number;
  #turn: Promise<void> = Promise.resolve();
  #waiting = 0;
  #failure: Error | undefined;

  /** `most`: bytes that may wait. */
  constructor(write: (bytes: Uint8Array) => Promise<void>, most: number) {
    this.#write = write;
    this.#most = most;
  }

  /** Bytes that wait. */
  get waiting(): number {
    return this.#waiting;
  }

  /** Resolves when the other end's pipe has taken it; throws `FrameError` at once where too much waits already, later what went wrong. */
  send(parts: readonly Uint8Array[]): Promise<void> {
    const length = parts.reduce((sum, { length }) => sum + length, 0);
    if (this.#failure) return Promise.reject(this.#failure);
    if (this.#waiting + length > this.#most)
      return Promise.reject(new FrameError(`${this.#waiting} bytes wait to be written already`));
    this.#waiting += length;
    const sent = this.#turn.then(async () => {
      if (this.#failure) throw this.#failure;
      for (const part of parts) await this.#write(part);
    });
    this.#turn = sent
      .catch((cause) => {
        this.#failure ??= cause;
      })
      .finally(() => {
        this.#waiting -= length;
      });
    return sent;
  }
}
