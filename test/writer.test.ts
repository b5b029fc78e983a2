import { expect, test } from "bun:test";
import { createHash } from "node:crypto";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { LEAF_BYTES } from "../boot/content.ts";
import type { Install } from "../boot/install.ts";
import { WrongLeaf } from "../boot/leaf.ts";
import { Bits, fileProgress, type Installing } from "../boot/progress.ts";
import { SlotWriter, WriterError } from "../boot/writer.ts";
import { HalError } from "../hal/ports.ts";
import { seeded } from "./fakes.ts";
import { scratch, until } from "./node.ts";
import {
  holds,
  inOrder,
  MemoryDisk,
  type MemorySwitch,
  node,
  type Payload,
  payload,
  putAll,
} from "./slot.ts";

const MiB = 1024 * 1024;
const KEPT = {
  schema: "fruit.boot.writing/1",
  ...{ slot: "b", infohash: "11", root: "22", size: 3, done: Buffer.from([3, 1]).toString("base64") },
};

function shuffled(numbers: number[], seed: number): number[] {
  const next = seeded(seed);
  const left = [...numbers];
  return numbers.map(() => left.splice(Math.floor(next() * left.length), 1)[0] ?? 0);
}

test.each([{ size: 1 }, { size: LEAF_BYTES }, { size: LEAF_BYTES + 1 }, { size: 3 * MiB + 12_345 }])(
  "a payload of $size bytes is in the slot when it is staged",
  async ({ size }) => {
    const source = payload(size);
    const { disk, install, boot } = node(source);
    const writer = await SlotWriter.open(install);
    await putAll(writer, source);
    await writer.finish();
    expect(await holds(disk, source)).toBe(true);
    expect(boot.record.slots.b).toMatchObject({
      state: "staged",
      version: 8n,
      hash: Buffer.from(source.release.piecesRoot).toString("hex", 0, 16),
      payloadBytes: size,
      kernel: { crc32: 1 },
      initramfs: { crc32: 2 },
      deviceTree: { crc32: 3 },
    });
  },
);

test.each([1, 2, 3])("leaves may come in any order and twice (seed %i)", async (seed) => {
  const source = payload(3 * MiB + 5);
  const { disk, install } = node(source);
  const writer = await SlotWriter.open(install);
  const order = shuffled([...inOrder(source), ...inOrder(source)], seed);
  await putAll(writer, source, order);
  await writer.finish();
  expect(await holds(disk, source)).toBe(true);
  expect(disk.written).toBe(3 * MiB + 4096);
});

test("leaves far from each other are written before they fill the memory", async () => {
  const source = payload(20 * MiB);
  const { disk, install } = node(source, { bytes: 20 * MiB });
  const writer = await SlotWriter.open(install);
  disk.journal.length = 0;
  // One in every 512 KiB; eight of these wait to be filled
  for (let leaf = 33; leaf < 33 + 12 * 32; leaf += 32) await writer.put(leaf, source.leaf(leaf));
  await until("four are written", () => disk.written === 4 * LEAF_BYTES);
});

test("the run that the first leaf is missing of is written as soon as all the others are there", async () => {
  const source = payload(3 * MiB);
  const { disk, install } = node(source);
  const writer = await SlotWriter.open(install);
  disk.journal.length = 0;
  await putAll(writer, source, inOrder(source).slice(1, 32));
  await until("it is written", () => disk.written === 31 * LEAF_BYTES);
});

test.each([
  { what: "a newer agent", text: JSON.stringify({ ...KEPT, schema: "fruit.boot.writing/2" }), is: undefined },
  { what: "no slot", text: JSON.stringify({ ...KEPT, slot: "c" }), is: undefined },
  { what: "no size", text: JSON.stringify({ ...KEPT, size: "3" }), is: undefined },
  { what: "no bitmap", text: JSON.stringify({ ...KEPT, done: 7 }), is: undefined },
  { what: "nobody", text: "{", is: undefined },
  { what: "this agent", text: JSON.stringify(KEPT), is: Buffer.from([3, 1]) },
])("progress that is $what's", async ({ text, is }) => {
  using folder = scratch();
  mkdirSync(join(folder.path, "boot"));
  folder.file("boot/writing.json", text);
  const kept = await fileProgress(folder.path).load();
  expect(kept?.done).toEqual(is as undefined);
});

