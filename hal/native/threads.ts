/**
 * The event loop's side of `worker.ts`: waiting for files, and calls that block. One thread each for the whole process,
 * started when first used: the one state a module of ours keeps, because the packages that use it (`i2c-bus`, `epoll`
 * for `onoff`) hand nothing through. Neither keeps the process alive.
 */
import { closeSync, writeSync } from "node:fs";
import { checked, libc, systemError } from "./libc.ts";
import { EPOLL_EVENT, type Order, STOP_TOKEN } from "./worker.ts";

/** epoll(7) events. Errors and hang-ups are reported whether asked for or not. */
export const EPOLL = { in: 0x001, pri: 0x002, out: 0x004, err: 0x008, hup: 0x010, rdhup: 0x2000 } as const;
const CTL = { add: 1, del: 2, mod: 3 };
const ONESHOT = 1 << 30;
const EFD_CLOEXEC_NONBLOCK = 0o2004000;
const EPOLL_CLOEXEC = 0o2000000;
/** Events taken in one turn. */
const MOST_EVENTS = 64;

/** A file that is waited for. */
export interface Watch {
  /** Waits once for any of these `EPOLL` events; again after each call of `ready`. Replaces what was waited for. */
  arm(events: number): void;
  /** Nothing is told any more; the file may be closed. */
  close(): void;
}

/** Tells when a file is ready, without the event loop waiting for it. Throws `systemError` for a file that cannot be waited for. */
export function watch(file: number, ready: (events: number) => void): Watch {
  waiting ??= new Waiting();
  return waiting.watch(file, ready);
}

/** ioctl(2) that may take long, off the event loop, one after the other. `about` is for the error. Keep the argument's buffers until it settles. */
export function ioctlAside(file: number, request: number, argument: number, about = ""): Promise<number> {
  calling ??= new Calling();
  return calling.ioctl(file, request, argument, about);
}

let waiting: Waiting | undefined;
let calling: Calling | undefined;

class Waiting {
  readonly #epoll: number;
  readonly #stop: number;
  readonly #worker: Worker;
  readonly #watches = new Map<number, (events: number) => void>();
  #lastToken = STOP_TOKEN;

  constructor() {
    this.#epoll = checked("epoll_create1", libc().epoll_create1(EPOLL_CLOEXEC));
    this.#stop = checked("eventfd", libc().eventfd(0, EFD_CLOEXEC_NONBLOCK));
    this.#control(CTL.add, this.#stop, EPOLL.in, STOP_TOKEN);
    this.#worker = startThread(({ data }: { data: number[] }) => {
      for (let at = 0; at < data.length; at += 2) this.#watches.get(data[at] ?? -1)?.(data[at + 1] ?? 0);
    });
    order(this.#worker, { role: "wait", epoll: this.#epoll, most: MOST_EVENTS });
  }

  watch(file: number, ready: (events: number) => void): Watch {
    // A token, not the file's number: that may be another file's by the time the news arrives.
    const token = ++this.#lastToken;
    this.#control(CTL.add, file, ONESHOT, token);
    this.#watches.set(token, ready);
    return {
      arm: (events) => {
        if (this.#watches.has(token)) this.#control(CTL.mod, file, events | ONESHOT, token);
      },
      close: () => {
        if (!this.#watches.delete(token)) return;
        this.#control(CTL.del, file, 0, token);
        if (this.#watches.size === 0) this.#end();
      },
    };
  }

  #end(): void {
    if (waiting === this) waiting = undefined;
    writeSync(this.#stop, new Uint8Array(new BigUint64Array([1n]).buffer));
    // The thread returns from its wait, and only then its files are closed
    this.#worker.addEventListener("close", () => {
      closeSync(this.#epoll);
      closeSync(this.#stop);
    });
    void this.#worker.terminate();
  }

  #control(what: number, file: number, events: number, token: number): void {
    const event = new DataView(new ArrayBuffer(EPOLL_EVENT.size));
    event.setUint32(0, events, true);
    event.setUint32(EPOLL_EVENT.data, token, true);
    checked(
      "epoll_ctl",
      libc().epoll_ctl(this.#epoll, what, file, new Uint8Array(event.buffer)),
      `file ${file}`,
    );
  }
}

class Calling {
  readonly #worker: Worker;
  /** Calls in the order they were made: the thread answers in that order. */
  readonly #calls: ((answer: [result: number, errno: number]) => void)[] = [];

  constructor() {
    this.#worker = startThread(({ data }: { data: [number, number] }) => this.#calls.shift()?.(data));
  }

  ioctl(file: number, request: number, argument: number, about: string): Promise<number> {
    return new Promise((resolve, reject) => {
      this.#calls.push(([result, errno]) => {
        if (result < 0) reject(systemError("ioctl", errno, about));
        else resolve(result);
      });
      order(this.#worker, { role: "ioctl", file, request, argument });
    });
  }
}

/** In the executable, where this file is a part of the program, the build put the thread's under its path in the sources. */
const THREAD = import.meta.url.includes("/$bunfs/") ? "./hal/native/worker.js" : "./worker.ts";

function startThread(heard: (event: { data: never }) => void): Worker {
  const worker = new Worker(new URL(THREAD, import.meta.url).href);
  worker.onmessage = heard as never;
  worker.onerror = ({ message }) => {
    throw new Error(`thread: ${message}`);
  };
  (worker as Worker & { unref(): void }).unref();
  return worker;
}

const order = (worker: Worker, what: Order) => worker.postMessage(what);
