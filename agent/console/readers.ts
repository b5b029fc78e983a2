/** Somebody who is attached to a console, on the console's side: what they were shown, and what waits for them. */
import { reasonOf } from "../record/lines.ts";
import type { Attached, AttachOptions, Item, Mark } from "./port.ts";
import { Cursor, type Moment, type Ring } from "./ring.ts";

/** How much of what a line says may wait for one reader, bytes. */
const MOST_WAITING = 65_536;
/** Notes for one reader alone that may wait. */
const MOST_NOTES = 16;

/** What a reader is shown besides the ring. */
interface ReaderMeans {
  ring: Ring;
  /** The console as it is for this reader now. */
  view: () => Extract<Item, { kind: "view" }>;
  /** What it was to be shown by has failed. */
  failed: (why: string) => void;
}

/** One reader. Nobody waits for it: it is shown what waits whenever it has room. */
export class Reader {
  readonly options: AttachOptions;
  readonly number: number;
  readonly since = Date.now();
  /** Unix milliseconds; while it is the writer. */
  writesSince: number | undefined;
  bytesIn = 0;
  bytesOut = 0;
  isGone = false;
  readonly #means: ReaderMeans;
  readonly #cursor: Cursor;
  readonly #notes: { mark: Mark; after: Moment }[] = [];
  /** `performance.now()` */
  #typedAt: number | undefined;
  #isShowing = true;
  #isViewDue = true;

  constructor(options: AttachOptions, number: number, means: ReaderMeans) {
    this.options = options;
    this.number = number;
    this.#means = means;
    const { ring } = means;
    this.#cursor = new Cursor(ring, ring.linesBack(options.replayLines), MOST_WAITING);
  }

  get who(): string {
    return this.options.who;
  }

  /** Bytes that it was too slow for. */
  get skipped(): number {
    return this.#cursor.skipped;
  }

  get isQuiet(): boolean {
    return this.options.quiet ?? false;
  }

  /** As others are told of it. */
  get told(): Attached {
    const { who, door } = this.options;
    return {
      number: this.number,
      who,
      door,
      writes: this.writesSince !== undefined,
      since: this.since,
      ...(this.#typedAt === undefined ? {} : { idleMs: performance.now() - this.#typedAt }),
      bytesIn: this.bytesIn,
      bytesOut: this.bytesOut,
    };
  }

  /** Milliseconds since it typed. */
  get idleMs(): number {
    return performance.now() - (this.#typedAt ?? Number.NEGATIVE_INFINITY);
  }

  /** Takes note that it types. */
  typed(bytes: number): void {
    this.#typedAt = performance.now();
    this.bytesIn += bytes;
  }

  /** From now on it is shown what there is. */
  begin(): void {
    this.#isShowing = false;
    this.wake();
  }

  /** Something is there to be shown. */
  wake(): void {
    if (!this.#isShowing && !this.isGone) void this.#show();
  }

  /** Says something to this reader alone, after what it was told before. */
  note(text: string): void {
    this.#notes.push({ mark: { at: Date.now(), kind: "notice", text }, after: this.#means.ring.now });
    if (this.#notes.length > MOST_NOTES) this.#notes.shift();
    this.wake();
  }

  /** The console, or its right to write, has changed. */
  viewChanged(): void {
    this.#isViewDue = true;
    this.wake();
  }

  replay(lines: number): void {
    this.#cursor.rewind(this.#means.ring.linesBack(lines));
    this.wake();
  }

  async #show(): Promise<void> {
    this.#isShowing = true;
    try {
      for (let item = this.#next(); item && !this.isGone; item = this.#next()) await this.options.take(item);
    } catch (error) {
      this.#means.failed(reasonOf(error));
    } finally {
      this.#isShowing = false;
    }
  }

  #next(): Item | undefined {
    // After what was to be replayed, marks and all: the first one says that this is over
    if (this.#isViewDue && !this.#cursor.isReplaying) {
      this.#isViewDue = false;
      return this.#means.view();
    }
    const [note] = this.#notes;
    if (note && this.#cursor.hasSeen(note.after)) {
      this.#notes.shift();
      return { kind: "mark", mark: note.mark };
    }
    const item = this.#cursor.next();
    if (item?.kind === "bytes") this.bytesOut += item.bytes.length;
    return item;
  }
}
