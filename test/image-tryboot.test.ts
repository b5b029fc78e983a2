/** The card for boards that U-Boot does not start, read by other programs than those that made it. */
import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { crc32 } from "node:zlib";
import { $ } from "bun";
import { areaOf, checkBootFiles } from "../agent/release/pack.ts";
import { findArea } from "../boot/area.ts";
import { FAT32_LBA, FIRST_PARTITION } from "../boot/layout.ts";
import { readRecords } from "../boot/records.ts";
import { makeAutoboot } from "../boot/tryboot/autoboot.ts";
import { readTrybootCard } from "../boot/tryboot/layout.ts";
import { findAutoboot } from "../boot/tryboot/sector.ts";
import { LOADS } from "../boot/uboot/switch.ts";
import { openDisk } from "../hal/disk.ts";
import type { Image } from "../image/fruitos/builder.ts";
import { imageOptions } from "../image/fruitos/main.ts";
import { chooseStarters } from "../image/fruitos/models.ts";
import { missingPackages } from "../image/fruitos/tools.ts";
import { file } from "../image/fruitos/tree.ts";
import { needs } from "./node.ts";
import { ROOTFS, runScript } from "./shell.ts";
import { A, started } from "./tryboot/desk.ts";
import { Firmware } from "./tryboot/firmware.ts";
import { buildBoth, cardIn, deviceTree, PI5, rootOf, SIZES } from "./tryboot/image.ts";

process.env.PATH = `${process.env.PATH}:/usr/sbin:/sbin`;
const MiB = 1 << 20;
const folder = mkdtempSync(join(tmpdir(), "fruit-tryboot-"));
const told: string[] = [];

const missing = missingPackages();
const built = (title: string, ...programs: { name: string; install: string }[]) => {
  const { title: full, isSkipped } = needs(title, ...programs);
  const also = missing.length > 0 ? ` [needs: apt-get install ${missing.join(" ")}]` : "";
  return (body: () => Promise<void>) =>
    test.skipIf(isSkipped || missing.length > 0)(full + also, body, 30_000);
};
const busybox = { name: "busybox", install: "busybox" };

const once = missing.length > 0 ? undefined : buildBoth(folder, 7n, { tell: (line) => told.push(line) });
afterAll(async () => {
  await once?.catch(() => {});
  rmSync(folder, { recursive: true, force: true });
});

/** What was made for tryboot. */
async function made(): Promise<Image & { raw: string }> {
  const { tryboot } = (await once) ?? {};
  if (!tryboot?.raw) throw new Error("no card for tryboot was made");
  return { ...tryboot, raw: tryboot.raw };
}

/** Reads the card. */
async function onCard<T>(use: (disk: Awaited<ReturnType<typeof openDisk>>) => Promise<T>): Promise<T> {
  const disk = await openDisk((await made()).raw, "read");
  return use(disk).finally(() => disk.close());
}

built("a model that no U-Boot starts has a card and a release of its own, and is told with the reason")(
  async () => {
    const { payload, tryboot } = (await once) ?? {};
    expect(told).toContain(
      "pi5: on a card of its own, where the firmware chooses the slot (tryboot): no U-Boot rpi_arm64",
    );
    expect(told).toContain("left out: pi4: no U-Boot rpi_4, and for tryboot no device tree of such a board");
    const boards = async (path = "") =>
      JSON.parse(await $`unsquashfs -cat ${path} etc/fruit/release.json`.text()).boards;
    // The kernel has no device tree for a Compute Module 5
    expect(await boards(tryboot?.payload)).toEqual([PI5]);
    expect(await boards(payload)).not.toContain(PI5);
    expect(tryboot?.image).toEndWith("/fruitos-7-aarch64-tryboot.img.zst");
    for (const path of [tryboot?.checksum, tryboot?.blockMap, tryboot?.side, tryboot?.update])
      expect(readFileSync(path ?? "").length).toBeGreaterThan(0);
  },
);

built("sfdisk reads the tables as they were meant, logical partitions too", {
  name: "sfdisk",
  install: "fdisk",
})(async () => {
  const { raw } = await made();
  const { partitions, label } = JSON.parse(await $`sfdisk --json ${raw}`.text()).partitiontable;
  const [boot, slot, data] = [SIZES.boot / 512, SIZES.slot / 512, SIZES.data / 512];
  const [start, gap] = [FIRST_PARTITION / 512, 8192];
  const extended = start + 3 * boot;
  expect(label).toBe("dos");
  expect(
    partitions.map((one: { start: number; size: number; type: string }) => [one.start, one.size, one.type]),
  ).toEqual([
    [start, boot, "c"],
    [start + boot, boot, "c"],
    [start + 2 * boot, boot, "c"],
    [extended, 3 * gap + 2 * slot + data, "f"],
    [extended + gap, slot, "83"],
    [extended + 2 * gap + slot, slot, "83"],
    [extended + 3 * gap + 2 * slot, data, "83"],
  ]);
  expect((await $`sfdisk --verify ${raw}`.nothrow().quiet()).exitCode).toBe(0);
});

