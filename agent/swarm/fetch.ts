/**
 * Fetches a payload block by block from many peers, has each piece judged, and knows who sent what was wrong.
 *
 * Invariants
 * - A block is asked for once, and of another peer only where the first is late or the end is near.
 * - Of a peer's blocks that were not judged yet, none lie outside two pieces; one piece as long as nothing of it was right.
 *   So a liar spoils two pieces at most, whatever it gave before. What is right of a spoilt piece stays.
 * - As long as a near peer gives, nothing that it has is asked of far ones.
 * - The pieces on their way take `MAX_OPEN_BYTES` of memory (four pieces where those are larger), whatever peers do.
 */
import { setTimeout as sleep } from "node:timers/promises";
import { LEAF_BYTES } from "../../boot/content.ts";
import { type Asked, Open, type Source } from "./blocks.ts";
import type { Keep } from "./engine.ts";
import { type Holder, Rarity } from "./picker.ts";
import { type Shape, Stock } from "./stock.ts";

const MAX_OPEN_BYTES = 16 * 1024 * 1024;
/** A block is asked of somebody else too when it is this late. */
const LATE_MS = 8_000;
/** And this late where the other one is twice as fast. */
const LATE_OF_SLOW_MS = 1_000;
/** Pieces that depend on one peer, at most: more of them bring no more speed, its blocks arrive one after the other. */
const MAX_STAKES = 2;
/** Near the end (2 % of the payload, 64 blocks at least) it is not waited for that long. */
const LATE_AT_END_MS = 250;
const MIN_END_BLOCKS = 64;
/** Questions that wait at one peer: what it sends in a second, within these. */
const MIN_ASKED = 4;
const MAX_ASKED = 250;
/** After a no, so long nothing is asked of that peer. */
const REST_MS = 500;
/** A peer that was overtaken is asked for nothing so long. */
const OVERTAKEN_MS = 10_000;
/** A keep that failed is tried again after so long, doubled up to the second. */
const RETRY_MS = [500, 30_000] as const;

/** A peer that blocks can be asked of. */
export interface Lender extends Source, Holder {
  readonly isChoking: boolean;
  /** Bytes from it cost nothing. */
  readonly isNear: boolean;
  /** Bytes per second, of late. */
  readonly rate: number;
  /** Most questions it takes at once. */
  readonly maxAsked: number;
  /** Questions that wait. */
  readonly asked: number;
  /** Leaves it sent that were judged right. */
  right: number;
  /** Milliseconds on the steady clock until which nothing is asked. */
  restsUntil: number;
  ask(piece: number, offset: number, length: number, done: (block: Uint8Array | undefined) => void): void;
  cancel(piece: number, offset: number, length: number): void;
}

/** What the fetching tells. */
export interface FetchEvents<L> {
  /** The piece is kept. */
  complete(piece: number): void;
  /** Leaves that were wrong, by who sent them. */
  wrong(piece: number, leaves: readonly number[], sender: L): void;
  /** The keep failed (a text) or works again (nothing). */
  trouble(text: string | undefined): void;
  /** Blocks are to be had again: ask around. */
  freed(): void;
}

/** The fetching of one payload. */
export class Fetch<L extends Lender> {
  readonly rarity: Rarity;
  /** Bytes that came and were of no use. */
  wasted = 0;
  /** Near peers that give now: of what they have nothing is asked of far ones. */
  near: readonly L[] = [];
  readonly #stock: Stock;
  readonly #keep: Keep;
  readonly #events: FetchEvents<L>;
  readonly #signal: AbortSignal;
  readonly #open = new Map<number, Open<L>>();
  /** Buffers of pieces that are done: the engine of the runtime is slow to give such memory back. */
  readonly #spare: Buffer[] = [];
  #trouble: string | undefined;

  constructor(shape: Shape, keep: Keep, events: FetchEvents<L>, signal: AbortSignal) {
    this.#stock = new Stock(shape, (leaf) => keep.has(leaf));
    this.#keep = keep;
    this.#events = events;
    this.#signal = signal;
    this.rarity = new Rarity(shape.pieces);
  }

  isThere(piece: number): boolean {
    return this.#stock.isThere(piece);
  }

  get isWhole(): boolean {
    return this.#stock.missing === 0;
  }

