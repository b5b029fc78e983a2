/**
 * The only file that calls C. Nothing is opened until something is asked; what this system lacks is `undefined` or an error.
 *
 * One name serves both C libraries: glibc's is `libc.so.6`, and musl's loader answers with itself to every name that
 * begins with `libc.` (ldso/dynlink.c, load_library), so no second libc can get into the process.
 * Calls block their thread: on the event loop only what returns at once may be called; `worker.ts` has the others.
 */
import type * as Ffi from "bun:ffi";
import { closeSync, openSync } from "node:fs";
import { getSystemErrorMap } from "node:util";
import { isBun } from "./runtime.ts";

const SYMBOLS = {
  adjtimex: { args: ["ptr"], returns: "i32" },
  epoll_create1: { args: ["i32"], returns: "i32" },
  epoll_ctl: { args: ["i32", "i32", "i32", "ptr"], returns: "i32" },
  epoll_wait: { args: ["i32", "ptr", "i32", "i32"], returns: "i32" },
  eventfd: { args: ["u32", "i32"], returns: "i32" },
  execve: { args: ["ptr", "ptr", "ptr"], returns: "i32" },
  fcntl: { args: ["i32", "i32", "u64"], returns: "i32" },
  flock: { args: ["i32", "i32"], returns: "i32" },
  ioctl: { args: ["i32", "u64", "u64"], returns: "i32" },
  posix_fadvise: { args: ["i32", "i64", "i64", "i32"], returns: "i32" },
  prctl: { args: ["i32", "u64", "u64", "u64", "u64"], returns: "i32" },
  setrlimit: { args: ["i32", "ptr"], returns: "i32" },
  __errno_location: { args: [], returns: "ptr" },
} as const;

type Symbols = ReturnType<typeof Ffi.dlopen<typeof SYMBOLS>>["symbols"];

/** The C library as this thread has it. */
interface Library {
  symbols: Symbols;
  ffi: typeof Ffi;
  /** Where this thread's errno is; it stays there. */
  errno: Ffi.Pointer;
}

let loaded: Library | undefined;

/** The C library this process already runs on. Throws, with what to do, where it cannot be called. */
export function libc(): Symbols {
  return library().symbols;
}

/** Why C cannot be called here, and what to do; undefined where it can. */
export function libcProblem(): string | undefined {
  try {
    libc();
    return undefined;
  } catch (cause) {
    return (cause as Error).message;
  }
}

function library(): Library {
  loaded ??= load();
  return loaded;
}

function load(): Library {
  if (!isBun) throw new Error("C is called under Bun only; under Node the packages bring their own");
  // Not imported: Node, which has no such module, loads this file too.
  const ffi = process.getBuiltinModule("bun:ffi" as "fs") as unknown as typeof Ffi;
  try {
    const { symbols } = ffi.dlopen("libc.so.6", SYMBOLS);
    return { symbols, ffi, errno: symbols.__errno_location() as Ffi.Pointer };
  } catch (cause) {
    const { message } = cause as Error;
    const remedy = message.includes("JIT") ? "; start it without BUN_JSC_useJIT=0" : "";
    throw new Error(`the C library cannot be called (${message})${remedy}`, { cause });
  }
}

/** An error of the kernel as Node's own look: `code` ENXIO, `errno` -6, `syscall`. */
export function systemError(syscall: string, errno: number, about = ""): NodeJS.ErrnoException {
  const [code, words] = getSystemErrorMap().get(-errno) ?? [`E${errno}`, `error ${errno}`];
  const error: NodeJS.ErrnoException = new Error(`${code}: ${words}, ${syscall}${about && ` ${about}`}`);
  return Object.assign(error, { code, errno: -errno, syscall });
}

/** Why the last call on this thread failed. To be asked at once, before anything else is called. */
export function lastErrno(): number {
  const { ffi, errno } = library();
  return ffi.read.i32(errno);
}

/** What a call returned; throws `systemError` when it was negative. */
export function checked(syscall: string, result: number, about = ""): number {
  if (result < 0) throw systemError(syscall, lastErrno(), about);
  return result;
}

/** Memory that C may read and write. */
export type Buffered = NodeJS.TypedArray | DataView;

/** Where a buffer stands in memory, for a structure that points to it. Whoever asks keeps the buffer alive. */
export function addressOf(buffer: Buffered): number {
  return Number(library().ffi.ptr(buffer));
}

/** ioctl(2) that returns at once: `argument` is a structure read and written in place, or a number. Throws `systemError`. */
export function ioctl(file: number, request: number, argument: Buffered | number, about = ""): number {
  const value = typeof argument === "number" ? argument : addressOf(argument);
  return checked("ioctl", libc().ioctl(file, request, value), about);
}

/** What the kernel says of the clock. */
export interface KernelClock {
  synced: boolean;
  offsetSeconds: number;
}

/** struct timex of 64-bit Linux (linux/timex.h), the same in both libraries. */
const TIMEX = { size: 208, offset: 8, status: 40 };
const TIME_ERROR = 5;
const STA_UNSYNC = 0x0040;
const STA_NANO = 0x2000;

/** adjtimex(2), reading only; undefined where nobody can be asked. */
export function kernelClock(): KernelClock | undefined {
  return orNothing(() => {
    const timex = new Uint8Array(TIMEX.size);
    const state = libc().adjtimex(timex);
    if (state < 0) return undefined;
    const view = new DataView(timex.buffer);
    const status = view.getInt32(TIMEX.status, true);
    return {
      synced: state !== TIME_ERROR && (status & STA_UNSYNC) === 0,
      offsetSeconds: Number(view.getBigInt64(TIMEX.offset, true)) / (status & STA_NANO ? 1e9 : 1e6),
    };
  });
}

/** _IOWR(100, 0, char *) with 64-bit pointers: drivers/char/broadcom/vcio.c */
const IOCTL_MBOX_PROPERTY = 0xc0086400;
const RESPONSE_OK = 0x80000000;

/** One 32-bit word by a firmware mailbox tag, which `word` is handed to, through /dev/vcio (vcmailbox(7)); undefined where there is none. */
export function mailbox(tag: number, word = 0): number | undefined {
  return orNothing(() => {
    const device = openSync("/dev/vcio", "r");
    try {
      // Size, request, tag, size of its value, request, value, end.
      const message = new Uint32Array([28, 0, tag, 4, 0, word, 0]);
      ioctl(device, IOCTL_MBOX_PROPERTY, message);
      const [, answer = 0, , , tagAnswer = 0, answered] = message;
      return answer === RESPONSE_OK && tagAnswer >= RESPONSE_OK ? answered : undefined;
    } finally {
      closeSync(device);
    }
  });
}

function orNothing<T>(ask: () => T | undefined): T | undefined {
  try {
    return ask();
  } catch {
    return undefined;
  }
}
