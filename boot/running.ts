/** Which slot runs: by where the root is mounted from, which nobody can have got wrong. The kernel's command line is not asked. */
import type { MountedRoot } from "../hal/ports.ts";
import { type Card, SLOTS, type SlotName } from "./layout.ts";

/** The slot whose partition the root is on; undefined for anything else: the rescue, another disk, a machine at a desk. */
export function runningSlot(root: MountedRoot | undefined, disk: string, card: Card): SlotName | undefined {
  if (root?.disk !== disk) return undefined;
  return SLOTS.find((slot) => card.slots[slot].offset === root.offset);
}
