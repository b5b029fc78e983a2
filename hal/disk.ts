/**
 * Disks, partitions and files that stand for them, on the kernel's own calls.
 *
 * Invariants
 * - What may block does so on the thread pool: a card that hangs for a minute hangs nothing else.
 * - A disk and its partitions are cached apart: what was written through one of them is seen through another by `readMedium`.
 */
import {
  close,
  constants,
  fdatasync,
  fstat,
  open,
  read,
  readFileSync,
  readlinkSync,
  type Stats,
  write,
} from "node:fs";
import { dirname } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import { forget, holdAlone, isPageAligned, PAGE, pageAligned, tryLock } from "./native/disk.ts";
import { isBun } from "./native/runtime.ts";
import { type BlockDevice, HalError, type HalErrorCode } from "./ports.ts";

const files = {
  close: promisify(close),
  fdatasync: promisify(fdatasync),
  fstat: promisify(fstat),
  open: promisify(open),
};

/** Opens a disk as `Hal.openDisk` says it. */
export async function openDisk(path: string, how: "read" | "write" | "exclusive"): Promise<BlockDevice> {
  const flags = how === "read" ? constants.O_RDONLY : constants.O_RDWR;
  const file = await files
    .open(path, how === "exclusive" ? flags | constants.O_EXCL : flags)
    .catch((cause) => Promise.reject(unopened(path, cause)));
  try {
    const stats = await files.fstat(file);
    if (!stats.isFile() && !stats.isBlockDevice())
      throw new HalError("absent", `${path} is neither a disk nor a file`);
    // Of a file that exists, O_EXCL says nothing: open(2)
    if (how === "exclusive" && stats.isFile() && isBun) holdAlone(file, path);
    return new LinuxDisk(path, stats.isFile() ? stats.size : sizeOf(path, stats, how), file, stats.isFile());
  } catch (cause) {
    await files.close(file);
    throw cause instanceof HalError ? cause : unopened(path, cause);
  }
}

/** Longest wait for those who change the same disk: one change takes milliseconds, on a card that tidies up seconds. */
const LOCK_MS = 10_000;
/** flock(2) that waits would hold up a thread. */
const LOCK_POLL_MS = 20;

const CODES: Record<string, HalErrorCode> = {
  ENOENT: "absent",
  ENOTDIR: "absent",
  ENXIO: "absent",
  ENODEV: "absent",
  ENOMEDIUM: "absent",
  EISDIR: "absent",
  EBUSY: "busy",
  EAGAIN: "busy",
  EACCES: "refused",
  EPERM: "refused",
  EROFS: "refused",
};

/** What errors of the kernel mean for a card, where its own words say too little. */
const MEANINGS: Record<string, string> = {
  EBUSY: "it is mounted, or another program holds it",
  EAGAIN: "another program holds it",
  EIO: "the medium is failing, or its contacts are",
  EROFS: "it is read-only: some cards lock themselves when they are worn",
  ENOSPC: "no space is left behind it",
};

function unopened(path: string, cause: unknown): HalError {
  const code = CODES[(cause as NodeJS.ErrnoException).code ?? ""] ?? "io";
  return new HalError(code, `${path}: ${reason(cause)}`, { cause });
}

/** Bytes of a block device, of which fstat(2) says nothing; throws where it is to be written and cannot be. */
function sizeOf(path: string, { rdev }: Stats, how: string): number {
  // gnu_dev_major and gnu_dev_minor of sys/sysmacros.h, as far as Linux numbers disks (32 bits)
  const number = `${(rdev >>> 8) & 0xfff}:${(rdev & 0xff) | ((rdev >>> 12) & 0xfff00)}`;
  const fact = (name: string) => Number(readFileSync(`/sys/dev/block/${number}/${name}`, "utf8"));
  // The kernel opens it all the same and refuses the first write
  if (how !== "read" && fact("ro") === 1) throw new HalError("refused", `${path}: ${MEANINGS.EROFS}`);
  // In sectors of 512, whatever the disk's own are
  return fact("size") * 512;
}

class LinuxDisk implements BlockDevice {
  readonly name: string;
  readonly bytes: number;
  readonly #file: number;
  readonly #isFile: boolean;
  /** The same disk, opened past the cache. */
  #direct: number | undefined;
  #pastCache: BlockDevice["pastCache"];

  constructor(name: string, bytes: number, file: number, isFile: boolean) {
    this.name = name;
    this.bytes = bytes;
    this.#file = file;
    this.#isFile = isFile;
  }

  get pastCache() {
    return this.#pastCache;
  }