built(
  "fsck and mtools find the boot partitions whole, with what the firmware looks for and no more",
  { name: "fsck.fat", install: "dosfstools" },
  { name: "mtype", install: "mtools" },
)(async () => {
  const { raw } = await made();
  const card = cardIn(raw);
  for (const [index, words] of ["fruit.rescue=firmware", "fruit.slot=a"].entries()) {
    const part = join(folder, `p${index + 1}`);
    writeFileSync(part, card.read(FIRST_PARTITION + index * SIZES.boot, SIZES.boot));
    const fsck = await $`fsck.fat -n ${part}`.nothrow().quiet();
    expect([fsck.exitCode, fsck.stdout.toString()]).toEqual([0, expect.not.stringContaining("wrong")]);
    const list = (await $`mdir -i ${part} -/ -b`.text()).trim().split("\n").sort();
    expect(list).toEqual(
      [
        ...["Image", "bcm2712-rpi-5-b.dtb", "cmdline.txt", "config.txt", "initrd.img", "tryboot.txt"],
        ...[
          "overlays/",
          "overlays/README",
          "overlays/disable-bt.dtbo",
          ...(index === 0 ? ["autoboot.txt"] : []),
        ],
      ]
        .map((name) => `::/${name}`)
        .sort(),
    );
    expect(await $`mtype -i ${part} ::/cmdline.txt`.text()).toContain(
      `fruit.switch=tryboot ${words} panic=10\n`,
    );
    expect(await $`mtype -i ${part} ::/config.txt`.text()).toContain(
      "[pi5]\nkernel=Image\ninitramfs initrd.img followkernel\n",
    );
    if (index === 0)
      expect(await $`mtype -i ${part} ::/autoboot.txt`.text()).toBe(
        Buffer.from(makeAutoboot("a")).toString(),
      );
  }
});

built(
  "the sector that chooses the slot stands alone in its 4 MiB, even where somebody fills the partition up",
  { name: "mcopy", install: "mtools" },
)(async () => {
  const { offset, bytes, signs } = await onCard(async (disk) =>
    findAutoboot(disk, (await readTrybootCard(disk)).selector),
  );
  expect(offset).toBe(FIRST_PARTITION + SIZES.boot - 4 * MiB);
  expect([signs, Buffer.from(bytes)]).toEqual([[], Buffer.from(makeAutoboot("a"))]);
  const [part, big] = [join(folder, "full"), join(folder, "big")];
  writeFileSync(part, cardIn((await made()).raw).read(FIRST_PARTITION, SIZES.boot));
  for (const [size, exit] of [
    [36 * MiB, 1],
    [34 * MiB, 0],
  ] as const) {
    writeFileSync(big, "x".repeat(size));
    expect((await $`mcopy -i ${part} ${big} ::/big`.nothrow().quiet()).exitCode).toBe(exit);
  }
  const disk = await openDisk(part, "read");
  const whole = { number: 1, type: FAT32_LBA, offset: 0, bytes: SIZES.boot };
  expect(await findAutoboot(disk, whole)).toMatchObject({ offset: SIZES.boot - 4 * MiB, signs: [] });
  await disk.close();
});

built(
  "a payload is root, boot area and boot set; kernel and initramfs are files of the set, and slot a has it as it is",
)(async () => {
  const { payload, raw, hash } = await made();
  const disk = await openDisk(payload, "read");
  const { boot, payloadBytes } = await findArea(disk);
  await disk.close();
  const bytes = readFileSync(payload);
  const { fat = { offset: 0, bytes: 0 } } = boot;
  expect(payloadBytes).toBe(fat.offset + fat.bytes);
  for (const { offset, bytes: length, crc32: right } of [boot.kernel, boot.initramfs])
    expect([offset > fat.offset, crc32(bytes.subarray(offset, offset + length))]).toEqual([true, right]);
  const spoilt = join(folder, "spoilt");
  bytes[fat.offset + 520] = (bytes[fat.offset + 520] ?? 0) ^ 1;
  writeFileSync(spoilt, bytes);
  expect(await areaOf(spoilt).catch((error: Error) => error.message)).toContain("the boot set at byte");
  // What U-Boot takes at most is no matter of the firmware
  const long = { ...boot, kernel: { ...boot.kernel, bytes: LOADS.kernel + 1 } };
  expect(await checkBootFiles(spoilt, long).catch((error: Error) => error.message)).toContain("has CRC-32");
  bytes[fat.offset + 520] = (bytes[fat.offset + 520] ?? 0) ^ 1;
  const held = cardIn(raw).read(FIRST_PARTITION + SIZES.boot, fat.bytes);
  expect(held.equals(bytes.subarray(fat.offset))).toBe(true);
  const record = (await onCard((disk) => readRecords(disk))).newest?.record;
  expect(record?.slots.a).toMatchObject({
    ...{ state: "good", version: 7n, hash: hash.slice(0, 32), kernel: boot.kernel },
  });
});

