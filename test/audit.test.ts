/** The audit log: whole lines or none, one chain over all files, and every meddling named. */
import { afterAll, afterEach, expect, test } from "bun:test";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Refusal } from "../agent/commands.ts";
import { Audit, type AuditEntry, type AuditOptions, tailAudit } from "../agent/record/audit.ts";
import { verifyAudit } from "../agent/record/chain.ts";
import { GENESIS, sha256 } from "../agent/record/chained.ts";

const home = mkdtempSync(join(tmpdir(), "fruit-audit-"));
const opened: Audit[] = [];
afterEach(async () => {
  for (const audit of opened.splice(0)) await audit.close();
});
afterAll(() => {
  if (tiny) Bun.spawnSync(["umount", tiny]);
  rmSync(home, { recursive: true, force: true });
});
const newDir = () => mkdtempSync(join(home, "log-"));

const OPTIONS: AuditOptions = { boot: "b-1", clock: () => "synced" };
const ENTRY: AuditEntry = { src: "mqtt", who: "key:alice@desk", verb: "power.off", decision: "allowed" };
const entry = (n: number): AuditEntry => ({ ...ENTRY, id: `c-${n}`, args: { outlets: [`0.${n}`] } });
const LAZY = { durable: false };

async function openAudit(dir: string, options: AuditOptions): Promise<Audit> {
  const audit = await Audit.open(dir, options);
  opened.push(audit);
  return audit;
}

async function written(dir: string, count: number, options: Partial<AuditOptions> = {}): Promise<Audit> {
  const audit = await openAudit(dir, { ...OPTIONS, ...options });
  for (let n = 1; n <= count; n++) await audit.append(entry(n), LAZY);
  return audit;
}

const text = (dir: string, name = "audit.jsonl") => readFileSync(join(dir, name), "utf8");
const linesOf = (dir: string, name?: string) => text(dir, name).trimEnd().split("\n");
const putLines = (dir: string, lines: string[]) =>
  writeFileSync(join(dir, "audit.jsonl"), lines.map((line) => `${line}\n`).join(""));

test("each line says who, what and when, and carries the hash of the one before", async () => {
  const dir = newDir();
  const audit = await openAudit(dir, { boot: "b-1", clock: () => "unsynced" });
  expect(audit.head()).toBeUndefined();
  await audit.append({ ...entry(1), reason: "hung" }, { durable: true });
  await audit.append({ ...entry(1), outcome: "done", duration_s: 1.5 }, LAZY);
  await audit.append({ ...entry(2), decision: "refused", code: "unauthorised" }, LAZY);
  const [first = "", second = "", third = ""] = linesOf(dir);
  expect(JSON.parse(first)).toEqual({
    ...{ seq: 1, boot: "b-1", ts: expect.stringMatching(/^\d{4}-.*Z$/), clock: "unsynced" },
    ...{ id: "c-1", src: "mqtt", who: "key:alice@desk", verb: "power.off", args: { outlets: ["0.1"] } },
    ...{ reason: "hung", decision: "allowed", prev: GENESIS },
  });
  expect(JSON.parse(second)).toMatchObject({ seq: 2, outcome: "done", duration_s: 1.5, prev: sha256(first) });
  expect(JSON.parse(third)).toMatchObject({ seq: 3, code: "unauthorised", prev: sha256(second) });
  expect(audit.head()).toEqual({ seq: 3, sha256: sha256(third) });
  expect(statSync(join(dir, "audit.jsonl")).mode & 0o777).toBe(0o600);
  expect(await audit.tail(2)).toEqual([second, third].map((line) => JSON.parse(line)));
});

test("appends that come at once stand in the order they were asked for", async () => {
  const dir = newDir();
  const audit = await openAudit(dir, OPTIONS);
  await Promise.all(Array.from({ length: 100 }, (_, n) => audit.append(entry(n), { durable: n % 30 === 0 })));
  expect((await audit.tail(100)).map(({ seq, id }) => `${seq} ${id}`)).toEqual(
    Array.from({ length: 100 }, (_, n) => `${n + 1} c-${n}`),
  );
  expect((await verifyAudit(dir)).problems).toEqual([]);
});

