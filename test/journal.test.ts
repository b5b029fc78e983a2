/** The journal: an accepted command is known again after anything, and nothing is forgotten to make room. */
import { afterAll, afterEach, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type CommandResult, Refusal } from "../agent/commands.ts";
import { Journal, type JournalOptions } from "../agent/record/journal.ts";

const home = mkdtempSync(join(tmpdir(), "fruit-journal-"));
const opened: Journal[] = [];
afterEach(async () => {
  for (const journal of opened.splice(0)) await journal.close();
});
afterAll(() => rmSync(home, { recursive: true, force: true }));
const newDir = () => mkdtempSync(join(home, "journal-"));
const text = (dir: string) => readFileSync(join(dir, "journal.jsonl"), "utf8");

const NOW = 1_800_000_000;
const DAY = 86_400;
const command = (n: number | string, more: object = {}) => ({
  ...{ id: `c-${n}`, verb: "power.off", who: "key:alice@desk", exp: NOW + 60 },
  ...{ digest: "a".repeat(64), durable: true, ...more },
});
const result = (n: number | string, state: CommandResult["state"] = "done"): CommandResult => ({
  ...{ id: `c-${n}`, verb: "power.off", state, ts: NOW, by: "key:alice@desk", duration_s: 1 },
});

async function openJournal(dir: string, options: Partial<JournalOptions> = {}): Promise<Journal> {
  const journal = await Journal.open(dir, { nowSeconds: () => NOW, log: () => undefined, ...options });
  opened.push(journal);
  return journal;
}
const refused = (promise: Promise<unknown>) =>
  promise.then(
    () => undefined,
    (error: unknown) => error as Refusal,
  );

test("what was accepted and how it ended is known after a restart", async () => {
  const dir = newDir();
  const journal = await openJournal(dir);
  expect(journal.seen("c-1")).toBeUndefined();
  for (const n of [1, 2, 3]) await journal.accept(command(n));
  await journal.finish("c-1", result(1));
  await journal.finish("c-3", { ...result(3, "failed"), code: "bus" });
  for (const each of [journal, await openJournal(dir)]) {
    expect(each.seen("c-1")).toEqual({ ...command(1), at: NOW, state: "done" });
    expect(each.seen("c-2")?.state).toBe("accepted");
    expect(each.unfinished().map(({ id, verb, who }) => [id, verb, who])).toEqual([
      ["c-2", "power.off", "key:alice@desk"],
    ]);
    expect(each.last(10)).toEqual([{ ...result(3, "failed"), code: "bus" }, result(1)]);
    expect(each.last(1)).toHaveLength(1);
  }
  expect(statSync(join(dir, "journal.jsonl")).mode & 0o777).toBe(0o600);
});

test("an id is accepted once: the same bytes are a duplicate, others a replay, also after a restart", async () => {
  const dir = newDir();
  const journal = await openJournal(dir);
  const both = await Promise.all([journal.accept(command(1)), refused(journal.accept(command(1)))]);
  expect(both[1]).toMatchObject({
    code: "duplicate",
    message: "id c-1 was already accepted and is accepted",
  });
  const again = await openJournal(dir);
  expect(await refused(again.accept(command(1)))).toMatchObject({ code: "duplicate" });
  expect(await refused(again.accept(command(1, { digest: "b".repeat(64) })))).toMatchObject({
    code: "replay",
  });
});

test.each([
  ["a disruptive one for a day", { exp: NOW + 60 }, DAY],
  [
    "a disruptive one that expires later, until ten minutes after that",
    { exp: NOW + 2 * DAY },
    2 * DAY + 600,
  ],
  ["a harmless one until ten minutes after it expired", { exp: NOW + 60, durable: false }, 660],
  ["a harmless one that expires in a thousand years, for a day", { exp: NOW + 1e10, durable: false }, DAY],
])("%s", async (_, more, seconds) => {
  const dir = newDir();
  const journal = await openJournal(dir);
  await journal.accept(command(1, more));
  await journal.finish("c-1", result(1));
  await journal.close();
  expect((await openJournal(dir, { nowSeconds: () => NOW + seconds - 1 })).seen("c-1")?.state).toBe("done");
  expect((await openJournal(dir, { nowSeconds: () => NOW + seconds })).seen("c-1")).toBeUndefined();
  expect(text(dir)).not.toContain('power.off","who');
});

