/** An install that copies what the slots hold, and what it has taken while it goes on. */
import { expect, test } from "bun:test";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { heldIn, keptOf } from "../agent/update/held.ts";
import { ChunkIndex } from "../boot/chunks.ts";
import { LEAF_BYTES } from "../boot/content.ts";
import { WrongLeaf } from "../boot/leaf.ts";
import { SlotWriter, WriterError } from "../boot/writer.ts";
import { HalError } from "../hal/ports.ts";
import { SLOT_OFFSETS } from "./crash/card.ts";
import { fill, NEW, OLD, payloadOf, slotWith, unknown } from "./held.ts";
import { SOURCES } from "./node.ts";
import { chunksOf, makePayload, makeRelease, sideOf } from "./releases.ts";
import { holds, MemoryDisk, MemorySwitch, node, slotRecord } from "./slot.ts";
import { desk } from "./updates.ts";

const MiB = 1024 * 1024;
const signal = new AbortController().signal;

test("a leaf that was taken is read wherever it is: in memory, on its way, on the medium", async () => {
  const { disk, install } = node(NEW);
  const writer = await SlotWriter.open(install);
  const same = async (leaf: number) => Buffer.compare(await writer.read(leaf), NEW.leaf(leaf)) === 0;
  await expect(writer.read(0)).rejects.toThrow(WriterError);
  for (const leaf of [0, 5, writer.count - 1]) await writer.put(leaf, NEW.leaf(leaf));
  expect(disk.written).toBe(0);
  for (const leaf of [0, 5, writer.count - 1]) expect(await same(leaf)).toBe(true);
  await expect(writer.read(6)).rejects.toThrow("leaf 6 has not come yet");
  // What is handed out is the caller's: the slot gets what was put
  (await writer.read(0)).fill(1);
  (await writer.read(5)).fill(1);
  let release = () => {};
  const blocked = new Promise<void>((resolve) => {
    release = resolve;
  });
  disk.before = (what) => (what === "write" ? blocked : undefined);
  for (let leaf = 32; leaf < 32 * 4; leaf++) {
    const put = writer.put(leaf, NEW.leaf(leaf));
    // The third run waits for the card; two are on their way
    if (leaf < 32 * 4 - 1) await put;
    else put.catch(() => undefined);
  }
  for (const leaf of [5, 32, 63, 64, 95, 96]) expect(await same(leaf)).toBe(true);
  disk.before = () => {};
  release();
  await writer.suspend();
  for (const leaf of [0, 5, 32, 95, writer.count - 1]) expect(await same(leaf)).toBe(true);
  const block = disk.cache.get((40 * LEAF_BYTES) / 4096);
  if (block) block[0] = (block[0] ?? 0) ^ 1;
  await expect(writer.read(40)).rejects.toThrow(WrongLeaf);
  await fill(writer, NEW);
  await writer.finish();
  expect(await holds(disk, NEW)).toBe(true);
});

test("both slots are looked at, the one that stays as it is first; one without an index only if that pays", async () => {
  const [a, b] = [await slotWith(OLD), await slotWith(OLD.subarray(0, MiB), "slot b")];
  const over = {
    slots: { a: { ...slotRecord("good", 7n), payloadBytes: OLD.length }, b: slotRecord("empty", 0n) },
  };
  const disk = new MemoryDisk(8 * MiB, "card");
  disk.readMedium = (offset, length, into) => a.disk.readMedium(offset - MiB, length, into);
  const card = {
    disk,
    boot: new MemorySwitch(over),
    slots: {
      a: { number: 2, type: 0x83, offset: MiB, bytes: 4 * MiB },
      b: { number: 3, type: 0x83, offset: 5 * MiB, bytes: 4 * MiB },
    },
  };
  const side = sideOf(OLD.subarray(0, MiB), b.held.index.bytes).bytes;
  const openDisk = async (path: string) => {
    if (!path.endsWith("/releases/b.side")) throw new HalError("absent", path);
    const file = new MemoryDisk(side.length, path);
    file.read = async (offset, length) => Uint8Array.from(side.subarray(offset, offset + length));
    return file;
  };
  const kept = await keptOf({ hal: { openDisk }, card, dataDir: "/data" }, { slot: "b", device: b.disk });
  const near = await heldIn(kept, signal);
  expect(near.map(({ device, index }) => [device.name, index.size])).toEqual([["slot b", MiB]]);
  const told: number[] = [];
  const far = await heldIn(kept, signal, (bytes) => told.push(bytes));
  expect(far.map(({ device, index }) => [device.name, index.size])).toEqual([
    ["card, partition 2", OLD.length],
    ["slot b", MiB],
  ]);
  expect(told.at(-1)).toBe(OLD.length);
  a.disk.before = () => {
    throw new HalError("io", "slot a: it is failing");
  };
  expect(await heldIn(kept, signal, () => {})).toHaveLength(1);
});

