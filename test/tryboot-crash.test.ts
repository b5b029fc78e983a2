/**
 * Power cuts at every write of a tryboot update, against the model of the firmware (`tryboot/firmware.ts`): what starts then is
 * always a whole slot, or the rescue that mends the one sector, and the update ends all the same.
 */
import { expect, test } from "bun:test";
import { SECTOR, type SlotName } from "../boot/layout.ts";
import { readRecords } from "../boot/records.ts";
import { primaryOf } from "../boot/tryboot/autoboot.ts";
import { readTrybootCard } from "../boot/tryboot/layout.ts";
import { findAutoboot } from "../boot/tryboot/sector.ts";
import type { Image } from "./crash/disk.ts";
import { seeded } from "./fakes.ts";
import { BUSYBOX, LIMIT_MS, NEEDS_BUSYBOX } from "./shell.ts";
import { makeCard, PLACES, systemOf, wholeSystem } from "./tryboot/card.ts";
import { Firmware } from "./tryboot/firmware.ts";
import { Rescue, recordsOn, TrybootNode } from "./tryboot/node.ts";

const CONTENT = {
  version: 2n,
  hash: "b".repeat(32),
  payloadBytes: 1024 * 1024,
  kernel: { offset: 512, bytes: 1, crc32: 1 },
  initramfs: { offset: 1024, bytes: 1, crc32: 1 },
};

const NEW = systemOf("new");
/** Of the cuts one in so many; test/proof/tryboot-crash.proof.ts makes all of them. */
const EVERY = Number(process.env.FRUIT_TRYBOOT_EVERY ?? 36);
const ANY = EVERY === 1 ? "any" : "one";

/** One write of the story, with what the firmware's flag was then. */
interface Step {
  offset: number;
  bytes: Uint8Array;
  flag: number;
}

/** Whether the new system is well, in a story. */
type Health = "well" | "ill";

/** A whole update, from the old system's last start to the new one's first as primary, or to its failure. */
async function story(health: Health): Promise<{ start: Image; steps: readonly Step[] }> {
  const told = stories.get(health) ?? tell(health);
  stories.set(health, told);
  const { start, steps } = await told;
  return { start: start.copy(), steps };
}

const stories = new Map<Health, ReturnType<typeof tell>>();

async function tell(health: Health): Promise<{ start: Image; steps: readonly Step[] }> {
  const node = new TrybootNode(new Firmware(), makeCard());
  const start = node.disk.image.copy();
  const steps: Step[] = [];
  node.disk.trouble = (offset, bytes) => {
    steps.push({ offset, bytes: bytes.slice(), flag: node.firmware.rebootFlags() ?? 0 });
    return undefined;
  };
  node.powerOn();
  expect(await live(node, health)).toBe(health === "well" ? "new" : "old");
  return { start, steps };
}

/** Writes the new system into b as the writer does; what is staged has its boot set by then. */
async function install(node: TrybootNode): Promise<void> {
  const boot = await node.open();
  await boot.setState("b", { to: "writing", hash: CONTENT.hash });
  await node.disk.write(PLACES.root.b.offset, NEW.root);
  await node.disk.flush();
  await boot.setState("b", { to: "staged", content: CONTENT });
}

const STARTS_MOST = 12;
const rescue = new Rescue();

/**
 * What agent and rescue do from here until the update has ended: `new` confirmed, or given up. Returns the system that runs then;
 * throws where something that is not whole was started, where the rescue came up twice, or where it does not end.
 */
async function live(node: TrybootNode, health: Health): Promise<string> {
  let rescues = 0;
  for (let starts = 0; starts < STARTS_MOST; starts++) {
    const { running } = node;
    if (running === "nothing") throw new Error(`nothing runs: ${JSON.stringify(node.outcome)}`);
    if (running === "rescue") {
      await mend(node, ++rescues);
    } else {
      const system = wholeSystem(node.disk.image, running, ["old", "new"]);
      if (system === undefined) throw new Error(`slot ${running} is not whole`);
      if (await act(node, running, health)) return system;
    }
    node.reboot();
  }
  throw new Error(`not at its end after ${STARTS_MOST} starts`);
}

