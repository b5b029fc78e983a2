/**
 * What U-Boot does with a card, by Debian's stock U-Boot itself on an emulated Pi 3: which slot it starts and with which
 * arguments, what it writes, and that it writes nothing else. Kernels are stand-ins that hand out what they were given.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { crc32 } from "node:zlib";
import { RECORD_OFFSETS, SECTOR } from "../../boot/layout.ts";
import { type BootRecord, decodeRecord, encodeRecord } from "../../boot/record.ts";
import { fail, rollBack } from "../../boot/slots.ts";
import { LOADS } from "../../boot/uboot/switch.ts";
import { Image } from "../crash/disk.ts";
import { missingForEmulator } from "../emulator/cache.ts";
import { LIMITS } from "../emulator/limits.ts";
import {
  BASE,
  but,
  CARD_BYTES,
  cardWith,
  entry,
  filesOf,
  INITRAMFS_BYTES,
  inFile,
  NAMES,
  P1_BYTES,
  PARTITION,
  place,
  slotRecord,
  state,
  trial,
  wrong,
} from "../emulator/slotcard.ts";
import { standIn } from "../emulator/standin.ts";
import {
  type Booted,
  bootPartition,
  FIRMWARE_ARGS,
  runUBoot,
  type Treatment,
  UBoot,
} from "../emulator/uboot.ts";

const missing = missingForEmulator();
const MiB = 1024 * 1024;

/** What the places hold, newest last; undefined where one is no record. */
const records = (booted: Booted) =>
  booted.recordsAfter.map((bytes) => {
    const record = decodeRecord(bytes);
    return typeof record === "string" ? undefined : record;
  });
const newest = (booted: Booted) =>
  records(booted).reduce((best, one) => (one && (!best || one.sequence > best.sequence) ? one : best));

