/**
 * The boot set of a slot: a FAT that the slot's payload brings (`../area.ts`, `fat`), copied as it is into the slot's boot partition, so
 * that no file system is ever written on a node. It is made for slot a: for b one byte is another, in `fruit.slot=a` of its cmdline.txt.
 * What is read here is what the medium holds, of a payload whose hash tree was checked. Proven against a model of the firmware only.
 */
import { type BlockDevice, HalError } from "../../hal/ports.ts";
import { findArea } from "../area.ts";
import { SECTOR, type SlotName } from "../layout.ts";
import { SlotRefusal } from "../slots.ts";
import { Fat, FatError, medium } from "./fat.ts";
import type { TrybootSlot } from "./layout.ts";

/** Bytes that are copied and compared at once. */
const WINDOW = 128 * 1024;
/** The word that says which slot a boot set is of, as payloads have it. */
const WORD = "fruit.slot=a";

/** Where the FAT stands in a payload, bytes from the start of the disk, and the one sector of it that is the slot's own. */
interface Source {
  offset: number;
  bytes: number;
  own: { at: number; sector: Uint8Array };
}

/**
 * Makes the boot partition of a slot what its payload says: its first sector last, so that before nothing starts it. Nothing is written
 * where it is that already. Throws `SlotRefusal`, `AreaError` and `FatError` before it writes, `HalError` where the medium holds something else.
 */
export async function fillBootSet(disk: BlockDevice, place: TrybootSlot, slot: SlotName): Promise<void> {
  const { boot } = place;
  const source = await sourceOf(disk, place, slot);
  if (source.bytes > boot.bytes)
    throw new SlotRefusal(
      `slot ${slot}: its boot set has ${source.bytes} bytes, partition ${boot.number} ${boot.bytes}`,
    );
  if ((await difference(disk, boot.offset, source)) === undefined) return;
  for await (const { at, bytes } of content(disk, source)) {
    const wanted = at === 0 ? blanked(bytes) : bytes;
    const held = await disk.readMedium(boot.offset + at, bytes.length);
    if (!Buffer.from(held).equals(wanted)) await disk.write(boot.offset + at, wanted);
  }
  await disk.flush();
  await expectHeld(disk, place, source, blanked);
  for await (const { bytes } of content(disk, { ...source, bytes: SECTOR * 8 }))
    await disk.write(boot.offset, bytes.subarray(0, SECTOR));
  await disk.flush();
  await expectHeld(disk, place, { ...source, bytes: SECTOR * 8 });
}

/** What of a slot's boot partition is otherwise than its payload says; undefined where nothing is. Throws what reading throws. */
export async function bootSetProblem(
  disk: BlockDevice,
  place: TrybootSlot,
  slot: SlotName,
  signal?: AbortSignal,
): Promise<string | undefined> {
  const source = await sourceOf(disk, place, slot);
  const at = await difference(disk, place.boot.offset, source, (bytes) => bytes, signal);
  return at === undefined
    ? undefined
    : `${disk.name} partition ${place.boot.number}, the boot set of slot ${slot}: from byte ${at} on it is not what the slot's payload says`;
}

async function expectHeld(
  disk: BlockDevice,
  { boot }: TrybootSlot,
  source: Source,
  first?: (bytes: Uint8Array) => Uint8Array,
): Promise<void> {
  const at = await difference(disk, boot.offset, source, first);
  if (at !== undefined)
    throw new HalError(
      "io",
      `${disk.name} partition ${boot.number}: from byte ${at} on it reads back otherwise than it was written; install again, and where it happens again replace the card`,
    );
}

/** Where the first window begins that a partition holds otherwise; `first` is what is made of the first one. */
async function difference(
  disk: BlockDevice,
  offset: number,
  source: Source,
  first = (bytes: Uint8Array) => bytes,
  signal?: AbortSignal,
): Promise<number | undefined> {
  for await (const { at, bytes } of content(disk, source)) {
    signal?.throwIfAborted();
    const held = await disk.readMedium(offset + at, bytes.length);
    if (!Buffer.from(held).equals(at === 0 ? first(bytes) : bytes)) return at;
  }
  return undefined;
}

async function* content(disk: BlockDevice, { offset, bytes: length, own }: Source) {
  for (let at = 0; at < length; at += WINDOW) {
    const bytes = await disk.readMedium(offset + at, Math.min(WINDOW, length - at));
    if (own.at >= at && own.at < at + bytes.length) bytes.set(own.sector, own.at - at);
    yield { at, bytes };
  }
}

/** Without what makes it a file system. */
const blanked = (bytes: Uint8Array) => Uint8Array.from(bytes).fill(0, 0, SECTOR);

async function sourceOf(disk: BlockDevice, { root }: TrybootSlot, slot: SlotName): Promise<Source> {
  const { name, bytes } = disk;
  const past = { name, bytes, read: (at: number, length: number) => medium(disk, at, length) };
  const { fat } = (await findArea(past, root.offset, root.bytes)).boot;
  if (!fat)
    throw new SlotRefusal(`slot ${slot} holds a release for U-Boot: it brings no boot set to start it from`);
  const place = { ...root, offset: root.offset + fat.offset, bytes: fat.bytes };
  return { offset: place.offset, bytes: fat.bytes, own: await ownSector(disk, place, slot) };
}

/** The sector of cmdline.txt as this slot has it, and where in the FAT it is. */
async function ownSector(disk: BlockDevice, place: TrybootSlot["root"], slot: SlotName) {
  const fat = await Fat.open(disk, place);
  const [entry, ...more] = (await fat.root()).entries.filter(({ name }) => name.toLowerCase() === CMDLINE);
  if (!entry || more.length > 0)
    throw new FatError(`${fat.name}: its boot set has ${entry ? more.length + 1 : 0} files ${CMDLINE}`);
  const text = Buffer.from(await fat.read(entry, SECTOR)).toString("latin1");
  const words = text.split(/\s/).filter((word) => word.startsWith("fruit.slot="));
  if (words.length !== 1 || words[0] !== WORD)
    throw new FatError(`${fat.name}: ${CMDLINE} of its boot set does not say ${WORD} once`);
  const offset = fat.offsetOf(entry.cluster);
  const sector = Uint8Array.from(await medium(disk, offset, SECTOR));
  sector.set(Buffer.from(text.replace(WORD, `fruit.slot=${slot}`), "latin1"));
  return { at: offset - place.offset, sector };
}

const CMDLINE = "cmdline.txt";
