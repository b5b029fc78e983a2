/**
 * What U-Boot does with a card at one start, as a function of its bytes: which slot it boots with which arguments, and what it
 * writes. Made from the decision table, not from `boot/`: it parses the bytes itself, so that it can disagree with the agent.
 * test/proof/uboot-model.proof.ts shows real U-Boot the same cards.
 *
 * 1. Newest valid record; none → rescue.
 * 2. On trial with tries left: count down, mark started, write, read back; cannot → 5. Trial slot's files right → boot it.
 * 3. They are damaged → slot failed (files-damaged), trial over, write → 5.
 * 4. No tries left → slot failed (tries-spent), trial over, write → 5.
 * 5. Primary; its files damaged and the other slot good and whole → that becomes primary, write, boot it.
 * 6. Otherwise rescue.
 */
import { crc32 } from "node:zlib";

/** The card as the boot loader sees it. */
export interface Medium {
  /** Undefined where it cannot be read. */
  read(offset: number, bytes: number): Uint8Array | undefined;
  /** False where it cannot be written. */
  write(offset: number, bytes: Uint8Array): boolean;
}

/** One start. */
export interface Start {
  boots: "a" | "b" | "rescue" | "nothing";
  /** What it adds to the kernel's command line. */
  args: string;
}

const MiB = 1024 * 1024;
const PLACES = [4 * MiB, 8 * MiB, 12 * MiB, 16 * MiB];
const STATE = { trying: 3, good: 4, failed: 5 };
const REASON = { started: 1, spent: 2, damaged: 3 };
const SLOT = [0x40, 0xc0];

const word = (bytes: Uint8Array, at: number) => Buffer.from(bytes.buffer, bytes.byteOffset).readUInt32LE(at);
const bigWord = (bytes: Uint8Array, at: number) =>
  Buffer.from(bytes.buffer, bytes.byteOffset).readUInt32BE(at);
const put = (bytes: Uint8Array, at: number, value: number) =>
  Buffer.from(bytes.buffer, bytes.byteOffset).writeUInt32LE(value >>> 0, at);

const isRecord = (bytes: Uint8Array | undefined): bytes is Uint8Array =>
  bytes !== undefined &&
  Buffer.from(bytes.subarray(0, 4)).toString("latin1") === "FRUB" &&
  bigWord(bytes, 508) === crc32(bytes.subarray(0, 508));

/** What U-Boot does with this card. */
export function start(card: Medium): Start {
  const table = card.read(0, 512);
  if (table?.[510] !== 0x55 || table[511] !== 0xaa) return { boots: "nothing", args: "" };
  const places = PLACES.map((offset) => card.read(offset, 512));
  const newest = places
    .filter(isRecord)
    .reduce<Uint8Array | undefined>(
      (best, one) => (best && word(best, 8) >= word(one, 8) ? best : one),
      undefined,
    );
  return newest ? new Turn(card, table, places, newest).start() : rescue("no-record");
}

const rescue = (why: string): Start => ({ boots: "rescue", args: `fruit.rescue=${why}` });

/** One start of a card that has a record. */
class Turn {
  readonly #card: Medium;
  readonly #table: Uint8Array;
  readonly #places: (Uint8Array | undefined)[];
  readonly #bad = new Set<number>();
  #newest: number;
  #record: Uint8Array;

  constructor(card: Medium, table: Uint8Array, places: (Uint8Array | undefined)[], record: Uint8Array) {
    this.#card = card;
    this.#table = table;
    this.#places = places;
    this.#record = record;
    this.#newest = places.indexOf(record);
  }

