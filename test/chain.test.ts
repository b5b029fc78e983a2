/** What `fruit audit verify` says of a log that somebody changed: every line, every way. */
import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Audit, type AuditOptions } from "../agent/record/audit.ts";
import { verifyAudit } from "../agent/record/chain.ts";

const home = mkdtempSync(join(tmpdir(), "fruit-chain-"));
afterAll(() => rmSync(home, { recursive: true, force: true }));
const newDir = () => mkdtempSync(join(home, "log-"));

/** A log of as many lines, closed. */
async function written(dir: string, count: number, options: Partial<AuditOptions> = {}): Promise<void> {
  const audit = await Audit.open(dir, { boot: "b-1", clock: () => "synced", ...options });
  const entry = { src: "mqtt", who: "key:alice@desk", verb: "power.off", decision: "allowed" } as const;
  for (let n = 1; n <= count; n++) await audit.append({ ...entry, id: `c-${n}` }, { durable: false });
  await audit.close();
}

const linesOf = (dir: string) => readFileSync(join(dir, "audit.jsonl"), "utf8").trimEnd().split("\n");
const putLines = (dir: string, lines: string[]) =>
  writeFileSync(join(dir, "audit.jsonl"), lines.map((line) => `${line}\n`).join(""));

const COUNT = 8;
/** Eight lines, meddled with; what verify says of it. */
async function meddled(meddle: (lines: string[]) => string[]): Promise<string[]> {
  const dir = newDir();
  await written(dir, COUNT);
  putLines(dir, meddle(linesOf(dir)));
  return (await verifyAudit(dir)).problems.map(({ file, line, why }) => `${file} ${line} ${why}`);
}
const forge = (line: string, changes: object) => JSON.stringify({ ...JSON.parse(line), ...changes });

test("any changed line is named", async () => {
  for (let at = 0; at < COUNT - 1; at++) {
    for (const changes of [{ who: "local:root" }, { seq: 99 }, { prev: "f".repeat(64) }, { seq: "x" }]) {
      expect(await meddled((lines) => lines.with(at, forge(lines[at]!, changes)))).toEqual([
        `audit.jsonl ${at + 1} changed: it is not the line that the next one follows`,
      ]);
    }
  }
});

test("any removed line is named by the line it is missing above", async () => {
  for (let at = 0; at < COUNT - 1; at++)
    expect(await meddled((lines) => lines.toSpliced(at, 1))).toEqual([
      `audit.jsonl ${at + 1} removed: seq ${at + 1} is missing above this line`,
    ]);
  expect(await meddled((lines) => lines.toSpliced(2, 3))).toEqual([
    "audit.jsonl 3 removed: seq 3 to 5 are missing above this line",
  ]);
});

test("any two neighbours that changed places are named", async () => {
  for (let at = 0; at < COUNT - 2; at++) {
    const said = await meddled((lines) => lines.with(at, lines[at + 1]!).with(at + 1, lines[at]!));
    expect(said).toEqual([`audit.jsonl ${at + 2} moved: seq ${at + 1} stands below seq ${at + 2}`]);
  }
});

test("any inserted line is named, a forged one and a copy alike", async () => {
  for (let at = 1; at < COUNT; at++) {
    for (const from of [0, 3, COUNT - 1]) {
      for (const changes of [{}, { who: "local:root" }, { seq: at + 1 }]) {
        const said = await meddled((lines) => lines.toSpliced(at, 0, forge(lines[from]!, changes)));
        const named = said.map((each) => each.split(":")[0]);
        // a copy beside its original cannot be told from it
        const isTwin = Object.keys(changes).length === 0 && (at === from || at === from + 1);
        const isSecondEnd = at === COUNT - 1 && from === COUNT - 1; // nor which of two ends is the true one
        if (isTwin || isSecondEnd)
          expect(named.join()).toMatch(new RegExp(`^audit.jsonl (${from + 1}|${from + 2}) inserted$`));
        else expect(named).toEqual([`audit.jsonl ${at + 1} inserted`]);
      }
    }
  }
});

