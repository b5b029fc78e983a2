/** What the slots of a node hold, where a new release may find parts of itself. */
import { join } from "node:path";
import type { ChunkIndex } from "../../boot/chunks.ts";
import { type Held, indexOf } from "../../boot/delta.ts";
import { otherSlot, type SlotName } from "../../boot/layout.ts";
import type { Pace } from "../../boot/readback.ts";
import { uncheckedIndex } from "../../boot/side.ts";
import { type BlockDevice, type Hal, HalError } from "../../hal/ports.ts";
import { CARD_MS, type OpenCard } from "../boot/card.ts";
import { releasesIn } from "../release/kept.ts";
import { stretch } from "./target.ts";

/** Half of the time is for others. */
const PACE: Pace = { bytes: 1024 * 1024, limitMs: CARD_MS, restMs: (took) => took };

/** A slot, and what is kept of it. */
interface Kept {
  device: BlockDevice;
  /** Bytes of the payload that the record has in it; 0 where it has none. */
  payloadBytes: number;
  index: ChunkIndex | undefined;
}

/** Looks at what is kept of the slots, before an install replaces it. The one that is not written comes first: it stays as it is. */
export async function keptOf(
  { hal, card, dataDir }: { hal: Pick<Hal, "openDisk">; card: OpenCard; dataDir: string },
  target: { slot: SlotName; device: BlockDevice },
): Promise<Kept[]> {
  const { slots } = await card.boot.read();
  const other = otherSlot(target.slot);
  const devices = [
    [other, stretch(card.disk, card.slots[other])],
    [target.slot, target.device],
  ] as const;
  return Promise.all(
    devices.map(async ([slot, device]) => {
      const { payloadBytes } = slots[slot];
      const path = join(releasesIn(dataDir), `${slot}.side`);
      return { device, payloadBytes, index: await keptIndex(hal, path, device.bytes) };
    }),
  );
}

/** The chunks of the slots that have an index; with `look` also of those that have none, each of which is read once, telling how far. */
export async function heldIn(
  kept: readonly Kept[],
  signal: AbortSignal,
  look?: (bytes: number, of: number) => void,
): Promise<Held[]> {
  const held: Held[] = [];
  for (const { device, payloadBytes, index } of kept) {
    if (index) held.push({ device, index });
    else if (look && payloadBytes > 0 && payloadBytes <= device.bytes) {
      const told = (bytes: number) => look(bytes, payloadBytes);
      const found = await indexOf(device, payloadBytes, PACE, signal, told).catch((cause) => {
        // A slot that cannot be read has nothing to copy
        if (cause instanceof HalError) return undefined;
        throw cause;
      });
      if (found) held.push({ device, index: found });
    }
  }
  return held;
}

/** Undefined where there is none that is of use: the install goes without. */
async function keptIndex(
  hal: Pick<Hal, "openDisk">,
  path: string,
  most: number,
): Promise<ChunkIndex | undefined> {
  try {
    const file = await hal.openDisk(path, "read");
    try {
      return await uncheckedIndex(file, most);
    } finally {
      await file.close();
    }
  } catch {
    return undefined;
  }
}
