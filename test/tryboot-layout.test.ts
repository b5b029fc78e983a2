import { expect, test } from "bun:test";
import { openNodeCard } from "../agent/boot/open.ts";
import { ForeignCard, RECORD_OFFSETS, SECTOR } from "../boot/layout.ts";
import { readAllPartitions, readTrybootCard } from "../boot/tryboot/layout.ts";
import { Image } from "./crash/disk.ts";
import { seeded } from "./fakes.ts";
import { makeCard, makeTable, PLACES } from "./tryboot/card.ts";
import { machine } from "./tryboot/desk.ts";
import { MemoryDisk } from "./tryboot/disk.ts";

const FUZZ = Number(process.env.FRUIT_FUZZ ?? 5_000);

/** The reason a disk is refused. */
async function refusal(image: Image): Promise<string> {
  const error = await readTrybootCard(new MemoryDisk(image)).then(
    () => undefined,
    (cause: unknown) => cause,
  );
  if (!(error instanceof ForeignCard)) throw new Error(`expected a ForeignCard, got ${error}`);
  return error.message;
}

/** A card, with bytes put into it. */
function edited(...edits: [offset: number, bytes: Uint8Array][]): Image {
  const image = makeCard();
  for (const [offset, bytes] of edits) image.write(offset, bytes);
  return image;
}

const MiB = 1024 * 1024;
const { selector, boot, extended, root } = PLACES;
const PRIMARY = [
  { type: 0x0c, ...selector },
  { type: 0x0c, ...boot.a },
  { type: 0x0c, ...boot.b },
  { type: 0x0f, ...extended },
];

/** The primary partitions with one of them otherwise. */
const changed = (number: number, change: object): [number, Uint8Array] => [
  0,
  makeTable(PRIMARY.map((one, index) => (index + 1 === number ? { ...one, ...change } : one))),
];

test("a damaged card for tryboot is told what is wrong with it as one, and any other card what it is not for U-Boot", async () => {
  const why = (image: Image) =>
    openNodeCard({ machine, openDisk: async () => new MemoryDisk(image) }, "card", "read").catch(
      (error: Error) => error.message,
    );
  expect(await why(edited([extended.offset, new Uint8Array(SECTOR)]))).toBe(
    `/dev/crash: the extended partition's table at byte ${extended.offset} is damaged`,
  );
  const foreign = edited([extended.offset, new Uint8Array(SECTOR)]);
  for (const offset of RECORD_OFFSETS) foreign.write(offset, new Uint8Array(SECTOR));
  expect(await why(foreign)).toContain("partition 2 (a) has type 0x0c, not 0x83");
});

test("a card for tryboot has a selector, two boot sets, two roots and data, the last three in the extended partition", async () => {
  const card = await readTrybootCard(new MemoryDisk(makeCard()));
  expect(card).toEqual({
    selector: { number: 1, type: 0x0c, ...PLACES.selector },
    slots: {
      a: {
        boot: { number: 2, type: 0x0c, ...PLACES.boot.a },
        root: { number: 5, type: 0x83, ...PLACES.root.a },
      },
      b: {
        boot: { number: 3, type: 0x0c, ...PLACES.boot.b },
        root: { number: 6, type: 0x83, ...PLACES.root.b },
      },
    },
    data: { number: 7, type: 0x83, ...PLACES.data },
  });
});

