/** The boot loader's model, row by row of the decision table; real U-Boot is shown the same in test/proof/uboot-model.proof.ts. */
import { expect, test } from "bun:test";
import { RECORD_OFFSETS, SECTOR } from "../boot/layout.ts";
import { type BootRecord, decodeRecord, encodeRecord } from "../boot/record.ts";
import { cardWith, payloadOf, SLOT_OFFSETS } from "./crash/card.ts";
import { CrashDisk, type Image } from "./crash/disk.ts";
import { type Start, start } from "./crash/model.ts";

const A = payloadOf(1n, 9 * 16_384 + 700);
const B = payloadOf(2n, 8 * 16_384 + 4096);

/** A card on which slot b is on trial, and what else `change` says. */
function cardOn(change: (record: BootRecord) => BootRecord = (record) => record): Image {
  const image = cardWith(A, B);
  const newest = decodeRecord(image.read(RECORD_OFFSETS[3], SECTOR));
  if (typeof newest === "string") throw new Error(newest);
  const armed: BootRecord = {
    ...newest,
    sequence: 9,
    reason: "trial-armed",
    trial: { id: 77, triesLeft: 2, started: 0 },
    slots: { ...newest.slots, b: { ...newest.slots.b, state: "trying" } },
  };
  image.write(RECORD_OFFSETS[1], encodeRecord(change(armed)));
  return image;
}
const good = (record: BootRecord): BootRecord => {
  const { trial: _, ...rest } = record;
  return { ...rest, slots: { ...rest.slots, b: { ...rest.slots.b, state: "good" } } };
};
const spoil = (image: Image, slot: "a" | "b", of: typeof A) => {
  image.write(SLOT_OFFSETS[slot] + of.content.kernel.offset, new Uint8Array(SECTOR).fill(1));
  return image;
};

/** What the newest record says after a start. */
function after(image: Image): BootRecord {
  const all = RECORD_OFFSETS.map((offset) => decodeRecord(image.read(offset, SECTOR))).filter(
    (record) => typeof record !== "string",
  );
  return all.reduce((best, one) => (one.sequence > best.sequence ? one : best));
}

test.each<{
  what: string;
  image: Image;
  boots: Start["boots"];
  args: string;
  writes: number;
  newest?: Partial<BootRecord>;
}>([
  {
    what: "one good slot is started and nothing is written",
    image: cardWith(A),
    boots: "a",
    args: "fruit.slot=a",
    writes: 0,
  },
  {
    what: "a trial is counted and marked before it is started",
    image: cardOn(),
    boots: "b",
    args: "fruit.slot=b fruit.trial=77 fruit.try=1",
    writes: 1,
    newest: { sequence: 10, reason: "trial-started", trial: { id: 77, triesLeft: 1, started: 1 } },
  },
  {
    what: "a trial without tries left has failed",
    image: cardOn((record) => ({ ...record, trial: { id: 77, triesLeft: 0, started: 3 } })),
    boots: "a",
    args: "fruit.slot=a",
    writes: 1,
    newest: { sequence: 10, reason: "tries-spent" },
  },
  {
    what: "a trial whose kernel is damaged has failed without being started",
    image: spoil(cardOn(), "b", B),
    boots: "a",
    args: "fruit.slot=a",
    writes: 2,
    newest: { sequence: 11, reason: "files-damaged" },
  },
  {
    what: "a damaged primary makes room for the other good slot",
    image: spoil(cardOn(good), "a", A),
    boots: "b",
    args: "fruit.slot=b",
    writes: 1,
    newest: { sequence: 10, reason: "files-damaged", primary: "b" },
  },
  {
    what: "two damaged slots end in the rescue",
    image: spoil(spoil(cardOn(good), "a", A), "b", B),
    boots: "rescue",
    args: "fruit.rescue=damaged",
    writes: 0,
  },
  {
    what: "a damaged primary does not start a slot that is only staged",
    image: spoil(
      cardOn((record) => {
        const { trial: _, ...rest } = record;
        return { ...rest, slots: { ...rest.slots, b: { ...rest.slots.b, state: "staged" } } };
      }),
      "a",
      A,
    ),
    boots: "rescue",
    args: "fruit.rescue=damaged",
    writes: 0,
  },
])("$what", ({ image, boots, args, writes, newest }) => {
  const disk = new CrashDisk(image);
  expect(start(disk.medium)).toEqual({ boots, args });
  expect(disk.journal.length).toBe(writes);
  if (newest) expect(after(image)).toMatchObject(newest);
  // A trial that has failed is over
  if (newest?.reason === "tries-spent") expect(after(image).trial).toBeUndefined();
});

/** A card whose places, by their numbers, take nothing, and perhaps say that they did; what was written where. */
function deafAt(image: Image, places: readonly number[], isLying = false) {
  const { medium } = new CrashDisk(image);
  const written: number[] = [];
  const write = (offset: number, bytes: Uint8Array) => {
    const place = RECORD_OFFSETS.indexOf(offset as (typeof RECORD_OFFSETS)[number]);
    written.push(place);
    return places.includes(place) ? isLying : medium.write(offset, bytes);
  };
  return { medium: { read: medium.read.bind(medium), write }, written };
}

test("a try that no place takes is not made", () => {
  const image = cardOn();
  const { medium, written } = deafAt(image, [0, 1, 2, 3]);
  expect(start(medium)).toEqual({ boots: "a", args: "fruit.slot=a" });
  expect(written).toEqual([0, 2, 3]);
  expect(after(image)).toMatchObject({ sequence: 9, trial: { triesLeft: 2, started: 0 } });
});

test.each([false, true])(
  "a place that takes nothing is passed over, and its number with it (lying: %p)",
  (isLying) => {
    const image = cardOn();
    const { medium, written } = deafAt(image, [0, 2], isLying);
    expect(start(medium)).toEqual({ boots: "b", args: "fruit.slot=b fruit.trial=77 fruit.try=1" });
    expect(written).toEqual([0, 2, 3]);
    expect(after(image)).toMatchObject({ sequence: 12, trial: { triesLeft: 1, started: 1 } });
  },
);

test("behind the last sequence number nothing is written, and nothing tried", () => {
  const image = cardOn((record) => ({ ...record, sequence: 0xffff_ffff }));
  const { medium, written } = deafAt(image, []);
  expect(start(medium)).toEqual({ boots: "a", args: "fruit.slot=a" });
  expect(written).toEqual([]);
});

test("a record goes first to where none is, whatever else is there", () => {
  const image = cardOn();
  image.write(RECORD_OFFSETS[3], new Uint8Array(SECTOR).fill(0xff));
  const { medium, written } = deafAt(image, []);
  start(medium);
  expect(written).toEqual([3]);
});

test("of four records with one number the first counts, and is not written over", () => {
  const image = cardOn();
  const armed = encodeRecord(after(image));
  for (const offset of RECORD_OFFSETS) image.write(offset, armed);
  const { medium, written } = deafAt(image, []);
  expect(start(medium).boots).toBe("b");
  expect(written).toEqual([1]);
});

test("of two records with one number that in the lower place counts", () => {
  const image = cardOn(good);
  image.write(RECORD_OFFSETS[2], encodeRecord({ ...after(image), primary: "b" }));
  expect(start(new CrashDisk(image).medium).boots).toBe("a");
});
