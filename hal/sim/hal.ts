/** Opens a simulated node: a machine and the buses of a stack, in this process. */
import { openDisk } from "../disk.ts";
import type { Hal, MountedRoot } from "../ports.ts";
import { activity, chance } from "./activity.ts";
import { simController } from "./driver.ts";
import { SimGpio } from "./gpio.ts";
import { I2cBus } from "./i2c.ts";
import { simMachine } from "./machine.ts";
import { Rs485Link } from "./rs485.ts";
import { SimStack } from "./stack.ts";
import { SimUarts } from "./uart.ts";
import { openBus } from "./wire.ts";

/** A simulated node; the stack is there to be looked at and broken. */
export interface SimHal extends Hal {
  readonly stack: SimStack;
  readonly gpio: SimGpio;
  readonly uarts: SimUarts;
  /** Milliseconds that all serial buses have spent on the wire; 0 without wire time. */
  readonly wireMs: number;
}

/** A serial number as a Pi's firmware prints it, that of the Pi with this seed. */
export function simSerial(seed: number): string {
  return Math.floor(chance(seed, 1) * 0xffff_ffff + 1)
    .toString(16)
    .padStart(16, "0");
}

/**
 * Opens it. Every device name opens. A serial one is the RS-485 bus of this process's stack, or of another process's
 * where the name ends in `.sock` (`wire.ts`); `i2c.ts` says what an I²C one is.
 */
export function openSim(options: {
  serial?: string;
  seed: number;
  boards: readonly number[];
  wireTime: boolean;
  faults: readonly string[];
  statePath?: string;
  clockSynced: boolean;
  /** Where the root is mounted from; on no disk when absent. */
  root?: MountedRoot;
  /** A stack that is already there (`boards`, `faults` and `statePath` are then its own business). */
  stack?: SimStack;
}): SimHal {
  const { seed, boards, faults, statePath, clockSynced } = options;
  const stack =
    options.stack ??
    new SimStack({ boards, seed, faults, ...(statePath === undefined ? {} : { statePath }) });
  const serial = options.serial?.padStart(16, "0") ?? simSerial(seed);
  const { root } = options;
  const machine = simMachine({
    ...{ serial, seed, clockSynced, activity: activity(seed) },
    ...(root ? { root } : {}),
  });
  const buses: Rs485Link[] = [];
  const gpio = new SimGpio(stack);
  const uarts = new SimUarts(stack, options.wireTime);
  return {
    kind: "sim",
    machine,
    stack,
    gpio,
    uarts,
    get wireMs() {
      return buses.reduce((sum, bus) => sum + bus.wireMs, 0);
    },
    openSerial: async (device) => {
      if (device.endsWith(".sock")) return openBus(device);
      const bus = new Rs485Link(stack, device, options.wireTime);
      buses.push(bus);
      return bus;
    },
    openI2c: async (device) => new I2cBus(stack, device),
    openLine: (device, settings, events) => uarts.open(device, settings, events),
    listGpio: async () => gpio.list(),
    openGpio: async (line, use) => gpio.open(line, use),
    openHeart: async (line, times) => gpio.heart(line, times),
    openDisk: (path, how) => openDisk(path, how),
    openStack: async (wanted) => simController(stack, wanted),
    close: async () => {
      machine.close();
      await Promise.all([uarts.close(), ...buses.map((bus) => bus.close())]);
    },
  };
}
