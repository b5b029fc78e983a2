/** `fruit-records` under BusyBox, against what the agent makes of the same card; proof/rescue.proof.ts has every cut. */
import { expect, test } from "bun:test";
import { RECORD_OFFSETS } from "../boot/layout.ts";
import { encodeRecord, REASONS, SLOT_STATES } from "../boot/record.ts";
import { arm, begin, stage } from "../boot/slots.ts";
import { seeded } from "./fakes.ts";
import { makePayload } from "./releases.ts";
import { built, card, newer, older, START, slotOf } from "./rescuecard.ts";
import { BUSYBOX, LIMIT_MS, NEEDS_BUSYBOX } from "./shell.ts";
import { CUT_RUNS, cutRun } from "./tears.ts";

const check = (title: string, body: () => Promise<void>) =>
  test.skipIf(!BUSYBOX)(`${title}${NEEDS_BUSYBOX}`, body, LIMIT_MS);

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
  for (let round = 0; round < (process.env.FRUIT_FUZZ ? 12 : 5); round++) {
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

for (const [index, run] of CUT_RUNS.entries())
  check(
    `16 power: a cut in 'fruit-records ${run.words.join(" ")}', its one sector torn in a third of the ways: what counted counts still, and the same again ends the same`,
    async () => {
      expect(await cutRun(run, (way) => way % 3 === index)).toBeGreaterThan(2);
    },
  );
