/**
 * What the far side's control lines say to one RFC 2217 client: asked for, and told by themselves when they changed.
 *
 * Invariants
 * - The lines are looked at once a second at most while nobody asks, and only for a client that speaks RFC 2217 and masks something in.
 * - A line that cannot tell (a pseudo-terminal, a driver without them) counts as ready while it is there.
 */
import { setTimeout as sleep } from "node:timers/promises";
import type { ModemLines } from "../../hal/ports.ts";

/** NOTIFY-MODEMSTATE, the upper half (RFC 2217 §3); four bits below each is that it changed, of RI that it ended. */
const LEVEL = { cts: 0x10, dsr: 0x20, ri: 0x40, dcd: 0x80 } as const;
const READY = LEVEL.cts | LEVEL.dsr | LEVEL.dcd;
const LOOK_MS = 1000;

/** What is asked, and who is told. */
interface ModemMeans {
  isUp(): boolean;
  /** As `Console.modemLines`. */
  modemLines(): Promise<ModemLines | undefined> | undefined;
  /** NOTIFY-MODEMSTATE with this state. */
  tell(state: number): void;
}

/** The modem state as one client knows it. */
export class ModemState {
  // As RFC 2217 §3 wants it at the start
  mask = 0xff;
  readonly #means: ModemMeans;
  /** What was found last; before the first time nothing can have changed. */
  #levels: number | undefined;
  /** What the driver said last of a line that is still there. */
  #read: number | undefined;
  #wasUp: boolean;
  #isAsked = false;
  #isBegun = false;
  readonly #over = new AbortController();

  constructor(means: ModemMeans) {
    this.#means = means;
    this.#wasUp = means.isUp();
  }

  /** The client speaks RFC 2217: it is told how things are, and from now on what changes. */
  begin(): void {
    if (this.#isBegun) return;
    this.#isBegun = true;
    this.ask();
    void this.#watch();
  }

  /** Tells how things are now; who asks again before they are told is told once. */
  ask(): void {
    if (this.#isAsked) return;
    const looking = this.#look();
    if (looking === undefined) {
      this.#found(true);
      return;
    }
    this.#isAsked = true;
    void looking.then(() => {
      this.#isAsked = false;
      this.#found(true);
    });
  }

  /** The line may have come or gone. */
  lineChanged(): void {
    const isUp = this.#means.isUp();
    if (isUp === this.#wasUp) return;
    this.#wasUp = isUp;
    this.#read = undefined;
    if (!this.#isBegun) return;
    const looking = isUp ? this.#look() : undefined;
    if (looking === undefined) this.#found(false);
    else void looking.then(() => this.#found(false));
  }

  /** Nobody is told any more. */
  end(): void {
    this.#over.abort();
  }

  async #watch(): Promise<void> {
    const { signal } = this.#over;
    while (!signal.aborted) {
      await sleep(LOOK_MS, undefined, { signal, ref: false }).catch(() => undefined);
      if (signal.aborted || this.mask === 0) continue;
      await this.#look();
      this.#found(false);
    }
  }

  /** Asks the driver; nothing to wait for where it cannot tell. */
  #look(): Promise<void> | undefined {
    return this.#means.modemLines()?.then((lines) => {
      // What takes too long this time may be said the next
      if (lines) this.#read = bitsOf(lines);
    });
  }

  #found(isAsked: boolean): void {
    if (this.#over.signal.aborted) return;
    const before = this.#levels;
    const levels = this.#means.isUp() ? (this.#read ?? READY) : 0;
    this.#levels = levels;
    const changed = before === undefined ? 0 : before ^ levels;
    // Of a ring only the end is told as a change
    const told = (changed & ~(levels & LEVEL.ri)) >> 4;
    if (isAsked || ((changed | told) & this.mask) !== 0) this.#means.tell((levels | told) & this.mask);
  }
}

function bitsOf(lines: ModemLines): number {
  return (["cts", "dsr", "ri", "dcd"] as const).reduce(
    (all, name) => (lines[name] ? all | LEVEL[name] : all),
    0,
  );
}
