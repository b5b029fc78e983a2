/**
 * A release into the slot that does not run, so that a power cut, a full disk or a wrong byte at any moment leaves the node
 * with the system it has.
 *
 * Invariants
 * - No byte reaches the slot before its leaf's SHA-256 was found to be the signed one.
 * - The order: record says `writing`; the old first leaf is destroyed; leaves in any order; flushed; all of them read back past
 *   the cache; the first leaf; flushed; read back; record says `staged`. What is half written never looks like a file system.
 * - What was done before counts only after it was hashed again; the bitmap says where to look, no more.
 * - Memory does not depend on the size of the image.
 */
import { admit, contentOf, hashPrefix } from "./admit.ts";
import { LEAF_BYTES } from "./content.ts";
import { failpoint } from "./failpoint.ts";
import type { Install, Origin, Step } from "./install.ts";
import { Judge } from "./leaf.ts";
import { Medium } from "./medium.ts";
import { Bits, type Installing } from "./progress.ts";
import type { BootRecord } from "./record.ts";
import { Runs } from "./runs.ts";

/** A slot that cannot be finished: leaves are missing, or the medium does not hold what was written. */
export class WriterError extends Error {
  override name = "WriterError";
}

/** Bytes between two flushes: a card that writes 10 MB/s makes others wait about two seconds. */
const CHECKPOINT_BYTES = 16 * 1024 * 1024;
/** How often all of it is read back, while every time something had to be written once more. */
const READ_BACKS = 3;
/** Leaves between two reports. */
const REPORT_LEAVES = 64;

/** One install. Open it, `put` every leaf it `needs`, `finish`; or `suspend`, and open it again another day. */
export class SlotWriter {
  readonly #install: Install;
  readonly #judge: Judge;
  readonly #runs: Runs;
  readonly #medium: Medium;
  /** What need not come again, and what of it the kernel has. */
  readonly #taken: Bits;
  readonly #written: Bits;
  /** Bytes taken, by where they came from. */
  readonly #from: Record<Origin, number> = { slots: 0, zeros: 0, payload: 0 };
  /** Leaf 0 until its turn comes. */
  #first: Uint8Array | undefined;
  #sinceCheckpoint = 0;
  #checkpoints = 0;
  #turn: Promise<unknown> = Promise.resolve();
  #unsaved: Error | undefined;

  private constructor(install: Install) {
    this.#install = install;
    this.#judge = new Judge(install.release.size, install.leaves);
    this.#medium = new Medium(install.device, this.#judge);
    this.#taken = new Bits(this.count);
    this.#written = new Bits(this.count);
    this.#runs = new Runs(install.device, this.size, (leaf) => this.#written.add(leaf));
  }

  /**
   * Begins an install, or goes on with the one that was interrupted. Throws `SlotRefusal` or `ReleaseError` before anything is touched, `HalError`
   * for what the medium cannot.
   */
  static async open(install: Install): Promise<SlotWriter> {
    const { boot, slot, device, release, progress, compatible, now, atLeast = 0 } = install;
    const record = await boot.read();
    const refuses = boot.refuses?.bind(boot);
    admit(release, { slot, current: boot.current, record, device, compatible, now, atLeast, refuses });
    const writer = new SlotWriter(install);
    const { state, hash: held } = record.slots[slot];
    const isOpen = state === "writing" && held === hashPrefix(release.piecesRoot);
    const before = isOpen ? await progress.load() : undefined;
    const goesOn = before !== undefined && writer.#isMine(before);
    // Again, too: the cut may have come after the switch made it one that can be started
    await boot.setState(slot, { to: "writing", hash: hashPrefix(release.piecesRoot) });
    if (!goesOn) await writer.#save();
    failpoint("writer.begun");
    await writer.#expectOurs();
    await writer.#medium.destroyFirst();
    if (goesOn) await writer.#recall(before.done);
    return writer;
  }

  /** Bytes of the payload. */
  get size(): number {
    return this.#judge.size;
  }

  /** Its leaves. */
  get count(): number {
    return this.#judge.count;
  }

  /** Bytes that were written since it was opened; the others were there already. */
  get bytesWritten(): number {
    return this.#runs.written + this.#medium.written;
  }