test("the chain runs on over a restart and over files, of which the oldest goes", async () => {
  const dir = newDir();
  const size = { maxBytes: 2000, files: 4 };
  for (let n = 0; n < 8; n++) await (await written(dir, 5, size)).close();
  const names = ["audit.1.jsonl", "audit.2.jsonl", "audit.3.jsonl", "audit.head", "audit.jsonl"];
  expect(readdirSync(dir).sort()).toEqual(names);
  for (const name of names) expect(statSync(join(dir, name)).size).toBeWithin(1, 2001);
  const verdict = await verifyAudit(dir);
  expect(verdict.problems).toEqual([]);
  expect(verdict.first).toBeGreaterThan(1);
  expect(verdict.head).toEqual((await openAudit(dir, OPTIONS)).head());
  expect(verdict.head?.seq).toBe(40);
  const seqs = (await tailAudit(dir, 1000)).map(({ seq }) => seq);
  expect(seqs).toEqual(Array.from({ length: verdict.lines }, (_, n) => 41 - verdict.lines + n));
  expect((await tailAudit(dir, 7)).map(({ seq }) => seq)).toEqual([34, 35, 36, 37, 38, 39, 40]);
});

test("a cut between any two renames of a rotation leaves a log that holds and goes on", async () => {
  for (let renamed = 0; renamed <= 3; renamed++) {
    const dir = newDir();
    await (await written(dir, 40, { maxBytes: 2000 })).close();
    for (const number of [2, 1, 0].slice(0, renamed))
      renameSync(
        join(dir, number ? `audit.${number}.jsonl` : "audit.jsonl"),
        join(dir, `audit.${number + 1}.jsonl`),
      );
    const before = (await verifyAudit(dir)).lines;
    const audit = await openAudit(dir, { ...OPTIONS, maxBytes: 2000 });
    for (let n = 41; n <= 45; n++) await audit.append(entry(n), LAZY);
    const verdict = await verifyAudit(dir);
    expect(verdict.problems).toEqual([]);
    expect(verdict.head?.seq).toBe(45);
    // nothing goes while a number is free
    if (renamed > 0) expect(verdict.lines).toBe(before + 5);
  }
});

test("cut at any byte of its last line, the log opens, keeps the rest as evidence, says so, and holds", async () => {
  const source = newDir();
  await (await written(source, 3)).close();
  const whole = text(source);
  const start = whole.lastIndexOf("\n", whole.length - 2) + 1;
  for (let length = start + 1; length < whole.length; length += length < whole.length - 20 ? 7 : 1) {
    const dir = newDir();
    writeFileSync(join(dir, "audit.jsonl"), whole.slice(0, length));
    const before = await verifyAudit(dir);
    expect(before.problems).toEqual([
      { file: "audit.jsonl", line: 3, why: "torn: the line has no end (a power cut?)" },
    ]);
    const audit = await openAudit(dir, OPTIONS);
    const torn = whole.slice(start, length);
    expect(text(dir, "audit.torn")).toBe(torn);
    const [said] = await audit.tail(1);
    expect(said).toMatchObject({
      seq: 3,
      who: "agent",
      verb: "audit.torn",
      args: { bytes: torn.length, sha256: sha256(torn) },
    });
    await audit.append(entry(4), LAZY);
    expect(await verifyAudit(dir)).toMatchObject({ lines: 4, head: { seq: 4 }, problems: [] });
    await audit.close();
  }
});

test("blocks of zeros and half lines that a power cut left at the end are put aside together", async () => {
  const dir = newDir();
  await (await written(dir, 3)).close();
  const rubbish = `{"seq":4,"bo\n${"\0".repeat(300)}\n\0\0`;
  writeFileSync(join(dir, "audit.jsonl"), text(dir) + rubbish);
  const audit = await openAudit(dir, OPTIONS);
  expect(text(dir, "audit.torn")).toBe(rubbish);
  expect(await verifyAudit(dir)).toMatchObject({ lines: 4, head: audit.head(), problems: [] });
});

test("a line that was changed in the middle stays where it is, as evidence", async () => {
  const dir = newDir();
  await (await written(dir, 5)).close();
  const lines = linesOf(dir);
  lines[2] = "what?";
  putLines(dir, lines);
  await (await written(dir, 1)).close();
  expect(existsSync(join(dir, "audit.torn"))).toBe(false);
  expect((await verifyAudit(dir)).problems).toEqual([
    { file: "audit.jsonl", line: 3, why: "changed: it is not the line that the next one follows" },
  ]);
});

