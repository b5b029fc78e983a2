/** Programs of the tests for inside the machines, made as the product is: one executable for musl. */
import { join } from "node:path";
import { BUNDLE } from "../../image/build.ts";
import type { Arch } from "./cache.ts";

const root = join(import.meta.dir, "../..");

/** What Bun calls them. */
const ARCHES = { amd64: "x64", arm64: "arm64" };

/** The product's own executable for a machine. */
export function shipped(arch: Arch): string {
  return join(root, `dist/fruit-linux-${ARCHES[arch]}-musl`);
}

/** Compiles `test/guest/<name>.ts` as the product is; returns the executable. */
export async function compileGuest(name: string, arch: Arch): Promise<string> {
  const outfile = join(root, `dist/guest-${name}-${arch}`);
  const [, thread = ""] = BUNDLE.entrypoints;
  const result = await Bun.build({
    ...BUNDLE,
    entrypoints: [join(root, `test/guest/${name}.ts`), thread],
    compile: { target: `bun-linux-${ARCHES[arch]}-musl` as Bun.Build.CompileTarget, outfile },
    throw: false,
  });
  if (!result.success) throw new Error(`${name}: ${result.logs.map(String).join("\n")}`);
  return outfile;
}
