/** Where on the disk the one sector of `autoboot.txt` is, and how it is written over in place. Proven against a model of the firmware only. */
import type { BlockDevice } from "../../hal/ports.ts";
import { type Partition, SECTOR } from "../layout.ts";
import { AUTOBOOT } from "./autoboot.ts";
import { Fat, FatError, type FatRoot } from "./fat.ts";
import { type FatEntry, printable } from "./folder.ts";

/** The sector that says which slot the firmware starts from. */
export interface AutobootSector {
  /** Bytes from the start of the disk. */
  offset: number;
  bytes: Uint8Array;
  /** What shows that the partition is not as it was made: the sector is found all the same, but nothing new is risked on it. */
  signs: readonly string[];
  /** Whoever wrote last did not unmount it, as in a power cut. The chain that leads to the sector is sound all the same. */
  isDirty: boolean;
}

/** A card spoils at most an erase block around what it was writing when the power failed, bytes. */
const AREA = 4 * 1024 * 1024;

/**
 * Walks the first partition to it, reading only. Throws `FatError` unless there is exactly one such file, of one cluster that is
 * its own, holding exactly one sector.
 */
export async function findAutoboot(disk: BlockDevice, selector: Partition): Promise<AutobootSector> {
  const fat = await Fat.open(disk, selector);
  const root = await fat.root();
  const { cluster } = onlyOne(fat, root);
  const offset = fat.offsetOf(cluster);
  const page = offset - (offset % 4096);
  const bytes = (await disk.readMedium(page, 4096)).subarray(offset - page, offset - page + SECTOR);
  return { offset, bytes, signs: signsOf(fat, root, cluster), isDirty: fat.isDirty };
}

/** Overwrites the sector, flushes and reads back. Throws where the medium then holds something else. */
export async function writeAutoboot(disk: BlockDevice, offset: number, bytes: Uint8Array): Promise<void> {
  await disk.write(offset, bytes);
  await disk.flush();
  const page = offset - (offset % 4096);
  const found = (await disk.readMedium(page, 4096)).subarray(offset - page, offset - page + SECTOR);
  if (!Buffer.from(found).equals(bytes))
    throw new FatError(`${disk.name}: ${AUTOBOOT}, written at byte ${offset}, reads back otherwise`);
}

/** What stands in a boot set's way: the firmware would not start it, or start something else on trial. Throws `FatError` where it is no FAT. */
export async function checkBootSet(disk: BlockDevice, partition: Partition): Promise<string | undefined> {
  const fat = await Fat.open(disk, partition);
  const root = await fat.root();
  const [config, trial] = [named(root, "config.txt"), named(root, "tryboot.txt")];
  if (config.length !== 1 || !config[0]) return `${fat.name} has ${config.length} files config.txt`;
  const text = await fat.read(config[0], CONFIG_MOST);
  if (text.length === 0) return `${fat.name}: config.txt is empty`;
  // Some firmware reads tryboot.txt even so (raspberrypi/rpi-eeprom#504): then it must say the same
  if (trial.length !== 1 || !trial[0]) return `${fat.name} has ${trial.length} files tryboot.txt`;
  const other = await fat.read(trial[0], CONFIG_MOST);
  return Buffer.from(text).equals(other)
    ? undefined
    : `${fat.name}: tryboot.txt is not the same as config.txt`;
}

/** More than any config.txt has, bytes. */
const CONFIG_MOST = 64 * 1024;

const named = ({ entries }: FatRoot, name: string): FatEntry[] =>
  entries.filter((entry) => [entry.name, entry.short].some((one) => one.toLowerCase() === name));

function onlyOne(fat: Fat, root: FatRoot): FatEntry {
  const refuse = (why: string): never => {
    throw new FatError(`${fat.name}: ${AUTOBOOT} ${why}`);
  };
  const [entry, ...more] = named(root, AUTOBOOT);
  if (!entry) return refuse("is missing: write the first partition of the image anew");
  if (more.length > 0)
    return refuse(
      `is there ${more.length + 1} times: which one the firmware reads nobody knows; delete all but one`,
    );
  if (entry.isFolder) return refuse("is a folder");
  if (entry.bytes !== SECTOR) return refuse(`has ${entry.bytes} bytes, not ${SECTOR}`);
  const chain = fat.chain(entry.cluster, AUTOBOOT);
  if (chain.length !== 1)
    return refuse(
      `has ${chain.length} clusters (${chain.slice(0, 4).join(", ")}${chain.length > 4 ? ", …" : ""}), not one`,
    );
  if (!fat.isAgreed(entry.cluster))
    return refuse(`ends in one copy of the table only (cluster ${entry.cluster})`);
  const others = root.entries.filter((one) => one !== entry && one.cluster === entry.cluster);
  const [sharer] = others;
  if (sharer) return refuse(`shares cluster ${entry.cluster} with ${printable(sharer.name)}`);
  for (let cluster = 2; cluster <= fat.lastCluster; cluster++)
    if (fat.next(cluster) === entry.cluster)
      return refuse(`is also the end of another file (cluster ${cluster})`);
  return entry;
}

function signsOf(fat: Fat, root: FatRoot, cluster: number): string[] {
  const signs: string[] = [];
  const recovered = root.entries.filter(({ short }) => /^FSCK\d{4}\.REC$/i.test(short));
  const [first] = recovered;
  if (first)
    signs.push(
      `${recovered.length} files such as ${first.short}, which a repair of the file system left: look through them and delete them`,
    );
  if (root.isFull) signs.push("the root folder is full");
  if (!fat.isMirrored) signs.push("the two copies of its table differ: run fsck.fat on it");
  const neighbours = neighboursOf(fat, cluster);
  if (neighbours > 0)
    signs.push(
      `${neighbours} clusters in use share ${AREA / 1024 / 1024} MiB with ${AUTOBOOT}, which stands alone on a card of ours`,
    );
  return signs;
}

/** Clusters in use in the same 4 MiB of the disk. */
function neighboursOf(fat: Fat, cluster: number): number {
  const start = Math.floor(fat.offsetOf(cluster) / AREA) * AREA;
  const first = Math.max(2, cluster - Math.floor((fat.offsetOf(cluster) - start) / fat.clusterBytes));
  let count = 0;
  for (let one = first; one <= fat.lastCluster && fat.offsetOf(one) < start + AREA; one++)
    if (one !== cluster && fat.next(one) !== 0 && !fat.isBad(fat.next(one))) count++;
  return count;
}