async function mend(node: TrybootNode, rescues: number): Promise<void> {
  if (rescues > 1) throw new Error("the rescue came up again");
  const { exit, err } = await rescue.settle(node);
  if (exit !== 0) throw new Error(`the rescue did not help: ${err}`);
}

/** What the agent of a slot does with one start; true where there is nothing left to do. */
async function act(node: TrybootNode, running: SlotName, health: Health): Promise<boolean> {
  const record = await node.settle();
  const boot = await node.open();
  const { state } = record.slots.b;
  if (running === record.primary) {
    if (running === "b" || state === "failed") return true;
    if (state === "empty" || state === "writing") await install(node);
    if (!record.trial) await boot.armTrial("b", 3);
  } else if (record.trial && health === "well") await boot.setPrimary("b", { floor: 2n });
  else if (record.trial) await boot.setState("b", { to: "failed", reason: "check-failed" });
  return false;
}

/** What a card may hold where it was writing when the power failed. */
function* torn(
  old: Uint8Array,
  { offset, bytes }: Step,
  random: () => number,
): Generator<[string, Uint8Array]> {
  const mixed = (at: number, a: Uint8Array, b: Uint8Array) =>
    Buffer.concat([a.subarray(0, at), b.subarray(at)]);
  yield ["old", old];
  yield ["new", bytes];
  // Inside a sector: every byte of what chooses the slot, some of the others
  const places = new Set(
    Array.from({ length: 15 }, (_, eighth) => Math.floor(((eighth + 1) * bytes.length) / 16)),
  );
  if (offset === PLACES.autoboot) for (let at = 1; at < 128; at++) places.add(at);
  for (const at of places) {
    yield [`new up to ${at}`, mixed(at, bytes, old)];
    yield [`old up to ${at}`, mixed(at, old, bytes)];
  }
  const last = bytes.length - Math.min(SECTOR, bytes.length);
  const garbage: [string, () => number][] = [
    ["zeros", () => 0],
    ["ones", () => 0xff],
    ["random", () => Math.floor(random() * 256)],
  ];
  for (const [name, byte] of garbage) {
    const sector = Uint8Array.from({ length: bytes.length - last }, byte);
    yield [`${name} in the last sector`, Buffer.concat([bytes.subarray(0, last), sector])];
    yield [`${name} in the first sector`, Buffer.concat([sector, old.subarray(sector.length)])];
  }
}

/** A node whose power failed at a step, or that the watchdog started anew. */
function cutNode(image: Image, flag: number, by: "power" | "watchdog"): TrybootNode {
  const node = new TrybootNode(new Firmware(), image);
  if (by === "power") node.powerOn();
  else {
    node.firmware.rebootFlags(flag);
    node.watchdog();
  }
  return node;
}

/** The node as it is at its end: record and sector agree, and the slot it starts from is whole. */
async function expectSteady(node: TrybootNode): Promise<void> {
  const { newest } = await readRecords(node.disk);
  const card = await readTrybootCard(node.disk);
  const { bytes } = await findAutoboot(node.disk, card.selector);
  expect(newest?.record.trial).toBeUndefined();
  expect(primaryOf(bytes)).toBe(newest?.record.primary);
  expect(node.reboot()).toBe(newest?.record.primary ?? "nothing");
}

/** Every card that a cut at one write may leave. */
function* cuts(start: Image, steps: readonly Step[], random: () => number) {
  const before = start.copy();
  for (const [index, step] of steps.entries()) {
    const old = before.read(step.offset, step.bytes.length);
    // The two differ in what the firmware remembers, which no byte inside a sector changes
    for (const [how, held] of torn(old, step, random))
      for (const by of how.includes("up to") ? (["power"] as const) : (["power", "watchdog"] as const)) {
        const image = before.copy();
        image.write(step.offset, new Uint8Array(held));
        const where = `write ${index} at byte ${step.offset}, ${how}, ${by}`;
        yield { node: cutNode(image, step.flag, by), where };
      }
    before.write(step.offset, step.bytes);
  }
}

