/** The one question asked of every byte before it is written and after: is this leaf the one that was signed? */
import { LEAF_BYTES } from "./content.ts";
import { hashLeaf, leafCount } from "./merkle.ts";

/** The leaf hashes of a payload, already matched against its root; `Side` is one. */
export interface Leaves {
  /** How many there are. */
  readonly count: number;
  /** SHA-256 of a leaf. */
  hash(leaf: number): Promise<Uint8Array>;
}

/** Bytes that are not those of the signed leaf; nothing was changed. */
export class WrongLeaf extends Error {
  override name = "WrongLeaf";
  readonly leaf: number;
  constructor(leaf: number, message: string) {
    super(message);
    this.leaf = leaf;
  }
}

/** Judges the leaves of one payload. */
export class Judge {
  readonly size: number;
  readonly count: number;
  readonly #leaves: Leaves;

  /** Throws `RangeError` where so many hashes do not make a payload of that size. */
  constructor(size: number, leaves: Leaves) {
    this.size = size;
    this.count = leafCount(size);
    this.#leaves = leaves;
    if (leaves.count !== this.count)
      throw new RangeError(
        `a payload of ${size} bytes has ${this.count} leaves; there are hashes of ${leaves.count}`,
      );
  }

  /** Bytes of a leaf: the last one may be shorter. */
  lengthOf(leaf: number): number {
    return Math.min(LEAF_BYTES, this.size - leaf * LEAF_BYTES);
  }

  async isRight(leaf: number, bytes: Uint8Array): Promise<boolean> {
    return Buffer.from(await this.#leaves.hash(leaf)).equals(hashLeaf(bytes));
  }

  /** Throws `WrongLeaf` unless the bytes are those of the leaf. */
  async check(leaf: number, bytes: Uint8Array): Promise<void> {
    if (!Number.isInteger(leaf) || leaf < 0 || leaf >= this.count)
      throw new WrongLeaf(leaf, `there is no leaf ${leaf}: the payload has ${this.count}`);
    const length = this.lengthOf(leaf);
    if (bytes.length !== length)
      throw new WrongLeaf(leaf, `leaf ${leaf} has ${length} bytes, not ${bytes.length}`);
    if (!(await this.isRight(leaf, bytes)))
      throw new WrongLeaf(leaf, `leaf ${leaf} (byte ${leaf * LEAF_BYTES}) is not the one that was signed`);
  }
}
