/** Looks for rot in good slots, which no trial reads any more: a card loses what it holds without a word. */
import { setTimeout as sleep } from "node:timers/promises";
import { SLOTS, type SlotName } from "../../boot/layout.ts";
import type { Pace } from "../../boot/readback.ts";
import { NO_HASH } from "../../boot/slots.ts";
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
}

const HOUR_MS = 3_600_000;
const PIECE = 128 * 1024;
/** Rest after each piece: nothing above 2 MB/s, and never more than a fifth of the card's time. */
const IDLE: Pace = {
  bytes: PIECE,
  limitMs: CARD_MS,
  restMs: (took) => Math.max(PIECE / 2000, 4 * took),
};

/** Reads the good slots through, each round the first of which comes an hour after the start at the latest, and raises an alarm for what is damaged. */
export async function lookForRot(options: RotOptions, signal: AbortSignal): Promise<void> {
  const { hours, alarm, log } = options;
  if (hours === 0) return;
  const wait = (ms: number) => sleep(ms, undefined, { signal }).catch(() => undefined);
  await wait(Math.min(hours, 1) * HOUR_MS);
  while (!signal.aborted) {
    const found: string[] = [];
    for (const slot of SLOTS) found.push(...(await damageOf(options, slot, signal)));
    if (signal.aborted) return;
    log("info", "boot.read-through", { damaged: found });
    const message = `${found.join("; ")}; 'fruit update install' writes a whole release into the slot that does not run, and where this happens again replace the card`;
    alarm("slot-damaged", found.length > 0 ? { severity: "critical", message } : null);
    await wait(hours * HOUR_MS);
  }
}

/** What is wrong with a slot that is good; nothing where it is none, or became none while it was read. Never throws. */
async function damageOf({ card }: RotOptions, slot: SlotName, signal: AbortSignal): Promise<string[]> {
  // Without the boot set of a tryboot card: that is not read at this pace
  const { disk, slots, boot } = card;
  try {
    const before = (await boot.read()).slots[slot];
    if (before.state !== "good" || before.hash === NO_HASH) return [];
    const wrong = await readThrough({ disk, slots }, slot, before, signal, IDLE).catch(
      (error: Error) => `slot ${slot} cannot be read through: ${error.message}`,
    );
    const { state, hash } = (await boot.read()).slots[slot];
    return wrong !== undefined && state === "good" && hash === before.hash ? [wrong] : [];
  } catch {
    // A card that cannot be read at all is an alarm already
    return [];
  }
}
