/**
 * A disk in memory that remembers every write and flush, so that a test can say what the card holds when the power fails at any
 * moment between two of them; and that fails on request.
 */
import { SECTOR } from "../../boot/layout.ts";
import { type BlockDevice, HalError } from "../../hal/ports.ts";

const BLOCK = 4096;
const BLANK = new Uint8Array(BLOCK);

/**
 * By which way it was done. The kernel caches the whole disk and each of its partitions apart, so a flush by one way says nothing
 * of what was written by another; a boot loader never flushes, and a restart in order flushes all.
 */
export type Way = "disk" | "a" | "b" | "loader" | "all";

/** One thing that was done to a disk. */
export type Step =
  | { kind: "write"; way: Way; offset: number; bytes: Uint8Array }
  | { kind: "flush"; way: Way };

/** Bytes of an erase block: what shares one may be spoilt together. */
export const AREA = 4 * 1024 * 1024;

/** What a disk holds: blocks of 4096 bytes that copies share until one of them writes; what was never written is zero. */
export class Image {
  readonly bytes: number;
  readonly #blocks: Map<number, Uint8Array>;
  /** Of the content of every erase block. */
  readonly #digests: BigUint64Array;

  constructor(bytes: number, from?: Image) {
    this.bytes = bytes;
    this.#blocks = from ? new Map(from.#blocks) : new Map();
    this.#digests = from ? from.#digests.slice() : new BigUint64Array(Math.ceil(bytes / AREA));
  }

  copy(): Image {
    return new Image(this.bytes, this);
  }

  /** The same for the same content of an erase block, another for another. */
  digestOf(area: number): bigint {
    return this.#digests[area] ?? 0n;
  }

  /** The same for the same content of the disk, another for another. */
  get digest(): string {
    return this.#digests.join(" ");
  }

  /** Bytes of the blocks that were ever written, by offset. */
  *written(): Generator<{ offset: number; bytes: Uint8Array }> {
    for (const [index, bytes] of this.#blocks) yield { offset: index * BLOCK, bytes };
  }

  /** `into` is memory it may put them into. */
  read(offset: number, length: number, into?: Uint8Array): Uint8Array {
    this.#check(offset, length);
    const bytes = into && into.length >= length ? into.subarray(0, length) : new Uint8Array(length);
    for (let at = 0; at < length; ) {
      const [index, inside] = [Math.floor((offset + at) / BLOCK), (offset + at) % BLOCK];
      const count = Math.min(length - at, BLOCK - inside);
      const block = this.#blocks.get(index);
      if (!block) bytes.fill(0, at, at + count);
      else if (count === BLOCK) bytes.set(block, at);
      else bytes.set(block.subarray(inside, inside + count), at);
      at += count;
    }
    return bytes;
  }

  write(offset: number, bytes: Uint8Array): void {
    this.#check(offset, bytes.length);
    for (let at = 0; at < bytes.length; ) {
      const [index, inside] = [Math.floor((offset + at) / BLOCK), (offset + at) % BLOCK];
      const count = Math.min(bytes.length - at, BLOCK - inside);
      const part = bytes.subarray(at, at + count);
      const old = this.#blocks.get(index);
      const block = count === BLOCK ? part : new Uint8Array(old ?? BLANK);
      if (count < BLOCK) block.set(part, inside);
      const area = Math.floor((index * BLOCK) / AREA);
      this.#digests[area] = this.digestOf(area) ^ sum(index, old) ^ sum(index, block);
      this.#blocks.set(index, block);
      at += count;
    }
  }

  /** Whether the bytes from `offset` on are these. */
  holds(offset: number, bytes: Uint8Array): boolean {
    for (let at = 0; at < bytes.length; at += BLOCK) {
      const want = bytes.subarray(at, at + BLOCK);
      const have = this.#blocks.get((offset + at) / BLOCK) ?? BLANK;
      if (have !== want && Buffer.compare(have.subarray(0, want.length), want) !== 0) return false;
    }
    return true;
  }

  #check(offset: number, length: number): void {
    if (offset < 0 || offset + length > this.bytes)
      throw new RangeError(`bytes ${offset} to ${offset + length} are not on a disk of ${this.bytes}`);
  }
}

/** A block and its place; a blank one counts like one that was never written. */
const sum = (index: number, block: Uint8Array | undefined): bigint =>
  block === undefined || Buffer.compare(block, BLANK) === 0 ? 0n : Bun.hash(block, BigInt(index + 1));

/** What goes wrong. `at` counts from 0 over all calls of that kind since the disk was opened. */
export type Fault =
  /** The call fails, once. */
  | { fault: "EIO"; on: "read" | "write" | "flush"; at: number }
  /** The kernel has made it read-only: this write and every later one fails. */
  | { fault: "EROFS"; on: "write"; at: number }
  /** The first sectors are written, then the call fails. */
  | { fault: "short"; on: "write"; at: number; sectors: number }
  /** The call never comes back. */
  | { fault: "hangs"; on: "write" | "flush"; at: number }
  /** The card stores one bit wrong; with `forEver` it does so at that place from now on. */
  | { fault: "differs"; on: "write"; at: number; byte: number; forEver?: boolean };

/** A card whose every write and flush is in `journal`, after `image` took it. */
export class CrashDisk {
  readonly image: Image;
  readonly journal: Step[] = [];
  /** Calls so far. */
  readonly calls = { read: 0, write: 0, flush: 0 };
  /** Erase blocks that somebody has read; whoever wants to know empties it. */
  readonly read = new Set<number>();
  /** What will go wrong; whoever empties it has repaired the card. */
  faults: readonly Fault[] = [];
  /** Bytes whose lowest bit the card turns. */
  readonly #stuck = new Set<number>();
  /** Bytes of which the kernel's cache knows what should have been stored. */
  readonly #cached = new Map<number, number>();
  readonly #onStep: () => void;
  readonly #hung = Promise.withResolvers<void>();

