/**
 * FAT16 and FAT32 as far as finding a file in the root folder needs it; nothing here writes. Every number in it is foreign: what
 * does not fit is a `FatError` that says where.
 * Source: Microsoft, "FAT: General Overview of On-Disk Format" 1.03.
 */
import type { BlockDevice } from "../../hal/ports.ts";
import { type Partition, SECTOR } from "../layout.ts";
import { ENTRY_BYTES, type FatEntry, printable, readFolder } from "./folder.ts";

/** A file system that is not one, or that is damaged where it was asked. */
export class FatError extends Error {
  override name = "FatError";
}

/** The root folder. */
export interface FatRoot {
  entries: readonly FatEntry[];
  /** No further name fits. */
  isFull: boolean;
}

/** A table larger than this is none of a boot partition, bytes. */
const TABLE_MOST = 4 * 1024 * 1024;
/** A folder never has more names (specification, section on directories). */
const NAMES_MOST = 65_536;

/** An open file system. */
export class Fat {
  /** For messages. */
  readonly name: string;
  readonly clusterBytes: number;
  /** Clusters are numbered from 2 to this one. */
  readonly lastCluster: number;
  readonly #disk: BlockDevice;
  readonly #shape: Shape;
  /** The two copies of the table; the same where there is one. */
  readonly #tables: readonly [DataView, DataView];

  private constructor(disk: BlockDevice, name: string, shape: Shape, tables: [DataView, DataView]) {
    this.#disk = disk;
    this.name = name;
    this.#shape = shape;
    this.clusterBytes = shape.clusterBytes;
    this.lastCluster = shape.lastCluster;
    this.#tables = tables;
  }

  /** Throws `FatError` where there is none, `HalError` where the disk cannot be read. */
  static async open(disk: BlockDevice, partition: Partition): Promise<Fat> {
    const name = `${disk.name} partition ${partition.number}`;
    const shape = readShape(name, await medium(disk, partition.offset, SECTOR), partition);
    const copies = await Promise.all(
      [0, shape.tables - 1].map((copy) =>
        medium(disk, shape.tableAt + copy * shape.tableBytes, shape.tableBytes),
      ),
    );
    const [first, second] = copies.map((bytes) => new DataView(bytes.buffer, bytes.byteOffset, bytes.length));
    if (!first || !second) throw new FatError(`${name}: it has no table`);
    const fat = new Fat(disk, name, shape, [first, second]);
    if ((fat.next(0) & 0xff) !== shape.media)
      throw new FatError(`${name}: its table is damaged at its beginning`);
    return fat;
  }

  /** What the table says of a cluster: 0 free, `isLast` the end of a file, `isBad` not to be used, otherwise the next one. */
  next(cluster: number): number {
    return this.#entry(this.#tables[0], cluster);
  }