test.skipIf(!BUSYBOX).each([
  { health: "well", end: "new" },
  { health: "ill", end: "old" },
] as const)(
  `10–14: cuts at the writes of an update that is $health, torn in every way (one in ${EVERY}), end in the $end system, whole${NEEDS_BUSYBOX}`,
  async ({ health, end }) => {
    const { start, steps } = await story(health);
    let [cases, all] = [0, 0];
    for (const { node, where } of cuts(start, steps, seeded(10))) {
      if (all++ % EVERY !== 0) continue;
      const came = await live(node, health).catch((error: Error) => error.message);
      if (came !== end) throw new Error(`${where}: ${came}`);
      await expectSteady(node);
      cases++;
    }
    console.log(
      `tryboot (model only): ${steps.length} writes, ${cases} of ${all} cuts, an update that is ${health}`,
    );
    expect(all).toBeGreaterThan(health === "well" ? 600 : 300);
    expect(cases).toBe(Math.ceil(all / EVERY));
  },
  300_000,
);

test.skipIf(!BUSYBOX)(
  `13: after garbage in the sector the rescue mends it from the record, and the confirmed system starts${NEEDS_BUSYBOX}`,
  async () => {
    const { start, steps } = await story("well");
    const at = steps.findIndex(({ offset }) => offset === PLACES.autoboot);
    const image = start.copy();
    for (const { offset, bytes } of steps.slice(0, at)) image.write(offset, bytes);
    image.write(PLACES.autoboot, new Uint8Array(SECTOR).fill(0x55));
    const node = cutNode(image, 0, "power");
    expect(node.running).toBe("rescue");
    expect(await rescue.settle(node)).toMatchObject({
      exit: 0,
      out: expect.stringContaining("start slot b now"),
    });
    expect(node.reboot()).toBe("b");
    expect(await node.settle()).toMatchObject({ primary: "b", reason: "confirmed", floor: 2n });
  },
);

/** What the rescue and the initramfs may have to do, and where. */
const RUNS: { what: string; args: string[]; card: () => Promise<Image>; record: object }[] = [
  {
    what: "the rescue mends a sector of garbage in the middle of a commit",
    args: ["settle"],
    card: async () => afterSteps("well", 9, (image) => image.write(PLACES.autoboot, new Uint8Array(SECTOR))),
    record: { primary: "a", reason: "committing" },
  },
  {
    what: "the rescue ends a trial whose boot set is damaged, in the middle of its commit",
    args: ["settle"],
    card: async () => afterSteps("well", 10, spoil("b")),
    record: { primary: "a", slots: { b: { state: "failed", reason: "files-damaged" } } },
  },
  {
    what: "the rescue gives up the slot whose boot set is damaged",
    args: ["settle"],
    card: async () => afterSteps("well", Number.POSITIVE_INFINITY, spoil("b")),
    record: { primary: "a", slots: { b: { state: "failed", reason: "files-damaged" } } },
  },
  {
    what: "the initramfs gives up a good slot that it cannot start",
    args: ["fail", "b", "starts-spent"],
    card: async () => afterSteps("well", Number.POSITIVE_INFINITY),
    record: { primary: "a", slots: { b: { state: "failed", reason: "starts-spent" } } },
  },
  {
    what: "the initramfs gives up the slot on trial in the middle of its commit",
    args: ["fail", "b"],
    card: async () => afterSteps("well", 10),
    record: {
      primary: "a",
      slots: { a: { state: "good" }, b: { state: "failed", reason: "files-damaged" } },
    },
  },
  {
    what: "a person chooses the other slot",
    args: ["use", "a"],
    card: async () => afterSteps("well", Number.POSITIVE_INFINITY),
    record: { primary: "a", reason: "by-hand" },
  },
  {
    what: "the slot on trial starts",
    args: ["start", "b"],
    card: async () => afterSteps("well", 7),
    record: { primary: "a", reason: "trial-started", trial: { triesLeft: 2, started: 1 } },
  },
];

/** The card after the first steps of a story, with what was done to it then. */
async function afterSteps(health: Health, count: number, then: (image: Image) => void = () => {}) {
  const { start, steps } = await story(health);
  for (const { offset, bytes } of steps.slice(0, count)) start.write(offset, bytes);
  then(start);
  return start;
}

