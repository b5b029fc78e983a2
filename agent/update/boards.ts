import type { Machine } from "../../hal/ports.ts";
import { UsageError } from "../terminal.ts";

/** `compatible` of the device tree, the most exact first. On a desk, where there is none, whoever writes a card names its board. */
export function compatibleOf(machine: Pick<Machine, "read">, named?: string): string[] {
  const bytes = machine.read("/proc/device-tree/compatible");
  if (bytes && named !== undefined)
    throw new UsageError("--board: this node has a device tree that says what it is");
  if (!bytes) return named === undefined ? [] : [named];
  return Buffer.from(bytes)
    .toString()
    .split("\0")
    .filter((word) => word !== "");
}