  /** Bytes that were taken since it was opened, by where they came from. */
  get from(): Readonly<Record<Origin, number>> {
    return { ...this.#from };
  }

  /** Why its progress could not be kept, where that is so: the install goes on, but could not be resumed. */
  get unsaved(): Error | undefined {
    return this.#unsaved;
  }

  /** Reports what begins now. */
  tell(phase: "copying" | "writing"): void {
    this.#report(phase, this.#takenBytes());
  }

  /** Leaves that have yet to come. */
  get left(): number {
    return this.count - this.#taken.count;
  }

  /** Whether a leaf has yet to come. */
  needs(leaf: number): boolean {
    return !this.#taken.has(leaf);
  }

  /**
   * Takes a leaf, in any order, once or more often; the bytes are the caller's again when it resolves. Whoever does not wait
   * for it keeps what it has not taken in memory. Throws `WrongLeaf`, and nothing has changed; `HalError`.
   */
  put(leaf: number, bytes: Uint8Array, from: Origin = "payload"): Promise<void> {
    return this.#inTurn(() => this.#put(leaf, bytes, from));
  }

  /**
   * A leaf that was taken, wherever it is by now; the array is the caller's. It waits for no `put` and no `finish`. Throws `WriterError`
   * for one that has yet to come, `WrongLeaf` where the medium no longer has it, `HalError`.
   */
  async read(leaf: number): Promise<Uint8Array> {
    if (!this.#taken.has(leaf)) throw new WriterError(`leaf ${leaf} has not come yet`);
    const inMemory = leaf === 0 ? this.#first?.slice() : this.#runs.held(leaf);
    if (inMemory) return inMemory;
    const bytes = await this.#install.device.read(leaf * LEAF_BYTES, this.#judge.lengthOf(leaf));
    await this.#judge.check(leaf, bytes);
    return bytes;
  }

  /**
   * Makes the slot `staged`. A leaf that reads back otherwise is asked for `again`, where that can be, and written once more.
   * Throws `WriterError`, `HalError`; the slot can then be opened again.
   */
  finish(again?: (leaf: number) => Promise<Uint8Array>): Promise<BootRecord> {
    return this.#inTurn(() => this.#finish(again));
  }

  /** Keeps what was done for another day. */
  suspend(): Promise<void> {
    return this.#inTurn(async () => {
      await this.#runs.drain();
      await this.#checkpoint();
    });
  }

