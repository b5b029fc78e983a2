import type { Machine } from "../hal/ports.ts";

/** The devices on which the kernel itself talks (`console=` of its command line), as it lists them in /sys/class/tty/console/active. */
export function kernelConsoles(machine: Pick<Machine, "read">): string[] {
  const active = Buffer.from(machine.read("/sys/class/tty/console/active") ?? []).toString();
  return active.split(/\s+/).flatMap((name) => (name ? [`/dev/${name}`] : []));
}