  isLast(value: number): boolean {
    return value >= (this.#shape.bits === 32 ? 0x0fff_fff8 : 0xfff8);
  }

  isBad(value: number): boolean {
    return value === (this.#shape.bits === 32 ? 0x0fff_fff7 : 0xfff7);
  }

  /** Whether both copies of the table say the same of a cluster. */
  isAgreed(cluster: number): boolean {
    return this.next(cluster) === this.#entry(this.#tables[1], cluster);
  }

  /** Whether both copies of the table are the same. */
  get isMirrored(): boolean {
    const [a, b] = this.#tables.map((table) => Buffer.from(table.buffer, table.byteOffset, table.byteLength));
    return a !== undefined && b !== undefined && a.equals(b);
  }

  /** Whether whoever wrote last went without saying goodbye: bit 27 or 15 of the second entry, or Linux's own mark. */
  get isDirty(): boolean {
    const { bits, isMarked } = this.#shape;
    return isMarked || (this.next(1) & (bits === 32 ? 0x0800_0000 : 0x8000)) === 0;
  }

  /** Where a cluster starts, bytes from the start of the disk. */
  offsetOf(cluster: number): number {
    return this.#shape.clustersAt + (cluster - 2) * this.clusterBytes;
  }

  /** The clusters of a file, in their order. Throws `FatError` where the chain leaves the disk or bites its tail. */
  chain(first: number, what: string): number[] {
    const clusters: number[] = [];
    const seen = new Set<number>();
    for (let cluster = first; !this.isLast(cluster); cluster = this.next(cluster)) {
      const where = `${this.name}: ${what}: its chain of clusters`;
      if (cluster < 2 || cluster > this.lastCluster) throw new FatError(`${where} leads to ${cluster}`);
      if (seen.has(cluster)) throw new FatError(`${where} comes back to ${cluster}`);
      seen.add(cluster);
      clusters.push(cluster);
    }
    return clusters;
  }

  /** The content of a file of at most `most` bytes. */
  async read(entry: FatEntry, most: number): Promise<Uint8Array> {
    const what = printable(entry.name);
    if (entry.isFolder) throw new FatError(`${this.name}: ${what} is a folder`);
    if (entry.bytes > most)
      throw new FatError(`${this.name}: ${what} has ${entry.bytes} bytes, more than ${most}`);
    if (entry.bytes === 0) return new Uint8Array();
    const clusters = this.chain(entry.cluster, what);
    if (clusters.length * this.clusterBytes < entry.bytes)
      throw new FatError(`${this.name}: ${what} has ${entry.bytes} bytes in ${clusters.length} clusters`);
    return (await this.#readClusters(clusters)).subarray(0, entry.bytes);
  }

  /** The names in the root folder. */
  async root(): Promise<FatRoot> {
    const { rootAt, rootBytes, rootCluster } = this.#shape;
    const clusters = rootCluster === undefined ? [] : this.chain(rootCluster, "the root folder");
    if (clusters.length * this.clusterBytes > NAMES_MOST * ENTRY_BYTES)
      throw new FatError(`${this.name}: the root folder has ${clusters.length} clusters`);
    const bytes =
      rootCluster === undefined
        ? await medium(this.#disk, rootAt, rootBytes)
        : await this.#readClusters(clusters);
    const { entries, hasRoom } = readFolder(bytes, this.#shape.bits);
    const isGrowing = rootCluster !== undefined && bytes.length < NAMES_MOST * ENTRY_BYTES;
    return { entries, isFull: !hasRoom && !isGrowing };
  }

  async #readClusters(clusters: readonly number[]): Promise<Buffer> {
    const parts: Uint8Array[] = [];
    for (const cluster of clusters)
      parts.push(await medium(this.#disk, this.offsetOf(cluster), this.clusterBytes));
    return Buffer.concat(parts);
  }

  #entry(table: DataView, cluster: number): number {
    return this.#shape.bits === 32
      ? table.getUint32(cluster * 4, true) & 0x0fff_ffff
      : table.getUint16(cluster * 2, true);
  }
}

/** Where everything stands; bytes from the start of the disk. */
interface Shape {
  bits: 16 | 32;
  media: number;
  /** Linux has mounted it for writing and not unmounted it: fs/fat/inode.c, fat_set_state. */
  isMarked: boolean;
  clusterBytes: number;
  lastCluster: number;
  tables: number;
  tableAt: number;
  tableBytes: number;
  /** FAT16 */
  rootAt: number;
  rootBytes: number;
  /** FAT32 */
  rootCluster?: number;
  clustersAt: number;
}

function readShape(name: string, sector: Uint8Array, partition: Partition): Shape {
  const view = new DataView(sector.buffer, sector.byteOffset, SECTOR);
  const word = (at: number) => view.getUint16(at, true);
  const is32 = word(22) === 0;
  const numbers: Numbers = {
    signature: word(510),
    sectorBytes: word(11),
    perCluster: view.getUint8(13),
    reserved: word(14),
    tables: view.getUint8(16),
    names: word(17),
    bits: is32 ? 32 : 16,
    tableBytes: (is32 ? view.getUint32(36, true) : word(22)) * SECTOR,
    sectors: word(19) || view.getUint32(32, true),
  };
  const { perCluster, reserved, tables, names, bits, tableBytes, sectors } = numbers;
  const tableAt = partition.offset + reserved * SECTOR;
  const rootAt = tableAt + tables * tableBytes;
  const clustersAt = rootAt + Math.ceil((names * ENTRY_BYTES) / SECTOR) * SECTOR;
  const end = partition.offset + sectors * SECTOR;
  const clusters = Math.floor((end - clustersAt) / (perCluster * SECTOR));
  const problem = problemOf(numbers, clusters, partition);
  if (problem) throw new FatError(`${name}: ${problem}`);
  return {
    bits,
    media: view.getUint8(21),
    isMarked: (view.getUint8(is32 ? 0x41 : 0x25) & 1) !== 0,
    clusterBytes: perCluster * SECTOR,
    lastCluster: clusters + 1,
    tables,
    tableAt,
    tableBytes,
    rootAt,
    rootBytes: names * ENTRY_BYTES,
    clustersAt,
    ...(is32 ? { rootCluster: view.getUint32(44, true) & 0x0fff_ffff } : {}),
  };
}

/** The numbers of the first sector, as they are. */
interface Numbers {
  signature: number;
  sectorBytes: number;
  perCluster: number;
  reserved: number;
  tables: number;
  names: number;
  bits: 16 | 32;
  tableBytes: number;
  sectors: number;
}

function problemOf(found: Numbers, clusters: number, partition: Partition): string | undefined {
  const { perCluster, reserved, tables, names, bits, tableBytes, sectors } = found;
  const problems: [isSo: boolean, problem: string][] = [
    [found.signature !== 0xaa55, "it does not begin with a FAT file system"],
    [found.sectorBytes !== SECTOR, `a FAT with sectors of ${found.sectorBytes} bytes, not ${SECTOR}`],
    [perCluster === 0 || (perCluster & (perCluster - 1)) !== 0, `a FAT with ${perCluster} sectors a cluster`],
    [reserved === 0, "a FAT without a reserved sector"],
    [tables !== 1 && tables !== 2, `a FAT with ${tables} tables`],
    [(bits === 32) !== (names === 0), `a FAT${bits} with room for ${names} names in its root folder`],
    [sectors * SECTOR > partition.bytes, `a FAT of ${sectors} sectors in ${partition.bytes} bytes`],
    [clusters < 1, "a FAT without room for a file"],
    // The ROM of a Pi 3 starts from no FAT12 (seen on boards, forum reports of 2025)
    [bits === 16 && clusters < 4085, "FAT12, which not every Raspberry Pi starts from; make it FAT32"],
    [((clusters + 2) * bits) / 8 > tableBytes, `a FAT whose table of ${tableBytes} bytes is too small`],
    [tableBytes > TABLE_MOST, `a FAT whose table has ${tableBytes} bytes, more than ${TABLE_MOST}`],
  ];
  return problems.find(([isSo]) => isSo)?.[1];
}

/** Bytes past the kernel's cache: a partition and its disk are cached apart. */
export async function medium(disk: BlockDevice, offset: number, length: number): Promise<Uint8Array> {
  const from = offset - (offset % PAGE);
  const bytes = await disk.readMedium(from, Math.ceil((offset + length - from) / PAGE) * PAGE);
  return bytes.subarray(offset - from, offset - from + length);
}

/** What is read past the cache comes in these. */
const PAGE = 4096;
