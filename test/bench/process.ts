/** What the kernel says a process has used. */
import { dlopen, ptr } from "bun:ffi";
import { readFileSync } from "node:fs";

/** Linux shows the times of children in hundredths of a second on every architecture (USER_HZ). */
const TICK_MS = 10;

/** Every C library on Linux answers to this name (see hal/native/libc.ts). */
const { symbols: libc } = dlopen("libc.so.6", {
  clock_gettime: { args: ["i32", "ptr"], returns: "i32" },
});

/** Use of one process now; the CPU of children counts once they have ended. */
export interface Usage {
  cpuMs: number;
  rssKib: number;
  /** The part that is nobody else's and backed by no file. */
  anonKib: number;
  threads: number;
}

/** Reads it from the kernel. Throws when the process is gone. */
export function usage(pid: number): Usage {
  const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
  // The name in parentheses may hold spaces; cutime and cstime are fields 16 and 17 (proc(5)).
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  const status = readFileSync(`/proc/${pid}/status`, "utf8");
  const number = (key: string) => Number(new RegExp(`^${key}:\\s+(\\d+)`, "m").exec(status)?.[1] ?? 0);
  return {
    cpuMs: ownCpuMs(pid) + (Number(fields[13]) + Number(fields[14])) * TICK_MS,
    rssKib: number("VmRSS"),
    anonKib: number("RssAnon"),
    threads: number("Threads"),
  };
}

/** CPU of all its threads, those that have ended included, to the nanosecond: its CPU clock, as clock_getcpuclockid(3) numbers it. */
function ownCpuMs(pid: number): number {
  const time = new BigInt64Array(2);
  if (libc.clock_gettime((~pid << 3) | 2, ptr(time)) !== 0) throw new Error(`process ${pid} is gone`);
  const [seconds = 0n, nanoseconds = 0n] = time;
  return Number(seconds) * 1e3 + Number(nanoseconds) / 1e6;
}

/** Seconds that a bench watches: 60, or what `FRUIT_BENCH_SECONDS` says. */
export function windowSeconds(): number {
  return Number(process.env.FRUIT_BENCH_SECONDS) || 60;
}
