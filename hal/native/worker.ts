/**
 * The threads that may block, so that the event loop never does. One file with a role for each: `threads.ts` starts them.
 * They share memory and open files with the process, so they are told numbers only: files, addresses, times.
 */
import { writeSync } from "node:fs";
import { isMainThread } from "node:worker_threads";
import { ioctl, lastErrno, libc, systemError } from "./libc.ts";

declare const self: { onmessage: (event: { data: Order }) => void; postMessage(answer: unknown): void };

/** What a thread is told. */
export type Order =
  /** Wait on this epoll set until `stop`, an eventfd in it, is written: posts `[token, events, token, events, …]`. */
  | { role: "wait"; epoll: number; most: number }
  /** One ioctl; posts `[result, errno]`. */
  | { role: "ioctl"; file: number; request: number; argument: number }
  /**
   * Drives a GPIO line high for `highMs` every `everyMs`: by this ioctl, or by writing to the file where it is 0. Rests
   * while `BEAT.alive` of `words` has not changed for `deadMs`. Ends, low, when `BEAT.stop` is set, and posts what it failed of.
   */
  | {
      role: "beat";
      file: number;
      request: number;
      words: Int32Array<SharedArrayBuffer>;
      everyMs: number;
      highMs: number;
      deadMs: number;
    };

/** The words that a beating thread shares with the event loop. */
export const BEAT = { stop: 0, alive: 1 } as const;

/** What a thread says that cannot go on. */
export interface Failure {
  failed: string;
}

/** Token of the file that tells the waiting thread to end. */
export const STOP_TOKEN = 0;

/** struct epoll_event is packed on x86 and nowhere else (sys/epoll.h). */
export const EPOLL_EVENT = process.arch === "x64" ? { size: 12, data: 4 } : { size: 16, data: 8 };

const EINTR = 4;

const ROLES: { [R in Order["role"]]: (order: Extract<Order, { role: R }>) => void } = {
  wait: ({ epoll, most }) => {
    const memory = new Uint8Array(new ArrayBuffer(most * EPOLL_EVENT.size));
    const events = new DataView(memory.buffer);
    for (;;) {
      const count = libc().epoll_wait(epoll, memory, most, -1);
      const errno = count < 0 ? lastErrno() : 0;
      if (errno !== 0 && errno !== EINTR) throw systemError("epoll_wait", errno);
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
  beat: (beat) => {
    try {
      beatUntilTold(beat);
      self.postMessage("");
    } catch (error) {
      self.postMessage((error as Error).message);
    }
  },
};

function beatUntilTold(beat: Extract<Order, { role: "beat" }>): void {
  const { file, request, words, everyMs, highMs, deadMs } = beat;
  const drive = driver(file, request);
  /** False once it is told to stop. */
  const rest = (ms: number) => Atomics.wait(words, BEAT.stop, 0, Math.max(0, ms)) === "timed-out";
  let said = Atomics.load(words, BEAT.alive);
  let next = performance.now();
  let heard = next;
  for (let goesOn = true; goesOn; ) {
    const now = performance.now();
    const says = Atomics.load(words, BEAT.alive);
    if (says !== said) heard = now;
    said = says;
    if (now - heard < deadMs) {
      drive(1);
      goesOn = rest(highMs);
      drive(0);
    }
    // One that is late is not made up for
    next = Math.max(next + everyMs, now);
    goesOn &&= rest(next - performance.now());
  }
}

/** Sets the level of a GPIO line that is an output: `struct gpio_v2_line_values` (linux/gpio.h), or sysfs. */
function driver(file: number, request: number): (level: 0 | 1) => void {
  if (request === 0) return (level) => void writeSync(file, String(level));
  const values = new BigUint64Array([0n, 1n]);
  return (level) => {
    values[0] = BigInt(level);
    ioctl(file, request, values);
  };
}

if (!isMainThread)
  self.onmessage = ({ data: order }) => {
    try {
      ROLES[order.role](order as never);
    } catch (cause) {
      self.postMessage({ failed: (cause as Error).message } satisfies Failure);
    }
  };