test("a bit counts once, however often it is set or cleared", () => {
  const bits = new Bits(20);
  const counts = (["add", "add", "delete", "delete"] as const).map((change) => {
    bits[change](9);
    return [bits.has(9), bits.count];
  });
  expect(counts).toEqual([
    [true, 1],
    [true, 1],
    [false, 0],
    [false, 0],
  ]);
});

test("leaves may be put at once: each waits its turn", async () => {
  const source = payload(3 * MiB);
  const { disk, install } = node(source);
  const writer = await SlotWriter.open(install);
  await Promise.all(inOrder(source).map((leaf) => writer.put(leaf, source.leaf(leaf))));
  await writer.finish();
  expect(await holds(disk, source)).toBe(true);
});

test("a leaf in order is written in runs of 128 KiB or more, two on their way at most", async () => {
  const source = payload(4 * MiB);
  const { disk, install } = node(source);
  const writer = await SlotWriter.open(install);
  await putAll(writer, source);
  await writer.suspend();
  const sizes = disk.journal.flatMap((step) => (step === "flush" ? [] : [step.bytes]));
  expect(Math.min(...sizes)).toBeGreaterThanOrEqual(128 * 1024);
  expect(disk.inFlightMost).toBeLessThanOrEqual(2);
});

test("the first leaf is destroyed before anything is written and comes back last", async () => {
  const old = payload(MiB, { seed: 9 });
  const { disk, install } = node(old);
  await install.device.write(0, old.leaf(0));
  await install.device.flush();
  disk.journal.length = 0;
  const source = payload(MiB);
  const writer = await SlotWriter.open({ ...install, release: source.release, leaves: source.leaves });
  expect(disk.journal).toEqual([{ write: 0, bytes: LEAF_BYTES }, "flush"]);
  await putAll(writer, source);
  await writer.suspend();
  expect((await disk.readMedium(0, LEAF_BYTES)).every((byte) => byte === 0)).toBe(true);
  disk.journal.length = 0;
  await writer.finish();
  expect(disk.journal).toEqual(["flush", { write: 0, bytes: LEAF_BYTES }, "flush"]);
});

test.each([
  {
    what: "a turned bit",
    change: (leaf: Uint8Array) => leaf.with(100, leaf[100] === 0 ? 1 : 0),
    says: "leaf 17 (byte 278528) is not the one that was signed",
  },
  {
    what: "a byte too few",
    change: (leaf: Uint8Array) => leaf.subarray(1),
    says: "leaf 17 has 16384 bytes, not 16383",
  },
  {
    what: "a byte too many",
    change: (leaf: Uint8Array) => Uint8Array.from([...leaf, 0]),
    says: "leaf 17 has 16384 bytes, not 16385",
  },
  { what: "no bytes", change: () => new Uint8Array(), says: "leaf 17 has 16384 bytes, not 0" },
])("a leaf with $what is refused by its number, and nothing changes", async ({ change, says }) => {
  const source = payload(MiB);
  const { disk, install } = node(source);
  const writer = await SlotWriter.open(install);
  disk.journal.length = 0;
  const wrong = await writer.put(17, change(source.leaf(17))).catch((error) => error);
  expect(wrong).toEqual(new WrongLeaf(17, says));
  expect(writer.needs(17)).toBe(true);
  await writer.suspend();
  expect(disk.written).toBe(0);
});

test.each([-1, 64, 0.5, Number.NaN])("there is no leaf %p", async (leaf) => {
  const source = payload(MiB);
  const writer = await SlotWriter.open(node(source).install);
  await expect(writer.put(leaf, source.leaf(0))).rejects.toThrow(/there is no leaf/);
});

