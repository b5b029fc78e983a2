/** Whatever is shown here is shown of a model of the firmware (`tryboot/firmware.ts`), not of a board. */
import { expect, test } from "bun:test";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import type { Plan } from "../agent/boot/plan.ts";
import { judge } from "../agent/boot/verdict.ts";
import { RECORD_OFFSETS, SECTOR, type SlotName } from "../boot/layout.ts";
import { encodeRecord } from "../boot/record.ts";
import { readRecords } from "../boot/records.ts";
import { SlotRefusal } from "../boot/slots.ts";
import { makeAutoboot, primaryOf } from "../boot/tryboot/autoboot.ts";
import { CannotSwitch, openTryboot } from "../boot/tryboot/switch.ts";
import { openDisk } from "../hal/disk.ts";
import { openLinux } from "../hal/linux.ts";
import { openSim } from "../hal/sim/hal.ts";
import { scratch } from "./node.ts";
import { BUSYBOX, LIMIT_MS, NEEDS_BUSYBOX } from "./shell.ts";
import {
  bootSet,
  FRESH,
  makeCard,
  makeFat,
  PLACES,
  putSystem,
  systemOf,
  wholeSystem,
} from "./tryboot/card.ts";
import { type Board, Firmware, type Traps } from "./tryboot/firmware.ts";
import { TrybootNode } from "./tryboot/node.ts";

const CONTENT = {
  version: 2n,
  hash: "b".repeat(32),
  payloadBytes: 1024 * 1024,
  kernel: { offset: 512, bytes: 1, crc32: 1 },
  initramfs: { offset: 1024, bytes: 1, crc32: 1 },
};

/** A node that runs slot a, with system `new` staged in slot b. */
async function stagedNode(traps: Traps = {}, board: Board = "pi4"): Promise<TrybootNode> {
  const node = new TrybootNode(new Firmware(board, traps), makeCard());
  node.powerOn();
  const boot = await node.open();
  await boot.setState("b", { to: "writing", hash: CONTENT.hash });
  putSystem(node.disk.image, "b", systemOf("new"));
  await boot.setState("b", { to: "staged", content: CONTENT });
  return node;
}

/** The same, armed. */
async function armedNode(traps: Traps = {}, tries = 3, board: Board = "pi4"): Promise<TrybootNode> {
  const node = await stagedNode(traps, board);
  await (await node.open()).armTrial("b", tries);
  return node;
}

const sector = (node: TrybootNode) => node.disk.image.read(PLACES.autoboot, SECTOR);
const recordOf = async (node: TrybootNode) => (await readRecords(node.disk)).newest?.record;

test("a trial that is confirmed: flag, one start of b, record started, commit, and every later start is b", async () => {
  const node = await armedNode();
  expect(node.firmware.rebootFlags()).toBe(1);
  expect(primaryOf(sector(node))).toBe("a");

  expect(node.reboot()).toBe("b");
  expect(node.outcome).toMatchObject({ config: "config.txt", kernel: "kernel of new" });
  const started = await node.settle();
  expect(started).toMatchObject({ reason: "trial-started", trial: { triesLeft: 2, started: 1 } });
  expect((await node.settle()).sequence).toBe(started.sequence);

  const good = await (await node.open()).setPrimary("b", { floor: 2n });
  expect(good).toMatchObject({
    primary: "b",
    reason: "confirmed",
    floor: 2n,
    slots: { b: { state: "good" } },
  });
  expect(good.trial).toBeUndefined();
  expect(primaryOf(sector(node))).toBe("b");
  expect([node.reboot(), node.powerOn(), node.watchdog()]).toEqual(["b", "b", "b"]);
  expect(wholeSystem(node.disk.image, "b", ["new"])).toBe("new");
  expect(wholeSystem(node.disk.image, "a", ["old"])).toBe("old");
});

