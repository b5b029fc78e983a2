/** What an install is given, and what it tells while it runs. */
import type { BlockDevice } from "../hal/ports.ts";
import type { Release } from "./content.ts";
import type { SlotName } from "./layout.ts";
import type { Leaves } from "./leaf.ts";
import type { ProgressStore } from "./progress.ts";
import type { BootSwitch } from "./switch.ts";

/** What an install is doing. `bytes` counts towards `of`. */
export interface Step {
  phase: "checking" | "writing" | "reading-back" | "staged";
  bytes: number;
  of: number;
}

/** What a writer needs. */
export interface Install {
  boot: BootSwitch;
  slot: SlotName;
  /** The slot itself, opened so that nobody else writes there. */
  device: BlockDevice;
  release: Release;
  leaves: Leaves;
  progress: ProgressStore;
  /** `compatible` of the node's device tree, the most exact first. */
  compatible: readonly string[];
  /** Unix seconds; undefined while the clock is not synchronised. */
  now: number | undefined;
  /** The latest time that is certainly past, Unix seconds. */
  atLeast?: number;
  signal: AbortSignal;
  /** Told of every step; must not throw. */
  report?: (step: Step) => void;
}