test("a slot is not staged while leaves are missing", async () => {
  const source = payload(MiB);
  const { install, boot } = node(source);
  const writer = await SlotWriter.open(install);
  await putAll(
    writer,
    source,
    inOrder(source).filter((leaf) => leaf !== 5 && leaf !== 9),
  );
  await expect(writer.finish()).rejects.toThrow("2 of 64 leaves are missing, the first is 5");
  expect(boot.record.slots.b.state).toBe("writing");
});

test("what the slot holds already is not written again", async () => {
  const source = payload(3 * MiB);
  const { disk, install } = node(source);
  for (const leaf of inOrder(source)) await disk.write(leaf * LEAF_BYTES, source.leaf(leaf));
  await disk.write(40 * LEAF_BYTES + 4096, new Uint8Array(4096));
  await disk.write(99 * LEAF_BYTES, new Uint8Array(8192));
  await disk.flush();
  const writer = await SlotWriter.open(install);
  disk.journal.length = 0;
  await putAll(writer, source);
  await writer.finish();
  expect(disk.journal.filter((step) => step !== "flush")).toEqual([
    { write: 40 * LEAF_BYTES + 4096, bytes: 4096 },
    { write: 99 * LEAF_BYTES, bytes: 8192 },
    { write: 0, bytes: LEAF_BYTES },
  ]);
  expect(await holds(disk, source)).toBe(true);
});

test("an interrupted install goes on with what hashes right, and fetches the rest again", async () => {
  const source = payload(3 * MiB);
  const { disk, install, progress } = node(source);
  const first = await SlotWriter.open(install);
  await putAll(first, source, inOrder(source).slice(0, 150));
  await first.suspend();
  disk.powerCut();
  // The bitmap is a hint: one leaf has rotted, another is said to be there and is not
  await disk.write(30 * LEAF_BYTES, new Uint8Array(LEAF_BYTES));
  await disk.flush();
  progress.kept?.done.fill(0xff);
  const second = await SlotWriter.open(install);
  const needed = inOrder(source).filter((leaf) => second.needs(leaf));
  expect(needed).toEqual([0, 30, ...inOrder(source).slice(150)]);
  await putAll(second, source, needed);
  await second.finish();
  expect(await holds(disk, source)).toBe(true);
  expect(progress.kept).toBeUndefined();
});

test.each<Partial<Installing>>([
  { slot: "a" },
  { infohash: "11".repeat(20) },
  { root: "22".repeat(32) },
  { size: 3 * MiB - 1 },
])("what was done of another install (%p) is not even looked for", async (other) => {
  const source = payload(3 * MiB);
  const { install, progress } = node(source);
  const first = await SlotWriter.open(install);
  await putAll(first, source, inOrder(source).slice(0, 100));
  await first.suspend();
  if (progress.kept) progress.kept = { ...progress.kept, ...other };
  const phases = new Set<string>();
  const second = await SlotWriter.open({ ...install, report: ({ phase }) => phases.add(phase) });
  expect([...phases]).toEqual([]);
  expect(second.needs(50)).toBe(true);
});

test("every 16 MiB are on the medium and remembered, whenever the power fails", async () => {
  const source = payload(17 * MiB);
  const { disk, install } = node(source, { bytes: 20 * MiB });
  const first = await SlotWriter.open(install);
  await putAll(first, source, inOrder(source).slice(1, 1060));
  disk.powerCut();
  const second = await SlotWriter.open(install);
  const needed = inOrder(source).filter((leaf) => second.needs(leaf));
  expect(needed[0]).toBe(0);
  // A run that was being filled has not reached the kernel yet
  expect(needed[1]).toBeGreaterThanOrEqual(1024 - 32);
  expect(needed[1]).toBeLessThanOrEqual(1025);
});

