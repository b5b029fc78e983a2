/**
 * The firmware chooses the slot: by the one sector of `autoboot.txt`, and once, on trial, by a flag that it keeps until the next
 * start. **Proven against a model of the firmware only**: until `fruit boot probe` and a trial have shown it on a board, it is not
 * known that the board's firmware does what its documentation says.
 *
 * Invariants
 * - The record is the truth; the sector follows it. A cut between the two leaves the sector one step behind, and `settle` mends it.
 * - The firmware writes nothing: what it started is told by who runs (`markStarted`), and a try whose start nobody marked is spent
 *   but proves nothing against the slot.
 * - The flag is read back, and this proves only that it was stored: of a Zero 2 W it is reported that the firmware stores it,
 *   clears it and starts the ordinary slot. Such a trial ends as `switch-failed`, and the node runs what it ran.
 *
 * Order of an install's end: boot set but for its first sector → that sector → record *staged*, each read back.
 * Order of a trial and its end: record *armed* → flag → restart → record *started* → record *committing* → sector → record *good*.
 */
import { randomInt } from "node:crypto";
import type { BlockDevice, Machine } from "../../hal/ports.ts";
import { otherSlot, SECTOR, SLOTS, type SlotName } from "../layout.ts";
import { type BootRecord, type Reason, timeAfter } from "../record.ts";
import { changeRecord, RecordError, readRecords } from "../records.ts";
import { arm, begin, confirm, fail, rollBack, type SlotContent, SlotRefusal, stage } from "../slots.ts";
import type { BootSwitch, SlotChange } from "../switch.ts";
import { makeAutoboot, primaryOf } from "./autoboot.ts";
import { bootSetProblem, fillBootSet } from "./bootset.ts";
import { readTrybootCard, type TrybootCard } from "./layout.ts";
import { type AutobootSector, checkBootSet, findAutoboot, writeAutoboot } from "./sector.ts";

/** This board, as it is now, cannot try a slot by the firmware's flag. */
export class CannotSwitch extends Error {
  override name = "CannotSwitch";
}

/** Bit of the firmware's flags: start the other slot, once (raspberrypi/linux:drivers/firmware/raspberrypi.c). */
export const TRYBOOT_FLAG = 1;

/** What a switch works with. */
export interface TrybootParts {
  disk: BlockDevice;
  /** The slot whose root is mounted. */
  current: SlotName | undefined;
  machine: Pick<Machine, "rebootFlags">;
  /** Unix seconds. */
  now?: () => number;
}

/** Opens the switch of a card. Throws `ForeignCard` where it is laid out otherwise. */
export async function openTryboot(parts: TrybootParts): Promise<TrybootSwitch> {
  return new TrybootSwitch(parts, await readTrybootCard(parts.disk));
}

/** See the head of this file. */
export class TrybootSwitch implements BootSwitch {
  readonly kind = "tryboot";
  readonly current: SlotName | undefined;
  readonly card: TrybootCard;
  readonly #disk: BlockDevice;
  readonly #machine: TrybootParts["machine"];
  readonly #now: () => number;

  constructor({ disk, current, machine, now }: TrybootParts, card: TrybootCard) {
    this.#disk = disk;
    this.current = current;
    this.card = card;
    this.#machine = machine;
    this.#now = now ?? (() => Math.floor(Date.now() / 1000));
  }

