/**
 * Where everything stands on a card whose firmware chooses the slot. Proven against a model of the firmware only.
 *
 * ```
 * 0        partition table (MBR), never rewritten after the first boot
 * 4–16 MiB four records, as on every card of ours (`../layout.ts`)
 * 20 MiB   p1  FAT32, 16 MiB or more, written to by the first start alone: bootcode.bin, rescue, autoboot.txt
 *          p2  FAT32, boot set of slot a     p3  FAT32, boot set of slot b
 *          p4  extended: p5 root of slot a   p6 root of slot b   p7 data (ext4)
 * ```
 *
 * The firmware's partitions are primary and of type 0x0c: the ROM of a Pi 3 knows no other FAT (raspberrypi/firmware#1711), and
 * whether it looks into an extended one depends on the model (raspberrypi/firmware#1887). Only roots and data stand there.
 */
import type { BlockDevice } from "../../hal/ports.ts";
import {
  FAT32_LBA,
  FIRST_PARTITION,
  ForeignCard,
  LINUX,
  type Partition,
  readPartitions,
  SECTOR,
  SLOTS,
  type SlotName,
} from "../layout.ts";

/** What the disk is for, by the number of the partition. */
export const TRYBOOT_PARTITIONS = {
  selector: 1,
  boot: { a: 2, b: 3 },
  extended: 4,
  root: { a: 5, b: 6 },
  data: 7,
} as const;

/** MBR type of an extended partition with LBA; 0x05 is another to some firmware (raspberrypi/firmware#1887). */
export const EXTENDED_LBA = 0x0f;
/** The smallest first partition that all boards were seen to start from with room for a rescue. */
export const SELECTOR_LEAST = 16 * 1024 * 1024;
/** Logical partitions that are looked for; a chain that goes on is not ours. */
const LOGICAL_MOST = 8;

/** One slot: what the firmware reads, and what the kernel mounts. */
export interface TrybootSlot {
  boot: Partition;
  root: Partition;
}

/** A disk laid out as above. */
export interface TrybootCard {
  selector: Partition;
  slots: Record<SlotName, TrybootSlot>;
  data: Partition;
}

/** The slot whose boot set is in partition `number`, as `autoboot.txt` counts them. */
export function slotOfBoot(number: number | undefined): SlotName | undefined {
  return SLOTS.find((slot) => TRYBOOT_PARTITIONS.boot[slot] === number);
}

/**
 * Every partition of a disk, the logical ones from 5 on. Throws `ForeignCard` where there is no partition table, and where an
 * extended partition is damaged or goes round in a circle.
 * Source: the classical EBR; its first entry counts from itself, its second, the link, from the start of the extended partition.
 */
export async function readAllPartitions(disk: BlockDevice): Promise<Partition[]> {
  const primary = readPartitions(await disk.read(0, SECTOR));
  if (!primary) throw new ForeignCard(`${disk.name} has no partition table`);
  const extended = primary.find(({ type }) => type === EXTENDED_LBA);
  return extended ? [...primary, ...(await readLogical(disk, extended))] : primary;
}

/** The card as above. Throws `ForeignCard` with what is otherwise about it. */
export async function readTrybootCard(disk: BlockDevice): Promise<TrybootCard> {
  const found = await readAllPartitions(disk);
  const need = (number: number, type: number): Partition => {
    const partition = found.find((one) => one.number === number);
    if (!partition)
      throw new ForeignCard(`${disk.name} has no partition ${number}; a tryboot card has seven`);
    if (partition.type !== type)
      throw new ForeignCard(
        `${disk.name}: partition ${number} has type ${hex(partition.type)}, on a tryboot card ${hex(type)}`,
      );
    if (partition.offset + partition.bytes > disk.bytes)
      throw new ForeignCard(
        `${disk.name}: partition ${number} ends at byte ${partition.offset + partition.bytes}, the disk at ${disk.bytes}; was the image copied to a smaller card?`,
      );
    return partition;
  };
  const { selector, boot, root, data, extended } = TRYBOOT_PARTITIONS;
  need(extended, EXTENDED_LBA);
  const card: TrybootCard = {
    selector: need(selector, FAT32_LBA),
    slots: {
      a: { boot: need(boot.a, FAT32_LBA), root: need(root.a, LINUX) },
      b: { boot: need(boot.b, FAT32_LBA), root: need(root.b, LINUX) },
    },
    data: need(data, LINUX),
  };
  if (card.selector.offset < FIRST_PARTITION)
    throw new ForeignCard(
      `${disk.name}: partition 1 starts at byte ${card.selector.offset}, where the records of a tryboot card are`,
    );
  if (card.selector.bytes < SELECTOR_LEAST)
    throw new ForeignCard(
      `${disk.name}: partition 1 has ${card.selector.bytes} bytes, fewer than ${SELECTOR_LEAST}`,
    );
  refuseOverlap(disk.name, found);
  return card;
}

async function readLogical(disk: BlockDevice, extended: Partition): Promise<Partition[]> {
  const logical: Partition[] = [];
  for (let at: number | undefined = extended.offset; at !== undefined; ) {
    const { own, next } = await readLink(disk, extended, at);
    if (own) logical.push({ ...own, number: 5 + logical.length });
    if (logical.length > LOGICAL_MOST)
      throw new ForeignCard(`${disk.name}: more than ${LOGICAL_MOST} logical partitions`);
    at = next;
  }
  return logical;
}

/** One table of the chain: its partition, and where the next table is. */
async function readLink(disk: BlockDevice, extended: Partition, at: number) {
  const where = `${disk.name}: the extended partition's table at byte ${at}`;
  const end = Math.min(extended.offset + extended.bytes, disk.bytes);
  if (at + SECTOR > end) throw new ForeignCard(`${where} is outside of it`);
  const entries = readPartitions(await disk.read(at, SECTOR));
  if (!entries) throw new ForeignCard(`${where} is damaged`);
  const [first, link, ...more] = [1, 2, 3, 4].map((row) => entries.find(({ number }) => number === row));
  if (more.some((entry) => entry) || (link && !EXTENDED_TYPES.includes(link.type)))
    throw new ForeignCard(`${where} holds more than a partition and a link`);
  const own = first && { ...first, offset: at + first.offset };
  if (own && (first.offset === 0 || own.offset + own.bytes > end))
    throw new ForeignCard(`${where} names a partition that is outside of it`);
  const next = link && extended.offset + link.offset;
  // Ever onward: then it ends, whatever is written there
  if (next !== undefined && next <= at) throw new ForeignCard(`${where} leads back to byte ${next}`);
  return { own, next };
}

function refuseOverlap(name: string, found: readonly Partition[]): void {
  const isPrimary = ({ number }: Partition) => number < 5;
  for (const group of [found.filter(isPrimary), found.filter((one) => !isPrimary(one))]) {
    const inOrder = group.sort((a, b) => a.offset - b.offset);
    for (const [index, one] of inOrder.entries()) {
      const next = inOrder[index + 1];
      if (next && one.offset + one.bytes > next.offset)
        throw new ForeignCard(`${name}: partitions ${one.number} and ${next.number} overlap`);
    }
  }
}

/** What a link may have as its type; Linux writes 0x05. */
const EXTENDED_TYPES = [0x05, EXTENDED_LBA];

const hex = (type: number) => `0x${type.toString(16).padStart(2, "0")}`;
