/**
 * One record as the 512 bytes that it is on the card; where its copies are and how they change is `records.ts`.
 *
 * The offsets below never change, whatever the format: an agent reads older and newer ones and keeps the bytes it does not know. It
 * writes only formats it knows.
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
import { SECTOR, SLOTS, type SlotName } from "./layout.ts";

/** What the newest agent writes. */
export const FORMAT = 1;
const MAGIC = 0x4255_5246; // "FRUB"

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

/** Seconds from here on, in 2106, are no time that a clock has, but the mark of a broken one. */
const NO_TIME = 2 ** 32;

/**
 * The time of a next record: the clock's, even where it is earlier, so that one wrong answer from the network is not for ever; the one
 * before where the clock knows nothing (0) or says what no clock has.
 */
export function timeAfter({ time }: Pick<BootRecord, "time">, now: number): number {
  return [now, time].find((one) => one > 0 && one < NO_TIME) ?? 0;
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
