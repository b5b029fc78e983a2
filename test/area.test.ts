/** The boot area: what is written is found again, and nothing else is believed. FRUIT_FUZZ=1000000 for more mutations. */
import { expect, test } from "bun:test";
import { crc32 } from "node:zlib";
import {
  AreaError,
  type BootArea,
  decodeArea,
  encodeArea,
  findArea,
  layOut,
  MAX_DEVICE_TREES,
  misplaced,
  squashfsBytes,
} from "../boot/area.ts";
import { seeded } from "./fakes.ts";
import { mutated } from "./mutations.ts";
import { BOARD, inMemory, makePayload, squashfs } from "./releases.ts";

const ROUNDS = Number(process.env.FRUIT_FUZZ ?? 5_000);
const { payload, area, headerAt } = makePayload();
const header = encodeArea(area);

function sealed(bytes: Uint8Array): Uint8Array {
  new DataView(bytes.buffer, bytes.byteOffset).setUint32(0xffc, crc32(bytes.subarray(0, 0xffc)));
  return bytes;
}

/** The header with bytes put in at a place, and its CRC right again. */
function withBytes(at: number, ...bytes: number[]): Uint8Array {
  const copy = Uint8Array.from(header);
  copy.set(bytes, at);
  return sealed(copy);
}

test("the bytes of a header are these", () => {
  const file = (offset: number, bytes: number, crc: number) => ({ offset, bytes, crc32: crc });
  const bytes = Buffer.from(
    encodeArea({
      version: 0x0102_0304_0506_0708n,
      name: "fruitos-1",
      payloadBytes: 0x1_0000_3000,
      boot: {
        kernel: file(0x2000, 0x800, 0xaabbccdd),
        initramfs: file(0x3000, 1, 1),
        deviceTrees: { [BOARD]: file(0x1_0000_2000, 2, 2) },
      },
    }),
  );
  expect(bytes.toString("hex", 0, 0x20)).toBe(
    "4652424101000000080706050403020100300000010000000300000000000000",
  );
  expect(bytes.toString("latin1", 0x20, 0x2a)).toBe("fruitos-1\0");
  expect(bytes.toString("latin1", 0x80, 0x87)).toBe("kernel\0");
  expect(bytes.toString("hex", 0xc0, 0xd0)).toBe("002000000000000000080000aabbccdd");
  expect(bytes.toString("latin1", 0xd0, 0xda)).toBe("initramfs\0");
  expect(bytes.toString("latin1", 0x120, 0x13a)).toBe(`dtb:${BOARD}\0`);
  expect(bytes.toString("hex", 0x160, 0x170)).toBe("00200000010000000200000000000002");
  expect(bytes.readUInt32BE(0xffc)).toBe(crc32(bytes.subarray(0, 0xffc)));
});

test("what was written is read", () => {
  expect(decodeArea(header)).toEqual(area);
});

test.each([
  ["is too short", header.subarray(1), "4095 bytes, not 4096"],
  ["begins otherwise", withBytes(0, 0), "no boot area: it begins with 0x41425200"],
  [
    "has a wrong CRC",
    Uint8Array.from(header).fill(1, 0x90, 0x91),
    /^damaged: CRC-32 [0-9a-f]{8}, its bytes have [0-9a-f]{8}$/,
  ],
  ["is of a newer format", withBytes(4, 2), "format 2; this agent knows 1"],
  ["has too many entries", withBytes(0x18, 50), "50 entries, not 2 to 49"],
  ["has too few entries", withBytes(0x18, 1), "1 entries, not 2 to 49"],
  ["has an entry without a name", withBytes(0x80, 0), "the name of entry 0 is no text"],
  ["has no kernel", withBytes(0x80, 0x4b), "no kernel among its entries"],
  ["has a strange entry", withBytes(0x120, 0x78), `an entry "xtb:${BOARD}" is unknown`],
  [
    "has a file off its place",
    withBytes(0xc0, 1),
    "the kernel is at byte 45057, which is no multiple of 4096",
  ],
  ["has a file outside", withBytes(0xc5, 1), /^the kernel ends at byte \d+, outside the payload of 81920$/],
  ["has an empty file", withBytes(0xc8, 0, 0), "the kernel is empty"],
  [
    "has files over each other",
    withBytes(0x110, 0, 0xb0, 0),
    /^the (kernel|initramfs) begins at byte 45056, inside the (kernel|initramfs)$/,
  ],
  ["has bytes where zeros belong", withBytes(0x70, 1), "not written as this agent would write it"],
  ["has bytes behind its entries", withBytes(0xf00, 1), "not written as this agent would write it"],
])("a header that %s is refused", (_what, bytes, why) => {
  expect(decodeArea(bytes)).toEqual(typeof why === "string" ? why : expect.stringMatching(why));
});

test(
  `a mutated header is refused, or written again as it is (${ROUNDS})`,
  () => {
    const random = seeded(0xa4ea);
    let accepted = 0;
    for (let round = 0; round < ROUNDS; round++) {
      const bytes = mutated(header.subarray(0, 0x180), random);
      const whole = new Uint8Array(4096);
      whole.set(bytes.subarray(0, 0xffc));
      const decoded = decodeArea(round % 4 ? sealed(whole) : whole);
      if (typeof decoded === "string") continue;
      expect(encodeArea(decoded)).toEqual(whole);
      expect(misplaced(decoded.boot, decoded.payloadBytes)).toBeUndefined();
      accepted++;
    }
    expect(accepted).toBeGreaterThan(ROUNDS / 100);
    expect(accepted).toBeLessThan(ROUNDS / 2);
  },
  30_000 + ROUNDS,
);

