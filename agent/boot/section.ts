import * as v from "valibot";
import { bounded, level, path, strict, whole } from "../shapes.ts";

/** Section `boot` of `node.json`: slots and trials, on a node that has them. */
export const BootSection = strict({
  /** The disk with the records and the slots; the one that the root is mounted from unless said otherwise. */
  disk: v.optional(path),
  /** Where agent and watchdog feeder meet: heartbeat, trial, loop; in memory. */
  run_dir: v.optional(path, "/run/fruit"),
  /** How often a new release is started before it has failed. */
  tries: whole(1, 10, 3),
  /** From the start of the machine until a trial must be decided; then the slot has failed. */
  deadline_seconds: bounded(1, 3600, 600),
  /** So long every check must stay good. */
  settle_seconds: bounded(0, 1800, 60),
  /** Between two looks of the checks. */
  check_seconds: bounded(0.05, 600, 10),
  /** So long the agent must have been up. */
  agent_seconds: bounded(0, 1800, 30),
  /** A system that runs so long has not crashed: starts before it no longer count as a loop. */
  healthy_seconds: bounded(1, 86_400, 600),
  /** Starts without as much health in between that are a loop. */
  loop_starts: whole(2, 100, 5),
  /** How often the good slots are read through, in the background; 0: never. */
  audit_hours: bounded(0, 500, 24),
  /** Free memory that a trial needs, bytes. */
  memory_min_bytes: whole(0, 2 ** 40, 32 * 1024 * 1024),
  /** OpenRC services that must run. */
  services: v.optional(v.array(v.pipe(v.string(), v.regex(/^[\w.+@-]{1,64}$/))), []),
  /** Programs that must end with exit code 0. */
  checks: v.optional(
    v.array(
      strict({
        name: level("check name"),
        command: v.pipe(v.array(v.string()), v.minLength(1)),
        timeout_seconds: bounded(0.1, 600, 30),
        /** Its first no ends the trial at once. */
        fatal: v.optional(v.boolean(), false),
      }),
    ),
    [],
  ),
  /** What starts this node anew. */
  reboot_command: v.optional(v.pipe(v.array(v.string()), v.minLength(1)), ["reboot"]),
});
