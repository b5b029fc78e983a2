/**
 * The card that the builder makes for boards that U-Boot does not start, on its way through an update by the real command. What starts
 * is decided by a **model** of the firmware (`tryboot/firmware.ts`), never by a board.
 */
import { afterAll, expect, test } from "bun:test";
import { rmSync } from "node:fs";
import { join } from "node:path";
import { readThrough } from "../../agent/boot/card.ts";
import { openNodeCard } from "../../agent/boot/open.ts";
import { EXIT } from "../../agent/terminal.ts";
import { FIRST_PARTITION, RECORD_OFFSETS } from "../../boot/layout.ts";
import { makeAutoboot, primaryOf } from "../../boot/tryboot/autoboot.ts";
import { readTrybootCard } from "../../boot/tryboot/layout.ts";
import { openTryboot } from "../../boot/tryboot/switch.ts";
import { openDisk } from "../../hal/disk.ts";
import { missingPackages } from "../../image/fruitos/tools.ts";
import { needs } from "../node.ts";
import { A, B, Desk, machine, RESCUE, started } from "../tryboot/desk.ts";
import { Firmware } from "../tryboot/firmware.ts";
import { buildBoth, cardIn, SIZES } from "../tryboot/image.ts";

process.env.PATH = `${process.env.PATH}:/usr/sbin:/sbin`;

const missing = missingPackages();
const built = (title: string, ...programs: { name: string; install: string }[]) => {
  const { title: full, isSkipped } = needs(title, ...programs);
  const also = missing.length > 0 ? ` [needs: apt-get install ${missing.join(" ")}]` : "";
  return (body: () => Promise<void>) =>
    test.skipIf(isSkipped || missing.length > 0)(full + also, body, 120_000);
};
const busybox = { name: "busybox", install: "busybox" };

const desk = missing.length > 0 ? undefined : new Desk();
afterAll(() => desk?.close());
async function copied(name: string) {
  if (!desk) throw new Error("no card was made");
  return await desk.copy(name);
}

built("with --both slot b has its own word and is whole (model only)")(async () => {
  const both = await buildBoth(join(desk?.folder ?? "", "both"), 7n, { both: true });
  const card = await openNodeCard({ machine, openDisk }, both.tryboot?.raw, "write");
  if (!card) throw new Error("no card");
  const { slots } = await card.boot.read();
  for (const slot of ["a", "b"] as const)
    expect(await readThrough(card, slot, slots[slot], AbortSignal.timeout(20_000))).toBeUndefined();
  await card.boot.setPrimary("b", { reason: "by-hand" });
  await card.disk.close();
  expect(started(new Firmware("pi5").powerOn(cardIn(both.tryboot?.raw ?? "")))).toBe(B);
});

built(
  "installed by the real command, tried by the flag, confirmed: the sector follows, and every later start is b (model only)",
)(async () => {
  const it = await copied("life");
  const firmware = new Firmware("pi5");
  expect(started(firmware.powerOn(it.card))).toBe(A);
  expect(await it.install()).toMatchObject({
    exit: EXIT.done,
    out: expect.stringContaining("staged in slot b"),
  });
  expect((await it.record())?.slots.b).toMatchObject({ state: "staged", version: 8n });
  await it.slot("a", firmware, (boot) => boot.armTrial("b", 3));
  expect(started(firmware.reboot(it.card))).toBe(B);
  expect(await it.slot("b", firmware, (boot) => boot.settle())).toMatchObject({
    reason: "trial-started",
    trial: { started: 1 },
  });
  const { slots } = (await it.record()) ?? { slots: undefined };
  await it.opened(async (disk) => {
    const found = await readTrybootCard(disk);
    const boot = await openTryboot({ disk, current: "b", machine: firmware });
    const parts = { disk, boot, slots: { a: found.slots.a.root, b: found.slots.b.root } };
    const check = () =>
      readThrough(parts, "b", slots?.b ?? { hash: "", payloadBytes: 0 }, AbortSignal.timeout(20_000));
    expect(await check()).toBeUndefined();
    // The trial's own check finds what no hash of the slot's payload would
    const at = found.slots.b.boot.offset + 30 * 512;
    const old = await disk.read(at, 512);
    await disk.write(
      at,
      Uint8Array.from(old, (byte) => byte ^ 1),
    );
    expect(await check()).toContain("partition 3, the boot set of slot b: from byte 0 on it is not what");
    await disk.write(at, old);
  });
  await it.slot("b", firmware, (boot) => boot.setPrimary("b", { floor: 8n }));
  expect(primaryOf((await it.sector()).bytes)).toBe("b");
  for (const outcome of [firmware.reboot(it.card), firmware.powerOn(it.card), firmware.watchdog(it.card)])
    expect(started(outcome)).toBe(B);
});

