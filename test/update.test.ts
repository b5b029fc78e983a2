import { expect, test } from "bun:test";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, rmSync, symlinkSync } from "node:fs";
import { dirname, join } from "node:path";
import { openNodeCard } from "../agent/boot/open.ts";
import { holdFolder } from "../agent/hold.ts";
import { EXIT, type Exit } from "../agent/terminal.ts";
import { accept } from "../agent/update/install.ts";
import { hashPrefix } from "../boot/admit.ts";
import { FAILPOINTS } from "../boot/failpoint.ts";
import { parseUpdate } from "../boot/updatefile.ts";
import { openDisk } from "../hal/disk.ts";
import { openSim } from "../hal/sim/hal.ts";
import type { FileCard } from "./card.ts";
import { SLOT_BYTES, SLOT_OFFSETS } from "./crash/card.ts";
import { loops, run as system } from "./loop.ts";
import { SOURCES } from "./node.ts";
import { BOARD, makeRelease, signedBy } from "./releases.ts";
import { command, desk, made } from "./updates.ts";

const SIZE = made.payload.length;

/** What the card holds from the start of slot b on. */
const inSlot = (card: FileCard) => card.read(SLOT_OFFSETS.b, SIZE);
const hashOf = (path: string) => createHash("sha256").update(readFileSync(path)).digest("hex");

test("a release in hand is staged in the slot that does not run, and its files are kept", async () => {
  using at = desk();
  const { exit, out, err } = await at.install();
  expect([exit, out]).toEqual([
    EXIT.done,
    "0.0 MB came from the slots, 0.7 MB from the payload\n0.7 of 0.7 MB had to be written\nstaged in slot b; `fruit boot try` starts it\n",
  ]);
  expect(err).toContain("fruitos-9, version 9, into slot b\nwriting: 0.7 MB\n");
  expect(Buffer.compare(inSlot(at.card), made.payload)).toBe(0);
  expect(at.card.record.slots.b).toMatchObject({ state: "staged", version: 9n, payloadBytes: SIZE });
  expect(at.card.record.slots.b.deviceTree).toEqual(made.area.boot.deviceTrees[BOARD]);
  expect(at.release.update.equals(readFileSync(at.file("data/releases/b.fruit")))).toBe(true);
  expect(at.release.side.equals(readFileSync(at.file("data/releases/b.side")))).toBe(true);
  expect(existsSync(at.file("data/boot/writing.json"))).toBe(false);
  expect(existsSync(at.file("run/update.json"))).toBe(false);
});

test("of its signatures those are kept that were believed", async () => {
  using at = desk();
  at.put("fruitos-9.fruit", signedBy("mallory", at.release.update));
  expect((await at.install()).exit).toBe(EXIT.done);
  expect([...parseUpdate(readFileSync(at.file("data/releases/b.fruit"))).signatures.keys()]).toEqual([
    "anna",
  ]);
});

test("the same release again writes its first leaf and nothing else", async () => {
  using at = desk();
  await at.install();
  const { exit, out } = await at.install("--json");
  expect(exit).toBe(EXIT.done);
  expect(JSON.parse(out)).toMatchObject({
    schema: "fruit.update-install/1",
    slot: "b",
    name: "fruitos-9",
    version: "9",
    bytes: SIZE,
    bytes_written: 16_384,
    read_back: "direct",
  });
});

test("a payload comes by standard input to the program itself", async () => {
  using at = desk();
  rmSync(at.file("fruitos-9"));
  const child = Bun.spawn([...SOURCES.command, ...at.words("--payload", "-")], {
    stdin: "pipe",
    stdout: "pipe",
    stderr: "pipe",
  });
  for (let from = 0; from < SIZE; from += 50_000) {
    child.stdin.write(made.payload.subarray(from, from + 50_000));
    await child.stdin.flush();
  }
  await child.stdin.end();
  expect([await child.exited, await new Response(child.stderr).text()]).toEqual([0, expect.any(String)]);
  expect(Buffer.compare(inSlot(at.card), made.payload)).toBe(0);
});

test.each([
  { by: -1000, says: `refused: standard input ended after ${SIZE - 1000} of ${SIZE} bytes` },
  { by: 1, says: `refused: standard input has more than the ${SIZE} bytes` },
])("standard input that is $by bytes too long is refused", async ({ by, says }) => {
  using at = desk();
  const whole = Buffer.concat([made.payload, Buffer.alloc(1)]).subarray(0, SIZE + by);
  const child = Bun.spawn([...SOURCES.command, ...at.words("--payload", "-")], {
    stdin: whole,
    stdout: "pipe",
    stderr: "pipe",
  });
  const err = await new Response(child.stderr).text();
  expect([await child.exited, at.card.record.slots.b.state]).toEqual([EXIT.refused, "writing"]);
  expect(err).toContain(says);
});

