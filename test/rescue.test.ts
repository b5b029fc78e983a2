/** The initramfs where a slot fails, and the rescue, under BusyBox; `fruit-records` against what the agent makes of the same card. */
import { expect, test } from "bun:test";
import {
  closeSync,
  existsSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readFileSync,
  readSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { FIRST_PARTITION, RECORD_OFFSETS, type SlotName } from "../boot/layout.ts";
import { type BootRecord, encodeRecord, REASONS, readRecords, SLOT_STATES } from "../boot/records.ts";
import { arm, begin, confirm, rollBack, stage } from "../boot/slots.ts";
import { openDisk } from "../hal/disk.ts";
import { seeded } from "./fakes.ts";
import { scratch } from "./node.ts";
import { makePayload } from "./releases.ts";
import { BUSYBOX, LIMIT_MS, NEEDS_BUSYBOX, ROOTFS, runScript } from "./shell.ts";

const MiB = 1 << 20;
const START = { a: FIRST_PARTITION + MiB, b: FIRST_PARTITION + 2 * MiB };
const check = (title: string, body: () => Promise<void>) =>
  test.skipIf(!BUSYBOX)(`${title}${NEEDS_BUSYBOX}`, body, LIMIT_MS);

type Made = ReturnType<typeof makePayload>;

/** A card with these payloads in its slots. */
function card(slots: Partial<Record<SlotName, Made>>) {
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

const older = makePayload({ version: 7n, seed: 1 });
const newer = makePayload({ version: 11n, seed: 5, rootBytes: 50_000 });

const slotOf = ({ area }: Made, hash = "ab".repeat(16)) => ({
  version: area.version,
  hash,
  payloadBytes: area.payloadBytes,
  kernel: area.boot.kernel,
  initramfs: area.boot.initramfs,
});

/** What a card is made with. */
const built: BootRecord = {
  ...{ format: 1, sequence: 1, primary: "a", confirmed: 0, reason: "built", time: 0, floor: 3n },
  slots: {
    a: { ...slotOf(older), state: "good", reason: "built" },
    b: { state: "empty", reason: "none", version: 0n, hash: "0".repeat(32), payloadBytes: 0 },
  },
};

check("without a valid record makes one of the slot that is whole", async () => {
  using it = card({ a: older });
  const { exit, out } = await it.run("repair");
  expect(exit).toBe(0);
  expect(out).toContain("slot a: version 7, its kernel and initramfs are whole");
  expect(out).toContain("slot b: no squashfs: it is empty, or was being written");
  const newest = await it.newest();
  expect(newest?.place).toBe(0);
  expect(newest?.record).toEqual({
    ...{ format: 1, sequence: 1, primary: "a", confirmed: 0, reason: "repaired", time: 0, floor: 7n },
    slots: { ...built.slots, a: { ...slotOf(older, "0".repeat(32)), state: "good", reason: "repaired" } },
  });
});

check("of two whole slots it starts from the older one, and the newer one waits for its trial", async () => {
  for (const [slots, primary] of [
    [{ a: older, b: newer }, "a"],
    [{ a: newer, b: older }, "b"],
  ] as const) {
    using it = card(slots);
    expect((await it.run("repair")).exit).toBe(0);
    const record = (await it.newest())?.record;
    expect(record).toMatchObject({ primary, floor: 7n });
    const other = primary === "a" ? "b" : "a";
    expect(record?.slots[primary]).toMatchObject({ state: "good", version: 7n });
    expect(record?.slots[other]).toEqual({
      ...slotOf(newer, "0".repeat(32)),
      state: "staged",
      reason: "repaired",
    });
    // The agent can work with it
    if (record) expect(arm(record, other, { id: 1, tries: 3 }).trial?.triesLeft).toBe(3);
  }
});

check("compares versions by their worth, also past what a signed number holds", async () => {
  for (const [low, high] of [
    [9n, 10n],
    [2n ** 32n - 1n, 2n ** 32n],
    [2n ** 63n - 1n, 2n ** 63n],
    [1n, 2n ** 64n - 1n],
  ] as const) {
    using it = card({ a: makePayload({ version: high }), b: makePayload({ version: low }) });
    const { out } = await it.run("repair");
    expect(out).toContain(`slot a: version ${high},`);
    expect((await it.newest())?.record).toMatchObject({ primary: "b", floor: low });
  }
});

check("finds every damage that U-Boot would find, and takes no slot that has it", async () => {
  const { headerAt, area } = newer;
  const { kernel, initramfs } = area.boot;
  for (const [at, why] of [
    [0, "no squashfs"],
    [headerAt, "no boot area behind its root"],
    [headerAt + 0x90, "its boot area is damaged"],
    [headerAt + 4095, "its boot area is damaged"],
    [kernel.offset, "its kernel is damaged"],
    [kernel.offset + kernel.bytes - 1, "its kernel is damaged"],
    [initramfs.offset + initramfs.bytes - 1, "its initramfs is damaged"],
  ] as const) {
    using it = card({ b: newer });
    const [byte = 0] = it.at(START.b + at, 1);
    it.put(START.b + at, Uint8Array.of(byte ^ 0x10));
    const before = it.bytes();
    const { exit, out, err } = await it.run("repair");
    expect(exit).toBe(1);
    expect(out).toContain(`slot b: ${why}`);
    expect(err).toContain("no slot is whole");
    expect(it.bytes().equals(before)).toBe(true);
  }
});

check("leaves valid records alone, and shows what they say", async () => {
  using it = card({ a: older, b: newer });
  const staged = stage(begin(built, "b", "cd".repeat(16)), "b", { ...slotOf(newer), hash: "cd".repeat(16) });
  const armed = { ...arm(staged, "b", { id: 5, tries: 3 }), sequence: 4 };
  for (const [place, record] of [
    { ...built, sequence: 3 },
    armed,
    undefined,
    { ...built, sequence: 2 },
  ].entries())
    if (record) it.put(RECORD_OFFSETS[place] ?? 0, encodeRecord(record));
  const before = it.bytes();
  expect(await it.run()).toEqual({
    exit: 0,
    err: "",
    out: [
      "place 0: record 3",
      "place 1: record 4, the one that counts",
      "place 2: no valid record",
      "place 3: record 2",
      "starts from slot a; written because: trial-armed",
      "the other slot is on trial, tries left: 3",
      "slot a: good (built); version 7, its kernel and initramfs are whole",
      "slot b: trying (none); version 11, its kernel and initramfs are whole",
      "",
    ].join("\n"),
  });
  const { exit, err } = await it.run("repair");
  expect(exit).toBe(1);
  expect(err).toContain("nothing to repair");
  expect(it.bytes().equals(before)).toBe(true);
});

check("knows every state and reason by the name that the agent gives it", async () => {
  using it = card({});
  for (const [number, reason] of REASONS.entries()) {
    const state = SLOT_STATES[number % SLOT_STATES.length] ?? "empty";
    it.put(
      RECORD_OFFSETS[0],
      encodeRecord({ ...built, reason, slots: { ...built.slots, b: { ...built.slots.b, state, reason } } }),
    );
    const { out } = await it.run("show");
    expect(out).toContain(`written because: ${reason}\n`);
    expect(out).toContain(`slot b: ${state} (${reason}); `);
  }
});

check("'use' ends a trial, takes the slot that a person named, and keeps what the record knew", async () => {
  using it = card({ a: older, b: newer });
  const staged = stage(begin(built, "b", "cd".repeat(16)), "b", { ...slotOf(newer), hash: "cd".repeat(16) });
  const armed = arm(staged, "b", { id: 5, tries: 3 });
  for (const [place, sequence] of [9, 7, 8, 6].entries())
    it.put(RECORD_OFFSETS[place] ?? 0, encodeRecord({ ...armed, sequence }));
  expect((await it.run("use", "a")).exit).toBe(0);
  let newest = await it.newest();
  expect(newest?.place).toBe(3);
  const { trial: _, ...rest } = armed;
  expect(newest?.record).toEqual({
    ...rest,
    ...{ sequence: 10, reason: "by-hand" },
    slots: {
      a: { ...armed.slots.a, state: "good", reason: "by-hand" },
      b: { ...armed.slots.b, state: "staged" },
    },
  });
  expect((await it.run("use", "b")).exit).toBe(0);
  newest = await it.newest();
  expect(newest?.place).toBe(1);
  expect(newest?.record).toMatchObject({ sequence: 11, primary: "b", floor: 3n });
  expect(newest?.record.slots.b).toMatchObject({ state: "good", hash: "cd".repeat(16), version: 11n });
});

check("'use' refuses a slot that is not whole, and a record of a newer format", async () => {
  using it = card({ a: older });
  it.put(RECORD_OFFSETS[0], encodeRecord(built));
  expect(await it.run("use", "b")).toMatchObject({ exit: 1, err: expect.stringContaining("no squashfs") });
  expect(await it.run("use", "c")).toMatchObject({ exit: 1, err: expect.stringContaining("a or b") });
  it.put(RECORD_OFFSETS[2], encodeRecord({ ...built, sequence: 2, format: 2 }));
  const before = it.bytes();
  expect(await it.run("use", "a")).toMatchObject({
    exit: 1,
    err: expect.stringContaining("newer format, 2"),
  });
  expect(it.bytes().equals(before)).toBe(true);
});

check("agrees with the agent on which record counts, whatever the four places hold", async () => {
  const random = seeded(11);
  for (let round = 0; round < 12; round++) {
    using it = card({});
    for (const offset of RECORD_OFFSETS) {
      const dice = random();
      if (dice < 0.2) continue;
      const bytes = encodeRecord({ ...built, sequence: Math.floor(random() * 2 ** 32) });
      if (dice < 0.5) {
        const at = Math.floor(random() * 512);
        bytes[at] = (bytes[at] ?? 0) ^ (1 << Math.floor(random() * 8));
      }
      it.put(offset, bytes);
    }
    const { out } = await it.run("show");
    const newest = await it.newest();
    const [, place] = /place (\d): record \d+, the one that counts/.exec(out) ?? [];
    expect(place).toBe(newest ? String(newest.place) : undefined);
  }
});

/** Both slots are good, and the node starts from b. */
const staged = stage(begin(built, "b", "cd".repeat(16)), "b", { ...slotOf(newer), hash: "cd".repeat(16) });
const both: BootRecord = {
  ...confirm(arm(staged, "b", { id: 5, tries: 3 }), "b", 7n),
  ...{ sequence: 6, time: 1_700_000_000 },
};
const LIB = join(ROOTFS, "initramfs/lib/fruit");

/** What init does with a slot that it cannot mount. */
async function initFails(it: ReturnType<typeof card>, slot: string, cmdline = "", before = "") {
  using folder = scratch();
  const path = (name: string) => join(folder.path, name);
  mkdirSync(path("lib"));
  for (const name of ["disk.sh", "fail.sh"])
    writeFileSync(path(`lib/${name}`), readFileSync(join(LIB, name)));
  writeFileSync(path("lib/rescue"), '#!/bin/busybox sh\necho "rescue $*" >>"$LOG"\n', { mode: 0o755 });
  writeFileSync(path("cmdline"), `fruit.slot=${slot} ${cmdline}\n`);
  writeFileSync(
    path("init"),
    [
      '. "$FRUIT_LIB/disk.sh"',
      '. "$FRUIT_LIB/fail.sh"',
      // What would reach this machine
      'say() { echo "$*"; }',
      "sleep() { :; }",
      "umount() { :; }",
      'restart() { echo restart >>"$LOG"; }',
      before,
      `disk=mmcblk0 slot=${slot} trial=$(word fruit.trial) files=${path("data")}`,
      `fail "slot ${slot}: no squashfs"`,
    ].join("\n"),
  );
  const { out } = await runScript(path("init"), [], {
    PATH: `${join(ROOTFS, "rescue/bin")}:${process.env.PATH}`,
    FRUIT_LIB: path("lib"),
    FRUIT_CMDLINE: path("cmdline"),
    FRUIT_DISK: it.path,
    LOG: path("log"),
  });
  const text = (name: string) => (existsSync(path(name)) ? readFileSync(path(name), "utf8") : "");
  return { out, did: text("log"), marks: text("data/fruit/boot/marks").replace(/[\da-f-]{36}/, "BOOT") };
}

check(
  "a slot that cannot be mounted gives way to the other one, in one record that the agent would write too",
  async () => {
    using it = card({ a: older, b: newer });
    for (const [place, sequence] of [6, 3, 4, 5].entries())
      it.put(RECORD_OFFSETS[place] ?? 0, encodeRecord({ ...both, sequence }));
    const { out, did, marks } = await initFails(it, "b");
    expect(out).toContain("slot b cannot be started, slot a takes its place");
    expect(did).toBe("restart\n");
    expect(marks).toBe("0 0 BOOT init slot b: no squashfs\n");
    const newest = await it.newest();
    expect(newest?.place).toBe(1);
    expect(newest?.record).toEqual({ ...rollBack(both, "files-damaged"), sequence: 7 });
    // And if that one cannot be mounted either, they do not take turns
    const before = it.bytes();
    const next = await initFails(it, "a");
    expect(next.out).toContain("slot b is failed, not good");
    expect(next.did).toBe("rescue mmcblk0 slot-a\n");
    expect(it.bytes().equals(before)).toBe(true);
  },
);

check(
  "a slot on trial that cannot be mounted leaves its evidence and starts again: the try is counted",
  async () => {
    using it = card({ a: older, b: newer });
    it.put(RECORD_OFFSETS[0], encodeRecord(both));
    const before = it.bytes();
    expect(await initFails(it, "b", "fruit.trial=7 fruit.try=2")).toMatchObject({
      did: "restart\n",
      marks: "7 2 BOOT init slot b: no squashfs\n",
    });
    expect(it.bytes().equals(before)).toBe(true);
  },
);

check(
  "the rescue of its own initramfs takes over where the other slot is no help, and nothing is written",
  async () => {
    const { kernel } = older.area.boot;
    for (const [why, record, slot, spoil] of [
      ["slot b is empty, not good", built, "a"],
      ["slot b is staged, not good", { ...staged, sequence: 3 }, "a"],
      ["slot b is trying, not good", arm(staged, "b", { id: 5, tries: 3 }), "a"],
      ["slot a is not the one that the node starts from", both, "a"],
      ["slot a: its kernel is damaged", both, "b", START.a + kernel.offset],
      ["slot a: no squashfs", both, "b", START.a],
      ["newer format, 2", { ...both, format: 2 }, "b"],
      ["no place holds a valid record", both, "b", RECORD_OFFSETS[0] + 100],
      ["the last sequence number", { ...both, sequence: 2 ** 32 - 1 }, "b"],
      ["fail what? a or b", both, "c"],
    ] as const) {
      using it = card({ a: older, b: newer });
      it.put(RECORD_OFFSETS[0], encodeRecord(record));
      if (spoil !== undefined) it.put(spoil, Uint8Array.of((it.at(spoil, 1)[0] ?? 0) ^ 0x10));
      const before = it.bytes();
      const { out, did } = await initFails(it, slot);
      expect(out).toContain(why);
      expect(did).toBe(`rescue mmcblk0 slot-${slot}\n`);
      expect(it.bytes().equals(before)).toBe(true);
    }
  },
);

check("the rescue takes over where the record cannot be written", async () => {
  using it = card({ a: older, b: newer });
  it.put(RECORD_OFFSETS[0], encodeRecord(both));
  // No file may grow beyond 1 MiB, and the records are past that
  const { out, did } = await initFails(it, "b", "", "ulimit -f 2048");
  expect(out).toContain("cannot be written");
  expect(did).toBe("rescue mmcblk0 slot-b\n");
  expect((await it.newest())?.record.sequence).toBe(6);
});
