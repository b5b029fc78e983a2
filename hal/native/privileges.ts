/**
 * What a process that talks to strangers gives up for good before it hears the first of them.
 *
 * Under Node, where C cannot be called, it changes its user and no more.
 */
import { writeFileSync } from "node:fs";
import { addressOf, checked, libc } from "./libc.ts";
import { isBun } from "./runtime.ts";

/** linux/prctl.h */
const PR = { setPdeathsig: 1, setNoNewPrivs: 38 };
/** setrlimit(2), asm-generic/resource.h */
const RLIMIT = { core: 4, files: 7 };
const SIGKILL = 9;
/** fcntl(2), asm-generic/fcntl.h */
const F_SETFD = 2;
/** The kernel ends this one first where memory is short: proc_pid_oom_score_adj(5). */
const FIRST_TO_GO = "1000";

/** What is left to it. */
export interface Left {
  /** User and group it becomes where it is root; a user's own process keeps its user. */
  user: number;
  /** Files and sockets it may have open. */
  files: number;
}

/** Gives up the user, all groups, what programs with more rights would bring back, core files, and many open files. Throws `systemError`. */
export function lowerPrivileges({ user, files }: Left): void {
  try {
    writeFileSync("/proc/self/oom_score_adj", FIRST_TO_GO);
  } catch {
    // a kernel without it ends whatever it likes
  }
  if (isBun) {
    limit(RLIMIT.core, 0);
    limit(RLIMIT.files, files);
    checked("prctl", libc().prctl(PR.setNoNewPrivs, 1n, 0n, 0n, 0n), "PR_SET_NO_NEW_PRIVS");
  }
  if (process.getuid?.() !== 0) return;
  process.setgroups?.([]);
  process.setgid?.(user);
  process.setuid?.(user);
  if (process.getuid?.() !== user || process.geteuid?.() !== user)
    throw new Error(`this process is still user ${process.geteuid?.()}, not ${user}`);
}

/** Files stay open when the program starts anew: Bun marks those it was given to be closed. */
export function keepOpen(files: readonly number[]): void {
  if (isBun) for (const file of files) checked("fcntl", libc().fcntl(file, F_SETFD, 0n), `file ${file}`);
}

/**
 * Starts this program anew in the same process, so that every thread of it has what was given up: a thread that ran before keeps
 * its own "no new privileges", and what a higher user has read is gone from memory. Returns where that cannot be.
 */
export function startAnew(argv: readonly string[], env: Readonly<Record<string, string | undefined>>): void {
  if (!isBun) return;
  const held: Uint8Array[] = [];
  const text = (one: string) => {
    const bytes = Buffer.from(`${one}\0`);
    held.push(bytes);
    return BigInt(addressOf(bytes));
  };
  const list = (all: readonly string[]) => new BigUint64Array([...all.map(text), 0n]);
  const words = Object.entries(env).flatMap(([name, value]) =>
    value === undefined ? [] : [`${name}=${value}`],
  );
  const [own, given, around] = [Buffer.from("/proc/self/exe\0"), list(argv), list(words)];
  libc().execve(own, given, around);
  held.length = 0; // and not before: the kernel reads it
}

/** The kernel ends this process when the one that started it dies, however that dies. To be asked for after the last change of user. */
export function diesWithParent(): void {
  if (isBun) checked("prctl", libc().prctl(PR.setPdeathsig, BigInt(SIGKILL), 0n, 0n, 0n), "PR_SET_PDEATHSIG");
}

function limit(what: number, most: number): void {
  checked("setrlimit", libc().setrlimit(what, new BigUint64Array([BigInt(most), BigInt(most)])));
}
