/** GPIO lines that a person may look at and touch, by name. */
import type { Hal } from "../../hal/ports.ts";
import type { Command } from "../commands.ts";
import type { Config } from "../config.ts";

/** What the service is made of. */
export interface GpioOptions {
  config: Config;
  hal: Pick<Hal, "listGpio" | "openGpio">;
  /** Whether this node plays its role in a Pi Stack, whose lines are then taken. */
  hasStackRole: boolean;
}

/** The commands about GPIO lines, and how what they hold open is given back. */
export function createGpioService(_options: GpioOptions): { commands: Command[]; close(): Promise<void> } {
  return { commands: [], close: async () => undefined };
}
