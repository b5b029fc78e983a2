/**
 * The native half of the package epoll (which is what onoff waits with), as `bindings("epoll.node")` gives it: its class
 * over the thread that waits for files. As there, events are told one at a time, again for as long as the condition
 * lasts, and whatever is added keeps the process alive until it is removed.
 */
import { systemError } from "./libc.ts";
import { EPOLL, type Watch, watch } from "./threads.ts";

const ENOENT = 2;
const ONESHOT = 1 << 30;

type Callback = (error: Error | null, file: number, events: number) => void;

/** Told when files are ready: `add(file, events)`, `modify`, `remove`, `close`. Throws `systemError` of epoll_ctl(2). */
export class Epoll {
  static readonly EPOLLIN = EPOLL.in;
  static readonly EPOLLOUT = EPOLL.out;
  static readonly EPOLLRDHUP = EPOLL.rdhup;
  static readonly EPOLLPRI = EPOLL.pri;
  static readonly EPOLLERR = EPOLL.err;
  static readonly EPOLLHUP = EPOLL.hup;
  /** Negative, as the package's own: a 32-bit integer. */
  static readonly EPOLLET = EPOLL.et | 0;
  static readonly EPOLLONESHOT = ONESHOT;

  readonly #callback: Callback;
  readonly #files = new Map<number, { waits: Watch; events: number }>();
  #isClosed = false;

  constructor(callback: Callback) {
    if (typeof callback !== "function") throw new Error("Epoll: the callback is no function");
    this.#callback = callback;
  }

  get closed(): boolean {
    return this.#isClosed;
  }

  add(file: number, events: number): this {
    this.#check("add", file, events);
    const waits = watch(file, (happened) => this.#tell(file, waits, happened), { keepsAlive: true });
    this.#files.set(file, { waits, events });
    waits.arm(events);
    return this;
  }

  modify(file: number, events: number): this {
    this.#check("modify", file, events);
    const added = this.#added(file);
    added.waits.arm(events);
    added.events = events;
    return this;
  }

  remove(file: number): this {
    this.#check("remove", file, 0);
    const { waits } = this.#added(file);
    this.#files.delete(file);
    waits.close();
    return this;
  }

  close(): null {
    if (this.#isClosed) throw new Error("Epoll: close was called already");
    this.#isClosed = true;
    for (const file of [...this.#files.keys()]) {
      this.#files.get(file)?.waits.close();
      this.#files.delete(file);
    }
    return null;
  }

  #check(call: string, file: number, events: number): void {
    if (this.#isClosed) throw new Error(`Epoll: ${call} after close`);
    if (Number.isInteger(file) && typeof events === "number") return;
    throw new Error(`Epoll: ${call}(${file}, ${events}): a file's number and events are wanted`);
  }

  #added(file: number) {
    const added = this.#files.get(file);
    if (!added) throw systemError("epoll_ctl", ENOENT, `file ${file}`);
    return added;
  }

  #tell(file: number, waits: Watch, happened: number): void {
    try {
      this.#callback(null, file, happened);
    } catch (cause) {
      this.#fail(cause, file);
    }
    this.#waitAgain(file, waits);
  }

  /** Told as the callback's own error: thrown from here it would end the process. */
  #fail(cause: unknown, file: number): void {
    try {
      this.#callback(cause as Error, file, 0);
    } catch {
      // It was told
    }
  }

  #waitAgain(file: number, waits: Watch): void {
    const added = this.#files.get(file);
    // It may have been removed meanwhile, and added again
    if (added?.waits !== waits || added.events & (ONESHOT | EPOLL.et)) return;
    try {
      waits.arm(added.events);
    } catch (cause) {
      this.#fail(cause, file);
    }
  }
}
