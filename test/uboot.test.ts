/** U-Boot's switch without U-Boot: what the agent makes of the records, and that boot.cmd speaks of the same places. */
import { expect, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { PARTITIONS, RECORD_OFFSETS, SECTOR, type SlotName } from "../boot/layout.ts";
import { type BootRecord, encodeRecord, REASONS, SLOT_STATES } from "../boot/record.ts";
import { RecordError } from "../boot/records.ts";
import { type SlotContent, SlotRefusal } from "../boot/slots.ts";
import { KERNEL_ROOM, LOADS, UBootSwitch } from "../boot/uboot/switch.ts";
import { openDisk } from "../hal/disk.ts";
import { bootScript } from "../image/bootscript.ts";
import { CrashDisk, Image } from "./crash/disk.ts";
import { needs, scratch } from "./node.ts";

const COMMANDS = readFileSync(join(import.meta.dir, "../boot/uboot/boot.cmd"), "utf8");
const HASH = "cd".repeat(16);
const CONTENT: SlotContent = {
  ...{ version: 5n, hash: HASH, payloadBytes: 90_000 },
  kernel: { offset: 4096, bytes: 10, crc32: 1 },
  initramfs: { offset: 8192, bytes: 20, crc32: 2 },
};
const slot = (state: "good" | "empty") =>
  ({ state, reason: "none", version: 1n, hash: HASH, payloadBytes: 1 }) as const;
const RECORD: BootRecord = {
  ...{ format: 1, sequence: 1, primary: "a", confirmed: 0, reason: "built", time: 0, floor: 0n },
  slots: { a: slot("good"), b: slot("empty") },
};

/** A card and the switch of a system that runs from `current`. */
function open(current: SlotName | undefined = "a", image = cardOf(RECORD)) {
  const disk = new CrashDisk(image);
  const parts = { disk: disk.open("disk"), now: () => 1_790_000_000, trialId: () => 77 };
  const as = (slot: SlotName | undefined) => new UBootSwitch({ ...parts, current: slot });
  return { disk, as, boot: as(current) };
}
function cardOf(record: BootRecord): Image {
  const image = new Image(20 * 1024 * 1024);
  image.write(RECORD_OFFSETS[0], encodeRecord(record));
  return image;
}

test("an update, step by step, each on the card when it is answered", async () => {
  const { disk, as, boot } = open();
  await boot.setState("b", { to: "writing", hash: HASH });
  await boot.setState("b", { to: "staged", content: CONTENT });
  expect(await boot.armTrial("b", 3)).toMatchObject({ trial: { id: 77, triesLeft: 3, started: 0 } });
  const confirmed = await as("b").setPrimary("b", { floor: 4n });
  expect(confirmed).toMatchObject({
    primary: "b",
    confirmed: 77,
    floor: 4n,
    time: 1_790_000_000,
    sequence: 5,
  });
  expect(await as("b").read()).toEqual(confirmed);
  expect(await as("b").settle()).toEqual(confirmed);
  // Every write was flushed before the next
  const kinds = disk.journal.map(({ kind }) => kind).join(" ");
  expect(kinds).toBe("write flush write flush write flush write flush");
  const back = await as("b").setPrimary("a", { reason: "by-hand" });
  expect(back).toMatchObject({ primary: "a", slots: { b: { state: "good", reason: "by-hand" } } });
});

test("the record's time is the clock's, and stays where that is not set or absurd", async () => {
  const disk = new CrashDisk(cardOf({ ...RECORD, time: 1_790_000_000 })).open("disk");
  const times = [0, 1_780_000_000, 1_800_000_000, 2 ** 32];
  const boot = new UBootSwitch({ disk, current: "a", now: () => times.shift() ?? 0 });
  const written: number[] = [];
  for (let left = times.length; left >= 0; left--)
    written.push((await boot.setState("b", { to: "writing", hash: HASH })).time);
  expect(written).toEqual([1_790_000_000, 1_780_000_000, 1_800_000_000, 1_800_000_000, 1_800_000_000]);
});

test("changes that are asked for at once are made one after the other", async () => {
  const { boot } = open();
  const hashes = ["11", "22", "33"].map((byte) => byte.repeat(16));
  const made = await Promise.all(hashes.map((hash) => boot.setState("b", { to: "writing", hash })));
  expect(made.map(({ sequence, slots }) => [sequence, slots.b.hash])).toEqual(
    hashes.map((hash, index) => [2 + index, hash]),
  );
});

test("a change that is refused holds up none after it", async () => {
  const { boot } = open();
  const refused = boot.armTrial("b", 3).catch((error: Error) => error.name);
  const made = boot.setState("b", { to: "writing", hash: HASH });
  expect([await refused, (await made).sequence]).toEqual(["SlotRefusal", 2]);
});

test("an install does not begin on what a rollback that is on its way has read", async () => {
  using folder = scratch();
  const path = join(folder.path, "card.img");
  const good = { ...RECORD, slots: { a: slot("good"), b: slot("good") } };
  const bytes = new Uint8Array(20 * 1024 * 1024);
  bytes.set(encodeRecord(good), RECORD_OFFSETS[0]);
  writeFileSync(path, bytes);
  const [first, second] = [await openDisk(path, "write"), await openDisk(path, "write")];
  const write = first.write.bind(first);
  let installing: Promise<string> | undefined;
  first.write = async (offset, sector) => {
    installing ??= new UBootSwitch({ disk: second, current: "a" })
      .setState("b", { to: "writing", hash: HASH })
      .then(
        () => "it began",
        (error: Error) => error.message,
      );
    // Without a lock it is over long before
    await Promise.race([installing, sleep(300)]);
    await write(offset, sector);
  };
  const rollback = await new UBootSwitch({ disk: first, current: "a" }).setPrimary("b", {
    reason: "by-hand",
  });
  expect([rollback.primary, await installing]).toEqual([
    "b",
    "slot b is the one this node starts from; it is never written",
  ]);
  await first.close();
  await second.close();
});

test("the slot that runs is not written, even where another is primary", async () => {
  const { disk, boot } = open("b");
  const writing = boot.setState("b", { to: "writing", hash: HASH });
  await expect(writing).rejects.toThrow(new SlotRefusal("this system runs from slot b; it is never written"));
  expect(disk.journal).toEqual([]);
});

test.each([
  { current: "a" as const, from: "slot a" },
  { current: undefined, from: "no slot" },
])("only the slot on trial itself confirms: not $from", async ({ current, from }) => {
  const { as, boot } = open();
  await boot.setState("b", { to: "writing", hash: HASH });
  await boot.setState("b", { to: "staged", content: CONTENT });
  await boot.armTrial("b", 3);
  await expect(as(current).setPrimary("b", { floor: 0n })).rejects.toThrow(
    new SlotRefusal(`this system runs from ${from}: only slot b itself can show that it is well`),
  );
});

test("no way back to where the node already is", async () => {
  const { boot } = open();
  await expect(boot.setPrimary("a", { reason: "by-hand" })).rejects.toThrow(
    "the node starts from slot a already",
  );
});

test.each([
  { file: "kernel", bytes: LOADS.kernel },
  { file: "initramfs", bytes: LOADS.initramfs },
  { file: "deviceTree", bytes: LOADS.deviceTree },
] as const)("a $file longer than U-Boot loads is not staged", async ({ file, bytes }) => {
  const { boot } = open();
  await boot.setState("b", { to: "writing", hash: HASH });
  const content = (length: number) => ({ ...CONTENT, [file]: { offset: 4096, bytes: length, crc32: 1 } });
  await expect(boot.setState("b", { to: "staged", content: content(bytes + 1) })).rejects.toThrow(
    `slot b: its ${file} has ${bytes + 1} bytes, U-Boot is made to load ${bytes} at most`,
  );
  expect(await boot.setState("b", { to: "staged", content: content(bytes) })).toBeObject();
});

test("a trial's id is one nobody has had", async () => {
  const ids = new Set<number>();
  for (let round = 0; round < 50; round++) {
    const { disk, boot } = open();
    await boot.setState("b", { to: "writing", hash: HASH });
    await boot.setState("b", { to: "staged", content: CONTENT });
    const real = new UBootSwitch({ disk: disk.open("disk"), current: "a" });
    ids.add((await real.armTrial("b", 3)).trial?.id ?? 0);
  }
  expect(ids.size).toBe(50);
  expect(ids).not.toContain(0);
});

test("a card without a record says how to see its places", async () => {
  const { boot } = open("a", new Image(20 * 1024 * 1024));
  for (const read of [() => boot.read(), () => boot.settle()])
    await expect(read()).rejects.toThrow(
      new RecordError("/dev/crash holds no valid record; 'fruit boot records' shows its places"),
    );
});

test("boot.cmd has the places, partitions, states, reasons and limits of the agent", () => {
  const sectors = RECORD_OFFSETS.map((offset) => (offset / SECTOR).toString(16)).join(" ");
  expect(COMMANDS.split(`for fr_place in ${sectors}; do`)).toHaveLength(3);
  expect(COMMANDS).toContain(`fr_slot a; setenv fr_part ${PARTITIONS.a};`);
  expect(COMMANDS).toContain(`fr_slot b; setenv fr_part ${PARTITIONS.b};`);
  expect(COMMANDS).toContain(`load \${devtype} \${devnum}:${PARTITIONS.boot} `);
  const [trying, good, failed] = (["trying", "good", "failed"] as const).map((name) =>
    SLOT_STATES.indexOf(name),
  );
  const [started, spent, damaged] = (["trial-started", "tries-spent", "files-damaged"] as const).map((name) =>
    REASONS.indexOf(name),
  );
  expect(COMMANDS).toContain(
    `(${trying} trying, ${good} good, ${failed} failed), +4 reason (${started} trial-started, ${spent} tries-spent,\n# ${damaged} files-damaged)`,
  );
  const limits = [...COMMANDS.matchAll(/setenv fr_most ([0-9a-f]+)/g)].map(([, most = ""]) =>
    Number.parseInt(most, 16),
  );
  expect(limits).toEqual([LOADS.kernel, LOADS.initramfs, LOADS.deviceTree]);
  const [kernelAt = 0, initramfsAt = 0, unpackedAt = 0] = [
    "fr_what kernel\n  setenv fr_to",
    "fr_what initramfs\n    setenv fr_to",
    "setenv kernel_comp_addr_r",
  ].map((words) => Number.parseInt(COMMANDS.split(`${words} `)[1] ?? "", 16));
  expect(kernelAt + KERNEL_ROOM).toBe(initramfsAt);
  // A packed file has the limit of one that is not, and what comes out of it as well
  expect(COMMANDS).toContain(`setenv kernel_comp_size ${LOADS.kernel.toString(16)}\n`);
  expect(COMMANDS).toContain(
    `${unpackedAt.toString(16)}  a packed kernel is unpacked here, at most ${LOADS.kernel.toString(16).padStart(8, "0")} bytes`,
  );
});

test("boot.cmd writes to records alone, and saves no environment", () => {
  const words = COMMANDS.split("\n").filter((line) => !line.startsWith("#"));
  expect(words.filter((line) => /\bwrite\b/.test(line))).toEqual([
    `  if \${devtype} write 0e000000 \${fr_best} 1; then`,
  ]);
  for (const word of ["saveenv", "env save", "fatwrite", "save ", "erase", "fatrm", "ext4write"])
    expect(words.join("\n")).not.toContain(word);
});

const mkimage = needs("boot.scr is byte for byte that of mkimage", {
  name: "mkimage",
  install: "u-boot-tools",
});
test.skipIf(mkimage.isSkipped)(mkimage.title, async () => {
  using folder = scratch();
  for (const [script, time] of [
    [COMMANDS, 0],
    ["echo ä\n", 1_790_000_000],
  ] as const) {
    const source = folder.file("boot.cmd", script);
    const out = join(folder.path, "boot.scr");
    const made = Bun.spawnSync(["mkimage", "-A", "arm64", "-T", "script", "-C", "none", "-d", source, out], {
      env: { ...process.env, SOURCE_DATE_EPOCH: String(time) },
    });
    expect(made.exitCode, made.stderr.toString()).toBe(0);
    expect(Buffer.from(bootScript(script, time)).equals(readFileSync(out))).toBeTrue();
  }
});