/** A file handle on which something is different. */
function bent(handle: FileHandle, different: Partial<FileHandle>): FileHandle {
  return new Proxy(handle, {
    get(target, name) {
      const own = Reflect.get(name in different ? different : target, name);
      return typeof own === "function" ? own.bind(target) : own;
    },
  });
}

const noSpace = () => Object.assign(new Error("ENOSPC: no space left on device, write"), { code: "ENOSPC" });
const refused = (promise: Promise<unknown>) =>
  promise.then(
    () => undefined,
    (error: unknown) => error,
  );

test("on a disk that fills up in the middle of a line the command is refused and the log stays whole", async () => {
  const dir = newDir();
  let room = Infinity;
  const openFile: AuditOptions["openFile"] = async (path, flags, mode) => {
    const handle = await open(path, flags, mode);
    const write = async (data: Uint8Array) => {
      if (room === 0) throw noSpace();
      const part = data.subarray(0, room);
      room -= part.length;
      return handle.write(part);
    };
    return bent(handle, { write: write as FileHandle["write"] });
  };
  const audit = await written(dir, 2, { openFile });
  const before = text(dir);
  for (const left of [0, 1, 100]) {
    room = left;
    const error = await refused(audit.append(entry(3), { durable: true }));
    expect(error).toBeInstanceOf(Refusal);
    expect(error).toMatchObject({
      code: "audit",
      message: expect.stringContaining(`${dir}: the audit log cannot be written: ENOSPC`),
    });
    expect(text(dir)).toBe(before);
    expect(audit.head()?.seq).toBe(2);
  }
  room = Infinity;
  await audit.append(entry(3), LAZY);
  expect(await verifyAudit(dir)).toMatchObject({ lines: 3, problems: [] });
});

test("a line that could not be flushed is not there, also when it cannot be cut off at once", async () => {
  const dir = newDir();
  let isBroken = false;
  const openFile: AuditOptions["openFile"] = async (path, flags, mode) => {
    const handle = await open(path, flags, mode);
    const failing = (name: "datasync" | "truncate") => async (length?: number) => {
      if (isBroken) throw Object.assign(new Error(`EIO: i/o error, ${name}`), { code: "EIO" });
      await (name === "datasync" ? handle.datasync() : handle.truncate(length));
    };
    return bent(handle, { datasync: failing("datasync"), truncate: failing("truncate") });
  };
  const audit = await written(dir, 2, { openFile });
  isBroken = true;
  expect(await refused(audit.append(entry(3), { durable: true }))).toMatchObject({ code: "audit" });
  expect(await refused(audit.append(entry(3), { durable: true }))).toMatchObject({ code: "audit" });
  isBroken = false;
  await audit.append(entry(4), { durable: true });
  expect((await audit.tail(9)).map(({ seq, id }) => `${seq} ${id}`)).toEqual(["1 c-1", "2 c-2", "3 c-4"]);
  expect((await verifyAudit(dir)).problems).toEqual([]);
});

test("a durable line has reached the disk when its append resolves", async () => {
  const dir = newDir();
  let onDisk = ""; // what a power cut would leave
  const openFile: AuditOptions["openFile"] = async (path, flags, mode) => {
    const handle = await open(path, flags, mode);
    const datasync = async () => {
      await handle.datasync();
      onDisk = readFileSync(path, "utf8");
    };
    return bent(handle, { datasync });
  };
  const audit = await openAudit(dir, { ...OPTIONS, openFile });
  await audit.append(entry(1), LAZY);
  expect(onDisk).toBe("");
  await audit.append(entry(2), { durable: true });
  expect(onDisk).toBe(text(dir));
});

/** A real disk of 64 KiB, where this machine lets us have one. */
function tinyDisk(): string | undefined {
  const dir = join(home, "tiny");
  mkdirSync(dir, { recursive: true });
  if (process.getuid?.() !== 0) return undefined;
  const { exitCode } = Bun.spawnSync(["mount", "-t", "tmpfs", "-o", "size=64k", "none", dir]);
  return exitCode === 0 ? dir : undefined;
}
const tiny = tinyDisk();

