/**
 * Every case that an updater must survive has a test whose title begins with its number: this one fails for a number that has none.
 * Cases of one row of the table may stand together, as in "25, 26 medium: …".
 */
import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";

/** What is to be survived, by number: what of it is about slots, disks and starts. */
const ROWS: Record<string, [first: number, last: number][]> = {
  Power: [[1, 17]],
  Medium: [[18, 28]],
  "Boot firmware": [[29, 38]],
  Trial: [[39, 53]],
  Process: [[54, 63]],
  Sizes: [[76, 76]],
};

/** A title, or what stands in a table of titles, that begins with numbers. */
const NUMBERED = /["'`](\d{1,2}(?:, \d{1,2})*)[: ]\s?([^"'`\n]{8,})["'`]/g;

/** Whose titles have numbers. */
const FILES = [
  "proof/crash-failpoints.proof.ts",
  "crash-medium.test.ts",
  "crash-power.test.ts",
  "trial.test.ts",
  "tryboot-crash.test.ts",
  "tryboot-fat.test.ts",
  "tryboot-probe.test.ts",
  "tryboot.test.ts",
  "writer.test.ts",
];

/** The numbers that stand in titles. */
function numbers(): Set<number> {
  const text = FILES.map((file) => readFileSync(join(import.meta.dir, file), "utf8")).join("\n");
  return new Set([...text.matchAll(NUMBERED)].flatMap(([, all = ""]) => all.split(", ").map(Number)));
}

test.each(Object.entries(ROWS))("every case of %s has a test", (_, ranges) => {
  const all = numbers();
  const wanted = ranges.flatMap(([first, last]) =>
    Array.from({ length: last - first + 1 }, (_, at) => first + at),
  );
  expect(wanted.filter((number) => !all.has(number))).toEqual([]);
});
