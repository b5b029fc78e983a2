/** A release out of what the slots hold: what is there is copied, and nothing wrong ever is. */
import { expect, test } from "bun:test";
import { ChunkIndex, ENTRY_BYTES } from "../boot/chunks.ts";
import { LEAF_BYTES } from "../boot/content.ts";
import { copyHeld, indexOf } from "../boot/delta.ts";
import { SlotWriter } from "../boot/writer.ts";
import { HalError } from "../hal/ports.ts";
import { seeded } from "./fakes.ts";
import { fill, NEW, OLD, open, payloadOf, slotWith, unknown } from "./held.ts";
import { chunksOf, noise } from "./releases.ts";
import { holds, inOrder, node, slotRecord } from "./slot.ts";

const MiB = 1024 * 1024;
const signal = new AbortController().signal;

test("what the old slot has is copied, wherever it stood, and only the leaves with new bytes are left", async () => {
  const { held } = await slotWith(OLD);
  const { disk, install } = node(NEW);
  const writer = await SlotWriter.open(install);
  await copyHeld(writer, NEW, [held], signal);
  const left = unknown(NEW, held.index);
  expect(open(writer)).toEqual(left);
  expect(left.length).toBeLessThan(writer.count / 4);
  expect(left.length).toBeGreaterThan(5);
  const bytes = left.reduce((sum, leaf) => sum + NEW.leaf(leaf).length, 0);
  expect(writer.from).toEqual({ slots: NEW.bytes.length - bytes, zeros: 0, payload: 0 });
  await fill(writer, NEW);
  await writer.finish();
  expect(await holds(disk, NEW)).toBe(true);
  expect(writer.from.payload).toBe(bytes);
});

test("a leaf of two chunks that stood far from each other is put together", async () => {
  const index = new ChunkIndex(chunksOf(OLD), OLD.length);
  const [one, two] = [3, 20];
  const part = (chunk: number) => OLD.subarray(index.start(chunk), index.start(chunk + 1));
  const joined = payloadOf(Buffer.concat([part(two), part(one), part(two + 1)]));
  expect(joined.index.start(1) % LEAF_BYTES).not.toBe(0);
  const { held } = await slotWith(OLD);
  const writer = await SlotWriter.open(node(joined).install);
  await copyHeld(writer, joined, [held], signal);
  expect(open(writer)).toEqual([]);
});

test("what the writer has is neither read nor put again, and no more is read at once than a chunk", async () => {
  const { held, read } = await slotWith(OLD);
  const writer = await SlotWriter.open(node(NEW).install);
  await fill(writer, NEW);
  await copyHeld(writer, NEW, [held], signal);
  expect(read).toEqual([]);
  const other = await SlotWriter.open(node(NEW).install);
  await copyHeld(other, NEW, [held], signal);
  expect(Math.max(...read.map(({ length }) => length))).toBeLessThanOrEqual(262_144 + 4096);
  const sum = read.reduce((all, { length }) => all + length, 0);
  // Each chunk once, rounded up to whole blocks at both ends
  expect(sum).toBeLessThan(NEW.bytes.length + NEW.index.count * 8192);
});

test("a byte that has rotted costs its leaf and no other, or nothing where the other slot has it", async () => {
  const a = await slotWith(OLD);
  const spot = 2_000_000;
  const block = a.disk.medium.get(Math.floor(spot / 4096));
  if (block) block[spot % 4096] = (block[spot % 4096] ?? 0) ^ 1;
  const alone = await SlotWriter.open(node(NEW).install);
  await copyHeld(alone, NEW, [a.held], signal);
  const moved = spot + NEW.bytes.length - OLD.length;
  const chunk = NEW.index.at(moved);
  const lost = open(alone).filter((leaf) => !unknown(NEW, a.held.index).includes(leaf));
  expect(lost).toContain(Math.floor(moved / LEAF_BYTES));
  // Those of its chunk at most
  for (const leaf of lost) {
    expect((leaf + 1) * LEAF_BYTES).toBeGreaterThan(NEW.index.start(chunk));
    expect(leaf * LEAF_BYTES).toBeLessThan(NEW.index.start(chunk + 1));
  }
  const b = await slotWith(OLD, "slot b");
  const both = await SlotWriter.open(node(NEW).install);
  await copyHeld(both, NEW, [a.held, b.held], signal);
  expect(open(both)).toEqual(unknown(NEW, a.held.index));
  // Of what is good in the first slot nothing is read in the second
  expect(b.read).toHaveLength(1);
});

