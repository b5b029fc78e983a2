/** What an update of real packages costs on the wire when the old slot is there. */
import { expect, test } from "bun:test";
import { join } from "node:path";
import { scratch } from "../node.ts";
import { installOver } from "../packages/over.ts";
import { FORTNIGHT, findPair, makeSystem } from "../packages/pair.ts";

const pair = await findPair();
const skipped = typeof pair === "string" ? ` [needs: ${pair}]` : "";

test.skipIf(typeof pair === "string")(
  `a fortnight of Debian's security updates costs 7 % of the payload at most, any of them 1.1 times their chunks${skipped}`,
  async () => {
    if (typeof pair === "string") throw new Error(pair);
    using folder = scratch();
    const at = (name: string) => join(folder.path, name);
    const cases = [
      { what: "a fortnight", newer: FORTNIGHT },
      { what: "all since the point release", newer: pair.changed },
    ];
    await makeSystem(at("before"), pair, []);
    const shares: number[] = [];
    for (const { what, newer } of cases) {
      await makeSystem(at("after"), pair, newer);
      const { size, chunks, changed, fetched, seconds, grownMib } = await installOver(
        folder.path,
        at("before"),
        at("after"),
      );
      const mb = (bytes: number) => (bytes / 1e6).toFixed(1);
      process.stderr.write(
        `${what}: ${newer.length} of ${pair.versions.size} packages; ${mb(size)} MB in ${chunks} chunks, those changed ${mb(changed)} MB, ` +
          `fetched ${mb(fetched)} MB: ${((fetched / size) * 100).toFixed(2)} % of the payload, ${(fetched / changed).toFixed(3)} times the changed chunks; ` +
          `the rest copied in ${seconds.toFixed(2)} s, with ${grownMib.toFixed(1)} MiB more memory\n`,
      );
      expect(fetched).toBeLessThanOrEqual(1.1 * changed);
      // Never all of it: what JavaScriptCore has not yet freed comes and goes
      expect(grownMib * 1_048_576).toBeLessThan(size / 2);
      shares.push(fetched / size);
    }
    expect(shares[0]).toBeLessThanOrEqual(0.07);
  },
  600_000,
);
