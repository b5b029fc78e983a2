/** Whether C calls and threads work here at all. */
import { closeSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { checked, ioctl, libc } from "./libc.ts";
import { EPOLL, ioctlAside, watch } from "./threads.ts";

const EFD_CLOEXEC_NONBLOCK = 0o2004000;
/** A request that every file answers: asm-generic/ioctls.h. */
const FIONBIO = 0x5421;

/** Asks the C library and both threads something whose answer is known. Throws what is wrong with them. */
export async function tryThreads(limitMs: number): Promise<void> {
  const file = checked("eventfd", libc().eventfd(1, EFD_CLOEXEC_NONBLOCK));
  const stop = new AbortController();
  const limit = sleep(limitMs, undefined, { signal: stop.signal });
  try {
    const isReady = new Promise<boolean>((resolve) => {
      const waits = watch(file, (events) => {
        waits.close();
        resolve((events & EPOLL.in) !== 0);
      });
      void limit.then(
        () => waits.close(),
        () => undefined,
      );
      waits.arm(EPOLL.in);
    });
    const answers = Promise.all([isReady, ioctlAside(file, FIONBIO, new Int32Array([1]))]);
    const found = await Promise.race([answers, limit]);
    if (!found) throw new Error(`the threads do not answer within ${limitMs / 1000} s`);
    if (!found[0]) throw new Error("the thread that waits for files has failed");
    ioctl(file, FIONBIO, new Int32Array([1]));
  } finally {
    stop.abort();
    closeSync(file);
  }
}
