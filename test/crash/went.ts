/** An update that went well, and ways to ask what would have become of it. */
import { expect } from "bun:test";
import { RECORD_OFFSETS } from "../../boot/layout.ts";
import type { Fault, Image, Step } from "./disk.ts";
import { casesOf, Examiner, type Recording, record } from "./engine.ts";
import type { Cut } from "./faults.ts";
import { Node } from "./node.ts";
import { NEW, NEXT, OLD, SCENARIOS } from "./scenarios.ts";

/** Three good releases. */
export const WORLD = [OLD, NEW, NEXT].map((payload) => ({ payload, health: "well" as const }));
/** A scenario by its name. */
export const scenario = (name: string) => {
  const found = SCENARIOS.find((one) => one.name === name);
  if (!found) throw new Error(`there is no scenario ${name}`);
  return found;
};

/** An update that goes well, made once. */
export const went = record(scenario("update"));
/** Whether a step writes a record. */
export const isRecord = (step: Step | undefined) =>
  step?.kind === "write" && RECORD_OFFSETS.some((offset) => offset === step.offset);
/** Whether a step writes into a slot. */
export const isData = (step: Step | undefined) => step?.kind === "write" && !isRecord(step);
/** Number of steps done after the step at each of these places. */
export const after = ({ journal }: Recording, isWanted: (step: Step) => boolean) =>
  journal.flatMap((step, index) => (isWanted(step) ? [index + 1] : []));

/** Examines some of the cuts, at least one; what does not hold. */
export async function examine(recording: Recording, isWanted: (cut: Cut) => boolean): Promise<string[]> {
  const examiner = new Examiner(recording);
  const wrong: string[] = [];
  let count = 0;
  for (const cut of casesOf(recording)) {
    if (!isWanted(cut)) continue;
    count++;
    for (const found of await examiner.examine(cut)) wrong.push(`${cut.name}: ${found}`);
  }
  expect(count).toBeGreaterThan(0);
  return wrong;
}
/** Cuts at these steps, torn ones too. */
export const cutAt = async (...steps: number[]) =>
  examine(
    await went,
    ({ k, name, proviso }) => steps.includes(k) && proviso === "none" && !/\/(late|nodata)/.test(name),
  );

/** A node on a card, with the fault if there is one. */
export function nodeOn(image: Image, faults: readonly Fault[] = []): Node {
  const node = new Node(image, WORLD);
  node.disk.faults = faults;
  return node;
}

/** The records' steps of the update: begun, staged, armed, started, confirmed. */
export async function recordSteps(): Promise<
  Record<"begun" | "staged" | "armed" | "started" | "confirmed", number>
> {
  const [begun = 0, staged = 0, armed = 0, started = 0, confirmed = 0] = after(await went, isRecord);
  return { begun, staged, armed, started, confirmed };
}
