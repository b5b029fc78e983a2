/** What is written of commands: whoever makes noise fills no log, hides nobody else, and is counted. */
import { expect, test } from "bun:test";
import { open } from "node:fs/promises";
import { join } from "node:path";
import { verifyAudit } from "../agent/record/chain.ts";
import type { OpenFile } from "../agent/record/lines.ts";
import { ANONYMOUS, desk, LOCAL, SET, signer } from "./desk.ts";
import { scratch } from "./node.ts";

const parsed = (lines: string[]) => lines.map((line) => JSON.parse(line));

test("a flood of refusals is answered, and does not turn the audit log over", async () => {
  using folder = scratch();
  let now = 0;
  await using d = await desk(folder.path, { nowSeconds: () => now });
  const { execute, lines, logged } = d;
  await execute({ id: "c1", verb: "cut" });
  const codes = new Set<unknown>();
  for (let n = 0; n < 1000; n++)
    codes.add((await execute({ id: `f${n}`, verb: "cut", caller: ANONYMOUS })).last.code);
  expect([...codes]).toEqual(["unauthorised"]);
  expect(lines()).toHaveLength(2 + 60);
  expect(logged.filter((one) => one.startsWith("command.refused"))).toHaveLength(60);
  // What is done is still written, whoever made the noise.
  await execute({ id: "c2", verb: "cut" });
  expect(lines()).toHaveLength(2 + 60 + 2);
  now = 600;
  await execute({ id: "late", verb: "cut", caller: ANONYMOUS });
  expect(parsed(lines().slice(-2))).toMatchObject([
    { src: "agent", who: "anonymous", verb: "audit.skipped", outcome: "940 requests not written" },
    { who: "anonymous", id: "late", decision: "refused" },
  ]);
  expect(logged.at(-1)).toBe('audit.skipped {"who":"anonymous","count":940}');
  expect((await verifyAudit(join(folder.path, "audit"), { files: 4 })).problems).toEqual([]);
});

test("the refusals of one hide nobody else's", async () => {
  using folder = scratch();
  await using d = await desk(folder.path);
  const { execute, lines } = d;
  for (let n = 0; n < 100; n++) {
    await execute({ id: `a${n}`, verb: "cut", caller: ANONYMOUS });
    await execute({ id: `b${n}`, verb: "nothing", caller: signer("bob") });
  }
  for (const caller of [signer("alice"), LOCAL, SET]) await execute({ id: "real", verb: "nothing", caller });
  expect(parsed(lines().slice(-3)).map(({ who, code }) => `${who} ${code}`)).toEqual([
    "key:alice unknown-verb",
    "local:alice unknown-verb",
    "set unknown-verb",
  ]);
  expect(lines()).toHaveLength(60 + 60 + 3);
});

test("what anybody may do does not turn the audit log over, nor push the results of others out", async () => {
  using folder = scratch();
  await using d = await desk(folder.path);
  const { execute, lines, journal } = d;
  const signed = Array.from({ length: 99 }, (_, n) => `s${n}`);
  for (const id of signed) await execute({ id, verb: "cut", caller: signer("alice") });
  const before = lines().length;
  for (let n = 0; n < 200; n++) {
    expect((await execute({ id: `b${n}`, verb: "blink", caller: ANONYMOUS })).last.state).toBe("done");
    await execute({ id: `u${n}`, verb: "again", caller: SET });
  }
  expect(lines().length - before).toBe(2 * 60 + 2 * 60);
  expect(journal.last(100).map(({ id }) => id)).toEqual(["u199", ...signed.toReversed()]);
  await execute({ id: "s99", verb: "cut", caller: signer("alice") });
  expect(journal.last(100).map(({ id }) => id)).toEqual(["s99", ...signed.toReversed()]);
});

test("what plain text switched is in the audit log, however much noise there was", async () => {
  using folder = scratch();
  await using d = await desk(folder.path);
  const { execute, lines } = d;
  for (let n = 0; n < 100; n++) await execute({ id: `u${n}`, verb: "again", caller: SET });
  const before = lines().length;
  await execute({ id: "on", verb: "cut", caller: SET });
  await execute({ id: "bad", verb: "dark", caller: SET });
  expect(parsed(lines().slice(before))).toMatchObject([
    { id: "on", who: "set", outcome: "done" },
    { id: "bad", who: "set", outcome: "failed", code: "bus" },
  ]);
});

test("while the audit log cannot be written, plain text switches nothing however often it asks", async () => {
  using folder = scratch();
  await using full = await open("/dev/full", "w");
  const openFile: OpenFile = async (path, flags, mode) => {
    const handle = await open(path, flags, mode);
    if (path.includes("audit"))
      handle.write = ((bytes: Buffer) => full.write(bytes)) as unknown as typeof handle.write;
    return handle;
  };
  await using d = await desk(folder.path, { openFile });
  const codes = new Set<unknown>();
  for (let n = 0; n < 100; n++)
    codes.add((await d.execute({ id: `n${n}`, verb: "cut", caller: SET })).last.code);
  expect([...codes]).toEqual(["audit"]);
  expect(d.ran).toEqual([]);
});

test("a thousand sets leave the journal to the others", async () => {
  using folder = scratch();
  await using d = await desk(folder.path);
  const { execute, journal } = d;
  for (let n = 0; n < 1000; n++) await execute({ id: `set-${n}`, verb: "again", caller: SET });
  expect(journal.seen("set-0")).toBeUndefined();
  expect(journal.seen("set-999")).toBeUndefined();
  await execute({ id: "socket-1", verb: "cut" });
  expect(journal.seen("socket-1")).toBeUndefined();
  await execute({ id: "key-1", verb: "cut", caller: signer("alice") });
  expect(journal.seen("key-1")?.state).toBe("done");
});

test("a line of the log is bounded, whatever a sender writes", async () => {
  using folder = scratch();
  await using d = await desk(folder.path);
  const long = "x".repeat(60_000);
  const { last } = await d.execute({ id: "c1", verb: long, caller: ANONYMOUS });
  await d.execute({ id: "c2", verb: "cut", args: { [long]: 1 } });
  expect(JSON.stringify(last).length).toBeLessThan(1000);
  expect(Math.max(...d.logged.map((line) => line.length))).toBeLessThan(1000);
  expect(Math.max(...d.lines().map((line) => line.length))).toBeLessThan(2000);
});
