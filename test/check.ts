/** `bun run check`: lint, types, the executables, every test. */
import { close, step, tests } from "./report.ts";

const bin = "node_modules/.bin";
close([
  await step("lint", [process.execPath, `${bin}/biome`, "check", "--error-on-warnings"]),
  await step("types", [process.execPath, `${bin}/tsc`]),
  await step("build", [
    process.execPath,
    "image/build.ts",
    "x64-musl",
    "arm64-musl",
    ...(process.arch === "x64" ? ["x64"] : ["arm64"]),
  ]),
  await tests("test/*.test.ts", ["--parallel", "--only-failures", "--timeout=20000"]),
]);
