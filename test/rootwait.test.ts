/** Case 43, a root that is missing or is none: the lines of init that wait for it and mount it, under BusyBox, with a test's own clock. */
import { expect, test } from "bun:test";
import { mkdirSync, symlinkSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";
import { RECORD_OFFSETS } from "../boot/layout.ts";
import { encodeRecord } from "../boot/record.ts";
import { rollBack } from "../boot/slots.ts";
import { Init, linesOfInit } from "./initramfs.ts";
import { both, card, newer, older } from "./rescuecard.ts";
import { BUSYBOX, LIMIT_MS, NEEDS_BUSYBOX } from "./shell.ts";

/** From init's first word of the command line to where its slot's partition is there; `files` is a folder of the test. */
function waiting(files: string): string {
  const lines = linesOfInit(/\n(disk=\$\(word fruit\.disk.*?)\n# Before anything of the disk is open/s);
  expect(lines).toContain('\nawait "$root" "$wait" || fail ');
  expect(lines).toContain("\nfiles=/data\n");
  return lines.replace("\nfiles=/data\n", `\nfiles=${files}\n`);
}

/** What is said is part of what was done; only the root is waited for. */
const STUBS = `say() { echo "$*" >>"$LOG"; }
briefly() { "$@"; }`;

/** Starts slot b of this card. Its partition appears after so many turns of the wait, or never. */
async function start(disk: string, cmdline: string, appearsAfter = Number.POSITIVE_INFINITY) {
  using init = new Init();
  for (const name of ["disk", "turns"]) writeFileSync(init.path(name), "");
  const lines = [
    STUBS,
    // A turn of the wait, in microseconds
    `usleep() {
      echo "$1" >>${init.path("turns")}
      [ "$(wc -l <${init.path("turns")})" != "${appearsAfter}" ] || : >${init.path("disk3")}
    }`,
    waiting(init.path("data")),
    'echo "goes on" >>"$LOG"',
  ].join("\n");
  const words = `fruit.disk=..${init.path("disk")} ${cmdline}`;
  const { exit, did, marks } = await init.run(disk, "b", lines, words);
  const here = (text: string) => text.replaceAll(`/dev/..${init.path("disk3")}`, "/dev/disk3");
  const turns = init.text("turns").trimEnd().split("\n").map(Number);
  const waited = turns.reduce((sum, one) => sum + one, 0) / 1_000_000;
  return { exit, waited, did: here(did), marks: here(marks) };
}

const TITLE = (title: string) => `${title}${NEEDS_BUSYBOX}`;

test.skipIf(!BUSYBOX).each([
  ["", 30],
  ["fruit.wait=1", 1],
  // Arithmetic on these would end the first program
  ["fruit.wait=08", 30],
  ["fruit.wait=1x", 30],
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

/** Mounts slot b of this card, whose root is the folder that `fill` makes, or cannot be mounted. */
async function mount(disk: string, fill: ((path: (name: string) => string) => void) | undefined) {
  using init = new Init();
  const root = init.path("sysroot");
  mkdirSync(root);
  fill?.((name) => {
    mkdirSync(dirname(`${root}/${name}`), { recursive: true });
    return `${root}/${name}`;
  });
  const lines = linesOfInit(/\n(mount -t squashfs .*?\n)mount --move /s).replaceAll("/sysroot", root);
  const stub = `mount() { echo "mount $*" >>"$LOG"; ${fill ? ":" : "false"}; }`;
  const { did } = await init.run(
    disk,
    "b",
    [STUBS, stub, "root=/dev/disk3", lines, 'echo "goes on" >>"$LOG"'].join("\n"),
  );
  expect(did).toStartWith(`mount -t squashfs -o ro /dev/disk3 ${root}\n`);
  return did.slice(did.indexOf("\n") + 1);
}

test.skipIf(!BUSYBOX).each<[string, string, ((path: (name: string) => string) => void) | undefined]>([
  ["cannot be mounted", "slot b: no squashfs on /dev/disk3", undefined],
  ["is empty", "slot b: its root has no /sbin/init", () => undefined],
  [
    "has a /sbin/init that is no program",
    "slot b: its root has no /sbin/init",
    (path) => writeFileSync(path("sbin/init"), "", { mode: 0o644 }),
  ],
])(
  TITLE("43 a good slot whose root %s gives way to the other one"),
  async (_, why, fill) => {
    using it = card({ a: older, b: newer });
    it.put(RECORD_OFFSETS[0], encodeRecord(both));
    const did = await mount(it.path, fill);
    expect(did).toStartWith(`${why}\n`);
    expect(did).toContain("slot b cannot be started, slot a takes its place");
    expect(did).toEndWith("restart\n");
    expect((await it.newest())?.record.primary).toBe("a");
  },
  LIMIT_MS,
);

test.skipIf(!BUSYBOX).each<[string, (path: (name: string) => string) => void]>([
  ["a program", (path) => writeFileSync(path("sbin/init"), "", { mode: 0o755 })],
  // Of the root that is mounted, and leads nowhere from here
  ["a link", (path) => symlinkSync("/bin/of-that-root", path("sbin/init"))],
])(
  TITLE("43 a root whose /sbin/init is %s is gone on with"),
  async (_, fill) => {
    using it = card({ a: older, b: newer });
    it.put(RECORD_OFFSETS[0], encodeRecord(both));
    expect(await mount(it.path, fill)).toBe("goes on\n");
  },
  LIMIT_MS,
);

const briefly = (title: string, body: () => Promise<void>) =>
  test.skipIf(!BUSYBOX)(TITLE(title), body, LIMIT_MS);

/** Waits of `briefly`, in turns; a job of the test's own, and a clock that it holds. */
async function turnsOf(job: string, usleep: string) {
  using init = new Init();
  const { did } = await init.run(
    "none",
    "a",
    `cd ${init.path("")}
turns=0
usleep() { echo "$1" >>turns; ${usleep}; }
job() { ${job}; }
briefly job
echo after >>"$LOG"
: >stop`,
  );
  const turns = init.text("turns").trim().split("\n").filter(Boolean).map(Number);
  return { did, count: turns.length, seconds: turns.reduce((sum, one) => sum + one, 0) / 1e6 };
}

briefly("what ends late is waited for, and not longer", async () => {
  const late = await turnsOf(
    'until [ -e go ]; do command sleep 0.02; done; echo done >>"$LOG"; : >done',
    'command sleep 0.02; [ "$(wc -l <turns)" != 30 ] || { : >go; until [ -e done ]; do command sleep 0.02; done; }',
  );
  expect(late.did).toBe("done\nafter\n");
  expect(late.count).toBeGreaterThanOrEqual(30);
  expect(late.count).toBeLessThan(100);
});

briefly("what never ends is given up after ten seconds", async () => {
  const never = await turnsOf("until [ -e stop ]; do command sleep 0.02; done", ":");
  expect(never).toEqual({ did: "after\n", count: 100, seconds: 10 });
});

briefly("what ends at once is not waited for", async () => {
  const quick = await turnsOf(":", "n=0; while [ $n -lt 20000 ]; do n=$((n + 1)); done");
  expect(quick.did).toBe("after\n");
  expect(quick.count).toBeLessThan(100);
});
