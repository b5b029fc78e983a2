/** Names of cases, and which of them a test runs: all, some, or the one that `FRUIT_CRASH` names. */
import { env } from "node:process";
import { type Beyond, casesOf, Examiner, type Recording, record } from "./engine.ts";
import { liveFaults } from "./faults.ts";
import type { SCENARIOS } from "./scenarios.ts";

/** What came of a number of cases. */
export interface Outcome {
  cases: number;
  /** Of these, cards that differed. */
  distinct: number;
  /** Cards that have lost what was confirmed (see `Examiner.beyond`). */
  beyond: Readonly<Record<Beyond, number>>;
  /** Name of a case and what did not hold. */
  wrong: string[];
}

/** A case to be made again, where one is asked for: `FRUIT_CRASH=update/17/torn:0:zeros bun test …`. */
export const ASKED = env.FRUIT_CRASH;

/** Which cases: by name, and whether the power failed while a slot was being filled. */
export type Wanted = (name: string, isData: boolean) => boolean;

/** Examines the cases of a scenario whose names `isWanted`. */
export async function examine(scenario: (typeof SCENARIOS)[number], isWanted: Wanted): Promise<Outcome> {
  const recording = await record(scenario);
  const examiner = new Examiner(recording);
  const outcome = { cases: 0, wrong: [] as string[] };
  for (const { name, isData, run } of named(recording, examiner)) {
    if (!isWanted(name, isData)) continue;
    outcome.cases++;
    const found = await run();
    if (found.length > 0) outcome.wrong.push(`${name}\n    ${found.join("\n    ")}`);
  }
  return { ...outcome, distinct: examiner.distinct, beyond: examiner.beyond };
}

function* named(
  recording: Recording,
  examiner: Examiner,
): Generator<{ name: string; isData: boolean; run: () => Promise<readonly string[]> }> {
  const { scenario, calls, journal } = recording;
  for (const cut of casesOf(recording)) {
    const { way } = journal[cut.k - 1] ?? {};
    const isData = way === "a" || way === "b";
    yield { name: `${scenario.name}/${cut.name}`, isData, run: () => examiner.examine(cut) };
  }
  if (!scenario.isMeddledWith) return;
  for (const live of liveFaults(calls))
    yield { name: `${scenario.name}/${live.name}`, isData: false, run: () => examiner.examineLive(live) };
}

/** The same cases every time: few of the many that tear a slot which is being filled, more of the others. */
export const sample: Wanted = (name, isData) => Number(Bun.hash(name) % (isData ? 600n : 60n)) === 0;