test("the commit is: record committing, sector, record good, each flushed before the next", async () => {
  const node = await armedNode();
  node.reboot();
  await node.settle();
  const boot = await node.open();
  node.disk.writes.length = 0;
  node.disk.flushes = 0;
  await boot.setPrimary("b", { floor: 2n });
  const [first, second, third, ...more] = node.disk.writes;
  expect(RECORD_OFFSETS as readonly number[]).toContain(first?.offset ?? 0);
  expect(second?.offset).toBe(PLACES.autoboot);
  expect(Buffer.from(second?.bytes ?? [])).toEqual(Buffer.from(makeAutoboot("b")));
  expect(RECORD_OFFSETS as readonly number[]).toContain(third?.offset ?? 0);
  expect(more).toEqual([]);
  expect(node.disk.flushes).toBe(3);
});

test("the trial is over with the power: the next start is a again, and the try is spent without blame", async () => {
  const node = await armedNode();
  expect(node.powerOn()).toBe("a");
  const record = await node.settle();
  expect(record).toMatchObject({ reason: "trial-armed", trial: { triesLeft: 2, started: 0 } });
  // Armed anew: the next start tries it
  expect(node.firmware.rebootFlags()).toBe(1);
  expect(node.reboot()).toBe("b");
});

test("a trial that never comes back is tried as often as was said, then the slot has failed and a runs on", async () => {
  const node = await armedNode();
  const seen: string[] = [];
  for (let start = 0; start < 8; start++) {
    seen.push(node.reboot());
    await node.settle();
  }
  expect(seen).toEqual(["b", "a", "b", "a", "b", "a", "a", "a"]);
  expect(await recordOf(node)).toMatchObject({
    primary: "a",
    slots: { a: { state: "good" }, b: { state: "failed", reason: "tries-spent" } },
  });
  expect((await recordOf(node))?.trial).toBeUndefined();
  expect(node.firmware.rebootFlags()).toBe(0);
});

test("a kernel that hangs before anything marks its start spends the tries all the same", async () => {
  const node = await armedNode();
  node.broken = ["kernel of new"];
  const seen: string[] = [];
  for (let start = 0; start < 4; start++) {
    seen.push(node.reboot());
    seen.push(node.watchdog());
    await node.settle();
  }
  expect(seen).toEqual(["nothing", "a", "nothing", "a", "nothing", "a", "a", "a"]);
  expect((await recordOf(node))?.slots.b).toMatchObject({ state: "failed", reason: "switch-failed" });
});

test("an agent that starts again before the restart spends no try", async () => {
  const node = await armedNode();
  const armed = await recordOf(node);
  for (let start = 0; start < 5; start++) await node.settle();
  expect(await recordOf(node)).toEqual(armed);
  expect(node.reboot()).toBe("b");
});

test("a trial given up before the restart is not started after it", async () => {
  const node = await armedNode();
  await (await node.open()).setState("b", { to: "failed", reason: "by-hand" });
  expect(node.firmware.rebootFlags()).toBe(0);
  expect(node.reboot()).toBe("a");
});

test("rolling back to the other good slot turns the sector round and tells why", async () => {
  const node = await armedNode();
  node.reboot();
  await node.settle();
  await (await node.open()).setPrimary("b", { floor: 1n });
  const record = await (await node.open()).setPrimary("a", { reason: "by-hand" });
  expect(record).toMatchObject({ primary: "a", slots: { b: { state: "good", reason: "by-hand" } } });
  expect(node.reboot()).toBe("a");
});

test("what is being written cannot be started: the head of its boot set is gone before anything else is written", async () => {
  const node = await stagedNode();
  await (await node.open()).setState("b", { to: "writing", hash: CONTENT.hash });
  expect(node.disk.image.read(PLACES.boot.b.offset, SECTOR).every((byte) => byte === 0)).toBe(true);
  node.firmware.rebootFlags(1);
  expect(node.reboot()).toBe("rescue");
});

