import type { Machine } from "../../hal/ports.ts";

/** Seconds since the machine started; 0 where it does not say. */
export function uptimeOf(machine: Pick<Machine, "read">): number {
  return Number.parseFloat(textOf(machine, "/proc/uptime")) || 0;
}

/** `NAME=VALUE` on the kernel's command line; undefined where it is not. */
export function wordOf(machine: Pick<Machine, "read">, name: string): string | undefined {
  const words = textOf(machine, "/proc/cmdline").trim().split(/\s+/);
  return words.find((word) => word.startsWith(`${name}=`))?.slice(name.length + 1);
}

const textOf = (machine: Pick<Machine, "read">, path: string) =>
  Buffer.from(machine.read(path) ?? []).toString();
