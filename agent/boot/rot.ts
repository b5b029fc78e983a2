/** Looks for rot in good slots, which no trial reads any more: a card loses what it holds without a word. */
import { setTimeout as sleep } from "node:timers/promises";
import { SLOTS, type SlotName } from "../../boot/layout.ts";
import type { Pace } from "../../boot/readback.ts";
import { NO_HASH } from "../../boot/slots.ts";
import { HalError } from "../../hal/ports.ts";
import type { Log } from "../log.ts";
import type { RaiseAlarm } from "../messages.ts";
import { CARD_MS, type OpenCard, readThrough } from "./card.ts";

/** What it works with. */
export interface RotOptions {
  card: OpenCard;
  /** From one round to the next, of the time that this agent runs; 0: never. */
  hours: number;
  alarm: RaiseAlarm;
  log: Log;
  /** Waits so long, or until told to stop. */
  wait?: (ms: number, signal: AbortSignal) => Promise<unknown>;
}

const HOUR_MS = 3_600_000;
const PIECE = 128 * 1024;
/** Rest after each piece: nothing above 2 MB/s, and never more than a fifth of the card's time. */
const IDLE: Pace = {
  bytes: PIECE,
  limitMs: CARD_MS,
  restMs: (took) => Math.max(PIECE / 2000, 4 * took),
};

/**
 * Reads the good slots through, and raises an alarm for what is damaged. The first round comes an hour after the start at the latest,
 * and so does the next one while something is found: a slot that was cured is not called damaged for a day.
 */
export async function lookForRot(options: RotOptions, signal: AbortSignal): Promise<void> {
  const { hours, alarm, log, wait = waitFor } = options;
  if (hours === 0) return;
  const soon = Math.min(hours, 1);
  await wait(soon * HOUR_MS, signal);
  const known = new Map<SlotName, Damage>();
  while (!signal.aborted) {
    for (const slot of SLOTS) {
      const damage = await damageOf(options, slot, known.get(slot), signal);
      if (damage) known.set(slot, damage);
      else known.delete(slot);
    }
    if (signal.aborted) return;
    const found = [...known.values()].map(({ wrong }) => wrong);
    log("info", "boot.read-through", { damaged: found });
    const message = `${found.join("; ")}; 'fruit update install' writes a whole release into the slot that does not run, and where this happens again replace the card`;
    alarm("slot-damaged", found.length > 0 ? { severity: "critical", message } : null);
    await wait((found.length > 0 ? soon : hours) * HOUR_MS, signal);
  }
}

const waitFor = (ms: number, signal: AbortSignal) => sleep(ms, undefined, { signal }).catch(() => undefined);

/** What was found in a slot, and in which content. */
interface Damage {
  hash: string;
  wrong: string;
}

/**
 * What is wrong with a slot that is good; nothing where it is none, or became none while it was read. A card that is slow is not
 * damaged: what was known before holds then. Never throws.
 */
async function damageOf(
  { card, log }: RotOptions,
  slot: SlotName,
  known: Damage | undefined,
  signal: AbortSignal,
): Promise<Damage | undefined> {
  // Without the boot set of a tryboot card: that is not read at this pace
  const { disk, slots, boot } = card;
  try {
    const before = (await boot.read()).slots[slot];
    if (before.state !== "good" || before.hash === NO_HASH) return undefined;
    const unread = (error: Error) => {
      if (!(error instanceof HalError && error.code === "timeout"))
        return `slot ${slot} cannot be read through: ${error.message}`;
      log("warn", "boot.read-through-late", { slot, error: error.message });
      return known?.hash === before.hash ? known.wrong : undefined;
    };
    const wrong = await readThrough({ disk, slots }, slot, before, signal, IDLE).catch(unread);
    const { state, hash } = (await boot.read()).slots[slot];
    const isStill = state === "good" && hash === before.hash;
    return wrong !== undefined && isStill ? { hash, wrong } : undefined;
  } catch {
    // A card that cannot be read at all is an alarm already
    return known;
  }
}
