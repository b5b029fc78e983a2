import { expect, test } from "bun:test";
import { existsSync, mkdirSync, readFileSync, symlinkSync } from "node:fs";
import { join } from "node:path";
import { Running } from "../agent/update/running.ts";
import { openSlot } from "../agent/update/target.ts";
import { openLinux } from "../hal/linux.ts";
import { FileCard } from "./card.ts";
import { SLOT_BYTES, SLOT_OFFSETS } from "./crash/card.ts";
import { failure } from "./fakes.ts";
import { loops, mount, sparse, run as system } from "./loop.ts";
import { scratch } from "./node.ts";

test("progress is a whole file at any moment, and a line now and then", () => {
  using folder = scratch();
  let nowMs = 0;
  let said = "";
  const running = new Running({
    runDir: folder.path,
    version: 9n,
    say: (line) => (said += line),
    nowMs: () => nowMs,
  });
  const file = () => JSON.parse(readFileSync(join(folder.path, "update.json"), "utf8"));
  for (let second = 0; second <= 20; second++) {
    nowMs = second * 1000;
    running.step({ phase: "writing", bytes: second * 1e6, of: 1e8 });
  }
  expect(file()).toEqual({
    phase: "writing",
    version: "9",
    bytes_done: 2e7,
    bytes_total: 1e8,
    rate: 1e6,
    eta_s: 80,
    pid: process.pid,
  });
  running.step({ phase: "reading-back", bytes: 1e8, of: 1e8 });
  running.step({ phase: "staged", bytes: 1e8, of: 1e8 });
  running[Symbol.dispose]();
  expect(existsSync(join(folder.path, "update.json"))).toBe(false);
  expect(said).toMatchInlineSnapshot(`
    "writing: 100.0 MB
      10 %, 1.0 MB/s, 1m left
      20 %, 1.0 MB/s, 1m left
      done in 20s (1.0 MB/s)
    reading back from the medium: 100.0 MB
      done in 0s
    "
  `);
});

test("a file beside a card's has nothing to do with it, whatever its name", async () => {
  using folder = scratch();
  const card = new FileCard(join(folder.path, "card.img"));
  const beside = sparse(`${card.path}3`, SLOT_BYTES);
  const hal = openLinux();
  const slot = await openSlot(
    hal,
    { name: card.path },
    { number: 3, type: 0x83, offset: SLOT_OFFSETS.b, bytes: SLOT_BYTES },
  );
  expect(slot.name).toBe(`${card.path}, partition 3`);
  await slot.write(0, new Uint8Array(4096).fill(7));
  await slot.close();
  await hal.close();
  expect(card.read(SLOT_OFFSETS.b, 1)).toEqual(Uint8Array.of(7));
  expect(readFileSync(beside).every((byte) => byte === 0)).toBe(true);
});

const cached = `a disk that nobody reads past the cache is not written${loops.need}`;
test.skipIf(loops.isSkipped)(cached, async () => {
  using folder = scratch();
  const { path } = new FileCard(join(folder.path, "card.img"));
  const disk = system("losetup", "--show", "-f", path).out.trim();
  const hal = openLinux();
  try {
    const blind = {
      machine: hal.machine,
      openDisk: async (name: string, how: "read" | "write" | "exclusive") => {
        const opened = await hal.openDisk(name, how);
        return Object.defineProperty(opened, "pastCache", { value: "never" });
      },
    };
    const partition = { number: 3, type: 0x83, offset: SLOT_OFFSETS.b, bytes: SLOT_BYTES };
    const refused = await failure(openSlot(blind, { name: disk }, partition));
    expect([refused.code, refused.message]).toEqual([
      "refused",
      expect.stringContaining("it cannot be read past the kernel's cache"),
    ]);
    // A file, on which nothing depends, may be
    const other = new FileCard(join(folder.path, "other.img"));
    await (await openSlot(blind, { name: other.path }, partition)).close();
  } finally {
    await hal.close();
    system("losetup", "-d", disk);
  }
});

const partitioned = `a slot is opened by its own partition while another is mounted${loops.need}`;
test.skipIf(loops.isSkipped)(partitioned, async () => {
  using folder = scratch();
  const card = new FileCard(join(folder.path, "card.img"));
  const { out } = system("losetup", "--show", "-f", card.path);
  const disk = out.trim();
  const sectors = (bytes: number) => String(bytes / 512);
  // Not every kernel reads partition tables of loop devices; every one takes them one by one
  for (const [number, offset, bytes] of [
    [3, SLOT_OFFSETS.b, SLOT_BYTES],
    [4, SLOT_OFFSETS.b + SLOT_BYTES, 4 * SLOT_BYTES],
  ] as const)
    system("addpart", disk, String(number), sectors(offset), sectors(bytes));
  const hal = openLinux();
  try {
    const partition = { number: 3, type: 0x83, offset: SLOT_OFFSETS.b, bytes: SLOT_BYTES };
    Bun.spawnSync(["mkfs.ext4", "-q", `${disk}p4`]);
    mkdirSync(join(folder.path, "at"));
    using _ = mount(`${disk}p4`, join(folder.path, "at"));
    const slot = await openSlot(hal, { name: disk }, partition);
    expect([slot.name, slot.bytes]).toEqual([`${disk}p3`, SLOT_BYTES]);
    expect((await failure(openSlot(hal, { name: disk }, partition))).code).toBe("busy");
    await slot.write(0, new Uint8Array(4096).fill(7));
    await slot.flush();
    expect(card.read(SLOT_OFFSETS.b, 1)).toEqual(Uint8Array.of(7));
    await slot.close();
    const wrong = await failure(openSlot(hal, { name: disk }, { ...partition, bytes: SLOT_BYTES * 2 }));
    expect(wrong.message).toContain("start this node anew");
    const moved = await failure(openSlot(hal, { name: disk }, { ...partition, offset: SLOT_OFFSETS.a }));
    expect(moved.message).toBe(
      `${disk}p3 is ${SLOT_BYTES} bytes from ${SLOT_OFFSETS.b}, the partition table on ${disk} says ${SLOT_BYTES} from ${SLOT_OFFSETS.a}: start this node anew`,
    );
    // By the disk itself, whatever name it was given
    const alias = join(folder.path, "alias");
    symlinkSync(disk, alias);
    const aliased = await openSlot(hal, { name: alias }, partition);
    expect(aliased.name).toBe(`${disk}p3`);
    await aliased.close();
    const mounted = await failure(
      openSlot(
        hal,
        { name: disk },
        { number: 4, type: 0x83, offset: SLOT_OFFSETS.b + SLOT_BYTES, bytes: 4 * SLOT_BYTES },
      ),
    );
    expect(mounted.message).toBe(`${disk}p4 is mounted at ${join(folder.path, "at")}`);
  } finally {
    await hal.close();
    for (const number of ["3", "4"]) system("delpart", disk, number);
    system("losetup", "-d", disk);
  }
});
