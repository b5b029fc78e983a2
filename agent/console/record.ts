/**
 * What a line said, in files as well.
 *
 * Invariants
 * - `<name>.log` is the newest file, `<name>.1.log` the one before; there are `files` of them of at most `file_bytes` each. What an
 *   earlier run of the agent left is gone on with.
 * - Nobody waits for the disk: what it cannot take stays in the ring and is tried again each minute, with an alarm meanwhile.
 *   What the ring had to forget is a mark at its place.
 *
 * When it writes, to spare an SD card that somebody chose:
 * - at once when 4 KiB wait; for 10 s after that whatever has waited for 1 s (the line is busy);
 * - else what has waited for 1 s, and not within a minute of the write before: a line that says a little now and then costs one
 *   write a minute, and a node that loses its power loses a minute of it.
 */
import { appendFile, mkdir, open, rename, stat, truncate } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { within } from "../../hal/limit.ts";
import type { Config } from "../config.ts";
import type { RaiseAlarm } from "../messages.ts";
import { reasonOf } from "../record/lines.ts";
import type { Item } from "./port.ts";
import { Cursor, RING_BYTES, type Ring } from "./ring.ts";
import { markLine, Transcript } from "./text.ts";

const BLOCK_BYTES = 4096;
const SOON_MS = 1000;
const BUSY_MS = 10_000;
const QUIET_MS = 60_000;
/** Bytes of the ring that go into one round of writing. */
const ROUND_BYTES = 65_536;
/** A disk that hangs must not hold up the agent's end. */
const LAST_MS = 300;
/** Nor who asks how much there is. */
const SIZE_MS = 1000;
const NEWLINE = 10;

/** How a recording is made. */
interface RecordOptions {
  name: string;
  config: NonNullable<Config["consoles"][string]["record"]>;
  ring: Ring;
  alarm: RaiseAlarm;
  /** Adds to a file, making it if need be; a test's may fail where a full disk does. */
  append?: (path: string, bytes: Uint8Array) => Promise<void>;
}

/** The recording of one console. */
export class Recording {
  readonly #options: RecordOptions;
  readonly #path: string;
  readonly #cursor: Cursor;
  readonly #transcript = new Transcript({ isStamped: true });
  readonly #append: (path: string, bytes: Uint8Array) => Promise<void>;
  /** Bytes in the newest file; unknown until it was looked at. */
  #size: number | undefined;
  /** Taken from the ring, and not yet in the file. */
  #unsaved: Uint8Array = new Uint8Array();
  #timer: NodeJS.Timeout | undefined;
  #writing: Promise<void> | undefined;
  /** Moments of `performance.now()`. */
  #waitsSince: number | undefined;
  #writtenAt = Number.NEGATIVE_INFINITY;
  #busyUntil = Number.NEGATIVE_INFINITY;
  #failedAt: number | undefined;
  #isClosing = false;

  constructor(options: RecordOptions) {
    this.#options = options;
    this.#path = this.#nth(0);
    this.#cursor = new Cursor(options.ring, options.ring.end, RING_BYTES);
    this.#append = options.append ?? ((path, bytes) => appendFile(path, bytes, { mode: 0o600 }));
  }

