/** What each executable has to prove, wherever it runs. */
import { expect } from "bun:test";
import { copyFileSync, existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { BUILD } from "../agent/version.ts";
import { type Executable, fruit, SOURCES, scratch } from "./node.ts";

/** An emulated executable needs several times what a native one needs, milliseconds. */
export const LIMIT_MS = 60_000;
/** The one that has to be emulated; its longer proofs are in test/proof/executable.proof.ts. */
export const isEmulated = ({ name }: Executable) => name.includes("emulated");

/** A title with what would have to be installed. */
export const titled = (title: string, { missing }: Executable) =>
  missing ? `${title} [needs: ${missing}]` : title;

const IS_CHECKOUT = existsSync(join(import.meta.dir, "../.git"));

/** It says its version and commit, and reads no .env or bunfig.toml of the folder. */
export async function saysItself(executable: Executable): Promise<void> {
  using folder = scratch();
  folder.file(".env", "FRUIT_CONFIG=/nowhere/from-dotenv.json\n");
  folder.file("bunfig.toml", 'preload = ["./poison.ts"]\n');
  folder.file("poison.ts", 'process.stdout.write("poisoned");\n');
  const { exit, out } = await fruit(["version", "--json"], { executable, cwd: folder.path });
  expect(exit).toBe(0);
  const facts = JSON.parse(out);
  expect(facts).toMatchObject({ schema: "fruit.version/1", version: BUILD.version });
  expect(facts.commit).toMatch(IS_CHECKOUT ? /^[0-9a-f]{7,}\+?$/ : /^unknown$/);
  const check = await fruit(["config", "check"], { executable, cwd: folder.path });
  expect(check.err).toContain("/etc/fruit/node.json");
  expect(check.err).not.toContain("dotenv");
}

/** It carries its threads and C calls. */
export async function carriesNative(executable: Executable): Promise<void> {
  using folder = scratch();
  // As on a node: one file, somewhere else
  const last = executable.command.length - 1;
  const isFile = executable !== SOURCES;
  const alone = join(folder.path, "fruit");
  if (isFile) copyFileSync(executable.command[last] ?? "", alone);
  const command = isFile ? executable.command.with(last, alone) : executable.command;
  const { out, err } = await fruit(["doctor", "--json"], {
    executable: { ...executable, command },
    cwd: folder.path,
    env: { HOME: "/nowhere" },
  });
  expect(err).toBe("");
  const checks = JSON.parse(out).checks as { name: string; level: string }[];
  expect(checks.find(({ name }) => name === "native")).toMatchObject({ level: "ok" });
  expect(readdirSync(folder.path)).toEqual(isFile ? ["fruit"] : []);
}
