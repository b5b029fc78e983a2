/**
 * The node's memory of what it boots from: four copies of one record in the gap before the first partition. The agent and
 * U-Boot (`boot/uboot/boot.cmd`) read and write the same bytes.
 *
 * Invariants
 * - The valid record with the highest sequence number counts; among equals the one in the lowest place.
 * - A change is one sector in a place that is not valid or, where all are, the oldest: it is flushed and read back past the cache.
 *   The place of the record that counts is never written, and one that cannot be read only where no other takes the record.
 * - One change at a time on a disk, whoever makes it: from its first read to its last.
 * - The offsets below never change, whatever the format: an agent reads older and newer ones and keeps the bytes it does not
 *   know. It writes only formats it knows.
 *
 * | offset | bytes | what (little-endian, but for the CRCs) |
 * |---|---|---|
 * | 0x000 | 4 | magic `FRUB` |
 * | 0x004 | 4 | format, 1 |
 * | 0x008 | 4 | sequence number |
 * | 0x00c | 4 | primary: 0 a, 1 b |
 * | 0x010 | 4 | trial: 1 while the slot that is not primary is on trial |
 * | 0x014 | 4 | trial id |
 * | 0x018 | 4 | tries left |
 * | 0x01c | 4 | started: how often U-Boot has started this trial |
 * | 0x020 | 4 | confirmed: id of the last trial that became good |
 * | 0x024 | 4 | reason of this record |
 * | 0x028 | 8 | time of the last change by an agent that knew it, Unix seconds; 0 unknown |
 * | 0x030 | 8 | version floor: nothing lower is installed |
 * | 0x040, 0x0c0 | 128 | slot a, slot b |
 * | 0x1fc | 4 | CRC-32 (zlib's) of all before it, **big-endian** |
 *
 * A slot: +0x00 state, +0x04 reason, +0x08 version (8), +0x10 first 16 bytes of its content hash (the Merkle root), +0x20 kernel,
 * +0x2c initramfs, +0x38 device tree (each: offset in sectors from the start of the slot, bytes, CRC-32 big-endian; no bytes: none),
 * +0x48 payload bytes (8).
 */
import { crc32 } from "node:zlib";
import type { BlockDevice } from "../hal/ports.ts";
import { failpoint } from "./failpoint.ts";
import { RECORD_OFFSETS, SECTOR, SLOTS, type SlotName } from "./layout.ts";

/** What the newest agent writes. */
export const FORMAT = 1;
const MAGIC = 0x4255_5246; // "FRUB"
/** U-Boot counts in the same 32 bits. */
const LAST_SEQUENCE = 0xffff_ffff;
/** A place is read in what the medium may have for a sector; the record is its beginning. */
const READ_BYTES = 4096;

/** The life of a slot (numbers as in the record). */
export const SLOT_STATES = ["empty", "writing", "staged", "trying", "good", "failed"] as const;
export type SlotState = (typeof SLOT_STATES)[number];

/** Why a record was written or a slot failed (numbers as in the record; the first ones are U-Boot's to write). */
export const REASONS = [
  "none",
  "trial-started",
  "tries-spent",
  "files-damaged",
  "built",
  "install-begun",
  "install-staged",
  "install-abandoned",
  "trial-armed",
  "confirmed",
  "check-failed",
  "deadline",
  "fatal-check",
  "agent-dead",
  "panic",
  "never-came-up",
  "by-hand",
  "repaired",
  "committing",
  "switch-failed",
  "starts-spent",
] as const;
export type Reason = (typeof REASONS)[number] | `unknown-${number}`;

/** A file in a slot that U-Boot loads: where it starts in the slot (a multiple of 512), how long it is, CRC-32. */
export interface BootFile {
  offset: number;
  bytes: number;
  crc32: number;
}