  /** Has the peer anything that is not there? */
  isInteresting(lender: L): boolean {
    if (this.isWhole) return false;
    for (let piece = 0; piece < this.#stock.shape.pieces; piece++)
      if (!this.isThere(piece) && lender.has(piece)) return true;
    return false;
  }

  /** Asks a peer for as much as it can send in a second. */
  fill(lender: L): void {
    const now = performance.now();
    if (lender.isChoking || this.#trouble !== undefined || this.isWhole || lender.restsUntil > now) return;
    const want = Math.min(
      Math.max(MIN_ASKED, Math.ceil(lender.rate / LEAF_BYTES) + 2),
      MAX_ASKED,
      lender.maxAsked,
    );
    while (lender.asked < want) {
      const next = this.#next(lender, now);
      if (next === undefined) return;
      this.#ask(lender, ...next, now);
    }
  }

  /** Leaves came from elsewhere. */
  gained(leaves: Iterable<number>): void {
    for (const leaf of leaves) {
      if (!this.#stock.lacks(leaf)) continue;
      const piece = this.#stock.pieceOf(leaf);
      const open = this.#open.get(piece);
      const block = leaf - piece * this.#stock.leavesPerPiece;
      // With the judge: it will say so itself
      if (open?.isJudged) continue;
      for (const asked of open?.keep(block) ?? [])
        asked.cancel(piece, block * LEAF_BYTES, open?.lengthOf(block) ?? 0);
      this.#stock.arrived(leaf);
      if (this.isThere(piece)) {
        this.#close(piece);
        this.#events.complete(piece);
      } else if (open?.isFull) void this.#judge(open);
    }
  }

  /** Blocks that are late are asked of others too, and what nobody has any more makes room. */
  tick(): void {
    if (!this.isWhole) this.#events.freed();
  }

  /** What to ask this peer for: something of a piece that was begun, a new piece, or what another one owes. */
  #next(lender: L, now: number): [Open<L>, number] | undefined {
    const all = [...this.#open.values()];
    // All of them, whatever it says now that it has
    const staked = all.filter((one) => one.isStakeOf(lender));
    const mayStakeMore = staked.length < this.#mostStakes(lender);
    const isOpen = (one: Open<L>) => !one.isJudged && this.#mayGive(lender, one.piece);
    const [open, stakes] = [all.filter(isOpen), staked.filter(isOpen)];
    const eligible = mayStakeMore ? open : stakes;
    const free = (one: Open<L>) => one.free();
    const begun = () => (mayStakeMore ? first(this.#begin(lender), free) : undefined);
    return (
      // A peer nobody knows gets a piece of its own, which nobody else can hold up
      (lender.right > 0 ? undefined : (first(stakes, free) ?? begun())) ??
      first(eligible, free) ??
      begun() ??
      first(eligible, (one) => one.owed((debt) => this.#isLate(debt, lender, now)))
    );
  }

  /** Has it the piece, and is it the one to ask? */
  #mayGive(lender: L, piece: number): boolean {
    return lender.has(piece) && (lender.isNear || !this.near.some((one) => one.right > 0 && one.has(piece)));
  }

  /** Pieces a peer may be part of before they are judged. */
  #mostStakes({ right }: L): number {
    return right === 0 ? 1 : MAX_STAKES;
  }

  /** Is what another peer owes to be asked of this one, which has nothing else to do? */
  #isLate({ source, at }: Asked<L>, lender: L, now: number): boolean {
    if (source === lender) return false;
    // Somebody who never gave anything is no help
    if (lender.right === 0) return now - at > LATE_MS;
    if (this.#isNearEnd && now - at > LATE_AT_END_MS) return true;
    return now - at > (source.rate * 2 < lender.rate ? LATE_OF_SLOW_MS : LATE_MS);
  }

  get #isNearEnd(): boolean {
    return this.#stock.missing <= Math.max(MIN_END_BLOCKS, this.#stock.leaves / 50);
  }

  /** Begins the rarest piece the peer has, where there is room for one. */
  #begin(lender: L): Open<L>[] {
    const piece = this.rarity.rarest(
      (one) => !this.isThere(one) && !this.#open.has(one) && this.#mayGive(lender, one),
    );
    if (piece === undefined) return [];
    const room = Math.max(4, Math.floor(MAX_OPEN_BYTES / this.#stock.shape.pieceBytes));
    if (this.#open.size >= room) {
      const idle = [...this.#open.values()].find((open) => open.isUntouched && !open.isJudged);
      if (idle === undefined) return [];
      this.#close(idle.piece);
    }
    const whole = this.#spare.pop() ?? Buffer.allocUnsafeSlow(this.#stock.shape.pieceBytes);
    const first = piece * this.#stock.leavesPerPiece;
    const open = new Open<L>(
      piece,
      whole.subarray(0, this.#stock.lengthOf(piece)),
      (block) => !this.#stock.lacks(first + block),
    );
    this.#open.set(piece, open);
    return [open];
  }

  #close(piece: number): void {
    const open = this.#open.get(piece);
    if (open === undefined) return;
    this.#open.delete(piece);
    if (open.bytes.length === this.#stock.shape.pieceBytes && this.#spare.length < 8)
      this.#spare.push(open.bytes);
  }

  #ask(lender: L, open: Open<L>, block: number, now: number): void {
    open.ask(block, lender, now);
    lender.ask(open.piece, block * LEAF_BYTES, open.lengthOf(block), (bytes) => {
      if (this.#signal.aborted) return;
      if (bytes !== undefined) return this.#came(lender, open, block, bytes);
      open.forget(block, lender);
      lender.restsUntil = performance.now() + REST_MS;
      this.#events.freed();
    });
  }

  #came(lender: L, open: Open<L>, block: number, bytes: Uint8Array): void {
    const isOpen = this.#open.get(open.piece) === open;
    const others = isOpen ? open.take(block, lender, bytes) : undefined;
    if (others === undefined) this.wasted += bytes.length;
    for (const other of others ?? []) {
      other.cancel(open.piece, block * LEAF_BYTES, bytes.length);
      // Who was overtaken by a faster one gets no new piece to hold up for a while
      if (other.rate * 2 < lender.rate) other.restsUntil = performance.now() + OVERTAKEN_MS;
    }
    if (isOpen && open.isFull && !open.isJudged) void this.#judge(open);
    this.fill(lender);
  }

  /** Has the whole piece judged, as often as the keep fails. */
  async #judge(open: Open<L>): Promise<void> {
    open.isJudged = true;
    let wait: number = RETRY_MS[0];
    while (!this.#signal.aborted) {
      try {
        await this.#complete(open);
        const wrong = new Set(await this.#keep.put(open.piece, open.bytes));
        if (this.#signal.aborted) return;
        this.#cured();
        this.#judged(open, wrong);
        return;
      } catch (error) {
        this.#fail(error);
      }
      await sleep(wait, undefined, { signal: this.#signal }).catch(() => {});
      wait = Math.min(wait * 2, RETRY_MS[1]);
    }
  }

  /** Blocks that were there already are read back: a piece is judged whole. */
  async #complete(open: Open<L>): Promise<void> {
    for (const [block, { state }] of open.blocks.entries()) {
      if (state !== "kept") continue;
      const at = open.piece * this.#stock.shape.pieceBytes + block * LEAF_BYTES;
      open.bytes.set(await this.#keep.get(at, open.lengthOf(block)), block * LEAF_BYTES);
    }
  }

  #judged(open: Open<L>, wrong: ReadonlySet<number>): void {
    const firstLeaf = open.piece * this.#stock.leavesPerPiece;
    const blame = new Map<L, number[]>();
    for (const block of open.blocks.keys()) {
      const leaf = firstLeaf + block;
      const isRight = !wrong.has(leaf);
      const sender = open.judge(block, isRight);
      if (isRight) this.#stock.arrived(leaf);
      else this.#stock.lost(leaf);
      if (sender === undefined) continue;
      if (isRight) sender.right++;
      else blame.set(sender, [...(blame.get(sender) ?? []), leaf]);
    }
    open.isJudged = false;
    for (const [sender, leaves] of blame) {
      sender.right = 0;
      this.wasted += leaves.length * LEAF_BYTES;
      this.#events.wrong(open.piece, leaves, sender);
    }
    if (this.isThere(open.piece)) {
      this.#close(open.piece);
      this.#events.complete(open.piece);
    }
    this.#events.freed();
  }

  #fail(error: unknown): void {
    const text = error instanceof Error ? error.message : String(error);
    if (this.#trouble !== text) this.#events.trouble(text);
    this.#trouble = text;
  }

  #cured(): void {
    if (this.#trouble === undefined) return;
    this.#trouble = undefined;
    this.#events.trouble(undefined);
  }
}

/** The first piece that has such a block, and that block. */
function first<O>(opens: readonly O[], find: (open: O) => number | undefined): [O, number] | undefined {
  for (const open of opens) {
    const block = find(open);
    if (block !== undefined) return [open, block];
  }
  return undefined;
}
