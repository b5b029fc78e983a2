import { expect, test } from "bun:test";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { holdFolder } from "../agent/hold.ts";
import { scratch } from "./node.ts";

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
  { what: "a process that is gone", left: "4194305 17\n" },
  { what: "a process whose number was given to another", left: "1 999999999999\n" },
  { what: "nobody, torn by a power cut", left: "" },
])("what $what left is replaced", ({ left }) => {
  using folder = scratch();
  writeFileSync(join(folder.path, "agent.pid"), left);
  using _held = holdFolder(folder.path);
  expect(readFileSync(join(folder.path, "agent.pid"), "utf8")).toStartWith(`${process.pid} `);
});

test("of many that start together on a stale hold exactly one gets it", async () => {
  using folder = scratch();
  writeFileSync(join(folder.path, "agent.pid"), "4194305 17\n");
  const script = `import { holdFolder } from ${JSON.stringify(HOLD)};
    try { using held = holdFolder(${JSON.stringify(folder.path)}); console.log("held"); await Bun.sleep(1500); }
    catch (error) { console.log(error.exit); }`;
  const children = Array.from({ length: 6 }, () =>
    Bun.spawn([process.execPath, "-e", script], { stdout: "pipe", stderr: "inherit" }),
  );
  const said = await Promise.all(children.map((child) => new Response(child.stdout).text()));
  expect(said.map((text) => text.trim()).sort()).toEqual(["3", "3", "3", "3", "3", "held"]);
}, 15_000);
