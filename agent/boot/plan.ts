/**
 * The trial's own record, `DATA/boot/trial.json`: what the old slot wrote down when it armed the trial, and what the new one found.
 * Without it nothing is confirmed. It goes when the trial is over and all was told.
 */
import * as v from "valibot";
import { SLOTS } from "../../boot/layout.ts";
import type { BootRecord } from "../../boot/record.ts";
import type { Store } from "../store.ts";

const Plan = v.object({
  slot: v.picklist(SLOTS),
  /** Of the content, as in the record. */
  hash: v.string(),
  version: v.string(),
  /** What the version floor becomes. */
  floor: v.pipe(v.string(), v.regex(/^\d{1,20}$/)),
  /** As in the boot record; absent when the power went before it was known. */
  trial: v.optional(v.number()),
  tries: v.number(),
  /** The boot that armed it. */
  boot: v.string(),
  by: v.string(),
  /** The yardstick. */
  baseline: v.array(v.string()),
  /** What the slot on trial says of its own end. */
  failed: v.optional(
    v.object({
      attempt: v.number(),
      /** Checks that were not good. */
      checks: v.array(v.string()),
      evidence: v.array(v.string()),
    }),
  ),
});
export type Plan = v.InferOutput<typeof Plan>;

const NAME = "trial";

/** The plan on disk; undefined where there is none, or one that makes no sense. */
export function loadPlan(store: Store): Plan | undefined {
  return store.load(NAME, v.nullable(Plan), null) ?? undefined;
}

/** Replaces the plan, or removes it. */
export function savePlan(store: Store, plan: Plan | undefined): Promise<void> {
  return store.save(NAME, plan ?? null);
}

/** Whether a plan is about what the record says of its slot. */
export function isOf(plan: Plan, { slots, trial }: BootRecord): boolean {
  const slot = slots[plan.slot];
  return (
    slot.hash === plan.hash && (trial === undefined || plan.trial === undefined || plan.trial === trial.id)
  );
}
