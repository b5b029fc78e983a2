/** What a slot holds before the node is sent there: read from the medium, and compared with what is known of it. */
import type { SlotName } from "../../boot/layout.ts";
import type { BootRecord, SlotRecord } from "../../boot/record.ts";
import { NO_HASH } from "../../boot/slots.ts";
import { Refusal } from "../commands.ts";
import { keptRelease } from "../release/kept.ts";
import { hashOf, type OpenCard, readThrough } from "./card.ts";

/** Longest that a slot may take to be read: 1 GiB from a slow card, with rests. */
export const READ_MS = 5 * 60_000;

/** Refuses a slot that reads otherwise than is known. True where nothing is known of it, so that nothing was read. */
export async function refuseDamaged(
  card: OpenCard,
  dataDir: string,
  slot: SlotName,
  record: BootRecord,
  signal: AbortSignal,
): Promise<boolean> {
  const { hash, payloadBytes } = record.slots[slot];
  const known = hash === NO_HASH ? await releaseIn(dataDir, slot, record.slots[slot]) : hash;
  if (known === undefined) return true;
  const wrong = await reading(slot, signal, (limit) =>
    readThrough(card, slot, { hash: known, payloadBytes }, limit),
  );
  if (wrong === undefined) return false;
  throw new Refusal(
    "slot",
    `${wrong}: this node could not come back from there; nothing was changed, 'fruit update install' puts a whole release into a slot`,
  );
}

/** The record, with the hash of a staged slot that the rescue rebuilt: read from the medium, and that of the release kept for it. */
export async function identified(
  card: OpenCard,
  dataDir: string,
  slot: SlotName,
  record: BootRecord,
  signal: AbortSignal,
): Promise<BootRecord> {
  const { state, hash, kernel, initramfs, ...rest } = record.slots[slot];
  if (state !== "staged" || hash !== NO_HASH) return record;
  const known = await releaseIn(dataDir, slot, record.slots[slot]);
  const found =
    known && (await reading(slot, signal, (limit) => hashOf(card, slot, rest.payloadBytes, limit)));
  if (!known || found !== known || !kernel || !initramfs)
    throw new Refusal(
      "slot",
      `slot ${slot} was found by the rescue, and ${known ? `reads as ${found}, its release says ${known}` : "no release is kept that says what it holds"}; install it again`,
    );
  return card.boot.setState(slot, { to: "staged", content: { ...rest, hash: known, kernel, initramfs } });
}

/** The hash that the update file kept for a slot names; undefined where there is none, or it is of another length. */
async function releaseIn(
  dataDir: string,
  slot: SlotName,
  { payloadBytes }: SlotRecord,
): Promise<string | undefined> {
  const kept = await keptRelease(dataDir, slot);
  return kept?.payloadBytes === payloadBytes ? kept.hash : undefined;
}

async function reading<T>(
  slot: SlotName,
  signal: AbortSignal,
  read: (limit: AbortSignal) => Promise<T>,
): Promise<T> {
  const late = AbortSignal.timeout(READ_MS);
  try {
    return await read(AbortSignal.any([signal, late]));
  } catch (error) {
    if (signal.aborted) throw error;
    const why = late.aborted ? `it takes more than ${READ_MS / 1000} s` : (error as Error).message;
    throw new Refusal("slot", `slot ${slot} cannot be read through: ${why}; nothing was changed`);
  }
}