test.each([
  { what: "nothing", image: () => new Image(PLACES.disk), says: "has no partition table" },
  {
    what: "a boot set of type 0xef, which a Pi 3 does not see",
    image: () => edited(changed(2, { type: 0xef })),
    says: "partition 2 has type 0xef, on a tryboot card 0x0c",
  },
  {
    what: "an extended partition of type 0x05",
    image: () => edited(changed(4, { type: 0x05 })),
    says: "partition 4 has type 0x05, on a tryboot card 0x0f",
  },
  {
    what: "records where partition 1 begins",
    image: () => edited(changed(1, { offset: 12 * MiB, bytes: 24 * MiB })),
    says: "partition 1 starts at byte 12582912, where the records of a tryboot card are",
  },
  {
    what: "a selector too small for some boards",
    image: () => edited(changed(1, { bytes: 8 * MiB })),
    says: "partition 1 has 8388608 bytes, fewer than 16777216",
  },
  {
    what: "boot sets that overlap",
    image: () => edited(changed(2, { bytes: 2 * MiB })),
    says: "partitions 2 and 3 overlap",
  },
  {
    what: "a disk smaller than its partitions",
    image: () => {
      const image = new Image(40 * MiB);
      image.write(0, makeTable(PRIMARY));
      image.write(extended.offset, makeTable([{ type: 0x83, ...root.a }], extended.offset));
      return image;
    },
    says: "partition 4 ends at byte 46137344, the disk at 41943040; was the image copied to a smaller card?",
  },
  {
    what: "a chain that is cut",
    image: () => edited([extended.offset, makeTable([{ type: 0x83, ...root.a }], extended.offset)]),
    says: "has no partition 6; a tryboot card has seven",
  },
  {
    what: "a table of the chain that is garbage",
    image: () => edited([root.b.offset - MiB, new Uint8Array(SECTOR)]),
    says: "the extended partition's table at byte 41943040 is damaged",
  },
  {
    what: "a chain that leads back",
    image: () => {
      const table = makeTable(
        [
          { type: 0x83, ...root.a },
          { type: 0x05, offset: extended.offset, bytes: MiB },
        ],
        extended.offset,
      );
      return edited([extended.offset, table]);
    },
    says: "the extended partition's table at byte 39845888 leads back to byte 39845888",
  },
  {
    what: "a chain that leaves the partition",
    image: () => {
      const table = makeTable(
        [
          { type: 0x83, ...root.a },
          { type: 0x05, offset: PLACES.disk, bytes: MiB },
        ],
        extended.offset,
      );
      return edited([extended.offset, table]);
    },
    says: "the extended partition's table at byte 46137344 is outside of it",
  },
  {
    what: "a logical partition that leaves the extended one",
    image: () =>
      edited([
        extended.offset,
        makeTable([{ type: 0x83, offset: root.a.offset, bytes: 100 * MiB }], extended.offset),
      ]),
    says: "names a partition that is outside of it",
  },
])("$what is not a card for tryboot, and is told so", async ({ image, says }) => {
  expect(await refusal(image())).toContain(says);
});

test("a chain of a thousand logical partitions is followed for eight", async () => {
  const image = new Image(64 * MiB);
  image.write(0, makeTable([{ type: 0x0f, offset: MiB, bytes: 60 * MiB }]));
  for (let link = 0; link < 1000; link++) {
    const at = MiB + link * 2 * SECTOR;
    const table = makeTable([{ type: 0x83, offset: at + SECTOR, bytes: SECTOR }], at);
    table.set(
      makeTable(
        [
          { type: 0, offset: 0, bytes: 0 },
          { type: 0x05, offset: at + 2 * SECTOR, bytes: SECTOR },
        ],
        MiB,
      ).subarray(0x1ce, 0x1de),
      0x1ce,
    );
    image.write(at, table);
  }
  const disk = new MemoryDisk(image);
  await expect(readAllPartitions(disk)).rejects.toThrow("more than 8 logical partitions");
  expect(disk.reads).toBeLessThan(12);
});

test("no bytes in the partition tables make it read without end, outside the disk, or fail otherwise than by refusing", async () => {
  const random = seeded(29);
  const tables = [0, extended.offset, root.b.offset - MiB, PLACES.data.offset - MiB];
  const card = makeCard();
  const fresh = new Image(PLACES.disk);
  for (const at of tables) fresh.write(at, card.read(at, SECTOR));
  let refused = 0;
  for (let round = 0; round < FUZZ; round++) {
    const image = fresh.copy();
    for (let edit = 0; edit <= random() * 4; edit++) {
      const at = (tables[Math.floor(random() * 4)] ?? 0) + 0x1be + Math.floor(random() * 66);
      image.write(at, Uint8Array.of(random() * 256));
    }
    const disk = new MemoryDisk(image);
    await readTrybootCard(disk).catch((error: unknown) => {
      if (!(error instanceof ForeignCard)) throw error;
      refused++;
    });
    expect(disk.reads).toBeLessThan(12);
  }
  // Fields of cylinders and heads, which nobody reads, are about half of them
  expect(refused).toBeGreaterThan(FUZZ / 4);
}, 30_000);
