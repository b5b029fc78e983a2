/** A program of the rescue that is cut in the one sector it writes: what that may hold then, and what comes of it. */
import { expect } from "bun:test";
import { RECORD_OFFSETS } from "../boot/layout.ts";
import { type BootRecord, encodeRecord } from "../boot/record.ts";
import { arm } from "../boot/slots.ts";
import { seeded } from "./fakes.ts";
import { both, card, newer, older, staged } from "./rescuecard.ts";

/** The newer release is on trial in slot b. */
const onTrial = arm(staged, "b", { id: 5, tries: 3 });

/** What `fruit-records` is asked for, and the records on the card, by their places. */
export const CUT_RUNS: readonly { words: string[]; records: readonly BootRecord[] }[] = [
  { words: ["repair"], records: [] },
  { words: ["use", "a"], records: [9, 7, 8, 6].map((sequence) => ({ ...onTrial, sequence })) },
  { words: ["fail", "b"], records: [9, 7, 8, 6].map((sequence) => ({ ...both, sequence })) },
];

/** What a sector may hold that was being written when the power failed. */
function* tears(old: Uint8Array, now: Uint8Array): Generator<[what: string, sector: Uint8Array]> {
  const random = seeded(16);
  yield ["not written", old];
  yield ["written", now];
  for (const at of [9, 256, 509]) {
    yield [`new up to ${at}`, Buffer.concat([now.subarray(0, at), old.subarray(at)])];
    yield [`old up to ${at}`, Buffer.concat([old.subarray(0, at), now.subarray(at)])];
  }
  yield ["zeros", new Uint8Array(512)];
  yield ["ones", new Uint8Array(512).fill(0xff)];
  yield ["random", Uint8Array.from(now, () => random() * 256)];
}

/** Cuts a run in the ways whose numbers are wanted: what counted counts still, and the same again ends the same. Returns in how many. */
export async function cutRun(
  { words, records }: (typeof CUT_RUNS)[number],
  isWanted: (way: number) => boolean,
): Promise<number> {
  using it = card({ a: older, b: newer });
  for (const [place, record] of records.entries()) it.put(RECORD_OFFSETS[place] ?? 0, encodeRecord(record));
  const [before, counted] = [it.bytes(), await it.newest()];
  expect((await it.run(...words)).exit).toBe(0);
  const [after, end] = [it.bytes(), await it.newest()];
  const at =
    RECORD_OFFSETS.find(
      (from) => !after.subarray(from, from + 512).equals(before.subarray(from, from + 512)),
    ) ?? 0;
  const [old, now] = [before, after].map((bytes) => Buffer.from(bytes.subarray(at, at + 512))) as [
    Buffer,
    Buffer,
  ];
  // Nothing else was written
  old.copy(after, at);
  expect(after.equals(before)).toBe(true);
  const ways = [...tears(old, now)].filter((_, way) => isWanted(way));
  for (const [what, sector] of ways) {
    it.put(at, sector);
    const found = await it.newest();
    expect([what, found?.record]).toEqual([what, now.equals(sector) ? end?.record : counted?.record]);
    await it.run(...words);
    const again = (await it.newest())?.record;
    expect([what, again && { ...again, sequence: 0 }]).toEqual([what, end && { ...end.record, sequence: 0 }]);
    for (const offset of RECORD_OFFSETS) it.put(offset, before.subarray(offset, offset + 512));
  }
  return ways.length;
}