test("what was not flushed when the power failed is fetched again", async () => {
  const source = payload(3 * MiB);
  const { disk, install } = node(source);
  const first = await SlotWriter.open(install);
  await putAll(first, source, inOrder(source).slice(0, 100));
  disk.powerCut();
  const second = await SlotWriter.open(install);
  expect(inOrder(source).filter((leaf) => second.needs(leaf))).toEqual(inOrder(source));
});

test.each([
  { what: "another release", release: { infohash: "ab".repeat(20) } },
  { what: "nothing that can be read", release: undefined },
])("progress of $what counts for nothing", async ({ release }) => {
  const source = payload(MiB);
  const { disk, install, progress } = node(source);
  const first = await SlotWriter.open(install);
  await putAll(first, source, inOrder(source).slice(0, 40));
  await first.suspend();
  if (release === undefined) progress.kept = undefined;
  const second = await SlotWriter.open({ ...install, release: { ...source.release, ...release } });
  expect(inOrder(source).every((leaf) => second.needs(leaf))).toBe(true);
  disk.journal.length = 0;
  await putAll(second, source);
  await second.finish();
  // All the same nothing is written that was there
  expect(disk.written).toBe(25 * LEAF_BYTES);
});

test.each(["writing", "reading-back"] as const)("an abort while %s can be resumed", async (phase) => {
  const source = payload(3 * MiB);
  const stop = new AbortController();
  const report: Install["report"] = (step) => {
    if (step.phase === phase && step.bytes > MiB) stop.abort();
  };
  const { disk, install, boot } = node(source, { signal: stop.signal, report });
  const writer = await SlotWriter.open(install);
  const aborted = await putAll(writer, source)
    .then(() => writer.finish())
    .catch((error) => error);
  expect(aborted.name).toBe("AbortError");
  expect(boot.record.slots.b.state).toBe("writing");
  await writer.suspend();
  const second = await SlotWriter.open({ ...install, signal: new AbortController().signal });
  const needed = inOrder(source).filter((leaf) => second.needs(leaf));
  expect(needed.length).toBeLessThan(140);
  await putAll(second, source, needed);
  await second.finish();
  expect(await holds(disk, source)).toBe(true);
});

test("an abort while it is read back ends the reading, however much is left", async () => {
  const source = payload(16 * MiB);
  const stop = new AbortController();
  const steps: number[] = [];
  const report: Install["report"] = ({ phase, bytes }) => {
    if (phase !== "reading-back") return;
    steps.push(bytes);
    stop.abort();
  };
  const { install } = node(source, { bytes: 16 * MiB, signal: stop.signal, report });
  const writer = await SlotWriter.open(install);
  await putAll(writer, source);
  expect(await writer.finish().catch(({ name }) => name)).toBe("AbortError");
  expect(steps).toEqual([MiB]);
});

/** A card that takes its time to answer a flush: what is written meanwhile is not part of it. */
class SlowToFlush extends MemoryDisk {
  override async flush(): Promise<void> {
    await super.flush();
    await Bun.sleep(20);
  }
}

test("what is remembered at a checkpoint is on the medium, though others are on their way", async () => {
  const source = payload(17 * MiB);
  const disk = new SlowToFlush(20 * MiB);
  disk.before = async (what) => {
    if (what === "write") await Bun.sleep(1);
  };
  const { install, progress } = node(source, { device: disk });
  const lost: number[] = [];
  let remembered = 0;
  const save = async (installing: Installing) => {
    for (let leaf = 0; leaf < source.leaves.count; leaf++) {
      if (((installing.done[leaf >> 3] ?? 0) & (1 << (leaf & 7))) === 0) continue;
      if (disk.medium.has((leaf * LEAF_BYTES) / 4096)) remembered++;
      else lost.push(leaf);
    }
    await progress.save(installing);
  };
  const writer = await SlotWriter.open({ ...install, progress: { ...progress, save } });
  await putAll(writer, source, inOrder(source).slice(1));
  expect(lost).toEqual([]);
  expect(remembered).toBeGreaterThan(900);
});

