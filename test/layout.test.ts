/** Which disk is ours: told by reading alone, and any other gets a name and a way out. */
import { expect, test } from "bun:test";
import {
  FAT32_LBA,
  ForeignCard,
  LINUX,
  RECORD_OFFSETS,
  readCard,
  readPartitions,
  SECTOR,
} from "../boot/layout.ts";
import { type BlockDevice, HalError } from "../hal/ports.ts";
import { seeded } from "./fakes.ts";

const MiB = 1024 * 1024;
type Row = readonly [number: number, type: number, offset: number, bytes: number];
const OURS: readonly Row[] = [
  [1, FAT32_LBA, 20 * MiB, 256 * MiB],
  [2, LINUX, 276 * MiB, 512 * MiB],
  [3, LINUX, 788 * MiB, 512 * MiB],
  [4, LINUX, 1300 * MiB, 1024 * MiB],
];

function table(rows: readonly Row[]): Buffer {
  const sector = Buffer.alloc(SECTOR);
  for (const [number, type, offset, bytes] of rows) {
    const at = 0x1be + (number - 1) * 16;
    sector[at + 4] = type;
    sector.writeUInt32LE(offset / SECTOR, at + 8);
    sector.writeUInt32LE(bytes / SECTOR, at + 12);
  }
  sector.writeUInt16LE(0xaa55, 510);
  return sector;
}
function fat32(label: string): Buffer {
  const sector = Buffer.alloc(SECTOR);
  sector.write(label.padEnd(11), 71, "latin1");
  sector.write("FAT32   ", 82, "latin1");
  sector.writeUInt16LE(0xaa55, 510);
  return sector;
}
function ext4(label: string): Buffer {
  const start = Buffer.alloc(2048);
  start.writeUInt16LE(0xef53, 1024 + 0x38);
  start.write(label, 1024 + 0x78, "latin1");
  return start;
}
const squashfs = Buffer.from("hsqs");
const btrfs = Buffer.concat([Buffer.alloc(0x10040), Buffer.from("_BHRfS_M")]);
const record = Buffer.from("FRUB");

/** A disk with this at these places; it cannot be written. */
function diskOf(
  pieces: readonly (readonly [offset: number, bytes: Uint8Array])[],
  bytes = 4096 * MiB,
): BlockDevice {
  const refuse = () => Promise.reject(new Error("nothing is ever written"));
  const read = async (offset: number, length: number) => {
    if (offset + length > bytes) throw new HalError("io", `read behind the end, at byte ${offset}`);
    const all = Buffer.alloc(length);
    for (const [at, piece] of pieces)
      if (at < offset + length && at + piece.length > offset)
        Buffer.from(piece).copy(all, Math.max(0, at - offset), Math.max(0, offset - at));
    return all;
  };
  return {
    name: "/dev/card",
    bytes,
    read,
    readMedium: read,
    write: refuse,
    flush: refuse,
    close: async () => {},
  };
}
async function refusal(disk: BlockDevice): Promise<string> {
  const error = await readCard(disk).then(
    () => undefined,
    (error: unknown) => error,
  );
  expect(error).toBeInstanceOf(ForeignCard);
  return (error as Error).message;
}

test("a card of ours is told by its table alone", async () => {
  const card = await readCard(diskOf([[0, table(OURS)]]));
  expect(card.slots.b).toEqual({ number: 3, type: LINUX, offset: 788 * MiB, bytes: 512 * MiB });
  expect([card.boot.number, card.slots.a.number, card.data.number]).toEqual([1, 2, 4]);
});

const without = (number: number) => OURS.filter(([one]) => one !== number);
const instead = (row: Row) => [...without(row[0]), row];
test.each([
  { what: "a slot is missing", rows: without(3), says: "partition 3 (b) is missing" },
  {
    what: "the first starts elsewhere",
    rows: instead([1, FAT32_LBA, 4 * MiB, 200 * MiB]),
    says: "partition 1 (boot) starts at byte 4194304, not 20971520",
  },
  {
    what: "slots overlap",
    rows: instead([3, LINUX, 700 * MiB, 512 * MiB]),
    says: "partition 3 (b) overlaps what is before it",
  },
  {
    what: "data overlaps a slot",
    rows: instead([4, LINUX, 1299 * MiB, 100 * MiB]),
    says: "partition 4 (data) overlaps what is before it",
  },
  {
    what: "a slot is of another type",
    rows: instead([2, 0x05, 276 * MiB, 512 * MiB]),
    says: "has type 0x05, not 0x83",
  },
  {
    what: "it ends behind the disk",
    rows: instead([4, LINUX, 1300 * MiB, 9000 * MiB]),
    says: "partition 4 (data) ends behind the disk's 4294967296 bytes",
  },
])("one of ours is damaged where $what", async ({ rows, says }) => {
  const message = await refusal(
    diskOf([
      [0, table(rows)],
      [RECORD_OFFSETS[2], record],
    ]),
  );
  expect(message).toStartWith("/dev/card: once one of ours, but ");
  expect(message).toContain(says);
  expect(message).toEndWith("nothing on it was changed");
  // And without records nobody would know it for ours
  expect(await refusal(diskOf([[0, table(rows)]]))).not.toContain("once one of ours");
});

