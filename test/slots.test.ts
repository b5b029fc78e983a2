/** The life of a slot: which change is made of which record, and which is refused. */
import { expect, test } from "bun:test";
import { otherSlot, SLOTS, type SlotName } from "../boot/layout.ts";
import type { BootRecord, SlotRecord, SlotState } from "../boot/record.ts";
import { SLOT_STATES } from "../boot/record.ts";
import {
  arm,
  begin,
  confirm,
  fail,
  NO_HASH,
  rollBack,
  type SlotContent,
  SlotRefusal,
  stage,
} from "../boot/slots.ts";
import { seeded } from "./fakes.ts";

const HASH = "ab".repeat(16);
const CONTENT: SlotContent = {
  ...{ version: 5n, hash: HASH, payloadBytes: 90_000 },
  kernel: { offset: 4096, bytes: 10, crc32: 1 },
  initramfs: { offset: 8192, bytes: 20, crc32: 2 },
};
const slot = (state: SlotState, change: Partial<SlotRecord> = {}): SlotRecord => ({
  ...{ state, reason: "none", version: 1n, hash: NO_HASH, payloadBytes: 1000 },
  ...change,
});
/** A node that starts from slot a; slot b as it is said. */
const record = (b: SlotState, change: Partial<BootRecord> = {}): BootRecord => ({
  ...{ format: 1, sequence: 1, primary: "a", confirmed: 0, reason: "built", time: 0, floor: 3n },
  slots: { a: slot("good"), b: slot(b) },
  ...change,
});
const trial = { id: 9, triesLeft: 2, started: 1 };

test("an install, a trial and its confirmation, one record after the other", () => {
  const writing = begin(record("failed"), "b", HASH);
  expect(writing.slots.b).toEqual(slot("writing", { version: 0n, hash: HASH, payloadBytes: 0 }));
  const staged = stage(writing, "b", CONTENT);
  expect(staged.slots.b).toEqual({ ...CONTENT, state: "staged", reason: "none" });
  const armed = arm(staged, "b", { id: 9, tries: 3 });
  expect(armed).toMatchObject({ primary: "a", trial: { id: 9, triesLeft: 3, started: 0 } });
  expect(armed.slots.b.state).toBe("trying");
  const good = confirm(armed, "b", 4n);
  expect(good).toMatchObject({ primary: "b", confirmed: 9, floor: 4n, reason: "confirmed" });
  expect(good.slots.b).toEqual({ ...CONTENT, state: "good", reason: "none" });
  expect(good).not.toHaveProperty("trial");
  // Nobody else's slot was touched by any of it
  expect(good.slots.a).toEqual(slot("good"));
  expect([writing, staged, armed].map(({ reason }) => reason)).toEqual([
    "install-begun",
    "install-staged",
    "trial-armed",
  ]);
});

test("the floor never sinks", () => {
  expect(confirm(record("trying", { trial, floor: 8n }), "b", 4n).floor).toBe(8n);
});

test("a slot fails for a reason, and its trial is over", () => {
  const failed = fail(record("trying", { trial }), "b", "check-failed");
  expect(failed).not.toHaveProperty("trial");
  expect(failed).toMatchObject({ primary: "a", reason: "check-failed" });
  expect(failed.slots.b).toMatchObject({ state: "failed", reason: "check-failed", version: 1n });
});

test("back to the other slot by hand: the one it came from stays good for U-Boot to fall back to", () => {
  const back = rollBack(record("good"), "by-hand");
  expect(back).toMatchObject({ primary: "b", reason: "by-hand" });
  expect(back.slots.a).toEqual(slot("good", { reason: "by-hand" }));
  expect(back.slots.b).toEqual(slot("good"));
  const again = rollBack(back, "by-hand");
  expect(again.slots).toEqual({ a: slot("good"), b: slot("good", { reason: "by-hand" }) });
});

test("a staged slot without a hash is given one, if it is what the record speaks of", () => {
  const found = record("empty");
  found.slots.b = { ...CONTENT, hash: NO_HASH, state: "staged", reason: "repaired" };
  expect(stage(found, "b", CONTENT).slots.b).toEqual({ ...CONTENT, state: "staged", reason: "none" });
  expect(() => stage(found, "b", { ...CONTENT, payloadBytes: 80_000 })).toThrow(
    new SlotRefusal("slot b holds version 5 in 90000 bytes, not version 5 in 80000; install it anew"),
  );
  found.slots.b.hash = HASH;
  expect(() => stage(found, "b", CONTENT)).toThrow(new SlotRefusal("slot b is staged, not writing"));
});

test("back to the other slot: the one it came from has failed, and no trial is left", () => {
  const back = rollBack(record("good", { trial }), "files-damaged");
  expect(back).toMatchObject({ primary: "b", reason: "files-damaged" });
  expect(back.slots.a).toMatchObject({ state: "failed", reason: "files-damaged" });
  expect(back.slots.b.state).toBe("good");
  expect(back).not.toHaveProperty("trial");
});