test("a leaf that the card stored wrong is asked for again and written once more", async () => {
  const source = payload(3 * MiB);
  const { disk, install } = node(source);
  const writer = await SlotWriter.open(install);
  disk.wrong.set((50 * LEAF_BYTES) / 4096, 1);
  disk.wrong.set(0, 1);
  await putAll(writer, source);
  const asked: number[] = [];
  await writer.finish(async (leaf) => {
    asked.push(leaf);
    return source.leaf(leaf);
  });
  expect(asked).toEqual([50]);
  expect(await holds(disk, source)).toBe(true);
});

test.each([
  { leaf: 50, again: true },
  { leaf: 50, again: false },
  { leaf: 0, again: true },
])("a card that stores leaf $leaf wrong every time is said so (again: $again)", async ({ leaf, again }) => {
  const source = payload(3 * MiB);
  const { disk, install, boot } = node(source);
  const writer = await SlotWriter.open(install);
  disk.wrong.set((leaf * LEAF_BYTES) / 4096, 9);
  await putAll(writer, source);
  const failed = await writer
    .finish(again ? async (asked) => source.leaf(asked) : undefined)
    .catch((error) => error);
  expect(failed).toBeInstanceOf(WriterError);
  expect(failed.message).toContain(`slot b: leaf ${leaf} (byte ${leaf * LEAF_BYTES}) reads back otherwise`);
  expect(boot.record.slots.b.state).toBe("writing");
});

test("what comes for a leaf that read back otherwise is judged like everything else", async () => {
  const source = payload(3 * MiB);
  const { disk, install, boot } = node(source);
  const writer = await SlotWriter.open(install);
  disk.wrong.set((50 * LEAF_BYTES) / 4096, 1);
  await putAll(writer, source);
  const before = disk.written;
  const failed = await writer.finish(async (leaf) => source.leaf(leaf + 1)).catch((error) => error);
  expect(failed).toBeInstanceOf(WrongLeaf);
  expect(disk.written).toBe(before);
  expect(boot.record.slots.b.state).toBe("writing");
});

test("a leaf that read back otherwise is needed again, and with it the same writer comes to its end", async () => {
  const source = payload(3 * MiB);
  const { disk, install } = node(source);
  const writer = await SlotWriter.open(install);
  disk.wrong.set((50 * LEAF_BYTES) / 4096, 1);
  await putAll(writer, source);
  expect(await writer.finish().catch(({ name }) => name)).toBe("WriterError");
  expect(inOrder(source).filter((leaf) => writer.needs(leaf))).toEqual([50]);
  await writer.put(50, source.leaf(50));
  await writer.finish();
  expect(await holds(disk, source)).toBe(true);
});

/** A card that says it is larger than it is: what lies behind its end lands at its beginning again. */
class SmallDisk extends MemoryDisk {
  readonly #real: number;
  constructor(bytes: number, real: number) {
    super(bytes);
    this.#real = real;
  }
  override readMedium(offset: number, length: number): Promise<Uint8Array> {
    return this.#each(offset, length, (at, from, to) =>
      super.readMedium(at, to - from).then((bytes) => ({ from, bytes })),
    ).then((parts) => Uint8Array.from(Buffer.concat(parts.map(({ bytes }) => bytes))));
  }
  override async write(offset: number, bytes: Uint8Array): Promise<void> {
    await this.#each(offset, bytes.length, (at, from, to) => super.write(at, bytes.subarray(from, to)));
  }
  #each<T>(offset: number, length: number, act: (at: number, from: number, to: number) => Promise<T>) {
    const parts: Promise<T>[] = [];
    for (let from = 0; from < length; ) {
      const at = (offset + from) % this.#real;
      const to = Math.min(length, from + this.#real - at);
      parts.push(act(at, from, to));
      from = to;
    }
    return Promise.all(parts);
  }
}