  records() {
    return readRecords(this.#disk);
  }

  async read(): Promise<BootRecord> {
    const { newest } = await this.records();
    if (!newest)
      throw new RecordError(
        `${this.#disk.name} holds no valid record; 'fruit boot records' shows its places`,
      );
    return newest.record;
  }

  refuses({ fat }: SlotContent): string | undefined {
    if (!fat) return "it is a release for U-Boot, and on this card the firmware chooses the slot (tryboot)";
    // Either slot's: both have the same size, and which one is meant is not asked
    const most = Math.min(...SLOTS.map((slot) => this.card.slots[slot].boot.bytes));
    return fat.bytes > most
      ? `its boot set has ${fat.bytes} bytes, the boot partition ${most}, ${fat.bytes - most} too few`
      : undefined;
  }

  compare(slot: SlotName, signal: AbortSignal): Promise<string | undefined> {
    return bootSetProblem(this.#disk, this.card.slots[slot], slot, signal);
  }

  async setState(slot: SlotName, change: SlotChange): Promise<BootRecord> {
    if (change.to === "writing") return this.#begin(slot, change.hash);
    if (change.to === "staged") return this.#stage(slot, change.content);
    const record = await this.#change((before) => fail(before, slot, change.reason));
    this.#clearFlag();
    return record;
  }

  async setPrimary(slot: SlotName, why: { floor: bigint } | { reason: Reason }): Promise<BootRecord> {
    if ("floor" in why) return this.#commit(slot, why.floor);
    const record = await this.#change((before) => {
      if (slot === before.primary) throw new SlotRefusal(`the node starts from slot ${slot} already`);
      return rollBack(before, why.reason);
    });
    this.#clearFlag();
    await this.#follow(record.primary);
    return record;
  }

  async armTrial(slot: SlotName, tries: number): Promise<BootRecord> {
    const before = await this.read();
    const trial = { id: randomInt(1, 0xffff_ffff), tries };
    arm(before, slot, trial);
    const { signs } = await this.#follow(before.primary);
    if (signs.length > 0)
      throw new CannotSwitch(`partition 1 is not as it was made, nothing is tried: ${signs.join("; ")}`);
    // The first partition, too: the firmware goes back to it with the flag still in its hand
    for (const partition of [this.card.selector, this.card.slots[slot].boot]) {
      const problem = await checkBootSet(this.#disk, partition);
      if (problem) throw new CannotSwitch(`slot ${slot} is not tried: ${problem}`);
    }
    // Before anything is written: a board that cannot keep the flag must find its records as they were
    this.#setFlag();
    this.#clearFlag();
    const record = await this.#change((again) => arm(again, slot, trial));
    try {
      this.#setFlag();
    } catch (cause) {
      await this.#change((again) => ({ ...withoutTrial(again), slots: before.slots, reason: before.reason }));
      throw cause;
    }
    return record;
  }

  async settle(): Promise<BootRecord> {
    const record = await this.read();
    const settled = record.reason === "committing" && record.trial ? await this.#finish(record) : record;
    await this.#follow(settled.primary);
    return this.#account(settled);
  }

  /** Notes that the slot on trial runs: this try is spent, and it was started. Nothing changes where it was noted before. */
  async markStarted(): Promise<BootRecord> {
    const record = await this.read();
    const { trial } = record;
    if (!trial || record.reason !== "trial-armed" || this.current !== otherSlot(record.primary))
      return record;
    const spent = { ...trial, triesLeft: Math.max(0, trial.triesLeft - 1), started: trial.started + 1 };
    return this.#change((before) => ({ ...before, trial: spent, reason: "trial-started" }));
  }

  /** What the slot held can no longer be started: not by the flag, and not by firmware that walks on to the next partition (PARTITION_WALK). */
  async #begin(slot: SlotName, hash: string): Promise<BootRecord> {
    if (slot === this.current)
      throw new SlotRefusal(`this system runs from slot ${slot}; it is never written`);
    const record = await this.#change((before) => begin(before, slot, hash));
    await this.#disk.write(this.card.slots[slot].boot.offset, new Uint8Array(SECTOR));
    await this.#disk.flush();
    return record;
  }

  /** The boot set first: what the record calls staged can be started. */
  async #stage(slot: SlotName, { fat, ...content }: SlotContent): Promise<BootRecord> {
    if (slot === this.current)
      throw new SlotRefusal(`this system runs from slot ${slot}; it is never written`);
    stage(await this.read(), slot, content);
    await fillBootSet(this.#disk, this.card.slots[slot], slot);
    return this.#change((record) => stage(record, slot, content));
  }