built("the power comes back during a trial: the next start is a (model only)")(async () => {
  const it = await copied("fallback");
  const firmware = new Firmware("pi5");
  firmware.powerOn(it.card);
  await it.install();
  await it.slot("a", firmware, (boot) => boot.armTrial("b", 3));
  expect(started(firmware.reboot(it.card))).toBe(B);
  expect(started(firmware.powerOn(it.card))).toBe(A);
});

built(
  "the rescue's shell mends the sector as the agent would write it, for the slot that the record says (model only)",
  busybox,
)(async () => {
  for (const primary of ["a", "b"] as const) {
    const it = await copied(`mend-${primary}`);
    const firmware = new Firmware("pi5");
    if (primary === "b") {
      await it.install();
      await it.slot("a", firmware, (boot) => boot.armTrial("b", 3));
      await it.slot("b", firmware, (boot) => boot.setPrimary("b", { floor: 8n }));
    }
    const before = await it.record();
    const { offset } = await it.sector();
    await it.opened((disk) => disk.write(offset, new Uint8Array(512).fill(0x55)));
    expect(started(firmware.powerOn(it.card))).toBe(RESCUE);
    const { exit, out, err } = await it.records("settle");
    expect([exit, out, err]).toEqual([
      0,
      `autoboot.txt has the firmware start slot ${primary} now (sector ${offset / 512})\n`,
      "",
    ]);
    expect(Buffer.from((await it.sector()).bytes)).toEqual(Buffer.from(makeAutoboot(primary)));
    expect(await it.record()).toEqual(before as never);
    expect(started(firmware.powerOn(it.card))).toBe(primary === "a" ? A : B);
    rmSync(it.path);
  }
});

built(
  "where the firmware cannot start the primary slot the rescue gives it up for the other, and where there is none it stays (model only)",
  busybox,
)(async () => {
  const it = await copied("unbootable");
  const firmware = new Firmware("pi5");
  await it.install();
  await it.slot("a", firmware, (boot) => boot.armTrial("b", 3));
  await it.slot("b", firmware, (boot) => boot.setPrimary("b", { floor: 8n }));
  const blank = (index: number) =>
    it.opened((disk) => disk.write(FIRST_PARTITION + index * SIZES.boot, new Uint8Array(512)));
  await blank(2);
  expect(started(firmware.powerOn(it.card))).toBe(RESCUE);
  expect(await it.records("settle")).toMatchObject({
    exit: 0,
    out: expect.stringContaining("slot a takes its place"),
  });
  expect(await it.record()).toMatchObject({
    primary: "a",
    slots: { b: { state: "failed", reason: "files-damaged" } },
  });
  expect(started(firmware.powerOn(it.card))).toBe(A);
  await blank(1);
  expect(started(firmware.powerOn(it.card))).toBe(RESCUE);
  const before = await it.record();
  expect(await it.records("settle")).toMatchObject({
    exit: 1,
    err: expect.stringContaining("slot b is failed, not good"),
  });
  expect(await it.record()).toEqual(before as never);
  expect((await it.records()).out).toContain(
    "slot b: failed (files-damaged); version 8, its kernel and initramfs are whole",
  );
});