test.each([
  { what: "two leaves", size: 2 * MiB + 3 * LEAF_BYTES, says: "reads back otherwise" },
  { what: "the first leaf", size: 2 * MiB + LEAF_BYTES, says: "the card is smaller than it says" },
])("a card on which $what are the same place is never staged", async ({ size, says }) => {
  const source = payload(size);
  const disk = new SmallDisk(4 * MiB, 2 * MiB);
  const { install, boot } = node(source, { device: disk });
  const writer = await SlotWriter.open(install);
  await putAll(writer, source);
  let asked = 0;
  const failed = await writer
    .finish(async (leaf) => {
      asked++;
      return source.leaf(leaf);
    })
    .catch((error) => error);
  expect(failed).toBeInstanceOf(WriterError);
  expect(failed.message).toContain(says);
  expect(asked).toBeLessThan(10);
  expect(boot.record.slots.b.state).toBe("writing");
});

test.each<{ what: string; change: (boot: MemorySwitch) => void; says: string }>([
  {
    what: "is what the node starts from",
    change: ({ record }) => {
      record.primary = "b";
    },
    says: "slot b is the one this node starts from now, no longer being written",
  },
  {
    what: "was given up",
    change: ({ record }) => {
      record.slots.b.state = "failed";
    },
    says: "slot b is failed with",
  },
  {
    what: "is written with something else",
    change: ({ record }) => {
      record.slots.b.hash = "77".repeat(16);
    },
    says: `slot b is writing with ${"77".repeat(16)} now`,
  },
])("a slot that $what is written no further", async ({ change, says }) => {
  const source = payload(MiB);
  const begun = node(source);
  await (await SlotWriter.open(begun.install)).suspend();
  // Before its first leaf is destroyed
  const { boot, install, disk } = node(source);
  const setState = boot.setState.bind(boot);
  boot.setState = async (slot, to) => {
    const record = await setState(slot, to);
    change(boot);
    return record;
  };
  await disk.write(0, new Uint8Array(4096).fill(1));
  await disk.flush();
  disk.journal.length = 0;
  const refused = await SlotWriter.open(install).catch((error) => error);
  expect(refused).toBeInstanceOf(WriterError);
  expect(refused.message).toContain(says);
  expect(disk.journal).toEqual([]);
  // And at a checkpoint
  const writer = await SlotWriter.open(begun.install);
  await putAll(writer, source, [1, 2, 3]);
  change(begun.boot);
  await expect(writer.suspend()).rejects.toThrow(says);
});

test("a slot that another took while it was read back does not get its first leaf", async () => {
  const source = payload(MiB);
  const report: Install["report"] = ({ phase }) => {
    if (phase === "reading-back") boot.record.primary = "b";
  };
  const { install, boot, disk } = node(source, { report });
  const writer = await SlotWriter.open(install);
  await putAll(writer, source);
  await expect(writer.finish()).rejects.toThrow("slot b is the one this node starts from now");
  expect((await disk.readMedium(0, LEAF_BYTES)).every((byte) => byte === 0)).toBe(true);
});

test.each(["write", "flush", "read"] as const)(
  "a %s that fails ends the install with its reason",
  async (what) => {
    const source = payload(3 * MiB);
    const { disk, install, boot } = node(source);
    const writer = await SlotWriter.open(install);
    let calls = 0;
    disk.before = (call) => {
      if (call === what && ++calls > 2) throw new HalError("io", "slot b: EIO: i/o error");
    };
    const failed = await (async () => {
      await putAll(writer, source);
      await writer.suspend();
      await writer.suspend();
      await writer.finish();
    })().catch((error) => error);
    expect(failed).toBeInstanceOf(HalError);
    expect(boot.record.slots.b.state).toBe("writing");
    disk.powerCut();
    const second = await SlotWriter.open(install);
    await putAll(second, source);
    await second.finish();
    expect(await holds(disk, source)).toBe(true);
  },
);