test("what a restart interrupted is not forgotten before somebody finished it", async () => {
  const dir = newDir();
  await (await openJournal(dir)).accept(command(1));
  const late = await openJournal(dir, { nowSeconds: () => NOW + 9 * DAY });
  expect(late.unfinished()).toHaveLength(1);
  await late.finish("c-1", { ...result(1, "failed"), code: "restarted" });
  expect(late.unfinished()).toEqual([]);
});

test("when it is full, new commands are refused and no id is forgotten; what expired makes room", async () => {
  let now = NOW;
  const journal = await openJournal(newDir(), { most: 10, nowSeconds: () => now });
  for (let n = 0; n < 9; n++) {
    await journal.accept(command(n));
    await journal.finish(`c-${n}`, result(n));
  }
  const error = await refused(journal.accept(command(10)));
  expect(error).toBeInstanceOf(Refusal);
  expect(error).toMatchObject({ code: "busy", message: expect.stringContaining("remembers 9 commands") });
  expect(Array.from({ length: 9 }, (_, n) => journal.seen(`c-${n}`)?.state)).toEqual(Array(9).fill("done"));
  expect(journal.seen("c-10")).toBeUndefined();
  now += DAY;
  await journal.accept(command(10, { exp: now + 60 }));
  expect(journal.seen("c-0")).toBeUndefined();
});

test("anybody may fill half of it, harmless commands with a key three quarters, those that disrupt nine tenths; the rest is the node's own", async () => {
  const journal = await openJournal(newDir(), { most: 20 });
  const takes = async (name: string, more: object) => {
    let taken = 0;
    while (!(await refused(journal.accept(command(`${name}-${taken}`, more))))) taken++;
    return taken;
  };
  expect(await takes("anybody", { who: "anonymous", durable: false })).toBe(10);
  expect(await takes("harmless", { durable: false })).toBe(5);
  expect(await takes("disruptive", {})).toBe(3);
  expect(await takes("socket", { who: "local:root", own: true })).toBe(2);
});

test("an id that the node made itself is known until its command has ended, also when that is after a restart", async () => {
  const dir = newDir();
  const journal = await openJournal(dir, { most: 10 });
  for (let n = 0; n < 100; n++) {
    await journal.accept(command(n, { own: true }));
    expect(await refused(journal.accept(command(n, { own: true })))).toMatchObject({ code: "duplicate" });
    await journal.finish(`c-${n}`, result(n));
  }
  await journal.accept(command("cut off", { own: true }));
  await journal.close();
  const again = await openJournal(dir);
  expect(again.seen("c-99")).toBeUndefined();
  expect(again.last(1)).toEqual([result(99)]);
  expect(again.unfinished().map(({ id }) => id)).toEqual(["c-cut off"]);
  await again.finish("c-cut off", result("cut off", "unconfirmed"));
  expect(again.unfinished()).toEqual([]);
  expect((await openJournal(dir)).last(1)[0]?.state).toBe("unconfirmed");
});

test("what anybody did is forgotten before what others did", async () => {
  const journal = await openJournal(newDir());
  const end = async (n: number, who: string) => {
    await journal.accept(command(n, { who, durable: false }));
    await journal.finish(`c-${n}`, { ...result(n), by: who });
  };
  for (let n = 0; n < 90; n++) await end(n, "key:alice@desk");
  for (let n = 90; n < 200; n++) await end(n, n % 2 ? "anonymous" : "set");
  for (let n = 200; n < 205; n++) await end(n, "local:root");
  const people = journal.last(100).filter(({ by }) => by !== "anonymous" && by !== "set");
  expect(people).toHaveLength(95);
  expect(journal.last(1)[0]?.id).toBe("c-204");
});

test("of an id, what was last said is known", async () => {
  const journal = await openJournal(newDir());
  expect(journal.result("c-1")).toBeUndefined();
  await journal.accept(command(1));
  expect(journal.result("c-1")).toMatchObject({ id: "c-1", state: "accepted" });
  await journal.finish("c-1", { ...result(1, "failed"), code: "bus" });
  expect(journal.result("c-1")).toMatchObject({ state: "failed", code: "bus" });
  for (let n = 2; n < 103; n++) {
    await journal.accept(command(n));
    await journal.finish(`c-${n}`, result(n));
  }
  expect(journal.result("c-1")).toEqual({
    id: "c-1",
    verb: "power.off",
    state: "failed",
    by: "key:alice@desk",
  });
});