test.skipIf(!tiny)(
  "on a real disk that is full every append is a refusal, and goes on once there is room [needs root: sudo]",
  async () => {
    const dir = join(tiny!, "audit");
    const filler = join(tiny!, "filler");
    const audit = await written(dir, 3);
    writeFileSync(filler, Buffer.alloc(32_768));
    let error: unknown;
    for (let n = 4; n < 500 && !error; n++) error = await refused(audit.append(entry(n), { durable: true }));
    expect(error).toMatchObject({ code: "audit", message: expect.stringContaining("ENOSPC") });
    const count = audit.head()!.seq;
    expect(await verifyAudit(dir)).toMatchObject({ lines: count, problems: [] });
    await audit.close();
    const again = await openAudit(dir, OPTIONS);
    error = undefined;
    while (!error && again.head()!.seq < 999)
      error = await refused(again.append({ ...ENTRY, who: "x".repeat(400) }, LAZY));
    expect(error).toMatchObject({ code: "audit" });
    rmSync(filler);
    await again.append(entry(1), { durable: true });
    expect((await verifyAudit(dir)).problems).toEqual([]);
    await again.close();
  },
);

test("a log whose end is torn opens on a full disk too, and refuses until the end can be put aside", async () => {
  const dir = newDir();
  await (await written(dir, 2)).close();
  truncateSync(join(dir, "audit.jsonl"), text(dir).length - 5);
  mkdirSync(join(dir, "audit.torn")); // nothing can be written there
  const audit = await openAudit(dir, OPTIONS);
  const before = text(dir);
  expect(await refused(audit.append(entry(3), LAZY))).toMatchObject({ code: "audit" });
  expect(text(dir)).toBe(before);
  rmSync(join(dir, "audit.torn"), { recursive: true });
  await audit.append(entry(3), LAZY);
  expect((await audit.tail(9)).map(({ seq, verb }) => `${seq} ${verb}`)).toEqual([
    "1 power.off",
    "2 audit.torn",
    "3 power.off",
  ]);
  expect((await verifyAudit(dir)).problems).toEqual([]);
});

test("what a sender chose cannot make a line long", async () => {
  const dir = newDir();
  const audit = await openAudit(dir, OPTIONS);
  const long = "x".repeat(16_000);
  await audit.append({ ...ENTRY, id: long, verb: long, who: long, reason: long, args: { long } }, LAZY);
  expect(text(dir).length).toBeLessThan(4000);
  const [line] = await audit.tail(1);
  expect(line?.args).toEqual({ cut: true, bytes: 16_011, sha256: sha256(JSON.stringify({ long })) });
});

test("more than a thousand waiting lines are refused rather than kept in memory", async () => {
  const audit = await openAudit(newDir(), OPTIONS);
  const asked = Array.from({ length: 1005 }, (_, n) => refused(audit.append(entry(n), LAZY)));
  const failed = (await Promise.all(asked)).filter((error) => error !== undefined);
  expect(failed).toHaveLength(5);
  expect(failed[0]).toMatchObject({ code: "audit", message: expect.stringContaining("try again later") });
  expect(audit.head()?.seq).toBe(1000);
});

test("kill -9 while it writes leaves a log that holds and has every line that was acknowledged", async () => {
  const dir = newDir();
  const script = `
    import { Audit } from "${join(import.meta.dir, "../agent/record/audit.ts")}";
    const audit = await Audit.open(process.argv[1], { boot: "b", clock: () => "synced", maxBytes: 4000 });
    for (let n = 1; ; n++) {
      await audit.append({ src: "s", who: "w", verb: "v", decision: "allowed" }, { durable: n % 5 === 0 });
      process.stdout.write(n + "\\n");
    }`;
  const child = Bun.spawn([process.execPath, "-e", script, dir], { stdout: "pipe" });
  let heard = "";
  for await (const chunk of child.stdout) {
    heard += new TextDecoder().decode(chunk);
    if (heard.split("\n").length > 60) child.kill("SIGKILL");
  }
  await child.exited;
  const acknowledged = heard.split("\n").filter(Boolean).length;
  const audit = await openAudit(dir, OPTIONS);
  const verdict = await verifyAudit(dir);
  expect(verdict.problems).toEqual([]);
  expect(audit.head()!.seq).toBeGreaterThanOrEqual(acknowledged);
});
