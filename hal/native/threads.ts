/**
 * The event loop's side of `worker.ts`: waiting for files, and calls that block. One thread for the waiting, and one for
 * the calls of each kind of file (more while calls hang), for the whole process and started when first used: the one state a module of ours keeps, because the packages that use it (`i2c-bus`, `epoll`
 * for `onoff`) hand nothing through. A thread that fails takes along what waits for it, with its reason, and the next
 * use starts another.
 */
import { closeSync, writeSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { addressOf, type Buffered, checked, libc, systemError } from "./libc.ts";
import { BEAT, EPOLL_EVENT, type Failure, type Order, STOP_TOKEN } from "./worker.ts";

/** epoll(7) events. Errors and hang-ups are reported whether asked for or not; `et` tells of changes only, and of each. */
export const EPOLL = {
  in: 0x001,
  pri: 0x002,
  out: 0x004,
  err: 0x008,
  hup: 0x010,
  rdhup: 0x2000,
  et: 0x80000000,
} as const;
const CTL = { add: 1, del: 2, mod: 3 };
const ONESHOT = 1 << 30;
const EFD_CLOEXEC_NONBLOCK = 0o2004000;
const EPOLL_CLOEXEC = 0o2000000;
/** Events taken in one turn. */
const MOST_EVENTS = 64;
/** Calls that wait for the calling thread; past that the callers wait for something that is stuck. */
const MOST_CALLS = 64;
/** A call past this hangs: an ioctl of ours takes milliseconds, one that drains a slow line half a second. */
const HANGS_MS = 1000;
/** Threads whose call hangs, of one kind. */
const MOST_HANGING = 8;
const EAGAIN = 11;
/** A beating thread notices at once that it is to stop; past this it hangs. */
const BEAT_STOP_MS = 1000;

/** A file that is waited for. */
export interface Watch {
  /**
   * Waits once for any of these `EPOLL` events; again after each call of `ready`. Replaces what was waited for.
   * Throws `systemError`, or why the thread has failed.
   */
  arm(events: number): void;
  /** Nothing is told any more. To be called before the file is closed: its number may be another file's afterwards. */
  close(): void;
}

/**
 * Tells when a file is ready, without the event loop waiting for it. `ready` must not throw; it is called with
 * `EPOLL.err` as well when the thread has failed. Throws `systemError` for a file that cannot be waited for.
 * With `keepsAlive` the process does not end while it waits.
 */
export function watch(
  file: number,
  ready: (events: number) => void,
  options: { keepsAlive?: boolean } = {},
): Watch {
  waiting ??= new Waiting();
  return waiting.watch(file, ready, options.keepsAlive ?? false);
}

/** Files whose calls wait for each other, as long as none of them hangs: an I²C adapter must hold up no serial line. */
export type Kind = "i2c" | "serial";

/**
 * ioctl(2) that may take long, off the event loop, one after the other of its kind; `about` is for the error. The memory of
 * `argument` and of `holding`, which it points to, is kept until it settles. A call that hangs has its thread to itself after
 * a second, and only its own file waits for it. Rejects with `systemError`, EAGAIN when too many wait or hang.
 */
export async function ioctlAside(
  kind: Kind,
  file: number,
  request: number,
  argument: Buffered | number,
  about = "",
  holding: readonly Buffered[] = [],
): Promise<number> {
  const call = { file, request, argument, about, holding, ...Promise.withResolvers<number>() };
  place(kind, call);
  return call.promise;
}

/**
 * Drives a GPIO line high for `highMs` every `everyMs` from a thread of its own, by the ioctl `request` or by writing to
 * the file, and rests while `alive` was not called for `deadMs`. `alive` says why it has failed, once it has. After
 * `stop` the line is low, and nobody drives it.
 */
export function beatOn(
  { file, request = 0 }: { file: number; request?: number },
  times: { everyMs: number; highMs: number; deadMs: number },
): { alive(): Error | undefined; stop(): Promise<void> } {
  const words = new Int32Array(new SharedArrayBuffer(8));
  const { promise: ended, resolve: end } = Promise.withResolvers<void>();
  let failure: Error | undefined;
  const over = (reason?: Error) => {
    failure = reason;
    end();
  };
  const heard = (why: string) => over(why ? new Error(why) : undefined);
  const worker = startThread("that beats the heart", heard, over);
  order(worker, { role: "beat", file, request, words, ...times });
  return {
    alive: () => {
      Atomics.add(words, BEAT.alive, 1);
      return failure;
    },
    stop: async () => {
      Atomics.store(words, BEAT.stop, 1);
      Atomics.notify(words, BEAT.stop);
      await Promise.race([ended, sleep(BEAT_STOP_MS, undefined, { ref: false })]);
      worker.terminate();
    },
  };
}

let waiting: Waiting | undefined;
const callings = new Set<Calling>();

/** Gives a call to the thread that its file hangs in, or to the one of its kind that makes calls. */
function place(kind: Kind, call: Call): void {
  const mates = [...callings].filter((one) => one.kind === kind);
  const found =
    mates.find(({ hungOn }) => hungOn === call.file) ?? mates.find(({ hungOn }) => hungOn === undefined);
  try {
    if (!found && mates.length > MOST_HANGING)
      throw systemError("ioctl", EAGAIN, `${call.about}: calls on ${mates.length} other files hang`);
    (found ?? new Calling(kind)).take(call);
  } catch (error) {
    call.reject(error);
  }
}

interface Watching {
  ready: (events: number) => void;
  /** What is waited for; 0 once it was told. */
  armed: number;
  keepsAlive: boolean;
}

class Waiting {
  readonly #epoll: number;
  readonly #stop: number;
  readonly #worker: Thread;
  readonly #watches = new Map<number, Watching>();
  /** Who waits for a file now: a number whose file was closed may be waited for anew. */
  readonly #tokens = new Map<number, number>();
  #lastToken = STOP_TOKEN;
  #failure: Error | undefined;

  constructor() {
    this.#epoll = checked("epoll_create1", libc().epoll_create1(EPOLL_CLOEXEC));
    this.#stop = checked("eventfd", libc().eventfd(0, EFD_CLOEXEC_NONBLOCK));
    this.#control(CTL.add, this.#stop, EPOLL.in, STOP_TOKEN);
    this.#worker = startThread(
      "that waits for files",
      (news: number[]) => this.#tell(news),
      (reason) => this.#fail(reason),
    );
    // Only once the thread has left its wait
    this.#worker.addEventListener("close", () => {
      closeSync(this.#epoll);
      closeSync(this.#stop);
    });
    order(this.#worker, { role: "wait", epoll: this.#epoll, most: MOST_EVENTS });
  }

  watch(file: number, ready: (events: number) => void, keepsAlive: boolean): Watch {
    // A token, not the file's number: that may be another file's by the time the news arrives.
    const token = ++this.#lastToken;
    this.#control(CTL.add, file, ONESHOT, token);
    const watching: Watching = { ready, armed: 0, keepsAlive };
    this.#watches.set(token, watching);
    this.#tokens.set(file, token);
    this.#holdProcess();
    return {
      arm: (events) => {
        if (!this.#watches.has(token)) return;
        if (this.#failure) throw this.#failure;
        watching.armed = events;
        this.#control(CTL.mod, file, events & EPOLL.et ? events : events | ONESHOT, token);
      },
      close: () => {
        if (!this.#watches.delete(token)) return;
        this.#holdProcess();
        try {
          if (this.#failure || this.#tokens.get(file) !== token) return;
          this.#tokens.delete(file);
          this.#control(CTL.del, file, 0, token);
        } finally {
          if (this.#watches.size === 0) this.#end();
        }
      },
    };
  }

  #tell(news: number[]): void {
    for (let at = 0; at < news.length; at += 2) {
      const events = news[at + 1] ?? 0;
      const watching = this.#watches.get(news[at] ?? STOP_TOKEN);
      // The kernel reports errors and hang-ups before anything was asked
      if (!watching?.armed) continue;
      if (!(watching.armed & EPOLL.et)) watching.armed = 0;
      watching.ready(events);
    }
  }

  #holdProcess(): void {
    const isHeld = [...this.#watches.values()].some(({ keepsAlive }) => keepsAlive);
    if (isHeld) this.#worker.ref();
    else this.#worker.unref();
  }

  #fail(reason: Error): void {
    if (waiting === this) waiting = undefined;
    if (this.#failure) return;
    this.#failure = reason;
    for (const { ready } of [...this.#watches.values()]) ready(EPOLL.err);
  }

  #end(): void {
    if (waiting === this) waiting = undefined;
    if (this.#failure) return;
    writeSync(this.#stop, new Uint8Array(new BigUint64Array([1n]).buffer));
    this.#worker.terminate();
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

/** One call, and what must stay in memory while the thread may touch it. */
interface Call extends PromiseWithResolvers<number> {
  file: number;
  request: number;
  argument: Buffered | number;
  about: string;
  holding: readonly Buffered[];
}

/** A thread that makes calls, one at a time: those behind one that hangs can still go elsewhere. */
class Calling {
  readonly kind: Kind;
  /** The file whose call has taken too long. */
  hungOn: number | undefined;
  readonly #worker: Thread;
  /** The first is being made. */
  #calls: Call[] = [];
  #patience: ReturnType<typeof setTimeout> | undefined;

  constructor(kind: Kind) {
    // Says why, where C cannot be called at all
    libc();
    this.kind = kind;
    callings.add(this);
    this.#worker = startThread(
      `that makes calls of ${kind}`,
      (answer: [result: number, errno: number]) => this.#answer(answer),
      (reason) => this.#fail(reason),
    );
  }

  /** Throws when too many wait. */
  take(call: Call): void {
    if (this.#calls.length >= MOST_CALLS)
      throw systemError("ioctl", EAGAIN, `${call.about}: ${MOST_CALLS} calls are waiting`);
    this.#calls.push(call);
    if (this.#calls.length === 1) this.#make(call);
  }

  #make({ file, request, argument }: Call): void {
    const value = typeof argument === "number" ? argument : addressOf(argument);
    order(this.#worker, { role: "ioctl", file, request, argument: value });
    this.#patience = setTimeout(() => this.#hang(file), HANGS_MS);
    this.#patience.unref();
  }

  /** Those that wait for other files go to another thread. */
  #hang(file: number): void {
    this.hungOn = file;
    const others = this.#calls.filter((call) => call.file !== file);
    this.#calls = this.#calls.filter((call) => call.file === file);
    for (const call of others) place(this.kind, call);
  }

  #answer([result, errno]: [result: number, errno: number]): void {
    clearTimeout(this.#patience);
    const call = this.#calls.shift();
    if (result < 0) call?.reject(systemError("ioctl", errno, call.about));
    else call?.resolve(result);
    const mates = [...callings].filter((one) => one !== this && one.kind === this.kind);
    const isReplaced = this.hungOn !== undefined && mates.some(({ hungOn }) => hungOn === undefined);
    this.hungOn = undefined;
    if (isReplaced) this.#end();
    else if (this.#calls[0]) this.#make(this.#calls[0]);
  }

  /** Another has its place: what still waits goes there. */
  #end(): void {
    callings.delete(this);
    this.#worker.terminate();
    for (const call of this.#calls.splice(0)) place(this.kind, call);
  }

  #fail(reason: Error): void {
    clearTimeout(this.#patience);
    callings.delete(this);
    for (const call of this.#calls.splice(0)) call.reject(reason);
  }
}

type Thread = Worker & { ref(): void; unref(): void };

/** In the executable, where this file is a part of the program, the build put the thread's under its path in the sources. */
const THREAD = import.meta.url.includes("/$bunfs/") ? "./hal/native/worker.js" : "./worker.ts";

/** A thread that does not keep the process alive. `failed` is told when it ends by itself; what is posted to it then is lost. */
function startThread<News>(
  name: string,
  heard: (news: News) => void,
  failed: (reason: Error) => void,
): Thread {
  const worker = new Worker(new URL(THREAD, import.meta.url).href) as Thread;
  const fail = (what: string) => {
    worker.terminate();
    failed(new Error(`the thread ${name} has failed: ${what}`));
  };
  worker.addEventListener("message", ({ data }: { data: News | Failure }) => {
    if (isFailure(data)) fail(data.failed);
    else heard(data);
  });
  worker.addEventListener("error", (event) => {
    event.preventDefault();
    fail(event.message);
  });
  worker.unref();
  return worker;
}

const isFailure = (news: unknown): news is Failure =>
  typeof news === "object" && news !== null && "failed" in news;

const order = (worker: Worker, what: Order) => worker.postMessage(what);
