/** What is done now and then: jittered, so that a fleet that started at once does not ask at once. */
import { setTimeout as sleep } from "node:timers/promises";

/**
 * Does something every `ms` on average, each time anew between half and one and a half of it, until the signal aborts; what goes wrong
 * is told and tried again in its turn.
 */
export async function repeat(
  work: () => void | Promise<void>,
  {
    ms,
    isAtOnce = false,
    signal,
    failed,
  }: {
    ms: number | (() => number);
    /** The first time without waiting. */
    isAtOnce?: boolean;
    signal: AbortSignal;
    failed(error: unknown): void;
  },
): Promise<void> {
  for (let turn = 0; !signal.aborted; turn++) {
    const nextMs = typeof ms === "number" ? ms : ms();
    if (turn > 0 || !isAtOnce) await pause(nextMs * (0.5 + Math.random()), signal);
    if (signal.aborted) return;
    try {
      await work();
    } catch (error) {
      if (!signal.aborted) failed(error);
    }
  }
}

/** Waits, at most until the signal aborts. */
export async function pause(ms: number, signal: AbortSignal): Promise<void> {
  await sleep(ms, undefined, { signal }).catch(() => undefined);
}
