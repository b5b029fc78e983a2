/**
 * fruitos on an emulated Pi 3 where nothing of a slot is of any help: a first program that hangs, a slot that was good and panics at
 * each start, both slots damaged, records and data destroyed. Each time the node comes back by itself, or waits for a person with a
 * shell.
 *
 * Emulation, not hardware: the watchdog is the kernel's own (softdog), since QEMU's BCM2835 resets as soon as its watchdog is begun.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { $ } from "bun";
import { PARTITIONS, RECORD_OFFSETS, readPartitions, SECTOR } from "../../boot/layout.ts";
import type { BootRecord } from "../../boot/record.ts";
import { changeRecord, readRecords } from "../../boot/records.ts";
import { arm, confirm } from "../../boot/slots.ts";
import { openDisk } from "../../hal/disk.ts";
import type { BlockDevice } from "../../hal/ports.ts";
import { HAS_MOSQUITTO, NEEDS_MOSQUITTO } from "../broker.ts";
import { missingForEmulator } from "../emulator/cache.ts";
import { copyCard, lookAtCard } from "../emulator/fruitos.ts";
import { flashed, Lab, report, seconds, tell } from "../emulator/lab.ts";
import { LIMITS } from "../emulator/limits.ts";
import { type Release, stageInto, Workshop } from "../emulator/releases.ts";
import { Seat } from "../emulator/seat.ts";
import { until } from "../node.ts";

const PATIENCE = LIMITS.trial;
const ENV = { ...process.env, PATH: `${process.env.PATH}:/usr/sbin:/sbin` };
/** Seconds that a healthy system may take from the initramfs to its feeder, in an emulator that shares its machine. */
const EARLY = 191;
/** Seconds for one that never gets there. */
const HANG = 15;
/** The feeder's settings, and how the initramfs gets this machine's watchdog. */
const settings = (early: number) =>
  `FRUIT_WATCHDOG=/dev/watchdog1\nFRUIT_MODULE=softdog\nFRUIT_EARLY=${early}\nFRUIT_GRACE=60\nFRUIT_STALE=40\n`;

/** On trial it hangs for ever without a word; once it is good it ends, and the kernel panics. */
const BAD_INIT = `#!/bin/busybox sh
case $(busybox cat /proc/cmdline) in *fruit.trial=*) while :; do busybox sleep 3600; done ;; esac
exit 1
`;

const missing = missingForEmulator() ?? (HAS_MOSQUITTO ? undefined : NEEDS_MOSQUITTO);

