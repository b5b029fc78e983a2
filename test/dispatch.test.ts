import { expect, jest, test } from "bun:test";
import { rmSync } from "node:fs";
import { open } from "node:fs/promises";
import { join } from "node:path";
import type { Caller } from "../agent/commands.ts";
import type { OpenFile } from "../agent/record/lines.ts";
import { ANONYMOUS, desk, LOCAL, SET, signer } from "./desk.ts";
import { scratch } from "./node.ts";

test("a command is recorded before it runs, answered in order, and ends once", async () => {
  using folder = scratch();
  await using d = await desk(folder.path);
  const { execute, lines, journal } = d;
  const { answers, last } = await execute({ id: "c1", verb: "cut", reason: "hung" });
  expect(answers.map(({ state }) => state)).toEqual(["accepted", "running", "done"]);
  expect(answers[1]).toMatchObject({ message: "on its way", progress: 0.5, by: "local:alice" });
  expect(answers.at(-1)).toEqual(last);
  expect(journal.last(1)).toEqual([last]);
  expect(lines().map((line) => JSON.parse(line))).toMatchObject([
    { seq: 1, id: "c1", src: "socket", who: "local:alice", verb: "cut", reason: "hung", decision: "allowed" },
    { seq: 2, id: "c1", decision: "allowed", outcome: "done" },
  ]);
});

test("reading is answered by its result alone, unless it takes longer", async () => {
  using folder = scratch();
  await using d = await desk(folder.path);
  const { execute, finish } = d;
  expect((await execute({ verb: "read" })).answers.map(({ state }) => state)).toEqual(["done"]);
  jest.useFakeTimers();
  try {
    const slow = execute({ verb: "slow.read" });
    jest.advanceTimersByTime(500);
    finish();
    expect((await slow).answers.map(({ state }) => state)).toEqual(["accepted", "done"]);
  } finally {
    jest.useRealTimers();
  }
});

test("of two commands with one id that come at once, one runs", async () => {
  using folder = scratch();
  await using d = await desk(folder.path);
  const { execute, ran } = d;
  const caller = signer("alice");
  const both = await Promise.all([
    execute({ id: "c1", verb: "cut", caller }),
    execute({ id: "c1", verb: "cut", caller }),
    execute({ id: "c1", verb: "cut", caller, digest: "d2" }),
  ]);
  expect(both.map(({ last }) => last.code ?? last.state)).toEqual(["done", "duplicate", "replay"]);
  expect(ran).toEqual(["cut c1"]);
  expect((await execute({ id: "c1", verb: "cut", caller })).last.code).toBe("duplicate");
  expect((await execute({ id: "c1", verb: "cut", caller, digest: "d2" })).last.code).toBe("replay");
  expect(ran).toEqual(["cut c1"]);
});

test("a read with the id of a command under way does not open the way for that id", async () => {
  using folder = scratch();
  await using d = await desk(folder.path);
  const { execute, ran, finish } = d;
  const first = execute({ id: "c1", verb: "slow.cut" });
  await execute({ id: "c1", verb: "read" });
  expect((await execute({ id: "c1", verb: "slow.cut" })).last.code).toBe("duplicate");
  finish();
  expect((await first).last.state).toBe("done");
  expect(ran.filter((one) => one.startsWith("slow.cut"))).toEqual(["slow.cut c1"]);
});

test.each([
  { what: "ids of their own", id: (n: number) => `r${n}` },
  { what: "one id for all", id: () => "r" },
])("sixty-four commands may be under way, with $what; the next is told to wait", async ({ id }) => {
  using folder = scratch();
  await using d = await desk(folder.path);
  const { execute, ran, finish } = d;
  const all = Array.from({ length: 70 }, (_, n) => execute({ id: id(n), verb: "slow.read" }));
  const refused = await Promise.all(all.slice(64));
  expect(refused.map(({ last }) => last.code)).toEqual(Array(6).fill("busy"));
  finish();
  await Promise.all(all);
  expect(ran).toHaveLength(64);
  expect((await execute({ verb: "read" })).last.state).toBe("done");
});

test("what anybody asks for leaves room to the others", async () => {
  using folder = scratch();
  await using d = await desk(folder.path);
  const { execute, ran, finish } = d;
  const reads = Array.from({ length: 64 }, (_, n) =>
    execute({ id: `r${n}`, verb: "slow.read", caller: ANONYMOUS }),
  );
  const refused = await Promise.all(reads.slice(16));
  expect(new Set(refused.map(({ last }) => last.code))).toEqual(new Set(["busy"]));
  for (const caller of [signer("alice"), SET])
    expect((await execute({ verb: "cut", caller })).last.state).toBe("done");
  finish();
  await Promise.all(reads);
  expect(ran.filter((one) => one.startsWith("slow.read"))).toHaveLength(16);
  expect((await execute({ verb: "read", caller: ANONYMOUS })).last.state).toBe("done");
});

test("an id is that of the command that was accepted with it, while it runs and afterwards", async () => {
  using folder = scratch();
  await using d = await desk(folder.path);
  const { dispatcher, execute, finish } = d;
  const caller = signer("alice");
  expect(dispatcher.known("c1")).toBeUndefined();
  const running = execute({ id: "c1", verb: "slow.cut", caller });
  expect(dispatcher.known("c1")).toEqual({ digest: "d1" });
  await execute({ id: "c1", verb: "read", digest: "d2", caller: ANONYMOUS });
  await execute({ id: "c1", verb: "blink", digest: "d2", caller: ANONYMOUS });
  while (dispatcher.known("c1")?.result?.state !== "running") await Bun.sleep(1);
  finish();
  const { last } = await running;
  expect(dispatcher.known("c1")).toEqual({ digest: "d1", result: last });
});