/** A release whose root is that of another but for its middle. */
function next(base: ReturnType<typeof makePayload>) {
  const after = makePayload({ version: 9n, name: "fruitos-9", rootBytes: 700_000 });
  base.payload.copy(after.payload, 4096, 4096, 400_000);
  return after;
}

/** A desk whose node runs a release of which its data folder has the side file. */
function updated() {
  const before = makePayload({ version: 4n, name: "fruitos-4", rootBytes: 700_000, seed: 40 });
  const at = desk({ payload: next(before) });
  at.card.write(SLOT_OFFSETS.a, before.payload);
  mkdirSync(at.file("data/releases"));
  writeFileSync(at.file("data/releases/a.side"), makeRelease({ payload: before }).side);
  // What is copied is not taken from the payload
  const fresh = payloadOf(at.release.payload);
  const needed = new Set(unknown(fresh, new ChunkIndex(chunksOf(before.payload), before.payload.length)));
  const spoilt = Buffer.from(at.release.payload);
  for (let leaf = 0; leaf < fresh.leaves.count; leaf++)
    if (!needed.has(leaf)) spoilt.fill(0xee, leaf * LEAF_BYTES, (leaf + 1) * LEAF_BYTES);
  writeFileSync(at.file("fruitos-9"), spoilt);
  return at;
}

test("an install copies what the running slot has, says so, and needs the payload for the rest only", async () => {
  using at = updated();
  const { exit, out, err } = await at.install("--json");
  expect([exit, err]).toEqual([0, ""]);
  const { bytes, bytes_from_slots: slots, bytes_from_payload: rest } = JSON.parse(out);
  expect(slots).toBeGreaterThan(200_000);
  expect(rest).toBeGreaterThan(200_000);
  expect(slots + rest).toBeLessThanOrEqual(bytes);
  expect(Buffer.compare(at.card.read(SLOT_OFFSETS.b, bytes), at.release.payload)).toBe(0);
});

test("a person sees how much came from where", async () => {
  using at = updated();
  const { out, err } = await at.install();
  expect(out).toMatch(/^0\.[23] MB came from the slots, 0\.[45] MB from the payload\n/);
  expect(err).toMatch(
    /^fruitos-9, .*\ncopying what the slots hold of it: 0\.7 MB\n {2}done in 0s.*\nwriting: 0\.7 MB\n {2}done/,
  );
});

test("killed while it copies, the same command finishes, and the running slot is as it was", async () => {
  using at = updated();
  const running = at.card.read(SLOT_OFFSETS.a, MiB);
  const child = Bun.spawn([...SOURCES.command, ...at.words()], {
    env: { ...process.env, FRUIT_FAILPOINT: "writer.leaf:9" },
    stdin: "ignore",
    stdout: "ignore",
    stderr: "ignore",
  });
  await child.exited;
  expect(child.signalCode).toBe("SIGKILL");
  expect(at.card.record.slots.b.state).toBe("writing");
  const { exit } = await at.install("--json");
  expect(exit).toBe(0);
  const size = at.release.payload.length;
  expect(Buffer.compare(at.card.read(SLOT_OFFSETS.b, size), at.release.payload)).toBe(0);
  expect(Buffer.compare(at.card.read(SLOT_OFFSETS.a, MiB), running)).toBe(0);
  expect(at.release.side.equals(readFileSync(at.file("data/releases/b.side")))).toBe(true);
});
