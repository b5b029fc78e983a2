/** A piece on its way: which of its blocks are there, who was asked for the others, and who sent what. */
import { LEAF_BYTES } from "../../boot/content.ts";

/** Peers that may owe a block before it is asked of one more. */
const MAX_DEBTORS = 3;

/** Whoever can be asked for blocks. */
export interface Source {
  readonly address: string;
}

/** One question that waits for its block. */
export interface Asked<S> {
  source: S;
  /** Milliseconds on the steady clock. */
  at: number;
}

interface Block<S> {
  state: "wanted" | "got" | "kept";
  asked: Asked<S>[];
  /** Who sent it; until it is judged. */
  sender?: S;
}

/** A piece that is fetched. Blocks are numbered within it. */
export class Open<S extends Source> {
  readonly piece: number;
  readonly bytes: Buffer;
  readonly blocks: Block<S>[] = [];
  /** It is with the judge: nothing may be written into `bytes`. */
  isJudged = false;
  #wanted = 0;

  /** `bytes`: where it is put together. `isKept`: the block is there already. */
  constructor(piece: number, bytes: Buffer, isKept: (block: number) => boolean) {
    this.piece = piece;
    this.bytes = bytes;
    for (let block = 0; block * LEAF_BYTES < bytes.length; block++)
      this.blocks.push({ state: isKept(block) ? "kept" : "wanted", asked: [] });
    this.#wanted = this.blocks.filter(({ state }) => state === "wanted").length;
  }

  lengthOf(block: number): number {
    return Math.min(LEAF_BYTES, this.bytes.length - block * LEAF_BYTES);
  }

  /** Nothing is left to ask for. */
  get isFull(): boolean {
    return this.#wanted === 0;
  }

  /** Nobody was asked and nobody sent anything: giving it up costs nothing. */
  get isUntouched(): boolean {
    return this.blocks.every((block) => block.asked.length === 0 && block.state !== "got");
  }

  /** Does something in it depend on this source? */
  isStakeOf(source: S): boolean {
    return this.blocks.some(
      (block) => block.sender === source || block.asked.some((asked) => asked.source === source),
    );
  }

  /** The first block nobody was asked for. */
  free(): number | undefined {
    const found = this.blocks.findIndex((block) => block.state === "wanted" && block.asked.length === 0);
    return found === -1 ? undefined : found;
  }

  /** A block that others owe (three at most), and all of them are late with. */
  owed(isLate: (debt: Asked<S>) => boolean): number | undefined {
    const found = this.blocks.findIndex(
      ({ state, asked }) =>
        state === "wanted" && asked.length > 0 && asked.length <= MAX_DEBTORS && asked.every(isLate),
    );
    return found === -1 ? undefined : found;
  }

  ask(block: number, source: S, at: number): void {
    this.blocks[block]?.asked.push({ source, at });
  }

  /** The question was answered with no. */
  forget(block: number, source: S): void {
    const one = this.blocks[block];
    if (one) one.asked = one.asked.filter((asked) => asked.source !== source);
  }

  /** Puts a block in its place. Returns who else was asked for it; nothing where it is not wanted any more. */
  take(block: number, source: S, bytes: Uint8Array): S[] | undefined {
    const one = this.blocks[block];
    if (one?.state !== "wanted" || bytes.length !== this.lengthOf(block)) return undefined;
    this.bytes.set(bytes, block * LEAF_BYTES);
    const others = one.asked.map((asked) => asked.source).filter((asked) => asked !== source);
    this.#set(block, { state: "got", asked: [], sender: source });
    return others;
  }

  /** The judge said so. Returns who sent it. */
  judge(block: number, isRight: boolean): S | undefined {
    const sender = this.blocks[block]?.sender;
    this.#set(block, { state: isRight ? "kept" : "wanted", asked: [] });
    return sender;
  }

  /** It came from elsewhere. Returns who was asked for it. */
  keep(block: number): S[] {
    const asked = this.blocks[block]?.asked.map(({ source }) => source) ?? [];
    this.#set(block, { state: "kept", asked: [] });
    return asked;
  }

  #set(block: number, to: Block<S>): void {
    const isWanted = (one?: Block<S>) => (one?.state === "wanted" ? 1 : 0);
    this.#wanted += isWanted(to) - isWanted(this.blocks[block]);
    this.blocks[block] = to;
  }
}
