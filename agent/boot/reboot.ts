import { setTimeout as sleep } from "node:timers/promises";
import type { Log } from "../log.ts";
import type { RaiseAlarm } from "../messages.ts";
import { runShutdown } from "../stack/shutdown.ts";

/** What was said on MQTT before needs a moment to get out. */
const SPEAK_MS = 1500;
/** A node that is still here then does not go down. */
const DOWN_MS = 120_000;

/** Starts this node anew, and does not give up: resolves when told to stop, which is what a node that goes down does. */
export async function rebootUntil(
  why: string,
  { command, alarm, log }: { command: readonly string[]; alarm: RaiseAlarm; log: Log },
  signal: AbortSignal,
): Promise<void> {
  await sleep(SPEAK_MS, undefined, { signal }).catch(() => undefined);
  while (!signal.aborted) {
    log("warn", "boot.reboot", { why, command });
    const failed = await runShutdown(command).then(
      () => undefined,
      (error: Error) => error.message,
    );
    if (failed === undefined) await sleep(DOWN_MS, undefined, { signal }).catch(() => undefined);
    if (signal.aborted) return;
    const message = `this node was to start anew (${why}) and did not: ${failed ?? `it is still up after ${DOWN_MS / 1000} s`}; reboot it`;
    alarm("boot-reboot", { severity: "critical", message });
    log("error", "boot.reboot-failed", { why, error: failed ?? "still up" });
    await sleep(DOWN_MS, undefined, { signal }).catch(() => undefined);
  }
}
