/** What the kernel says a process has used. */
import { readFileSync } from "node:fs";

/** Linux shows times in hundredths of a second on every architecture (USER_HZ). */
const TICK_MS = 10;

/** Use of one process now; the CPU of children counts once they have ended. */
export interface Usage {
  cpuMs: number;
  rssKib: number;
  /** The part that is nobody else's and backed by no file. */
  anonKib: number;
  threads: number;
}

/** Reads it from `/proc`. Throws when the process is gone. */
export function usage(pid: number): Usage {
  const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
  // The name in parentheses may hold spaces; utime, stime, cutime and cstime are fields 14 to 17 (proc(5)).
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  const ticks = fields.slice(11, 15).reduce((sum, field) => sum + Number(field), 0);
  const status = readFileSync(`/proc/${pid}/status`, "utf8");
  const number = (key: string) => Number(new RegExp(`^${key}:\\s+(\\d+)`, "m").exec(status)?.[1] ?? 0);
  return {
    cpuMs: ticks * TICK_MS,
    rssKib: number("VmRSS"),
    anonKib: number("RssAnon"),
    threads: number("Threads"),
  };
}

/** Seconds that a bench watches: 60, or what `FRUIT_BENCH_SECONDS` says. */
export function windowSeconds(): number {
  return Number(process.env.FRUIT_BENCH_SECONDS) || 60;
}
