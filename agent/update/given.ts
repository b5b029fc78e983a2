/**
 * What this node gives to others: the releases that its slots hold whole.
 *
 * Invariants
 * - The slot that runs is given from a descriptor that the child can only read; it is never written.
 * - The other slot is read here, and what was read is given only if nobody has begun to install there meanwhile, whoever it is.
 */
import { closeSync, existsSync, openSync, statSync } from "node:fs";
import { join } from "node:path";
import { BLOCK, hashPrefix, onDisk } from "../../boot/admit.ts";
import { otherSlot, SLOTS, type SlotName } from "../../boot/layout.ts";
import type { BootRecord, SlotState } from "../../boot/record.ts";
import { openSide } from "../../boot/side.ts";
import { parseUpdate, readStatement, statementToSign } from "../../boot/updatefile.ts";
import type { BlockDevice, Hal } from "../../hal/ports.ts";
import type { OpenCard } from "../boot/card.ts";
import { holderOf, holdOf } from "../hold.ts";
import type { Log } from "../log.ts";
import { reasonOf } from "../record/lines.ts";
import { readUpdate } from "../release/files.ts";
import { releasesIn } from "../release/kept.ts";
import type { Share } from "./share.ts";
import type { Swarm } from "./swarm.ts";
import { sliceOf, stretch } from "./target.ts";

/** The child's first file behind its three streams: the slot that runs. */
const RUNNING = 3;
const WHOLE: readonly SlotState[] = ["good", "staged", "trying"];

/** What it takes to give. */
export interface GivenOptions {
  card: OpenCard;
  dataDir: string;
  hal: Pick<Hal, "machine" | "openDisk">;
  log: Log;
}

/** One slot that is given. */
interface Offered {
  share: Share;
  side: BlockDevice;
  hash: string;
}

/** What the slots give. Made before its swarm, which has to have `files`. */
export class Given implements AsyncDisposable {
  readonly #options: GivenOptions;
  readonly #offered = new Map<SlotName, Offered>();
  /** Where the running slot is, in the child's file. */
  readonly #slice: { path: string; at: number } | undefined;
  readonly files: readonly number[];

  constructor(options: GivenOptions) {
    const { card, hal } = options;
    this.#options = options;
    const { current } = card.boot;
    this.#slice = current && sliceOf(hal.machine, card.disk, card.slots[current]);
    this.files = this.#slice ? [openSync(this.#slice.path, "r")] : [];
  }

  /** Shares of slots, by slot. */
  get shares(): { slot: SlotName; share: Share }[] {
    return [...this.#offered].map(([slot, { share }]) => ({ slot, share }));
  }

  /** Gives what the slots hold now. `except`: infohashes that are not to be given, withdrawn ones or those under way. */
  async look(swarm: Swarm, except: readonly string[]): Promise<void> {
    // Before the record is read: whoever begins to install after this is noticed
    const stamps = { a: this.#stamp("a"), b: this.#stamp("b") };
    const record = await this.#options.card.boot.read();
    for (const slot of SLOTS) {
      const { state, hash } = record.slots[slot];
      const offered = this.#offered.get(slot);
      const isWhole = WHOLE.includes(state);
      if (offered && (!isWhole || offered.hash !== hash || except.includes(offered.share.infohash)))
        await this.leave(swarm, slot);
      if (!isWhole || this.#offered.has(slot)) continue;
      await this.#offer(swarm, slot, { record, except, before: stamps[slot] }).catch((error) =>
        this.#options.log("debug", "update.not-given", { slot, why: reasonOf(error) }),
      );
    }
  }

  /** Neither asked for nor given any more: it is going to be written. */
  async leave(swarm: Swarm, slot: SlotName): Promise<void> {
    const offered = this.#offered.get(slot);
    if (!offered) return;
    this.#offered.delete(slot);
    swarm.leave(offered.share);
    await offered.side.close();
  }

  /** The slot that does not run, before it is written. */
  async leaveOther(swarm: Swarm): Promise<void> {
    const { current } = this.#options.card.boot;
    if (current) await this.leave(swarm, otherSlot(current));
  }

  /** Nothing is given. */
  async leaveAll(swarm: Swarm): Promise<void> {
    for (const slot of SLOTS) await this.leave(swarm, slot);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const { side } of this.#offered.values()) await side.close();
    this.#offered.clear();
    for (const file of this.files) closeSync(file);
  }

  async #offer(
    swarm: Swarm,
    slot: SlotName,
    { record, except, before }: { record: BootRecord; except: readonly string[]; before: string },
  ): Promise<void> {
    const { dataDir, hal, card } = this.#options;
    const path = join(releasesIn(dataDir), slot);
    // As after a wipe of the data, or as the image was made
    if (!existsSync(`${path}.fruit`)) return;
    const update = await readUpdate(`${path}.fruit`);
    const file = parseUpdate(update);
    const { info, infohash } = file;
    const { hash } = record.slots[slot];
    const isTaken = this.shares.some(({ share }) => share.infohash === infohash);
    if (hashPrefix(info.piecesRoot) !== hash || except.includes(infohash) || isTaken) return;
    const isRunning = slot === card.boot.current;
    if (!isRunning && holderOf(join(dataDir, "boot"), "install") !== undefined) return;
    const stated = readStatement(statementToSign(file)).side;
    const side = await hal.openDisk(`${path}.side`, "read");
    try {
      await openSide(side, { size: info.length, piecesRoot: info.piecesRoot, side: stated });
      const share = swarm.share(infohash);
      const read = isRunning ? this.#reader(slot) : this.#guarded(slot, before);
      const holding = { size: info.length, has: () => true, put: keepsNothing, read };
      const whole = isRunning && this.#slice ? { file: { number: RUNNING, at: this.#slice.at } } : {};
      share.begin(update, holding, () => undefined, whole);
      share.offer({ bytes: stated.bytes, read: (at, length) => side.read(at, length) });
      this.#offered.set(slot, { share, side, hash });
    } catch (cause) {
      await side.close();
      throw cause;
    }
  }

  /** Reads past the cache: an installer of its own has written through another device. */
  #reader(slot: SlotName): (at: number, length: number) => Promise<Uint8Array> {
    const { card } = this.#options;
    const device = stretch(card.disk, card.slots[slot]);
    return async (at, length) => {
      const from = Math.floor(at / BLOCK) * BLOCK;
      const bytes = await device.readMedium(from, onDisk(at + length - from));
      return bytes.subarray(at - from, at - from + length);
    };
  }

  #guarded(slot: SlotName, before: string): (at: number, length: number) => Promise<Uint8Array> {
    const read = this.#reader(slot);
    return async (at, length) => {
      const bytes = await read(at, length);
      if (this.#stamp(slot) === before) return bytes;
      throw new Error(`slot ${slot} is being written, or was`);
    };
  }

  /** Another one: somebody installs there, or has. */
  #stamp(slot: SlotName): string {
    const { dataDir } = this.#options;
    const { mtimeMs, ino } =
      statSync(join(releasesIn(dataDir), `${slot}.fruit`), { throwIfNoEntry: false }) ?? {};
    return `${holdOf(join(dataDir, "boot"), "install")} ${ino} ${mtimeMs}`;
  }
}

const keepsNothing = () => Promise.reject(new Error("all of it is there"));
