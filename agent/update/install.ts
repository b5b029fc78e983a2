/** One install from the words of the command line to the staged slot. */
import { copyFile, mkdir, open, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { admit, hashPrefix } from "../../boot/admit.ts";
import type { Release } from "../../boot/content.ts";
import type { Step } from "../../boot/install.ts";
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
import { openSlot } from "./target.ts";

/** What is to be installed, and on what. */
export interface Order {
  hal: Pick<Hal, "machine" | "openDisk">;
  card: OpenCard;
  dataDir: string;
  /** The update file's bytes, for messages its path. */
  update: { path: string; bytes: Uint8Array };
  trust: Trust;
  side: string;
  /** A path, or what arrives on standard input. */
  payload: string | AsyncIterable<Uint8Array>;
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
  const node = { ...when, boards: compatible, floor: record.floor, running };
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
  const side = await openSideOf(order, release, open);
  const source = await openSource(order, release, open);
  const device = await openSlot(hal, card.disk, card.slots[slot]);
  open.defer(() => device.close());
  // Where there is no room for it, the slot keeps what it has
  const keep = await keeping(dataDir, () => writeBeside(order, slot, release.signers));
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
    await source.pour(writer);
    const record = await writer.finish(source.again);
    return { release, slot, record, bytesWritten: writer.bytesWritten, pastCache: device.pastCache };
  } catch (cause) {
    // Whatever went wrong, what is on the medium need not come again
    await writer.suspend().catch(() => undefined);
    throw cause;
  } finally {
    if (writer.unsaved) order.warn(`its progress is not kept in ${dataDir}: ${reasonOf(writer.unsaved)}`);
  }
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

/** The leaf hashes, checked; kept open. */
async function openSideOf({ hal, side }: Order, release: Release, open: AsyncDisposableStack): Promise<Side> {
  const file = await hal.openDisk(side, "read");
  open.defer(() => file.close());
  return openSide(file, release);
}

async function openSource(
  { hal, payload }: Order,
  { size }: Release,
  open: AsyncDisposableStack,
): Promise<Source> {
  if (typeof payload !== "string") return streamSource("standard input", payload);
  const file = await hal.openDisk(payload, "read");
  open.defer(() => file.close());
  return fileSource(file, size);
}

/**
 * `releases/b.fruit` and `.side`: what the slot holds, to be checked and to be seeded from. Writes both beside what is there, whole and
 * flushed; what it returns puts them in its place and needs no room for that.
 */
async function writeBeside(
  { dataDir, update, side }: Order,
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