test.each<{ what: string; spoil: (node: TrybootNode) => void; says: string }>([
  {
    what: "whose boot set has no head",
    spoil: (node) => node.disk.image.write(PLACES.boot.b.offset, new Uint8Array(SECTOR)),
    says: "partition 3: it does not begin with a FAT file system",
  },
  {
    what: "31: whose tryboot.txt is another",
    spoil: (node) => {
      const files = bootSet("new").map((file) =>
        file.name === "tryboot.txt" ? { ...file, content: "x" } : file,
      );
      node.disk.image.write(PLACES.boot.b.offset, makeFat(PLACES.boot.b.bytes, files));
    },
    says: "slot b is not tried: /dev/crash partition 3: tryboot.txt is not the same as config.txt",
  },
])("a slot $what is not armed, and nothing is written", async ({ spoil, says }) => {
  const node = await stagedNode();
  spoil(node);
  const before = await recordOf(node);
  const boot = await node.open();
  await expect(boot.armTrial("b", 3)).rejects.toThrow(says);
  expect(await recordOf(node)).toEqual(before);
  expect(node.firmware.rebootFlags()).toBe(0);
});

test("25: with signs of foreign writes on the first partition nothing is tried, but a spoilt sector is mended", async () => {
  const node = await stagedNode();
  const table = PLACES.selector.offset + 32 * SECTOR;
  node.disk.image.write(table + 2800, new Uint8Array(Uint32Array.of(0x0fff_ffff).buffer));
  await expect((await node.open()).armTrial("b", 3)).rejects.toThrow(
    "partition 1 is not as it was made, nothing is tried: the two copies of its table differ",
  );
  node.disk.image.write(PLACES.autoboot, new Uint8Array(SECTOR));
  await node.settle();
  expect(primaryOf(sector(node))).toBe("a");
});

test("a power cut while the first start blanked files on the first partition does not keep updates away for good", async () => {
  const node = await stagedNode();
  node.disk.image.write(PLACES.selector.offset + 0x41, Uint8Array.of(1));
  await (await node.open()).armTrial("b", 3);
  expect(node.reboot()).toBe("b");
});

test("the running slot and the one to start from are never written", async () => {
  const node = await armedNode();
  node.reboot();
  const boot = await node.open();
  for (const slot of ["a", "b"] as const)
    await expect(boot.setState(slot, { to: "writing", hash: CONTENT.hash })).rejects.toThrow(SlotRefusal);
});

test("29: a board that stores the flag and ignores it runs on in a, and the slot is given up without evidence against it", async () => {
  const node = await armedNode({ flagIgnored: true });
  const trial = (await recordOf(node))?.trial?.id ?? 0;
  const seen: string[] = [];
  for (let start = 0; start < 5; start++) {
    seen.push(node.reboot());
    await node.settle();
  }
  expect(seen).toEqual(["a", "a", "a", "a", "a"]);
  const record = await recordOf(node);
  if (!record) throw new Error("no record");
  expect(record.slots.b).toMatchObject({ state: "failed", reason: "switch-failed" });
  const { hash } = record.slots.b;
  const plan: Plan = {
    ...{
      slot: "b",
      hash,
      version: "2",
      floor: "0",
      trial,
      tries: 3,
      boot: "before",
      by: "anna",
      baseline: [],
    },
  };
  expect(judge({ record, current: "a", plan, marks: [], boot: "now" })).toMatchObject({
    is: "failed",
    plan: { trial },
    cause: { reason: "switch-failed", blame: "none" },
  });
  expect(wholeSystem(node.disk.image, "a", ["old"])).toBe("old");
});

test("30: a flag that the firmware does not clear is cleared by the slot on trial, so that its end is a again", async () => {
  const node = await armedNode({ flagSticky: true });
  expect(node.reboot()).toBe("b");
  expect(node.firmware.rebootFlags()).toBe(1);
  await node.settle();
  expect(node.firmware.rebootFlags()).toBe(0);
  expect(node.watchdog()).toBe("a");
});

test("30: with a flag that is not cleared and a kernel that hangs, only the power brings a back", async () => {
  const node = await armedNode({ flagSticky: true });
  node.broken = ["kernel of new"];
  expect([node.reboot(), node.watchdog(), node.watchdog()]).toEqual(["nothing", "nothing", "nothing"]);
  expect(node.powerOn()).toBe("a");
});

