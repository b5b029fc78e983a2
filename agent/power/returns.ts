import { setTimeout as sleep } from "node:timers/promises";
import type { BoardReading, OutletId } from "../../hal/ports.ts";
import type { Log } from "../log.ts";
import type { RaiseAlarm } from "../messages.ts";
import { perform } from "./actions.ts";
import type { Outlet } from "./outlet.ts";
import { isGood } from "./result.ts";
import type { Means } from "./switch.ts";

/** After an outage the input may stay low, a bus may be dead, a Pi may be booting: it is tried again this often, this long. */
const TRY_AGAIN_MS = 60_000;
const LIMIT_MS = 1_800_000;

/**
 * What an outlet is to do now that the mains are back (rule P17). A board knows on and off by itself; `last` and an override for
 * one time are kept by us. `last` never cuts: what somebody switched on meanwhile stays on.
 */
function wantedOf({ memory }: Outlet): "on" | "off" | undefined {
  const policy = memory.once ?? memory.policy;
  if (policy === "last") return memory.supply === "on" ? "on" : undefined;
  return memory.once === undefined ? undefined : policy;
}

/** What the returns of the mains are acted on with. */
interface ReturnsOptions {
  means: Means;
  alarm: RaiseAlarm;
  log: Log;
  signal: AbortSignal;
}

/**
 * Acts on the return of a board's supply, seen by its boot count.
 *
 * Invariants
 * - Until an outlet is as its policy wants it, or somebody has decided otherwise, it is owed: its supply as it was before is not
 *   forgotten, and its present one is nobody else's doing.
 * - A boot count is remembered when nothing is owed any more, so that an agent that dies before goes on with it.
 */
export class Returns {
  readonly #options: ReturnsOptions;
  /** Boot counts that are acted on, by board. */
  readonly #seen = new Map<number, number>();
  readonly #running = new Map<OutletId, Promise<void>>();

  constructor(options: ReturnsOptions) {
    this.#options = options;
  }

  /** Takes note of what a board says of itself; its outlets were read just before. */
  note(board: number, { bootCount }: BoardReading, outlets: readonly Outlet[]): void {
    const { memory } = this.#options.means;
    const known = memory.boards[board];
    if (bootCount === undefined || bootCount === known) return;
    if (known !== undefined && this.#seen.get(board) !== bootCount) {
      this.#seen.set(board, bootCount);
      this.#begin(board, bootCount, outlets);
    }
    for (const outlet of outlets) this.#settle(outlet);
    if (outlets.some(({ owed }) => owed !== undefined)) return;
    memory.boards[board] = bootCount;
    void memory.save();
    this.#options.alarm(`restore-${board}`, null);
  }

  /** Resolves when nothing is under way. */
  async idle(): Promise<void> {
    await Promise.allSettled(this.#running.values());
  }

  #begin(board: number, bootCount: number, outlets: readonly Outlet[]): void {
    const { means, log } = this.#options;
    log("info", "power.mains-returned", { board, boots: bootCount });
    means.tell("power.mains-returned", {
      board,
      boots: bootCount,
      message: `the supply of board ${board} was lost and is back`,
    });
    for (const outlet of outlets) {
      const wanted = wantedOf(outlet);
      outlet.owed = wanted ?? "any";
      if (wanted === undefined || wanted === outlet.supply || this.#running.has(outlet.id)) continue;
      const running = this.#restore(board, outlet)
        .catch((error) => log("error", "power.restore", { outlet: outlet.id, error: String(error) }))
        .finally(() => this.#running.delete(outlet.id));
      this.#running.set(outlet.id, running);
    }
  }

  /** An outlet that is as it is to be: its board saw to it, or a try of ours that seemed in vain. */
  #settle(outlet: Outlet): void {
    const { owed, supply } = outlet;
    const { means } = this.#options;
    if (owed === undefined || supply === "unknown" || this.#running.has(outlet.id)) return;
    if (owed !== "any" && owed !== supply) return;
    const by = owed === "any" ? "board" : "policy";
    outlet.explain(supply, { cause: "policy-restore", by }, means.now());
    means.happened(outlet.id, { kind: "power", what: `${supply} by ${by}, the mains are back` });
    means.changed(outlet);
  }

  /** Switches until it is done, or somebody has decided what the supply is to be. Gives up with an alarm. */
  async #restore(board: number, outlet: Outlet): Promise<void> {
    const { means, signal, alarm } = this.#options;
    const startedAt = performance.now();
    while (outlet.owed === "on" || outlet.owed === "off") {
      const { config } = means;
      const result = await perform(means, outlet, {
        verb: outlet.owed,
        door: "policy",
        by: "policy",
        cause: "policy-restore",
        reason: undefined,
        force: false,
        self: false,
        offTimeSeconds: config.off_time_seconds,
        graceSeconds: config.grace_seconds,
        wait: false,
        dryRun: false,
        signal,
        progress: () => undefined,
      });
      if (signal.aborted || isGood(result)) return;
      if (performance.now() - startedAt >= LIMIT_MS)
        return alarm(`restore-${board}`, {
          severity: "critical",
          message: `${outlet.label}: not switched ${outlet.owed} after the mains came back: ${result.message ?? result.outcome}; 'fruit power ${outlet.owed} ${outlet.id}'`,
        });
      await sleep(TRY_AGAIN_MS, undefined, { signal }).catch(() => undefined);
    }
  }
}