  /** The decision first, then the sector, then that it is done: in between, `settle` brings it to its end. */
  async #commit(slot: SlotName, floor: bigint): Promise<BootRecord> {
    if (slot !== this.current)
      throw new SlotRefusal(
        `this system runs from ${this.current === undefined ? "no slot" : `slot ${this.current}`}: only slot ${slot} itself can show that it is well`,
      );
    const record = await this.#change((before) => {
      const after = confirm(before, slot, floor);
      return { ...before, floor: after.floor, reason: "committing" };
    });
    await this.#follow(slot);
    return this.#change((before) => confirm(before, slot, record.floor));
  }

  /** Ends a commit that a cut interrupted. A sector that cannot be changed leaves the node what it started from. */
  async #finish(record: BootRecord): Promise<BootRecord> {
    const slot = otherSlot(record.primary);
    try {
      await this.#follow(slot);
    } catch (cause) {
      const { bytes } = await findAutoboot(this.#disk, this.card.selector);
      if (primaryOf(bytes) !== record.primary) throw cause;
      return this.#change((before) => fail(before, slot, "switch-failed"));
    }
    return this.#change((before) => confirm(before, slot, record.floor));
  }

  /** Makes the sector what it is for a node that starts from `slot`. */
  async #follow(slot: SlotName): Promise<AutobootSector> {
    const sector = await findAutoboot(this.#disk, this.card.selector);
    const wanted = makeAutoboot(slot);
    if (!Buffer.from(sector.bytes).equals(wanted)) await writeAutoboot(this.#disk, sector.offset, wanted);
    return sector;
  }

  /** What this start says of a trial. */
  async #account(record: BootRecord): Promise<BootRecord> {
    const { trial, primary } = record;
    // What runs from neither slot judges none
    if (this.current === undefined) return record;
    if (!trial || this.current !== primary) {
      // Where the firmware has not cleared it, the next start would be a trial again
      this.#clearFlag();
      return this.markStarted();
    }
    const isWaiting = ((this.#machine.rebootFlags() ?? 0) & TRYBOOT_FLAG) !== 0;
    return isWaiting ? record : this.#tryAgain(record, trial);
  }

  /** The ordinary slot runs with a trial open and the flag gone: a try came to nothing. */
  async #tryAgain(record: BootRecord, trial: NonNullable<BootRecord["trial"]>): Promise<BootRecord> {
    const slot = otherSlot(record.primary);
    // One that was started was counted by the slot itself
    const triesLeft = record.reason === "trial-armed" ? trial.triesLeft - 1 : trial.triesLeft;
    // What nobody saw start proves nothing against the release
    const reason = trial.started === 0 ? "switch-failed" : "tries-spent";
    const giveUp = () => this.#change((before) => fail(before, slot, reason));
    if (triesLeft <= 0) return giveUp();
    const armed = await this.#change((before) => ({
      ...before,
      trial: { ...trial, triesLeft },
      reason: "trial-armed",
    }));
    try {
      this.#setFlag();
    } catch {
      // A board that kept the flag and keeps it no more never starts the slot
      return giveUp();
    }
    return armed;
  }

  #change(change: (record: BootRecord) => BootRecord): Promise<BootRecord> {
    return changeRecord(this.#disk, (record) => ({
      ...change(record),
      time: timeAfter(record, this.#now()),
    }));
  }

  #setFlag(): void {
    const read = this.#machine.rebootFlags(TRYBOOT_FLAG);
    if (read === undefined)
      throw new CannotSwitch(
        "the firmware's mailbox (/dev/vcio) does not take the tryboot flag; is the kernel Raspberry Pi's, and the firmware of 2021 or later?",
      );
    if ((read & TRYBOOT_FLAG) === 0)
      throw new CannotSwitch(
        `the firmware did not keep the tryboot flag: it reads back as 0x${read.toString(16)}`,
      );
  }

  #clearFlag(): void {
    const flags = this.#machine.rebootFlags();
    if (flags !== undefined && (flags & TRYBOOT_FLAG) !== 0) this.#machine.rebootFlags(flags & ~TRYBOOT_FLAG);
  }
}

function withoutTrial(record: BootRecord): BootRecord {
  const { trial, ...rest } = record;
  return rest;
}
