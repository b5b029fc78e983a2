/**
 * The hash tree of a payload, as BEP 52 has it: the leaves are the SHA-256 of 16 KiB each, the last of which may be shorter;
 * leaves of zeros (32 zero bytes, not the hash of any) fill it up to a power of two; a node is the SHA-256 of its two children.
 */
import { hash } from "node:crypto";
import { LEAF_BYTES } from "./content.ts";

/** Bytes of one hash. */
export const HASH_BYTES = 32;

/** How many leaves a payload of `bytes` has. */
export const leafCount = (bytes: number): number => Math.ceil(bytes / LEAF_BYTES);

/** The SHA-256 of one leaf: 16 KiB, or less at the end of a payload. */
export function hashLeaf(leaf: Uint8Array): Uint8Array {
  return hash("sha256", leaf, "buffer");
}

/** Builds the root of any number of leaves, keeping one hash for each level only. */
export class MerkleTree {
  /** The root of the whole subtree on each level that waits for its right neighbour, the leaves' level first. */
  readonly #waiting: (Uint8Array | undefined)[] = [];
  #leaves = 0;

  get leaves(): number {
    return this.#leaves;
  }

  /** Adds the hash of the next leaf. */
  add(leafHash: Uint8Array): void {
    if (leafHash.length !== HASH_BYTES)
      throw new RangeError(`a leaf's hash has ${HASH_BYTES} bytes, not ${leafHash.length}`);
    this.#leaves++;
    let node = Uint8Array.from(leafHash); // the caller may use its array again
    let level = 0;
    for (let left = this.#waiting[0]; left; left = this.#waiting[level]) {
      node = join(left, node);
      this.#waiting[level++] = undefined;
    }
    this.#waiting[level] = node;
  }

  /** The root of what was added; more may be added after. Throws `RangeError` while there is no leaf: an empty payload has no root. */
  root(): Uint8Array {
    if (this.#leaves === 0) throw new RangeError("an empty payload has no hash tree");
    let node: Uint8Array | undefined;
    let padding: Uint8Array = new Uint8Array(HASH_BYTES);
    const top = this.#waiting.length - 1;
    for (const [level, left] of this.#waiting.entries()) {
      if (level === top && !node && left) return left;
      if (left) node = join(left, node ?? padding);
      else if (node) node = join(node, padding);
      padding = join(padding, padding);
    }
    return node ?? padding;
  }
}

/** The root over hashes of leaves that lie one after the other. */
export function merkleRoot(leafHashes: Uint8Array): Uint8Array {
  const tree = new MerkleTree();
  for (let at = 0; at < leafHashes.length; at += HASH_BYTES)
    tree.add(leafHashes.subarray(at, at + HASH_BYTES));
  return tree.root();
}

/** Cuts a payload that arrives in pieces of any size into leaves, and hashes each. */
export class LeafHasher {
  readonly #emit: (leafHash: Uint8Array, index: number) => void;
  readonly #rest = Buffer.alloc(LEAF_BYTES);
  #filled = 0;
  #leaves = 0;

  /** `emit` is called with the hash of each leaf in turn, during `update` and `end`. */
  constructor(emit: (leafHash: Uint8Array, index: number) => void) {
    this.#emit = emit;
  }

  update(bytes: Uint8Array): void {
    let at = 0;
    if (this.#filled > 0) {
      at = Math.min(LEAF_BYTES - this.#filled, bytes.length);
      this.#rest.set(bytes.subarray(0, at), this.#filled);
      this.#filled += at;
      if (this.#filled < LEAF_BYTES) return;
      this.#leaf(this.#rest);
      this.#filled = 0;
    }
    for (; at + LEAF_BYTES <= bytes.length; at += LEAF_BYTES) this.#leaf(bytes.subarray(at, at + LEAF_BYTES));
    this.#rest.set(bytes.subarray(at));
    this.#filled = bytes.length - at;
  }

  /** The payload is over: what is left is the last, shorter leaf. */
  end(): void {
    if (this.#filled > 0) this.#leaf(this.#rest.subarray(0, this.#filled));
    this.#filled = 0;
  }

  #leaf(leaf: Uint8Array): void {
    this.#emit(hashLeaf(leaf), this.#leaves++);
  }
}

function join(left: Uint8Array, right: Uint8Array): Uint8Array<ArrayBuffer> {
  const both = new Uint8Array(2 * HASH_BYTES);
  both.set(left);
  both.set(right, HASH_BYTES);
  return new Uint8Array(hash("sha256", both, "buffer"));
}
