import { expect, test } from "bun:test";
import { LEAF_BYTES } from "../boot/content.ts";
import { fileSource, streamSource } from "../boot/source.ts";
import { SlotWriter } from "../boot/writer.ts";
import { holds, inOrder, MemoryDisk, node, type Payload, payload } from "./slot.ts";

const MiB = 1024 * 1024;

/** A payload as a file that is read. */
async function file(source: Payload, size = source.release.size) {
  const disk = new MemoryDisk((Math.ceil(size / LEAF_BYTES) + 1) * LEAF_BYTES, "payload.img");
  for (const leaf of inOrder(source)) {
    const whole = new Uint8Array(LEAF_BYTES);
    whole.set(source.leaf(leaf));
    await disk.write(leaf * LEAF_BYTES, whole);
  }
  disk.bytes = size;
  return disk;
}

test("a file is poured into the slot; after an interruption only what is needed is read", async () => {
  const source = payload(3 * MiB + 77);
  const { disk, install } = node(source);
  const image = await file(source);
  const stop = new AbortController();
  const first = await SlotWriter.open({
    ...install,
    signal: stop.signal,
    report: ({ bytes }) => bytes > 2 * MiB && stop.abort(),
  });
  await expect(fileSource(image, source.release.size).pour(first)).rejects.toThrow("abort");
  await first.suspend();
  const reads: number[] = [];
  image.before = (_, offset) => void reads.push(offset);
  const second = await SlotWriter.open(install);
  const from = fileSource(image, source.release.size);
  await from.pour(second);
  expect(reads).not.toContain(MiB);
  await second.finish(from.again);
  expect(await holds(disk, source)).toBe(true);
});

test("a file that a failed install was read from is nobody's when it is over", async () => {
  const source = payload(3 * MiB);
  const image = await file(source);
  let reading = 0;
  const read = image.read.bind(image);
  image.read = async (...asked) => {
    reading++;
    await Bun.sleep(20);
    return read(...asked).finally(() => reading--);
  };
  const writer = await SlotWriter.open({ ...node(source).install });
  await image.write(10 * LEAF_BYTES, new Uint8Array(LEAF_BYTES));
  await expect(fileSource(image, 3 * MiB).pour(writer)).rejects.toThrow("leaf 10");
  expect(reading).toBe(0);
});

test("what is in the slot already is not asked of the file again, which may have lost it", async () => {
  const source = payload(MiB);
  const { disk, install } = node(source);
  const first = await SlotWriter.open(install);
  for (const leaf of [10, 11]) await first.put(leaf, source.leaf(leaf));
  await first.suspend();
  const image = await file(source);
  await image.write(10 * LEAF_BYTES, new Uint8Array(LEAF_BYTES));
  const second = await SlotWriter.open(install);
  await fileSource(image, MiB).pour(second);
  await second.finish();
  expect(await holds(disk, source)).toBe(true);
});

test.each([1, 7, 4096, 16_384, 65_536, 100_000])(
  "a stream in pieces of %i bytes is poured into the slot",
  async (piece) => {
    const source = payload(piece === 1 ? 40_000 : MiB + 77);
    const { disk, install } = node(source);
    const whole = Buffer.concat(inOrder(source).map(source.leaf));
    async function* pieces() {
      for (let at = 0; at < whole.length; at += piece) yield whole.subarray(at, at + piece);
    }
    const writer = await SlotWriter.open(install);
    await streamSource("standard input", pieces()).pour(writer);
    await writer.finish();
    expect(await holds(disk, source)).toBe(true);
  },
);

test.each([
  { by: -1, says: "standard input ended after 1048575 of 1048576 bytes" },
  { by: -MiB, says: "standard input ended after 0 of 1048576 bytes" },
  { by: 1, says: "standard input has more than the 1048576 bytes" },
])("a stream that is $by bytes too long is told so", async ({ by, says }) => {
  const source = payload(MiB);
  const whole = Buffer.concat([...inOrder(source).map(source.leaf), Buffer.alloc(1)]);
  async function* pieces() {
    yield whole.subarray(0, MiB + by);
  }
  const writer = await SlotWriter.open(node(source).install);
  await expect(streamSource("standard input", pieces()).pour(writer)).rejects.toThrow(says);
});

test.each([
  { by: -1, says: "payload.img has 1048575 bytes, the payload of this release 1048576: it is cut short" },
  { by: 1, says: "payload.img has 1048577 bytes, the payload of this release 1048576: it is another" },
])("a file that is $by bytes too long is refused before it is read", async ({ by, says }) => {
  const image = await file(payload(MiB), MiB + by);
  expect(() => fileSource(image, MiB)).toThrow(says);
});
