/**
 * What goes to a terminal, which may take nothing for hours: Ctrl-S, a suspended ssh, a multiplexer in copy mode.
 *
 * Under Bun a write to a terminal by way of `process.stdout` holds up the event loop, and with it signals, timers and the signs of
 * life of a session. These writes wait in the thread pool instead, one at a time.
 */
import { write } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";

/** Who shares the terminal may have set it not to block: then it is asked again. */
const AGAIN_MS = 20;

/** Bytes on their way to a terminal, in the order of the calls. Whoever does not wait for them bounds what is under way. */
export class Output {
  /** From the first write on all else that goes to the same terminal has to go this way, too. */
  isUsed = false;
  readonly #lost: () => void;
  #last: Promise<void> = Promise.resolve();
  #underWay = 0;
  #isGivenUp = false;

  /** `lost` is called when the terminal is gone. */
  constructor(lost: () => void) {
    this.#lost = lost;
  }

  /** Nothing is under way, or it was given up. */
  get isEmpty(): boolean {
    return this.#underWay === 0 || this.#isGivenUp;
  }

  /** Resolves when the terminal has taken them; rejects when it is gone. */
  write(file: number, bytes: Uint8Array): Promise<void> {
    this.isUsed = true;
    this.#underWay++;
    const written = this.#last.then(() => this.#write(file, bytes)).finally(() => this.#underWay--);
    this.#last = written.catch(() => this.#lost());
    return written;
  }

  /** Waits for what is under way, and no longer than this; what the terminal has not taken by then is given up. */
  async finish(limitMs: number): Promise<void> {
    const over = new AbortController();
    const late = sleep(limitMs, undefined, { signal: over.signal }).then(
      () => {
        this.#isGivenUp = true;
      },
      () => undefined,
    );
    await Promise.race([this.#last, late]);
    over.abort();
  }

  async #write(file: number, bytes: Uint8Array): Promise<void> {
    for (let at = 0; at < bytes.length && !this.#isGivenUp; ) {
      const taken = await writeSome(file, bytes.subarray(at));
      at += taken;
      if (taken === 0) await sleep(AGAIN_MS);
    }
  }
}

/** How many bytes it took; none where the kernel says "not now". */
function writeSome(file: number, bytes: Uint8Array): Promise<number> {
  return new Promise((resolve, reject) => {
    write(file, bytes, (error, taken) => {
      if (!error) resolve(taken);
      else if (error.code === "EAGAIN") resolve(0);
      else reject(error);
    });
  });
}