describe.skipIf(missing !== undefined)(`U-Boot itself${missing ? ` [needs: ${missing}]` : ""}`, () => {
  let emulator: UBoot;
  let boot: Uint8Array;
  const took: number[] = [];
  beforeAll(async () => {
    emulator = await UBoot.for(CARD_BYTES);
    boot = await bootPartition(P1_BYTES);
  }, LIMITS.test);
  afterAll(async () => {
    await emulator?.[Symbol.asyncDispose]();
    const mean = took.reduce((sum, ms) => sum + ms, 0) / took.length;
    console.log(`U-Boot: ${took.length} cards, ${(mean / 1000).toFixed(2)} s each`);
  });

  /** Starts a card, and makes sure of what holds for every one. */
  async function start(image: Image, treatment?: Treatment, p1 = boot): Promise<Booted> {
    const booted = treatment ? await runUBoot(image, p1, treatment) : await emulator.run(image, p1);
    took.push(booted.ms);
    expect(booted.changedElsewhere).toEqual([]);
    if (booted.booted === "a" || booted.booted === "b") {
      expect(booted.kernel).toBe(NAMES[booted.booted]);
      expect(Buffer.from(booted.initramfs.head).toString()).toBe(
        Buffer.alloc(INITRAMFS_BYTES, `initramfs of ${booted.booted}, `).toString(),
      );
    }
    return booted;
  }
  /** How many places are not as they were. */
  const written = (image: Image, booted: Booted) =>
    RECORD_OFFSETS.filter((offset, index) => !image.holds(offset, booted.recordsAfter[index] ?? wrong))
      .length;
  const args = (words: string) => `${FIRMWARE_ARGS} ${words} panic=10`;
  /** The card as U-Boot left it. */
  const after = (image: Image, booted: Booted) =>
    but(image, ...booted.recordsAfter.map((bytes, index) => [place(index), bytes] as [number, Uint8Array]));

  test.each<{
    what: string;
    image: Image;
    boots: Booted["booted"];
    words: string;
    next?: BootRecord;
    writes: number;
  }>([
    { what: "slot a is started", image: cardWith(BASE), boots: "a", words: "fruit.slot=a", writes: 0 },
    {
      what: "slot b is started",
      image: cardWith({ ...BASE, primary: "b" }),
      ...{ boots: "b", words: "fruit.slot=b", writes: 0 },
    },
    {
      what: "a staged slot waits",
      image: cardWith(state(BASE, "b", { state: "staged" })),
      ...{ boots: "a", words: "fruit.slot=a", writes: 0 },
    },
    {
      what: "a damaged kernel of the primary, the other good: that takes its place",
      image: but(cardWith(BASE), [inFile("a", "kernel", 20_000), wrong]),
      ...{ boots: "b", words: "fruit.slot=b", writes: 1, next: rollBack(BASE, "files-damaged") },
    },
    {
      what: "a damaged initramfs of primary b, the other good: that takes its place",
      image: but(cardWith({ ...BASE, primary: "b" }), [inFile("b", "initramfs", INITRAMFS_BYTES - 1), wrong]),
      ...{ boots: "a", words: "fruit.slot=a", writes: 1 },
      next: rollBack({ ...BASE, primary: "b" }, "files-damaged"),
    },
    {
      what: "a damaged primary, the other only staged: the rescue",
      image: but(cardWith(state(BASE, "b", { state: "staged" })), [inFile("a", "kernel"), wrong]),
      ...{ boots: "rescue", words: "fruit.rescue=damaged", writes: 0 },
    },
    {
      what: "both damaged: the rescue",
      image: but(cardWith(BASE), [inFile("a", "kernel"), wrong], [inFile("b", "initramfs"), wrong]),
      ...{ boots: "rescue", words: "fruit.rescue=damaged", writes: 0 },
    },
    {
      what: "a damaged device tree does not matter where the firmware has one",
      image: but(cardWith(BASE), [inFile("a", "deviceTree"), wrong]),
      ...{ boots: "a", words: "fruit.slot=a", writes: 0 },
    },
    {
      what: "a primary that has no kernel",
      image: cardWith(state(BASE, "a", { kernel: { offset: 0, bytes: 0, crc32: 0 } })),
      ...{ boots: "b", words: "fruit.slot=b", writes: 1 },
    },
    {
      what: "a primary whole by its CRC-32 that is no kernel at all",
      image: cardWith(
        state(BASE, "a", { kernel: entry("initramfs", filesOf("a").get("initramfs") ?? wrong) }),
      ),
      ...{ boots: "b", words: "fruit.slot=b", writes: 1 },
    },
    {
      what: "a trial of a slot that is not being tried is no trial",
      image: cardWith({ ...BASE, trial: { id: 5, triesLeft: 3, started: 0 } }),
      ...{ boots: "a", words: "fruit.slot=a", writes: 0 },
    },
    {
      what: "a trial is counted and marked before it starts",
      image: cardWith(trial(2, 1)),
      ...{ boots: "b", words: "fruit.slot=b fruit.trial=77 fruit.try=2", writes: 1 },
      next: { ...trial(1, 2), reason: "trial-started" },
    },
    {
      what: "numbers on the command line are decimal",
      image: cardWith(trial(1, 99, 0xffff_fffe)),
      ...{ boots: "b", words: "fruit.slot=b fruit.trial=4294967294 fruit.try=100", writes: 1 },
      next: { ...trial(0, 100, 0xffff_fffe), reason: "trial-started" },
    },
    {
      what: "a trial that has spent its tries has failed",
      image: cardWith(trial(0, 3)),
      ...{ boots: "a", words: "fruit.slot=a", writes: 1, next: fail(trial(0, 3), "b", "tries-spent") },
    },
    {
      what: "a trial whose kernel is damaged has failed",
      image: but(cardWith(trial()), [inFile("b", "kernel", 20_000), wrong]),
      ...{ boots: "a", words: "fruit.slot=a", writes: 2 },
      next: fail({ ...trial(), sequence: 11 }, "b", "files-damaged"),
    },
    {
      what: "a trial whose initramfs is damaged has failed",
      image: but(cardWith(trial()), [inFile("b", "initramfs"), wrong]),
      ...{ boots: "a", words: "fruit.slot=a", writes: 2 },
      next: fail({ ...trial(), sequence: 11 }, "b", "files-damaged"),
    },
    {
      what: "a trial whole by its CRC-32 that is no kernel at all has failed",
      image: cardWith(
        state(trial(), "b", { kernel: entry("initramfs", filesOf("b").get("initramfs") ?? wrong) }),
      ),
      ...{ boots: "a", words: "fruit.slot=a", writes: 2 },
    },
    {
      what: "a trial damaged and the primary too: the rescue",
      image: but(cardWith(trial()), [inFile("b", "kernel"), wrong], [inFile("a", "kernel"), wrong]),
      ...{ boots: "rescue", words: "fruit.rescue=damaged", writes: 2 },
    },
    {
      what: "the trial's partition is not in the table",
      image: but(cardWith(trial()), [0x1de, Buffer.alloc(16)]),
      ...{ boots: "a", words: "fruit.slot=a", writes: 2 },
    },
    {
      what: "the primary's partition is not in the table",
      image: but(cardWith(BASE), [0x1ce, Buffer.alloc(16)]),
      ...{ boots: "b", words: "fruit.slot=b", writes: 1 },
    },
    {
      what: "a partition table that is damaged: U-Boot does not even find its script",
      image: but(cardWith(trial()), [510, Buffer.alloc(2)]),
      ...{ boots: "nothing", words: "", writes: 0 },
    },
    {
      what: "the last sequence number but one still starts a trial",
      image: cardWith({ ...trial(), sequence: 0xffff_fffe }),
      ...{ boots: "b", words: "fruit.slot=b fruit.trial=77 fruit.try=1", writes: 1 },
      next: { ...trial(2, 1), reason: "trial-started", sequence: 0xffff_fffe },
    },
    {
      what: "at the last sequence number no trial starts, since it could not be counted",
      image: cardWith({ ...trial(), sequence: 0xffff_ffff }),
      ...{ boots: "a", words: "fruit.slot=a", writes: 0 },
    },
    {
      what: "sequence numbers have no sign",
      image: cardWith({ ...trial(), sequence: 0x8000_0001 }),
      ...{ boots: "b", words: "fruit.slot=b fruit.trial=77 fruit.try=1", writes: 1 },
      next: { ...trial(2, 1), reason: "trial-started", sequence: 0x8000_0001 },
    },
    {
      what: "a record of a format to come, read and counted down without a loss",
      image: cardWith({ ...trial(), format: 7 }),
      ...{ boots: "b", words: "fruit.slot=b fruit.trial=77 fruit.try=1", writes: 1 },
      next: { ...trial(2, 1), format: 7, reason: "trial-started" },
    },
    {
      what: "of two records with one number, that in the lower place",
      image: but(cardWith(BASE), [place(1), encodeRecord({ ...BASE, primary: "b" })]),
      ...{ boots: "b", words: "fruit.slot=b", writes: 0 },
    },
  ])(
    "$what",
    async ({ image, boots, words, next, writes }) => {
      const booted = await start(image);
      expect(booted.booted).toBe(boots);
      expect(booted.bootargs).toBe(boots === "nothing" ? "" : args(words));
      expect(written(image, booted)).toBe(writes);
      if (next) {
        const { sequence } = next;
        expect(newest(booted)).toEqual({ ...next, sequence: sequence + 1 });
      }
    },
    LIMITS.test,
  );

  test(
    "three tries, then the primary for good",
    async () => {
      let image = cardWith(trial(3));
      const seen: string[] = [];
      for (let turn = 0; turn < 5; turn++) {
        const booted = await start(image);
        image = after(image, booted);
        const { trial, slots, sequence } = newest(booted) ?? BASE;
        seen.push(
          `${booted.bootargs.match(/fruit.*/)} | ${trial?.triesLeft} ${slots.b.state} ${slots.b.reason} ${sequence}`,
        );
      }
      expect(seen).toEqual([
        "fruit.slot=b fruit.trial=77 fruit.try=1 panic=10 | 2 trying none 11",
        "fruit.slot=b fruit.trial=77 fruit.try=2 panic=10 | 1 trying none 12",
        "fruit.slot=b fruit.trial=77 fruit.try=3 panic=10 | 0 trying none 13",
        "fruit.slot=a panic=10 | undefined failed tries-spent 14",
        "fruit.slot=a panic=10 | undefined failed tries-spent 14",
      ]);
      // One place after the other
      const places = RECORD_OFFSETS.map((offset) => decodeRecord(image.read(offset, SECTOR)));
      expect(places.map((record) => typeof record === "object" && record.sequence)).toEqual([11, 12, 13, 14]);
    },
    LIMITS.test,
  );

  test(
    "bytes of a record that nobody knows yet are kept",
    async () => {
      const unknown = Buffer.from(encodeRecord(trial()));
      for (let at = 0x140; at < 0x1fc; at++) unknown[at] = at;
      const image = but(cardWith(trial()), [place(3), encodeRecord(trial(), unknown)]);
      const booted = await start(image);
      expect(booted.booted).toBe("b");
      expect(
        Buffer.from(booted.recordsAfter[0] ?? wrong)
          .subarray(0x140, 0x1fc)
          .toString("hex"),
      ).toBe(unknown.subarray(0x140, 0x1fc).toString("hex"));
    },
    LIMITS.test,
  );

  test.each([0, 1, 2, 3])(
    "place %i spoiled: the newest that is left counts, and the next record goes there",
    async (spoiled) => {
      const armed = cardWith(trial());
      const good = armed.read(place(spoiled), SECTOR);
      const torn = Buffer.concat([good.subarray(0, 256), Buffer.alloc(256, 0xff)]);
      const rotten = Buffer.from(good);
      rotten[0x1fb] = (rotten[0x1fb] ?? 0) ^ 1;
      for (const bytes of [Buffer.alloc(SECTOR), torn, rotten]) {
        const booted = await start(but(armed, [place(spoiled), bytes]));
        expect(booted.bootargs).toBe(args("fruit.slot=b fruit.trial=77 fruit.try=1"));
        const sequence = spoiled === 3 ? 10 : 11;
        expect(records(booted)[spoiled]).toEqual({ ...trial(2, 1), reason: "trial-started", sequence });
      }
    },
    LIMITS.test,
  );

  test(
    "the newest rotten: what the one before it says counts",
    async () => {
      const image = but(
        cardWith(BASE),
        [place(0), encodeRecord({ ...trial(), sequence: 11 })],
        [place(0) + 9, wrong],
      );
      const booted = await start(image);
      expect(booted.bootargs).toBe(args("fruit.slot=a"));
      expect(written(image, booted)).toBe(0);
    },
    LIMITS.test,
  );

  test(
    "no valid record: the rescue, with its own initramfs, and nothing is written",
    async () => {
      const blank = Buffer.alloc(SECTOR);
      for (const bytes of [blank, Buffer.alloc(SECTOR, 0xff)]) {
        const image = but(cardWith(BASE), ...RECORD_OFFSETS.map((at) => [at, bytes] as [number, Uint8Array]));
        const booted = await start(image);
        expect(booted).toMatchObject({ booted: "rescue", bootargs: args("fruit.rescue=no-record") });
        expect(Buffer.from(booted.initramfs.head).toString()).toBe("initramfs of the rescue");
        expect(written(image, booted)).toBe(0);
      }
    },
    LIMITS.test,
  );

  test(
    "no slot and no rescue: it says so, waits and starts anew",
    async () => {
      const image = but(cardWith(BASE), [inFile("a", "kernel"), wrong], [inFile("b", "kernel"), wrong]);
      const booted = await start(image, undefined, await bootPartition(P1_BYTES, false));
      expect(booted.booted).toBe("nothing");
      const [before = "", again] = booted.consoleText.split(/\nresetting/);
      expect(before).toContain("fruit: no slot can be started and neither can the rescue on p1");
      expect(again).toContain("U-Boot 20");
    },
    LIMITS.test,
  );

  test(
    "a card that takes no writes: the trial is not started, since it could not be counted",
    async () => {
      const image = cardWith(trial());
      const booted = await start(image, { deaf: "all" });
      expect(booted.bootargs).toBe(args("fruit.slot=a"));
      expect(written(image, booted)).toBe(0);
      expect(booted.consoleText).toContain("fruit: slot b is not tried, since this try cannot be counted");
    },
    LIMITS.test,
  );

  test(
    "a card that takes no writes and a damaged primary: the other good slot is started all the same",
    async () => {
      const image = but(cardWith(BASE), [inFile("a", "kernel"), wrong]);
      const booted = await start(image, { deaf: "all" });
      expect(booted.bootargs).toBe(args("fruit.slot=b"));
    },
    LIMITS.test,
  );

  test(
    "a place that loses its writes is passed over, and the number it had with it",
    async () => {
      const booted = await start(cardWith(trial()), { deaf: [place(0) / SECTOR] });
      expect(booted.bootargs).toBe(args("fruit.slot=b fruit.trial=77 fruit.try=1"));
      expect(records(booted).map((record) => record?.sequence)).toEqual([7, 12, 9, 10]);
    },
    LIMITS.test,
  );

  test(
    "where the firmware has no device tree, the slot's own is loaded and checked",
    async () => {
      const booted = await start(cardWith(BASE), { isTreeMissing: true });
      expect(booted.bootargs).toBe(" fruit.slot=a panic=10");
      const damaged = but(cardWith(BASE), [inFile("a", "deviceTree", 5000), wrong]);
      expect((await start(damaged, { isTreeMissing: true })).bootargs).toBe(" fruit.slot=b panic=10");
    },
    LIMITS.test,
  );

  test(
    "a kernel longer than its place in memory is not even read",
    async () => {
      const kernel = { offset: MiB, bytes: LOADS.kernel + 1, crc32: crc32(Buffer.alloc(LOADS.kernel + 1)) };
      const image = new Image(128 * MiB);
      const card = cardWith(state({ ...BASE, primary: "b" }, "b", { kernel }));
      for (const { offset, bytes } of card.written()) image.write(offset, bytes);
      const booted = await runUBoot(image, boot);
      expect(booted.booted).toBe("a");
      expect(booted.consoleText).toContain("fruit: slot b: the kernel is damaged or missing");
    },
    LIMITS.test,
  );

  test(
    "a kernel of 48 MiB with an initramfs of 8 MiB, on a board of 512 MiB",
    async () => {
      const [kernel, initramfs] = [standIn("large", 48 * MiB + 1), Buffer.alloc(8 * MiB + 3, "initramfs")];
      const at = { kernel: 4096, initramfs: 49 * MiB };
      const small = cardWith({
        ...BASE,
        slots: {
          ...BASE.slots,
          b: {
            ...slotRecord("b", "good"),
            kernel: { offset: at.kernel, bytes: kernel.length, crc32: crc32(kernel) },
            initramfs: { offset: at.initramfs, bytes: initramfs.length, crc32: crc32(initramfs) },
          },
        },
        primary: "b",
      });
      const image = new Image(128 * MiB);
      for (const { offset, bytes } of small.written()) image.write(offset, bytes);
      image.write(PARTITION.b + at.kernel, kernel);
      image.write(PARTITION.b + at.initramfs, initramfs);
      const booted = await runUBoot(image, boot, { board: "3-a-plus" });
      expect(booted).toMatchObject({
        booted: "b",
        kernel: "large",
        bootargs: args("fruit.slot=b"),
        changedElsewhere: [],
      });
      expect(booted.initramfs.bytes).toBe(initramfs.length);
      expect(
        Buffer.from(booted.initramfs.head).equals(initramfs.subarray(0, booted.initramfs.head.length)),
      ).toBeTrue();
    },
    LIMITS.test,
  );
});