  async #put(leaf: number, bytes: Uint8Array, from: Origin): Promise<void> {
    this.#install.signal.throwIfAborted();
    await this.#judge.check(leaf, bytes);
    if (this.#taken.has(leaf)) return;
    if (leaf === 0) this.#first = Uint8Array.from(bytes);
    else await this.#runs.put(leaf, bytes);
    this.#taken.add(leaf);
    this.#from[from] += bytes.length;
    failpoint("writer.leaf", this.#taken.count);
    this.#sinceCheckpoint += bytes.length;
    if (this.#taken.count % REPORT_LEAVES === 0) this.tell(from === "payload" ? "writing" : "copying");
    if (this.#sinceCheckpoint >= CHECKPOINT_BYTES) await this.#checkpoint();
  }

  async #finish(again?: (leaf: number) => Promise<Uint8Array>): Promise<BootRecord> {
    const { boot, slot, device, release, progress, compatible, signal } = this.#install;
    signal.throwIfAborted();
    const first = this.#first;
    if (this.#taken.count < this.count || first === undefined)
      throw new WriterError(
        `${this.count - this.#taken.count} of ${this.count} leaves are missing, the first is ${this.#missing()}`,
      );
    await this.#runs.drain();
    await this.#checkpoint();
    await this.#readBack(again);
    // As on a card that is smaller than it says
    if (!(await this.#medium.isFirstFree()))
      throw new WriterError(
        `${device.name}: byte 0 was written with what belongs elsewhere: the card is smaller than it says; replace it`,
      );
    failpoint("writer.before-first-leaf");
    signal.throwIfAborted();
    await this.#expectOurs();
    await this.#medium.write(0, first);
    await device.flush();
    if (!(await this.#medium.isHeld(0))) {
      await this.#medium.write(0, first);
      await device.flush();
      if (!(await this.#medium.isHeld(0))) throw this.#unheld(0);
    }
    failpoint("writer.before-staged");
    const record = await boot.setState(slot, { to: "staged", content: contentOf(release, compatible) });
    failpoint("writer.staged");
    // The record decides now; what is left of the progress would only be dropped by the next install
    await progress.clear().catch(() => undefined);
    this.#report("staged", this.size);
    return record;
  }

  /** Every leaf but the first, on the medium itself; all of them again after a repair, which may have cost another. */
  async #readBack(again: ((leaf: number) => Promise<Uint8Array>) | undefined): Promise<void> {
    for (let pass = 1; ; pass++) {
      const bad = await this.#findBad();
      const [worst] = bad;
      if (worst === undefined) return;
      await this.#save();
      if (again === undefined || pass === READ_BACKS) {
        for (const leaf of bad) this.#taken.delete(leaf);
        throw this.#unheld(worst, bad.length);
      }
      await this.#repair(bad, again);
    }
  }

  async #findBad(): Promise<number[]> {
    const bad: number[] = [];
    const told = {
      looks: (from: number) => failpoint("writer.read-back", from),
      read: (bytes: number) => this.#report("reading-back", bytes),
    };
    for await (const { leaf, isRight } of this.#medium.judged(() => true, this.#install.signal, told))
      if (!isRight) bad.push(leaf);
    for (const leaf of bad) this.#written.delete(leaf);
    return bad;
  }

  async #repair(bad: readonly number[], again: (leaf: number) => Promise<Uint8Array>): Promise<void> {
    for (const leaf of bad) {
      const bytes = await again(leaf);
      await this.#judge.check(leaf, bytes);
      await this.#medium.write(leaf, bytes);
    }
    await this.#install.device.flush();
    // Whether the medium has them now the next reading tells
    for (const leaf of bad) this.#written.add(leaf);
  }

  /** Others may have changed the record, whatever holds the slot. */
  async #expectOurs(): Promise<void> {
    const { boot, slot, release } = this.#install;
    const { primary, slots } = await boot.read();
    const { state, hash } = slots[slot];
    const own = hashPrefix(release.piecesRoot);
    if (slot !== primary && state === "writing" && hash === own) return;
    const found = slot === primary ? "the one this node starts from" : `${state} with ${hash}`;
    throw new WriterError(`slot ${slot} is ${found} now, no longer being written with ${own}; install again`);
  }

  #unheld(leaf: number, of = 1): WriterError {
    const { name } = this.#install.device;
    const others = of > 1 ? `, and ${of - 1} others` : "";
    return new WriterError(
      `${name}: leaf ${leaf} (byte ${leaf * LEAF_BYTES})${others} reads back otherwise than it was written; install again, and where it happens again replace the card`,
    );
  }

  /** Of what an earlier run believed to have written, that which is there. */
  async #recall(done: Uint8Array): Promise<void> {
    const hinted = (leaf: number) => ((done[leaf >> 3] ?? 0) & (1 << (leaf & 7))) !== 0;
    const told = { read: (bytes: number) => this.#report("checking", bytes) };
    for await (const { leaf, isRight } of this.#medium.judged(hinted, this.#install.signal, told))
      if (isRight) {
        this.#taken.add(leaf);
        this.#written.add(leaf);
      }
  }

  /** All that the kernel has is on the medium, and is remembered. */
  async #checkpoint(): Promise<void> {
    await this.#expectOurs();
    await this.#runs.settle();
    await this.#install.device.flush();
    await this.#save();
    this.#sinceCheckpoint = 0;
    failpoint("writer.checkpoint", ++this.#checkpoints);
  }

  /** A data folder that takes nothing any more costs the resuming, not the install. */
  async #save(): Promise<void> {
    const { slot, release, progress } = this.#install;
    const { infohash, piecesRoot, size } = release;
    const root = Buffer.from(piecesRoot).toString("hex");
    await progress.save({ slot, infohash, root, size, done: this.#written.bytes }).then(
      () => {
        this.#unsaved = undefined;
      },
      (cause) => {
        this.#unsaved = cause;
      },
    );
  }

  #isMine({ slot, infohash, root, size }: Installing): boolean {
    const { slot: own, release } = this.#install;
    const isSame = infohash === release.infohash && root === Buffer.from(release.piecesRoot).toString("hex");
    return slot === own && isSame && size === release.size;
  }

  #takenBytes(): number {
    return Math.min(this.#taken.count * LEAF_BYTES, this.size);
  }

  #missing(): number {
    for (let leaf = 0; leaf < this.count; leaf++) if (this.needs(leaf)) return leaf;
    return this.count;
  }

  #report(phase: Step["phase"], bytes: number): void {
    this.#install.report?.({ phase, bytes, of: this.size, from: this.from });
  }

  /** One after the other, whoever asks. */
  #inTurn<T>(act: () => Promise<T>): Promise<T> {
    const turn = this.#turn.then(act);
    this.#turn = turn.catch(() => undefined);
    return turn;
  }
}
