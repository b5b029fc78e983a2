/** A payload beyond 4 GiB through the kernel's own calls: files without room, so that it takes seconds and not a disk. */
import { expect, test } from "bun:test";
import { closeSync, openSync, statSync, writeSync } from "node:fs";
import { join } from "node:path";
import { LEAF_BYTES } from "../../boot/content.ts";
import { fileProgress } from "../../boot/progress.ts";
import { fileSource } from "../../boot/source.ts";
import { SlotWriter } from "../../boot/writer.ts";
import { openDisk } from "../../hal/disk.ts";
import { sparse } from "../loop.ts";
import { scratch } from "../node.ts";
import { MemorySwitch, payload } from "../slot.ts";

const MiB = 1024 * 1024;

test.each([
  { what: "2^31 - 1", size: 2 ** 31 - 1 },
  { what: "2^31", size: 2 ** 31 },
  { what: "2^32 - 1", size: 2 ** 32 - 1 },
  { what: "2^32", size: 2 ** 32 },
  { what: "2^32 + 1", size: 2 ** 32 + 1 },
])(
  "76 sizes: a payload of $what bytes is installed whole, within 96 MiB more than before",
  async ({ size }) => {
    using folder = scratch();
    const source = payload(size, { sparse: true });
    const image = sparse(join(folder.path, "payload"), size);
    const file = openSync(image, "r+");
    const { count } = source.leaves;
    const ends = [0, 1, 2, count - 2, count - 1];
    for (const leaf of ends) {
      const bytes = source.leaf(leaf);
      writeSync(file, bytes, 0, bytes.length, leaf * LEAF_BYTES);
    }
    closeSync(file);
    const target = sparse(join(folder.path, "slot"), 2 ** 32 + MiB);
    await using open = new AsyncDisposableStack();
    const [from, device] = [await openDisk(image, "read"), await openDisk(target, "exclusive")];
    open.defer(() => from.close());
    open.defer(() => device.close());
    const boot = new MemorySwitch();
    Bun.gc(true);
    const before = process.memoryUsage().rss;
    let most = before;
    const writer = await SlotWriter.open({
      ...{ boot, slot: "b", device, release: source.release, leaves: source.leaves },
      ...{ progress: fileProgress(folder.path), compatible: source.release.boards, now: 1_800_000_000 },
      signal: new AbortController().signal,
      report: () => {
        most = Math.max(most, process.memoryUsage().rss);
      },
    });
    const pieces = fileSource(from, size);
    await pieces.pour(writer);
    await writer.finish(pieces.again);
    expect(boot.record.slots.b).toMatchObject({ state: "staged", payloadBytes: size });
    for (const leaf of ends) {
      const right = source.leaf(leaf);
      expect(Buffer.compare(await device.read(leaf * LEAF_BYTES, right.length), right)).toBe(0);
    }
    // Zeros that were there are not written: the file behind the slot has still no room
    expect(statSync(target).blocks * 512).toBeLessThan(MiB);
    expect((most - before) / MiB).toBeLessThan(96);
  },
  300_000,
);
