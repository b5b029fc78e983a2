/** The initramfs where a slot cannot be mounted, where its starts lead to nothing, and as it begins the watchdog, under BusyBox. */
import { expect, test } from "bun:test";
import { existsSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { STARTS_MOST, spentIn, startsIn } from "../agent/boot/starts.ts";
import { DEAD_STARTS } from "../agent/boot/verdict.ts";
import { RECORD_OFFSETS } from "../boot/layout.ts";
import { encodeRecord } from "../boot/record.ts";
import { arm, rollBack } from "../boot/slots.ts";
import { Init, linesOfInit } from "./initramfs.ts";
import { both, built, card, newer, older, START, staged } from "./rescuecard.ts";
import { BUSYBOX, LIMIT_MS, NEEDS_BUSYBOX, ROOTFS } from "./shell.ts";

const check = (title: string, body: () => Promise<void>) =>
  test.skipIf(!BUSYBOX)(`${title}${NEEDS_BUSYBOX}`, body, LIMIT_MS);

/** What init does with a slot that it cannot mount. */
async function initFails(it: ReturnType<typeof card>, slot: string, cmdline = "", before = "") {
  using init = new Init();
  return await init.run(it.path, slot, `${before}\nfail "slot ${slot}: no squashfs"`, cmdline);
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

/** A card whose slots are both good, that starts from b. */
function goodCard() {
  const it = card({ a: older, b: newer });
  for (const [place, sequence] of [6, 3, 4, 5].entries())
    it.put(RECORD_OFFSETS[place] ?? 0, encodeRecord({ ...both, sequence }));
  return it;
}

/** Boot ids of starts that were no healthy ones. */
const bootIds = (count: number) =>
  Array.from(
    { length: count },
    (_, index) => `${String(index).padStart(8, "0")}-89ab-cdef-0123-456789abcdef`,
  );
const lines = (ids: readonly string[]) => ids.map((id) => `${id}\n`).join("");

check("a start of a good slot is counted by its boot id, as the agent counts it", async () => {
  using it = goodCard();
  using init = new Init();
  expect(await init.run(it.path, "b", "count")).toMatchObject({ out: "", did: "", marks: "" });
  expect(await startsIn(init.boot, "b")).toEqual([
    readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim(),
  ]);
  // It is one start, however often it is counted
  for (let turn = 0; turn < 12; turn++) await init.run(it.path, "b", "count");
  expect(await startsIn(init.boot, "b")).toHaveLength(1);
  expect((await it.newest())?.record.sequence).toBe(6);
});

check("nine starts without health are no reason, the start after ten goes to the other slot", async () => {
  using it = goodCard();
  using init = new Init();
  writeFileSync(join(init.boot, "starts.b"), lines(bootIds(9)));
  expect(await init.run(it.path, "b", "count")).toMatchObject({ out: "", did: "", marks: "" });
  expect(await startsIn(init.boot, "b")).toHaveLength(10);
  const before = await startsIn(init.boot, "b");
  const { did, out, marks } = await init.run(it.path, "b", "count; echo goes on >>$LOG");
  expect(did).toBe("restart\n");
  expect(out).toContain("slot b: 10 starts in a row without health\n");
  expect(out).toContain("slot b cannot be started, slot a takes its place");
  expect(marks).toBe("0 0 BOOT init 10 starts in a row without health\n");
  expect((await it.newest())?.record).toEqual({ ...rollBack(both, "starts-spent"), sequence: 7 });
  // The agent has what to tell
  expect(await startsIn(init.boot, "b")).toEqual([]);
  expect(await spentIn(init.boot, "b")).toEqual(before);
});

for (const [how, cut] of [
  ["and told so", ""],
  ["and the power failed before its list was put away", "retire() { :; }\n"],
] as const)
  check(
    `a slot that gave way, ${how}, leaves nothing to the other one, and has its own ten again when a person chooses it`,
    async () => {
      using it = goodCard();
      using init = new Init();
      const counts = (slot: string) => init.run(it.path, slot, "count; echo goes on >>$LOG");
      writeFileSync(join(init.boot, "starts.b"), lines(bootIds(10)));
      expect((await init.run(it.path, "b", `${cut}count`)).did).toBe("restart\n");
      // The other one is no better, but has its own starts
      expect(await counts("a")).toMatchObject({ did: "goes on\n", out: "" });
      expect(await startsIn(init.boot, "a")).toHaveLength(1);
      expect(await spentIn(init.boot, "b")).toEqual(bootIds(10));
      writeFileSync(join(init.boot, "starts.a"), lines(bootIds(12)));
      expect((await counts("a")).out).toContain("slot a is started all the same");
      // What a person does in the rescue
      expect((await it.run("use", "b")).exit).toBe(0);
      expect(await counts("b")).toMatchObject({ did: "goes on\n", out: "" });
      writeFileSync(join(init.boot, "starts.b"), lines(bootIds(9)));
      expect((await counts("b")).did).toBe("goes on\n");
      expect((await it.newest())?.record.primary).toBe("b");
      expect((await counts("b")).did).toBe("restart\n");
      expect((await it.newest())?.record.primary).toBe("a");
    },
  );

check("two bad slots do not take turns: the second is started, and says each time why it is", async () => {
  using it = goodCard();
  using init = new Init();
  const ten = (slot: string) => writeFileSync(join(init.boot, `starts.${slot}`), lines(bootIds(10)));
  ten("b");
  expect((await init.run(it.path, "b", "count")).did).toBe("restart\n");
  const record = it.bytes();
  for (let round = 0; round < 2; round++) {
    ten("a");
    const { did, out } = await init.run(it.path, "a", "count; echo goes on >>$LOG");
    expect(did).toBe("goes on\n");
    expect(out).toContain("slot b is failed, not good");
    expect(out).toContain("slot a is started all the same");
  }
  expect(it.bytes().equals(record)).toBe(true);
  expect(await startsIn(init.boot, "a")).toHaveLength(11);
});

check(
  "where the other slot is no help the list is kept, and goes on for a thousand lines at most",
  async () => {
    using it = card({ a: older });
    it.put(RECORD_OFFSETS[0], encodeRecord(built));
    using init = new Init();
    for (const [before, after] of [
      [10, 11],
      [999, 1000],
      [1000, 1000],
    ] as const) {
      writeFileSync(join(init.boot, "starts.a"), lines(bootIds(before)));
      const { out, did, marks } = await init.run(it.path, "a", "count; echo goes on >>$LOG");
      expect(out).toContain("slot b is empty, not good");
      expect([did, marks]).toEqual(["goes on\n", ""]);
      expect(await startsIn(init.boot, "a")).toHaveLength(after);
    }
    expect(await spentIn(init.boot, "a")).toEqual([]);
  },
);

check("lines that are no boot ids, or one of them again and again, are no starts", async () => {
  using it = goodCard();
  using init = new Init();
  const [id = ""] = bootIds(1);
  writeFileSync(join(init.boot, "starts.b"), `${`${id}\n`.repeat(20)}${"\0\n\n; rm -rf /\n".repeat(20)}`);
  expect((await init.run(it.path, "b", "count")).did).toBe("");
  expect((await it.newest())?.record.primary).toBe("b");
});

check("a slot gives way after three starts in which its agent was dead, and not after two", async () => {
  using it = goodCard();
  using init = new Init();
  for (const dead of ["2\n", "02\n", "", "many\n", "-9\n"]) {
    writeFileSync(join(init.boot, "dead.b"), dead);
    expect((await init.run(it.path, "b", "count")).did).toBe("");
  }
  // Those of the other slot are not its own
  writeFileSync(join(init.boot, "dead.a"), "3\n");
  expect((await init.run(it.path, "b", "count")).did).toBe("");
  writeFileSync(join(init.boot, "dead.b"), "3\n");
  const { did, marks } = await init.run(it.path, "b", "count");
  expect(did).toBe("restart\n");
  expect(marks).toBe("0 0 BOOT init its agent was dead in 3 starts in a row\n");
  expect((await it.newest())?.record).toMatchObject({
    primary: "a",
    slots: { b: { reason: "starts-spent" } },
  });
  // The feeder counts anew when it is chosen again
  for (const slot of ["a", "b"]) expect(existsSync(join(init.boot, `dead.${slot}`))).toBe(false);
});

test("initramfs, feeder and agent count by the same numbers", () => {
  const numberIn = (file: string, name: string) =>
    Number(
      new RegExp(`^${name}=(\\d+)\\s`, "m").exec(readFileSync(join(ROOTFS, file), "utf8"))?.[1] ?? Number.NaN,
    );
  const starts = (name: string) => numberIn("initramfs/lib/fruit/starts.sh", name);
  expect(starts("thrice")).toBe(DEAD_STARTS);
  expect(numberIn("root/usr/libexec/fruit/watchdog", "rounds")).toBe(DEAD_STARTS);
  expect(starts("most")).toBe(STARTS_MOST);
});

check("'fail' knows two reasons, and writes nothing for another", async () => {
  using it = goodCard();
  const before = it.bytes();
  expect(await it.run("fail", "b", "whatever")).toMatchObject({
    exit: 1,
    err: expect.stringContaining("files-damaged or starts-spent"),
  });
  expect(it.bytes().equals(before)).toBe(true);
});

check("init counts where no trial runs, and begins the watchdog last of all", async () => {
  const init = readFileSync(join(ROOTFS, "initramfs/init"), "utf8");
  expect(init).toMatch(/if \[ -n "\$trial" \]; then\n(?: {2}.*\n)+else\n {2}count\nfi\n/);
  expect(init).toMatch(/\nbriefly guard \/sysroot\nexec switch_root \/sysroot \/sbin\/init\n$/);
});

/** A root whose watchdog is a file, and BusyBox's `watchdog` as it opens one: what it is told is in the log. */
class Guarded extends Init {
  readonly root = this.path("root");
  readonly sysfs = join(this.root, "sys/class/watchdog/watchdog1");

  constructor(settings: string, sysfs: Record<string, string> = {}) {
    super();
    for (const folder of ["dev", "etc/fruit", "sys/class/watchdog/watchdog1"])
      mkdirSync(join(this.root, folder), { recursive: true });
    symlinkSync("/proc", join(this.root, "proc"));
    for (const name of ["watchdog", "watchdog1"]) writeFileSync(join(this.root, "dev", name), "");
    writeFileSync(join(this.root, "etc/fruit/watchdog"), settings);
    for (const [name, text] of Object.entries(sysfs)) writeFileSync(join(this.sysfs, name), `${text}\n`);
  }

  /** Runs it; says what was said, what `watchdog` was told and how it was ended. */
  async guard(before = "") {
    const stub = `watchdog() {
  eval device=\\$$#
  echo "watchdog \${*%$device}\${device#${this.root}}" >>"$LOG"
  trap 'echo V >>"$LOG"; exit' TERM
  exec 3>>"$device"
  while :; do command sleep 0.1; done
}
usleep() { command sleep 0.1; }
chroot() { echo "chroot \${1#${this.root}} $2 $3 $4" >>"$LOG"; }`;
    const line = linesOfInit(/\n(.*\bguard \/sysroot)\n/).replace("/sysroot", this.root);
    const { out, did } = await this.run("none", "a", `${stub}\n${before}\n${line}\necho after`);
    return { out: out.replaceAll(this.root, ""), did };
  }
}

check("the watchdog begins with the feeder's device, and is let go of without a V", async () => {
  using init = new Guarded("FRUIT_WATCHDOG=/dev/watchdog1\nFRUIT_GRACE=60\n", { timeout: "287" });
  expect(await init.guard()).toEqual({
    did: "watchdog -F -T 287 -t 1 /dev/watchdog1\n",
    out: "/dev/watchdog1 starts this node again unless it is fed within 287 s\nafter\n",
  });
});

test.skipIf(!BUSYBOX).each([
  ["", "/dev/watchdog", 287],
  ["FRUIT_EARLY=180", "/dev/watchdog", 175],
  ["FRUIT_EARLY=175", "/dev/watchdog", 175],
  ["FRUIT_EARLY=16", "/dev/watchdog", 15],
  ["FRUIT_EARLY=3", "/dev/watchdog", 15],
  ["FRUIT_EARLY='600'; FRUIT_WATCHDOG=\"/dev/watchdog1\"", "/dev/watchdog1", 591],
])(
  `with %p it is %s for %d s, of which the hardware has its longest${NEEDS_BUSYBOX}`,
  async (settings, device, seconds) => {
    using init = new Guarded(settings);
    expect((await init.guard()).did).toBe(`watchdog -F -T ${seconds} -t 1 ${device}\n`);
    // bcm2835_wdt: ticks of 1/65536 s, cut to 20 bits; the kernel feeds every 8 s
    expect(((seconds << 16) & 0xfffff) >> 16).toBe(15);
  },
  LIMIT_MS,
);

check("a module that the settings name is loaded from the slot's root first", async () => {
  using init = new Guarded("FRUIT_MODULE=softdog FRUIT_WATCHDOG=/dev/watchdog1");
  expect((await init.guard()).did).toBe(
    "chroot  modprobe -q softdog\nwatchdog -F -T 287 -t 1 /dev/watchdog1\n",
  );
});

test
  .skipIf(!BUSYBOX)
  .each([
    ["FRUIT_EARLY=0", ""],
    [
      "FRUIT_WATCHDOG=/dev/watchdog7",
      "no /dev/watchdog7: nothing watches this start until its feeder runs\n",
    ],
    ["if then", "/etc/fruit/watchdog cannot be read: nothing watches this start until its feeder runs\n"],
    ["exit 0", "/etc/fruit/watchdog cannot be read: nothing watches this start until its feeder runs\n"],
    ...["soon", "090", "08", "-5", "1x", "99999999999999999999"].map((time) => [
      `FRUIT_EARLY=${time}`,
      "/etc/fruit/watchdog cannot be read: nothing watches this start until its feeder runs\n",
    ]),
  ])(
  `with %p there is none, and the start goes on${NEEDS_BUSYBOX}`,
  async (settings, said) => {
    using init = new Guarded(settings);
    expect(await init.guard()).toEqual({ did: "", out: `${said}after\n` });
  },
  LIMIT_MS,
);

check("settings that never come to their end hold the start up for a while only", async () => {
  using init = new Guarded("command sleep 3");
  const { out } = await init.guard("usleep() { command sleep 0.01; }");
  expect(out).toStartWith("after\n");
});

check("one that takes no longer than its hardware is not begun, or stopped again", async () => {
  using short = new Guarded("FRUIT_WATCHDOG=/dev/watchdog1", { max_timeout: "15", timeout: "15" });
  expect(await short.guard()).toEqual({
    did: "",
    out: "/dev/watchdog1 takes no more than 15 s: nothing watches this start until its feeder runs\nafter\n",
  });
  using refused = new Guarded("FRUIT_WATCHDOG=/dev/watchdog1", { max_timeout: "0", timeout: "15" });
  expect(await refused.guard()).toEqual({
    did: "watchdog -F -T 287 -t 1 /dev/watchdog1\nV\n",
    out: "/dev/watchdog1 has not taken 287 s: nothing watches this start until its feeder runs\nafter\n",
  });
});