test("where the same chunk stands twice in a row, one that has rotted does not cost the other slot's", async () => {
  // Of the same bytes over and over no place is one to cut at: chunks as long as they may be
  const same = Buffer.concat([OLD.subarray(0, 300_000), Buffer.alloc(1_200_000, 1)]);
  const source = payloadOf(same);
  const { index } = source;
  const twin = (chunk: number) => index.key(chunk) === index.key(chunk + 1);
  const one = Array.from({ length: index.count - 1 }, (_, chunk) => chunk).find(twin) ?? -1;
  expect(one).toBeGreaterThan(0);
  const [a, b] = [await slotWith(same), await slotWith(same, "slot b")];
  const end = index.start(one + 1);
  expect(end % LEAF_BYTES).not.toBe(0);
  const block = a.disk.medium.get(Math.floor((end - 1) / 4096));
  if (block) block[(end - 1) % 4096] = 0;
  const writer = await SlotWriter.open(node(source).install);
  await copyHeld(writer, source, [a.held, b.held], signal);
  expect(open(writer)).toEqual([]);
});

test.each([
  { every: 7, costs: "the places that cannot be read" },
  { every: 1, costs: "all of it, and it is left alone after eight" },
])("a medium of which every $every. read fails costs $costs", async ({ every }) => {
  const { held, disk } = await slotWith(OLD);
  let reads = 0;
  let failures = 0;
  disk.before = () => {
    if (++reads % every !== 0) return;
    failures++;
    throw new HalError("io", "slot a: it is failing");
  };
  const writer = await SlotWriter.open(node(NEW).install);
  await copyHeld(writer, NEW, [held], signal);
  if (every === 1) expect([reads, open(writer).length]).toEqual([8, writer.count]);
  else expect(open(writer).length).toBeGreaterThan(unknown(NEW, held.index).length);
  expect(failures).toBeLessThanOrEqual(8);
  await fill(writer, NEW);
  await writer.finish();
});

test("an index that lies leaves its leaves to others, and nothing wrong is put", async () => {
  const { held } = await slotWith(noise(OLD.length, 77));
  const lying = { ...held, index: new ChunkIndex(chunksOf(OLD), OLD.length) };
  const { disk, install } = node(NEW);
  const writer = await SlotWriter.open(install);
  await copyHeld(writer, NEW, [lying], signal);
  expect(open(writer)).toHaveLength(writer.count);
  await writer.suspend();
  expect(disk.written).toBe(0);
});

test("a slot whose index has the same chunk many times is asked for it once", async () => {
  const { held, read } = await slotWith(noise(OLD.length, 77));
  const length = NEW.index.length(0);
  const times = Math.floor(OLD.length / length);
  const entries = Array(times).fill(NEW.index.bytes.subarray(0, ENTRY_BYTES));
  const lying = { ...held, index: new ChunkIndex(Buffer.concat(entries), times * length) };
  const writer = await SlotWriter.open(node(NEW).install);
  await copyHeld(writer, NEW, [lying], signal);
  expect([times > 10, read.length]).toEqual([true, 1]);
});

test("an index of the release that is not that of its leaves copies nothing wrong, and ends", async () => {
  const { held } = await slotWith(OLD);
  const other = payloadOf(Buffer.concat([OLD.subarray(5), noise(5, 1)]));
  const writer = await SlotWriter.open(node(other).install);
  await copyHeld(writer, { leaves: other.leaves, index: held.index }, [held], signal);
  expect(open(writer)).toHaveLength(writer.count);
});

test("leaves of zeros come from nowhere, the short one at the end too, even without an index", async () => {
  const bytes = Buffer.concat([noise(LEAF_BYTES + 9, 1), Buffer.alloc(5 * LEAF_BYTES + 100)]);
  const source = payloadOf(bytes);
  const { disk, install } = node(source);
  const writer = await SlotWriter.open(install);
  await copyHeld(writer, { leaves: source.leaves, index: undefined }, [], signal);
  expect(open(writer)).toEqual([0, 1]);
  expect(writer.from).toEqual({ slots: 0, zeros: bytes.length - 2 * LEAF_BYTES, payload: 0 });
  await fill(writer, source);
  await writer.finish();
  expect(await holds(disk, source)).toBe(true);
});

