/** The node's card as the agent uses it: every answer within a time, since a card that hangs must not hang the agent. */
import type { Partition, SlotName } from "../../boot/layout.ts";
import { type Pace, readHash } from "../../boot/readback.ts";
import type { BootSwitch } from "../../boot/switch.ts";
import { within } from "../../hal/limit.ts";
import { type BlockDevice, HalError } from "../../hal/ports.ts";

/** A card that is ours, open. */
export interface OpenCard {
  disk: BlockDevice;
  boot: BootSwitch;
  slots: Readonly<Record<SlotName, Partition>>;
}

/** Longest wait for one answer of a card: healthy ones take milliseconds, slow ones that tidy up take seconds. */
export const CARD_MS = 20_000;

/** What opens within its time. What opens later is closed: a file that nobody closes ends the process. */
export function openWithin<T>(opening: Promise<T>, close: (late: T) => unknown): Promise<T> {
  let isLate = false;
  void opening.then((opened) => isLate && close(opened)).catch(() => undefined);
  return within(CARD_MS, opening, () => {
    isLate = true;
    return new HalError("timeout", `the card does not open within ${CARD_MS / 1000} s`);
  });
}

/** The same switch; what takes too long throws `timeout`, and may still come true. */
export function timely(boot: BootSwitch, name: string, limitMs = CARD_MS): BootSwitch {
  const limited = <T>(work: Promise<T>, ms = limitMs, rest = "") =>
    within(ms, work, () => new HalError("timeout", `${name}: no answer within ${ms / 1000} s${rest}`));
  const changing = <T>(work: Promise<T>, ms = limitMs) =>
    limited(work, ms, "; it may still be done, 'fruit boot status' says whether it is");
  const compare = boot.compare?.bind(boot);
  return {
    kind: boot.kind,
    get current() {
      return boot.current;
    },
    records: () => limited(boot.records()),
    read: () => limited(boot.read()),
    setState: (slot, change) =>
      changing(boot.setState(slot, change), change.to === "staged" ? BOOT_SET_MS : limitMs),
    setPrimary: (slot, why) => changing(boot.setPrimary(slot, why)),
    armTrial: (slot, tries) => changing(boot.armTrial(slot, tries)),
    settle: () => limited(boot.settle()),
    ...(boot.refuses ? { refuses: boot.refuses.bind(boot) } : {}),
    ...(compare ? { compare: (slot, signal) => limited(compare(slot, signal), BOOT_SET_MS) } : {}),
  };
}

/** Longest that a boot set may take to be written or read: 512 MiB on a slow card. */
const BOOT_SET_MS = 5 * 60_000;

/** For a trial and whoever waits: pieces large enough for the card and small enough for the memory, and half of the time for others. */
const PROMPT: Pace = { bytes: 1024 * 1024, limitMs: CARD_MS, restMs: (took) => took };

/**
 * Reads a slot's payload from the medium and compares its hash tree with the hash that the record has, and then the boot set, where
 * the card has one, with that payload. Says what is wrong; undefined where nothing is.
 */
export async function readThrough(
  { disk, slots, boot }: Pick<OpenCard, "disk" | "slots"> & Partial<Pick<OpenCard, "boot">>,
  slot: SlotName,
  expected: { hash: string; payloadBytes: number },
  signal: AbortSignal,
  pace = PROMPT,
): Promise<string | undefined> {
  const { bytes } = slots[slot];
  const { payloadBytes, hash } = expected;
  if (payloadBytes === 0 || payloadBytes > bytes)
    return `slot ${slot} has ${bytes} bytes, its record speaks of ${payloadBytes}`;
  const found = await hashOf({ disk, slots }, slot, payloadBytes, signal, pace);
  if (found !== hash) return `slot ${slot} reads as ${found}, its record says ${hash}`;
  return boot?.compare?.(slot, signal);
}

/** The hash of the first bytes of a slot, as a record keeps it, read from the medium. */
export const hashOf = (
  { disk, slots }: Pick<OpenCard, "disk" | "slots">,
  slot: SlotName,
  payloadBytes: number,
  signal: AbortSignal,
  pace = PROMPT,
): Promise<string> => readHash(disk, slots[slot], payloadBytes, pace, signal);