  start(): Start {
    const primary = word(this.#record, 0x0c) === 1 ? 1 : 0;
    const other = 1 - primary;
    const trial = this.#tryTrial(other);
    if (trial) return trial;
    if (this.#isWhole(primary)) return boots(primary);
    if (this.#stateOf(other) !== STATE.good || !this.#isWhole(other)) return rescue("damaged");
    this.#save((next) => {
      put(next, 0x0c, other);
      put(next, slotAt(primary), STATE.failed);
      put(next, slotAt(primary) + 4, REASON.damaged);
      put(next, 0x24, REASON.damaged);
    });
    return boots(other);
  }

  #tryTrial(slot: number): Start | undefined {
    if (word(this.#record, 0x10) !== 1 || this.#stateOf(slot) !== STATE.trying) return undefined;
    if (word(this.#record, 0x18) === 0) {
      this.#endTrial(slot, REASON.spent);
      return undefined;
    }
    const isCounted = this.#save((next) => {
      put(next, 0x18, word(next, 0x18) - 1);
      put(next, 0x1c, word(next, 0x1c) + 1);
      put(next, 0x24, REASON.started);
    });
    if (!isCounted) return undefined;
    if (this.#isWhole(slot))
      return boots(slot, ` fruit.trial=${word(this.#record, 0x14)} fruit.try=${word(this.#record, 0x1c)}`);
    this.#endTrial(slot, REASON.damaged);
    return undefined;
  }

  #endTrial(slot: number, reason: number): void {
    this.#save((next) => {
      put(next, slotAt(slot), STATE.failed);
      put(next, slotAt(slot) + 4, reason);
      put(next, 0x24, reason);
      put(next, 0x10, 0);
    });
  }

  #stateOf(slot: number): number {
    return word(this.#record, slotAt(slot));
  }

  /** Kernel and initramfs are what the record says; the device tree is the firmware's and the slot's is not even read. */
  #isWhole(slot: number): boolean {
    const from = word(this.#table, 0x1be + (1 + slot) * 16 + 8) * 512;
    return [0x20, 0x2c].every((at) => {
      const [sector, bytes, right] = [0, 4, 8].map((field) => slotAt(slot) + at + field);
      const length = word(this.#record, bytes ?? 0);
      const file =
        length > 0 ? this.#card.read(from + word(this.#record, sector ?? 0) * 512, length) : undefined;
      return file !== undefined && crc32(file) === bigWord(this.#record, right ?? 0);
    });
  }

  /**
   * Into the first place without a record, otherwise the oldest, but never over the newest; three places are tried, each with a
   * sequence number of its own. Whether the card holds it.
   */
  #save(change: (next: Uint8Array) => void): boolean {
    const before = this.#record;
    const sequence = word(before, 8);
    for (let attempt = 1; attempt <= 3 && sequence + attempt <= 0xffff_ffff; attempt++) {
      const next = before.slice();
      change(next);
      put(next, 8, sequence + attempt);
      Buffer.from(next.buffer).writeUInt32BE(crc32(next.subarray(0, 508)), 508);
      const place = this.#nextPlace();
      if (place === undefined) break;
      this.#record = next;
      if (this.#put(place, next)) return true;
      this.#bad.add(place);
    }
    // Nothing more is written in a start in which nothing could be
    this.#record = before;
    return false;
  }

  #put(place: number, next: Uint8Array): boolean {
    const offset = PLACES[place] ?? 0;
    const isTaken = this.#card.write(offset, next);
    const found = this.#card.read(offset, 512);
    this.#places[place] = found;
    if (!isTaken || !found || Buffer.compare(found, next) !== 0) return false;
    this.#newest = place;
    return true;
  }

  #nextPlace(): number | undefined {
    const free = [0, 1, 2, 3].filter((place) => place !== this.#newest && !this.#bad.has(place));
    const age = (place: number) => {
      const bytes = this.#places[place];
      return isRecord(bytes) ? word(bytes, 8) : -1;
    };
    return free.reduce<number | undefined>(
      (best, place) => (best !== undefined && age(best) <= age(place) ? best : place),
      undefined,
    );
  }
}

const slotAt = (slot: number) => SLOT[slot] ?? 0;
const boots = (slot: number, trial = ""): Start => {
  const name = slot === 1 ? "b" : "a";
  return { boots: name, args: `fruit.slot=${name}${trial}` };
};
