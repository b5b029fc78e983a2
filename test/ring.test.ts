/** What a line said last, and everybody's own place in it. */
import { expect, test } from "bun:test";
import type { Item } from "../agent/console/port.ts";
import { Cursor, Ring } from "../agent/console/ring.ts";
import { seeded } from "./fakes.ts";
import { FUZZ } from "./sim.ts";

const bytes = (text: string) => Buffer.from(text, "latin1");
const text = (some: Uint8Array) => Buffer.from(some).toString("latin1");
const mark = (text: string) => ({ at: 0, kind: "notice" as const, text });

function shown(item: Item | undefined): string {
  if (item?.kind === "bytes") return text(item.bytes);
  return item?.kind === "mark" ? `[${item.mark.text}]` : "";
}

/** Everything that a cursor has to show. */
function read(cursor: Cursor): string {
  let all = "";
  for (let item = cursor.next(); item; item = cursor.next()) all += shown(item);
  return all;
}

const filled = (size: number, ...chunks: string[]) => {
  const ring = new Ring(size);
  for (const chunk of chunks) ring.push(bytes(chunk), 0);
  return ring;
};

test.each([
  { lines: 1, from: "three\n" },
  { lines: 2, from: "two\nthree\n" },
  { lines: 3, from: "one\ntwo\nthree\n" },
  { lines: 9, from: "one\ntwo\nthree\n" },
  { lines: 0, from: "" },
])("the last $lines lines of whole lines", ({ lines, from }) => {
  const ring = filled(64, "one\ntwo\nthree\n");
  expect(text(ring.slice(ring.linesBack(lines), ring.end))).toBe(from);
});

test.each([
  { said: "one\ntwo\nlogin: ", lines: 1, from: "login: " },
  { said: "one\ntwo\nlogin: ", lines: 2, from: "two\nlogin: " },
  { said: "\n\n\n", lines: 2, from: "\n\n" },
  { said: "no end", lines: 1, from: "no end" },
  { said: "", lines: 5, from: "" },
])("the last $lines lines of $said", ({ said, lines, from }) => {
  const ring = filled(64, said);
  expect(text(ring.slice(ring.linesBack(lines), ring.end))).toBe(from);
});

test("lines are found wherever the ring has gone round", () => {
  for (let shift = 0; shift < 16; shift++) {
    const ring = filled(16, "x".repeat(shift), "ab\ncde\nfg\n");
    const last = (lines: number) => text(ring.slice(ring.linesBack(lines), ring.end));
    expect(last(1)).toBe("fg\n");
    expect(last(2)).toBe("cde\nfg\n");
    // The first line is the x's, as many of them as are kept
    expect(last(3)).toBe(`${"x".repeat(Math.min(6, shift))}ab\ncde\nfg\n`);
  }
});

test("it always holds the newest bytes, by a model, whatever the chunks", () => {
  const random = seeded(7);
  const ring = new Ring(97);
  let model = "";
  for (let round = 0; round < Math.min(FUZZ, 20_000); round++) {
    const length = Math.floor(random() ** 3 * 250);
    const chunk = Uint8Array.from({ length }, () => (random() < 0.1 ? 10 : Math.floor(random() * 256)));
    ring.push(chunk, round);
    model = (model + text(chunk)).slice(-97);
    expect(text(ring.slice(ring.start, ring.end))).toBe(model);
    const lines = Math.floor(random() * 6);
    const ended = model.endsWith("\n") ? model.slice(0, -1) : model;
    const wanted = lines === 0 ? "" : ended.split("\n").slice(-lines).join("\n") + model.slice(ended.length);
    expect(text(ring.slice(ring.linesBack(lines), ring.end))).toBe(wanted);
  }
});

test("what is handed over is a copy: bytes that come later do not change it", () => {
  const ring = filled(8, "abcdefgh");
  const cursor = new Cursor(ring, 0, 8);
  const item = cursor.next();
  ring.push(bytes("ABCDEFGH"), 0);
  expect(shown(item)).toBe("abcdefgh");
});

test("a mark stands where it was set, for everybody who reads from before it", () => {
  const ring = new Ring(64);
  const early = new Cursor(ring, 0, 64);
  ring.push(bytes("boot"), 0);
  ring.mark(mark("power: off"));
  ring.push(bytes("ing"), 0);
  ring.mark(mark("one"));
  ring.mark(mark("two"));
  expect(read(early)).toBe("boot[power: off]ing[one][two]");
  expect(read(new Cursor(ring, 0, 64))).toBe("boot[power: off]ing[one][two]");
  expect(read(new Cursor(ring, 4, 64))).toBe("[power: off]ing[one][two]");
  expect(read(new Cursor(ring, 5, 64))).toBe("ng[one][two]");
  expect(read(new Cursor(ring, ring.end, 64))).toBe("");
  ring.mark(mark("three"));
  expect(read(early)).toBe("[three]");
});

