import { expect, test } from "bun:test";
import { admit, contentOf } from "../boot/admit.ts";
import { type SlotContent, SlotRefusal } from "../boot/slots.ts";
import { LOADS, UBootSwitch } from "../boot/uboot/switch.ts";
import { ReleaseError } from "../boot/updatefile.ts";
import { SlotWriter } from "../boot/writer.ts";
import { MemoryDisk, MemorySwitch, NOW, node, payload, slotRecord } from "./slot.ts";

const MiB = 1024 * 1024;

const trial = { id: 3, triesLeft: 2, started: 1 };
test.each([
  { why: "slot b is the one this system runs from", over: { boot: new MemorySwitch({}, "b") } },
  {
    why: "slot b is the one this node starts from",
    over: { boot: new MemorySwitch({ primary: "b" }, undefined) },
  },
  {
    why: "slot b is on trial (2 tries left)",
    over: {
      boot: new MemorySwitch({ trial, slots: { a: slotRecord("good", 7n), b: slotRecord("trying", 8n) } }),
    },
  },
  {
    why: "it is for raspberrypi,3-model-b; this node is raspberrypi,4-model-b",
    over: { compatible: ["raspberrypi,4-model-b"] },
  },
  { why: "this node is of no known kind", over: { compatible: [] } },
  { why: "its version is 8; this node takes 9 and higher", over: { boot: new MemorySwitch({ floor: 9n }) } },
  { why: "it installs from version 9 on; this node runs 7", release: { minFrom: 9n } },
  { why: "it expired at 2027-01-15T07:59:59Z", release: { expires: NOW - 1 } },
  { why: "it needs 1048576 bytes; slot b has 1044480, 4096 too few", over: { bytes: MiB - 4096 } },
  { why: "its payload has 0 bytes", release: { size: 0 } },
])("refused before anything is touched: $why", async ({ why, over = {}, release = {} }) => {
  const source = payload(MiB, { release });
  const { disk, install, boot, progress } = node(source, over);
  const before = structuredClone(boot.record);
  const refused = await SlotWriter.open(install).catch((error) => error);
  expect(refused instanceof SlotRefusal || refused instanceof ReleaseError).toBe(true);
  expect(refused.message).toContain(why);
  expect(disk.journal).toEqual([]);
  expect(boot.record).toEqual(before);
  expect(progress.saves).toBe(0);
});

test.each([
  { what: "the slot this node starts from", over: { primary: "b" as const } },
  { what: "a slot on trial", over: { trial } },
])("$what is refused by what the record says, before anybody asks for a change", ({ over }) => {
  const { release } = payload(MiB);
  const { record } = new MemorySwitch(over);
  const device = { name: "slot b", bytes: MiB };
  const target = { slot: "b" as const, current: undefined, record, device, now: NOW, atLeast: 0 };
  expect(() => admit(release, { ...target, compatible: release.boards })).toThrow(SlotRefusal);
  const { record: free } = new MemorySwitch();
  admit(release, { ...target, record: free, compatible: release.boards });
});

test("the record gets the device tree of the most exact name that the node has", () => {
  const { release } = payload(MiB);
  const tree = (crc32: number) => ({ offset: 0, bytes: 512, crc32 });
  const deviceTrees = {
    "brcm,bcm2837": tree(1),
    "raspberrypi,3-model-b": tree(2),
    "raspberrypi,400": tree(3),
  };
  const both = { ...release, boot: { ...release.boot, deviceTrees } };
  const names = ["raspberrypi,3-model-b-plus", "raspberrypi,3-model-b", "brcm,bcm2837"];
  expect(contentOf(both, names).deviceTree).toEqual(tree(2));
  expect(contentOf(both, ["raspberrypi,zero"]).deviceTree).toBeUndefined();
});

test("the last block of a payload counts whole, on a slot that ends within it", async () => {
  const { install } = node(payload(MiB - 100), { bytes: MiB - 50 });
  await expect(SlotWriter.open(install)).rejects.toThrow(
    "it needs 1048576 bytes; slot b has 1048526, 50 too few",
  );
});

test("what U-Boot could not load is refused before anything is touched", async () => {
  const source = payload(MiB, {
    release: {
      boot: {
        kernel: { offset: 4096, bytes: LOADS.kernel + 1, crc32: 1 },
        initramfs: { offset: 4096, bytes: 4096, crc32: 2 },
        deviceTrees: {},
      },
    },
  });
  const boot = new MemorySwitch();
  const before = structuredClone(boot.record);
  const uboot = new UBootSwitch({ disk: new MemoryDisk(MiB), current: "a" });
  const loading = Object.assign(boot, { refuses: (content: SlotContent) => uboot.refuses(content) });
  const { disk, install } = node(source, { boot: loading });
  await expect(SlotWriter.open(install)).rejects.toThrow(
    new SlotRefusal(
      `slot b could never start it: its kernel has ${LOADS.kernel + 1} bytes, U-Boot is made to load ${LOADS.kernel} at most`,
    ),
  );
  expect([disk.journal, boot.record]).toEqual([[], before]);
});

test("hashes of another payload are refused", async () => {
  const source = payload(MiB);
  const { install } = node(source, { leaves: payload(2 * MiB).leaves });
  await expect(SlotWriter.open(install)).rejects.toThrow("has 64 leaves; there are hashes of 128");
});