/** What a record says of one slot. */
export interface SlotRecord {
  state: SlotState;
  reason: Reason;
  version: bigint;
  /** First 16 bytes of the content hash, hex; all zeros where unknown. */
  hash: string;
  payloadBytes: number;
  kernel?: BootFile;
  initramfs?: BootFile;
  deviceTree?: BootFile;
}

/** One record. */
export interface BootRecord {
  format: number;
  sequence: number;
  primary: SlotName;
  trial?: { id: number; triesLeft: number; started: number };
  confirmed: number;
  reason: Reason;
  /**
   * Unix seconds; 0 unknown. The best guess of a node whose clock is not set: whoever writes a record without knowing the time, as
   * U-Boot always does, leaves it as it is (`timeAfter`). When something was done stands in the history.
   */
  time: number;
  floor: bigint;
  slots: Record<SlotName, SlotRecord>;
}

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

/** The record in 512 bytes, or why there is none. */
export function decodeRecord(bytes: Uint8Array): BootRecord | string {
  if (bytes.length !== SECTOR) return `${bytes.length} bytes, not ${SECTOR}`;
  const view = viewOf(bytes);
  const magic = view.getUint32(0, true);
  if (magic === 0 && bytes.every((byte) => byte === 0)) return "blank";
  if (magic !== MAGIC) return `no record: it begins with 0x${magic.toString(16).padStart(8, "0")}`;
  const stored = view.getUint32(0x1fc);
  const right = crc32(bytes.subarray(0, 0x1fc));
  if (stored !== right) return `damaged: CRC-32 ${hex(stored)}, its bytes have ${hex(right)}`;
  const isTrying = view.getUint32(0x10, true) === 1;
  return {
    format: view.getUint32(0x04, true),
    sequence: view.getUint32(0x08, true),
    primary: view.getUint32(0x0c, true) === 1 ? "b" : "a",
    ...(isTrying
      ? {
          trial: {
            id: view.getUint32(0x14, true),
            triesLeft: view.getUint32(0x18, true),
            started: view.getUint32(0x1c, true),
          },
        }
      : {}),
    confirmed: view.getUint32(0x20, true),
    reason: named(REASONS, view.getUint32(0x24, true)),
    time: safe(view.getBigUint64(0x28, true)),
    floor: view.getBigUint64(0x30, true),
    slots: { a: decodeSlot(view, SLOT_AT.a), b: decodeSlot(view, SLOT_AT.b) },
  };
}