test("bytes are shown with the time at which they came, to 20 ms", () => {
  const ring = new Ring(64);
  const cursor = new Cursor(ring, 0, 64);
  ring.push(bytes("a"), 1000);
  ring.push(bytes("b"), 1019);
  ring.push(bytes("c"), 1020);
  ring.push(bytes("d"), 5000);
  // The clock was set back
  ring.push(bytes("e"), 200);
  const items = [cursor.next(), cursor.next(), cursor.next(), cursor.next(), cursor.next()];
  expect(items.map((item) => item?.kind === "bytes" && [shown(item), item.at])).toEqual([
    ["ab", 1000],
    ["c", 1020],
    ["d", 5000],
    ["e", 200],
    false,
  ]);
});

test("bytes whose time is forgotten are shown without one", () => {
  const ring = new Ring(65_536);
  for (let n = 0; n < 5000; n++) ring.push(bytes("x"), n * 1000);
  const cursor = new Cursor(ring, 0, 65_536);
  const [first, second] = [cursor.next(), cursor.next()];
  expect(first).toEqual({ kind: "bytes", bytes: new Uint8Array(904).fill(120) });
  expect(second).toMatchObject({ at: 904_000, bytes: Uint8Array.of(120) });
});

test("who is too slow is told exactly how much was skipped, there, and is shown the rest", () => {
  const ring = new Ring(1000);
  const cursor = new Cursor(ring, 0, 10);
  ring.push(bytes("0123456789"), 0);
  expect(read(cursor)).toBe("0123456789");
  ring.push(bytes("abcdefghij"), 0);
  expect(cursor.skipped).toBe(0);
  ring.push(bytes("klm"), 0);
  expect(cursor.skipped).toBe(3);
  ring.push(bytes("no"), 0);
  expect(read(cursor)).toBe("[5 bytes skipped]fghijklmno");
  ring.push(bytes("x".repeat(5000)), 0);
  expect(read(cursor)).toBe(`[4990 bytes skipped]${"x".repeat(10)}`);
  expect(cursor.skipped).toBe(4995);
});

test("marks are shown even where the bytes around them were skipped", () => {
  const ring = new Ring(1000);
  const cursor = new Cursor(ring, 0, 10);
  ring.push(bytes("a".repeat(30)), 0);
  ring.mark(mark("power: off"));
  ring.push(bytes("b".repeat(30)), 0);
  expect(read(cursor)).toBe(`[50 bytes skipped][power: off]${"b".repeat(10)}`);
});

test("a replay may be longer than what may wait; what comes meanwhile may not", () => {
  const ring = filled(100, "a".repeat(80));
  const cursor = new Cursor(ring, 0, 10);
  expect(cursor.isReplaying).toBe(true);
  ring.push(bytes("0123456789"), 0);
  expect(cursor.skipped).toBe(0);
  ring.push(bytes("x"), 0);
  expect(read(cursor)).toBe("[81 bytes skipped]123456789x");
  expect(cursor.isReplaying).toBe(false);
  cursor.rewind(50);
  expect(cursor.isReplaying).toBe(true);
  expect(read(cursor)).toBe(`${"a".repeat(30)}0123456789x`);
});

test("reading on from an earlier place never skips what waits, bytes or marks", () => {
  const ring = filled(1000, "a\n");
  const cursor = new Cursor(ring, 0, 100);
  ring.mark(mark("one"));
  ring.push(bytes("b\nc\n"), 0);
  ring.mark(mark("two"));
  ring.push(bytes("d\n"), 0);
  cursor.rewind(ring.linesBack(1));
  expect(read(cursor)).toBe("a\n[one]b\nc\n[two]d\n");
});

test("a replay that the ring overtakes loses what was overwritten, counted", () => {
  const ring = filled(20, "a".repeat(20));
  const cursor = new Cursor(ring, 0, 10);
  ring.push(bytes("bbbb"), 0);
  expect(read(cursor)).toBe(`[4 bytes skipped]${"a".repeat(16)}bbbb`);
});

test("however a slow reader reads, shown and skipped add up to all that came", () => {
  const random = seeded(11);
  const ring = new Ring(300);
  const cursor = new Cursor(ring, 0, 100);
  let shownBytes = 0;
  let told = 0;
  const take = (item: Item | undefined) => {
    if (item?.kind === "bytes") shownBytes += item.bytes.length;
    if (item?.kind === "mark")
      told += /^(\d+) bytes skipped$/.test(item.mark.text) ? Number.parseInt(item.mark.text, 10) : 0;
    return item !== undefined;
  };
  for (let round = 0; round < 5000; round++) {
    ring.push(new Uint8Array(Math.floor(random() * 60)), round * 7);
    if (random() < 0.05) ring.mark(mark("m"));
    if (random() < 0.5) take(cursor.next());
  }
  while (take(cursor.next()));
  expect(told).toBe(cursor.skipped);
  expect(told).toBeGreaterThan(1000);
  expect(shownBytes + told).toBe(ring.end);
});

test("marks without end take no memory without end, and the newest are kept", () => {
  const ring = new Ring(16);
  const cursor = new Cursor(ring, 0, 16);
  for (let n = 0; n < 2000; n++) ring.mark(mark(`${n}`));
  const all = read(cursor);
  expect(all.match(/\[/g)?.length).toBe(512);
  expect(all).toEndWith("[1999]");
});
