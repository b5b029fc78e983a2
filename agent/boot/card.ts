/** The node's card as the agent uses it: every answer within a time, since a card that hangs must not hang the agent. */

import { setTimeout as sleep } from "node:timers/promises";
import { LEAF_BYTES } from "../../boot/content.ts";
import type { Partition, SlotName } from "../../boot/layout.ts";
import { hashLeaf, MerkleTree } from "../../boot/merkle.ts";
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
  const limited = <T>(work: Promise<T>) =>
    within(limitMs, work, () => new HalError("timeout", `${name}: no answer within ${limitMs / 1000} s`));
  return {
    kind: boot.kind,
    get current() {
      return boot.current;
    },
    records: () => limited(boot.records()),
    read: () => limited(boot.read()),
    setState: (slot, change) => limited(boot.setState(slot, change)),
    setPrimary: (slot, why) => limited(boot.setPrimary(slot, why)),
    armTrial: (slot, tries) => limited(boot.armTrial(slot, tries)),
    settle: () => limited(boot.settle()),
    ...(boot.refuses ? { refuses: boot.refuses.bind(boot) } : {}),
  };
}

/** What is read at once: large enough for the card, small enough for the memory. */
const CHUNK_LEAVES = 64;
/** Of the time of a chunk, that much again is left to others. */
const REST = 1;

/**
 * Reads a slot's payload from the medium and compares its hash tree with the hash that the record has. Says what is wrong;
 * undefined where nothing is.
 */
export async function readThrough(
  { disk, slots }: Pick<OpenCard, "disk" | "slots">,
  slot: SlotName,
  expected: { hash: string; payloadBytes: number },
  signal: AbortSignal,
): Promise<string | undefined> {
  const { bytes } = slots[slot];
  const { payloadBytes, hash } = expected;
  if (payloadBytes === 0 || payloadBytes > bytes)
    return `slot ${slot} has ${bytes} bytes, its record speaks of ${payloadBytes}`;
  const found = await hashOf({ disk, slots }, slot, payloadBytes, signal);
  return found === hash ? undefined : `slot ${slot} reads as ${found}, its record says ${hash}`;
}

/** Reads the first bytes of a slot from the medium: the first 16 bytes of their hash, hex. Memory is that of one chunk. */
export async function hashOf(
  { disk, slots }: Pick<OpenCard, "disk" | "slots">,
  slot: SlotName,
  payloadBytes: number,
  signal: AbortSignal,
): Promise<string> {
  const { offset, bytes } = slots[slot];
  const tree = new MerkleTree();
  const step = CHUNK_LEAVES * LEAF_BYTES;
  for (let at = 0; at < payloadBytes; at += step) {
    signal.throwIfAborted();
    const began = performance.now();
    const length = Math.min(step, payloadBytes - at);
    // Whole sectors of the medium; what follows a payload is still the slot's
    const read = disk.readMedium(offset + at, Math.min(Math.ceil(length / 4096) * 4096, bytes - at));
    const chunk = await within(
      CARD_MS,
      read,
      () =>
        new HalError("timeout", `${disk.name}: no answer at byte ${offset + at} within ${CARD_MS / 1000} s`),
    );
    for (let leaf = 0; leaf < length; leaf += LEAF_BYTES)
      tree.add(hashLeaf(chunk.subarray(leaf, Math.min(leaf + LEAF_BYTES, length))));
    await sleep((performance.now() - began) * REST, undefined, { signal });
  }
  return Buffer.from(tree.root().subarray(0, 16)).toString("hex");
}
