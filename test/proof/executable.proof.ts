/** The executable that has to be emulated here: what test/executable.test.ts and test/native.test.ts prove of the others. */
import { test } from "bun:test";
import { SHIPPED } from "../node.ts";
import { carriesNative, isEmulated, LIMIT_MS, saysItself, titled } from "../shipped.ts";

for (const executable of SHIPPED.filter(isEmulated)) {
  const proof = test.skipIf(executable.missing !== undefined);

  proof(
    titled(`${executable.name}: says its version and commit, and reads no .env or bunfig.toml`, executable),
    () => saysItself(executable),
    LIMIT_MS,
  );

  proof(
    titled(`${executable.name}: carries its threads and C calls`, executable),
    () => carriesNative(executable),
    LIMIT_MS,
  );
}