test.each<{ verb: string; args?: unknown; caller?: Caller; reason?: string; code: string; message: RegExp }>([
  { verb: "explode", code: "unknown-verb", message: /no verb "explode"; there are again, blink, / },
  { verb: "cut", args: { outlte: "0.0" }, code: "bad-args", message: /outlte/ },
  { verb: "cut", args: { outlet: 3 }, code: "bad-args", message: /^outlet: / },
  { verb: "cut", args: "0.0", code: "bad-args", message: /^args: / },
  {
    verb: "cut",
    caller: ANONYMOUS,
    code: "unauthorised",
    message: /anonymous may not cut: the role "power"/,
  },
  {
    verb: "cut",
    caller: { ...LOCAL, mayOutlet: (id) => id === "0.1" },
    code: "unauthorised",
    message: /may not cut outlet 0\.0/,
  },
  { verb: "force", code: "bad-args", message: /needs a reason/ },
])("$verb is refused as $code: $message", async ({ verb, args = {}, caller = LOCAL, code, message }) => {
  using folder = scratch();
  await using d = await desk(folder.path);
  const { execute, ran, lines, journal } = d;
  const { answers, last } = await execute({ id: "c1", verb, args, caller });
  expect(answers).toEqual([last]);
  expect(last).toMatchObject({
    id: "c1",
    verb,
    state: "refused",
    code,
    message: expect.stringMatching(message),
  });
  expect(ran).toEqual([]);
  expect(journal.seen("c1")).toBeUndefined();
  expect(JSON.parse(lines()[0] ?? "")).toMatchObject({ decision: "refused", code, who: caller.who });
});

test("what goes wrong inside a command is its answer, without a stack trace, and is recorded", async () => {
  using folder = scratch();
  await using d = await desk(folder.path);
  const { execute, logged, journal } = d;
  expect((await execute({ id: "c1", verb: "crash" })).last).toMatchObject({
    state: "failed",
    code: "failed",
    message: "a slip",
  });
  expect((await execute({ id: "c2", verb: "dark" })).last).toMatchObject({
    state: "failed",
    code: "bus",
    message: "board 0: no answer",
  });
  expect(journal.unfinished()).toEqual([]);
  expect(logged.join("\n")).toContain("command.crashed");
});

test("reading leaves no trace on the disk, harmless commands and others do", async () => {
  using folder = scratch();
  await using d = await desk(folder.path);
  const { execute, lines, journal } = d;
  await execute({ id: "r1", verb: "read", caller: ANONYMOUS });
  await execute({ id: "r2", verb: "read", args: { no: 1 }, caller: ANONYMOUS });
  expect(lines()).toEqual([]);
  expect(journal.last(10)).toEqual([]);
  await execute({ id: "b1", verb: "blink", caller: ANONYMOUS });
  expect(lines()).toHaveLength(2);
  expect(journal.seen("b1")?.state).toBe("done");
});

test.each([
  { file: "audit", code: "audit" },
  { file: "journal", code: "disk" },
])("what cannot be written to the $file is not done", async ({ file, code }) => {
  using folder = scratch();
  // The disk's own words: /dev/full takes nothing.
  await using full = await open("/dev/full", "w");
  let isFull = false;
  const openFile: OpenFile = async (path, flags, mode) => {
    const handle = await open(path, flags, mode);
    const { write } = handle;
    handle.write = ((...args: unknown[]) =>
      isFull && path.includes(`${file}.jsonl`)
        ? full.write(args[0] as Buffer)
        : Reflect.apply(write, handle, args)) as typeof handle.write;
    return handle;
  };
  await using d = await desk(folder.path, { openFile });
  const { execute, ran } = d;
  expect((await execute({ id: "c1", verb: "cut" })).last.state).toBe("done");
  isFull = true;
  const { last } = await execute({ id: "c2", verb: "cut" });
  expect(last).toMatchObject({ state: "refused", code, message: expect.stringContaining("ENOSPC") });
  expect((await execute({ verb: "read" })).last.state).toBe("done");
  isFull = false;
  // Nothing was remembered of what was never accepted.
  expect((await execute({ id: "c2", verb: "cut" })).last.state).toBe("done");
  expect(ran.filter((one) => one.startsWith("cut"))).toEqual(["cut c1", "cut c2"]);
});

test("a disk that fails while a command runs does not change its answer", async () => {
  using folder = scratch();
  await using d = await desk(folder.path);
  const { execute, finish, logged, journal } = d;
  const running = execute({ id: "c1", verb: "slow.cut" });
  while (!journal.seen("c1")) await Bun.sleep(1);
  await journal.close();
  rmSync(join(folder.path, "journal"), { recursive: true });
  finish();
  expect((await running).last.state).toBe("done");
  expect(logged.join("\n")).toContain("journal.failed");
});

test("while the clock is not synchronised answers carry no time", async () => {
  using folder = scratch();
  await using d = await desk(folder.path, { isSynced: false });
  const { execute } = d;
  for (const answer of (await execute({ verb: "cut" })).answers) expect(answer).not.toHaveProperty("ts");
});
