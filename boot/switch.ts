/** What decides which slot a node starts from, behind one port: `uboot/switch.ts` and `tryboot/switch.ts` are what there is. */
import type { SlotName } from "./layout.ts";
import type { BootRecord, Reason } from "./record.ts";
import type { Copies } from "./records.ts";
import type { SlotContent } from "./slots.ts";

export const SWITCHES = ["uboot", "tryboot"] as const;
export type SwitchKind = (typeof SWITCHES)[number];

/** A change of a slot's state; see `slots.ts` for when each is refused. */
export type SlotChange =
  | { to: "writing"; hash: string }
  | { to: "staged"; content: SlotContent }
  | { to: "failed"; reason: Reason };

/** Every method reads the medium anew; every change is on the medium when it resolves, whole or not at all. */
export interface BootSwitch {
  readonly kind: SwitchKind;
  /** The slot this system runs from, by its mounted root; undefined where it runs from neither (rescue, a machine at a desk). */
  readonly current: SlotName | undefined;
  /** The four places as they are. */
  records(): Promise<Copies>;
  /** The record that counts. Throws `RecordError` where none does. */
  read(): Promise<BootRecord>;
  /** Why it could not start a slot that holds this, with the numbers; undefined where it could. Reads nothing. */
  refuses?(content: SlotContent): string | undefined;
  /** What belongs to the slot outside of its partition and is not what its payload says; undefined where nothing is. */
  compare?(slot: SlotName, signal: AbortSignal): Promise<string | undefined>;
  /** Changes what a slot is. */
  setState(slot: SlotName, change: SlotChange): Promise<BootRecord>;
  /**
   * The slot the node starts from. One on trial becomes good by it, with the floor raised to `floor`; otherwise it must be good
   * already and the one that was primary has failed for `reason`.
   */
  setPrimary(slot: SlotName, why: { floor: bigint } | { reason: Reason }): Promise<BootRecord>;
  /** The next start tries the slot, `tries` times at most. Returns the record with the trial's id. */
  armTrial(slot: SlotName, tries: number): Promise<BootRecord>;
  /** Brings to an end what a power cut left half done. Called once at every start of the agent. */
  settle(): Promise<BootRecord>;
}
