/**
 * An update broken at its steps: the same sample of the cases every time; test/proof/crash-disk.proof.ts has all of them.
 * `FRUIT_CRASH=CASE bun test ./test/crash-disk.test.ts` makes one again.
 */
import { expect, setDefaultTimeout, test } from "bun:test";
import { ASKED, examine, sample } from "./crash/cases.ts";
import { SCENARIOS } from "./crash/scenarios.ts";

setDefaultTimeout(120_000);

const wanted = ASKED === undefined ? sample : (name: string) => name === ASKED;

test.each(SCENARIOS.filter(({ name }) => ASKED?.startsWith(`${name}/`) ?? true))(
  "whatever a power cut or a failing card leaves of the update '$name', a whole system starts and can be updated",
  async (scenario) => {
    const { cases, wrong } = await examine(scenario, wanted);
    expect(cases).toBeGreaterThan(0);
    expect(wrong).toEqual([]);
  },
);
