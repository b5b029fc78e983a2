/** Whether C calls and threads work here at all. */
import { closeSync } from "node:fs";
import { within } from "../limit.ts";
import { checked, libc } from "./libc.ts";
import { EPOLL, ioctlAside, watch } from "./threads.ts";

const EFD_CLOEXEC_NONBLOCK = 0o2004000;
/** A request that every file answers: asm-generic/ioctls.h. */
const FIONBIO = 0x5421;

/** Asks the C library and its threads something whose answer is known. Throws what is wrong with them. */
export async function tryThreads(limitMs: number): Promise<void> {
  const file = checked("eventfd", libc().eventfd(1, EFD_CLOEXEC_NONBLOCK));
  const { promise: isReady, resolve } = Promise.withResolvers<boolean>();
  const waits = watch(file, (events) => resolve((events & EPOLL.in) !== 0));
  const call = ioctlAside("serial", file, FIONBIO, new Int32Array([1]));
  const late = () => new Error(`the threads do not answer within ${limitMs / 1000} s`);
  try {
    waits.arm(EPOLL.in);
    const [isWaiting] = await within(limitMs, Promise.all([isReady, call]), late);
    if (!isWaiting) throw new Error("the thread that waits for files has failed");
  } finally {
    waits.close();
    // Not before the other thread is done with it: its number may be another file's by then
    void call.catch(() => undefined).then(() => closeSync(file));
  }
}