  constructor(image: Image, onStep: () => void = () => {}) {
    this.image = image;
    this.#onStep = onStep;
  }

  /** Resolves when a call hangs. */
  get hung(): Promise<void> {
    return this.#hung.promise;
  }

  /** The whole disk, or the stretch of it that a slot's partition is. */
  open(way: "disk" | "a" | "b", offset = 0, bytes = this.image.bytes): BlockDevice {
    const name = way === "disk" ? "/dev/crash" : `/dev/crash-${way}`;
    const check = (what: string, at: number, length: number, unit: number) => {
      if (at % unit !== 0 || length % unit !== 0 || at + length > bytes)
        throw new HalError("io", `${name}: ${what} of ${length} at byte ${at}: EINVAL: invalid argument`);
    };
    const fetch = async (at: number, length: number, into?: Uint8Array) => {
      await this.#meets("read", name, at);
      this.#note(offset + at, length);
      return this.image.read(offset + at, length, into);
    };
    return {
      name,
      bytes,
      pastCache: "direct",
      read: async (at, length, into) => {
        check("read", at, length, 1);
        const content = await fetch(at, length, into);
        for (const [byte, right] of this.#cached)
          if (byte >= offset + at && byte < offset + at + length) content[byte - offset - at] = right;
        return content;
      },
      readMedium: async (at, length, into) => {
        check("read", at, length, BLOCK);
        return fetch(at, length, into);
      },
      write: async (at, content) => {
        check("write", at, content.length, SECTOR);
        const fault = await this.#meets("write", name, at);
        this.#write(way, offset + at, content.slice(), fault, `${name}: write at byte ${at}`);
      },
      flush: async () => {
        await this.#meets("flush", name, 0);
        this.flush(way);
      },
      close: async () => {},
    };
  }

  /** The card for a boot loader. */
  get medium(): {
    read(offset: number, bytes: number): Uint8Array | undefined;
    write(offset: number, bytes: Uint8Array): boolean;
  } {
    return {
      read: (offset, bytes) => {
        if (offset + bytes > this.image.bytes) return undefined;
        this.#note(offset, bytes);
        return this.image.read(offset, bytes);
      },
      write: (offset, bytes) => {
        const at = this.calls.write++;
        const fault = this.faults.find((one) => one.on === "write" && isDue(one, at));
        if (fault && fault.fault !== "differs") return false;
        this.#write("loader", offset, bytes.slice(), fault, "loader");
        return true;
      },
    };
  }

  /** Does again what was done to another disk. */
  repeat(step: Step): void {
    if (step.kind === "flush") this.flush(step.way);
    else this.#take(step.way, step.offset, step.bytes);
  }

  #note(offset: number, bytes: number): void {
    for (let area = Math.floor(offset / AREA); area * AREA < offset + bytes; area++) this.read.add(area);
  }

  /** Everything written by that way lasts. */
  flush(way: Way): void {
    this.journal.push({ kind: "flush", way });
    this.#onStep();
  }

  /** Counts a call; throws or hangs where that is due, and returns what else is. */
  async #meets(on: Fault["on"], name: string, where: number): Promise<Fault | undefined> {
    const at = this.calls[on]++;
    const fault = this.faults.find((one) => one.on === on && isDue(one, at));
    if (fault?.fault === "hangs") {
      this.#hung.resolve();
      await new Promise(() => {});
    }
    if (fault?.fault === "EIO" || fault?.fault === "EROFS")
      throw new HalError("io", `${name}: ${on} at byte ${where}: ${fault.fault}: ${on}`);
    return fault;
  }

  #write(way: Way, offset: number, bytes: Uint8Array, fault: Fault | undefined, what: string): void {
    if (fault?.fault === "short") {
      this.#take(way, offset, bytes.subarray(0, fault.sectors * SECTOR));
      throw new HalError("io", `${what}: EIO: i/o error after ${fault.sectors} sectors`);
    }
    this.#take(way, offset, bytes);
    if (fault?.fault !== "differs") return;
    const byte = offset + (fault.byte % bytes.length);
    this.#cached.set(byte, bytes[fault.byte % bytes.length] ?? 0);
    this.#flip(byte);
    if (fault.forEver) this.#stuck.add(byte);
  }

  #take(way: Way, offset: number, bytes: Uint8Array): void {
    if (bytes.length === 0) return;
    this.image.write(offset, bytes);
    const isWritten = (byte: number) => byte >= offset && byte < offset + bytes.length;
    for (const byte of this.#cached.keys()) if (isWritten(byte)) this.#cached.delete(byte);
    for (const byte of this.#stuck)
      if (isWritten(byte)) {
        this.#cached.set(byte, bytes[byte - offset] ?? 0);
        this.#flip(byte);
      }
    this.journal.push({ kind: "write", way, offset, bytes });
    this.#onStep();
  }

  #flip(byte: number): void {
    const start = byte - (byte % SECTOR);
    const sector = this.image.read(start, SECTOR);
    sector[byte % SECTOR] = (sector[byte % SECTOR] ?? 0) ^ 1;
    this.image.write(start, sector);
  }
}

const isDue = (fault: Fault, at: number) => (fault.fault === "EROFS" ? at >= fault.at : at === fault.at);

/** Does a step to an image. */
export function apply(image: Image, step: Step): void {
  if (step.kind === "write") image.write(step.offset, step.bytes);
}
