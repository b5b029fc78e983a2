/** The README's first command as a stranger runs it: a fresh clone, an empty home, Node and npm and nothing else on the PATH. */
import { expect, test } from "bun:test";
import { mkdirSync, symlinkSync } from "node:fs";
import { join } from "node:path";
import { $ } from "bun";
import { scratch } from "../node.ts";

const root = join(import.meta.dir, "../..");
const HAS_NPX = Boolean(Bun.which("npx"));

test.skipIf(!HAS_NPX)(
  `the demo runs from a fresh clone with an empty home ${HAS_NPX ? "" : "[needs npx: apt-get install npm]"}`.trim(),
  async () => {
    using folder = scratch();
    const clone = join(folder.path, "clone");
    const home = join(folder.path, "home");
    const bin = join(folder.path, "bin");
    for (const path of [home, bin]) mkdirSync(path);
    await $`git clone -q ${root} ${clone}`;
    // Just what such a machine has: the shell's own tools, Node, npm
    for (const program of ["node", "npm", "npx", "sh", "env", "git", "uname"]) {
      const path = Bun.which(program);
      if (path) symlinkSync(path, join(bin, program));
    }
    const registry = Object.fromEntries(
      Object.entries(process.env).filter(([name]) => /^npm_config_|proxy$|^NODE_EXTRA/i.test(name)),
    );
    const readme = await Bun.file(join(clone, "README.md")).text();
    const line = /npx -y bun@\S+ run demo/.exec(readme)?.[0] ?? "no demo in the README";
    const demo = Bun.spawn([...line.split(" "), "--for", "5"], {
      cwd: clone,
      env: { ...registry, HOME: home, PATH: bin } as Record<string, string>,
      stdout: "pipe",
      stderr: "pipe",
    });
    const [out, err, exit] = await Promise.all([
      new Response(demo.stdout).text(),
      new Response(demo.stderr).text(),
      demo.exited,
    ]);
    expect({ exit, err: exit === 0 ? "" : err }).toEqual({ exit: 0, err: "" });
    expect(out).toContain("8 nodes were online");
  },
);