const spoil = (slot: SlotName) => (image: Image) => {
  const at = PLACES.boot[slot].offset + 40 * SECTOR;
  image.write(at, new Uint8Array(SECTOR).fill(7));
};

test.skipIf(!BUSYBOX).each(RUNS.map((run, number) => ({ ...run, number })))(
  `16: $what: cut at ${ANY} of its writes, the same once more comes to the same end${NEEDS_BUSYBOX}`,
  async ({ args, card, record, number }) => {
    const start = await card();
    const node = new TrybootNode(new Firmware(), start.copy());
    const { writes, exit } = await recordsOn(start, args);
    expect(exit).toBe(0);
    for (const { offset, bytes } of writes) node.disk.image.write(offset, bytes);
    const { newest } = await readRecords(node.disk);
    expect(newest?.record).toMatchObject(record);
    // The record first
    expect(writes.map(({ offset }) => offset === PLACES.autoboot)).toEqual(
      writes.map((_, index) => index > 0 || newest?.record.reason === "committing"),
    );
    const before = start.copy();
    for (const [index, { offset, bytes }] of writes.entries()) {
      const old = before.read(offset, SECTOR);
      const torn = Buffer.concat([bytes.subarray(0, 100), old.subarray(100)]);
      // A second write that is missing is a first that was whole
      const image = before.copy();
      image.write(offset, index === 0 ? torn : old);
      before.write(offset, bytes);
      if (EVERY > 1 && index !== number % writes.length) continue;
      const again = new TrybootNode(new Firmware(), image);
      await again.records(...args);
      const { newest: found } = await readRecords(again.disk);
      expect({ ...found?.record, sequence: 0 }).toEqual({ ...newest?.record, sequence: 0 } as never);
      expect(primaryOf(image.read(PLACES.autoboot, SECTOR))).toBe(
        primaryOf(node.disk.image.read(PLACES.autoboot, SECTOR)),
      );
    }
  },
  LIMIT_MS,
);

test("15: the power fails at every start, twenty times: every start is the old system, whole, and the update is given up, not blamed", async () => {
  const node = new TrybootNode(new Firmware(), makeCard());
  node.powerOn();
  await install(node);
  await (await node.open()).armTrial("b", 3);
  for (let cut = 0; cut < 20; cut++) {
    expect(node.powerOn()).toBe("a");
    expect(wholeSystem(node.disk.image, "a", ["old"])).toBe("old");
    if (cut % 2 === 0) await node.settle();
  }
  const { newest } = await readRecords(node.disk);
  expect(newest?.record.slots.b).toMatchObject({ state: "failed", reason: "switch-failed" });
});

test.skipIf(!BUSYBOX)(
  `17: a card that takes no more writes stops no start, and what it holds is what it held${NEEDS_BUSYBOX}`,
  async () => {
    const { start, steps } = await story("well");
    const image = start.copy();
    for (const { offset, bytes } of steps.slice(0, -1)) image.write(offset, bytes);
    const node = cutNode(image, 0, "power");
    node.disk.trouble = () => "EIO";
    const held = node.running;
    await expect(node.settle()).rejects.toThrow("EIO");
    expect(node.powerOn()).toBe(held);
    node.disk.trouble = () => undefined;
    expect(await live(node, "well")).toBe("new");
  },
);

test.skipIf(!BUSYBOX)(
  `19: rot in one record, or in the sector, is mended or outvoted${NEEDS_BUSYBOX}`,
  async () => {
    const { start, steps } = await story("well");
    const image = start.copy();
    for (const { offset, bytes } of steps) image.write(offset, bytes);
    for (const offset of [...new Set(steps.map((step) => step.offset))].filter(
      (at) => at < PLACES.boot.a.offset,
    )) {
      const rotten = image.copy();
      const sector = rotten.read(offset, SECTOR);
      sector[20] = (sector[20] ?? 0) ^ 0x10;
      rotten.write(offset, sector);
      const node = cutNode(rotten, 0, "power");
      expect(["b", "a", "rescue"]).toContain(node.running);
      expect(await live(node, "well")).toBe("new");
    }
  },
);
