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

/** Where the initramfs and the watchdog feeder of a card count starts and leave marks: `$files/fruit` and `FRUIT_BOOT` there. */
export const CARD_DATA = "/data/fruit";

/** The data folder of the slots: the card's on a machine that one of our initramfs has started, whatever `data_dir` says of the rest. */
export const slotsData = (machine: Pick<Machine, "read">, dataDir: string): string =>
  wordOf(machine, "fruit.slot") === undefined ? dataDir : CARD_DATA;

const textOf = (machine: Pick<Machine, "read">, path: string) =>
  Buffer.from(machine.read(path) ?? []).toString();