/** What may be done to slot b in each of its states; everything else is refused. */
const MOVES: Record<string, { states: SlotState[]; does: (before: BootRecord) => BootRecord }> = {
  begin: {
    states: ["empty", "writing", "staged", "trying", "good", "failed"],
    does: (r) => begin(r, "b", HASH),
  },
  stage: { states: ["writing"], does: (r) => stage(r, "b", CONTENT) },
  arm: { states: ["staged"], does: (r) => arm(r, "b", { id: 1, tries: 3 }) },
  confirm: { states: ["trying"], does: (r) => confirm(r, "b", 0n) },
  rollBack: { states: ["good"], does: (r) => rollBack(r, "by-hand") },
};
test.each(
  Object.entries(MOVES).flatMap(([move, { states }]) =>
    SLOT_STATES.map((state) => ({ move, state, isAllowed: states.includes(state) })),
  ),
)("$move of a slot that is $state: allowed $isAllowed", ({ move, state, isAllowed }) => {
  const before = record(state, move === "confirm" ? { trial } : {});
  before.slots.b.hash = HASH;
  const does = () => MOVES[move]?.does(before);
  if (isAllowed) expect(does()).toBeObject();
  else expect(does).toThrow(SlotRefusal);
});

test.each<{ what: string; does: () => BootRecord; says: string }>([
  {
    what: "the slot the node starts from is written",
    does: () => begin(record("good"), "a", HASH),
    says: "slot a is the one this node starts from; it is never written",
  },
  {
    what: "a slot on trial is written",
    does: () => begin(record("trying", { trial }), "b", HASH),
    says: "slot b is on trial (2 tries left): confirm it or roll back first",
  },
  {
    what: "the slot the node starts from is tried",
    does: () =>
      arm({ ...record("good"), slots: { a: slot("staged"), b: slot("good") } }, "a", { id: 1, tries: 1 }),
    says: "slot a is the one this node starts from",
  },
  {
    what: "a trial has no try",
    does: () => arm(record("staged"), "b", { id: 1, tries: 0 }),
    says: "a trial is of one try at least, not 0",
  },
  {
    what: "something else was written than was begun",
    does: () => stage(begin(record("empty"), "b", "ee".repeat(16)), "b", CONTENT),
    says: `slot b is being written with ${"ee".repeat(16)}, not with ${HASH}; install it anew`,
  },
  {
    what: "a slot is confirmed that no trial is of",
    does: () => confirm(record("trying"), "b", 0n),
    says: "slot b is not on trial",
  },
  {
    what: "a good slot fails",
    does: () => fail(record("good"), "b", "by-hand"),
    says: "slot b is good, and what this node can fall back to; it stays so",
  },
  {
    what: "the slot the node starts from fails",
    does: () => fail(record("good"), "a", "by-hand"),
    says: "slot a is the one this node starts from; roll back to slot b instead",
  },
  {
    what: "there is nothing good to go back to",
    does: () => rollBack(record("staged"), "by-hand"),
    says: "slot b is staged, not good",
  },
])("it is refused when $what", ({ does, says }) => {
  expect(does).toThrow(new SlotRefusal(says));
});

test("whatever is asked for in whatever order, the slot a node starts from was good and is not written", () => {
  const random = seeded(11);
  const moves: ((before: BootRecord, slot: SlotName) => BootRecord)[] = [
    (before, slot) => begin(before, slot, HASH),
    (before, slot) => stage(before, slot, CONTENT),
    (before, slot) => arm(before, slot, { id: 1 + Math.floor(random() * 1e6), tries: 3 }),
    (before, slot) => confirm(before, slot, BigInt(Math.floor(random() * 10))),
    (before, slot) => fail(before, slot, "check-failed"),
    (before) => rollBack(before, "by-hand"),
  ];
  const reached = new Set<string>();
  for (let life = 0; life < 300; life++) {
    let now = record("empty");
    for (let step = 0; step < 40; step++) {
      const before = now;
      const move = moves[Math.floor(random() * moves.length)];
      try {
        now = move?.(before, SLOTS[random() < 0.5 ? 0 : 1]) ?? now;
      } catch (error) {
        expect(error).toBeInstanceOf(SlotRefusal);
      }
      const { primary, trial, slots, floor } = now;
      expect(slots[primary].state).toBe("good");
      expect(trial !== undefined).toBe(slots[otherSlot(primary)].state === "trying");
      expect(floor).toBeGreaterThanOrEqual(before.floor);
      // Nothing becomes good but by a trial
      const wasGood = before.slots[primary].state === "good";
      expect(wasGood || before.slots[primary].state === "trying").toBeTrue();
      reached.add(`${primary} ${slots[otherSlot(primary)].state}`);
    }
  }
  // All there are: slot a was never empty
  expect(reached.size).toBe(11);
});
