/**
 * The only file that calls C. Nothing is opened until something is asked; what this system lacks is `undefined`.
 *
 * One name serves both C libraries: glibc's is `libc.so.6`, and musl's loader answers with itself to every name that
 * begins with `libc.` (ldso/dynlink.c, load_library), so no second libc can get into the process.
 * Calls block the event loop: only what returns at once belongs here.
 */
import { dlopen } from "bun:ffi";
import { closeSync, openSync } from "node:fs";

/** What the kernel says of the clock. */
export interface KernelClock {
  synced: boolean;
  offsetSeconds: number;
}

/** The calls of the C library that have no Node API. */
export interface Libc {
  /** adjtimex(2), reading only. */
  clock(): KernelClock | undefined;
  /** One 32-bit word by a firmware mailbox tag, through /dev/vcio (vcmailbox(7)). */
  mailbox(tag: number): number | undefined;
}

const SYMBOLS = {
  adjtimex: { args: ["ptr"], returns: "i32" },
  ioctl: { args: ["i32", "u64", "ptr"], returns: "i32" },
} as const;

/** _IOWR(100, 0, char *) with 64-bit pointers: drivers/char/broadcom/vcio.c */
const IOCTL_MBOX_PROPERTY = 0xc0086400;
const RESPONSE_OK = 0x80000000;

/** struct timex of 64-bit Linux (linux/timex.h), the same in both libraries. */
const TIMEX = { size: 208, offset: 8, status: 40 };
const TIME_ERROR = 5;
const STA_UNSYNC = 0x0040;
const STA_NANO = 0x2000;

/** Finds the C library this process already runs on. */
export function openLibc(): Libc {
  const symbols = load();
  return {
    clock() {
      if (!symbols) return undefined;
      const timex = new Uint8Array(TIMEX.size);
      const state = symbols.adjtimex(timex);
      if (state < 0) return undefined;
      const view = new DataView(timex.buffer);
      const status = view.getInt32(TIMEX.status, true);
      return {
        synced: state !== TIME_ERROR && (status & STA_UNSYNC) === 0,
        offsetSeconds: Number(view.getBigInt64(TIMEX.offset, true)) / (status & STA_NANO ? 1e9 : 1e6),
      };
    },
    mailbox(tag) {
      if (!symbols) return undefined;
      const device = openOrNothing("/dev/vcio");
      if (device === undefined) return undefined;
      try {
        // Size, request, tag, size of its value, request, value, end.
        const message = new Uint32Array([28, 0, tag, 4, 0, 0, 0]);
        const result = symbols.ioctl(device, IOCTL_MBOX_PROPERTY, message);
        const [, answer = 0, , , tagAnswer = 0, word] = message;
        return result >= 0 && answer === RESPONSE_OK && tagAnswer >= RESPONSE_OK ? word : undefined;
      } finally {
        closeSync(device);
      }
    },
  };
}

function load() {
  try {
    return dlopen("libc.so.6", SYMBOLS).symbols;
  } catch {
    return undefined;
  }
}

function openOrNothing(path: string): number | undefined {
  try {
    return openSync(path, "r");
  } catch {
    return undefined;
  }
}
