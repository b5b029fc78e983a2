/** `bun run check`: lint, types, the executables, every test. */
import { availableParallelism } from "node:os";
import { close, filesOf, step, tests } from "./report.ts";

const bin = "node_modules/.bin";
/** Test files at once: most of them wait most of the time. */
const AT_ONCE = 4 * availableParallelism();
const lint = step("lint", [process.execPath, `${bin}/biome`, "check", "--error-on-warnings"]);
const types = step("types", [process.execPath, `${bin}/tsc`]);
// Most tests start the executable of this machine
const built = await step("build", [
  process.execPath,
  "image/build.ts",
  "x64-musl",
  "arm64-musl",
  ...(process.arch === "x64" ? ["x64"] : ["arm64"]),
]);
const tested = await tests(filesOf("test/*.test.ts"), [
  "--randomize",
  `--parallel=${AT_ONCE}`,
  "--only-failures",
  "--timeout=60000",
]);
close([await lint, await types, built, tested]);