test("stopped in the middle it goes on where it was", async () => {
  const { held, read } = await slotWith(OLD);
  const stop = new AbortController();
  const { disk, install } = node(NEW, { signal: stop.signal });
  const first = await SlotWriter.open({
    ...install,
    report: ({ phase, bytes }) => phase === "copying" && bytes >= MiB && stop.abort(),
  });
  await expect(copyHeld(first, NEW, [held], stop.signal)).rejects.toThrow("abort");
  await first.suspend();
  const before = read.length;
  const second = await SlotWriter.open({ ...install, signal });
  expect(open(second).length).toBeLessThan(second.count);
  await copyHeld(second, NEW, [held], signal);
  expect(open(second)).toEqual(unknown(NEW, held.index));
  expect(read.length - before).toBeLessThan(before + NEW.index.count);
  await fill(second, NEW);
  await second.finish();
  expect(await holds(disk, NEW)).toBe(true);
});

test("told to stop it stops, though nothing is there to put", async () => {
  const writer = await SlotWriter.open(node(NEW).install);
  await expect(copyHeld(writer, NEW, [], AbortSignal.abort())).rejects.toThrow("abort");
});

test("what an interrupted install has written and does not remember is found again, and not written again", async () => {
  const { disk, install, progress } = node(NEW);
  const first = await SlotWriter.open(install);
  for (const leaf of inOrder(NEW).slice(0, 100)) await first.put(leaf, NEW.leaf(leaf));
  await first.suspend();
  progress.kept = undefined;
  disk.journal.length = 0;
  const second = await SlotWriter.open(install);
  // What is kept of the slot is by now the new release's own
  await copyHeld(second, NEW, [{ device: disk, index: NEW.index }], signal);
  // The first leaf, which was destroyed, and what was not written
  expect(open(second)[0]).toBe(0);
  expect(open(second).length).toBeLessThan(NEW.leaves.count - 100 + 8);
  await second.suspend();
  expect(disk.written).toBe(0);
});

test("a slot is a source while it is written: what is overwritten too early comes from elsewhere", async () => {
  // The whole of it moves up, so that each leaf is written where another stood
  const later = payloadOf(Buffer.concat([noise(100_000, 5), OLD.subarray(0, 2_500_000)]));
  const { disk, held } = await slotWith(OLD, "slot b");
  const { install, boot } = node(later, { device: disk });
  boot.record.slots.b = slotRecord("good", 5n);
  const writer = await SlotWriter.open(install);
  await copyHeld(writer, later, [{ device: disk, index: held.index }], signal);
  await fill(writer, later);
  await writer.finish();
  expect(await holds(disk, later)).toBe(true);
});

test("a slot is looked through where nobody has kept its index, past the cache and with rests", async () => {
  const { held, read } = await slotWith(OLD);
  const rests: number[] = [];
  const pace = { bytes: 262_144, limitMs: 1000, restMs: (took: number) => rests.push(took) && 0 };
  const told: number[] = [];
  const index = await indexOf(held.device, OLD.length, pace, signal, (bytes) => told.push(bytes));
  expect(index.bytes.equals(held.index.bytes)).toBe(true);
  expect(rests).toHaveLength(12);
  expect(told.at(-1)).toBe(OLD.length);
  expect(Math.max(...read.map(({ length }) => length))).toBe(262_144);
  const stop = AbortSignal.abort();
  await expect(indexOf(held.device, OLD.length, pace, stop)).rejects.toThrow("abort");
});

test("random edits of random payloads are copied as far as they are known, and never wrongly", async () => {
  const random = seeded(20_261_124);
  const below = (most: number) => Math.floor(random() * most);
  for (let round = 0; round < 6; round++) {
    let bytes: Buffer = OLD.subarray(0, MiB + below(MiB));
    for (let edit = 0; edit <= below(5); edit++) {
      const at = below(bytes.length);
      const out = below(50_000);
      const put = random() < 0.3 ? Buffer.alloc(below(100_000)) : noise(below(50_000), below(1000));
      bytes = Buffer.concat([bytes.subarray(0, at), put, bytes.subarray(at + out)]);
    }
    const source = payloadOf(bytes);
    const { held } = await slotWith(OLD);
    const { disk, install } = node(source);
    const writer = await SlotWriter.open(install);
    await copyHeld(writer, source, [held], signal);
    const zeros = (leaf: number) => source.leaf(leaf).every((byte) => byte === 0);
    expect(open(writer)).toEqual(unknown(source, held.index).filter((leaf) => !zeros(leaf)));
    await fill(writer, source);
    await writer.finish();
    expect(await holds(disk, source)).toBe(true);
  }
});
