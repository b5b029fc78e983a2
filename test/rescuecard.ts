/** A card in a file for the image's shell programs, with slots that say of themselves what they hold. */
import { closeSync, ftruncateSync, openSync, readFileSync, readSync, writeSync } from "node:fs";
import { join } from "node:path";
import { FIRST_PARTITION, type SlotName } from "../boot/layout.ts";
import type { BootRecord } from "../boot/record.ts";
import { readRecords } from "../boot/records.ts";
import { arm, begin, confirm, stage } from "../boot/slots.ts";
import { openDisk } from "../hal/disk.ts";
import { scratch } from "./node.ts";
import { makePayload } from "./releases.ts";
import { ROOTFS, runScript } from "./shell.ts";

const MiB = 1 << 20;
/** Where the slots are. */
export const START = { a: FIRST_PARTITION + MiB, b: FIRST_PARTITION + 2 * MiB };

/** A payload that was made. */
export type Made = ReturnType<typeof makePayload>;

/** A card with these payloads in its slots. */
export function card(slots: Partial<Record<SlotName, Made>>) {
  const folder = scratch();
  const path = join(folder.path, "card");
  const fd = openSync(path, "w+");
  ftruncateSync(fd, FIRST_PARTITION + 4 * MiB);
  const put = (offset: number, bytes: Uint8Array) => void writeSync(fd, bytes, 0, bytes.length, offset);
  const sector = Buffer.alloc(512);
  for (const [index, type] of [0x0c, 0x83, 0x83, 0x83].entries()) {
    sector[446 + index * 16 + 4] = type;
    sector.writeUInt32LE((FIRST_PARTITION + index * MiB) / 512, 446 + index * 16 + 8);
    sector.writeUInt32LE(MiB / 512, 446 + index * 16 + 12);
  }
  sector.set([0x55, 0xaa], 510);
  put(0, sector);
  for (const slot of ["a", "b"] as const) {
    const made = slots[slot];
    if (made) put(START[slot], made.payload);
  }
  return {
    put,
    path,
    at(offset: number, length: number) {
      const bytes = Buffer.alloc(length);
      readSync(fd, bytes, 0, length, offset);
      return bytes;
    },
    run: (...args: string[]) =>
      runScript(join(ROOTFS, "rescue/bin/fruit-records"), args, {
        FRUIT_DISK: path,
        FRUIT_LIB: join(ROOTFS, "initramfs/lib/fruit"),
      }),
    async newest() {
      const disk = await openDisk(path, "read");
      const copies = await readRecords(disk, "cache");
      await disk.close();
      return copies.newest;
    },
    bytes: () => readFileSync(path),
    [Symbol.dispose]() {
      closeSync(fd);
      folder[Symbol.dispose]();
    },
  };
}

/** What slots are filled with. */
export const older = makePayload({ version: 7n, seed: 1 });
export const newer = makePayload({ version: 11n, seed: 5, rootBytes: 50_000 });

/** What a record says of such a slot. */
export const slotOf = ({ area }: Made, hash = "ab".repeat(16)) => ({
  version: area.version,
  hash,
  payloadBytes: area.payloadBytes,
  kernel: area.boot.kernel,
  initramfs: area.boot.initramfs,
});

/** What a card is made with. */
export const built: BootRecord = {
  ...{ format: 1, sequence: 1, primary: "a", confirmed: 0, reason: "built", time: 0, floor: 3n },
  slots: {
    a: { ...slotOf(older), state: "good", reason: "built" },
    b: { state: "empty", reason: "none", version: 0n, hash: "0".repeat(32), payloadBytes: 0 },
  },
};

/** The newer release waits in slot b. */
export const staged = stage(begin(built, "b", "cd".repeat(16)), "b", {
  ...slotOf(newer),
  hash: "cd".repeat(16),
});
/** Both slots are good, and the node starts from b. */
export const both: BootRecord = {
  ...confirm(arm(staged, "b", { id: 5, tries: 3 }), "b", 7n),
  ...{ sequence: 6, time: 1_700_000_000 },
};
