/** Which leaves and pieces of a payload are there. */
import { LEAF_BYTES } from "../../boot/content.ts";

/** What a payload is made of. */
export interface Shape {
  size: number;
  pieceBytes: number;
  pieces: number;
}

/** Counts what is there, by leaf and by piece. */
export class Stock {
  readonly shape: Shape;
  /** One byte for each leaf: 1 is there. */
  readonly #there: Uint8Array;
  /** Leaves of each piece that are not there. */
  readonly #missing: Uint16Array;
  #left = 0;

  /** `has`: asked once for each leaf. */
  constructor(shape: Shape, has: (leaf: number) => boolean) {
    this.shape = shape;
    this.#there = new Uint8Array(Math.ceil(shape.size / LEAF_BYTES)).fill(1);
    this.#missing = new Uint16Array(shape.pieces);
    for (const leaf of this.#there.keys()) if (!has(leaf)) this.lost(leaf);
  }

  /** How many leaves it has in all. */
  get leaves(): number {
    return this.#there.length;
  }

  /** How many of them are not there. */
  get missing(): number {
    return this.#left;
  }

  get leavesPerPiece(): number {
    return this.shape.pieceBytes / LEAF_BYTES;
  }

  pieceOf(leaf: number): number {
    return Math.floor(leaf / this.leavesPerPiece);
  }

  lengthOf(piece: number): number {
    const { size, pieceBytes } = this.shape;
    return Math.min(pieceBytes, size - piece * pieceBytes);
  }

  isThere(piece: number): boolean {
    return this.#missing[piece] === 0;
  }

  /** There is such a leaf, and it is not there. */
  lacks(leaf: number): boolean {
    return this.#there[leaf] === 0;
  }

  arrived(leaf: number): void {
    if (this.#there[leaf] === 0) this.#set(leaf, 1);
  }

  /** What was there turns out to be wrong: it is fetched like the rest. */
  lost(leaf: number): void {
    if (this.#there[leaf] === 1) this.#set(leaf, 0);
  }

  #set(leaf: number, to: 0 | 1): void {
    const change = to === 1 ? -1 : 1;
    const piece = this.pieceOf(leaf);
    this.#there[leaf] = to;
    this.#missing[piece] = (this.#missing[piece] ?? 0) + change;
    this.#left += change;
  }
}