test("30: a flag left over without a trial is cleared at the next start of the agent", async () => {
  const node = new TrybootNode(new Firmware(), makeCard({ b: "new" }));
  node.powerOn();
  node.firmware.rebootFlags(1);
  await node.settle();
  expect(node.reboot()).toBe("a");
});

test("31: firmware that reads tryboot.txt in spite of tryboot_a_b starts the same kernel, since both files are the same", async () => {
  const node = await armedNode({ abIgnored: true });
  expect(node.reboot()).toBe("b");
  expect(node.outcome).toMatchObject({ config: "tryboot.txt", kernel: "kernel of new" });
  await node.settle();
  await (await node.open()).setPrimary("b", { floor: 1n });
  expect(node.reboot()).toBe("b");
  expect(node.outcome).toMatchObject({ config: "config.txt" });
});

test.each([0, 1, 2, 3, 32, 63])(
  "32: a device tree that says partition %d changes nothing: the slot is that of the mounted root",
  async (deviceTreePartition) => {
    const node = await armedNode({ deviceTreePartition });
    expect(node.reboot()).toBe("b");
    expect(node.outcome).toMatchObject({ deviceTree: { partition: deviceTreePartition } });
    expect(await node.settle()).toMatchObject({ reason: "trial-started" });
    expect(node.reboot()).toBe("a");
    expect(await node.settle()).toMatchObject({ reason: "trial-armed", trial: { triesLeft: 2 } });
  },
);

test.skipIf(!BUSYBOX)(
  `33: PM_RSTS that asks for partition 32 after a watchdog reset leads to the rescue, which ends no trial with tries left${NEEDS_BUSYBOX}`,
  async () => {
    const node = await armedNode({ rstsBit10: true }, 2, "pi5");
    node.broken = ["kernel of new"];
    expect([node.reboot(), node.watchdog()]).toEqual(["nothing", "rescue"]);
    const before = node.disk.image.digest;
    expect(await node.records("settle")).toMatchObject({ exit: 3, err: "" });
    expect(node.disk.image.digest).toBe(before);
    // A restart by the kernel clears the partition's bits
    expect(node.reboot()).toBe("a");
    expect(await node.settle()).toMatchObject({ trial: { triesLeft: 1, started: 0 } });
    // The last one
    expect([node.reboot(), node.watchdog()]).toEqual(["nothing", "rescue"]);
    expect(await node.records("settle")).toMatchObject({ exit: 0 });
    const record = await recordOf(node);
    expect(record).toMatchObject({ slots: { b: { state: "failed", reason: "switch-failed" } } });
    expect(record?.trial).toBeUndefined();
    expect(node.reboot()).toBe("a");
  },
  LIMIT_MS,
);

test.skipIf(!BUSYBOX)(
  `33: nor does it give up a slot that is confirmed and whole, a or b${NEEDS_BUSYBOX}`,
  async () => {
    const node = await armedNode({ rstsBit10: true }, 3, "pi5");
    node.reboot();
    await (await node.open()).setPrimary("b", { floor: 2n });
    expect([node.reboot(), node.watchdog()]).toEqual(["b", "rescue"]);
    const before = node.disk.image.digest;
    expect(await node.records("settle")).toMatchObject({ exit: 3, err: "" });
    expect(node.disk.image.digest).toBe(before);
    expect(node.reboot()).toBe("b");
    await (await node.open()).setPrimary("a", { reason: "by-hand" });
    expect([node.reboot(), node.watchdog()]).toEqual(["a", "rescue"]);
    expect(await node.records("settle")).toMatchObject({ exit: 3, err: "" });
    expect(node.reboot()).toBe("a");
    // A byte more than its name is otherwise, and it is another's word for slot a
    node.disk.image.write(PLACES.boot.a.offset + 40 * SECTOR, Uint8Array.of(7));
    expect(node.watchdog()).toBe("rescue");
    expect(await node.records("settle")).toMatchObject({ exit: 0 });
    expect(await recordOf(node)).toMatchObject({
      primary: "b",
      slots: { a: { state: "failed", reason: "files-damaged" } },
    });
    expect(node.reboot()).toBe("b");
  },
  LIMIT_MS,
);

