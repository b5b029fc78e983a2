import { setTimeout as sleep } from "node:timers/promises";

/** What a promise gives; throws `late` when that takes longer. What comes too late is nobody's matter any more. */
export async function within<T>(limitMs: number, work: Promise<T>, late: () => Error): Promise<T> {
  const over = new AbortController();
  const limit = sleep(limitMs, undefined, { signal: over.signal }).then(() => {
    throw late();
  });
  limit.catch(() => undefined);
  work.catch(() => undefined);
  try {
    return await Promise.race([work, limit]);
  } finally {
    over.abort();
  }
}