test.each(FAILPOINTS.filter((name) => name.startsWith("writer.") || name.startsWith("record.")))(
  "killed at %s, the node starts what it ran, and the same command finishes",
  async (point) => {
    using at = desk();
    const before = at.card.start();
    const child = Bun.spawn([...SOURCES.command, ...at.words()], {
      env: { ...process.env, FRUIT_FAILPOINT: point },
      stdin: "ignore",
      stdout: "ignore",
      stderr: "pipe",
    });
    await child.exited;
    expect(child.signalCode).toBe("SIGKILL");
    expect(["empty", "writing", "staged"]).toContain(at.card.record.slots.b.state);
    expect(at.card.start()).toEqual(before);
    const { exit, err } = await at.install();
    expect([exit, err.includes("refused")]).toEqual([EXIT.done, false]);
    expect(Buffer.compare(inSlot(at.card), made.payload)).toBe(0);
    expect(at.card.record.slots.b.state).toBe("staged");
  },
);

test("what was written before a kill is not written again", async () => {
  using at = desk();
  await Bun.spawn([...SOURCES.command, ...at.words()], {
    env: { ...process.env, FRUIT_FAILPOINT: "writer.before-first-leaf" },
    stdout: "ignore",
    stderr: "ignore",
  }).exited;
  const { out, err } = await at.install("--json");
  expect(JSON.parse(out).bytes_written).toBe(16_384);
  expect(err).toBe("");
});

test("somebody who interrupts it is told that it goes on, and it does", async () => {
  using at = desk();
  const stop = new AbortController();
  const first = await command(at.words(), {
    signal: stop.signal,
    heard: (line) => line.startsWith("writing") && stop.abort(),
  });
  expect([
    first.exit,
    first.err.endsWith("fruit: interrupted; the same command goes on where it was\n"),
  ]).toEqual([EXIT.failed, true]);
  expect((await at.install()).exit).toBe(EXIT.done);
});

test("a rehearsal says what would happen and touches nothing", async () => {
  using at = desk();
  const before = hashOf(at.card.path);
  const { exit, out } = await at.install("--dry-run");
  expect([exit, out]).toEqual([EXIT.done, "fruitos-9, version 9, 0.7 MB, would go into slot b\n"]);
  expect(hashOf(at.card.path)).toBe(before);
  expect(existsSync(at.file("data/releases"))).toBe(false);
});

test.each([
  { what: "no folder for it", block: "data/releases", state: "empty" },
  { what: "something else in its place", block: "data/releases/b.fruit/x", state: "writing" },
])(
  "an update file that cannot be kept, with $what, is not staged: it has the floor",
  async ({ block, state }) => {
    using at = desk();
    mkdirSync(dirname(at.file(block)), { recursive: true });
    at.put(block, "in the way");
    const { exit, out, err } = await at.install();
    expect([exit, out, at.card.record.slots.b.state]).toEqual([EXIT.failed, "", state as "empty"]);
    expect(err).toContain(
      `the update file cannot be kept in ${at.file("data/releases")}, where the version floor`,
    );
    expect(err).not.toContain("    at ");
    rmSync(at.file("data/releases"), { recursive: true });
    expect((await at.install()).exit).toBe(EXIT.done);
  },
);

test.each(["b.side", "b.fruit"])(
  "22 medium: no room on the data partition for %s: the slot keeps what it has, byte for byte",
  async (name) => {
    using at = desk();
    expect((await at.install()).exit).toBe(EXIT.done);
    const before = hashOf(at.card.path);
    const kept = () => ["b.side", "b.fruit"].map((file) => hashOf(at.file(`data/releases/${file}`)));
    const was = kept();
    symlinkSync("/dev/full", at.file(`data/releases/${name}.new`));
    const { exit, err } = await at.install();
    expect([exit, err]).toEqual([EXIT.failed, expect.stringContaining("ENOSPC")]);
    expect(err).toContain("nothing is staged");
    expect([hashOf(at.card.path), kept()]).toEqual([before, was]);
    // What lay in the way is gone
    expect((await at.install()).exit).toBe(EXIT.done);
  },
);

