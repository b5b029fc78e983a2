import { spawn } from "node:child_process";

/** Runs what ends this node, to the command's end. Rejects when it cannot be started or failed. */
export function runShutdown([program = "", ...args]: readonly string[]): Promise<void> {
  // Of a group of its own: what stops the agent must not stop what was to stop the node.
  const child = spawn(program, args, { stdio: "ignore", detached: true });
  child.unref();
  return new Promise((resolve, reject) => {
    child.once("error", (cause) => reject(new Error(`${program}: ${cause.message}`, { cause })));
    child.once("exit", (code, killed) => {
      if (code === 0) return resolve();
      const how = code === null ? `was ended by ${killed}` : `failed with exit code ${code}`;
      reject(new Error(`${program}: ${how}`));
    });
  });
}
