/**
 * Cases 18 to 28 on a card that U-Boot starts, and what of the later ones the disk decides. Those of the trial are in trial.test.ts,
 * the kills in proof/crash-failpoints.proof.ts and update.test.ts; proof/crash-disk.proof.ts has the faults at every call.
 */
import { expect, setDefaultTimeout, test } from "bun:test";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { pid } from "node:process";
import { holdFolder } from "../agent/hold.ts";
import { ForeignCard, RECORD_OFFSETS, readCard, SECTOR } from "../boot/layout.ts";
import { CARD_BYTES, cardWith, SLOT_BYTES, SLOT_OFFSETS } from "./crash/card.ts";
import { CrashDisk, type Fault, Image } from "./crash/disk.ts";
import { Examiner, record } from "./crash/engine.ts";
import { turned } from "./crash/faults.ts";
import { start } from "./crash/model.ts";
import { Node } from "./crash/node.ts";
import { TRY } from "./crash/orders.ts";
import { NEW, NEXT, OLD, SCENARIOS, untilUp } from "./crash/scenarios.ts";
import { isRecord, nodeOn, recordSteps, WORLD, went } from "./crash/went.ts";
import { scratch } from "./node.ts";

setDefaultTimeout(60_000);

test("18 medium: what was written reads back otherwise, once or for ever, at every third write", async () => {
  const recording = await went;
  const examiner = new Examiner(recording);
  for (let at = 0; at < recording.calls.write; at += 3)
    for (const forEver of [false, true]) {
      const fault: Fault = { fault: "differs", on: "write", at, byte: 0x2c, forEver };
      expect([at, await examiner.examineLive({ name: "", fault, isLasting: false })]).toEqual([at, []]);
    }
});

test("19 medium: bit rot in the kernel of the running slot: the other good slot takes its place and says why", async () => {
  const rotten = turned(cardWith(OLD, NEXT), (SLOT_OFFSETS.a + OLD.content.kernel.offset) / SECTOR + 2, 1);
  using node = nodeOn(rotten);
  expect(await untilUp(node)).toBe("b");
  expect(node.record()).toMatchObject({
    primary: "b",
    slots: { a: { state: "failed", reason: "files-damaged" } },
  });
});

test("19 medium: bit rot in the slot on trial, in each leaf: it is never confirmed", async () => {
  const recording = await went;
  const { armed } = await recordSteps();
  const image = recording.images[armed + 1];
  if (!image) throw new Error("no image");
  for (let leaf = 0; leaf * 16_384 < NEW.bytes.length; leaf += 5) {
    const rotten = turned(image, (SLOT_OFFSETS.b + leaf * 16_384) / SECTOR + 1, leaf);
    using node = new Node(rotten, WORLD, { folder: recording.folders[armed + 1] ?? new Map(), starts: 50 });
    expect([leaf, await untilUp(node)]).toEqual([leaf, "a"]);
    expect(node.record()?.slots.b.state).toBe("failed");
  }
});

test("19 medium: bit rot in any one record at any moment", async () => {
  const recording = await went;
  for (const [k, image] of recording.images.entries())
    for (const offset of RECORD_OFFSETS) {
      const disk = new CrashDisk(turned(image, offset / SECTOR, k));
      const { boots } = start(disk.medium);
      using node = new Node(disk.image, WORLD);
      expect([k, offset, node.held(boots === "b" ? "b" : "a") !== undefined]).toEqual([k, offset, true]);
      expect(boots).toMatch(/^[ab]$/);
    }
});

test.each([
  {
    what: "20 medium: EIO on every third write and flush, and on every twelfth read",
    faults: ["read", "write", "flush"] as const,
  },
])("$what: the update ends or fails, and can be done again", async ({ faults }) => {
  const recording = await went;
  const examiner = new Examiner(recording);
  for (const on of faults)
    for (let at = 0; at < recording.calls[on]; at += on === "read" ? 12 : 3) {
      const fault: Fault = { fault: "EIO", on, at };
      expect([on, at, await examiner.examineLive({ name: "", fault, isLasting: false })]).toEqual([
        on,
        at,
        [],
      ]);
    }
});