test("an id that comes again when it was forgotten starts anew, also after a restart", async () => {
  const dir = newDir();
  let now = NOW;
  const nowSeconds = () => now;
  const journal = await openJournal(dir, { most: 1.2, nowSeconds });
  await journal.accept(command(1));
  await journal.finish("c-1", result(1));
  now += DAY;
  await refused(journal.accept(command(2, { durable: false, exp: now })));
  await journal.accept(command(1, { exp: now + 60 }));
  expect(journal.result("c-1")?.state).toBe("accepted");
  for (let n = 0; n < 2; n++) {
    const again = await openJournal(dir, { nowSeconds });
    expect(again.unfinished().map(({ id }) => id)).toEqual(["c-1"]);
    expect(again.last(9)).toEqual([result(1)]);
  }
});

test("the file stays below 1 MiB however much is asked, and the last hundred results fit", async () => {
  const dir = newDir();
  const journal = await openJournal(dir);
  const long = "x".repeat(1500);
  let accepted = 0;
  let error: Refusal | undefined;
  for (; !error && accepted < 10_001; accepted++) {
    error = await refused(journal.accept(command(accepted, { durable: false, exp: NOW })));
    if (!error) await journal.finish(`c-${accepted}`, { ...result(accepted), message: long });
  }
  expect(error?.code).toBe("busy");
  expect(statSync(join(dir, "journal.jsonl")).size).toBeLessThanOrEqual(1_048_576);
  expect(accepted).toBeGreaterThan(1000);
  const again = await openJournal(dir);
  expect(again.seen("c-0")?.state).toBe("done");
  expect(again.last(1000)).toHaveLength(100);
  expect(again.last(1)[0]).toEqual({ ...result(accepted - 2), message: long });
  expect(statSync(join(dir, "journal.jsonl")).size).toBeLessThanOrEqual(1_048_576);
});

test("a long answer is remembered by how it ended", async () => {
  const journal = await openJournal(newDir());
  await journal.accept(command(1));
  await journal.finish("c-1", { ...result(1), message: "m", result: { long: "x".repeat(9000) } });
  expect(journal.last(1)).toEqual([{ ...result(1), message: "m" }]);
});

test("cut at any byte, the file opens and knows every command that stands whole in it", async () => {
  const source = newDir();
  const journal = await openJournal(source);
  await journal.accept(command(1));
  await journal.finish("c-1", result(1));
  await journal.accept(command(2));
  await journal.close();
  const whole = text(source);
  const ends = [...whole.matchAll(/\n/g)].map(({ index }) => index + 1);
  const near = (length: number) => length % 9 === 0 || ends.some((end) => Math.abs(end - length) < 3);
  for (let length = 0; length <= whole.length; length++) {
    if (!near(length)) continue;
    const dir = newDir();
    writeFileSync(join(dir, "journal.jsonl"), whole.slice(0, length));
    const cut = await openJournal(dir);
    const lines = ends.filter((end) => end <= length).length;
    expect(`${cut.seen("c-1")?.state} ${cut.seen("c-2")?.state}`).toBe(
      ["undefined undefined", "accepted undefined", "done undefined", "done accepted"][lines] ?? "",
    );
    await cut.accept(command(3));
    await cut.close();
    const again = await openJournal(dir);
    expect(again.seen("c-3")?.state).toBe("accepted");
    expect(again.last(9)).toHaveLength(lines >= 2 ? 1 : 0);
    await again.close();
  }
});

test("a line that cannot be read is named, kept in a copy, and costs no other line", async () => {
  const dir = newDir();
  const journal = await openJournal(dir);
  for (const n of [1, 2, 3]) await journal.accept(command(n));
  await journal.close();
  const spoilt = text(dir).replace('"id":"c-2"', '"id":2');
  writeFileSync(join(dir, "journal.jsonl"), spoilt);
  const log: unknown[][] = [];
  const again = await openJournal(dir, { log: (...line) => log.push(line) });
  expect([1, 2, 3].map((n) => again.seen(`c-${n}`)?.state)).toEqual(["accepted", undefined, "accepted"]);
  expect(log).toEqual([["error", "journal.unreadable", expect.objectContaining({ lines: [2] })]]);
  expect(readFileSync(join(dir, "journal.jsonl.bad"), "utf8")).toBe(spoilt);
});

/** A disk that can be full, and whose content after a power cut is known. */
function disk() {
  const state = { isFull: false, onDisk: "" };
  const full = () => Object.assign(new Error("ENOSPC: no space left on device"), { code: "ENOSPC" });
  const openFile: JournalOptions["openFile"] = async (path, flags, mode) => {
    if (state.isFull) throw full();
    const handle = await open(path, flags, mode);
    const own: Partial<FileHandle> = {
      write: (async (data: Uint8Array) => {
        if (state.isFull) throw full();
        return handle.write(data);
      }) as FileHandle["write"],
      datasync: async () => {
        await handle.datasync();
        state.onDisk = readFileSync(path, "utf8");
      },
    };
    return new Proxy(handle, {
      get(target, name) {
        const value = Reflect.get(name in own ? own : target, name);
        return typeof value === "function" ? value.bind(target) : value;
      },
    });
  };
  return { state, openFile };
}

