/**
 * Super-seeding (BEP 16): the first seed of a payload shows each peer few pieces, and others only once those went on to
 * somebody else. So it sends each piece about once, and the peers do the rest.
 */
import type { Holder, Rarity } from "./picker.ts";

/** Pieces a peer is shown and has not passed on. */
const SHOWN = 3;
/** A peer that nobody takes a piece from gets another one after so long. */
const PATIENCE_MS = 1_500;
/** A peer takes part as long as it says that it has one piece more within so long. */
const TAKES_PART_MS = 10_000;

/** A peer that pieces are shown to. */
export interface Viewer extends Holder {
  show(piece: number): void;
}

/** Shows pieces until each is held by somebody else. */
export class SuperSeed<V extends Viewer> {
  readonly #pieces: number;
  readonly #rarity: Rarity;
  readonly #random: () => number;
  /** How often each piece was shown. */
  readonly #shown: Uint16Array;
  /** What each peer was shown: `true` when it was passed on; else when the peer had it itself, or not yet. */
  readonly #views = new Map<V, Map<number, true | number | undefined>>();
  /** Since when each peer has its last piece. */
  readonly #heldAt = new Map<V, number>();
  #isOver = false;

  constructor(pieces: number, rarity: Rarity, random: () => number = Math.random) {
    this.#pieces = pieces;
    this.#rarity = rarity;
    this.#random = random;
    this.#shown = new Uint16Array(pieces);
  }

  /** Every piece is held by somebody: from now on it is an ordinary seed. */
  get isOver(): boolean {
    return this.#isOver;
  }

  /** A peer that was told that nothing is here. */
  add(viewer: V): void {
    this.#views.set(viewer, new Map());
    for (let n = 0; n < SHOWN; n++) this.#show(viewer);
  }

  remove(viewer: V): void {
    this.#views.delete(viewer);
    this.#heldAt.delete(viewer);
  }

  /** A peer says that it has a piece. */
  held(viewer: V, piece: number, now: number): void {
    this.#heldAt.set(viewer, now);
    const isAlone = [...this.#heldAt].every(([one, at]) => one === viewer || now - at > TAKES_PART_MS);
    for (const [other, view] of this.#views) {
      if (!view.has(piece) || view.get(piece) === true) continue;
      // Nobody else takes any, whoever is connected: there is nobody to pass it on to
      const isPassedOn = other !== viewer || isAlone;
      view.set(piece, isPassedOn || now);
      if (isPassedOn) this.#show(other);
    }
    this.#finish();
  }

  /** Peers that wait in vain get another piece. */
  tick(now: number): void {
    for (const [viewer, view] of this.#views)
      for (const [piece, since] of view)
        if (typeof since === "number" && now - since > PATIENCE_MS) {
          view.set(piece, true);
          this.#show(viewer);
        }
    this.#finish();
  }

  #show(viewer: V): void {
    const view = this.#views.get(viewer);
    if (view === undefined || this.#isOver) return;
    let best: number | undefined;
    let least = Number.POSITIVE_INFINITY;
    let ties = 0;
    for (let piece = 0; piece < this.#pieces; piece++) {
      const score = (this.#shown[piece] ?? 0) + this.#rarity.of(piece);
      if (score > least || view.has(piece) || viewer.has(piece)) continue;
      if (score < least) {
        least = score;
        ties = 0;
      }
      if (this.#random() * ++ties < 1) best = piece;
    }
    if (best === undefined) return;
    this.#shown[best] = (this.#shown[best] ?? 0) + 1;
    view.set(best, undefined);
    viewer.show(best);
  }

  #finish(): void {
    if (this.#isOver || this.#views.size === 0) return;
    for (let piece = 0; piece < this.#pieces; piece++) if (this.#rarity.of(piece) === 0) return;
    this.#isOver = true;
    for (const [viewer, view] of this.#views)
      for (let piece = 0; piece < this.#pieces; piece++)
        if (!view.has(piece) && !viewer.has(piece)) viewer.show(piece);
  }
}
