/**
 * A kernel of a few hundred bytes for the emulated Pi 3: it says who it is on the first serial line and where its device tree
 * lies, then hands out whatever memory it is asked for. So a test sees what U-Boot started, with which arguments and which initramfs.
 *
 * On the line: `stand-in NAME`, newline, the tree's address (8 bytes); then for each request (address, length; 4 bytes each)
 * that many bytes. Numbers are little-endian.
 */
import { seeded } from "../fakes.ts";

/** The shortest there is, bytes. */
export const STAND_IN_BYTES = 512;
const HEADER_BYTES = 64;
/** The PL011 (BCM2835 ARM Peripherals §13.4, with the Pi 3's base): data, flags. */
const UART = { base: 0x3f20_1000, flags: 0x18, isEmpty: 4, isFull: 5 };

/** An arm64 Image of exactly `bytes` bytes; what is not needed is filled with noise of the name's own. */
export function standIn(name: string, bytes = 4096): Uint8Array {
  const image = Buffer.alloc(bytes);
  const noise = seeded([...name].reduce((sum, letter) => (sum * 31 + letter.charCodeAt(0)) | 0, 7));
  for (let at = HEADER_BYTES; at < bytes; at++) image[at] = noise() * 256;
  const text = Buffer.from(`stand-in ${name}\n\0`);
  const code = program(text);
  if (HEADER_BYTES + code.length > bytes) throw new RangeError(`${name}: no room in ${bytes} bytes`);
  // Documentation/arm64/booting.rst of Linux: a branch over the header, size, little-endian with 4K pages, anywhere; "ARM\x64"
  image.writeUInt32LE(0x1400_0000 | (HEADER_BYTES / 4), 0);
  image.writeBigUInt64LE(BigInt(bytes), 16);
  image.writeBigUInt64LE(0b1010n, 24);
  image.write("ARM\x64", 56, "latin1");
  image.set(code, HEADER_BYTES);
  return image;
}

/** The instructions (Arm Architecture Reference Manual, C6.2), then the text. */
function program(text: Uint8Array): Uint8Array {
  const words: ((at: number) => number)[] = [];
  const labels = new Map<string, number>();
  const label = (name: string) => labels.set(name, words.length);
  /** Instructions from here to a label. */
  const to = (name: string, at: number, bits: number) => ((labels.get(name) ?? 0) - at) & (2 ** bits - 1);
  const emit = (word: number) => words.push(() => word);
  const move = (to: number, from: number) => emit(0xaa0003e0 | (from << 16) | to);
  const call = (name: string) => words.push((at) => 0x94000000 | to(name, at, 26));
  const branch = (name: string) => words.push((at) => 0x14000000 | to(name, at, 26));
  const ifZero = (register: number, name: string) =>
    words.push((at) => 0xb4000000 | (to(name, at, 19) << 5) | register);
  const ifBit = (register: number, bit: number, name: string) =>
    words.push((at) => 0x37000000 | (bit << 19) | (to(name, at, 14) << 5) | register);
  const address = (register: number, name: string) =>
    words.push((at) => 0x10000000 | (to(name, at, 19) << 5) | register);
  const nextByte = (register: number, from: number) => emit(0x38401400 | (from << 5) | register);
  const load = (register: number, from: number, offset: number) =>
    emit(0xb9400000 | ((offset / 4) << 10) | (from << 5) | register);
  const store = (register: number, to: number) => emit(0xb9000000 | (to << 5) | register);
  const decrement = (register: number) => emit(0xd1000400 | (register << 5) | register);
  const orShifted = (register: number, from: number, by: number) =>
    emit(0xaa000000 | (from << 16) | (by << 10) | (register << 5) | register);
  const shiftRight = (register: number, by: number) =>
    emit(0xd340fc00 | (by << 16) | (register << 5) | register);
  const set = (register: number, value: number) => {
    emit(0xd2800000 | ((value & 0xffff) << 5) | register);
    emit(0xf2a00000 | ((value >>> 16) << 5) | register);
  };
  const returnTo = (register: number) => emit(0xd65f0000 | (register << 5));
  const LINK = 30;

  move(19, 0); // x0: the device tree
  set(20, UART.base);
  address(1, "text");
  label("say");
  nextByte(0, 1);
  ifZero(0, "said");
  call("put");
  branch("say");
  label("said");
  set(2, 8);
  label("tell");
  ifZero(2, "serve");
  move(0, 19);
  call("put");
  shiftRight(19, 8);
  decrement(2);
  branch("tell");

  label("serve");
  call("number");
  move(3, 6);
  call("number");
  label("hand");
  ifZero(6, "serve");
  nextByte(0, 3);
  call("put");
  decrement(6);
  branch("hand");

  label("number"); // x6: four bytes from the line
  move(7, LINK);
  set(6, 0);
  for (const by of [0, 8, 16, 24]) {
    call("get");
    orShifted(6, 0, by);
  }
  returnTo(7);
  label("get"); // x0: one byte from the line
  load(5, 20, UART.flags);
  ifBit(5, UART.isEmpty, "get");
  load(0, 20, 0);
  returnTo(LINK);
  label("put"); // one byte to the line
  load(5, 20, UART.flags);
  ifBit(5, UART.isFull, "put");
  store(0, 20);
  returnTo(LINK);
  label("text");

  const code = Buffer.alloc(words.length * 4);
  for (const [at, word] of words.entries()) code.writeUInt32LE(word(at) >>> 0, at * 4);
  return Buffer.concat([code, text]);
}
