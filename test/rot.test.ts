/** Rot in slots that no trial reads any more. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { type OpenCard, readThrough } from "../agent/boot/card.ts";
import { lookForRot } from "../agent/boot/rot.ts";
import { payloadOf, SLOT_BYTES, SLOT_OFFSETS } from "./crash/card.ts";
import { until } from "./node.ts";
import { MemoryDisk, MemorySwitch, slotRecord } from "./slot.ts";
import { NEW, SlotNode } from "./slotnode.ts";

setDefaultTimeout(20_000);

/** A tenth of a second. */
const QUICK = 0.1 / 3600;
const ALARM =
  /^critical: slot (.) reads as [0-9a-f]{32}, its record says [0-9a-f]{32}; 'fruit update install' writes/;

test.each(["a", "b"] as const)(
  "rot in good slot %s raises an alarm, which ends with the rot",
  async (slot) => {
    await using node = new SlotNode({ audit_hours: QUICK }, { b: NEW });
    const running = await node.start();
    await running.settled();
    const rotten = SLOT_OFFSETS[slot] + 150_000;
    const right = node.card.read(rotten, 1);
    node.card.write(rotten, Uint8Array.of((right[0] ?? 0) ^ 1));
    await until("an alarm", () => ALARM.exec(running.alarms.get("slot-damaged") ?? "")?.[1] === slot);
    node.card.write(rotten, right);
    await until("it ends", () => !running.alarms.has("slot-damaged"));
  },
);

test("a slot that is not good is nobody's rot, and with 0 nothing is read", async () => {
  await using node = new SlotNode({ audit_hours: QUICK });
  node.card.stage("b", NEW);
  node.card.write(SLOT_OFFSETS.b + 150_000, Uint8Array.of(1, 2, 3));
  const running = await node.start();
  const rounds = () => running.logged.filter((line) => line.includes("boot.read-through"));
  await until("two rounds", () => rounds().length >= 2);
  expect(rounds()[0]).toBe('info boot.read-through {"damaged":[]}');
  await node.off();
  await using idle = new SlotNode({ audit_hours: 0 });
  const still = await idle.start();
  await still.settled();
  expect(still.logged.filter((line) => line.includes("boot.read-through"))).toEqual([]);
});

test("it reads in small pieces, no more than 2 MB in a second, and stops at once", async () => {
  const payload = payloadOf(4n, 900_001);
  const disk = new MemoryDisk(SLOT_BYTES);
  const whole = new Uint8Array(SLOT_BYTES);
  whole.set(payload.bytes);
  await disk.write(0, whole);
  await disk.flush();
  const good = { ...slotRecord("good", 4n), ...payload.content };
  const boot = new MemorySwitch({ slots: { a: good, b: slotRecord("empty", 0n) } });
  const part = { number: 2, type: 0x83, offset: 0, bytes: SLOT_BYTES };
  const card: OpenCard = { disk, boot, slots: { a: part, b: part } };
  expect(
    await readThrough({ disk, slots: card.slots }, "a", good, new AbortController().signal),
  ).toBeUndefined();
  const stop = new AbortController();
  let [bytes, most, began] = [0, 0, 0];
  const { readMedium } = disk;
  disk.readMedium = (offset, length) => {
    began ||= performance.now();
    bytes += length;
    most = Math.max(most, length);
    return readMedium.call(disk, offset, length);
  };
  const rounds: unknown[] = [];
  const looking = lookForRot(
    { card, hours: 500, alarm: (id, alarm) => void rounds.push([id, alarm]), log: () => undefined },
    stop.signal,
  );
  expect(bytes).toBe(0);
  stop.abort();
  await looking;
  expect([bytes, rounds]).toEqual([0, []]);
  const again = new AbortController();
  const reading = lookForRot(
    { card, hours: QUICK, alarm: (id, alarm) => void rounds.push([id, alarm]), log: () => undefined },
    again.signal,
  );
  await until("a round", () => rounds.length > 0);
  const seconds = (performance.now() - began) / 1000;
  expect([most, rounds[0]]).toEqual([128 * 1024, ["slot-damaged", null]]);
  expect(bytes / seconds).toBeLessThan(2_000_000);
  again.abort();
  await reading;
});
