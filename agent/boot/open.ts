/** Opens the card that a node runs from, whichever switch it is laid out for. */
import { type Card, ForeignCard, readCard, readPartitions, SECTOR } from "../../boot/layout.ts";
import { readRecords } from "../../boot/records.ts";
import { runningSlot } from "../../boot/running.ts";
import {
  EXTENDED_LBA,
  readTrybootCard,
  TRYBOOT_PARTITIONS,
  type TrybootCard,
} from "../../boot/tryboot/layout.ts";
import { TrybootSwitch } from "../../boot/tryboot/switch.ts";
import { UBootSwitch } from "../../boot/uboot/switch.ts";
import type { BlockDevice, Hal } from "../../hal/ports.ts";
import type { OpenCard } from "./card.ts";

/** A card that is ours, open; whoever opened it closes its disk. */
export type NodeCard = OpenCard;

/**
 * Opens the disk that is named, or else the one that the root is mounted from. Undefined where there is neither; throws `HalError`
 * for a disk that cannot be opened, `ForeignCard` for one that is laid out otherwise.
 */
export async function openNodeCard(
  hal: Pick<Hal, "machine" | "openDisk">,
  named: string | undefined,
  how: "read" | "write",
): Promise<NodeCard | undefined> {
  const path = named ?? hal.machine.root()?.disk;
  if (path === undefined) return undefined;
  const disk = await hal.openDisk(path, how);
  try {
    return await readNodeCard(hal, disk);
  } catch (error) {
    await disk.close();
    throw error;
  }
}

async function readNodeCard({ machine }: Pick<Hal, "machine">, disk: BlockDevice): Promise<NodeCard> {
  const now = () => (machine.clock().synced ? Math.floor(Date.now() / 1000) : 0);
  const found = await readEither(disk);
  if ("selector" in found) {
    const slots = { a: found.slots.a.root, b: found.slots.b.root };
    const current = runningSlot(machine.root(), disk.name, { ...found, boot: found.selector, slots });
    return { disk, slots, boot: new TrybootSwitch({ disk, current, machine, now }, found) };
  }
  const current = runningSlot(machine.root(), disk.name, found);
  return { disk, slots: found.slots, boot: new UBootSwitch({ disk, current, now }) };
}

/** What U-Boot's layout is not may be that of tryboot; what is neither is told of the one that it was meant to be. */
async function readEither(disk: BlockDevice): Promise<Card | TrybootCard> {
  try {
    return await readCard(disk);
  } catch (error) {
    if (!(error instanceof ForeignCard)) throw error;
    return await readTrybootCard(disk).catch(async (own: Error) => {
      throw (await wasTryboot(disk)) ? own : error;
    });
  }
}

/** Only these cards of ours have an extended partition. */
async function wasTryboot(disk: BlockDevice): Promise<boolean> {
  const partitions = readPartitions(await disk.read(0, SECTOR)) ?? [];
  const { extended } = TRYBOOT_PARTITIONS;
  const hasOne = partitions.some(({ number, type }) => number === extended && type === EXTENDED_LBA);
  return hasOne && (await readRecords(disk)).newest !== undefined;
}
