import { linkSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { CliError, EXIT } from "./terminal.ts";

/** Two agents that start together on a stale hold may have to look again; more often is a fault. */
const MOST_TRIES = 5;

/**
 * Makes this process the only agent that writes in a folder, until it lets go or dies: two would tear its journal apart.
 * The hold is a file that names the process; `link` makes one only where there is none. What a dead process left is
 * moved away and looked at again there, since another agent may have replaced it meanwhile.
 * Throws `CliError` busy, naming the process that has it.
 */
export function holdFolder(dir: string): Disposable {
  mkdirSync(dir, { recursive: true, mode: 0o700 });
  const file = join(dir, "agent.pid");
  const own = join(dir, `agent.pid.${process.pid}`);
  const content = `${process.pid} ${startOf(process.pid)}\n`;
  writeFileSync(own, content, { mode: 0o600 });
  try {
    for (let tries = 0; tries < MOST_TRIES; tries++) {
      if (linked(own, file)) return { [Symbol.dispose]: () => letGo(file, content) };
      const found = read(file);
      if (found === undefined) continue;
      const holder = holderOf(found);
      if (holder !== undefined)
        throw new CliError(EXIT.busy, `${dir}: another agent is running there, process ${holder}`);
      moveAway(file, `${own}.stale`, found);
    }
    throw new CliError(EXIT.busy, `${dir}: other agents are starting there; try again`);
  } finally {
    rmSync(own, { force: true });
  }
}

function linked(from: string, to: string): boolean {
  try {
    linkSync(from, to);
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "EEXIST") return false;
    throw error;
  }
}

/** The process that a hold names, if it still runs and is the same one: numbers are used again. */
function holderOf(content: string): number | undefined {
  const [pid = Number.NaN, start = 0] = content.trim().split(" ").map(Number);
  const now = startOf(pid);
  if (now === undefined) return undefined;
  return start === 0 || now === 0 || start === now ? pid : undefined;
}

/** When a process started, in ticks since boot (proc(5), field 22); 0 where an emulator does not say; undefined when it does not run. */
function startOf(pid: number): number | undefined {
  const stat = read(`/proc/${pid}/stat`);
  if (stat === undefined) return undefined;
  return Number(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[19]) || 0;
}

function moveAway(file: string, aside: string, judged: string): void {
  try {
    renameSync(file, aside);
    // Not what was judged dead: a living agent's, and back it goes
    if (read(aside) !== judged) linked(aside, file);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
  } finally {
    rmSync(aside, { force: true });
  }
}

function letGo(file: string, content: string): void {
  if (read(file) === content) rmSync(file, { force: true });
}

function read(file: string): string | undefined {
  try {
    return readFileSync(file, "utf8");
  } catch {
    return undefined;
  }
}
