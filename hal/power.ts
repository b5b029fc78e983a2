import { OpenFailure } from "./bus.ts";
import { clusterctrl } from "./clusterctrl.ts";
import { clusterhat } from "./clusterhat.ts";
import { gpioRelays } from "./gpio-relays.ts";
import { pistackI2c } from "./pistack-i2c.ts";
import { pistackRs485 } from "./pistack-rs485.ts";
import {
  type Hal,
  HalError,
  type I2cLink,
  type PowerBus,
  type PowerController,
  type SerialLink,
} from "./ports.ts";

/** Makes the controller of one configured bus. */
type Driver = (hal: Hal, bus: PowerBus) => Promise<PowerController>;

const DRIVERS: Record<PowerBus["driver"], Driver> = {
  "pistack-rs485": async (hal, bus) =>
    pistackRs485(
      reopening(bus.device, () => hal.openSerial(bus.device, { rts: bus.rts })),
      bus,
    ),
  "pistack-i2c": async (hal, bus) =>
    pistackI2c(
      reopening(bus.device, () => hal.openI2c(bus.device)),
      bus,
    ),
  clusterctrl: async (hal, bus) =>
    clusterctrl(
      reopening(bus.device, () => hal.openI2c(bus.device)),
      bus,
    ),
  clusterhat: async (hal, bus) =>
    clusterhat(
      reopening(bus.device, () => hal.openI2c(bus.device)),
      bus,
    ),
  gpio: async (hal, bus) => gpioRelays(hal, bus),
  sim: async (hal, bus) => {
    if (!hal.openStack) throw new HalError("absent", "driver sim: only with --hal sim");
    return hal.openStack(bus.boards);
  },
};

/**
 * The controller of a configured bus. The line itself is opened at the first exchange and again after it died, so a bus
 * that is missing makes its outlets `unknown` and nothing else, and comes back by itself.
 * Add a driver: one file beside this one and one line above.
 */
export function openPower(hal: Hal, bus: PowerBus): Promise<PowerController> {
  return DRIVERS[bus.driver](hal, bus);
}

/** A link that is opened when it is first used, and once more after an `io` error; once closed it stays so. */
function reopening<Link extends SerialLink | I2cLink>(device: string, open: () => Promise<Link>): Link {
  let link: Link | undefined;
  let isClosed = false;
  const drop = async () => {
    const last = link;
    link = undefined;
    await last?.close();
  };
  const close = () => {
    isClosed = true;
    return drop();
  };
  const exchange = async (...args: never[]) => {
    if (!isClosed) link ??= await opened(open);
    // It may have been closed while it was being opened.
    if (isClosed) await drop();
    if (!link) throw new HalError("io", `${device}: is closed`);
    try {
      return await (link.exchange as (...args: never[]) => Promise<Uint8Array>)(...args);
    } catch (error) {
      if (error instanceof HalError && error.code === "io") await drop().catch(() => undefined);
      throw error;
    }
  };
  return { exchange, close } as unknown as Link;
}

async function opened<Link>(open: () => Promise<Link>): Promise<Link> {
  try {
    return await open();
  } catch (cause) {
    throw cause instanceof HalError ? new OpenFailure(cause, { cause }) : cause;
  }
}
