/**
 * The threads that may block, so that the event loop never does. One file with a role for each: `threads.ts` starts them.
 * They share memory and open files with the process, so they are told numbers only: files, addresses, times.
 */
import { lastErrno, libc } from "./libc.ts";

declare const self: { onmessage: (event: { data: Order }) => void; postMessage(answer: unknown): void };

/** What a thread is told. */
export type Order =
  /** Wait on this epoll set until `stop`, an eventfd in it, is written: posts `[token, events, token, events, …]`. */
  | { role: "wait"; epoll: number; most: number }
  /** One ioctl; posts `[result, errno]`. */
  | { role: "ioctl"; file: number; request: number; argument: number };

/** Token of the file that tells the waiting thread to end. */
export const STOP_TOKEN = 0;

/** struct epoll_event is packed on x86 and nowhere else (sys/epoll.h). */
export const EPOLL_EVENT = process.arch === "x64" ? { size: 12, data: 4 } : { size: 16, data: 8 };

const EINTR = 4;

const ROLES: { [R in Order["role"]]: (order: Extract<Order, { role: R }>) => void } = {
  wait: ({ epoll, most }) => {
    const events = new DataView(new ArrayBuffer(most * EPOLL_EVENT.size));
    for (;;) {
      const count = libc().epoll_wait(epoll, new Uint8Array(events.buffer), most, -1);
      if (count < 0 && lastErrno() !== EINTR) return;
      const ready: number[] = [];
      for (let at = 0; at < count * EPOLL_EVENT.size; at += EPOLL_EVENT.size)
        ready.push(events.getUint32(at + EPOLL_EVENT.data, true), events.getUint32(at, true));
      for (let i = 0; i < ready.length; i += 2) if (ready[i] === STOP_TOKEN) return;
      if (ready.length > 0) self.postMessage(ready);
    }
  },
  ioctl: ({ file, request, argument }) => {
    const result = libc().ioctl(file, request, argument);
    self.postMessage([result, result < 0 ? lastErrno() : 0]);
  },
};

if (!Bun.isMainThread) self.onmessage = ({ data: order }) => ROLES[order.role](order as never);
