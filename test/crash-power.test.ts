/** Cases 1 to 17: the power fails, on a card that U-Boot starts; crash-table.test.ts finds a number that nobody has. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { RECORD_OFFSETS, SECTOR } from "../boot/layout.ts";
import { decodeRecord } from "../boot/record.ts";
import { cardWith, SLOT_OFFSETS } from "./crash/card.ts";
import { CrashDisk, type Fault, type Step } from "./crash/disk.ts";
import { Examiner, record } from "./crash/engine.ts";
import { start } from "./crash/model.ts";
import { Node } from "./crash/node.ts";
import { NEW, NEXT, OLD, untilUp } from "./crash/scenarios.ts";
import {
  after,
  cutAt,
  examine,
  isData,
  isRecord,
  nodeOn,
  recordSteps,
  scenario,
  WORLD,
  went,
} from "./crash/went.ts";

setDefaultTimeout(60_000);

test("1 power: a cut in the first, a middle and the last write of the payload", async () => {
  const all = after(await went, isData);
  const [first, middle, last] = [0, Math.floor(all.length / 2), all.length - 1].map(
    (index) => all[index] ?? 0,
  );
  expect(all.length).toBeGreaterThan(3);
  expect(await cutAt(first ?? 0)).toEqual([]);
  expect(
    await examine(
      await went,
      ({ k, name }) =>
        [middle, last].includes(k) && /\/(cut|torn:\d*0:(old|mixed|random)|tail:\d*[05]$|lost)/.test(name),
    ),
  ).toEqual([]);
});

test("2 power: a cut while the old first leaf is destroyed", async () => {
  const over = await record({ ...scenario("update"), card: () => cardWith(OLD, NEXT) });
  const [first = 0] = after(over, (step) => step.kind === "write" && step.offset === SLOT_OFFSETS.b);
  expect(await examine(over, ({ k, proviso }) => k === first && proviso === "none")).toEqual([]);
});

test.each(["update", "resumed", "over"])(
  "2 power: in '%s' a slot that is being filled never begins like a file system before all of it is there",
  async (name) => {
    const { images } = await record(scenario(name));
    for (const [k, image] of images.entries()) {
      using node = nodeOn(image.copy());
      if (node.record()?.slots.b.state !== "writing") continue;
      const begun = k > 3 && Buffer.from(image.read(SLOT_OFFSETS.b, 4)).toString("latin1") === "hsqs";
      expect([k, begun && node.held("b") === undefined]).toEqual([k, false]);
    }
  },
);

test("3 power: a cut in the last sector of the boot area", async () => {
  const recording = await went;
  const end = SLOT_OFFSETS.b + NEW.content.initramfs.offset + NEW.content.initramfs.bytes;
  const holdsEnd = (step: Step) =>
    step.kind === "write" && step.offset < end && step.offset + step.bytes.length >= end;
  const [step = 0] = after(recording, holdsEnd);
  const { bytes } = recording.journal[step - 1] as Step & { kind: "write" };
  const last = Math.floor(bytes.length / SECTOR) - 1;
  expect(await examine(recording, ({ name }) => name.startsWith(`${step}/torn:${last - 5}:`))).toEqual([]);
  expect(await examine(recording, ({ name }) => name === `${step}/cut`)).toEqual([]);
});

test("4 power: each state record torn in every way: before, inside and after, old, zeros, ones, random", async () => {
  const steps = after(await went, isRecord);
  expect(steps).toHaveLength(5);
  expect(await cutAt(...steps)).toEqual([]);
});

test("5 power: both newest records torn at every moment: an older one counts, and what starts is whole", async () => {
  const recording = await went;
  for (const [k, image] of recording.images.entries()) {
    const spoilt = image.copy();
    const byAge = RECORD_OFFSETS.map((offset) => ({
      offset,
      record: decodeRecord(image.read(offset, SECTOR)),
    }))
      .map(({ offset, record }) => ({ offset, sequence: typeof record === "string" ? -1 : record.sequence }))
      .sort((one, other) => other.sequence - one.sequence);
    for (const { offset } of byAge.slice(0, 2)) spoilt.write(offset, new Uint8Array(SECTOR).fill(k));
    using node = new Node(spoilt, WORLD, { folder: recording.folders[k] ?? new Map() });
    const slot = await untilUp(node);
    expect([k, node.held(slot)?.name]).toEqual([k, slot === "a" ? OLD.name : NEW.name]);
  }
});

test("6 power: a cut between the release and the record that arms it", async () => {
  const { staged, armed } = await recordSteps();
  expect(await cutAt(staged + 1, staged + 2, armed)).toEqual([]);
});

test("7 power: a cut after arming and before the restart: the trial is not lost and not counted", async () => {
  const { armed } = await recordSteps();
  const image = (await went).images[armed + 1];
  expect(image && start(new CrashDisk(image.copy()).medium)).toMatchObject({
    boots: "b",
    args: expect.stringContaining("fruit.try=1"),
  });
  expect(await cutAt(armed + 1)).toEqual([]);
});

/** U-Boot starts, and the power goes at one of its reads; whether it came to that. */
function cutAtRead(disk: CrashDisk, at: number): boolean {
  const cut = new Error("the power is gone");
  const { medium } = disk;
  let left = at;
  const read = (offset: number, bytes: number) => {
    if (left-- === 0) throw cut;
    return medium.read(offset, bytes);
  };
  try {
    start({ ...medium, read });
    return false;
  } catch (error) {
    if (error !== cut) throw error;
    return true;
  }
}