  read(offset: number, length: number, into?: Uint8Array): Promise<Uint8Array> {
    const bytes = into && into.length >= length ? into.subarray(0, length) : new Uint8Array(length);
    return this.#readAll(this.#file, offset, bytes);
  }

  async readMedium(offset: number, length: number, into?: Uint8Array): Promise<Uint8Array> {
    if (offset % PAGE !== 0 || length % PAGE !== 0)
      throw new RangeError(`${this.name}: ${length} bytes at ${offset} are no whole sectors of ${PAGE}`);
    const way = this.#pastCache ?? (await this.#findWay());
    if (way === "direct" && this.#direct !== undefined) {
      const fits = into && into.length >= length && isPageAligned(into);
      return this.#readAll(this.#direct, offset, fits ? into.subarray(0, length) : pageAligned(length));
    }
    if (way === "forgotten") {
      // What is dirty is not forgotten
      await this.flush();
      forget(this.#file, offset, length);
    }
    return this.read(offset, length, into);
  }

  async write(offset: number, bytes: Uint8Array): Promise<void> {
    for (let at = 0; at < bytes.length; ) {
      const put = await this.#call("write", offset + at, (done) =>
        write(this.#file, bytes, at, bytes.length - at, offset + at, done),
      );
      if (put === 0) throw new HalError("io", `${this.name}: write at byte ${offset + at}: it takes no more`);
      at += put;
    }
  }

  async flush(): Promise<void> {
    await files.fdatasync(this.#file).catch((cause) => {
      throw new HalError("io", `${this.name}: flush: ${reason(cause)}`, { cause });
    });
  }

  async exclusively<T>(work: () => Promise<T>, limitMs = LOCK_MS): Promise<T> {
    if (!isBun) return work();
    const own = `/proc/self/fd/${this.#file}`;
    // A file's own lock belongs to whoever opened it exclusively, which may be for as long as an install takes
    const path = this.#isFile ? dirname(readlinkSync(own)) : own;
    const lock = await files
      .open(path, constants.O_RDONLY)
      .catch((cause) => Promise.reject(unopened(this.#isFile ? path : this.name, cause)));
    try {
      const endMs = performance.now() + limitMs;
      while (!tryLock(lock, this.name)) {
        if (performance.now() > endMs)
          throw new HalError(
            "busy",
            `${this.name}: another program has been changing it for ${limitMs / 1000} s`,
          );
        await sleep(LOCK_POLL_MS);
      }
      return await work();
    } finally {
      await files.close(lock);
    }
  }

  async close(): Promise<void> {
    if (this.#direct !== undefined) await files.close(this.#direct);
    await files.close(this.#file);
  }

  /** Not every file system reads directly (tmpfs before 6.6 refuses to open so), and only under Bun is there memory for it. */
  async #findWay() {
    this.#pastCache = "never";
    if (isBun) {
      this.#pastCache = "forgotten";
      // By its number: the name may by now be another's
      const own = `/proc/self/fd/${this.#file}`;
      const direct = await files.open(own, constants.O_RDONLY | constants.O_DIRECT).catch(() => undefined);
      if (direct !== undefined) {
        const tried = await this.#readAll(direct, 0, pageAligned(PAGE)).catch((cause) => cause);
        if ((tried?.cause as NodeJS.ErrnoException | undefined)?.code === "EINVAL") await files.close(direct);
        else [this.#direct, this.#pastCache] = [direct, "direct"];
      }
    }
    return this.#pastCache;
  }

  async #readAll(file: number, offset: number, bytes: Uint8Array): Promise<Uint8Array> {
    for (let at = 0; at < bytes.length; ) {
      const got = await this.#call("read", offset + at, (done) =>
        read(file, bytes, at, bytes.length - at, offset + at, done),
      );
      at += got;
      if (got === 0 || (at < bytes.length && offset + at >= this.bytes))
        throw new HalError(
          "io",
          `${this.name}: it ends at byte ${offset + at}, ${bytes.length - at} short of what was asked`,
        );
    }
    return bytes;
  }

  #call(
    what: string,
    at: number,
    call: (done: (error: NodeJS.ErrnoException | null, count: number) => void) => void,
  ) {
    return new Promise<number>((resolve, reject) =>
      call((cause, count) =>
        cause
          ? reject(new HalError("io", `${this.name}: ${what} at byte ${at}: ${reason(cause)}`, { cause }))
          : resolve(count),
      ),
    );
  }
}

function reason(cause: unknown): string {
  const { code = "", message } =
    cause instanceof Error ? (cause as NodeJS.ErrnoException) : { message: String(cause) };
  const meaning = MEANINGS[code];
  return meaning === undefined ? message : `${message} (${meaning})`;
}
