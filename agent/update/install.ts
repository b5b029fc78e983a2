/** One install from the words of the command line to the staged slot. */
import { copyFile, mkdir, open, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { admit, hashPrefix } from "../../boot/admit.ts";
import type { Readable } from "../../boot/area.ts";
import { ChunkError } from "../../boot/chunks.ts";
import type { Release } from "../../boot/content.ts";
import { copyHeld } from "../../boot/delta.ts";
import { signerFloors } from "../../boot/floors.ts";
import type { Origin, Step } from "../../boot/install.ts";
import { otherSlot, type SlotName } from "../../boot/layout.ts";
import { fileProgress } from "../../boot/progress.ts";
import type { BootRecord } from "../../boot/record.ts";
import { type Situation, verifyRelease } from "../../boot/release.ts";
import { openSide, type Side } from "../../boot/side.ts";
import { fileSource, type Source, streamSource } from "../../boot/source.ts";
import type { Trust } from "../../boot/trust.ts";
import { onlySignedBy, parseUpdate } from "../../boot/updatefile.ts";
import { SlotWriter } from "../../boot/writer.ts";
import type { BlockDevice, Hal } from "../../hal/ports.ts";
import type { OpenCard } from "../boot/card.ts";
import { quarantined } from "../boot/quarantine.ts";
import { reasonOf, syncDirectory } from "../record/lines.ts";
import { keptRelease, releasesIn } from "../release/kept.ts";
import { CliError, EXIT } from "../terminal.ts";
import { BUILD } from "../version.ts";
import { heldIn, keptOf } from "./held.ts";
import { openSlot } from "./target.ts";
import { trustPaths } from "./trust.ts";

/** What is to be installed, and on what. */
export interface Order {
  hal: Pick<Hal, "machine" | "openDisk">;
  card: OpenCard;
  dataDir: string;
  /** The update file's bytes, for messages its path. */
  update: { path: string; bytes: Uint8Array };
  trust: Trust;
  /** A path, or what brings the file there once the release is believed. */
  side: string | ((release: Release) => Promise<string>);
  /** A path, what arrives on standard input, or whatever else brings leaves. */
  payload: string | AsyncIterable<Uint8Array> | ((release: Release, leaves: Side, side: Readable) => Source);
  compatible: readonly string[];
  /** A release that has failed here before is installed all the same. */
  force: boolean;
  signal: AbortSignal;
  /** Told once, when the release is believed and before anything is written. */
  begins(release: Release, slot: SlotName): void;
  report(step: Step): void;
  /** What a person should know and nothing fails for. */
  warn(text: string): void;
}

/** What came of it. */
export interface Installed {
  release: Release;
  slot: SlotName;
  record: BootRecord;
  /** Bytes that the slot did not hold already. */
  bytesWritten: number;
  /** Bytes that it took, by where they came from. */
  bytesFrom: Readonly<Record<Origin, number>>;
  /** How the medium was read back. */
  pastCache: BlockDevice["pastCache"];
}

/** A release that this node believes and may install, and where. */
export interface Accepted {
  release: Release;
  slot: SlotName;
  /** The time it was accepted at. */
  when: Pick<Situation, "now" | "atLeast">;
}

/** Decides about a release and touches nothing. Throws `ReleaseError`, `SlotRefusal`, `CliError`. */
export async function accept(order: Order): Promise<Accepted> {
  const { hal, card, update, trust, compatible, dataDir, force } = order;
  const { boot, slots, disk } = card;
  const record = await boot.read();
  const slot = otherSlot(boot.current ?? record.primary);
  const from = boot.current ?? record.primary;
  const now = hal.machine.clock().synced ? Math.floor(Date.now() / 1000) : undefined;
  const signed = await createdOf(dataDir, from, record.slots[from].hash);
  // What was once taken for the time is better than nothing, and no better than a clock that is set
  const when = { now, atLeast: Math.max(BUILD.time, signed, now === undefined ? record.time : 0) };
  const running = record.slots[from].version;
  const signerFloor = await signerFloors(trustPaths(dataDir).floors);
  const node = { ...when, boards: compatible, floor: record.floor, running, signerFloor };
  const release = verifyRelease(update.bytes, trust, node);
  const device = { name: `slot ${slot} of ${disk.name}`, bytes: slots[slot].bytes };
  const refuses = boot.refuses?.bind(boot);
  admit(release, { slot, current: boot.current, record, device, compatible, ...when, refuses });
  const blamed = await quarantined(dataDir, hashPrefix(release.piecesRoot));
  if (blamed && !force)
    throw new CliError(
      EXIT.refused,
      `${release.name} was tried on this node and failed (${blamed.reason}${blamed.evidence[0] ? `: ${blamed.evidence[0]}` : ""}); --force installs it again`,
    );
  return { release, slot, when };
}

/** Installs it. What is interrupted goes on where it was when the same is ordered again. */
export async function install(order: Order): Promise<Installed> {
  await using open = new AsyncDisposableStack();
  const { hal, card, dataDir, signal, compatible } = order;
  const { release, slot, when } = await accept(order);
  const sidePath = typeof order.side === "string" ? order.side : await order.side(release);
  const sideFile = await hal.openDisk(sidePath, "read");
  open.defer(() => sideFile.close());
  const side = await openSide(sideFile, release);
  const source = await openSource(order, release, { side, sideFile }, open);
  const device = await openSlot(hal, card.disk, card.slots[slot]);
  open.defer(() => device.close());
  const kept = await keptOf(order, { slot, device });
  // Where there is no room for it, the slot keeps what it has
  const keep = await keeping(dataDir, () => writeBeside(order, sidePath, slot, release.signers));
  order.begins(release, slot);
  const writer = await SlotWriter.open({
    boot: card.boot,
    slot,
    device,
    release,
    leaves: side,
    progress: fileProgress(dataDir),
    compatible,
    ...when,
    signal,
    report: order.report,
  });
  try {
    // Not before the slot is `writing`: what was staged there needs its own. And not staged without: it has the version floor
    await keeping(dataDir, keep);
    await copyKept(order, writer, side, kept, source.isFar === true);
    writer.tell("writing");
    await source.pour(writer);
    const record = await writer.finish(source.again);
    return {
      release,
      slot,
      record,
      bytesWritten: writer.bytesWritten,
      bytesFrom: writer.from,
      pastCache: device.pastCache,
    };
  } catch (cause) {
    // Whatever went wrong, what is on the medium need not come again
    await writer.suspend().catch(() => undefined);
    throw cause;
  } finally {
    if (writer.unsaved) order.warn(`its progress is not kept in ${dataDir}: ${reasonOf(writer.unsaved)}`);
  }
}

/** Copies what the slots hold of it. That this cannot be done is no reason to fail: all of it can come from elsewhere. */
async function copyKept(
  { signal, report, warn }: Order,
  writer: SlotWriter,
  side: Side,
  kept: Awaited<ReturnType<typeof keptOf>>,
  isFar: boolean,
): Promise<void> {
  const index = await side.chunks().catch((cause) => {
    if (!(cause instanceof ChunkError)) throw cause;
    warn(`nothing is copied from the slots: ${cause.message}`);
    return undefined;
  });
  const told = (bytes: number, of: number) => report({ phase: "indexing", bytes, of });
  const look = isFar ? told : undefined;
  const held = index ? await heldIn(kept, signal, look) : [];
  if (held.length > 0) writer.tell("copying");
  await copyHeld(writer, { leaves: side, index }, held, signal);
}

/** Work without which there is no install. */
async function keeping<T>(dataDir: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (cause) {
    throw new CliError(
      EXIT.failed,
      `the update file cannot be kept in ${releasesIn(dataDir)}, where the version floor is read from: ${reasonOf(cause)}; nothing is staged`,
      { cause },
    );
  }
}

/**
 * When the release in a slot was made, Unix seconds, as its kept update file says: a time that is past. 0 where that file is missing,
 * about other content, or says two things.
 */
async function createdOf(dataDir: string, slot: SlotName, hash: string): Promise<number> {
  const kept = await keptRelease(dataDir, slot);
  return kept?.hash === hash ? (kept.stated(({ created }) => created) ?? 0) : 0;
}

async function openSource(
  { hal, payload }: Order,
  release: Release,
  { side, sideFile }: { side: Side; sideFile: Readable },
  open: AsyncDisposableStack,
): Promise<Source> {
  if (typeof payload === "function") return payload(release, side, sideFile);
  if (typeof payload !== "string") return streamSource("standard input", payload);
  const file = await hal.openDisk(payload, "read");
  open.defer(() => file.close());
  return fileSource(file, release.size);
}

/**
 * `releases/b.fruit` and `.side`: what the slot holds, to be checked and to be seeded from. Writes both beside what is there, whole and
 * flushed; what it returns puts them in its place and needs no room for that.
 */
async function writeBeside(
  { dataDir, update }: Order,
  side: string,
  slot: SlotName,
  signers: readonly string[],
): Promise<() => Promise<void>> {
  const folder = releasesIn(dataDir);
  await mkdir(folder, { recursive: true, mode: 0o700 });
  const kept = join(folder, slot);
  const isKept = side === `${kept}.side`;
  try {
    if (!isKept) {
      await copyFile(side, `${kept}.side.new`);
      await flushed(`${kept}.side.new`);
    }
    // Nobody else's statement is kept: the version floor is read from this file
    await writeFile(`${kept}.fruit.new`, onlySignedBy(parseUpdate(update.bytes), signers), {
      mode: 0o600,
      flush: true,
    });
  } catch (cause) {
    for (const end of ["side", "fruit"]) await rm(`${kept}.${end}.new`, { force: true }).catch(() => {});
    throw cause;
  }
  return async () => {
    // The one without the other says nothing: the update file comes last
    await rm(`${kept}.fruit`, { force: true });
    if (!isKept) await rename(`${kept}.side.new`, `${kept}.side`);
    await syncDirectory(folder);
    await rename(`${kept}.fruit.new`, `${kept}.fruit`);
    await syncDirectory(folder);
  };
}

async function flushed(path: string): Promise<void> {
  const file = await open(path, "r+");
  try {
    await file.sync();
  } finally {
    await file.close();
  }
}
