import { clusterctrl } from "./clusterctrl.ts";
import { pistackI2c } from "./pistack-i2c.ts";
import { pistackRs485 } from "./pistack-rs485.ts";
import { type Hal, HalError, type PowerBus, type PowerController } from "./ports.ts";

/** A driver: opens its link through the hal, and is the controller of that bus from then on. */
type Driver = (hal: Hal, bus: PowerBus) => Promise<PowerController>;

const DRIVERS: Record<PowerBus["driver"], Driver> = {
  "pistack-rs485": async (hal, bus) => pistackRs485(await hal.openSerial(bus.device), bus),
  "pistack-i2c": async (hal, bus) => pistackI2c(await hal.openI2c(bus.device), bus),
  clusterctrl: async (hal, bus) => clusterctrl(await hal.openI2c(bus.device), bus),
  sim: async (hal, bus) => {
    if (!hal.openStack) throw new HalError("absent", "driver sim: only with --hal sim");
    return hal.openStack(bus.boards);
  },
};

/** Opens the driver a bus is configured with. Add a driver: one file beside this one and one line above. */
export function openPower(hal: Hal, bus: PowerBus): Promise<PowerController> {
  return DRIVERS[bus.driver](hal, bus);
}
