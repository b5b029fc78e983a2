/** What an install is given, and what it tells while it runs. */
import type { BlockDevice } from "../hal/ports.ts";
import type { Release } from "./content.ts";
import type { SlotName } from "./layout.ts";
import type { Leaves } from "./leaf.ts";
import type { ProgressStore } from "./progress.ts";
import type { BootSwitch } from "./switch.ts";

/** Where a leaf came from: one of the node's own slots, nowhere since it is zeros, or the payload, however that comes. */
export type Origin = "slots" | "zeros" | "payload";

/** What an install is doing. `bytes` counts towards `of`. */
export interface Step {
  phase: "checking" | "indexing" | "copying" | "writing" | "reading-back" | "staged";
  bytes: number;
  of: number;
  /** Of what was taken since it was begun or gone on with: bytes by their origin. */
  from?: Readonly<Record<Origin, number>>;
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
