import type { Machine } from "../hal/ports.ts";
import { BUILD } from "./version.ts";

/** Asking the kernel costs a system call; a clock that was just set is noticed this much later. */
const KEEP_MS = 1000;

/**
 * Whether this node knows the time. A Pi has no clock of its own: until something has set it, time stamps are left out
 * and signed commands need a challenge. A time before this program was made is wrong whatever the kernel believes.
 */
export function createClock(machine: Machine): () => { synced: boolean } {
  let known = { synced: false };
  let askedMs = Number.NEGATIVE_INFINITY;
  return () => {
    const nowMs = performance.now();
    if (nowMs - askedMs > KEEP_MS) {
      askedMs = nowMs;
      known = { synced: machine.clock().synced && Date.now() / 1000 > BUILD.time };
    }
    return known;
  };
}
