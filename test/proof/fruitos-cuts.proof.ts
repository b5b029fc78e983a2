/**
 * fruitos on an emulated Pi 3 whose power is cut again and again: while it starts, installs, begins a trial, starts on trial, is on
 * trial. It comes back each time to a system that is whole, by the hash of every byte, and at the end it has become what it should.
 *
 * Emulation, not hardware: the SD card takes every write that it acknowledged.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { otherSlot, SLOTS } from "../../boot/layout.ts";
import { HAS_MOSQUITTO, NEEDS_MOSQUITTO } from "../broker.ts";
import { missingForEmulator } from "../emulator/cache.ts";
import { copyCard, type Fruitos, lookAtCard, type Start } from "../emulator/fruitos.ts";
import { flashed, Lab, report, type Status, tell } from "../emulator/lab.ts";
import { LIMITS } from "../emulator/limits.ts";
import { Workshop } from "../emulator/releases.ts";
import { seeded } from "../fakes.ts";
import { until } from "../node.ts";

const CUTS = Number(process.env.FRUIT_CUTS ?? 20);
const SEED = Number(process.env.FRUIT_SEED ?? 4);
const PATIENCE = LIMITS.trial;
/** The newest release there is. */
const LAST = 3;

/** What a node may be at when its power goes, in the order of an update, and how long that takes here at most, ms. */
const PHASES = {
  start: 30_000,
  install: 45_000,
  arm: 5_000,
  "start on trial": 30_000,
  trial: 15_000,
} as const;
type Phase = keyof typeof PHASES;
const IN_ORDER = Object.keys(PHASES) as Phase[];

/** The phase that was cut least, of those that a node with or without an armed trial can come to. */
function rarest(tally: ReadonlyMap<Phase, number>, isArmed: boolean): Phase {
  const possible = IN_ORDER.filter((phase) => !isArmed || phase !== "start");
  const times = (phase: Phase) => tally.get(phase) ?? 0;
  return possible.reduce((least, phase) => (times(phase) < times(least) ? phase : least));
}

const missing = missingForEmulator() ?? (HAS_MOSQUITTO ? undefined : NEEDS_MOSQUITTO);

describe.skipIf(missing !== undefined)(
  `power cuts in emulation${missing ? ` [needs: ${missing}]` : ""}`,
  () => {
    const folder = mkdtempSync(join(tmpdir(), "fruit-proof-"));
    let lab: Lab;
    /** A node that has run version 1 and has reached its broker. */
    let card: string;

    beforeAll(async () => {
      lab = await Lab.open();
      const workshop = await Workshop.open(folder);
      const releases = [await workshop.release(2n), await workshop.release(3n)];
      card = await flashed(workshop, 1n, releases);
      await using pi = await lab.switchOn(card);
      await lab.lives(pi, "a");
      await lab.hasBaseline(pi);
    }, 2 * PATIENCE);

    afterAll(async () => {
      await lab?.[Symbol.asyncDispose]();
      rmSync(folder, { recursive: true, force: true });
    });

    /** What the node says once no trial is open any more; or that it has started again, since one was given up. */
    async function decision(pi: Fruitos, start: Start): Promise<Status | "started again" | undefined> {
      let now: Status | undefined;
      try {
        now = await lab.status(pi);
      } catch (error) {
        // Its agent may not answer yet
        if (!pi.isOn) throw error;
      }
      if (pi.start !== start) return "started again";
      return now?.trial ? undefined : now;
    }

    /** Installs what is newer and restarts to try it. False where the node has become what it should. */
    async function update(
      pi: Fruitos,
      { running, slots }: Status,
      doing: (phase: Phase) => void,
    ): Promise<boolean> {
      const next = Number(slots[running].version) + 1;
      if (next > LAST) return false;
      if (slots[otherSlot(running)].state !== "staged") {
        doing("install");
        await pi.output(`date -s @1795000000; fruit update install /data/incoming/${next}.fruit`, PATIENCE);
      }
      doing("arm");
      await lab.tries(pi);
      doing("start on trial");
      return true;
    }

    /** Goes on with whatever this node has to do until it runs the last release. */
    async function goOn(pi: Fruitos, isArmed: boolean, doing: (phase: Phase) => void): Promise<void> {
      doing(isArmed ? "start on trial" : "start");
      for (let after = 0, goesOn = true; goesOn; ) {
        const start = await pi.reached("ready", () => true, { after, limitMs: PATIENCE });
        after = pi.starts.indexOf(start) + 1;
        if (start.isTrial) doing("trial");
        const decided = await until("a decision", () => decision(pi, start), PATIENCE);
        if (decided !== "started again") goesOn = await update(pi, decided, doing);
      }
    }

    /** Looks at a card whose Pi is off: what it starts from, and whatever else it may start, is whole. */
    async function examine(image: string): Promise<{ inWords: string; isArmed: boolean; isDone: boolean }> {
      const { record, whole } = await lookAtCard(image);
      expect(whole).toContain(record.primary);
      const slots = SLOTS.map((slot) => {
        const { state, version } = record.slots[slot];
        if (["good", "staged", "trying"].includes(state)) expect(whole).toContain(slot);
        return `${slot} ${state}${state === "empty" ? "" : ` ${version}`}${whole.includes(slot) ? ", whole" : ""}`;
      });
      const inWords = `record ${record.sequence}: from ${record.primary}; ${slots.join("; ")}`;
      const isDone = record.slots[record.primary].version === BigInt(LAST);
      return { inWords, isArmed: record.trial !== undefined, isDone };
    }

    test(
      `comes back whole from ${CUTS} power cuts in all phases of an update, seed ${SEED}`,
      async () => {
        const random = seeded(SEED);
        const image = join(folder, "cuts.img");
        const tally = new Map<Phase, number>();
        let [isArmed, isDone] = [false, true];
        for (let cut = 1; cut <= CUTS; cut++) {
          if (isDone) await copyCard(card, image);
          const wanted = rarest(tally, isArmed);
          let phase: Phase = "start";
          await using pi = await lab.switchOn(image);
          let isOver = false;
          let problem: unknown;
          const working = goOn(pi, isArmed, (now) => {
            phase = now;
          })
            .catch((error) => {
              problem = error;
            })
            .finally(() => {
              isOver = true;
            });
          // Where it does not come to that any more, since it has become what it should, it is cut there
          await until(`the phase "${wanted}"`, () => isOver || phase === wanted, 3 * PATIENCE);
          await Promise.race([working, Bun.sleep(random() * PHASES[wanted])]);
          if (problem !== undefined) throw problem;
          const at = phase;
          tally.set(at, (tally.get(at) ?? 0) + 1);
          const last = Object.keys(pi.start?.atMs ?? {}).at(-1);
          await pi[Symbol.asyncDispose]();
          await working;
          const found = await examine(image);
          [isArmed, isDone] = [found.isArmed, found.isDone];
          tell(`cut ${cut}: ${at} (${last}); ${found.inWords}`);
        }
        tell(`cuts by phase: ${IN_ORDER.map((phase) => `${phase} ${tally.get(phase) ?? 0}`).join(", ")}`);
        await using pi = await lab.switchOn(image);
        await goOn(pi, isArmed, () => undefined);
        const { running, slots } = await lab.status(pi);
        expect(slots[running]).toMatchObject({ state: "good", version: String(LAST) });
        report("after all cuts", pi);
        await pi[Symbol.asyncDispose]();
        tell((await examine(image)).inWords);
        for (const phase of IN_ORDER) expect([phase, tally.get(phase) ?? 0]).not.toEqual([phase, 0]);
      },
      CUTS * PATIENCE,
    );
  },
);
