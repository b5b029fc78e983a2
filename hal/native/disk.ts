/** What a disk needs of C beyond `node:fs`: memory that direct reads take, a cache that forgets, a file held alone. */
import { addressOf, lastErrno, libc, systemError } from "./libc.ts";

/** What direct reads want of addresses, offsets and lengths: a page, which no disk's sector exceeds (open(2), O_DIRECT). */
export const PAGE = 4096;

/** flock(2): exclusively, now or never. */
const LOCK_EX_NB = 2 | 4;
/** posix_fadvise(2), linux/fadvise.h: these bytes are not needed any more. */
const POSIX_FADV_DONTNEED = 4;

/** Bytes that begin at a page of memory, as O_DIRECT wants them. Throws where C cannot be called. */
export function pageAligned(length: number): Uint8Array {
  const memory = new ArrayBuffer(length + PAGE);
  const over = addressOf(new Uint8Array(memory)) % PAGE;
  return new Uint8Array(memory, over === 0 ? 0 : PAGE - over, length);
}

/** Whether a direct read may put its bytes there. */
export const isPageAligned = (bytes: Uint8Array) => addressOf(bytes) % PAGE === 0;

/** The kernel's cache gives up what is clean of these bytes. False where it would not hear of it. */
export const forget = (file: number, offset: number, length: number) =>
  libc().posix_fadvise(file, offset, length, POSIX_FADV_DONTNEED) === 0;

/** Takes the lock of a file for whoever has it open so; false while another has it. */
export function tryLock(file: number, path: string): boolean {
  try {
    holdAlone(file, path);
    return true;
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === "EAGAIN") return false;
    throw cause;
  }
}

/** Takes a file for this program until it is closed; the kernel does so by itself only for disks. Throws EAGAIN when another has it. */
export function holdAlone(file: number, path: string): void {
  if (libc().flock(file, LOCK_EX_NB) < 0) throw systemError("flock", lastErrno(), path);
}
