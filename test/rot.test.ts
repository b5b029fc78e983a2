/** Rot in slots that no trial reads any more. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { setTimeout as sleep } from "node:timers/promises";
import { type OpenCard, readThrough } from "../agent/boot/card.ts";
import { lookForRot } from "../agent/boot/rot.ts";
import { HalError } from "../hal/ports.ts";
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

test("a slot that is not good is nobody's rot", async () => {
  await using node = new SlotNode({ audit_hours: QUICK });
  node.card.stage("b", NEW);
  node.card.write(SLOT_OFFSETS.b + 150_000, Uint8Array.of(1, 2, 3));
  const running = await node.start();
  const rounds = () => running.logged.filter((line) => line.includes("boot.read-through"));
  await until("two rounds", () => rounds().length >= 2);
  expect(rounds()[0]).toBe('info boot.read-through {"damaged":[]}');
});

/** A card whose slot a is good, and what is read of it: how much, in which pieces, and for how long. */
class Card {
  readonly disk = new MemoryDisk(SLOT_BYTES);
  readonly boot: MemorySwitch;
  readonly card: OpenCard;
  bytes = 0;
  most = 0;
  busyMs = 0;
  beganMs = 0;
  /** What becomes of each read. */
  before: () => Promise<void> = async () => undefined;
  readonly rounds: unknown[] = [];
  readonly logged: string[] = [];

  constructor(size: number) {
    const payload = payloadOf(4n, size);
    const whole = new Uint8Array(SLOT_BYTES);
    whole.set(payload.bytes);
    for (let at = 0; at < whole.length; at += 4096)
      this.disk.medium.set(at / 4096, whole.slice(at, at + 4096));
    const good = { ...slotRecord("good", 4n), ...payload.content };
    this.boot = new MemorySwitch({ slots: { a: good, b: slotRecord("empty", 0n) } });
    const part = { number: 2, type: 0x83, offset: 0, bytes: SLOT_BYTES };
    this.card = { disk: this.disk, boot: this.boot, slots: { a: part, b: part } };
    const { readMedium } = this.disk;
    this.disk.readMedium = async (offset, length) => {
      const began = performance.now();
      this.beganMs ||= began;
      this.bytes += length;
      this.most = Math.max(this.most, length);
      await this.before();
      const bytes = await readMedium.call(this.disk, offset, length);
      this.busyMs += performance.now() - began;
      return bytes;
    };
  }

  look(hours: number, signal: AbortSignal): Promise<void> {
    return lookForRot(
      {
        ...{ card: this.card, hours },
        alarm: (id, alarm) => void this.rounds.push([id, alarm?.message ?? null]),
        log: (level, what, fields) => void this.logged.push(`${level} ${what} ${JSON.stringify(fields)}`),
      },
      signal,
    );
  }

  /** The end of one round from now. */
  async round(): Promise<unknown> {
    const { length } = this.rounds;
    await until("a round", () => this.rounds.length > length);
    return this.rounds.at(-1);
  }
}

test("with 0 nothing is read", async () => {
  const card = new Card(200_000);
  const stop = new AbortController();
  const looking = card.look(0, stop.signal).then(() => "over");
  expect(await Promise.race([looking, sleep(2000, "still at it", { ref: false })])).toBe("over");
  stop.abort();
  expect([card.bytes, card.rounds]).toEqual([0, []]);
});

test("it reads in small pieces, no more than 2 MB in a second, and stops at once", async () => {
  const card = new Card(900_001);
  expect(
    await readThrough(card.card, "a", card.boot.record.slots.a, new AbortController().signal),
  ).toBeUndefined();
  [card.bytes, card.most, card.beganMs] = [0, 0, 0];
  const stop = new AbortController();
  const looking = card.look(500, stop.signal);
  stop.abort();
  await looking;
  expect([card.bytes, card.rounds]).toEqual([0, []]);
  const again = new AbortController();
  const reading = card.look(QUICK, again.signal);
  const round = await card.round();
  const seconds = (performance.now() - card.beganMs) / 1000;
  expect([card.most, round]).toEqual([128 * 1024, ["slot-damaged", null]]);
  expect(card.bytes / seconds).toBeLessThan(2_000_000);
  again.abort();
  await reading;
});

test("of a slow card it takes no more than a fifth of the time", async () => {
  const card = new Card(300_000);
  card.before = () => sleep(100);
  const stop = new AbortController();
  const reading = card.look(QUICK, stop.signal);
  await card.round();
  // A timer may be a millisecond early
  expect(card.busyMs).toBeLessThan((performance.now() - card.beganMs) * 0.205);
  expect(card.busyMs).toBeGreaterThan(290);
  stop.abort();
  await reading;
});

test("a card that does not answer in time is no damaged one: it is read again, and what was known of it holds", async () => {
  const card = new Card(100_000);
  const late = async () => {
    throw new HalError("timeout", "the card: no answer at byte 0 within 20 s");
  };
  const stop = new AbortController();
  card.before = late;
  const reading = card.look(QUICK, stop.signal);
  expect(await card.round()).toEqual(["slot-damaged", null]);
  expect(card.logged[0]).toBe(
    'warn boot.read-through-late {"slot":"a","error":"the card: no answer at byte 0 within 20 s"}',
  );
  const damaged = [
    "slot-damaged",
    expect.stringContaining("slot a cannot be read through: the card: broken;"),
  ];
  card.before = async () => {
    throw new HalError("io", "the card: broken");
  };
  await until(
    "the alarm",
    () => card.rounds.at(-1) !== undefined && JSON.stringify(card.rounds.at(-1)).includes("broken"),
  );
  card.before = late;
  await card.round();
  expect(await card.round()).toEqual(damaged);
  // Something else is there now
  const { a, b } = card.boot.record.slots;
  card.boot.record = { ...card.boot.record, slots: { a: { ...a, hash: "0123456789abcdef".repeat(2) }, b } };
  await card.round();
  expect(await card.round()).toEqual(["slot-damaged", null]);
  stop.abort();
  await reading;
});

test("while something is found the next look comes within an hour, and not after a day", async () => {
  const did: unknown[] = [];
  const card = new Card(100_000);
  card.before = async () => {
    throw new HalError("io", "the card: broken");
  };
  const stop = new AbortController();
  const reading = lookForRot(
    {
      ...{ card: card.card, hours: 24, log: () => undefined },
      alarm: (_, alarm) => {
        did.push(alarm ? "damaged" : "well");
        card.before = async () => undefined;
      },
      wait: async (ms) => {
        did.push(ms / 3_600_000);
        if (did.length === 5) stop.abort();
      },
    },
    stop.signal,
  );
  await reading;
  expect(did).toEqual([1, "damaged", 1, "well", 24]);
});
