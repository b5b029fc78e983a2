/** A terminal whose keys come one by one: what `setRawMode` does, and output that the kernel does not touch either. */
import { ioctl } from "./libc.ts";
import { REQUEST, TERMIOS } from "./termios.ts";

/** Bits that cfmakeraw(3) clears, by the word of struct termios2 they stand in (asm-generic/termbits.h): input, output, control, local. */
const COOKED = [
  0o1 | 0o2 | 0o10 | 0o40 | 0o100 | 0o200 | 0o400 | 0o2000, // IGNBRK BRKINT PARMRK ISTRIP INLCR IGNCR ICRNL IXON
  0o1, // OPOST: with it a bare newline of the far side's would also go to the first column
  0o60 | 0o400, // CSIZE PARENB
  0o1 | 0o2 | 0o10 | 0o100 | 0o100000, // ISIG ICANON ECHO ECHONL IEXTEN
];
const CS8 = 0o60;

/**
 * Makes a terminal raw at once; returns how it becomes exactly what it was, which also works while the process ends and never throws.
 * Throws `systemError` where `file` is no terminal.
 */
export function makeRaw(file: number): () => void {
  const before = new Uint32Array(TERMIOS.size / 4);
  ioctl(file, REQUEST.getTermios, before);
  const raw = before.map((word, at) => word & ~(COOKED[at] ?? 0));
  raw.set([(raw[2] ?? 0) | CS8], 2);
  const bytes = new Uint8Array(raw.buffer);
  // A key is read as soon as there is one
  bytes[TERMIOS.vtime] = 0;
  bytes[TERMIOS.vmin] = 1;
  ioctl(file, REQUEST.setTermios, raw);
  return () => {
    try {
      ioctl(file, REQUEST.setTermios, before);
    } catch {
      // The terminal is gone: there is nothing to be put right
    }
  };
}