describe.skipIf(missing !== undefined)(
  `fruitos beyond its slots, in emulation${missing ? ` [needs: ${missing}]` : ""}`,
  () => {
    const folder = mkdtempSync(join(tmpdir(), "fruit-proof-"));
    let lab: Lab;
    let bad: Release;
    /** As it was flashed: it has never run. */
    let card: string;

    beforeAll(async () => {
      lab = await Lab.open();
      const beganMs = performance.now();
      const workshop = await Workshop.open(folder);
      bad = await workshop.release(2n, {
        files: {
          "sbin/init": { text: BAD_INIT, mode: 0o755 },
          "etc/fruit/watchdog": { text: settings(HANG), mode: 0o644 },
        },
      });
      card = await flashed(workshop, 1n);
      tell(`a card and a release built: ${seconds(performance.now() - beganMs)}`);
    }, PATIENCE);

    afterAll(async () => {
      await lab?.[Symbol.asyncDispose]();
      rmSync(folder, { recursive: true, force: true });
    });

    /** A copy of the card with the release in slot b, on trial. */
    async function armed(name: string): Promise<string> {
      const copy = await stageInto(await copyCard(card, join(folder, name)), bad);
      await change(copy, (record) => arm(record, "b", { id: 7, tries: 1 }));
      return copy;
    }

    test(
      "a first program that hangs for ever is ended by the watchdog of the initramfs, and its release given up",
      async () => {
        const copy = await armed("hang.img");
        // What `fruit boot try` writes down
        const plan = { slot: "b", hash: bad.content.hash, version: "2", floor: "1", trial: 7, tries: 1 };
        const more = { boot: "before", by: "anna", baseline: [] };
        await intoData(copy, { "fruit/boot/trial.json": JSON.stringify({ ...plan, ...more }) });
        await using pi = await lab.switchOn(copy);
        await lab.lives(pi, "a", 1);
        await until("said why", () => lab.said("event/boot.rolled-back").length > 0, PATIENCE);
        report("a first program that hangs", pi);
        expect(pi.said).toContain(
          `fruit: /dev/watchdog1 starts this node again unless it is fed within ${HANG} s`,
        );
        expect(pi.said).toContain("slot b has spent its tries");
        expect(pi.starts.map(({ slot, isTrial }) => [slot, isTrial])).toEqual([
          ["b", true],
          ["a", false],
        ]);
        const explained = (await pi.run("fruit boot explain")).out;
        tell(explained.trim().replaceAll(/^/gm, "    "));
        expect(explained).toMatch(/Version 2 in slot b was given up.*try 1: reached the initramfs/);
        expect(lab.said("event/boot.rolled-back")).toEqual([
          expect.objectContaining({ slot: "b", version: "2", reason: "tries-spent" }),
        ]);
      },
      PATIENCE,
    );

    test(
      "a slot that was good and panics at each start gives way to the other after ten, which takes the watchdog over",
      async () => {
        const copy = await armed("panic.img");
        await change(copy, (record) => confirm(record, "b", 1n));
        const before = Array.from({ length: 9 }, (_, index) => `start-${index}\n`).join("");
        await intoData(copy, {
          "fruit/boot/starts.b": before,
          // What a person has changed there counts for both slots
          "overlay/etc/upper/fruit/watchdog": settings(EARLY),
        });
        await using pi = await lab.switchOn(copy);
        await lab.lives(pi, "a", 2);
        await until("said why", () => lab.said("event/boot.rolled-back").length > 0, PATIENCE);
        report("a good slot that panics", pi);
        expect(pi.said).toContain("Attempted to kill init");
        expect(pi.said).toContain("fruit: slot b: 10 starts in a row without health");
        expect(pi.said).toContain("slot b cannot be started, slot a takes its place");
        // The second of three starts ends in the initramfs
        expect(pi.starts).toHaveLength(3);
        expect(lab.said("event/boot.rolled-back")).toEqual([
          expect.objectContaining({ slot: "b", version: "2", reason: "starts-spent" }),
        ]);
        const explained = (await pi.run("fruit boot explain")).out;
        tell(explained.trim().replaceAll(/^/gm, "    "));
        expect(explained).toMatch(
          /again and again without staying up.* Evidence: slot b was started 10 times/,
        );
        expect(await lab.status(pi)).toMatchObject({
          ...{ running: "a", primary: "a" },
          slots: { a: { state: "good" }, b: { state: "failed", reason: "starts-spent" } },
        });
        // The other slot has its own ten, and is healthy
        expect((await pi.output("cat /data/fruit/boot/spent.b")).trim().split("\n")).toHaveLength(10);
        const isHealthy = async () => (await pi.run("test -e /data/fruit/boot/starts.a")).exit === 1;
        await until("no start in vain left", isHealthy, LIMITS.event);
        // It is one and the same watchdog, with the initramfs's time, and this node outlives it
        expect(await pi.output("cat /sys/class/watchdog/watchdog1/timeout")).toBe(`${EARLY}\n`);
        const { beganMs = 0, atMs } = pi.start ?? {};
        const bitesMs = beganMs + (atMs?.initramfs ?? 0) + (EARLY + 5) * 1000;
        await until("older than its watchdog's time", () => performance.now() > bitesMs, PATIENCE);
        expect(await pi.output("cat /sys/class/watchdog/watchdog1/state")).toBe("active\n");
        expect(pi.starts).toHaveLength(3);
      },
      2 * PATIENCE,
    );

    test(
      "with both slots damaged the rescue of the boot partition gives a shell and takes an address",
      async () => {
        const copy = await armed("damaged.img");
        await change(copy, (record) => confirm(record, "b", 1n));
        const slots = await onDisk(copy, async (disk, at) => {
          const { newest } = await readRecords(disk, "cache");
          for (const slot of ["a", "b"] as const) {
            const kernel = newest?.record.slots[slot].kernel;
            if (kernel) await disk.write(at(PARTITIONS[slot]) + kernel.offset, new Uint8Array(SECTOR * 8));
          }
          return newest?.record.slots;
        });
        expect(slots).toMatchObject({ a: { state: "good" }, b: { state: "good" } });
        const beganMs = performance.now();
        await using seat = await Seat.on(copy);
        await seat.hears(/fruit: rescue, damaged/);
        await seat.hears(/no dropbear in this image/);
        await seat.plug();
        await seat.hears(/slot a: good \(built\); its kernel is damaged/);
        await seat.hears(/press Enter for a shell/);
        tell(`rescue: asks for a person after ${seconds(performance.now() - beganMs)}`);
        await seat.types("", /\/ # /);
        await seat.types(
          "fruit-records show",
          /starts from slot b; [\s\S]*slot b: good \(none\); its kernel is damaged/,
        );
        await seat.types("until ip -4 address | grep usb0; do sleep 1; done", /inet 10\.0\.2\.15\/24 .*usb0/);
        tell(`rescue: shell, records and network after ${seconds(performance.now() - beganMs)}`);
      },
      PATIENCE,
    );

    test(
      "with every record destroyed the rescue makes one of what the slots say, and without its data the node is still there",
      async () => {
        const copy = await copyCard(card, join(folder, "destroyed.img"));
        await onDisk(copy, async (disk, at) => {
          for (const offset of RECORD_OFFSETS) await disk.write(offset, new Uint8Array(SECTOR * 8));
          const data = at(PARTITIONS.data);
          // With the copies of its superblock, of which e2fsck would make it whole
          for (let from = data; from < disk.bytes; from += CHUNK)
            await disk.write(from, new Uint8Array(Math.min(CHUNK, disk.bytes - from)));
        });
        await using pi = await lab.switchOn(copy);
        await lab.lives(pi, "a", 1);
        report("records and data destroyed", pi);
        expect(pi.said).toContain("fruit: rescue: no-record");
        expect(pi.said).toContain("slot a is what the node starts from");
        expect(pi.said).toContain("cannot be used: this start goes on without the data, in memory");
        const alarm = await until("the alarm", () => lab.said("alarm/data-lost").at(-1), PATIENCE);
        expect(alarm).toMatchObject({
          severity: "critical",
          message: expect.stringContaining("is in memory"),
        });
        expect(await lab.status(pi)).toMatchObject({
          running: "a",
          slots: { a: { state: "good", reason: "repaired" } },
        });
        await pi[Symbol.asyncDispose]();
        expect((await lookAtCard(copy)).record).toMatchObject({
          sequence: 1,
          primary: "a",
          reason: "repaired",
        });
      },
      PATIENCE,
    );
  },
);

const CHUNK = 4 << 20;

/** Does something to the card of a Pi that is off; `at` is where a partition begins. */
async function onDisk<T>(
  card: string,
  work: (disk: BlockDevice, at: (partition: number) => number) => Promise<T>,
): Promise<T> {
  const disk = await openDisk(card, "write");
  try {
    const partitions = readPartitions(await disk.read(0, SECTOR)) ?? [];
    const result = await work(disk, (number) => {
      const found = partitions.find((partition) => partition.number === number);
      if (!found) throw new Error(`${card} has no partition ${number}`);
      return found.offset;
    });
    await disk.flush();
    return result;
  } finally {
    await disk.close();
  }
}

const change = (card: string, how: (record: BootRecord) => BootRecord) =>
  onDisk(card, (disk) => changeRecord(disk, how));

/** Puts files into the data partition of a card that has never run, with the folders they are in. */
async function intoData(card: string, files: Readonly<Record<string, string>>): Promise<void> {
  const offset = await onDisk(card, async (_, at) => at(PARTITIONS.data));
  const lines = Object.entries(files).flatMap(([path, text], index) => {
    const from = `${card}.${index}`;
    writeFileSync(from, text);
    const folders = dirname(path).split("/");
    return [
      ...folders.map((_, depth) => `mkdir ${folders.slice(0, depth + 1).join("/")}`),
      `write ${from} ${path}`,
    ];
  });
  await $`debugfs -w -f - ${`${card}?offset=${offset}`} < ${Buffer.from(`${lines.join("\n")}\n`)}`
    .env(ENV)
    .quiet();
}
