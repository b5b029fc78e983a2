import { type ChildProcess, spawn } from "node:child_process";
import { setTimeout as sleep } from "node:timers/promises";

/** A command that ends a node returns at once, or hands over to somebody who takes longer. */
const COMMAND_MS = 10_000;

/**
 * Runs what ends this node. Resolves once it has returned well, or is still at it after ten seconds, in which case it is
 * left alone. Rejects when it cannot be started or failed.
 */
export async function runShutdown(
  [program = "", ...args]: readonly string[],
  signal: AbortSignal,
): Promise<void> {
  // Of a group of its own: what stops the agent must not stop what was to stop the node.
  const child = spawn(program, args, { stdio: "ignore", detached: true });
  child.unref();
  const over = new AbortController();
  const limit = sleep(COMMAND_MS, undefined, { signal: AbortSignal.any([signal, over.signal]), ref: false });
  try {
    await Promise.race([ended(child, program), limit.catch(() => undefined)]);
  } finally {
    over.abort();
  }
}

function ended(child: ChildProcess, program: string): Promise<void> {
  return new Promise((resolve, reject) => {
    child.once("error", (cause) => reject(new Error(`${program}: ${cause.message}`, { cause })));
    child.once("exit", (code, killed) => {
      if (code === 0) resolve();
      else
        reject(
          new Error(
            `${program}: ${code === null ? `was ended by ${killed}` : `failed with exit code ${code}`}`,
          ),
        );
    });
  });
}
