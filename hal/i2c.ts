/** I²C buses of Linux, on i2c-bus. */
import { HalError, type I2cLink } from "./ports.ts";

/** Opens `/dev/i2c-<n>`. */
export async function openI2cLink(device: string): Promise<I2cLink> {
  throw new HalError("absent", `${device}: no I²C links yet`);
}