// Every day image.test.ts makes the card for U-Boot twice; this one too where proof/fuzz.proof.ts asks
if (process.env.FRUIT_FUZZ)
  built("the same input gives the same bytes")(async () => {
    const [one, { tryboot: again }] = [await made(), await buildBoth(join(folder, "again"), 7n)];
    for (const what of ["image", "payload", "side", "update", "blockMap"] as const)
      expect(readFileSync(again?.[what] ?? "").equals(readFileSync(one[what] ?? ""))).toBe(true);
  });

built("the data partition reaches to the end of a larger card, inside the extended one", busybox, {
  name: "sfdisk",
  install: "fdisk",
})(async () => {
  const path = join(folder, "grown.img");
  await $`cp --sparse=always ${(await made()).raw} ${path}`;
  const card = cardIn(path);
  const grow = (file: string) => runScript(join(ROOTFS, "initramfs/lib/fruit/grow"), ["table", file], {});
  expect(await grow(path)).toEqual({ exit: 3, out: "", err: "" });
  const end = card.bytes;
  truncateSync(path, end + 100 * MiB + 513);
  expect(await grow(path)).toMatchObject({
    exit: 0,
    err: expect.stringContaining("partition 7 has 108 MiB now, it had 8"),
  });
  expect(await grow(path)).toMatchObject({ exit: 3 });
  const disk = await openDisk(path, "read");
  expect((await readTrybootCard(disk)).data.bytes).toBe(108 * MiB);
  await disk.close();
  const { partitions } = JSON.parse(await $`sfdisk --json ${path}`.text()).partitiontable;
  expect(partitions.at(-1).size).toBe((108 * MiB) / 512);
  // The link to its table, in the table before, says how far it reaches
  const before = FIRST_PARTITION + 3 * SIZES.boot + 4 * MiB + SIZES.slot;
  expect(
    cardIn(path)
      .read(before + 0x1ce + 12, 4)
      .readUInt32LE() * 512,
  ).toBe(112 * MiB);
  expect((await $`sfdisk --verify ${path}`.nothrow().quiet()).exitCode).toBe(0);
});

test("a model that U-Boot starts keeps its tryboot card and release where they are asked for", () => {
  const tree = rootOf();
  tree.put("usr/share/u-boot/rpi_arm64/u-boot.bin", file("U-Boot for bcm2711 and bcm2712"));
  const trees = new Map([["bcm2712-rpi-5-b.dtb", deviceTree(PI5)]]);
  const chosen = (...asked: string[]) => chooseStarters(tree, trees, asked);
  expect(chosen()).toMatchObject({ tryboot: [], boards: expect.arrayContaining([PI5]) });
  expect(chosen("pi5")).toMatchObject({
    tryboot: [{ model: { filter: "pi5", boards: [PI5] }, why: "asked for" }],
    boards: expect.arrayContaining([PI5]),
  });
  expect(() => chosen("pi4")).toThrow(
    "--tryboot pi4: asked for, and for tryboot no device tree of such a board",
  );
  expect(() => chosen("pi3")).toThrow("--tryboot pi3: pi4 and pi5 are the models whose firmware");
  const words = ["--rootfs", "root.tar", "--tryboot", "pi4,pi5"];
  expect(imageOptions(words, () => {})).toMatchObject({ tryboot: ["pi4", "pi5"] });
});

built("a boot partition that is too small is refused by the name of the option, with the sizes")(async () => {
  const small = (boot: number, more = {}) =>
    buildBoth(join(folder, "small"), 7n, { sizes: { ...SIZES, boot }, ...more }).catch(
      (error: Error) => `${error.name}: ${error.message}`,
    );
  expect(await small(24 * MiB)).toBe(
    "BuildError: --boot-size: fruitos-7-aarch64 needs a boot partition of 36 MiB, it has 24",
  );
  const tree = rootOf();
  tree.put("boot/start.elf", file(Buffer.alloc(40 * MiB)));
  expect(await small(40 * MiB, { rootfs: async () => tree })).toBe(
    "BuildError: --boot-size: fruitos-7-aarch64 needs a boot partition of 44 MiB, it has 40",
  );
});

built("a card for a Pi 4 is started by its start4.elf, and without that by nothing (model only)")(
  async () => {
    const board = "raspberrypi,4-model-b";
    const { tryboot } = await buildBoth(join(folder, "pi4"), 7n, {
      rootfs: async () => rootOf({ "bcm2711-rpi-4-b.dtb": board }),
    });
    const card = cardIn(tryboot?.raw ?? "");
    expect(started(new Firmware("pi4").powerOn(card))).toBe(A);
    expect(new Firmware("pi4").powerOn(cardIn((await made()).raw))).toMatchObject({ is: "hangs" });
  },
);

test("a Pi 4 without a U-Boot goes to tryboot only with its firmware's files and a device tree", () => {
  const chosen = (tree = rootOf()) =>
    chooseStarters(tree, new Map([["bcm2711.dtb", deviceTree("raspberrypi,4-model-b")]]));
  expect(chosen().tryboot).toMatchObject([{ model: { filter: "pi4" }, why: "no U-Boot rpi_4" }]);
  const tree = rootOf();
  tree.remove("boot/start4.elf");
  expect(chosen(tree).without).toContain("pi4: no U-Boot rpi_4, and for tryboot no start4.elf");
});