test("33: partition 63 is the kernel's word for halt, and the sector is not asked", () => {
  const node = new TrybootNode(new Firmware(), makeCard());
  node.reboot("63");
  expect(node.outcome).toEqual({ is: "halted" });
  expect(node.powerOn()).toBe("a");
});

test("34: an EEPROM before 2022-11-25 starts a with its own tryboot.txt, which is whole, and the slot is given up", async () => {
  const node = await armedNode({ eepromOld: true });
  for (let start = 0; start < 4; start++) {
    expect(node.reboot()).toBe("a");
    await node.settle();
  }
  expect((await recordOf(node))?.slots.b).toMatchObject({ state: "failed", reason: "switch-failed" });
});

test("34: an EEPROM that is write-protected (Pi 4 revision 1.0 and 1.1) loses the flag, and a runs on", async () => {
  const node = await armedNode({ eepromProtected: true });
  for (let start = 0; start < 4; start++) {
    expect(node.reboot()).toBe("a");
    await node.settle();
  }
  expect((await recordOf(node))?.slots.b).toMatchObject({ state: "failed", reason: "switch-failed" });
});

test("35: a start.elf that needs another bootcode.bin hangs on trial before the watchdog; the power brings a back, untouched", async () => {
  const node = await stagedNode({}, "pi3");
  const files = bootSet("new").map((file) =>
    file.name === "start.elf" ? { ...file, content: "start needs=9" } : file,
  );
  node.disk.image.write(PLACES.boot.b.offset, makeFat(PLACES.boot.b.bytes, files));
  await (await node.open()).armTrial("b", 2);
  const seen: string[] = [];
  for (let start = 0; start < 2; start++) {
    seen.push(node.reboot());
    expect(node.outcome).toMatchObject({
      is: "hangs",
      why: "start.elf of partition 3 needs another bootcode.bin",
    });
    seen.push(node.powerOn());
    await node.settle();
  }
  expect(seen).toEqual(["nothing", "a", "nothing", "a"]);
  expect((await recordOf(node))?.slots.b).toMatchObject({ state: "failed", reason: "switch-failed" });
  expect(wholeSystem(node.disk.image, "a", ["old"])).toBe("old");
});

test("36: BusyBox's reboot says nothing to the kernel, and the trial starts by the mailbox's flag alone", async () => {
  const node = await stagedNode();
  // What others do, and what BusyBox makes of it
  expect(node.reboot("")).toBe("a");
  await (await node.open()).armTrial("b", 3);
  expect(node.reboot("")).toBe("b");
});

test("37: without /dev/vcio no trial is armed, nothing is written, and a runs on", async () => {
  const node = await stagedNode({ noMailbox: true });
  const before = await recordOf(node);
  const writes = node.disk.writes.length;
  const error = await (await node.open()).armTrial("b", 3).catch((cause: unknown) => cause);
  expect(error).toBeInstanceOf(CannotSwitch);
  expect((error as Error).message).toContain(
    "the firmware's mailbox (/dev/vcio) does not take the tryboot flag",
  );
  expect(node.disk.writes.length).toBe(writes);
  expect(await recordOf(node)).toEqual(before);
  await node.settle();
  expect(node.reboot()).toBe("a");
});

test.skipIf(existsSync("/dev/vcio"))(
  "37: a Linux without the firmware's mailbox knows neither flags nor firmware",
  () => {
    const { machine } = openLinux();
    expect([machine.rebootFlags(), machine.rebootFlags(1), machine.firmwareBuilt()]).toEqual([
      undefined,
      undefined,
      undefined,
    ]);
    machine.close();
  },
);

