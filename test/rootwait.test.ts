/** Case 43, a root that is missing: the lines of init that wait for it, under BusyBox, with a test's own clock. */
import { expect, test } from "bun:test";
import { copyFileSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { RECORD_OFFSETS } from "../boot/layout.ts";
import { encodeRecord } from "../boot/records.ts";
import { rollBack } from "../boot/slots.ts";
import { scratch } from "./node.ts";
import { both, card, newer, older } from "./rescuecard.ts";
import { BUSYBOX, LIMIT_MS, NEEDS_BUSYBOX, ROOTFS, runScript } from "./shell.ts";

const LIB = join(ROOTFS, "initramfs/lib/fruit");

/** From init's first word of the command line to where its slot's partition is there; `files` is a folder of the test. */
function waiting(files: string): string {
  const [, lines = ""] =
    /\n(disk=\$\(word fruit\.disk.*?)\n# Before anything of the disk is open/s.exec(
      readFileSync(join(ROOTFS, "initramfs/init"), "utf8"),
    ) ?? [];
  expect(lines).toContain('\nawait "$root" "$wait" || fail ');
  expect(lines).toContain("\nfiles=/data\n");
  return lines.replace("\nfiles=/data\n", `\nfiles=${files}\n`);
}

/** Starts slot b of this card. Its partition appears after so many turns of the wait, or never. */
async function start(disk: string, cmdline: string, appearsAfter = Number.POSITIVE_INFINITY) {
  using folder = scratch();
  const path = (name: string) => join(folder.path, name);
  mkdirSync(path("lib"));
  for (const name of ["disk.sh", "fail.sh"]) copyFileSync(join(LIB, name), path(`lib/${name}`));
  writeFileSync(path("lib/rescue"), '#!/bin/busybox sh\necho "rescue $*" >>"$LOG"\n', { mode: 0o755 });
  writeFileSync(path("cmdline"), `fruit.slot=b fruit.disk=..${path("disk")} ${cmdline}\n`);
  writeFileSync(path("turns"), "");
  writeFileSync(
    path("init"),
    [
      ...["disk.sh", "fail.sh"].map((name) => `. ${path("lib")}/${name}`),
      'say() { echo "$*" >>"$LOG"; }',
      "sleep() { :; }",
      "sync() { :; }",
      "umount() { :; }",
      'restart() { echo restart >>"$LOG"; }',
      // A turn of the wait, in microseconds
      `usleep() {
        echo "$1" >>${path("turns")}
        [ "$(wc -l <${path("turns")})" != "${appearsAfter}" ] || : >${path("disk3")}
      }`,
      waiting(path("data")),
      'echo "goes on" >>"$LOG"',
    ].join("\n"),
  );
  writeFileSync(path("disk"), "");
  const { exit } = await runScript(path("init"), [], {
    PATH: `${join(ROOTFS, "rescue/bin")}:${process.env.PATH}`,
    ...{ FRUIT_LIB: path("lib"), FRUIT_CMDLINE: path("cmdline"), FRUIT_DISK: disk, LOG: path("log") },
  });
  const read = (name: string) => {
    try {
      return readFileSync(path(name), "utf8").replaceAll(`/dev/..${folder.path}/`, "/dev/");
    } catch {
      return "";
    }
  };
  const turns = read("turns").trimEnd().split("\n").map(Number);
  const waited = turns.reduce((sum, one) => sum + one, 0) / 1_000_000;
  return {
    exit,
    waited,
    did: read("log"),
    marks: read("data/fruit/boot/marks").replace(/[\da-f-]{36}/, "BOOT"),
  };
}

const TITLE = (title: string) => `${title}${NEEDS_BUSYBOX}`;

test.skipIf(!BUSYBOX).each([
  ["", 30],
  ["fruit.wait=1", 1],
])(
  TITLE("43 a root that is missing is waited for with %p for %d s and no longer; a try of it is then over"),
  async (words, seconds) => {
    using it = card({ a: older, b: newer });
    it.put(RECORD_OFFSETS[0], encodeRecord(both));
    const before = it.bytes();
    expect(await start(it.path, `fruit.trial=7 fruit.try=2 ${words}`)).toEqual({
      exit: 1,
      waited: seconds,
      did: `slot b: no /dev/disk3 within ${seconds} s\nstarting again in 10 s\nrestart\n`,
      marks: `7 2 BOOT init slot b: no /dev/disk3 within ${seconds} s\n`,
    });
    expect(it.bytes().equals(before)).toBe(true);
  },
  LIMIT_MS,
);

test.skipIf(!BUSYBOX)(
  TITLE(
    "43 a good slot whose root is missing gives way to the other one, and where that is no help to the rescue",
  ),
  async () => {
    using it = card({ a: older, b: newer });
    it.put(RECORD_OFFSETS[0], encodeRecord(both));
    const { did } = await start(it.path, "fruit.wait=1");
    expect(did).toContain("slot b cannot be started, slot a takes its place");
    expect(did).toEndWith("restart\n");
    expect((await it.newest())?.record).toEqual({
      ...rollBack(both, "files-damaged"),
      sequence: both.sequence + 1,
    });
    const again = await start(it.path, "fruit.wait=1");
    expect(again.did).toMatch(/^rescue \.\.\/.*disk slot-b$/m);
    expect(again.did).not.toContain("restart");
  },
  LIMIT_MS,
);

test.skipIf(!BUSYBOX)(
  TITLE("43 a root that appears late, within its time, is gone on with"),
  async () => {
    using it = card({ a: older, b: newer });
    expect(await start(it.path, "fruit.trial=7 fruit.try=1", 299)).toEqual({
      exit: 0,
      waited: 29.9,
      did: "goes on\n",
      marks: "",
    });
  },
  LIMIT_MS,
);