built(
  "a start of the slot on trial is noted by the initramfs as the agent would, and no other start is (model only)",
  busybox,
)(async () => {
  const it = await copied("start");
  const firmware = new Firmware("pi5");
  await it.install();
  expect((await it.records("start", "b")).exit).toBe(1);
  const { trial } = await it.slot("a", firmware, (boot) => boot.armTrial("b", 3));
  expect((await it.records("start", "a")).exit).toBe(1);
  expect(started(firmware.reboot(it.card))).toBe(B);
  expect(await it.records("start", "b")).toMatchObject({ exit: 0, out: `${trial?.id} 1\n` });
  expect(await it.record()).toMatchObject({
    reason: "trial-started",
    trial: { id: trial?.id, triesLeft: 2, started: 1 },
  });
  const noted = await it.record();
  expect((await it.slot("b", firmware, (boot) => boot.settle())).sequence).toBe(noted?.sequence ?? 0);
  expect(await it.records("start", "b")).toMatchObject({ exit: 0, out: `${trial?.id} 1\n` });
  // The firmware came to the rescue by accident, and two tries are left
  expect(await it.records("settle")).toMatchObject({ exit: 3, err: "" });
  expect(await it.record()).toEqual(noted as never);
  // A boot set that the firmware cannot start on trial: the rescue ends the trial, and a goes on
  await it.opened((disk) => disk.write(FIRST_PARTITION + 2 * SIZES.boot, new Uint8Array(512)));
  expect((await it.records("settle")).out).toContain("slot b has failed (files-damaged), its trial is over");
  expect(await it.record()).toMatchObject({
    primary: "a",
    slots: { b: { state: "failed", reason: "files-damaged" } },
  });
});

built(
  "a power cut while the boot set is copied leaves nothing that starts, and the same command goes on (model only)",
)(async () => {
  const [root, boot] = [
    FIRST_PARTITION + 3 * SIZES.boot + (8 << 20) + SIZES.slot,
    FIRST_PARTITION + 2 * SIZES.boot,
  ];
  const isFirst = (offset: number, bytes: Uint8Array) =>
    offset === boot && bytes.length === 512 && bytes.some((byte) => byte !== 0);
  const afterFirst = () => {
    let isDone = false;
    return (offset: number, bytes: Uint8Array) => {
      isDone ||= isFirst(offset, bytes);
      return isDone && RECORD_OFFSETS.some((place) => place === offset);
    };
  };
  // Whoever asks for partition 3 by its number gets what stands there, if the firmware finds it whole
  for (const [isCut, asked] of [
    [(offset: number, bytes: Uint8Array) => offset === boot && bytes.length > 512, RESCUE],
    [isFirst, RESCUE],
    [afterFirst(), B],
  ] as const) {
    const it = await copied("cut");
    const firmware = new Firmware("pi5");
    await it.installUntil(isCut);
    expect((await it.record())?.slots.b).toMatchObject({ state: "writing" });
    expect([firmware.powerOn(it.card), firmware.reboot(it.card, "3")].map(started)).toEqual([A, asked]);
    // What was whole by then is not startable any more when its root is written again
    await it.installUntil((offset) => offset === root);
    expect(started(firmware.reboot(it.card, "3"))).toBe(RESCUE);
    expect((await it.install()).exit).toBe(EXIT.done);
    expect([firmware.powerOn(it.card), firmware.reboot(it.card, "3")].map(started)).toEqual([A, B]);
  }
});

built(
  "a release is refused on a card of the other kind, and one whose boot set has no room too; nothing is written",
)(async () => {
  const it = await copied("refusals");
  const { raw = "" } = (await desk?.once) ?? {};
  const before = it.card.read(0, it.card.bytes);
  expect(await it.install("uboot")).toMatchObject({
    exit: EXIT.refused,
    err: expect.stringContaining(
      "it is a release for U-Boot, and on this card the firmware chooses the slot",
    ),
  });
  expect(it.card.read(0, it.card.bytes).equals(before)).toBe(true);
  const card = cardIn(raw);
  const other = card.read(0, card.bytes);
  expect(await it.install("tryboot", raw)).toMatchObject({
    exit: EXIT.refused,
    err: expect.stringContaining("a release for cards on which the firmware chooses the slot (tryboot)"),
  });
  expect(card.read(0, card.bytes).equals(other)).toBe(true);
  const file = { offset: 0, bytes: 1, crc32: 0 };
  const content = { version: 8n, hash: "0".repeat(32), payloadBytes: 1, kernel: file, initramfs: file };
  const why = (bytes: number) =>
    it.slot("a", new Firmware("pi5"), async (boot) => boot.refuses({ ...content, fat: { ...file, bytes } }));
  expect(await why(SIZES.boot)).toBeUndefined();
  expect(await why(SIZES.boot + 4096)).toContain("4096 too few");
});
