/**
 * Compiles the executables: `bun run build [-- TARGET…]` makes `dist/fruit-linux-{arm64,x64}[-musl]`.
 * One file each, minified, with bytecode, version and commit inside; it reads no `.env` or `bunfig.toml` of
 * whatever folder it is started in (it runs as root).
 */
import { mkdir, stat } from "node:fs/promises";
import { join } from "node:path";
import { $ } from "bun";

/** Everything the agent runs on. */
export const TARGETS = ["arm64-musl", "x64-musl", "arm64", "x64"] as const;
export type Target = (typeof TARGETS)[number];

const root = join(import.meta.dir, "..");

/** What goes into every executable, and how; the same sources give the same bytes. */
export const BUNDLE = {
  // The second is started as a thread: hal/native/threads.ts
  entrypoints: [join(root, "agent/main.ts"), join(root, "hal/native/worker.ts")],
  // Used under Node only (hal/native/runtime.ts): their `.node` files are of no use here
  external: ["bindings-of-node", "@serialport/bindings-cpp"],
  minify: true,
  format: "esm" as const,
};

/** Builds one executable and returns its path. Throws with the compiler's words when it does not build. */
export async function build(target: Target): Promise<string> {
  const outfile = join(root, "dist", `fruit-linux-${target}`);
  await mkdir(join(root, "dist"), { recursive: true });
  const facts = await provenance();
  const result = await Bun.build({
    ...BUNDLE,
    compile: {
      target: `bun-linux-${target}` as Bun.Build.CompileTarget,
      outfile,
      autoloadDotenv: false,
      autoloadBunfig: false,
      autoloadPackageJson: false,
      autoloadTsconfig: false,
    },
    bytecode: true,
    define: { FRUIT_BUILD: JSON.stringify(facts) },
    throw: false,
  });
  if (!result.success) throw new Error(`${target}: ${result.logs.map(String).join("\n")}`);
  return outfile;
}

/** What `fruit version` prints. The time is the commit's, so that the same sources give the same bytes. */
export async function provenance(): Promise<{ commit: string; time: number }> {
  const git = await $`git -C ${root} log -1 --format=%h,%ct`.nothrow().quiet();
  const [commit = "unknown", time = "0"] = git.exitCode === 0 ? git.text().trim().split(",") : [];
  const dirty =
    git.exitCode === 0 && (await $`git -C ${root} status --porcelain`.nothrow().quiet()).text() !== "";
  return { commit: dirty ? `${commit}+` : commit, time: Number(time) };
}

if (import.meta.main) {
  const asked = process.argv.slice(2);
  const unknown = asked.filter((name) => !TARGETS.includes(name as Target));
  if (unknown.length > 0) {
    process.stderr.write(`build: no target ${unknown.join(", ")}; there are ${TARGETS.join(", ")}\n`);
    process.exitCode = 2;
  } else {
    for (const target of asked.length > 0 ? (asked as Target[]) : TARGETS) {
      const file = await build(target);
      process.stdout.write(`${file}  ${Math.round((await stat(file)).size / 1e6)} MB\n`);
    }
  }
}