test("21 medium: read-only after an error, and it stays so: the node starts and stays up on what it has", async () => {
  const recording = await went;
  const examiner = new Examiner(recording);
  for (let at = 0; at < recording.calls.write; at++) {
    const fault: Fault = { fault: "EROFS", on: "write", at };
    expect([at, await examiner.examineLive({ name: "", fault, isLasting: true })]).toEqual([at, []]);
  }
});

test("22 medium: no room for the progress of an install: it is installed, only resuming is lost", async () => {
  using node = nodeOn(cardWith(OLD));
  const full = async () => {
    throw Object.assign(new Error("ENOSPC: no space left on device"), { code: "ENOSPC" });
  };
  await node.install(NEW, "a", { progress: { load: async () => undefined, save: full, clear: full } });
  expect([node.held("b")?.name, node.record()?.slots.b.state]).toEqual([NEW.name, "staged"]);
});

test("23 medium: a write that hangs until the power is cut, at every write", async () => {
  const recording = await went;
  const examiner = new Examiner(recording);
  for (let at = 0; at < recording.calls.write; at++) {
    const fault: Fault = { fault: "hangs", on: "write", at };
    expect([at, await examiner.examineLive({ name: "", fault, isLasting: false })]).toEqual([at, []]);
  }
});

// The loop's half. The feeder's, which runs from memory and goes by the heart alone, is in feeder.test.ts: "feeds while the agent's
// heartbeat goes on", "starts the node again when the card hangs"
test("24 medium: a card slower than the watchdog does not hold up the agent's loop, and so not its heart", async () => {
  using node = nodeOn(cardWith(OLD));
  let beats = 0;
  let isOver = false;
  const heart = (async () => {
    for (; !isOver; beats++) await new Promise((done) => setTimeout(done, 1));
  })();
  // Each call comes back only after two more beats: were the event loop held up, none would ever come back
  const slowly = async () => {
    for (const until = beats + 2; beats < until; ) await new Promise((done) => setTimeout(done, 1));
  };
  await node.install(NEW, "a", { wait: slowly });
  isOver = true;
  await heart;
  expect(node.held("b")?.name).toBe(NEW.name);
  expect(beats).toBeGreaterThan(2 * node.disk.calls.write);
});

test.each(SCENARIOS)(
  "25, 26 medium: during '$name' nothing but records and the slot that does not run is ever written",
  async (one) => {
    const { journal, images } = await record(one);
    for (const [index, step] of journal.entries()) {
      if (step.kind !== "write" || isRecord(step)) continue;
      const image = images[index];
      const { boots } = image ? start(new CrashDisk(image.copy()).medium) : { boots: "a" };
      const other = SLOT_OFFSETS[boots === "a" ? "b" : "a"];
      expect([index, step.offset >= other && step.offset + step.bytes.length <= other + SLOT_BYTES]).toEqual([
        index,
        true,
      ]);
    }
  },
);

test("26 medium: a damaged partition table: the agent refuses the card in words and touches nothing", async () => {
  const image = cardWith(OLD);
  image.write(0, new Uint8Array(SECTOR));
  const disk = new CrashDisk(image);
  expect(start(disk.medium).boots).toBe("nothing");
  await expect(readCard(disk.open("disk"))).rejects.toThrow(ForeignCard);
  expect(disk.journal).toEqual([]);
});

test("27 medium: a card smaller than its layout is refused in words, and a payload larger than the slot before anything is written", async () => {
  const short = new Image(CARD_BYTES / 2);
  for (const { offset, bytes } of cardWith(OLD).written())
    if (offset + bytes.length <= short.bytes) short.write(offset, bytes);
  await expect(readCard(new CrashDisk(short).open("disk"))).rejects.toThrow(ForeignCard);
  using node = nodeOn(cardWith(OLD));
  const { release } = NEW;
  const large = { ...NEW, release: { ...release, size: SLOT_BYTES + 1 } };
  await expect(node.install(large, "a")).rejects.toThrow(/too few/);
  expect(node.disk.journal).toEqual([]);
});