test("a card that hangs lets others wait, and no more than so many leaves pile up", async () => {
  const source = payload(4 * MiB);
  const { disk, install } = node(source);
  const writer = await SlotWriter.open(install);
  const { promise: woken, resolve: wake } = Promise.withResolvers<void>();
  disk.before = (call) => (call === "write" ? woken : undefined);
  let taken = 0;
  const pouring = (async () => {
    for (const leaf of inOrder(source)) {
      await writer.put(leaf, source.leaf(leaf));
      taken++;
    }
  })();
  for (let turn = 0; turn < 20_000; turn++) await Promise.resolve();
  expect(taken).toBeLessThan(128);
  wake();
  await pouring;
  await writer.finish();
  expect(await holds(disk, source)).toBe(true);
});

test("a data folder that is full costs the resuming, not the install", async () => {
  const source = payload(MiB);
  const { disk, install, progress } = node(source);
  progress.failure = new Error("ENOSPC: no space left on device");
  const writer = await SlotWriter.open(install);
  await putAll(writer, source);
  await writer.finish();
  expect(writer.unsaved?.message).toContain("ENOSPC");
  expect(await holds(disk, source)).toBe(true);
});

test("what only the cache holds right is written again", async () => {
  const source = payload(3 * MiB);
  const { disk, install } = node(source);
  const first = await SlotWriter.open(install);
  disk.wrong.set((50 * LEAF_BYTES) / 4096, 1);
  await putAll(first, source);
  await expect(first.finish()).rejects.toThrow("leaf 50 (byte 819200) reads back otherwise");
  const second = await SlotWriter.open(install);
  await putAll(second, source);
  await second.finish();
  expect(await holds(disk, source)).toBe(true);
});

test.each([
  { what: "2^31 - 1", size: 2 ** 31 - 1 },
  { what: "2^31", size: 2 ** 31 },
  { what: "2^32 - 1", size: 2 ** 32 - 1 },
  { what: "2^32", size: 2 ** 32 },
  { what: "2^32 + 1", size: 2 ** 32 + 1 },
])("76 sizes: a payload of $what bytes arrives at both its ends", async ({ size }) => {
  const source = payload(size, { sparse: true });
  const { disk, install, boot } = node(source, { bytes: size + 2 * MiB });
  // Zeros are there already: leaves that nobody has to look at
  const blank = createHash("sha256").update(new Uint8Array(LEAF_BYTES)).digest();
  const some = (leaf: number) => leaf < 40 || leaf >= source.leaves.count - 40;
  const hashes = {
    ...source.leaves,
    hash: (leaf: number) => (some(leaf) ? source.leaves.hash(leaf) : Promise.resolve(blank)),
  };
  const writer = await SlotWriter.open({ ...install, leaves: hashes });
  await putAll(writer, source, inOrder(source).filter(some));
  await writer.suspend();
  expect(await tailHolds(disk, source)).toBe(true);
  expect(boot.record.slots.b.state).toBe("writing");
  const again = await SlotWriter.open({ ...install, leaves: hashes });
  expect(
    inOrder(source)
      .filter(some)
      .filter((leaf) => again.needs(leaf)),
  ).toEqual([0]);
});

async function tailHolds(disk: MemoryDisk, source: Payload): Promise<boolean> {
  for (let leaf = source.leaves.count - 3; leaf < source.leaves.count; leaf++) {
    const right = source.leaf(leaf);
    const held = await disk.readMedium(leaf * LEAF_BYTES, Math.ceil(right.length / 4096) * 4096);
    if (Buffer.compare(held.subarray(0, right.length), right) !== 0) return false;
  }
  return true;
}

test("76 sizes: a payload of zeros is installed over anything", async () => {
  const source = payload(MiB, { zeros: true });
  const { disk, install } = node(source);
  await disk.write(0, new Uint8Array(2 * MiB).fill(7));
  await disk.flush();
  const writer = await SlotWriter.open(install);
  await putAll(writer, source);
  await writer.finish();
  expect(await holds(disk, source)).toBe(true);
});
