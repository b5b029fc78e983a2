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
import { openTryboot } from "../boot/tryboot/switch.ts";
import type { Image } from "./crash/disk.ts";
import { seeded } from "./fakes.ts";
import { makeCard, PLACES, systemOf, wholeSystem } from "./tryboot/card.ts";
import { MemoryDisk } from "./tryboot/disk.ts";
import { Firmware } from "./tryboot/firmware.ts";
import { TrybootNode } from "./tryboot/node.ts";

const CONTENT = {
  version: 2n,
  hash: "b".repeat(32),
  payloadBytes: 1024 * 1024,
  kernel: { offset: 512, bytes: 1, crc32: 1 },
  initramfs: { offset: 1024, bytes: 1, crc32: 1 },
};

const NEW = systemOf("new");

/** One write of the story, with what the firmware's flag was then. */
interface Step {
  offset: number;
  bytes: Uint8Array;
  flag: number;
}

/** Whether the new system is well, in a story. */
type Health = "well" | "ill";

/** A whole update, from the old system's last start to the new one's first as primary, or to its failure. */
async function story(health: Health): Promise<{ start: Image; steps: Step[] }> {
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
      if (++rescues > 1) throw new Error("the rescue came up again");
      await node.settle();
    } else {
      const system = wholeSystem(node.disk.image, running, ["old", "new"]);
      if (system === undefined) throw new Error(`slot ${running} is not whole`);
      if (await act(node, running, health)) return system;
    }
    node.reboot();
  }
  throw new Error(`not at its end after ${STARTS_MOST} starts`);
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

test.each([
  { health: "well", end: "new" },
  { health: "ill", end: "old" },
] as const)(
  "10–14: a cut at every write of an update that is $health, torn in every way, ends in the $end system, whole",
  async ({ health, end }) => {
    const { start, steps } = await story(health);
    let cases = 0;
    for (const { node, where } of cuts(start, steps, seeded(10))) {
      const came = await live(node, health).catch((error: Error) => error.message);
      if (came !== end) throw new Error(`${where}: ${came}`);
      await expectSteady(node);
      cases++;
    }
    console.log(`tryboot (model only): ${steps.length} writes, ${cases} cuts, an update that is ${health}`);
    expect(cases).toBeGreaterThan(health === "well" ? 600 : 300);
  },
  30_000,
);

test("13: after garbage in the sector the rescue mends it from the record, and the confirmed system starts", async () => {
  const { start, steps } = await story("well");
  const at = steps.findIndex(({ offset }) => offset === PLACES.autoboot);
  const image = start.copy();
  for (const { offset, bytes } of steps.slice(0, at)) image.write(offset, bytes);
  image.write(PLACES.autoboot, new Uint8Array(SECTOR).fill(0x55));
  const node = cutNode(image, 0, "power");
  expect(node.running).toBe("rescue");
  const record = await node.settle();
  expect(record).toMatchObject({ primary: "b", reason: "confirmed", floor: 2n });
  expect(node.reboot()).toBe("b");
});

test("16: a cut while the rescue mends the sector is mended by the next rescue", async () => {
  const { start, steps } = await story("well");
  const random = seeded(16);
  const at = steps.findIndex(({ offset }) => offset === PLACES.autoboot);
  const image = start.copy();
  for (const { offset, bytes } of steps.slice(0, at)) image.write(offset, bytes);
  image.write(PLACES.autoboot, new Uint8Array(SECTOR).fill(0x55));
  const repairs: Step[] = [];
  const disk = new MemoryDisk(image.copy());
  disk.trouble = (offset, bytes) => {
    repairs.push({ offset, bytes, flag: 0 });
    return undefined;
  };
  await (await openTryboot({ disk, machine: new Firmware(), current: undefined })).settle();
  expect(repairs).toHaveLength(2);
  for (const step of repairs) {
    const old = image.read(step.offset, step.bytes.length);
    for (const [, held] of torn(old, step, random)) {
      const again = image.copy();
      again.write(step.offset, new Uint8Array(held));
      const node = cutNode(again, 0, "power");
      expect(await live(node, "well")).toBe("new");
    }
    image.write(step.offset, step.bytes);
  }
});

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
  expect(newest?.record.slots.b).toMatchObject({ state: "failed", reason: "tries-spent" });
});

test("17: a card that takes no more writes stops no start, and what it holds is what it held", async () => {
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
});

test("19: rot in one record, or in the sector, is mended or outvoted", async () => {
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
});
