import { mkdirSync, readFileSync, readlinkSync, renameSync, rmSync, symlinkSync } from "node:fs";
import { join } from "node:path";
import { CliError, EXIT } from "./terminal.ts";

/** Agents that start together on a stale hold may have to look again; more often is a fault. */
const MOST_TRIES = 5;

/**
 * Makes this process the only agent, or the only `what` else, that writes in a folder, until it lets go or dies: two would tear its journal apart.
 * The hold is a symbolic link whose target names the process: made only where there is none, and short enough to need no
 * room on a full disk. What a dead process left is moved away and looked at again there, since another agent may have
 * replaced it meanwhile. Throws `CliError` busy, naming the process that has it.
 */
export function holdFolder(dir: string, what = "agent"): Disposable {
  mkdirSync(dir, { recursive: true, mode: 0o700 });
  const file = join(dir, `${what}.pid`);
  const own = nameOf(process.pid);
  for (let tries = 0; tries < MOST_TRIES; tries++) {
    if (linked(own, file)) return { [Symbol.dispose]: () => letGo(file, own) };
    const found = read(file);
    if (found === undefined) continue;
    const pid = Number(found.split(" ")[0]);
    if (found === nameOf(pid))
      throw new CliError(EXIT.busy, `${dir}: another ${what} is running there, process ${pid}`);
    moveAway(file, `${file}.${process.pid}`, found);
  }
  throw new CliError(EXIT.busy, `${dir}: other ${what}s are starting there; try again`);
}

/** The process that holds a folder so, if one that lives does. */
export function holderOf(dir: string, what = "agent"): number | undefined {
  const found = read(join(dir, `${what}.pid`));
  const pid = Number(found?.split(" ")[0]);
  return found !== undefined && found === nameOf(pid) ? pid : undefined;
}

/** What holds a folder so, or did when it died; undefined where nothing does. Another text: another hold. */
export const holdOf = (dir: string, what = "agent"): string | undefined => read(join(dir, `${what}.pid`));

/** A process beyond doubt: numbers are used again, and a Pi boots the same way every time. `gone` when it does not run. */
function nameOf(pid: number): string {
  const stat = contentOf(`/proc/${pid}/stat`);
  // proc(5), field 22: ticks from boot to the process's start; an emulator may not say
  const start = stat?.slice(stat.lastIndexOf(")") + 2).split(" ")[19] ?? "gone";
  return `${pid} ${start} ${contentOf("/proc/sys/kernel/random/boot_id")?.slice(0, 13) ?? ""}`;
}

function linked(name: string, file: string): boolean {
  try {
    symlinkSync(name, file);
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "EEXIST") return false;
    throw error;
  }
}

function moveAway(file: string, aside: string, judged: string): void {
  try {
    renameSync(file, aside);
    const moved = read(aside);
    // Not what was judged dead: a living agent's, and back it goes
    if (moved !== undefined && moved !== judged) linked(moved, file);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
  } finally {
    rmSync(aside, { force: true });
  }
}

function letGo(file: string, own: string): void {
  if (read(file) === own) rmSync(file, { force: true });
}

function read(link: string): string | undefined {
  try {
    return readlinkSync(link);
  } catch (error) {
    // A file of that name, whoever made it, names nobody
    return (error as NodeJS.ErrnoException).code === "EINVAL" ? "" : undefined;
  }
}

function contentOf(file: string): string | undefined {
  try {
    return readFileSync(file, "utf8");
  } catch {
    return undefined;
  }
}