/** FruitOS's build-template.sh of 2018: sectors 16, 125056, 1125120, 2125184. */
const FRUITOS: readonly Row[] = [
  [1, FAT32_LBA, 16 * SECTOR, 125_040 * SECTOR],
  [2, LINUX, 125_056 * SECTOR, 1_000_064 * SECTOR],
  [3, LINUX, 1_125_120 * SECTOR, 1_000_064 * SECTOR],
  [4, LINUX, 2_125_184 * SECTOR, 1000 * MiB],
];
const RASPBERRY: readonly Row[] = [
  [1, FAT32_LBA, 8 * MiB, 512 * MiB],
  [2, LINUX, 520 * MiB, 3000 * MiB],
];
test.each([
  {
    what: "FruitOS 2018 by its name",
    pieces: [
      [0, table(FRUITOS)],
      [8192, fat32("FRUITOS")],
    ],
    says: "FruitOS of 2018",
  },
  {
    what: "FruitOS 2018 by its file systems",
    pieces: [
      [0, table(FRUITOS)],
      [8192, fat32("NO NAME")],
      [2_125_184 * SECTOR, btrfs],
    ],
    says: "copy /data and fruit.json from it",
  },
  {
    what: "FruitOS 2018 that never made its data partition",
    pieces: [
      [0, table(FRUITOS.slice(0, 3))],
      [8192, fat32("FRUITOS")],
    ],
    says: "FruitOS of 2018",
  },
  {
    what: "Raspberry Pi OS",
    pieces: [
      [0, table(RASPBERRY)],
      [8 * MiB, fat32("bootfs")],
      [520 * MiB, ext4("rootfs")],
    ],
    says: "Raspberry Pi OS (boot, one root): there is no second slot",
  },
  {
    what: "a GPT",
    pieces: [[0, table([[1, 0xee, 512, 4000 * MiB]])]],
    says: "a GUID partition table, which a Pi 3",
  },
  { what: "a blank disk", pieces: [], says: "no partition table; write an image" },
  { what: "rubbish", pieces: [[0, Buffer.alloc(4096, 0xe5)]], says: "no partition table; write an image" },
  {
    what: "ours without its table",
    pieces: [
      [0, Buffer.alloc(SECTOR)],
      [RECORD_OFFSETS[0], record],
    ],
    says: "once one of ours, but it has no partition table",
  },
  {
    what: "something else",
    pieces: [
      [0, table(RASPBERRY)],
      [8 * MiB, fat32("")],
      [520 * MiB, squashfs],
    ],
    says: "not a card of ours (p1 FAT, p2 squashfs): partition 1 (boot) starts at byte 8388608",
  },
  {
    what: "a name that would move the cursor",
    pieces: [
      [0, table(RASPBERRY)],
      [520 * MiB, ext4("\x1b[2Jx")],
    ],
    says: "(p1 of type 0x0c, p2 [2Jx)",
  },
] as { what: string; pieces: [number, Uint8Array][]; says: string }[])(
  "$what is recognised and refused",
  async ({ pieces, says }) => {
    const message = await refusal(diskOf(pieces));
    expect(message).toContain(says);
    expect(message).toContain("nothing on it was changed");
  },
);

test("a disk too small for anything is refused too", async () => {
  for (const bytes of [0, 511, 512, 5 * MiB])
    expect(await refusal(diskOf([], bytes))).toContain("no partition table");
});

test("a disk that cannot be read says so, and is not taken for a foreign one", async () => {
  const disk = diskOf([]);
  disk.read = () => Promise.reject(new HalError("io", "/dev/card: read at byte 0: EIO"));
  const error = await readCard(disk).catch((error: unknown) => error);
  expect(error).toBeInstanceOf(HalError);
});

test("any first sector is ours, or refused with a message", async () => {
  const random = seeded(3);
  const rounds = Number(process.env.FRUIT_FUZZ ?? 5000);
  let ours = 0;
  for (let round = 0; round < rounds; round++) {
    const sector = table(OURS);
    for (let change = Math.floor(random() * 4); change > 0; change--)
      sector[0x1be + Math.floor(random() * 66)] = Math.floor(random() * 256);
    const disk = diskOf([
      [0, sector],
      [20 * MiB, fat32("x")],
    ]);
    const card = await readCard(disk).catch((error: unknown) => error);
    if (card instanceof ForeignCard) continue;
    ours++;
    // Whatever is taken for a slot lies on the disk and clear of all else
    const places = (readPartitions(sector) ?? []).map(
      ({ offset, bytes }) => [offset, offset + bytes] as const,
    );
    for (const [index, [start, end]] of places.entries()) {
      expect(start).toBeGreaterThanOrEqual(index === 0 ? 20 * MiB : (places[index - 1]?.[1] ?? 0));
      expect(end).toBeLessThanOrEqual(disk.bytes);
    }
  }
  expect(ours).toBeGreaterThan(rounds / 10);
});