/** The 512 bytes of a record; what `over` holds beyond the known fields is kept. Throws `RangeError` for what does not fit. */
export function encodeRecord(record: BootRecord, over?: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(SECTOR);
  if (over) bytes.set(over.subarray(0, SECTOR));
  const view = viewOf(bytes);
  view.setUint32(0, MAGIC, true);
  for (const [at, value] of [
    [0x04, record.format],
    [0x08, record.sequence],
    [0x0c, SLOTS.indexOf(record.primary)],
    [0x10, record.trial ? 1 : 0],
    [0x14, record.trial?.id ?? 0],
    [0x18, record.trial?.triesLeft ?? 0],
    [0x1c, record.trial?.started ?? 0],
    [0x20, record.confirmed],
    [0x24, numbered(REASONS, record.reason)],
  ] as const)
    view.setUint32(at, fitting(value, 0xffff_ffff, `the word at 0x${at.toString(16)}`), true);
  view.setBigUint64(0x28, BigInt(fitting(record.time, Number.MAX_SAFE_INTEGER, "the time")), true);
  view.setBigUint64(0x30, fitting64(record.floor, "the floor"), true);
  for (const slot of SLOTS) encodeSlot(view, SLOT_AT[slot], record.slots[slot]);
  view.setUint32(0x1fc, crc32(bytes.subarray(0, 0x1fc)));
  return bytes;
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

/** Seconds from here on, in 2106, are no time that a clock has, but the mark of a broken one. */
const NO_TIME = 2 ** 32;

/**
 * The time of a next record: the clock's, even where it is earlier, so that one wrong answer from the network is not for ever; the one
 * before where the clock knows nothing (0) or says what no clock has.
 */
export function timeAfter({ time }: Pick<BootRecord, "time">, now: number): number {
  return [now, time].find((one) => one > 0 && one < NO_TIME) ?? 0;
}

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

const SLOT_AT = { a: 0x40, b: 0xc0 } as const;

function decodeSlot(view: DataView, at: number): SlotRecord {
  const file = (from: number) => {
    const bytes = view.getUint32(from + 4, true);
    const offset = view.getUint32(from, true) * SECTOR;
    return bytes === 0 ? undefined : { offset, bytes, crc32: view.getUint32(from + 8) };
  };
  const kernel = file(at + 0x20);
  const initramfs = file(at + 0x2c);
  const deviceTree = file(at + 0x38);
  const state = SLOT_STATES[view.getUint32(at, true)];
  return {
    // What a newer agent calls otherwise is nothing this one may boot or trust
    state: state ?? "failed",
    reason: named(REASONS, view.getUint32(at + 4, true)),
    version: view.getBigUint64(at + 8, true),
    hash: Buffer.from(view.buffer, view.byteOffset + at + 0x10, 16).toString("hex"),
    payloadBytes: safe(view.getBigUint64(at + 0x48, true)),
    ...(kernel ? { kernel } : {}),
    ...(initramfs ? { initramfs } : {}),
    ...(deviceTree ? { deviceTree } : {}),
  };
}

function encodeSlot(view: DataView, at: number, slot: SlotRecord): void {
  view.setUint32(at, SLOT_STATES.indexOf(slot.state), true);
  view.setUint32(at + 4, numbered(REASONS, slot.reason), true);
  view.setBigUint64(at + 8, fitting64(slot.version, "a version"), true);
  if (!/^[0-9a-f]{32}$/.test(slot.hash))
    throw new RangeError(`"${slot.hash}" is no hash prefix of 32 hex digits`);
  Buffer.from(view.buffer, view.byteOffset + at + 0x10, 16).write(slot.hash, "hex");
  const files = [slot.kernel, slot.initramfs, slot.deviceTree];
  for (const [index, file] of files.entries()) {
    const from = at + 0x20 + index * 12;
    const { offset, bytes, crc32 } = file ?? { offset: 0, bytes: 0, crc32: 0 };
    if (offset % SECTOR !== 0) throw new RangeError(`offset ${offset} is no multiple of ${SECTOR}`);
    view.setUint32(from, fitting(offset / SECTOR, 0xffff_ffff, "an offset in sectors"), true);
    view.setUint32(from + 4, fitting(bytes, 0xffff_ffff, "a length"), true);
    view.setUint32(from + 8, fitting(crc32, 0xffff_ffff, "a CRC-32"));
  }
  const payload = fitting(slot.payloadBytes, Number.MAX_SAFE_INTEGER, "the payload's length");
  view.setBigUint64(at + 0x48, BigInt(payload), true);
}

const viewOf = (bytes: Uint8Array) => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
/** A number that can be counted with; more than that many bytes or seconds there are not. */
const safe = (value: bigint) => Number(value > Number.MAX_SAFE_INTEGER ? Number.MAX_SAFE_INTEGER : value);
const hex = (word: number) => word.toString(16).padStart(8, "0");

function named(names: readonly Reason[], number: number): Reason {
  return names[number] ?? `unknown-${number}`;
}

function numbered(names: readonly Reason[], name: Reason): number {
  const index = names.indexOf(name);
  return index >= 0 ? index : Number(name.replace("unknown-", ""));
}

function fitting(value: number, most: number, what: string): number {
  if (!Number.isInteger(value) || value < 0 || value > most)
    throw new RangeError(`${what} is ${value}, not 0 to ${most}`);
  return value;
}

function fitting64(value: bigint, what: string): bigint {
  if (value < 0n || value >= 2n ** 64n) throw new RangeError(`${what} is ${value}, not 0 to 2^64 - 1`);
  return value;
}
