/** GPIO lines of Linux: sysfs through onoff where the kernel still has it, the character device otherwise. */
import { type GpioFacts, type GpioLine, type GpioUse, HalError } from "./ports.ts";

/** Every GPIO line of the SoC. */
export async function listGpio(): Promise<GpioFacts[]> {
  return [];
}

/** Opens one line. */
export async function openGpio(gpio: number, _use: GpioUse): Promise<GpioLine> {
  throw new HalError("absent", `GPIO${gpio}: no GPIO lines yet`);
}