test("a pipe in place of an update file is refused, not waited for", async () => {
  using at = desk();
  for (const name of ["fruitos-9.fruit", "data/trust.json"]) {
    const kept = readFileSync(at.file(name));
    rmSync(at.file(name));
    expect(system("mkfifo", at.file(name)).exit).toBe(0);
    const { exit, err } = await at.install();
    expect([exit, err]).toEqual([EXIT.usage, `fruit: ${at.file(name)}: it is no file\n`]);
    rmSync(at.file(name));
    at.put(name, kept);
  }
  const { exit, err } = await at.install("--trust", "/dev/zero");
  expect([exit, err]).toEqual([EXIT.usage, "fruit: /dev/zero: it is no file\n"]);
});

/** Whether a release that expires in 2027 is accepted: its name, or why not. Nobody knows the time unless the clock is set. */
async function accepted(at: ReturnType<typeof desk>, clockSynced = false): Promise<string> {
  const { machine } = openSim({ seed: 1, boards: [0], wireTime: false, faults: [], clockSynced });
  const hal = { machine, openDisk };
  const card = await openNodeCard(hal, at.card.path, "write");
  if (!card) throw new Error("no card");
  const { update, trust } = at.release;
  try {
    return await accept({
      ...{ hal, card, dataDir: at.data, update: { path: "x", bytes: update }, trust, side: "", payload: "" },
      ...{ compatible: [BOARD], force: false, signal: new AbortController().signal },
      begins() {},
      report() {},
      warn() {},
    }).then(
      ({ release }) => release.name,
      (error: Error) => error.message,
    );
  } finally {
    await card.disk.close();
  }
}

test("with an unset clock, the record and the release that runs say what time it is at least", async () => {
  const expiring = { stated: { created: 1_800_000_000, expires: 1_810_000_000 } };
  using at = desk(expiring);
  expect(await accepted(at)).toBe("fruitos-9");
  at.card.put((record) => ({ ...record, time: 1_900_000_000 }));
  expect(await accepted(at)).toContain("it expired at 2027-05-11");
  // The running slot's own release, kept when it was installed
  at.card.put((record) => ({ ...record, time: 0 }));
  const newer = makeRelease({ payload: made, stated: { created: 1_820_000_000, expires: 4_000_000_000 } });
  mkdirSync(at.file("data/releases"));
  at.put("data/releases/a.fruit", newer.update);
  expect(await accepted(at)).toBe("fruitos-9");
  const hash = hashIn(newer.update);
  at.card.put((record) => ({ ...record, slots: { ...record.slots, a: { ...record.slots.a, hash } } }));
  expect(await accepted(at)).toContain("it expired at 2027-05-11");
});

test("a clock that is set is believed, whatever one before it has said", async () => {
  using at = desk({ stated: { created: 1_750_000_000, expires: 4_000_000_000 } });
  at.card.put((record) => ({ ...record, time: 4_100_000_000 }));
  expect(await accepted(at)).toContain("it expired at");
  expect(await accepted(at, true)).toBe("fruitos-9");
});

const hashIn = (update: Uint8Array) => hashPrefix(parseUpdate(update).info.piecesRoot);

const foul = (bytes: Uint8Array, at: number) => bytes.with(at, (bytes[at] ?? 0) ^ 1);
test.each<{
  why: string;
  exit?: Exit;
  change?: (at: ReturnType<typeof desk>) => void;
  release?: Parameters<typeof makeRelease>[0];
  words?: string[];
}>([
  {
    why: "refused: it is for raspberrypi,4-model-b; this node is raspberrypi,3-model-b",
    release: { stated: { boards: ["raspberrypi,4-model-b"] } },
  },
  {
    why: "refused: its version is 9; this node takes 10 and higher",
    change: ({ card }) => card.put((record) => ({ ...record, floor: 10n })),
  },
  { why: "refused: it installs from version 8 on; this node runs 4", release: { stated: { minFrom: 8n } } },
  { why: "refused: it expired at", release: { stated: { expires: 1_790_000_100 } }, words: ["--hal", "sim"] },
  {
    why: 'refused: signed by "mallory", whom trust.json version 1 does not name',
    release: { signers: ["mallory"] },
  },
  {
    why: "refused: the signature of anna does not match",
    change: ({ put, release }) => put("fruitos-9.fruit", signatureFouled(release.update)),
  },
  {
    why: "refused: slot b is on trial (2 tries left)",
    change: ({ card }) => card.put((record) => ({ ...record, trial: { id: 5, triesLeft: 2, started: 1 } })),
  },
  { why: "refused: ", change: ({ put, release }) => put("fruitos-9.side", foul(release.side, 100)) },
  {
    why: "refused: leaf 3 (byte 49152) is not the one that was signed",
    change: ({ put }) => put("fruitos-9", foul(made.payload, 50_000)),
  },
  {
    why: `the payload of this release ${SIZE}: it is cut short`,
    change: ({ put }) => put("fruitos-9", made.payload.subarray(1)),
  },
  {
    why: "payload: ENOENT",
    exit: EXIT.failed,
    change: ({ file }) => rmSync(file("fruitos-9")),
    words: ["--payload", "/nonexistent/payload"],
  },
  { why: "trust.json: ", exit: EXIT.usage, change: ({ file }) => rmSync(file("data/trust.json")) },
  {
    why: "another install is running there, process ",
    exit: EXIT.busy,
    change: ({ data }) => void holdFolder(join(data, "boot"), "install"),
  },
  {
    why: "holds no valid record",
    exit: EXIT.hardware,
    change: ({ card }) => [4, 8, 12, 16].map((MiB) => card.write(MiB * 1024 * 1024, new Uint8Array(512))),
  },
  { why: "card.img", exit: EXIT.hardware, change: ({ card }) => card.write(0, new Uint8Array(512)) },
])(
  "not installed, and slot a untouched: $why",
  async ({ why, exit = EXIT.refused, change, release = {}, words = [] }) => {
    using at = desk(release);
    change?.(at);
    const before = at.card.read(SLOT_OFFSETS.a, SLOT_BYTES);
    const found = await at.install(...words);
    expect([found.exit, found.out]).toEqual([exit, ""]);
    expect(found.err).toContain(why);
    expect(found.err).not.toContain("    at ");
    expect(Buffer.compare(at.card.read(SLOT_OFFSETS.a, SLOT_BYTES), before)).toBe(0);
    if (exit !== EXIT.hardware) expect(at.card.record.slots.b.state).not.toBe("staged");
  },
);

