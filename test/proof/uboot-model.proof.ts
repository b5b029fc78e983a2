/**
 * The crash engine's model of the boot loader is not to be believed: real U-Boot is shown cards that the engine makes, and has to
 * boot the same slot with the same arguments and write the same bytes.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { RECORD_OFFSETS, SECTOR, SLOTS } from "../../boot/layout.ts";
import { CARD_BYTES, P1_BYTES, SLOT_OFFSETS } from "../crash/card.ts";
import { AREA, CrashDisk, type Image } from "../crash/disk.ts";
import { casesOf, record } from "../crash/engine.ts";
import { turned } from "../crash/faults.ts";
import { start } from "../crash/model.ts";
import { NEW, NEXT, OLD, SCENARIOS } from "../crash/scenarios.ts";
import { missingForEmulator } from "../emulator/cache.ts";
import { LIMITS } from "../emulator/limits.ts";
import { bootPartition, FIRMWARE_ARGS, UBoot } from "../emulator/uboot.ts";

const LEAST = 150;
const missing = missingForEmulator();

/** What the boot loader can tell apart: the four places, and whether the boot files of the slots are one release's. */
function looksOf(image: Image): string {
  const places = RECORD_OFFSETS.map((offset) => image.digestOf(offset / AREA));
  const files = SLOTS.map((slot) =>
    [OLD, NEW, NEXT].findIndex(({ bytes, content: { kernel } }) =>
      image.holds(SLOT_OFFSETS[slot] + kernel.offset, bytes.subarray(kernel.offset)),
    ),
  );
  return [...places, ...files].join(" ");
}

/** Cards of all updates that look different to a boot loader. */
async function differentCards(): Promise<{ name: string; image: Image }[]> {
  const seen = new Map<string, { name: string; image: Image }>();
  for (const scenario of SCENARIOS) {
    const recording = await record(scenario);
    // What a data partition holds is nothing to a boot loader
    for (const cut of casesOf(recording).filter(({ dataBehind }) => dataBehind === undefined)) {
      const image = cut.make();
      const looks = looksOf(image);
      if (!seen.has(looks)) seen.set(looks, { name: `${scenario.name}/${cut.name}`, image });
    }
  }
  return [...seen.values()];
}

/** Some of them, and of each kind some whose boot files are damaged. */
async function cards(): Promise<Map<string, Image>> {
  const all = await differentCards();
  const every = Math.ceil(all.length / (LEAST - 30));
  const chosen = new Map<string, Image>();
  for (const { name, image } of all.filter((_, index) => index % every === 0)) chosen.set(name, image);
  for (const { name, image } of all.filter((_, index) => index % (6 * every) === 0))
    for (const damaged of [["a"], ["b"], ["a", "b"]] as const)
      chosen.set(`${name}, boot files of ${damaged.join(" and ")} damaged`, spoilt(image, damaged));
  return chosen;
}

/** A bit of the kernel, or of the initramfs, of every release that the slot could hold is turned. */
function spoilt(image: Image, slots: readonly ("a" | "b")[]): Image {
  let now = image;
  for (const slot of slots)
    for (const { content } of [OLD, NEW, NEXT]) {
      const file = slot === "a" ? content.kernel : content.initramfs;
      now = turned(now, Math.floor((SLOT_OFFSETS[slot] + file.offset) / SECTOR) + 3, 5);
    }
  return now;
}

describe.skipIf(missing !== undefined)(
  `the boot loader's model${missing ? ` [needs: ${missing}]` : ""}`,
  () => {
    let emulator: UBoot;
    let boot: Uint8Array;
    beforeAll(async () => {
      emulator = await UBoot.for(CARD_BYTES);
      boot = await bootPartition(P1_BYTES);
    }, LIMITS.test);
    afterAll(() => emulator?.[Symbol.asyncDispose]());

    test(
      `does with ${LEAST} cards and more what U-Boot does with them`,
      async () => {
        const tally: Record<string, number> = {};
        const wrong: unknown[] = [];
        const all = await cards();
        for (const [name, image] of all) {
          const disk = new CrashDisk(image.copy());
          const { boots, args } = start(disk.medium);
          const booted = await emulator.run(image, boot);
          const modelled = {
            boots,
            bootargs: `${FIRMWARE_ARGS} ${args} panic=10`,
            places: RECORD_OFFSETS.map((offset) => hex(disk.image.read(offset, SECTOR))),
            elsewhere: [] as number[],
          };
          const real = {
            boots: booted.booted,
            bootargs: booted.bootargs,
            places: booted.recordsAfter.map(hex),
            elsewhere: booted.changedElsewhere,
          };
          const kind = `${boots}, ${disk.journal.length} written`;
          tally[kind] = (tally[kind] ?? 0) + 1;
          if (!Bun.deepEquals(modelled, real)) wrong.push({ name, modelled, real });
        }
        console.log(`U-Boot and its model: ${all.size} cards, ${wrong.length} differ;`, tally);
        expect(wrong.slice(0, 3)).toEqual([]);
        expect(all.size).toBeGreaterThanOrEqual(LEAST);
      },
      30 * 60_000,
    );
  },
);

const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString("hex");
