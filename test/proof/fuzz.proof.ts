/** Every parser of foreign bytes again, with many times the mutations of the everyday run; and whole what that only samples. */
import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { Glob } from "bun";

const root = join(import.meta.dir, "../..");
const MUTATIONS = "200000";

const files = [...new Glob("test/*.test.ts").scanSync(root)]
  .filter((file) => readFileSync(join(root, file), "utf8").match(/FRUIT_FUZZ|MUTATIONS|fuzz/))
  .sort();

test.each(files)("%s holds with 200,000 mutations of each input", async (file) => {
  const child = Bun.spawn([process.execPath, "test", "--only-failures", "--timeout=500000", `./${file}`], {
    cwd: root,
    env: { ...process.env, FRUIT_FUZZ: MUTATIONS },
    stdout: "pipe",
    stderr: "pipe",
  });
  const [exit, said] = await Promise.all([child.exited, new Response(child.stderr).text()]);
  expect({ exit, said: exit === 0 ? "" : said }).toEqual({ exit: 0, said: "" });
});
