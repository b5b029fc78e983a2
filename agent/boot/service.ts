/**
 * Slots as one part of a node: what this start is, the trial it may be, the yardstick for the next one, and commands about them.
 *
 * Invariants
 * - A slot becomes good only when every check was good in this boot, or by a person who says why.
 * - The record on the card is the truth; a card that hangs or cannot be read stops nothing but this part.
 * - On a machine without slots nothing is published, and every command says so.
 */
import { statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { Hal } from "../../hal/ports.ts";
import type { Command } from "../commands.ts";
import type { Config } from "../config.ts";
import type { Log } from "../log.ts";
import type { Publish, RaiseAlarm, Tell } from "../messages.ts";
import { type Part, together } from "../parts.ts";
import type { OpenCard } from "./card.ts";
import { bootCommands } from "./commands.ts";
import { Slots } from "./slots.ts";
import { type Following, publishUpdate } from "./updates.ts";

/** What the service is made of. */
export interface BootOptions {
  config: Config["boot"];
  dataDir: string;
  /** Where this agent answers. */
  socket: string;
  hal: Pick<Hal, "machine" | "openDisk">;
  /** Opens the card: undefined on a machine that has none of ours, `ForeignCard` where it is laid out otherwise. */
  open(): Promise<OpenCard | undefined>;
  isBrokerReached(): boolean;
  /** Numbers of the power buses that answer. */
  buses(): number[];
  isStackBeating(): boolean;
  isPowerBusy(): boolean;
  /** What is followed, and what came of it. */
  following?(): Following | undefined;
  clock: () => { synced: boolean };
  publish: Publish;
  tell: Tell;
  alarm: RaiseAlarm;
  log: Log;
  /** Milliseconds that only ever pass. */
  nowMs?: () => number;
}

/** Slots as the agent sees them. */
export interface BootService {
  part: Part;
  commands: Command[];
  slots: Slots;
}

const BEAT_MS = 5000;

/** Makes the service. Nothing is opened before its part runs. */
export function createBootService(options: BootOptions): BootService {
  const slots = new Slots(options);
  return {
    part: (signal) =>
      together(
        [
          heartbeat(options),
          (stop) => slots.run(stop),
          (stop) => publishUpdate(options, () => slots.status, stop),
        ],
        signal,
      ),
    commands: bootCommands(slots),
    slots,
  };
}

/** Tells the watchdog feeder that the event loop lives. Without its folder there is no feeder. */
function heartbeat({ config, log }: Pick<BootOptions, "config" | "log">): Part {
  return async (signal) => {
    let isSaid = false;
    while (!signal.aborted) {
      try {
        if (statSync(config.run_dir, { throwIfNoEntry: false }))
          writeFileSync(join(config.run_dir, "heartbeat"), "");
        isSaid = false;
      } catch (error) {
        if (!isSaid) log("error", "boot.no-heartbeat", { error: String(error) });
        isSaid = true;
      }
      await sleep(BEAT_MS, undefined, { signal }).catch(() => undefined);
    }
  };
}
