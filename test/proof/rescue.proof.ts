/** The programs of the rescue, cut in every way in the one sector that they write: `bun run check` makes a third of the cuts. */
import { expect, test } from "bun:test";
import { BUSYBOX, NEEDS_BUSYBOX } from "../shell.ts";
import { CUT_RUNS, cutRun } from "../tears.ts";

for (const run of CUT_RUNS)
  test.skipIf(!BUSYBOX)(
    `16 power: a cut in 'fruit-records ${run.words.join(" ")}', its one sector torn in every way: what counted counts still, and the same again ends the same${NEEDS_BUSYBOX}`,
    async () => {
      expect(await cutRun(run, () => true)).toBe(11);
    },
  );
