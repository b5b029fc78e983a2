/**
 * Under Node i2c-bus and epoll get their own native parts through our package `bindings`: both are compiled here as
 * `npm rebuild` does it, in a folder of their own.
 */
import { expect, test } from "bun:test";
import { cpSync, existsSync, mkdirSync, realpathSync, symlinkSync } from "node:fs";
import { dirname, join } from "node:path";
import { needs, scratch } from "../node.ts";

const root = join(import.meta.dir, "../..");
const TOOLS = ["node", "npm", "python3", "make", "g++"].map((name) => ({
  name,
  install: { node: "nodejs", npm: "npm" }[name] ?? name,
}));
const node = Bun.which("node");
/** Where Node's own headers are, which need not be fetched then. */
const prefix = node === null ? "" : dirname(dirname(realpathSync(node)));
const hasHeaders = existsSync(join(prefix, "include/node/node.h"));
const { title, isSkipped } = needs("under Node both packages run on their own native parts", ...TOOLS);

test.skipIf(isSkipped || !hasHeaders)(
  hasHeaders ? title : `${title} [needs: Node's headers: apt-get install libnode-dev]`,
  async () => {
    using folder = scratch();
    const modules = join(folder.path, "node_modules");
    mkdirSync(modules);
    for (const name of ["i2c-bus", "epoll", "nan", "bindings-of-node", "file-uri-to-path"])
      cpSync(join(root, "node_modules", name), join(modules, name), { recursive: true, dereference: true });
    cpSync(join(root, "hal/native"), join(folder.path, "hal/native"), { recursive: true });
    symlinkSync("../hal/native/bindings", join(modules, "bindings"));
    folder.file("package.json", { private: true, type: "module" });
    const environment = { PATH: process.env.PATH ?? "", HOME: folder.path, npm_config_nodedir: prefix };
    const built = Bun.spawnSync(["npm", "rebuild", "--foreground-scripts", "i2c-bus", "epoll"], {
      cwd: folder.path,
      env: environment,
    });
    expect(built.stderr.toString()).not.toContain("npm error");
    const script = folder.file(
      "try.cjs",
      `const { openSync } = require("i2c-bus");
       const { Epoll } = require("epoll");
       const loaded = Object.keys(require.cache).filter((file) => file.endsWith(".node"));
       console.log(loaded.map((file) => file.slice(__dirname.length)).join(" "));
       console.log(openSync(1).constructor.name);
       require("bindings")("i2c.node").readByteAsync(0, 1, ({ code, syscall }) => console.log(code, syscall));
       const one = new Epoll((error, file, events) => {
         console.log(error, file, events & Epoll.EPOLLIN);
         one.remove(file).close();
       });
       setTimeout(() => one.add(0, Epoll.EPOLLIN), 200);`,
    );
    const ran = Bun.spawnSync(["sh", "-c", 'echo | exec node "$0"', script], { env: environment });
    expect(ran.stderr.toString()).toBe("");
    expect(ran.stdout.toString().trim().split("\n")).toEqual([
      "/node_modules/i2c-bus/build/Release/i2c.node /node_modules/epoll/build/Release/epoll.node",
      "Bus",
      "ENOTTY readByte",
      "null 0 1",
    ]);
    expect(ran.exitCode).toBe(0);
  },
  120_000,
);