test("a command that cannot be recorded is refused and not remembered; its id may come again", async () => {
  const dir = newDir();
  const { state, openFile } = disk();
  const journal = await openJournal(dir, { openFile });
  await journal.accept(command(1));
  state.isFull = true;
  const before = text(dir);
  expect(await refused(journal.accept(command(2)))).toMatchObject({
    code: "disk",
    message: expect.stringContaining("ENOSPC"),
  });
  expect(journal.seen("c-2")).toBeUndefined();
  expect(text(dir)).toBe(before);
  await expect(journal.finish("c-1", result(1))).rejects.toThrow("ENOSPC");
  expect(journal.seen("c-1")?.state).toBe("done");
  state.isFull = false;
  await journal.accept(command(2));
  expect((await openJournal(dir)).seen("c-2")?.state).toBe("accepted");
});

test("on a full disk it opens all the same, refuses what must be recorded, and goes on once there is room", async () => {
  const dir = newDir();
  await (await openJournal(dir)).accept(command(0));
  const { state, openFile } = disk();
  state.isFull = true;
  const log: unknown[] = [];
  const journal = await openJournal(dir, { openFile, log: (_, what) => log.push(what) });
  expect(log).toEqual(["journal.unwritable"]);
  expect(journal.seen("c-0")?.state).toBe("accepted");
  expect(await refused(journal.accept(command(1)))).toMatchObject({ code: "disk" });
  state.isFull = false;
  await Promise.all([1, 2].map((n) => journal.accept(command(n))));
  state.isFull = true;
  await Promise.all([1, 2].map((n) => refused(journal.finish(`c-${n}`, result(n)))));
  state.isFull = false;
  await journal.finish("c-0", result(0));
  expect(journal.last(9).map(({ id }) => id)).toEqual(["c-0", "c-2", "c-1"]);
});

test("results that are written together with a new file are known once", async () => {
  const dir = newDir();
  const journal = await openJournal(dir);
  for (const n of [1, 2]) await journal.accept(command(n));
  await journal.close(); // the next record writes the file anew, with both ends
  await Promise.all([1, 2].map((n) => journal.finish(`c-${n}`, result(n))));
  expect(text(dir).match(/"finished"/g)).toHaveLength(3);
  expect((await openJournal(dir)).last(9)).toEqual([result(2), result(1)]);
});

test("a durable command has reached the disk when it is accepted, and so has its end", async () => {
  const dir = newDir();
  const { state, openFile } = disk();
  const journal = await openJournal(dir, { openFile });
  await journal.accept(command("lazy", { durable: false }));
  expect(state.onDisk).toBe("");
  await journal.accept(command(1));
  expect(state.onDisk).toBe(text(dir));
  await journal.finish("c-1", result(1));
  expect(state.onDisk).toBe(text(dir));
  expect(state.onDisk).toContain('"finished"');
});

test("kill -9 loses no command that was accepted, and leaves no half-written file in the way", async () => {
  const dir = newDir();
  const script = `
    import { Journal } from "${join(import.meta.dir, "../agent/record/journal.ts")}";
    const journal = await Journal.open(process.argv[1], { nowSeconds: () => ${NOW}, log: () => undefined });
    for (let n = 1; ; n++) {
      await journal.accept({ id: "c-" + n, verb: "v", who: "w", exp: ${NOW}, digest: "d", durable: n % 5 === 0 });
      process.stdout.write(n + "\\n");
    }`;
  const child = Bun.spawn([process.execPath, "-e", script, dir], { stdout: "pipe" });
  let heard = "";
  for await (const chunk of child.stdout) {
    heard += new TextDecoder().decode(chunk);
    if (heard.split("\n").length > 60) child.kill("SIGKILL");
  }
  await child.exited;
  const ids = heard
    .split("\n")
    .slice(0, -1)
    .map((n) => `c-${n}`);
  const journal = await openJournal(dir);
  expect(ids.length).toBeGreaterThan(50);
  expect(ids.filter((id) => journal.seen(id)?.state !== "accepted")).toEqual([]);
  expect(existsSync(join(dir, "journal.jsonl.new"))).toBe(false);
});
