import { expect, test } from "bun:test";
import { existsSync, readFileSync, readlinkSync, symlinkSync } from "node:fs";
import { join } from "node:path";
import { holdFolder } from "../agent/hold.ts";
import { scratch } from "./node.ts";

const BOOT = readFileSync("/proc/sys/kernel/random/boot_id", "utf8").slice(0, 13);
const START = readFileSync("/proc/self/stat", "utf8").split(") ").at(-1)?.split(" ")[19];
const HOLD = join(import.meta.dir, "../agent/hold.ts");

test("a folder is held once, and free again when let go", () => {
  using folder = scratch();
  {
    using _held = holdFolder(folder.path);
    expect(() => holdFolder(folder.path)).toThrow(`another agent is running there, process ${process.pid}`);
  }
  expect(existsSync(join(folder.path, "agent.pid"))).toBe(false);
  using _again = holdFolder(folder.path);
});

test.each([
  { what: "a process that is gone", left: `4194305 gone-too ${BOOT}` },
  { what: "a process whose number was given to another", left: `1 999999999999 ${BOOT}` },
  { what: "the same process of an earlier boot", left: `${process.pid} ${START} 00000000-0000` },
])("what $what left is replaced", ({ left }) => {
  using folder = scratch();
  symlinkSync(left, join(folder.path, "agent.pid"));
  using _held = holdFolder(folder.path);
  expect(readlinkSync(join(folder.path, "agent.pid"))).toBe(`${process.pid} ${START} ${BOOT}`);
});

test("a file of that name is replaced", () => {
  using folder = scratch();
  folder.file("agent.pid", "12\n");
  using _held = holdFolder(folder.path);
  expect(readlinkSync(join(folder.path, "agent.pid"))).toStartWith(`${process.pid} `);
});

test("of many that start together on a stale hold exactly one gets it", async () => {
  using folder = scratch();
  symlinkSync(`4194305 17 ${BOOT}`, join(folder.path, "agent.pid"));
  const script = `import { holdFolder } from ${JSON.stringify(HOLD)};
    try { using held = holdFolder(${JSON.stringify(folder.path)}); console.log("held"); await Bun.stdin.text(); }
    catch (error) { console.log(error.exit); }`;
  const children = Array.from({ length: 6 }, () =>
    Bun.spawn([process.execPath, "-e", script], { stdin: "pipe", stdout: "pipe", stderr: "inherit" }),
  );
  // Everybody has said what came of it before the one that holds is let go.
  const readers = children.map((child) => child.stdout.getReader());
  const said = await Promise.all(
    readers.map(async (reader) => new TextDecoder().decode((await reader.read()).value).trim()),
  );
  for (const child of children) child.stdin.end();
  await Promise.all(children.map((child) => child.exited));
  expect(said.sort()).toEqual(["3", "3", "3", "3", "3", "held"]);
}, 15_000);
