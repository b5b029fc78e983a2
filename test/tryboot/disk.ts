/** A disk in memory for the tests of this folder: it remembers what was written, and fails where it is told to. */
import { SECTOR } from "../../boot/layout.ts";
import { type BlockDevice, HalError } from "../../hal/ports.ts";
import type { Image } from "../crash/disk.ts";

/** One write; flushes are counted apart. */
export interface Write {
  offset: number;
  bytes: Uint8Array;
}

/** What the card does instead of writing: fails, or stores it otherwise. */
export type Trouble = (offset: number, bytes: Uint8Array) => "EIO" | Uint8Array | undefined;

/** See the head of this file. */
export class MemoryDisk implements BlockDevice {
  readonly name = "/dev/crash";
  readonly image: Image;
  readonly writes: Write[] = [];
  reads = 0;
  flushes = 0;
  trouble: Trouble = () => undefined;

  constructor(image: Image) {
    this.image = image;
  }

  get bytes(): number {
    return this.image.bytes;
  }

  async read(offset: number, length: number): Promise<Uint8Array> {
    this.reads++;
    if (offset + length > this.bytes)
      throw new HalError("io", `${this.name}: read past its end at ${offset}`);
    return this.image.read(offset, length);
  }

  async readMedium(offset: number, length: number): Promise<Uint8Array> {
    if (offset % 4096 !== 0 || length % 4096 !== 0)
      throw new HalError("io", `${this.name}: EINVAL, ${offset}`);
    return this.read(offset, length);
  }

  async write(offset: number, bytes: Uint8Array): Promise<void> {
    if (offset % SECTOR !== 0 || bytes.length % SECTOR !== 0)
      throw new HalError("io", `${this.name}: ${bytes.length} bytes at ${offset} are no whole sectors`);
    const stored = this.trouble(offset, bytes);
    if (stored === "EIO") throw new HalError("io", `${this.name}: write at byte ${offset}: EIO: i/o error`);
    this.writes.push({ offset, bytes: bytes.slice() });
    this.image.write(offset, (stored ?? bytes).slice());
  }

  async flush(): Promise<void> {
    this.flushes++;
  }

  async close(): Promise<void> {}
}
