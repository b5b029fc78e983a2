/**
 * Which piece a peer is asked for next: the one fewest peers have. One pass over the pieces for each piece that is begun,
 * none for each block.
 */

/** What the picker needs to know of a peer. */
export interface Holder {
  has(piece: number): boolean;
}

/** How many connected peers have each piece. */
export class Rarity {
  readonly #counts: Uint16Array;
  readonly #random: () => number;

  constructor(pieces: number, random: () => number = Math.random) {
    this.#counts = new Uint16Array(pieces);
    this.#random = random;
  }

  of(piece: number): number {
    return this.#counts[piece] ?? 0;
  }

  /** One more peer has it. */
  add(piece: number): void {
    this.#counts[piece] = this.of(piece) + 1;
  }

  /** Counts anew: a peer came, went, or said all it has at once. */
  count(holders: Iterable<Holder>): void {
    this.#counts.fill(0);
    for (const holder of holders)
      for (let piece = 0; piece < this.#counts.length; piece++) if (holder.has(piece)) this.add(piece);
  }

  /** The rarest piece that `isWanted`, one of them at random; none: undefined. */
  rarest(isWanted: (piece: number) => boolean): number | undefined {
    let best: number | undefined;
    let fewest = Number.POSITIVE_INFINITY;
    let ties = 0;
    for (let piece = 0; piece < this.#counts.length; piece++) {
      const count = this.of(piece);
      if (count > fewest || !isWanted(piece)) continue;
      if (count < fewest) {
        fewest = count;
        ties = 0;
      }
      // The n-th of equals takes the place with a chance of 1/n: each has the same in the end
      if (this.#random() * ++ties < 1) best = piece;
    }
    return best;
  }
}
