/**
 * What is asked of Linux about an open serial line: its settings (struct termios2), and to have it alone. The numbers are those of
 * asm-generic/termbits.h and asm-generic/ioctls.h, which x86-64 and arm64 share.
 */
import type { OpenOptions } from "@serialport/bindings-interface";
import { ioctl, lastErrno, libc, systemError } from "./libc.ts";
import { ioctlAside } from "./threads.ts";

/** ioctl(2) requests on a terminal; `man 2 ioctl_tty`. */
export const REQUEST = {
  getTermios: 0x802c542a, // TCGETS2
  setTermios: 0x402c542b, // TCSETS2: at once, waits for nothing
  flush: 0x540b, // TCFLSH
  unsent: 0x5411, // TIOCOUTQ
  shiftRegister: 0x5459, // TIOCSERGETLSR; not every driver
  exclusive: 0x540c, // TIOCEXCL
  notExclusive: 0x540d, // TIOCNXCL
  getLines: 0x5415, // TIOCMGET
  setLines: 0x5418, // TIOCMSET
  beginBreak: 0x5427, // TIOCSBRK: waits until all is sent, for ever
  endBreak: 0x5428, // TIOCCBRK
} as const;

/** What `REQUEST.flush` drops: unread input, unsent output, or both. */
export const FLUSH = { input: 0, output: 1, both: 2 } as const;

/** Bits of `REQUEST.getLines`. */
export const LINE = { dtr: 0x002, rts: 0x004, cts: 0x020, dcd: 0x040, ri: 0x080, dsr: 0x100 } as const;

/** Bit of `REQUEST.shiftRegister`: the last bit has left. */
export const SHIFTED_OUT = 1;

/** What node-serialport's Linux binding takes; a reader is woken by `vmin` bytes or after `vtime` tenths of a second. */
export interface SerialOptions extends OpenOptions {
  parity?: "none" | "even" | "odd";
  vmin?: number;
  vtime?: number;
}

/** flock(2): exclusively, now or never; and undone. */
const LOCK_EX_NB = 2 | 4;
const LOCK_UN = 8;

/** Drivers answer with the speed they really make; a receiver bears about this much. */
const BAUD_TOLERANCE = 0.03;

/** struct termios2: four flag words, c_line, c_cc[19], and the two speeds; VTIME and VMIN are the sixth and seventh of c_cc. */
export const TERMIOS = { size: 44, vtime: 17 + 5, vmin: 17 + 6 } as const;
const SIZE = TERMIOS.size;

const IGNPAR = 0x4;
const IXON = 0x400;
const IXANY = 0x800;
const IXOFF = 0x1000;
/** The speed is the number in c_ospeed, and any number. */
const BOTHER = 0x1000;
const DATA_BITS = { 5: 0x00, 6: 0x10, 7: 0x20, 8: 0x30 } as const;
const CSTOPB = 0x40;
const CREAD = 0x80;
const PARENB = 0x100;
const PARODD = 0x200;
const HUPCL = 0x400;
const CLOCAL = 0x800;
const CRTSCTS = 0x8000_0000;

/** A terminal's settings as the kernel has them. */
export class Termios {
  readonly bytes = new Uint8Array(SIZE);
  readonly #view = new DataView(this.bytes.buffer);

  get baudRate(): number {
    return this.#view.getUint32(SIZE - 4, true);
  }

  /** Raw 8-bit lines as node-serialport's own binding sets them up; the control characters stay as they were. Throws for what no line can be. */
  set(options: Required<SerialOptions>): void {
    const { parity, stopBits, dataBits, baudRate } = options;
    const cflag =
      BOTHER |
      CREAD |
      CLOCAL |
      one("dataBits", dataBits, DATA_BITS) |
      one("stopBits", stopBits, { 1: 0, 2: CSTOPB }) |
      one("parity", parity, { none: 0, even: PARENB, odd: PARENB | PARODD }) |
      (options.rtscts ? CRTSCTS : 0) |
      (options.hupcl ? HUPCL : 0);
    const iflag = IGNPAR | (options.xon ? IXON : 0) | (options.xoff ? IXOFF : 0) | (options.xany ? IXANY : 0);
    if (!Number.isInteger(baudRate) || baudRate < 1 || baudRate > 0xffff_ffff) {
      throw new TypeError(`"baudRate" is not a valid baudRate: ${baudRate}`);
    }
    for (const [at, word] of [iflag, 0, cflag, 0].entries()) this.#view.setUint32(at * 4, word, true);
    this.bytes[TERMIOS.vtime] = options.vtime;
    this.bytes[TERMIOS.vmin] = options.vmin;
    this.#view.setUint32(SIZE - 8, baudRate, true);
    this.#view.setUint32(SIZE - 4, baudRate, true);
  }
}

function one(name: string, value: string | number, bits: Record<string | number, number>): number {
  const found = Object.hasOwn(bits, value) ? bits[value] : undefined;
  if (found === undefined) throw new TypeError(`"${name}" is not valid: ${value}`);
  return found;
}

/** Gives an open file its settings; `kernel` is played in tests. Throws, with the old ones in force, for a speed that the hardware cannot make. */
export async function setUp(
  file: number,
  options: Required<SerialOptions>,
  kernel = { ioctl, ioctlAside },
): Promise<void> {
  const { path, baudRate } = options;
  const termios = new Termios();
  kernel.ioctl(file, REQUEST.getTermios, termios.bytes, path);
  const before = termios.bytes.slice();
  termios.set(options);
  await kernel.ioctlAside("serial", file, REQUEST.setTermios, termios.bytes, path);
  // The kernel takes what it can and says "done"
  kernel.ioctl(file, REQUEST.getTermios, termios.bytes, path);
  const made = termios.baudRate;
  if (Math.abs(made - baudRate) <= baudRate * BAUD_TOLERANCE) return;
  await kernel.ioctlAside("serial", file, REQUEST.setTermios, before, path);
  throw Object.assign(new Error(`makes ${made} baud instead of ${baudRate}`), { code: "EINVAL" });
}

/** Takes the port for this program. Throws EAGAIN when another has it. */
export function lock(file: number, path: string): void {
  if (libc().flock(file, LOCK_EX_NB) < 0) throw systemError("flock", lastErrno(), path);
  // For programs that know no flock; the kernel then refuses them with EBUSY, the superuser excepted
  ioctl(file, REQUEST.exclusive, 0, path);
}

/** Gives it back. A port that is gone has nothing to give back. */
export function unlock(file: number): void {
  libc().ioctl(file, REQUEST.notExclusive, 0);
  libc().flock(file, LOCK_UN);
}
