/**
 * The node's memory of what it boots from: four copies of one record in the gap before the first partition. The agent and
 * U-Boot (`boot/uboot/boot.cmd`) read and write the same bytes.
 *
 * Invariants
 * - The valid record with the highest sequence number counts; among equals the one in the lowest place.
 * - A change is one sector in a place that is not valid or, where all are, the oldest: it is flushed and read back past the cache.
 *   The place of the record that counts is never written, and one that cannot be read only where no other takes the record.
 * - One change at a time on a disk, whoever makes it: from its first read to its last.
 */
import type { BlockDevice } from "../hal/ports.ts";
import { failpoint } from "./failpoint.ts";
import { RECORD_OFFSETS, SECTOR, SLOTS } from "./layout.ts";
import { type BootRecord, decodeRecord, encodeRecord, FORMAT, type SlotRecord } from "./record.ts";

/** U-Boot counts in the same 32 bits. */
const LAST_SEQUENCE = 0xffff_ffff;
/** A place is read in what the medium may have for a sector; the record is its beginning. */
const READ_BYTES = 4096;

/** One of the four places. */
export interface Copy {
  place: number;
  offset: number;
  bytes: Uint8Array;
  /** Absent where the bytes are no record, and `why` says so. */
  record?: BootRecord;
  why?: string;
  /** It could not be read: what it holds, even the newest record, nobody knows. */
  isUnread?: boolean;
}

/** The four places as they are, and the one that counts. */
export interface Copies {
  all: readonly Copy[];
  newest?: Copy & { record: BootRecord };
}

/** No valid record, or one this agent must not change. */
export class RecordError extends Error {
  override name = "RecordError";
}

/**
 * Reads the four places, one that fails once more; what still cannot be read is `isUnread`, which is another thing than to hold
 * no record. `past` reads the medium itself.
 */
export async function readRecords(disk: BlockDevice, past: "cache" | "medium" = "medium"): Promise<Copies> {
  const all: Copy[] = [];
  for (const [place, offset] of RECORD_OFFSETS.entries()) {
    const read = () => (past === "medium" ? disk.readMedium(offset, READ_BYTES) : disk.read(offset, SECTOR));
    const got = await read()
      .catch(read)
      .then(
        (sector) => sector.subarray(0, SECTOR),
        (error: Error) => error.message,
      );
    if (typeof got === "string") {
      all.push({ place, offset, bytes: new Uint8Array(SECTOR), why: got, isUnread: true });
      continue;
    }
    const decoded = decodeRecord(got);
    all.push({
      place,
      offset,
      bytes: got,
      ...(typeof decoded === "string" ? { why: decoded } : { record: decoded }),
    });
  }
  const newest = newestOf(all);
  return { all, ...(newest ? { newest } : {}) };
}

/** The copy that counts. */
export function newestOf(all: readonly Copy[]): (Copy & { record: BootRecord }) | undefined {
  let best: (Copy & { record: BootRecord }) | undefined;
  for (const copy of all) {
    const { record } = copy;
    if (record && (!best || record.sequence > best.record.sequence)) best = { ...copy, record };
  }
  return best;
}

/**
 * The places the next record may go to, best first: those that hold none, then the oldest, then those that cannot be read. The
 * newest is never among them, so that nothing that happens to a write takes the record that counts.
 */
export function placesForNext(all: readonly Copy[]): Copy[] {
  const newest = newestOf(all);
  return all.filter(({ place }) => place !== newest?.place).sort((one, other) => ageOf(one) - ageOf(other));
}

const ageOf = ({ record, isUnread }: Copy) =>
  isUnread ? Number.POSITIVE_INFINITY : (record?.sequence ?? -1);

/**
 * Writes the record that `change` makes of the newest one, in one sector, flushed and read back, while nobody else changes it. A
 * place that does not take it is passed over for the next. Throws `RecordError` where no record is valid, where the newest is of
 * a newer format or has the last sequence number there is, where no place holds what was written or another counts all the same,
 * and for an install that would begin while a place cannot be read; what `exclusively` throws.
 */
export function changeRecord(
  disk: BlockDevice,
  change: (record: BootRecord) => BootRecord,
): Promise<BootRecord> {
  const work = () => changeAlone(disk, change);
  return disk.exclusively ? disk.exclusively(work) : work();
}

async function changeAlone(
  disk: BlockDevice,
  change: (record: BootRecord) => BootRecord,
): Promise<BootRecord> {
  const { all, newest } = await readRecords(disk);
  if (!newest)
    throw new RecordError(`${disk.name} holds no valid record; 'fruit boot records' shows its places`);
  const { record, bytes } = newest;
  if (record.format > FORMAT)
    throw new RecordError(
      `${disk.name}: the newest record has format ${record.format}, this agent writes ${FORMAT}; it is left as it is`,
    );
  const changed = { ...change(record), format: FORMAT };
  const unread = all.find(({ isUnread }) => isUnread);
  if (unread && SLOTS.some((slot) => begins(record.slots[slot], changed.slots[slot])))
    throw new RecordError(
      `${disk.name}: no install begins while the record at byte ${unread.offset} cannot be read, since it may be the newest (${unread.why}); start this node anew, and where it stays so replace the card`,
    );
  const problems: string[] = [];
  // What cannot be read may have the next number: this one shall count above it
  let sequence = record.sequence + (unread ? 1 : 0);
  for (const { offset } of placesForNext(all)) {
    // Each attempt has its own number: one that the medium took after all never stands beside another of the same
    if (++sequence > LAST_SEQUENCE)
      throw new RecordError(
        `${disk.name}: sequence number ${record.sequence} is too near the last there is; write the records anew from the rescue`,
      );
    const next = { ...changed, sequence };
    const problem = await writeRecord(disk, offset, encodeRecord(next, bytes));
    if (problem === undefined) return await expectNewest(disk, offset, next);
    problems.push(problem);
  }
  throw new RecordError(`${disk.name}: no place takes the record: ${problems.join("; ")}`);
}

/** Whether a slot begins to be written by a change. */
const begins = (before: SlotRecord, after: SlotRecord) =>
  after.state === "writing" && (before.state !== "writing" || before.hash !== after.hash);

/** What was written, if it is what counts now: somebody who knows of no lock may have written too. */
async function expectNewest(disk: BlockDevice, offset: number, next: BootRecord): Promise<BootRecord> {
  const { newest } = await readRecords(disk);
  if (newest?.offset === offset && newest.record.sequence === next.sequence) return next;
  const found = newest ? `${newest.record.sequence} at byte ${newest.offset}` : "none";
  throw new RecordError(
    `${disk.name}: record ${next.sequence} was written at byte ${offset}, but ${found} counts: another program writes records there too`,
  );
}

/** One sector on the medium; or why it is not there. */
async function writeRecord(
  disk: BlockDevice,
  offset: number,
  bytes: Uint8Array,
): Promise<string | undefined> {
  failpoint("record.before-write");
  try {
    await disk.write(offset, bytes);
    failpoint("record.after-write");
    await disk.flush();
    failpoint("record.after-flush");
    const found = (await disk.readMedium(offset, READ_BYTES)).subarray(0, SECTOR);
    return Buffer.from(found).equals(bytes) ? undefined : `at byte ${offset} it reads back otherwise`;
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}
