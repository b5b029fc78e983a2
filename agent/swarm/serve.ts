/** Answers the requests of one peer as fast as it reads, and no faster: little of the payload waits in memory. */
import type Wire from "bittorrent-protocol";
import type { Shape } from "./stock.ts";

/** Bytes that may wait for the peer to read. */
const MAX_WAITING_BYTES = 128 * 1024;
/** Reads at once. */
const MAX_READING = 4;
/** Requests that are remembered, those among them that were taken back; a peer may have half as many that wait. */
const MAX_QUEUED = 512;

interface Question {
  piece: number;
  offset: number;
  length: number;
  respond: Respond;
}

type Respond = (error: Error | null, bytes?: Uint8Array) => void;

/** Serves one connection from `get`, which throws where the bytes are not there. */
export class Serving {
  readonly #wire: Wire;
  readonly #shape: Shape;
  readonly #get: (at: number, length: number) => Promise<Uint8Array>;
  #queue: Question[] = [];
  #reading = 0;

  constructor(wire: Wire, shape: Shape, get: (at: number, length: number) => Promise<Uint8Array>) {
    this.#wire = wire;
    this.#shape = shape;
    this.#get = get;
    // The library's own answers at once, whether the peer reads or not
    wire.removeAllListeners("request");
    wire.on("request", (piece: number, offset: number, length: number, respond: Respond) => {
      this.#queue.push({ piece, offset, length, respond });
      if (this.#queue.length > MAX_QUEUED) this.#forget();
      this.#pump();
    });
    // Called by the stream when there is room again
    wire._read = ((done: (error: null) => void) => {
      done(null);
      this.#pump();
    }) as unknown as Wire["_read"];
  }

  #pump(): void {
    while (this.#reading < MAX_READING && this.#wire._readableState.buffered < MAX_WAITING_BYTES) {
      const next = this.#queue.shift();
      if (next === undefined) return;
      if (this.#isWanted(next)) void this.#answer(next.piece * this.#shape.pieceBytes + next.offset, next);
    }
  }

  /** Was it not taken back? */
  #isWanted({ piece, offset, length }: Question): boolean {
    return this.#wire.peerRequests.some(
      (one) => one.piece === piece && one.offset === offset && one.length === length,
    );
  }

  /** What was taken back goes: a peer may ask and take back for days, and read nothing. */
  #forget(): void {
    const wanted = this.#queue.filter((one) => this.#isWanted(one));
    // The same may have been asked twice and taken back once
    this.#queue = wanted.slice(-this.#wire.peerRequests.length);
  }

  async #answer(at: number, { length, respond }: Question): Promise<void> {
    this.#reading++;
    try {
      const bytes = await this.#get(at, length);
      if (bytes.length !== length) throw new RangeError(`${bytes.length} bytes came instead of ${length}`);
      respond(null, bytes);
    } catch (error) {
      respond(error instanceof Error ? error : new Error(String(error)));
    } finally {
      this.#reading--;
      if (!this.#wire.destroyed) this.#pump();
    }
  }
}
