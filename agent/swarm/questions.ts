/** What the child asks the agent, and the answers that are still to come. */
import type { FileKind, Orders, Report, ReportHead } from "./frames.ts";

/** Pieces that wait for their judgement, and reads that wait for their bytes. */
const MOST_PIECES = 4;
const MOST_READS = 32;
/** Reads that wait for their turn; past that whoever asks is told that it is busy. */
const MOST_WAITING = 512;

type Send = <K extends Report["name"]>(name: K, head: ReportHead<K>, body?: Uint8Array) => Promise<void>;

/** Questions by their numbers. */
export class Questions {
  readonly #send: Send;
  readonly #pieces = new Turns(MOST_PIECES, Number.POSITIVE_INFINITY);
  readonly #reads = new Turns(MOST_READS, MOST_WAITING);
  readonly #open = new Map<number, { resolve(answer: unknown): void; reject(why: Error): void }>();
  readonly #files = new Map<string, (is: Orders["verdict"]["is"]) => void>();
  #last = 0;
  #isClosed = false;

  constructor(send: Send) {
    this.#send = send;
  }

  /** Has a piece judged and kept. The leaves that are wrong; throws where nothing could be kept. */
  judge(
    infohash: string,
    piece: number,
    bytes: Uint8Array,
    from: "peers" | "web",
  ): Promise<readonly number[]> {
    return this.#pieces.take(() =>
      this.#ask<readonly number[]>((id) => this.#send("piece", { id, infohash, piece, from }, bytes)),
    );
  }

  /** Bytes that only the agent can read. */
  read(infohash: string, what: "payload" | "side", at: number, length: number): Promise<Uint8Array> {
    return this.#reads.take(() =>
      this.#ask<Uint8Array>((id) => this.#send("get", { id, infohash, what, at, length })),
    );
  }

  /** What the agent thinks of a file, once all its parts were sent. */
  verdictOn(infohash: string, what: FileKind): Promise<Orders["verdict"]["is"]> {
    return new Promise((resolve) => this.#files.set(`${infohash} ${what}`, resolve));
  }

  judged({ id, wrong, trouble }: Orders["judged"]): void {
    this.#answer(id, wrong, trouble);
  }

  got({ id, trouble }: Orders["got"], bytes: Uint8Array): void {
    this.#answer(id, bytes, trouble);
  }

  verdict({ infohash, what, is }: Orders["verdict"]): void {
    this.#files.get(`${infohash} ${what}`)?.(is);
  }

  /** Nobody answers any more. */
  close(): void {
    this.#isClosed = true;
    for (const { reject } of this.#open.values()) reject(new Error("the agent is gone"));
    this.#open.clear();
  }

  #answer(id: number, answer: unknown, trouble: string | undefined): void {
    const asked = this.#open.get(id);
    this.#open.delete(id);
    if (trouble === undefined) asked?.resolve(answer);
    else asked?.reject(new Error(trouble));
  }

  #ask<T>(send: (id: number) => Promise<void>): Promise<T> {
    if (this.#isClosed) return Promise.reject(new Error("the agent is gone"));
    const id = ++this.#last;
    return new Promise<T>((resolve, reject) => {
      this.#open.set(id, { resolve: (answer) => resolve(answer as T), reject });
      send(id).catch((cause) => {
        this.#open.delete(id);
        reject(cause);
      });
    });
  }
}

/** So many at once, the others one after the other. */
export class Turns {
  readonly #atOnce: number;
  readonly #mostWaiting: number;
  readonly #waiting: (() => void)[] = [];
  #running = 0;

  constructor(atOnce: number, mostWaiting: number) {
    this.#atOnce = atOnce;
    this.#mostWaiting = mostWaiting;
  }

  /** Does it when its turn comes; throws at once where too many wait. */
  async take<T>(act: () => Promise<T>): Promise<T> {
    if (this.#running >= this.#atOnce) {
      if (this.#waiting.length >= this.#mostWaiting)
        throw new Error(`busy: ${this.#waiting.length} others wait`);
      await new Promise<void>((resolve) => this.#waiting.push(resolve));
    } else this.#running++;
    try {
      return await act();
    } finally {
      // Whoever comes next takes this one's place
      const next = this.#waiting.shift();
      if (next) next();
      else this.#running--;
    }
  }
}
