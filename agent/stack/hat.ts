import type { Machine } from "../../hal/ports.ts";
import { textOf } from "../telemetry/cursor.ts";

/** What the HAT's EEPROM says it is (the firmware puts it into the device tree); undefined where there is none. */
export function hatOf(machine: Pick<Machine, "read">): string | undefined {
  return textOf(machine.read("/proc/device-tree/hat/product")) || undefined;
}

/** Whether that is a Pi Stack: `Pi stack`, as `stackdaemon.py` looks for it. */
export function isPiStack(hat: string | undefined): boolean {
  return hat?.toLowerCase() === "pi stack";
}
