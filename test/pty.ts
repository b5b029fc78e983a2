/**
 * Serial lines without hardware: pairs of pseudo-terminals. The program under test opens `device`; the test is the far side.
 *
 * `unplug` is what pulling a USB adapter looks like: who holds the device gets a hang-up, and its name is gone until `plug`.
 */
import {
  closeSync,
  constants,
  mkdtempSync,
  openSync,
  readSync,
  rmSync,
  symlinkSync,
  writeSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ioctl } from "../hal/native/libc.ts";
import { EPOLL, type Watch, watch } from "../hal/native/threads.ts";
import { answer } from "../hal/sim/firmware.ts";
import type { SimStack } from "../hal/sim/stack.ts";

/** asm-generic/ioctls.h, the same on x86-64 and arm64. */
const TIOCGPTN = 0x80045430;
const TIOCSPTLCK = 0x40045431;
const TCGETS = 0x5401;
const TCSETS = 0x5402;
const FIONREAD = 0x541b;
/** Larger than what the kernel gives at once. */
const READ_SIZE = 64 * 1024;

/** The far side of a serial line that is plugged in: a master and, to keep it up while nobody listens, a slave of our own. */
interface Plugged {
  master: number;
  slave: number;
  watch: Watch;
}

/** A serial line in the test's hands. Raw, 8-bit clean, without echo. */
export class Pty implements Disposable {
  /** What the program under test opens: a name that stays the same from `plug` to `plug`. */
  readonly device: string;
  /** Is told each chunk that was sent to us; while it is set nothing is kept for `take`. */
  onBytes: ((chunk: Buffer) => void) | undefined;
  readonly #folder = mkdtempSync(join(tmpdir(), "fruit-pty-"));
  readonly #buffer = Buffer.alloc(READ_SIZE);
  #plugged: Plugged | undefined;
  #isPaused = false;
  #received: Buffer[] = [];
  #unsent: { bytes: Uint8Array; sent: () => void }[] = [];

  constructor(name = "ttyUSB0") {
    this.device = join(this.#folder, name);
    this.plug();
  }

  /** Takes what was sent to us and not taken before. */
  take(): Buffer {
    return Buffer.concat(this.#received.splice(0));
  }

  /** What was sent to us and not taken before, which stays there. */
  get received(): Buffer {
    const all = Buffer.concat(this.#received);
    this.#received = [all];
    return all;
  }

  /** Sends; resolves when the kernel has taken all of it, or when the line was unplugged. */
  write(bytes: Uint8Array | string): Promise<void> {
    return new Promise((sent) => {
      this.#unsent.push({ bytes: Buffer.from(bytes), sent });
      this.#send();
      this.#arm();
    });
  }

  /** Reads nothing more: the line fills up, as with a peer that holds it by flow control. */
  pause(): void {
    this.#isPaused = true;
    this.#arm();
  }

  resume(): void {
    this.#isPaused = false;
    this.#arm();
  }

  /** How the other side has set its end up: bytes of `struct termios`, flags first. */
  get termios(): Uint32Array {
    const termios = new Uint32Array(15);
    if (this.#plugged) ioctl(this.#plugged.slave, TCGETS, termios);
    return termios;
  }

  /** Bytes that we sent and nobody has read. */
  get unread(): number {
    const count = new Uint32Array(1);
    if (this.#plugged) ioctl(this.#plugged.slave, FIONREAD, count);
    return count[0] ?? 0;
  }

  unplug(): void {
    if (!this.#plugged) return;
    const { master, slave, watch } = this.#plugged;
    this.#plugged = undefined;
    watch.close();
    rmSync(this.device);
    closeSync(master);
    closeSync(slave);
    for (const { sent } of this.#unsent.splice(0)) sent();
  }

  plug(): void {
    if (this.#plugged) return;
    const { O_RDWR, O_NOCTTY, O_NONBLOCK } = constants;
    const master = openSync("/dev/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK);
    const number = new Uint32Array(1);
    ioctl(master, TIOCGPTN, number);
    ioctl(master, TIOCSPTLCK, new Uint32Array(1));
    const path = `/dev/pts/${number[0]}`;
    const slave = openSync(path, O_RDWR | O_NOCTTY | O_NONBLOCK);
    const termios = new Uint32Array(15);
    ioctl(slave, TCGETS, termios);
    // Input, output and local flags off: raw. The control flags stay.
    termios.set([0, 0]);
    termios[3] = 0;
    ioctl(slave, TCSETS, termios);
    this.#plugged = { master, slave, watch: watch(master, (events) => this.#ready(events)) };
    this.#arm();
    symlinkSync(path, this.device);
  }

  [Symbol.dispose](): void {
    this.unplug();
    rmSync(this.#folder, { recursive: true, force: true });
  }

  #arm(): void {
    const reads = this.#isPaused ? 0 : EPOLL.in;
    this.#plugged?.watch.arm(reads | (this.#unsent.length > 0 ? EPOLL.out : 0));
  }

  #ready(events: number): void {
    if (events & EPOLL.in && !this.#isPaused) this.#receive();
    if (events & EPOLL.out) this.#send();
    this.#arm();
  }

  #receive(): void {
    if (!this.#plugged) return;
    const length = unlessFull(this.#plugged.master, (file) => readSync(file, this.#buffer));
    if (length === 0) return;
    const chunk = Buffer.from(this.#buffer.subarray(0, length));
    if (this.onBytes) this.onBytes(chunk);
    else this.#received.push(chunk);
  }

  #send(): void {
    for (let next = this.#unsent[0]; next && this.#plugged; next = this.#unsent[0]) {
      const { bytes, sent } = next;
      const length = unlessFull(this.#plugged.master, (file) =>
        bytes.length > 0 ? writeSync(file, bytes) : 0,
      );
      next.bytes = bytes.subarray(length);
      if (next.bytes.length > 0) return;
      this.#unsent.shift();
      sent();
    }
  }
}

/** How many bytes went through; none where the kernel says "not now". */
function unlessFull(file: number, move: (file: number) => number): number {
  try {
    return move(file);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "EAGAIN") return 0;
    throw error;
  }
}

/** Longest request of the published protocol, and more is noise. */
const REQUEST_MAX = 16;

/**
 * Lets the boards of a simulated stack answer on the line, as the real firmware would. `reply` brings an answer on its
 * way: late, in pieces, among noise, or not at all.
 */
export function serveStack(
  pty: Pty,
  stack: SimStack,
  reply: (bytes: Uint8Array, request: Uint8Array) => unknown = (bytes) => pty.write(bytes),
): void {
  let pending = Buffer.alloc(0);
  pty.onBytes = (chunk) => {
    pending = Buffer.concat([pending, chunk]);
    const [, address, length = 0] = pending;
    if (pending.length > REQUEST_MAX) pending = Buffer.alloc(0);
    if (pending.length < 4 || pending.length <= length) return;
    const request = pending;
    pending = Buffer.alloc(0);
    const board = stack.boards.find((number) => stack.address(number) === address);
    if (board !== undefined) void reply(answer(stack, board, request), request);
  };
}
