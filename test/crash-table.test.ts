/**
 * Every case that an updater must survive has a test whose title begins with its number: this one fails for a number that has none.
 * Cases of one row of the table may stand together, as in "25, 26 medium: …".
 */
import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";

/** Where titles have numbers, and which must be there, by what chooses the slot: a case of the one is none of the other. */
const SWITCHES = {
  uboot: {
    files: [
      "crash-medium.test.ts",
      "crash-power.test.ts",
      "late.test.ts",
      "proof/crash-failpoints.proof.ts",
      "proof/writer.proof.ts",
      "rescue.test.ts",
      "trial.test.ts",
      "writer.test.ts",
    ],
    rows: {
      Power: [[1, 17]],
      Medium: [[18, 28]],
      Trial: [[39, 53]],
      Process: [[54, 63]],
      Sizes: [[76, 76]],
    },
  },
  // What is not numbered here has no other course than with U-Boot: slots, records, writer and trial are the same code
  tryboot: {
    files: ["tryboot-crash.test.ts", "tryboot-fat.test.ts", "tryboot-probe.test.ts", "tryboot.test.ts"],
    rows: {
      Power: [
        [13, 13],
        [15, 17],
      ],
      Medium: [
        [19, 19],
        [25, 25],
      ],
      "Boot firmware": [[29, 38]],
    },
  },
} as const;

/**
 * A title of a test, or a row of a table of titles: `test("1 power: …`, `test.each(…)("1 …`, `what: "1 …`, `["1 …`. What a test
 * expects or says elsewhere is none, whatever it begins with.
 */
const TITLE =
  /(?:\b(?:test|check)\(\s*|\)\(\s*|\bwhat: |^\s*\[\s*)["'`](\d{1,2}(?:, \d{1,2})*)(?:: | [a-zA-Z])[^"'`\n]{6,}/gm;

/** The numbers that stand in titles. */
function numbersIn(text: string): Set<number> {
  return new Set([...text.matchAll(TITLE)].flatMap(([, all = ""]) => all.split(", ").map(Number)));
}

test.each(
  Object.entries(SWITCHES).flatMap(([kind, { files, rows }]) =>
    Object.entries(rows).map(([row, ranges]) => ({ kind, row, ranges, files })),
  ),
)("every case of $row that is $kind's has a test", ({ files, ranges }) => {
  const text = files.map((file) => readFileSync(join(import.meta.dir, file), "utf8")).join("\n");
  const all = numbersIn(text);
  const wanted = (ranges as readonly (readonly [number, number])[]).flatMap(([first, last]) =>
    Array.from({ length: last - first + 1 }, (_, at) => first + at),
  );
  expect(wanted.filter((number) => !all.has(number))).toEqual([]);
});

test("only titles count", () => {
  const titles = [
    'test("7 power: a cut after arming", async () => {',
    'test("25: a damaged table", () => {',
    'test.each(POINTS.filter((name) => name))(\n  "54 killed at %s, what starts is whole",',
    '    what: "31: with another tryboot.txt",',
    '  ["40 hang before the watchdog driver", false],',
    '  [\n    "41 verdict of a hang",',
    "  \"25, 26 medium: during '$name' nothing\",".replace("  ", ")("),
  ];
  expect([...numbersIn(titles.join("\n"))].sort((one, other) => one - other)).toEqual([
    7, 25, 26, 31, 40, 41, 54,
  ]);
  const others = [
    '    says: "2 files such as FSCK0000.REC, which a repair left",',
    '  await expect(writer.finish()).rejects.toThrow("3 of 64 leaves are missing");',
    '  expect(node.reboot("4 tryboot once more")).toBe("a");',
    '    what: "5, which leaves it to the firmware,",',
    '  { what: "2^31 - 1", size: 6 },',
  ];
  expect([...numbersIn(others.join("\n"))]).toEqual([]);
});