test("8 power: a cut at each read of U-Boot: nothing is written but a try that is counted, and otherwise the next start is the same", async () => {
  for (const [k, image] of (await went).images.entries()) {
    const uncut = start(new CrashDisk(image.copy()).medium);
    const counted = uncut.args.replace(/(?<=fruit\.try=)\d+/, (attempt) => String(Number(attempt) + 1));
    for (let at = 0; ; at++) {
      const disk = new CrashDisk(image.copy());
      if (!cutAtRead(disk, at)) {
        // The table, four records, a kernel and an initramfs
        expect(at).toBeGreaterThanOrEqual(7);
        break;
      }
      const isCounted = disk.journal.length > 0;
      expect([k, at, isCounted && counted === uncut.args]).toEqual([k, at, false]);
      expect([k, at, disk.image.digest === image.digest]).toEqual([k, at, !isCounted]);
      const args = isCounted ? counted : uncut.args;
      expect([k, at, start(disk.medium)]).toEqual([k, at, { ...uncut, args }]);
    }
  }
});

test("9 power: a cut when the kernel starts: the next start is the next try", async () => {
  const { started } = await recordSteps();
  const image = (await went).images[started];
  expect(image && start(new CrashDisk(image.copy()).medium).args).toContain("fruit.try=2");
  expect(await cutAt(started)).toEqual([]);
});

test("10 power: a cut before the try is marked started: it is not counted", async () => {
  const { started } = await recordSteps();
  const image = (await went).images[started - 1];
  expect(image && start(new CrashDisk(image.copy()).medium).args).toContain("fruit.try=1");
});

test("11 power: a cut just after the try is marked started", async () => {
  const { started } = await recordSteps();
  expect(await examine(await went, ({ k, proviso }) => k === started && proviso === "none")).toEqual([]);
});

test("12 power: a cut during the checks: the slot is tried again and confirmed", async () => {
  const { started } = await recordSteps();
  const recording = await went;
  const image = recording.images[started];
  if (!image) throw new Error("no image");
  using node = new Node(image.copy(), WORLD, { folder: recording.folders[started] ?? new Map(), starts: 50 });
  expect(await untilUp(node)).toBe("b");
  expect(node.record()?.slots.b.state).toBe("good");
});

test("13 power: the record that confirms old, new, half written, zeros, ones and random", async () => {
  const { confirmed } = await recordSteps();
  expect(await examine(await went, ({ k, name }) => k === confirmed && name.includes("/torn"))).toEqual([]);
  expect(await cutAt(confirmed - 1, confirmed)).toEqual([]);
});

test("14 power: there is nothing between deciding and committed: one record does both, and it is lost or not", async () => {
  const { confirmed } = await recordSteps();
  const { journal } = await went;
  expect(journal.slice(confirmed)).toEqual([{ kind: "flush", way: "disk" }]);
  expect(await examine(await went, ({ k, name }) => k === confirmed && name.includes("/lost"))).toEqual([]);
});

test("15 power: a cut at every start for twenty starts: the tries are spent, then the old system starts every time", async () => {
  const { armed } = await recordSteps();
  const image = (await went).images[armed + 1];
  if (!image) throw new Error("no image");
  const disk = new CrashDisk(image.copy());
  const started = Array.from({ length: 20 }, () => start(disk.medium).boots);
  expect(started).toEqual([..."bbb", ...Array(17).fill("a")]);
  // Nothing is written once the trial is over
  expect(disk.journal).toHaveLength(4);
  using node = nodeOn(disk.image);
  expect(await untilUp(node)).toBe("a");
  expect(node.record()?.slots.b).toMatchObject({ state: "failed", reason: "tries-spent" });
});

test("17 power: a brown-out in which the agent runs and no write succeeds, at every write", async () => {
  const recording = await went;
  const examiner = new Examiner(recording);
  for (let at = 0; at < recording.calls.write; at++) {
    const fault: Fault = { fault: "EROFS", on: "write", at };
    expect([at, await examiner.examineLive({ name: "", fault, isLasting: false })]).toEqual([at, []]);
  }
});