test("the simulated machine keeps the flags it is given, as its firmware would until the next start", () => {
  const { machine } = openSim({ seed: 1, boards: [], wireTime: false, faults: [], clockSynced: true });
  expect([
    machine.rebootFlags(),
    machine.rebootFlags(1),
    machine.rebootFlags(),
    machine.rebootFlags(0),
  ]).toEqual([0, 1, 1, 0]);
});

test("37: a mailbox that is gone after the arming ends the trial at the next start", async () => {
  const node = await armedNode();
  node.powerOn();
  node.firmware.traps.noMailbox = true;
  const record = await node.settle();
  expect(record.slots.b).toMatchObject({ state: "failed", reason: "switch-failed" });
});

test("a flag that does not read back as set arms nothing: the record is what it was", async () => {
  const node = await stagedNode();
  const before = await recordOf(node);
  node.firmware.rebootFlags = (set?: number) => (set === undefined ? 0 : 0);
  await expect((await node.open()).armTrial("b", 3)).rejects.toThrow(
    "the firmware did not keep the tryboot flag: it reads back as 0x0",
  );
  expect(await recordOf(node)).toEqual(before);
});

test("a flag that is kept once and then no more is undone: the slot is staged as before", async () => {
  const node = await stagedNode();
  let sets = 0;
  const real = node.firmware.rebootFlags.bind(node.firmware);
  node.firmware.rebootFlags = (set?: number) => (set === 1 && ++sets > 1 ? 0 : real(set));
  await expect((await node.open()).armTrial("b", 3)).rejects.toThrow(CannotSwitch);
  const record = await recordOf(node);
  expect(record?.trial).toBeUndefined();
  expect(record?.slots.b.state).toBe("staged");
  expect(node.reboot()).toBe("a");
});

test("38: a kernel that does not know the word tryboot is no hindrance: nobody tells it", async () => {
  const node = await armedNode({ kernelPlain: true });
  node.firmware.rebootFlags(0);
  expect(node.reboot("0 tryboot")).toBe("a");
  await node.settle();
  expect(node.reboot()).toBe("b");
});

test("38: the kernel's own flag and ours are the same one", async () => {
  const node = await armedNode();
  expect(node.reboot("0 tryboot")).toBe("b");
});

test.each(["a", "b"] as const)(
  "a record that says %s makes the sector say so, whatever it held",
  async (primary: SlotName) => {
    for (const held of [
      makeAutoboot("a"),
      makeAutoboot("b"),
      new Uint8Array(SECTOR),
      new Uint8Array(SECTOR).fill(0xff),
    ]) {
      const record = { ...FRESH, primary, slots: { a: FRESH.slots.a, b: FRESH.slots.a } };
      const node = new TrybootNode(new Firmware(), makeCard({ b: "new", record }));
      node.powerOn();
      const agent = await node.open();
      node.disk.image.write(PLACES.autoboot, held);
      await agent.settle();
      expect(Buffer.from(sector(node))).toEqual(Buffer.from(makeAutoboot(primary)));
      expect(node.reboot()).toBe(primary);
    }
  },
);

test("a sector that is right is not written again", async () => {
  const node = new TrybootNode(new Firmware(), makeCard());
  node.powerOn();
  for (let start = 0; start < 5; start++) await node.settle();
  expect(node.disk.writes).toEqual([]);
});

test("a commit whose sector cannot be written leaves a to start from: b has failed, and says why", async () => {
  const node = await armedNode();
  node.reboot();
  await node.settle();
  node.disk.trouble = (offset) => (offset === PLACES.autoboot ? "EIO" : undefined);
  await expect((await node.open()).setPrimary("b", { floor: 2n })).rejects.toThrow("EIO");
  expect(await recordOf(node)).toMatchObject({ primary: "a", reason: "committing" });
  expect(node.reboot()).toBe("a");
  await node.settle();
  expect(await recordOf(node)).toMatchObject({
    primary: "a",
    slots: { b: { state: "failed", reason: "switch-failed" } },
  });
});