function signatureFouled(update: Uint8Array): Uint8Array {
  const at = Buffer.from(update).lastIndexOf("9:signature64:");
  return foul(update, at + 20);
}

test("a release that failed here before is installed only by force", async () => {
  using at = desk();
  await at.install();
  const { hash } = at.card.record.slots.b;
  const entry = { version: "9", reason: "check-failed", evidence: ["broker: not reached"] };
  at.put("data/boot/quarantine.json", JSON.stringify({ hashes: { [hash]: entry }, rounds: {} }));
  const { exit, err } = await at.install();
  expect([exit, err]).toEqual([
    EXIT.refused,
    "fruit: fruitos-9 was tried on this node and failed (check-failed: broker: not reached); --force installs it again\n",
  ]);
  expect((await at.install("--force")).exit).toBe(EXIT.done);
});

test("status tells an install that runs, one that was interrupted and one that is staged", async () => {
  using at = desk();
  const status = (...more: string[]) =>
    command(["update", "status", "--disk", at.card.path, "--config", at.file("node.json"), ...more]);
  expect((await status()).out.split("\n")).toEqual([
    "no install is running",
    "SLOT  STATE  VERSION  HASH",
    `a     good   4        ${at.card.record.slots.a.hash}`,
    "b     empty  -        -",
    "",
  ]);
  await Bun.spawn([...SOURCES.command, ...at.words()], {
    env: { ...process.env, FRUIT_FAILPOINT: "writer.checkpoint" },
    stdout: "ignore",
    stderr: "ignore",
  }).exited;
  expect((await status()).out).toContain(
    "an install was interrupted; the same `fruit update install` goes on",
  );
  mkdirSync(at.file("run"), { recursive: true });
  const facts = { phase: "writing", version: "9", bytes_done: 5e6, bytes_total: 2e7, rate: 1e6, eta_s: 15 };
  at.put("run/update.json", JSON.stringify({ ...facts, pid: process.pid }));
  expect((await status()).out).toStartWith(
    `version 9: writing, 5.0 of 20.0 MB, 1.0 MB/s, 15s left (process ${process.pid})\n`,
  );
  rmSync(at.file("run/update.json"));
  await at.install();
  const { slots, installing } = JSON.parse((await status("--json")).out);
  expect(installing).toBeNull();
  expect(slots[1]).toMatchObject({ slot: "b", state: "staged", version: "9", runs: false });
});

test.skipIf(loops.isSkipped)(`a slot is not written under a loop device${loops.need}`, async () => {
  using at = desk();
  const over = system("losetup", "--show", "-o", String(SLOT_OFFSETS.b), "-f", at.card.path).out.trim();
  const { exit, err } = await at.install();
  system("losetup", "-d", over);
  expect([exit, err]).toEqual([EXIT.busy, expect.stringContaining(`${over.slice(5)} is set up over it`)]);
  expect((await at.install()).exit).toBe(EXIT.done);
});
