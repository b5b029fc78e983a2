/** Whether a release may be installed into a slot of this node now, and what the record will say of it. Touches nothing. */
import type { BlockDevice } from "../hal/ports.ts";
import type { Release } from "./content.ts";
import { otherSlot, type SlotName } from "./layout.ts";
import type { BootRecord } from "./record.ts";
import { fits, isInTime } from "./release.ts";
import { begin, type SlotContent, SlotRefusal } from "./slots.ts";

/** Bytes that a medium takes or gives at once, whatever its own sectors. */
export const BLOCK = 4096;

/** Bytes of a payload on the disk: the last block is filled up with zeros. */
export const onDisk = (size: number) => Math.ceil(size / BLOCK) * BLOCK;

/** The content hash as a record keeps it: its first 16 bytes, hex. */
export const hashPrefix = (root: Uint8Array) => Buffer.from(root).toString("hex", 0, 16);

/** What is known of the node a release would be installed on. */
export interface Target {
  slot: SlotName;
  /** The slot this system runs from; undefined where it runs from neither. */
  current: SlotName | undefined;
  record: BootRecord;
  /** The slot itself, from its first byte to its last. */
  device: Pick<BlockDevice, "name" | "bytes">;
  /** `compatible` of its device tree, the most exact first. */
  compatible: readonly string[];
  /** Unix seconds; undefined while the clock is not synchronised. */
  now: number | undefined;
  /** The latest time that is certainly past, Unix seconds. */
  atLeast: number;
  /** Why the switch could not start a slot with this content. */
  refuses?: ((content: SlotContent) => string | undefined) | undefined;
}

/** Throws `SlotRefusal` or `ReleaseError` with the reason and the way out, unless the release may be installed there now. */
export function admit(
  release: Release,
  { slot, current, record, device, compatible, now, atLeast, refuses }: Target,
): void {
  if (slot === current)
    throw new SlotRefusal(
      `slot ${slot} is the one this system runs from; it is never written: install into slot ${otherSlot(slot)}`,
    );
  begin(record, slot, hashPrefix(release.piecesRoot));
  const running = record.slots[record.primary].version;
  fits(release, { now, atLeast, boards: compatible, floor: record.floor, running });
  isInTime(release, { now, atLeast });
  const { size } = release;
  if (!Number.isSafeInteger(size) || size <= 0)
    throw new SlotRefusal(`its payload has ${size} bytes: there is nothing to install`);
  if (onDisk(size) > device.bytes)
    throw new SlotRefusal(
      `it needs ${onDisk(size)} bytes; ${device.name} has ${device.bytes}, ${onDisk(size) - device.bytes} too few`,
    );
  const why = refuses?.(contentOf(release, compatible));
  if (why !== undefined) throw new SlotRefusal(`slot ${slot} could never start it: ${why}`);
}

/** What the record says of a slot that holds this release on such a node. */
export function contentOf(release: Release, compatible: readonly string[]): SlotContent {
  const { version, piecesRoot, size, boot } = release;
  const trees = new Map(Object.entries(boot.deviceTrees));
  const name = compatible.find((one) => trees.has(one));
  const deviceTree = name === undefined ? undefined : trees.get(name);
  return {
    version,
    hash: hashPrefix(piecesRoot),
    payloadBytes: size,
    kernel: boot.kernel,
    initramfs: boot.initramfs,
    ...(deviceTree ? { deviceTree } : {}),
    ...(boot.fat ? { fat: boot.fat } : {}),
  };
}
