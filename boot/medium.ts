/** What the medium of a slot holds of a payload, leaf by leaf and past the cache; its first leaf is what makes it a file system. */
import type { BlockDevice } from "../hal/ports.ts";
import { BLOCK, onDisk } from "./admit.ts";
import { LEAF_BYTES } from "./content.ts";
import type { Judge } from "./leaf.ts";
import { windows } from "./readback.ts";

/** The medium of one install. */
export class Medium {
  /** Bytes that were written leaf by leaf. */
  written = 0;
  readonly #device: BlockDevice;
  readonly #judge: Judge;

  constructor(device: BlockDevice, judge: Judge) {
    this.#device = device;
    this.#judge = judge;
  }

  /** What the slot held can no longer be taken for a file system. */
  async destroyFirst(): Promise<void> {
    const length = Math.min(LEAF_BYTES, this.#device.bytes - (this.#device.bytes % BLOCK));
    const held = await this.#device.readMedium(0, length);
    if (held.some((byte) => byte !== 0)) await this.#device.write(0, new Uint8Array(length));
    await this.#device.flush();
  }

  /** Whether nothing has landed where the first leaf goes but that leaf. */
  async isFirstFree(): Promise<boolean> {
    const held = await this.#device.readMedium(0, onDisk(this.#judge.lengthOf(0)));
    return held.every((byte) => byte === 0) || (await this.isHeld(0));
  }

  /** Writes a leaf whole, filled up with zeros to the end of its block. */
  async write(leaf: number, bytes: Uint8Array): Promise<void> {
    const whole = new Uint8Array(onDisk(bytes.length));
    whole.set(bytes);
    await this.#device.write(leaf * LEAF_BYTES, whole);
    this.written += whole.length;
  }

  /** Whether it holds a leaf. */
  async isHeld(leaf: number): Promise<boolean> {
    const length = this.#judge.lengthOf(leaf);
    const held = await this.#device.readMedium(leaf * LEAF_BYTES, onDisk(length));
    return this.#judge.isRight(leaf, held.subarray(0, length));
  }

  /** Judges what it holds of the wanted leaves, but for leaf 0; `looks` is told before each window, `read` behind it how far that goes. */
  async *judged(
    isWanted: (leaf: number) => boolean,
    signal: AbortSignal,
    told: { looks?(from: number): void; read(bytes: number): void },
  ): AsyncGenerator<{ leaf: number; isRight: boolean }> {
    const { size } = this.#judge;
    for await (const { from, to, bytes } of windows(this.#device, size, isWanted, signal)) {
      told.looks?.(from);
      for (let leaf = from; leaf < to; leaf++) {
        const at = (leaf - from) * LEAF_BYTES;
        if (leaf === 0 || !isWanted(leaf)) continue;
        const held = bytes.subarray(at, at + this.#judge.lengthOf(leaf));
        yield { leaf, isRight: await this.#judge.isRight(leaf, held) };
      }
      told.read(Math.min(to * LEAF_BYTES, size));
    }
  }
}
