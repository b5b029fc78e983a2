/** Places where a test kills this process: inert unless `FRUIT_FAILPOINT` names one, as `writer.checkpoint` or `writer.checkpoint:3`. */
import { env, kill, pid } from "node:process";

/** Every place there is, for tests that visit them all. */
export const FAILPOINTS = [
  "record.before-write",
  "record.after-write",
  "record.after-flush",
  "writer.begun",
  "writer.leaf",
  "writer.checkpoint",
  "writer.before-first-leaf",
  "writer.read-back",
  "writer.before-staged",
  "writer.staged",
  "trial.before-arm",
  "trial.armed",
  "trial.before-confirm",
  "trial.confirmed",
  "trial.before-fail",
  "trial.failed",
  "history.appended",
] as const;
export type Failpoint = (typeof FAILPOINTS)[number];

/** Ends the process with SIGKILL where the test asked for it; `count` tells passes of a loop apart. */
export function failpoint(name: Failpoint, count?: number): void {
  const asked = env.FRUIT_FAILPOINT;
  if (asked === undefined) return;
  if (asked === name || (count !== undefined && asked === `${name}:${count}`)) kill(pid, "SIGKILL");
}