test("there is room for 47 device trees, and for no more", () => {
  const facts = { bytes: 1, crc32: 0 };
  const trees = (count: number) =>
    Object.fromEntries(Array.from({ length: count }, (_, i) => [`board,${i}`, facts]));
  const areaOf = (count: number): BootArea => {
    const { boot, payloadBytes } = layOut(1, { kernel: facts, initramfs: facts, deviceTrees: trees(count) });
    return { version: 1n, name: "many", payloadBytes, boot };
  };
  expect(decodeArea(encodeArea(areaOf(MAX_DEVICE_TREES)))).toEqual(areaOf(MAX_DEVICE_TREES));
  expect(() => encodeArea(areaOf(MAX_DEVICE_TREES + 1))).toThrow(
    "48 device trees; a boot area has room for 47",
  );
});

test.each(["", "a b", "ä", "x".repeat(65)])("a release cannot be called %p there", (name) => {
  expect(() => encodeArea({ ...area, name })).toThrow("a name here is 1 to 64 printable ASCII characters");
});

test("files are laid out one after the other, each from a multiple of 4096, to an end that is one too", () => {
  const facts = (bytes: number) => ({ bytes, crc32: 9 });
  const {
    headerAt: at,
    payloadBytes,
    boot,
  } = layOut(4097, {
    kernel: facts(4096),
    initramfs: facts(4097),
    deviceTrees: { b: facts(1), a: facts(2) },
  });
  expect([at, boot.kernel.offset, boot.initramfs.offset]).toEqual([8192, 12_288, 16_384]);
  expect([boot.deviceTrees.a?.offset, boot.deviceTrees.b?.offset, payloadBytes]).toEqual([
    24_576, 28_672, 32_768,
  ]);
});

test("the boot area is found behind its squashfs, at the front of a payload or within a disk", async () => {
  expect(await findArea(inMemory(payload))).toEqual({ ...area, offset: headerAt });
  const disk = Buffer.concat([Buffer.alloc(12_288), payload, Buffer.alloc(8192)]);
  expect(await findArea(inMemory(disk), 12_288)).toEqual({ ...area, offset: headerAt });
});

test.each([
  ["begins with no squashfs", Buffer.alloc(65_536), "disk: byte 0: no squashfs begins there"],
  ["is tiny", Buffer.alloc(10), "disk: byte 0: 10 bytes are no payload"],
  ["ends with its squashfs", squashfs(40_960), "leaves no room for a boot area within 40960"],
  [
    "has nothing behind its squashfs",
    Buffer.concat([squashfs(4096), Buffer.alloc(4096)]),
    "byte 4096: no boot area: it begins with 0x00000000",
  ],
  ["is cut", payload.subarray(0, 80_000), "the payload has 81920 bytes, 80000 are there"],
  [
    "has a kernel inside its root",
    Buffer.concat([
      squashfs(8192),
      encodeArea({ ...area, boot: { ...area.boot, kernel: { ...area.boot.kernel, offset: 4096 } } }),
      payload,
    ]),
    "byte 8192: the kernel begins at byte 4096, inside the root",
  ],
])("a slot that %s has no boot area", async (_what, bytes, why) => {
  const found = findArea(inMemory(bytes, "disk"));
  await expect(found).rejects.toThrow(AreaError);
  await expect(found).rejects.toThrow(why);
});

test.each([0, 95, 2 ** 63])("a squashfs of %d bytes is none", (bytes) => {
  const image = squashfs(4096);
  image.writeBigUInt64LE(BigInt(bytes), 40);
  expect(squashfsBytes(image)).toBeUndefined();
});

test("a FAT takes the place of kernel and initramfs, which stand in it; without one no byte of a header is another", () => {
  const facts = (bytes: number) => ({ bytes, crc32: 9 });
  const files = { kernel: facts(700), initramfs: facts(600), deviceTrees: {} };
  const fat = { ...facts(3 * 4096), kernelAt: 1024, initramfsAt: 2048 };
  const laid = layOut(5000, { ...files, fat });
  expect(laid).toEqual({
    ...{ headerAt: 8192, payloadBytes: 6 * 4096 },
    boot: {
      kernel: { ...facts(700), offset: 12_288 + 1024 },
      initramfs: { ...facts(600), offset: 12_288 + 2048 },
      deviceTrees: {},
      fat: { ...facts(3 * 4096), offset: 12_288 },
    },
  });
  const whole = { version: 1n, name: "both", ...laid };
  expect(decodeArea(encodeArea(whole))).toMatchObject({ boot: laid.boot });
  const { boot } = laid;
  const other = (change: Partial<typeof boot>) =>
    misplaced({ ...boot, ...change }, laid.payloadBytes, 8192 + 4096);
  const at = (offset: number, bytes = 600) => ({ offset, bytes, crc32: 9 });
  expect(other({})).toBeUndefined();
  expect(other({ kernel: at(8192 + 1024) })).toContain(
    "the kernel begins at byte 9216, inside what is before the FAT",
  );
  expect(other({ initramfs: at(6 * 4096 - 512) })).toContain("outside the FAT that ends at 24576");
  expect(other({ initramfs: at(12_288 + 1024 + 512) })).toContain("inside the kernel");
  expect(other({ initramfs: at(12_288 + 2049) })).toContain("no multiple of 512");
  expect(other({ fat: at(12_288, 4096 * 4) })).toContain("the FAT ends at byte 28672, outside the payload");
  expect(other({ fat: at(8192, 4096 * 4) })).toContain("the FAT begins at byte 8192, inside the root");
  expect(other({ fat: at(12_288, 4097) })).toContain("the FAT has 4097 bytes, no multiple of 4096");
});
