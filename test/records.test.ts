/** The four copies of the boot record: their bytes, which one counts, how it is changed on a card that fails. */
import { expect, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { crc32 } from "node:zlib";
import { RECORD_OFFSETS, SECTOR } from "../boot/layout.ts";
import {
  type BootRecord,
  decodeRecord,
  encodeRecord,
  FORMAT,
  REASONS,
  SLOT_STATES,
  type SlotRecord,
  timeAfter,
} from "../boot/record.ts";
import { changeRecord, newestOf, placesForNext, readRecords } from "../boot/records.ts";
import { openDisk } from "../hal/disk.ts";
import { type BlockDevice, HalError } from "../hal/ports.ts";
import { seeded } from "./fakes.ts";
import { scratch } from "./node.ts";

const SLOT: SlotRecord = {
  ...{ state: "good", reason: "confirmed", version: 2n ** 64n - 1n, payloadBytes: 3_000_000_000 },
  hash: "00112233445566778899aabbccddeeff",
  kernel: { offset: 512, bytes: 1, crc32: 0xffff_ffff },
  initramfs: { offset: 2 ** 32 * 512 - 512, bytes: 0xffff_ffff, crc32: 0x8000_0000 },
};
const EMPTY: SlotRecord = {
  ...{ state: "empty", reason: "none", version: 0n, hash: "0".repeat(32), payloadBytes: 0 },
};
const RECORD: BootRecord = {
  ...{ format: FORMAT, sequence: 0x0102_0304, primary: "b", confirmed: 6, reason: "trial-armed" },
  ...{ time: 1_790_000_000, floor: 41n, trial: { id: 7, triesLeft: 3, started: 1 } },
  slots: { a: SLOT, b: EMPTY },
};
const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString("hex");

/** A card in memory of which some places fail. */
class Card implements BlockDevice {
  readonly name = "/dev/card";
  readonly bytes = 20 * 1024 * 1024;
  readonly places = new Map<number, Uint8Array>(RECORD_OFFSETS.map((at) => [at, new Uint8Array(4096)]));
  /** Offsets that cannot be written, cannot be read, keep what they had, and the writes that came. */
  readonly dead = new Set<number>();
  readonly unreadable = new Set<number>();
  readonly deaf = new Set<number>();
  readonly written: number[] = [];
  flushed = 0;

  async read(offset: number, length: number): Promise<Uint8Array> {
    if (this.unreadable.has(offset)) throw new HalError("io", `${this.name}: read at byte ${offset}: EIO`);
    return (this.places.get(offset) ?? new Uint8Array(length)).slice(0, length);
  }
  readMedium(offset: number, length: number) {
    return this.read(offset, length);
  }
  async write(offset: number, bytes: Uint8Array): Promise<void> {
    this.written.push(offset);
    if (this.dead.has(offset)) throw new HalError("io", `${this.name}: write at byte ${offset}: EIO`);
    if (!this.deaf.has(offset)) this.places.get(offset)?.set(bytes);
  }
  async flush(): Promise<void> {
    this.flushed++;
  }
  async close(): Promise<void> {}
}
/** A card with these records, by place; undefined is a blank place. */
function cardOf(...records: (Partial<BootRecord> | undefined)[]): Card {
  const card = new Card();
  for (const [place, record] of records.entries())
    if (record) card.places.get(RECORD_OFFSETS[place] ?? 0)?.set(encodeRecord({ ...RECORD, ...record }));
  return card;
}
const sequences = async (card: Card) =>
  (await readRecords(card)).all.map(({ record, why }) => record?.sequence ?? why);
const again = (record: BootRecord) => record;
async function complaint(promise: Promise<unknown>): Promise<string> {
  return promise.then(
    () => "none",
    (error: Error) => `${error.name}: ${error.message}`,
  );
}

test("the bytes of a record are these, for ever", () => {
  // If this fails, do not change the test: U-Boot on cards in the field reads these bytes
  const bytes = Buffer.from(encodeRecord(RECORD));
  expect(bytes.subarray(0, 0x40).toString("hex")).toBe(
    `${Buffer.from("FRUB").toString("hex")}010000000403020101000000010000000700000003000000010000000600000008000000` +
      "803bb16a0000000029000000000000000000000000000000",
  );
  expect(bytes.subarray(0x40, 0x90).toString("hex")).toBe(
    "0400000009000000ffffffffffffffff00112233445566778899aabbccddeeff0100000001000000ffffffff" +
      "ffffffffffffffff8000000000000000000000000000000000000000005ed0b200000000",
  );
  expect(bytes.readUInt32BE(0x1fc)).toBe(crc32(bytes.subarray(0, 0x1fc)));
  expect([...SLOT_STATES.entries()].slice(2)).toEqual([
    [2, "staged"],
    [3, "trying"],
    [4, "good"],
    [5, "failed"],
  ]);
  expect(REASONS.slice(0, 4)).toEqual(["none", "trial-started", "tries-spent", "files-damaged"]);
  expect(decodeRecord(bytes)).toEqual(RECORD);
});

test("one bit turned anywhere is noticed", () => {
  const bytes = encodeRecord(RECORD);
  for (let bit = 0; bit < SECTOR * 8; bit++) {
    const turned = bytes.slice();
    turned[bit >> 3] = (turned[bit >> 3] ?? 0) ^ (1 << (bit & 7));
    expect(typeof decodeRecord(turned)).toBe("string");
  }
});

test.each([
  { what: "blank", bytes: new Uint8Array(SECTOR), why: "blank" },
  { what: "erased", bytes: new Uint8Array(SECTOR).fill(0xff), why: "no record: it begins with 0xffffffff" },
  { what: "too short", bytes: new Uint8Array(511), why: "511 bytes, not 512" },
  {
    what: "only a beginning",
    bytes: Buffer.concat([encodeRecord(RECORD).subarray(0, 256), new Uint8Array(256)]),
    why: "damaged: CRC-32 00000000, its bytes have 19ba6e37",
  },
])("a place that is $what says so", ({ bytes, why }) => {
  expect(decodeRecord(bytes)).toBe(why);
});

test("any bytes are a record or are not, and one that was read is written as it was", () => {
  const random = seeded(1);
  const rounds = Number(process.env.FRUIT_FUZZ ?? 5_000);
  let valid = 0;
  for (let round = 0; round < rounds; round++) {
    const bytes = Buffer.from(encodeRecord(RECORD));
    const changes = 1 + Math.floor(random() * 6);
    for (let change = 0; change < changes; change++) {
      const value = random() < 0.3 ? 0xff : Math.floor(random() * 256);
      bytes.fill(value, Math.floor(random() * 0x1fc), Math.floor(random() * 0x200));
    }
    if (random() < 0.7) {
      bytes.write("FRUB", 0, "latin1");
      bytes.writeUInt32BE(crc32(bytes.subarray(0, 0x1fc)), 0x1fc);
    }
    const record = decodeRecord(bytes);
    if (typeof record === "string") continue;
    valid++;
    // What this agent does not know, and numbers nobody can count to, may be put otherwise; what it knows may not
    const copy = encodeRecord(record, bytes);
    expect(decodeRecord(copy)).toEqual(record);
  }
  expect(valid).toBeGreaterThan(rounds / 2);
});

test.each<{ what: string; change: Partial<BootRecord>; says: string }>([
  {
    what: "sequence",
    change: { sequence: 2 ** 32 },
    says: "the word at 0x8 is 4294967296, not 0 to 4294967295",
  },
  { what: "time", change: { time: -1 }, says: "the time is -1, not 0 to 9007199254740991" },
  {
    what: "floor",
    change: { floor: 2n ** 64n },
    says: "the floor is 18446744073709551616, not 0 to 2^64 - 1",
  },
  {
    what: "hash",
    change: { slots: { a: { ...SLOT, hash: "xyz" }, b: EMPTY } },
    says: '"xyz" is no hash prefix of 32 hex digits',
  },
  {
    what: "offset",
    change: { slots: { a: { ...SLOT, kernel: { offset: 100, bytes: 1, crc32: 0 } }, b: EMPTY } },
    says: "offset 100 is no multiple of 512",
  },
  {
    what: "CRC-32",
    change: { slots: { a: { ...SLOT, kernel: { offset: 512, bytes: 1, crc32: -1 } }, b: EMPTY } },
    says: "a CRC-32 is -1, not 0 to 4294967295",
  },
])("a $what that does not fit is refused, not cut", ({ change, says }) => {
  expect(() => encodeRecord({ ...RECORD, ...change })).toThrow(says);
});

test.each<{ places: (number | undefined)[]; newest: number | undefined; next: number[] }>([
  { places: [1, 2, 3, 4], newest: 3, next: [0, 1, 2] },
  { places: [5, 2, 3, 4], newest: 0, next: [1, 2, 3] },
  { places: [5, undefined, 3, 4], newest: 0, next: [1, 2, 3] },
  { places: [5, 1, undefined, undefined], newest: 0, next: [2, 3, 1] },
  { places: [undefined, undefined, undefined, 1], newest: 3, next: [0, 1, 2] },
  { places: [7, 7, 7, 7], newest: 0, next: [1, 2, 3] },
  { places: [1, 7, 7, 1], newest: 1, next: [0, 3, 2] },
  { places: [0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 0], newest: 2, next: [3, 0, 1] },
  { places: [undefined, undefined, undefined, undefined], newest: undefined, next: [0, 1, 2, 3] },
])("of $places number $newest counts, and the next goes to $next", async ({ places, newest, next }) => {
  const card = cardOf(...places.map((sequence) => (sequence === undefined ? undefined : { sequence })));
  const { all } = await readRecords(card);
  expect(newestOf(all)?.place).toBe(newest as number);
  expect(placesForNext(all).map(({ place }) => place)).toEqual(next);
});

test("a change is one sector, flushed, and the rest of the card stays", async () => {
  const card = cardOf({ sequence: 1 }, { sequence: 2 }, { sequence: 3 }, { sequence: 4 });
  const record = await changeRecord(card, (before) => ({ ...before, primary: "a", reason: "by-hand" }));
  expect(record).toEqual({ ...RECORD, sequence: 5, primary: "a", reason: "by-hand" });
  expect(card).toMatchObject({ written: [RECORD_OFFSETS[0]], flushed: 1 });
  expect(await sequences(card)).toEqual([5, 2, 3, 4]);
  expect((await readRecords(card)).newest?.record).toEqual(record);
});

test.each(["dead", "unreadable", "deaf"] as const)(
  "a place that is %s is passed over, and its number with it",
  async (way) => {
    const card = cardOf({ sequence: 1 }, { sequence: 2 }, { sequence: 3 }, { sequence: 4 });
    card[way].add(RECORD_OFFSETS[0]);
    const isKnownBefore = way === "unreadable";
    expect((await changeRecord(card, again)).sequence).toBe(6);
    expect(card.written).toEqual([...(isKnownBefore ? [] : [RECORD_OFFSETS[0]]), RECORD_OFFSETS[1]]);
    expect((await sequences(card)).slice(1)).toEqual([6, 3, 4]);
    expect((await readRecords(card)).all[0]?.why).toBe(
      isKnownBefore ? "/dev/card: read at byte 4194304: EIO" : undefined,
    );
    // And again, as long as it stays so
    expect((await changeRecord(card, again)).sequence).toBe(8);
    expect((await sequences(card)).slice(1)).toEqual([6, 8, 4]);
  },
);

test("a place that fails once is read again, and its record counts", async () => {
  const card = cardOf({ sequence: 1 }, { sequence: 5 });
  let failures = 1;
  const read = card.read.bind(card);
  card.read = async (offset, length) => {
    if (offset === RECORD_OFFSETS[1] && failures-- > 0) throw new HalError("io", "EIO");
    return await read(offset, length);
  };
  expect((await changeRecord(card, again)).sequence).toBe(6);
});

test("a place that cannot be read is written last: it may hold the newest record", async () => {
  const card = cardOf({ sequence: 1 }, { sequence: 9 }, { sequence: 3 });
  card.unreadable.add(RECORD_OFFSETS[1]);
  for (const at of [0, 3]) card.dead.add(RECORD_OFFSETS[at] ?? 0);
  expect(await complaint(changeRecord(card, again))).toContain("no place takes the record");
  expect(card.written).toEqual([RECORD_OFFSETS[3], RECORD_OFFSETS[0], RECORD_OFFSETS[1]]);
});

test("no install begins while the newest record may be one that cannot be read", async () => {
  const card = cardOf({ sequence: 1 }, { sequence: 2, primary: "a" });
  card.unreadable.add(RECORD_OFFSETS[0]);
  const begin = (hash: string) => (record: BootRecord) => ({
    ...record,
    slots: { ...record.slots, b: { ...EMPTY, state: "writing" as const, hash } },
  });
  expect(await complaint(changeRecord(card, begin(SLOT.hash)))).toStartWith(
    "RecordError: /dev/card: no install begins while the record at byte 4194304 cannot be read",
  );
  expect(card.written).toEqual([]);
  // What is no install goes on, above whatever is there
  expect((await changeRecord(card, again)).sequence).toBe(4);
  card.unreadable.clear();
  expect((await changeRecord(card, begin(SLOT.hash))).slots.b.state).toBe("writing");
  // Nor does another one in a slot that is being written
  card.unreadable.add(RECORD_OFFSETS[0]);
  expect(await complaint(changeRecord(card, begin(EMPTY.hash)))).toContain("no install begins");
});

test("a change that another program overtakes has failed", async () => {
  const card = cardOf({ sequence: 1 });
  const write = card.write.bind(card);
  card.write = async (offset, bytes) => {
    await write(offset, bytes);
    card.places.get(RECORD_OFFSETS[3])?.set(encodeRecord({ ...RECORD, sequence: 2 }));
    card.places.get(RECORD_OFFSETS[2])?.set(encodeRecord({ ...RECORD, sequence: 3 }));
  };
  expect(await complaint(changeRecord(card, again))).toBe(
    "RecordError: /dev/card: record 2 was written at byte 8388608, but 3 at byte 12582912 counts: another program writes records there too",
  );
});

/** A card in a file with one record. */
function cardFile(folder: string): string {
  const bytes = new Uint8Array(20 * 1024 * 1024);
  bytes.set(encodeRecord({ ...RECORD, sequence: 1, time: 0 }), RECORD_OFFSETS[0]);
  writeFileSync(`${folder}/card.img`, bytes);
  return `${folder}/card.img`;
}

test("changes by two programs are made one after the other", async () => {
  using folder = scratch();
  const image = cardFile(folder.path);
  const script = `import { openDisk } from ${JSON.stringify(`${import.meta.dir}/../hal/disk.ts`)};
    import { changeRecord } from ${JSON.stringify(`${import.meta.dir}/../boot/records.ts`)};
    const disk = await openDisk(${JSON.stringify(image)}, "write");
    for (let round = 0; round < 25; round++)
      await changeRecord(disk, (record) => ({ ...record, time: record.time + 1 }));
    await disk.close();`;
  const children = [1, 2].map(() => Bun.spawn([process.execPath, "-e", script], { stderr: "inherit" }));
  expect(await Promise.all(children.map((child) => child.exited))).toEqual([0, 0]);
  const disk = await openDisk(image, "read");
  const { newest } = await readRecords(disk);
  await disk.close();
  expect(newest?.record).toMatchObject({ sequence: 51, time: 50 });
});

test("a card that is a file with a slot held for an install is changed all the same", async () => {
  using folder = scratch();
  const image = cardFile(folder.path);
  const slot = await openDisk(image, "exclusive");
  const disk = await openDisk(image, "write");
  expect((await changeRecord(disk, again)).sequence).toBe(2);
  await disk.close();
  await slot.close();
});

test("a card that takes nothing keeps what it has, and says of each place why", async () => {
  const card = cardOf({ sequence: 1 }, { sequence: 2 }, { sequence: 3 }, { sequence: 4 });
  for (const offset of RECORD_OFFSETS) card.deaf.add(offset);
  card.dead.add(RECORD_OFFSETS[1]);
  expect(await complaint(changeRecord(card, again))).toBe(
    "RecordError: /dev/card: no place takes the record: at byte 4194304 it reads back otherwise; " +
      "/dev/card: write at byte 8388608: EIO; at byte 12582912 it reads back otherwise",
  );
  expect(card.written).not.toContain(RECORD_OFFSETS[3]);
  expect(await sequences(card)).toEqual([1, 2, 3, 4]);
});

test("a record of a newer format is read, and never written over", async () => {
  const newer = { sequence: 9, format: FORMAT + 1 };
  const card = cardOf({ sequence: 7 }, newer, { sequence: 8 });
  expect((await readRecords(card)).newest?.record).toEqual({ ...RECORD, ...newer });
  expect(await complaint(changeRecord(card, again))).toBe(
    "RecordError: /dev/card: the newest record has format 2, this agent writes 1; it is left as it is",
  );
  expect(card.written).toEqual([]);
});

test("a record of an older format is written as this agent's", async () => {
  const card = cardOf({ sequence: 7, format: FORMAT - 1 });
  expect((await changeRecord(card, again)).format).toBe(FORMAT);
  expect((await readRecords(card)).newest?.record).toMatchObject({ sequence: 8, format: FORMAT });
});

test("what a newer agent calls a slot's state is nothing this one would start", () => {
  const bytes = Buffer.from(encodeRecord(RECORD));
  bytes.writeUInt32LE(6, 0x40);
  bytes.writeUInt32LE(99, 0x44);
  bytes.writeUInt32BE(crc32(bytes.subarray(0, 0x1fc)), 0x1fc);
  const record = decodeRecord(bytes) as BootRecord;
  expect(record.slots.a).toMatchObject({ state: "failed", reason: "unknown-99" });
  expect(Buffer.from(encodeRecord(record)).readUInt32LE(0x44)).toBe(99);
});

test("bytes nobody knows yet outlive a change", async () => {
  const bytes = Buffer.from(encodeRecord({ ...RECORD, sequence: 1 }));
  bytes.fill(0x5a, 0x140, 0x1fc);
  bytes.fill(0x5b, 0x90, 0xc0);
  bytes.writeUInt32BE(crc32(bytes.subarray(0, 0x1fc)), 0x1fc);
  const card = cardOf();
  card.places.get(RECORD_OFFSETS[2])?.set(encodeRecord(decodeRecord(bytes) as BootRecord, bytes));
  await changeRecord(card, (before) => ({ ...before, reason: "repaired" }));
  const { newest } = await readRecords(card);
  expect(newest?.record.reason).toBe("repaired");
  expect(hex(newest?.bytes.subarray(0x140, 0x1fc) ?? new Uint8Array())).toBe("5a".repeat(188));
  expect(hex(newest?.bytes.subarray(0x90, 0xc0) ?? new Uint8Array())).toBe("5b".repeat(48));
});

test("without a valid record, and at the last number, nothing is written", async () => {
  const blank = cardOf();
  expect(await complaint(changeRecord(blank, again))).toBe(
    "RecordError: /dev/card holds no valid record; 'fruit boot records' shows its places",
  );
  const last = cardOf({ sequence: 0xffff_ffff });
  expect(await complaint(changeRecord(last, again))).toContain("too near the last there is");
  expect([...blank.written, ...last.written]).toEqual([]);
});

test("a change that throws writes nothing", async () => {
  const card = cardOf({ sequence: 1 });
  const change = () => {
    throw new RangeError("no");
  };
  expect(await complaint(changeRecord(card, change))).toBe("RangeError: no");
  expect(card.written).toEqual([]);
});

/** Places fail or rot as chance has it, but for the newest. */
async function misfortune(card: Card, random: () => number): Promise<void> {
  const newest = newestOf((await readRecords(card)).all);
  for (const offset of RECORD_OFFSETS.filter((offset) => offset !== newest?.offset)) {
    const fate = random();
    if (fate < 0.1) card.dead.add(offset);
    else if (fate < 0.2) card.deaf.add(offset);
    else if (fate < 0.3) card.unreadable.add(offset);
    else if (fate < 0.35) card.places.get(offset)?.fill(0xee, 100, 104);
  }
}

test("through thousands of changes on a card that fails now and then, the last that was promised counts", async () => {
  const random = seeded(4);
  const card = cardOf({ sequence: 1 });
  let promised = 0;
  for (let round = 1; round <= 3000; round++) {
    await misfortune(card, random);
    const problem = await complaint(changeRecord(card, (before) => ({ ...before, time: round })));
    if (problem === "none") promised = round;
    for (const failing of [card.dead, card.deaf, card.unreadable]) failing.clear();
    // One that was not promised may have arrived all the same
    const { time } = (await readRecords(card)).newest?.record ?? { time: -1 };
    expect(time).toBeWithin(promised, round + 1);
  }
  expect(promised).toBeGreaterThan(2900);
});

test.each([
  { before: 5, now: 9, time: 9 },
  { before: 9, now: 5, time: 5 },
  { before: 9, now: 0, time: 9 },
  { before: 0, now: 0, time: 0 },
  // The last second that 32 bits count, and the first that none has
  { before: 9, now: 2 ** 32 - 1, time: 2 ** 32 - 1 },
  { before: 9, now: 2 ** 32, time: 9 },
  { before: 2 ** 32, now: 9, time: 9 },
  { before: Number.MAX_SAFE_INTEGER, now: 0, time: 0 },
])("a record of $before changed at $now has the time $time", ({ before, now, time }) => {
  expect(timeAfter({ time: before }, now)).toBe(time);
});

test.each(["record.before-write", "record.after-write", "record.after-flush"])(
  "killed at %s, the card has the old record or the new one",
  async (point) => {
    using folder = scratch();
    const image = `${folder.path}/card.img`;
    const bytes = new Uint8Array(20 * 1024 * 1024);
    bytes.set(encodeRecord({ ...RECORD, sequence: 1 }), RECORD_OFFSETS[0]);
    writeFileSync(image, bytes);
    const script = `import { openDisk } from ${JSON.stringify(`${import.meta.dir}/../hal/disk.ts`)};
      import { changeRecord } from ${JSON.stringify(`${import.meta.dir}/../boot/records.ts`)};
      const disk = await openDisk(${JSON.stringify(image)}, "write");
      await changeRecord(disk, (record) => ({ ...record, reason: "by-hand" }));
      console.log("done");`;
    const run = async (failpoint: string) => {
      const child = Bun.spawn([process.execPath, "-e", script], {
        env: { ...process.env, FRUIT_FAILPOINT: failpoint },
        stdout: "pipe",
        stderr: "inherit",
      });
      const out = await new Response(child.stdout).text();
      await child.exited;
      return { out, signal: child.signalCode };
    };
    expect(await run(point)).toEqual({ out: "", signal: "SIGKILL" });
    const disk = await openDisk(image, "write");
    try {
      const { newest } = await readRecords(disk);
      const isNew = point !== "record.before-write";
      expect(newest?.record).toMatchObject(
        isNew ? { sequence: 2, reason: "by-hand" } : { sequence: 1, reason: "trial-armed" },
      );
      // And it goes on from there
      expect((await changeRecord(disk, again)).sequence).toBe(isNew ? 3 : 2);
    } finally {
      await disk.close();
    }
  },
);
