import { expect, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { SECTOR } from "../boot/layout.ts";
import { type Choice, makeAutoboot, parseAutoboot, primaryOf } from "../boot/tryboot/autoboot.ts";
import { Fat, FatError } from "../boot/tryboot/fat.ts";
import { checkBootSet, findAutoboot } from "../boot/tryboot/sector.ts";
import { Image } from "./crash/disk.ts";
import { seeded } from "./fakes.ts";
import { needs, scratch } from "./node.ts";
import { bootSet, type FatFile, makeCard, makeFat, PLACES, putEntry, selectorFiles } from "./tryboot/card.ts";
import { MemoryDisk } from "./tryboot/disk.ts";
import { Firmware } from "./tryboot/firmware.ts";

const FUZZ = Number(process.env.FRUIT_FUZZ ?? 5_000);
const MiB = 1024 * 1024;
const SELECTOR = { number: 1, type: 0x0c, ...PLACES.selector };

/** Where things stand in the test card's first partition, bytes from the start of the disk. */
const TABLE_SECTORS = Math.ceil(((SELECTOR.bytes / SECTOR + 2) * 4) / SECTOR);
const TABLE = SELECTOR.offset + 32 * SECTOR;
const ROOT = TABLE + 2 * TABLE_SECTORS * SECTOR;
const AUTOBOOT_CLUSTER = (PLACES.autoboot - ROOT) / SECTOR + 2;

const find = (image: Image) => findAutoboot(new MemoryDisk(image), SELECTOR);

/** Writes what the table says of a cluster, into both copies or into one. */
function setNext(image: Image, cluster: number, next: number, copies: readonly number[] = [0, 1]): void {
  for (const copy of copies)
    image.write(
      TABLE + copy * TABLE_SECTORS * SECTOR + cluster * 4,
      new Uint8Array(Uint32Array.of(next).buffer),
    );
}

/** Adds a name to the root folder, at `row`. */
function addName(image: Image, row: number, entry: Parameters<typeof putEntry>[2]): void {
  const bytes = new Uint8Array(32);
  putEntry(new DataView(bytes.buffer), 0, entry);
  image.write(ROOT + row * 32, bytes);
}

test("the file is 512 bytes for either slot, in lines that the firmware reads whole, and differs in three digits and letters alone", () => {
  const [a, b] = [makeAutoboot("a"), makeAutoboot("b")];
  for (const bytes of [a, b]) {
    expect(bytes.length).toBe(SECTOR);
    expect(
      Math.max(
        ...Buffer.from(bytes)
          .toString()
          .split("\n")
          .map((line) => line.length),
      ),
    ).toBeLessThan(98);
    expect(Buffer.from(bytes).toString()).toEndWith("#\n");
  }
  expect(Buffer.from(a).toString()).toStartWith(
    "[all]\ntryboot_a_b=1\nboot_partition=2\n[tryboot]\nboot_partition=3\n# slot a;",
  );
  expect(a.filter((byte, at) => byte !== b[at]).length).toBe(3);
  expect([primaryOf(a), primaryOf(b)]).toEqual(["a", "b"]);
});

test.each([
  {
    text: "",
    ordinary: { partition: undefined, whole: false },
    trial: { partition: undefined, whole: false },
  },
  {
    what: "one line",
    text: "boot_partition=3\n",
    ordinary: { partition: 3, whole: false },
    trial: { partition: 3, whole: false },
  },
  {
    what: "lines for nobody",
    text: "[none]\nboot_partition=3\n[all]\nboot_partition=2\n[tryboot]\ntryboot_a_b=1\n",
    ordinary: { partition: 2, whole: false },
    trial: { partition: 2, whole: true },
  },
  {
    what: "0, which leaves it to the firmware,",
    text: "boot_partition=2\nboot_partition=0\n",
    ordinary: { partition: undefined, whole: false },
    trial: { partition: undefined, whole: false },
  },
  {
    what: "a line between blanks",
    text: "  boot_partition=2 \r\n\t[tryboot]\n boot_partition=3\n",
    ordinary: { partition: 2, whole: false },
    trial: { partition: 3, whole: false },
  },
  {
    what: "what is no number",
    text: "boot_partition = 3\nboot_partition=2x\n#boot_partition=2\n",
    ordinary: { partition: undefined, whole: false },
    trial: { partition: undefined, whole: false },
  },
  {
    what: "what comes after 512 bytes",
    text: `${" ".repeat(600)}\nboot_partition=2\n`,
    ordinary: { partition: undefined, whole: false },
    trial: { partition: undefined, whole: false },
  },
])("$what in autoboot.txt is read as the documentation says", ({ text, ordinary, trial }) => {
  expect(parseAutoboot(Buffer.from(text))).toEqual({ ordinary, trial });
});

const PIECES =
  "[all]\n|[tryboot]\n|[none]\n|[pi4]\n|boot_partition=|tryboot_a_b=|1\n|2\n|3\n|0\n|#|\n| |=|99999\n|[|]".split(
    "|",
  );

/** An autoboot.txt made of pieces that mean something, put together at random. */
function jumbled(random: () => number, start: string): Uint8Array {
  let text = start;
  for (let piece = 0; piece < random() * 12; piece++) {
    const part = PIECES[Math.floor(random() * PIECES.length)] ?? "";
    const at = Math.floor(random() * (text.length + 1));
    text = text.slice(0, at) + part + text.slice(at);
  }
  const bytes = new Uint8Array(SECTOR).fill(0x0a);
  bytes.set(Buffer.from(text).subarray(0, SECTOR));
  return bytes;
}

/** What the model must come to where we read this choice. */
function expected({ partition, whole }: Choice, isTrial: boolean) {
  const led = partition === 2 || partition === 3 ? partition : 1;
  return { is: "started", partition: led, config: isTrial && !whole ? "tryboot.txt" : "config.txt" };
}

test("our reading of autoboot.txt and the model's agree on any bytes", () => {
  const random = seeded(30);
  const image = makeCard({ a: "old", b: "new" });
  const firmware = new Firmware();
  const made = Buffer.from(makeAutoboot("a")).toString();
  let led = 0;
  for (let round = 0; round < FUZZ / 10; round++) {
    const bytes = jumbled(random, round % 3 === 0 ? made : "");
    image.write(PLACES.autoboot, bytes);
    const { ordinary, trial } = parseAutoboot(bytes);
    expect(firmware.reboot(image)).toMatchObject(expected(ordinary, false));
    expect(firmware.reboot(image, "0 tryboot")).toMatchObject(expected(trial, true));
    if (expected(trial, true).partition !== 1) led++;
  }
  expect(led).toBeGreaterThan(FUZZ / 50);
});

test("the sector is found by the names and the table, and a card as it was made shows no signs", async () => {
  const { offset, bytes, signs } = await find(makeCard());
  expect(offset).toBe(PLACES.autoboot);
  expect(Buffer.from(bytes)).toEqual(Buffer.from(makeAutoboot("a")));
  expect(signs).toEqual([]);
});

const last = 0x0fff_ffff;

test.each<{ what: string; edit: (image: Image) => void; says: string }>([
  {
    what: "no autoboot.txt",
    edit: (image) => image.write(ROOT + 6 * 32, Uint8Array.of(0xe5)),
    says: "autoboot.txt is missing",
  },
  {
    what: "25: a second entry of the name",
    edit: (image) => addName(image, 7, { short: "AUTOBOOTTXT", cluster: 9000, bytes: 512 }),
    says: "autoboot.txt is there 2 times: which one the firmware reads nobody knows",
  },
  {
    what: "a folder of the name",
    edit: (image) => image.write(ROOT + 6 * 32 + 11, Uint8Array.of(0x10)),
    says: "autoboot.txt is a folder",
  },
  {
    what: "a file that is shorter",
    edit: (image) => image.write(ROOT + 6 * 32 + 28, Uint8Array.of(100, 0, 0, 0)),
    says: "autoboot.txt has 100 bytes, not 512",
  },
  {
    what: "a file in fragments",
    edit: (image) => {
      setNext(image, AUTOBOOT_CLUSTER, 4000);
      setNext(image, 4000, last);
    },
    says: `autoboot.txt has 2 clusters (${AUTOBOOT_CLUSTER}, 4000), not one`,
  },
  {
    what: "a chain that bites its tail",
    edit: (image) => setNext(image, AUTOBOOT_CLUSTER, AUTOBOOT_CLUSTER),
    says: `autoboot.txt: its chain of clusters comes back to ${AUTOBOOT_CLUSTER}`,
  },
  {
    what: "a cluster that the table calls free",
    edit: (image) => setNext(image, AUTOBOOT_CLUSTER, 0),
    says: "autoboot.txt: its chain of clusters leads to 0",
  },
  {
    what: "a chain that leaves the disk",
    edit: (image) => setNext(image, AUTOBOOT_CLUSTER, 0x0fff_0000),
    says: "its chain of clusters leads to 268369920",
  },
  {
    what: "another file on the same cluster",
    edit: (image) => addName(image, 7, { short: "NOTES   TXT", cluster: AUTOBOOT_CLUSTER, bytes: 10 }),
    says: `autoboot.txt shares cluster ${AUTOBOOT_CLUSTER} with NOTES.TXT`,
  },
  {
    what: "another file that ends in it",
    edit: (image) => setNext(image, 500, AUTOBOOT_CLUSTER),
    says: "autoboot.txt is also the end of another file (cluster 500)",
  },
  {
    what: "copies of the table that disagree about it",
    edit: (image) => setNext(image, AUTOBOOT_CLUSTER, 0, [1]),
    says: "autoboot.txt ends in one copy of the table only",
  },
  {
    what: "25: a damaged first sector",
    edit: (image) => image.write(SELECTOR.offset, new Uint8Array(SECTOR)),
    says: "it does not begin with a FAT file system",
  },
  {
    what: "25: a damaged table",
    edit: (image) => image.write(TABLE, new Uint8Array(SECTOR)),
    says: "its table is damaged at its beginning",
  },
  {
    what: "25: a root folder that leads into nothing",
    edit: (image) => setNext(image, 2, 0),
    says: "the root folder: its chain of clusters leads to 0",
  },
  {
    what: "a FAT larger than its partition",
    edit: (image) => image.write(SELECTOR.offset + 32, Uint8Array.of(0, 0, 0, 1)),
    says: "a FAT of 16777216 sectors in 16777216 bytes",
  },
  {
    what: "sectors of 4096 bytes",
    edit: (image) => image.write(SELECTOR.offset + 11, Uint8Array.of(0, 0x10)),
    says: "a FAT with sectors of 4096 bytes, not 512",
  },
  {
    what: "three sectors a cluster",
    edit: (image) => image.write(SELECTOR.offset + 13, Uint8Array.of(3)),
    says: "a FAT with 3 sectors a cluster",
  },
])("$what is refused in words", async ({ edit, says }) => {
  const image = makeCard();
  edit(image);
  const error = await find(image).then(
    () => undefined,
    (cause: unknown) => cause,
  );
  expect(error).toBeInstanceOf(FatError);
  expect((error as Error).message).toStartWith("/dev/crash partition 1: ");
  expect((error as Error).message).toContain(says);
});

test.each<{ what: string; edit: (image: Image) => void; says: string }>([
  {
    what: "25: files that a repair left",
    edit: (image) => {
      addName(image, 7, { short: "FSCK0000REC", cluster: 600, bytes: 10 });
      addName(image, 8, { short: "FSCK0001REC", cluster: 601, bytes: 10 });
    },
    says: "2 files such as FSCK0000.REC, which a repair of the file system left",
  },
  {
    what: "copies of the table that differ elsewhere",
    edit: (image) => setNext(image, 700, last, [1]),
    says: "the two copies of its table differ",
  },
  {
    what: "neighbours in the same erase block",
    edit: (image) => setNext(image, AUTOBOOT_CLUSTER + 1, last),
    says: "1 clusters in use share 4 MiB with autoboot.txt",
  },
])(
  "$what are a sign that the partition is not as it was made, and the sector is found all the same",
  async ({ edit, says }) => {
    const image = makeCard();
    edit(image);
    const { offset, signs } = await find(image);
    expect(offset).toBe(PLACES.autoboot);
    expect(signs).toHaveLength(1);
    expect(signs[0]).toContain(says);
  },
);

test.each<{ what: string; edit: (image: Image) => void }>([
  { what: "Windows and mkfs.fat know it", edit: (image) => setNext(image, 1, 0x07ff_ffff) },
  {
    what: "Linux knows it: in the first sector",
    edit: (image) => image.write(SELECTOR.offset + 0x41, Uint8Array.of(1)),
  },
])(
  "a file system that was not unmounted, as $what, is told, and is no sign against a sector whose chain is sound",
  async ({ edit }) => {
    const image = makeCard();
    edit(image);
    expect(await find(image)).toMatchObject({ offset: PLACES.autoboot, signs: [], isDirty: true });
  },
);

test("clusters around it that are marked bad, so that nobody uses them, are no neighbours", async () => {
  const image = makeCard();
  setNext(image, AUTOBOOT_CLUSTER + 1, 0x0fff_fff7);
  expect((await find(image)).signs).toEqual([]);
});

/** A disk that holds one FAT and nothing else. */
function diskOf(bytes: Uint8Array): { disk: MemoryDisk; partition: typeof SELECTOR } {
  const image = new Image(bytes.length);
  image.write(0, bytes);
  return {
    disk: new MemoryDisk(image),
    partition: { number: 2, type: 0x0c, offset: 0, bytes: bytes.length },
  };
}

const checked = (files: readonly FatFile[]) => {
  const { disk, partition } = diskOf(makeFat(MiB, files));
  return checkBootSet(disk, partition);
};

test.each<{ what: string; files: FatFile[]; says: string | undefined }>([
  { what: "as it should be", files: bootSet("new"), says: undefined },
  {
    what: "without config.txt",
    files: bootSet("new").filter(({ name }) => name !== "config.txt"),
    says: "has 0 files config.txt",
  },
  {
    what: "31: without tryboot.txt, which some firmware reads",
    files: bootSet("new").filter(({ name }) => name !== "tryboot.txt"),
    says: "has 0 files tryboot.txt",
  },
  {
    what: "31: with another tryboot.txt",
    files: bootSet("new").map((file) => (file.name === "tryboot.txt" ? { ...file, content: "x" } : file)),
    says: "tryboot.txt is not the same as config.txt",
  },
  {
    what: "with an empty config.txt",
    files: bootSet("new").map((file) => (file.name === "config.txt" ? { ...file, content: "" } : file)),
    says: "config.txt is empty",
  },
])("a boot set $what is judged so", async ({ files, says }) => {
  const found = await checked(files);
  if (says === undefined) expect(found).toBeUndefined();
  else expect(found).toContain(says);
});

const dosfstools = [
  { name: "mkfs.fat", install: "dosfstools" },
  { name: "mcopy", install: "mtools" },
];

for (const bits of [16, 32] as const) {
  const { title, isSkipped } = needs(
    `a FAT${bits} that mkfs.fat and mtools made is read: short names, long names, files of several clusters, folders`,
    ...dosfstools,
  );
  test.skipIf(isSkipped)(title, async () => {
    using folder = scratch();
    const image = folder.file("fat.img", "");
    const run = (...words: string[]) => {
      const { exitCode, stderr } = Bun.spawnSync(words, { env: { ...process.env, MTOOLS_SKIP_CHECK: "1" } });
      expect({ words, exitCode, err: stderr.toString() }).toMatchObject({ exitCode: 0 });
    };
    run("truncate", "-s", String(bits === 16 ? 8 * MiB : 40 * MiB), image);
    run("mkfs.fat", "-F", String(bits), "-s", bits === 16 ? "2" : "1", image);
    const long = "x".repeat(5000);
    run("mmd", "-i", image, "::overlays");
    for (const [name, content] of Object.entries({
      "config.txt": "arm_64bit=1\n",
      "autoboot.txt": Buffer.from(makeAutoboot("b")).toString(),
      "bcm2710-rpi-zero-2-w.dtb": long,
      "Ünïcode name.txt": "u",
    }))
      run("mcopy", "-i", image, folder.file("file", content), `::${name}`);
    run("mdel", "-i", image, "::config.txt");
    const { disk, partition } = diskOf(readFileSync(image));
    const fat = await Fat.open(disk, partition);
    const { entries, isFull } = await fat.root();
    expect(isFull).toBe(false);
    const shown = entries.map(({ name, isFolder, bytes }) => [name, isFolder, bytes]);
    expect(shown.toSorted()).toEqual(
      [
        ["overlays", true, 0],
        ["autoboot.txt", false, 512],
        ["bcm2710-rpi-zero-2-w.dtb", false, 5000],
        ["Ünïcode name.txt", false, 1],
      ].toSorted(),
    );
    const tree = entries.find(({ bytes }) => bytes === 5000);
    expect(tree && Buffer.from(await fat.read(tree, 10_000)).toString()).toBe(long);
    expect([fat.isDirty, fat.isMirrored]).toEqual([false, true]);
    const { offset, bytes } = await findAutoboot(disk, partition);
    expect(primaryOf(bytes)).toBe("b");
    expect(Buffer.from(disk.image.read(offset, SECTOR))).toEqual(Buffer.from(bytes));
  });
}

const checker = needs("the test card's first partition is one that fsck.fat finds nothing wrong with", {
  name: "fsck.fat",
  install: "dosfstools",
});
test.skipIf(checker.isSkipped)(checker.title, () => {
  using folder = scratch();
  for (const files of [selectorFiles("a"), bootSet("old")]) {
    const bytes = makeFat(40 * MiB, files);
    const path = folder.file("fat.img", "");
    writeFileSync(path, bytes);
    const { stdout, exitCode } = Bun.spawnSync(["fsck.fat", "-n", path]);
    expect({ said: stdout.toString(), exitCode }).toMatchObject({ exitCode: 0 });
  }
});

test("a file beyond cluster 65535 is found where it is", async () => {
  const at = 38 * MiB;
  const { disk, partition } = diskOf(
    makeFat(40 * MiB, [{ name: "autoboot.txt", content: makeAutoboot("b"), at }]),
  );
  const { offset, bytes } = await findAutoboot(disk, partition);
  expect([offset, primaryOf(bytes)]).toEqual([at, "b"]);
});

/** One entry of a long name of at most 13 characters. */
function longEntry(name: string, sum: number): Uint8Array {
  const bytes = new Uint8Array(32).fill(0xff);
  bytes.set([0x41]);
  bytes.set([0x0f, 0, sum], 11);
  bytes.set([0, 0], 26);
  const places = [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30];
  for (const [index, char] of [...`${name}\0`].entries())
    bytes.set([char.charCodeAt(0), 0], places[index] ?? 0);
  return bytes;
}

test("a long name that belongs to another file, as a crash leaves it, is nobody's", async () => {
  const image = makeCard();
  // As ChkSum() of the specification
  const sum = [..."NOTES   TXT"].reduce(
    (sum, char) => ((((sum & 1) << 7) | (sum >> 1)) + char.charCodeAt(0)) & 255,
    0,
  );
  const names = async (stored: number) => {
    image.write(ROOT + 7 * 32, longEntry("autoboot.txt", stored));
    addName(image, 8, { short: "NOTES   TXT", cluster: 9000, bytes: 512 });
    const fat = await Fat.open(new MemoryDisk(image), SELECTOR);
    return (await fat.root()).entries.map(({ name }) => name.toLowerCase()).slice(6);
  };
  expect(await names(sum)).toEqual(["autoboot.txt", "autoboot.txt"]);
  expect(await names(sum ^ 1)).toEqual(["autoboot.txt", "notes.txt"]);
});

test("a FAT12, which a Pi 3 does not start from, is refused by name", async () => {
  const bytes = new Uint8Array(MiB);
  const view = new DataView(bytes.buffer);
  for (const [at, value] of [
    [11, 512],
    [14, 1],
    [17, 112],
    [19, 2048],
    [22, 6],
    [510, 0xaa55],
  ] as const)
    view.setUint16(at, value, true);
  bytes.set([1], 13);
  bytes.set([2], 16);
  const { disk, partition } = diskOf(bytes);
  await expect(Fat.open(disk, partition)).rejects.toThrow("FAT12, which not every Raspberry Pi starts from");
});

test("a FAT16 whose root folder holds no more names says so", async () => {
  const bytes = new Uint8Array(8 * MiB);
  const view = new DataView(bytes.buffer);
  for (const [at, value] of [
    [11, 512],
    [14, 1],
    [17, 16],
    [19, 16_384],
    [22, 64],
    [510, 0xaa55],
  ] as const)
    view.setUint16(at, value, true);
  bytes.set([1], 13);
  bytes.set([2], 16);
  bytes[21] = 0xf8;
  view.setUint32(512, 0xffff_fff8, true);
  view.setUint32(512 + 64 * 512, 0xffff_fff8, true);
  const root = 512 + 128 * 512;
  for (let row = 0; row < 16; row++)
    putEntry(view, root + row * 32, {
      short: `FILE${String(row).padStart(4)}TXT`,
      cluster: 2 + row,
      bytes: 1,
    });
  const { disk, partition } = diskOf(bytes);
  expect((await (await Fat.open(disk, partition)).root()).isFull).toBe(true);
  disk.image.write(root + 32, Uint8Array.of(0xe5));
  expect((await (await Fat.open(disk, partition)).root()).isFull).toBe(false);
});

/** A small first partition alone on its disk, so that many can be tried. */
const SMALL = { number: 1, type: 0x0c, offset: 0, bytes: MiB };
const SMALL_TABLE_SECTORS = Math.ceil(((MiB / SECTOR + 2) * 4) / SECTOR);
const AT = { head: 0, table: 32 * SECTOR, root: (32 + 2 * SMALL_TABLE_SECTORS) * SECTOR };

/** Bytes that were worth keeping: each is a number that a reader could take at its word. */
const SEEDS: [offset: number, bytes: number[]][][] = [
  [[AT.head + 13, [0x80]]],
  [[AT.head + 36, [0xff, 0xff, 0xff, 0xff]]],
  [[AT.head + 36, [1, 0, 0, 0]]],
  [[AT.head + 44, [0xff, 0xff, 0xff, 0x0f]]],
  [[AT.head + 14, [0xff, 0xff]]],
  [[AT.head + 16, [0]]],
  [[AT.head + 32, [0, 0, 0, 0]]],
  [[AT.root + 5 * 32 + 20, [0xff, 0xff]]],
  [[AT.root + 11, [0x0f]]],
  [[AT.table + 8, [2, 0, 0, 0]]],
];

/** The seeds, then `count` random ones: bytes in the places that are read. */
function* mutations(count: number) {
  yield* SEEDS;
  const random = seeded(25);
  const places = [
    { from: AT.head, length: 90 },
    { from: AT.table, length: 80 },
    { from: AT.root, length: 200 },
  ];
  for (let round = 0; round < count; round++)
    yield Array.from({ length: 1 + Math.floor(random() * 4) }, (): [number, number[]] => {
      const { from, length } = places[Math.floor(random() * places.length)] ?? { from: 0, length: 1 };
      return [from + Math.floor(random() * length), [Math.floor(random() * 256)]];
    });
}

test("no bytes in a FAT make the reader loop, leave the partition, or fail otherwise than by refusing", async () => {
  const files = selectorFiles("a").map(({ name, content }) => ({ name, content }));
  const fresh = new Image(MiB);
  fresh.write(0, makeFat(MiB, files));
  let refused = 0;
  for (const edits of mutations(FUZZ)) {
    const image = fresh.copy();
    for (const [offset, bytes] of edits) image.write(offset, Uint8Array.from(bytes));
    const disk = new MemoryDisk(image);
    const found = await findAutoboot(disk, SMALL).catch((error: unknown) => {
      if (error instanceof FatError) return undefined;
      // Past the end of the partition the disk itself says so
      throw new Error(`${JSON.stringify(edits)}: ${error}`);
    });
    if (disk.reads > 5000) throw new Error(`${JSON.stringify(edits)}: ${disk.reads} reads`);
    if (!found) refused++;
    else if (found.offset < 0 || found.offset + SECTOR > MiB)
      throw new Error(`${JSON.stringify(edits)} led to byte ${found.offset}`);
  }
  expect(refused).toBeGreaterThan(FUZZ / 4);
}, 30_000);