test.each([
  ["but for its first sector", 128 * 1024],
  ["in its first sector", SECTOR],
])(
  "a boot set that the card stores otherwise %s is not staged, and written anew by the next install",
  async (_, length) => {
    const at = PLACES.boot.b.offset;
    const node = new TrybootNode(new Firmware(), makeCard());
    node.powerOn();
    const it = await node.open();
    await it.setState("b", { to: "writing", hash: CONTENT.hash });
    node.disk.image.write(PLACES.root.b.offset, systemOf("new").root);
    node.disk.trouble = (offset, bytes) =>
      offset === at && bytes.length === length ? bytes.slice().fill(7, length - 9, length - 8) : undefined;
    const staging = () => it.setState("b", { to: "staged", content: CONTENT });
    await expect(staging()).rejects.toThrow("partition 3: from byte 0 on it reads back otherwise");
    expect((await recordOf(node))?.slots.b.state).toBe("writing");
    // Nothing starts what is not whole
    if (length > SECTOR) expect(node.disk.image.read(at, SECTOR).every((byte) => byte === 0)).toBe(true);
    node.disk.trouble = () => undefined;
    await staging();
    expect(wholeSystem(node.disk.image, "b", ["new"])).toBe("new");
  },
);

test("a sector that the card stores otherwise is an error, not a commit", async () => {
  const node = await armedNode();
  node.reboot();
  await node.settle();
  node.disk.trouble = (offset, bytes) =>
    offset === PLACES.autoboot ? bytes.map((byte) => byte ^ 1) : undefined;
  await expect((await node.open()).setPrimary("b", { floor: 2n })).rejects.toThrow(
    `autoboot.txt, written at byte ${PLACES.autoboot}, reads back otherwise`,
  );
  node.disk.trouble = () => undefined;
  expect(node.reboot()).toBe("rescue");
  if (!BUSYBOX) return;
  expect(await node.records("settle")).toMatchObject({ exit: 0 });
  expect(node.reboot()).toBe("b");
  expect(wholeSystem(node.disk.image, "b", ["new"])).toBe("new");
});

test("a record of a newer format is left as it is, and the node still starts", async () => {
  const record = { ...FRESH, format: 2 };
  const image = makeCard();
  image.write(RECORD_OFFSETS[0], encodeRecord(record));
  const node = new TrybootNode(new Firmware(), image);
  expect(node.powerOn()).toBe("a");
  expect(await node.settle()).toMatchObject({ format: 2, primary: "a" });
  await expect((await node.open()).setState("b", { to: "writing", hash: CONTENT.hash })).rejects.toThrow(
    "format 2",
  );
});

test("on a real file, by the kernel's own calls: arm, commit, and the bytes on the disk are the same as in memory", async () => {
  using folder = scratch();
  const node = await stagedNode();
  const path = folder.file("card", "");
  writeFileSync(path, node.disk.image.read(0, PLACES.disk));
  const disk = await openDisk(path, "write");
  try {
    const open = (current: SlotName) =>
      openTryboot({ disk, machine: node.firmware, current, now: () => 1_800_000_007 });
    await (await open("a")).armTrial("b", 3);
    const trial = await open("b");
    expect(await trial.settle()).toMatchObject({ reason: "trial-started", time: 1_800_000_007 });
    expect(await trial.setPrimary("b", { floor: 2n })).toMatchObject({ primary: "b" });
  } finally {
    await disk.close();
  }
  const bytes = readFileSync(path);
  expect(bytes.subarray(PLACES.autoboot, PLACES.autoboot + SECTOR)).toEqual(Buffer.from(makeAutoboot("b")));
  // Nothing but records and the sector was written
  const before = Buffer.from(node.disk.image.read(0, PLACES.disk));
  for (const at of [...RECORD_OFFSETS, PLACES.autoboot]) {
    bytes.fill(0, at, at + SECTOR);
    before.fill(0, at, at + SECTOR);
  }
  expect(bytes.equals(before)).toBe(true);
});