test("several meddlings are named each", async () => {
  const said = await meddled((lines) => {
    lines[1] = forge(lines[1]!, { who: "local:root" });
    lines[6] = "rubbish";
    return lines.toSpliced(4, 1);
  });
  expect(said).toEqual([
    "audit.jsonl 2 changed: it is not the line that the next one follows",
    "audit.jsonl 5 removed: seq 5 is missing above this line",
    "audit.jsonl 6 changed: it is not the line that the next one follows",
  ]);
});

test("a line behind the end that does not follow it is named", async () => {
  const appended = await meddled((lines) => [...lines, forge(lines[2]!, { seq: COUNT + 1 })]);
  expect(appended).toEqual([`audit.jsonl ${COUNT + 1} inserted: no line below it leads to it`]);
});

test("a file that is missing is named, unless it is the oldest that had to go", async () => {
  const dir = newDir();
  await written(dir, 40, { maxBytes: 2000 });
  const oldest = await verifyAudit(dir);
  expect(oldest.problems).toEqual([]);
  rmSync(join(dir, "audit.3.jsonl"));
  const [problem] = (await verifyAudit(dir)).problems;
  expect(problem).toMatchObject({
    file: "audit.2.jsonl",
    line: 1,
    why: expect.stringMatching(/^removed: seq 1 to \d+ are missing/),
  });
  const inner = newDir();
  await written(inner, 40, { maxBytes: 2000 });
  rmSync(join(inner, "audit.1.jsonl"));
  expect((await verifyAudit(inner)).problems).toEqual([
    {
      file: "audit.jsonl",
      line: 1,
      why: expect.stringMatching(/^removed: seq \d+ to \d+ are missing above this line$/),
    },
  ]);
});

test("the newest line, which no other line guards, is guarded by its note", async () => {
  const dir = newDir();
  await written(dir, 3);
  const lines = linesOf(dir);
  expect((await verifyAudit(dir)).problems).toEqual([]);
  putLines(dir, lines.slice(0, 2));
  expect((await verifyAudit(dir)).problems).toMatchObject([
    { line: 2, why: "removed: the log ends with seq 2, but seq 3 is known" },
  ]);
  putLines(dir, [...lines.slice(0, 2), (lines[2] ?? "").replace("power", "tower")]);
  expect((await verifyAudit(dir)).problems).toMatchObject([
    { line: 3, why: expect.stringContaining("changed: seq 3") },
  ]);
});

test("lines that are gone when the log is opened again are said in it", async () => {
  const dir = newDir();
  await written(dir, 3);
  putLines(dir, linesOf(dir).slice(0, 1));
  await written(dir, 1);
  const { problems } = await verifyAudit(dir);
  expect(problems).toEqual([]);
  expect(linesOf(dir)[1]).toContain('"verb":"audit.lost","args":{"noted":{"seq":3,');
});

test("a log that was cut or written anew is found out by the head that is known", async () => {
  const dir = newDir();
  await written(dir, 5);
  const { head } = await verifyAudit(dir);
  const lines = linesOf(dir);
  expect((await verifyAudit(dir, { head: head! })).problems).toEqual([]);
  rmSync(join(dir, "audit.head"));
  putLines(dir, lines.slice(0, 3));
  expect((await verifyAudit(dir)).problems).toEqual([]);
  expect((await verifyAudit(dir, { head: head! })).problems).toEqual([
    { file: "audit.jsonl", line: 3, why: "removed: the log ends with seq 3, but seq 5 is known" },
  ]);
  const anew = newDir();
  await written(anew, 6, { boot: "another" });
  expect((await verifyAudit(anew)).problems).toEqual([]);
  expect((await verifyAudit(anew, { head: head! })).problems[0]).toMatchObject({
    line: 5,
    why: expect.stringMatching(/^changed: seq 5 is known/),
  });
});
