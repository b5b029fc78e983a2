/**
 * U-Boot chooses the slot, by the records alone: `boot.cmd` says how. It counts the tries of a trial, gives up a slot whose files
 * are damaged, and writes records itself; whoever reads one here may find that it has.
 */
import { randomInt } from "node:crypto";
import type { BlockDevice } from "../../hal/ports.ts";
import type { SlotName } from "../layout.ts";
import { type BootRecord, type Reason, timeAfter } from "../record.ts";
import { type Copies, changeRecord, RecordError, readRecords } from "../records.ts";
import { arm, begin, confirm, fail, rollBack, type SlotContent, SlotRefusal, stage } from "../slots.ts";
import type { BootSwitch, SlotChange } from "../switch.ts";

const MiB = 1024 * 1024;
/** The longest files that `boot.cmd` loads, bytes: it takes longer ones for damaged. They fit a board of 512 MiB. */
export const LOADS = { kernel: 80 * MiB, initramfs: 96 * MiB, deviceTree: MiB } as const;
/** The most a kernel may take once it runs (`image_size` of its header), bytes: behind that lies its initramfs. */
export const KERNEL_ROOM = 94 * MiB;

/** What the switch works with. */
export interface UBootParts {
  disk: BlockDevice;
  /** The slot whose root is mounted, as `running.ts` finds it. */
  current: SlotName | undefined;
  /** Unix seconds; 0 where nobody knows the time. */
  now?: () => number;
  /** Makes the id of a trial, which no other trial of this node may have. */
  trialId?: () => number;
}

/** See the head of this file. */
export class UBootSwitch implements BootSwitch {
  readonly kind = "uboot";
  readonly current: SlotName | undefined;
  readonly #disk: BlockDevice;
  readonly #now: () => number;
  readonly #trialId: () => number;
  #turn: Promise<unknown> = Promise.resolve();

  constructor({ disk, current, now, trialId }: UBootParts) {
    this.#disk = disk;
    this.current = current;
    this.#now = now ?? (() => Math.floor(Date.now() / 1000));
    this.#trialId = trialId ?? (() => randomInt(1, 0xffff_ffff));
  }

  records(): Promise<Copies> {
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

  refuses(content: SlotContent): string | undefined {
    if (content.fat)
      return "it is a release for cards on which the firmware chooses the slot (tryboot), and this one is U-Boot's";
    for (const [name, most] of Object.entries(LOADS)) {
      const bytes = content[name as keyof typeof LOADS]?.bytes ?? 0;
      if (bytes > most) return `its ${name} has ${bytes} bytes, U-Boot is made to load ${most} at most`;
    }
    return undefined;
  }

  async setState(slot: SlotName, change: SlotChange): Promise<BootRecord> {
    // It may be another than the primary: a trial that has failed, or U-Boot's way out when no record could be written
    if (change.to === "writing" && slot === this.current)
      throw new SlotRefusal(`this system runs from slot ${slot}; it is never written`);
    const why = change.to === "staged" ? this.refuses(change.content) : undefined;
    if (why !== undefined) throw new SlotRefusal(`slot ${slot}: ${why}`);
    return this.#change((record) => {
      if (change.to === "writing") return begin(record, slot, change.hash);
      if (change.to === "staged") return stage(record, slot, change.content);
      return fail(record, slot, change.reason);
    });
  }

  async setPrimary(slot: SlotName, why: { floor: bigint } | { reason: Reason }): Promise<BootRecord> {
    if ("floor" in why && slot !== this.current)
      throw new SlotRefusal(
        `this system runs from ${this.current === undefined ? "no slot" : `slot ${this.current}`}: only slot ${slot} itself can show that it is well`,
      );
    return this.#change((record) => {
      if ("floor" in why) return confirm(record, slot, why.floor);
      if (slot === record.primary) throw new SlotRefusal(`the node starts from slot ${slot} already`);
      return rollBack(record, why.reason);
    });
  }

  armTrial(slot: SlotName, tries: number): Promise<BootRecord> {
    return this.#change((record) => arm(record, slot, { id: this.#trialId(), tries }));
  }

  /** Every change is one sector, so nothing is ever half done: the record as it is. */
  settle(): Promise<BootRecord> {
    return this.read();
  }

  /** One after the other, on disks too that know no `exclusively`. */
  #change(change: (record: BootRecord) => BootRecord): Promise<BootRecord> {
    const turn = this.#turn.then(() =>
      changeRecord(this.#disk, (record) => ({ ...change(record), time: timeAfter(record, this.#now()) })),
    );
    this.#turn = turn.catch(() => undefined);
    return turn;
  }
}
