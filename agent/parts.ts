/** A long-running part: returns when told to stop, throws when it cannot go on. */
export type Part = (signal: AbortSignal) => Promise<void>;

/** Runs every part until the signal aborts or one of them fails; then all of them are stopped. */
export async function together(parts: Part[], signal: AbortSignal): Promise<void> {
  const stop = new AbortController();
  const running = parts.map((part) => part(AbortSignal.any([signal, stop.signal])));
  try {
    await Promise.all(running);
  } finally {
    stop.abort();
    await Promise.allSettled(running);
  }
}