  /** Something is there to be written, now or later. */
  wake(): void {
    if (this.#writing !== undefined || this.#isClosing) return;
    const { waiting } = this.#cursor;
    if (waiting === 0 && this.#unsaved.length === 0 && !this.#cursor.isBehind) return;
    const now = performance.now();
    this.#waitsSince ??= now;
    if (waiting >= BLOCK_BYTES) this.#busyUntil = now + BUSY_MS;
    const pauseMs = this.#dueAt(waiting, now) - now;
    if (pauseMs > 0 && this.#timer) return;
    clearTimeout(this.#timer);
    this.#timer = undefined;
    if (pauseMs > 0) this.#timer = setTimeout(() => this.#again(), pauseMs);
    else this.#begin();
  }

  /** Resolves when nothing is being written. */
  async idle(): Promise<void> {
    while (this.#writing !== undefined) await this.#writing;
  }

  /** Bytes in its files; undefined where the disk does not say. */
  async bytes(): Promise<number | undefined> {
    const numbers = Array.from({ length: this.#options.config.files }, (_, n) => n);
    const sizes = Promise.all(numbers.map((n) => sizeOf(this.#nth(n))));
    const late = () => new Error("the disk does not answer");
    const known = await within(SIZE_MS, sizes, late).catch(() => undefined);
    return known?.reduce((sum, size) => sum + size, 0);
  }

  /** Writes what waits and ends. */
  async close(): Promise<void> {
    this.#isClosing = true;
    clearTimeout(this.#timer);
    const last = async () => {
      await this.idle();
      while (this.#unsaved.length > 0 || this.#cursor.isBehind) await this.#round();
      if (this.#options.config.raw) return;
      this.#unsaved = Buffer.from(this.#transcript.endLine());
      await this.#round();
    };
    await Promise.race([last().catch(() => undefined), sleep(LAST_MS)]);
  }

  #dueAt(waiting: number, now: number): number {
    if (this.#failedAt !== undefined) return this.#failedAt + QUIET_MS;
    if (waiting >= BLOCK_BYTES) return now;
    const soon = (this.#waitsSince ?? now) + SOON_MS;
    return now < this.#busyUntil ? soon : Math.max(soon, this.#writtenAt + QUIET_MS);
  }

  #again(): void {
    this.#timer = undefined;
    this.wake();
  }

  #begin(): void {
    this.#writing = this.#round()
      .then(
        () => this.#told(undefined),
        (error) => this.#told(reasonOf(error)),
      )
      .finally(() => {
        this.#writing = undefined;
        this.wake();
      });
  }

  #told(problem: string | undefined): void {
    const now = performance.now();
    this.#writtenAt = now;
    this.#waitsSince = undefined;
    this.#failedAt = problem === undefined ? undefined : now;
    const { alarm, name } = this.#options;
    alarm(
      `console-record-${name}`,
      problem === undefined
        ? null
        : {
            severity: "warning",
            message: `console ${name} is not recorded: ${problem}; what it says is kept in memory, and tried again each minute`,
          },
    );
  }

  /** Everything that waits, up to a bound, in as few writes as the files' size allows. */
  async #round(): Promise<void> {
    const opening = this.#size === undefined ? await this.#resume() : "";
    // What a full disk refused comes first; the ring keeps the rest.
    const next = this.#unsaved.length > 0 ? this.#unsaved : this.#take();
    this.#unsaved = Buffer.concat([Buffer.from(opening), next]);
    while (this.#unsaved.length > 0) {
      const part = await this.#fitting(this.#unsaved);
      await this.#save(part);
      this.#unsaved = this.#unsaved.subarray(part.length);
    }
  }

  #take(): Uint8Array {
    const parts: Uint8Array[] = [];
    let taken = 0;
    while (taken < ROUND_BYTES) {
      const item = this.#cursor.next();
      if (!item) break;
      parts.push(this.#options.config.raw ? rawOf(item) : Buffer.from(this.#transcript.add(item)));
      taken += item.kind === "bytes" ? item.bytes.length : 0;
    }
    return Buffer.concat(parts);
  }

  /** As much as the newest file has room for, to the end of a line where there is one; begins another when it is full. */
  async #fitting(bytes: Uint8Array): Promise<Uint8Array> {
    const { file_bytes } = this.#options.config;
    const size = this.#size ?? 0;
    if (bytes.length <= file_bytes - size) return bytes;
    // A file of an earlier run may be bigger than one may be now
    const room = bytes.subarray(0, Math.max(0, file_bytes - size));
    const newline = room.lastIndexOf(NEWLINE);
    if (newline >= 0) return room.subarray(0, newline + 1);
    if (size === 0) return room;
    await this.#rotate();
    return this.#fitting(bytes);
  }

  async #save(bytes: Uint8Array): Promise<void> {
    const size = this.#size ?? 0;
    try {
      await this.#append(this.#path, bytes);
    } catch (cause) {
      // Half of it may be there. The folder may also be gone, and the file with it.
      await truncate(this.#path, size).catch(() => undefined);
      this.#size = undefined;
      throw cause;
    }
    this.#size = size + bytes.length;
  }

  /** Finds out what there is, after a start and after trouble. Resolves with what ends a line that a killed agent left open. */
  async #resume(): Promise<string> {
    await mkdir(this.#options.config.dir, { recursive: true, mode: 0o700 });
    const size = await sizeOf(this.#path).catch(() => 0);
    const isEnded = size === 0 || this.#options.config.raw || (await this.#isEnded(size));
    this.#size = size;
    return isEnded ? "" : "\n";
  }

  async #isEnded(size: number): Promise<boolean> {
    const file = await open(this.#path, "r");
    try {
      const { buffer } = await file.read(Buffer.alloc(1), 0, 1, size - 1);
      return buffer[0] === NEWLINE;
    } finally {
      await file.close();
    }
  }

  async #rotate(): Promise<void> {
    const { files } = this.#options.config;
    for (let n = files - 1; n > 0; n--)
      await rename(this.#nth(n - 1), this.#nth(n)).catch((error: NodeJS.ErrnoException) => {
        if (error.code !== "ENOENT") throw error;
      });
    if (files === 1) await truncate(this.#path, 0);
    this.#size = 0;
  }

  /** The newest file is the 0th. */
  #nth(n: number): string {
    return join(this.#options.config.dir, `${this.#options.name}${n === 0 ? "" : `.${n}`}.log`);
  }
}

/** Bytes in a file, none where there is none. */
async function sizeOf(path: string): Promise<number> {
  try {
    return (await stat(path)).size;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return 0;
    throw error;
  }
}

function rawOf(item: Item): Uint8Array {
  if (item.kind === "bytes") return item.bytes;
  return item.kind === "mark" ? Buffer.from(`\n${markLine(item.mark)}`) : new Uint8Array();
}