test("28 medium: a card that was put into another board starts, and takes no release that is not for that board", async () => {
  using node = nodeOn(cardWith(OLD));
  await untilUp(node);
  const steps = node.disk.journal.length;
  await expect(node.install(NEW, "a", { board: "raspberrypi,5-model-b" })).rejects.toThrow(
    /is for raspberrypi,3-model-b; this node is raspberrypi,5-model-b/,
  );
  expect(node.disk.journal).toHaveLength(steps);
});

test("52 clock jumps in the trial: years ahead or back, it is decided as if they had not; an unset clock leaves the record its time", async () => {
  for (const now of [0, 1, 2 ** 31, 2 ** 32 + 5]) {
    using node = nodeOn(cardWith(OLD));
    await node.install(NEW, await untilUp(node));
    const { time: before = 0 } = node.record() ?? {};
    expect(before).toBeGreaterThan(1);
    await untilUp(node, TRY);
    node.now = now;
    expect([now, await untilUp(node)]).toEqual([now, "b"]);
    // What is beyond 2106 no clock says
    const isTime = now > 0 && now < 2 ** 32;
    expect(node.record()).toMatchObject({ primary: "b", time: isTime ? now : before });
  }
});

test("55 two installs at once: the second is told of the first and touches nothing, until that is over", async () => {
  using folder = scratch();
  const boot = join(folder.path, "boot");
  mkdirSync(boot);
  const first = holdFolder(boot, "install");
  expect(() => holdFolder(boot, "install")).toThrow(String(pid));
  first[Symbol.dispose]();
  holdFolder(boot, "install")[Symbol.dispose]();
});

test("56 install during a trial is refused, and nothing is written", async () => {
  using node = nodeOn(cardWith(OLD));
  await node.install(NEW, await untilUp(node));
  await untilUp(node, TRY);
  const steps = node.disk.journal.length;
  await expect(node.install(NEXT, "a")).rejects.toThrow(/on trial/);
  await expect(node.install(NEXT, "b")).rejects.toThrow(/never written/);
  expect(node.disk.journal).toHaveLength(steps);
});

test("60 resume at a wrong place: progress that speaks of leaves that are not there is not believed", async () => {
  using node = nodeOn(cardWith(OLD));
  await node.install(NEW, "a", { leaves: 10 });
  const claims = {
    load: async () => ({
      slot: "b" as const,
      infohash: NEW.release.infohash,
      root: Buffer.from(NEW.release.piecesRoot).toString("hex"),
      size: NEW.release.size,
      done: new Uint8Array(64).fill(0xff),
    }),
    save: async () => {},
    clear: async () => {},
  };
  await node.install(NEW, "a", { progress: claims });
  expect([node.held("b")?.name, node.record()?.slots.b.state]).toEqual([NEW.name, "staged"]);
});

test("61 resume after the release has changed: nothing of the old one is left", async () => {
  using node = nodeOn(cardWith(OLD));
  await node.install(NEW, "a", { leaves: 30 });
  await node.install(NEXT, "a");
  expect([node.held("b")?.name, node.record()?.slots.b.hash]).toEqual([NEXT.name, NEXT.content.hash]);
});

test("62 both slots bad: the rescue starts, says why, and nothing is written", async () => {
  let image = cardWith(OLD, NEXT);
  for (const [slot, payload] of [
    ["a", OLD],
    ["b", NEXT],
  ] as const)
    image = turned(image, (SLOT_OFFSETS[slot] + payload.content.kernel.offset) / SECTOR + 2, 1);
  const disk = new CrashDisk(image);
  expect(start(disk.medium)).toEqual({ boots: "rescue", args: "fruit.rescue=damaged" });
  expect(disk.journal).toEqual([]);
});
