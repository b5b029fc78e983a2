/** How long anything may take in an emulated machine, milliseconds: generous, since the emulation shares two slow cores with other work. */
export const LIMITS = {
  /** From the start of the emulator to the first command. */
  boot: 240_000,
  /** One command in the machine. */
  command: 120_000,
  /** Something that happens by itself while a test looks. */
  event: 60_000,
  /** Anything that a node does by itself: a trial with its start, a roll-back with two. */
  trial: 480_000,
  /** A whole test. */
  test: 600_000,
};

/** What is waited for, or an error that names it after `limitMs`. */
export async function within<T>(what: string, waiting: Promise<T>, limitMs = LIMITS.event): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what}: not within ${limitMs / 1000} s`)), limitMs);
  });
  try {
    return await Promise.race([waiting, late]);
  } finally {
    clearTimeout(timer);
  }
}
