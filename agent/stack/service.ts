/** This node's own place in a Pi Stack: it beats the heart and obeys the shutdown line. */
import type { Hal } from "../../hal/ports.ts";
import type { Command } from "../commands.ts";
import type { Config } from "../config.ts";
import type { Log } from "../log.ts";
import type { Publish, RaiseAlarm, Tell } from "../messages.ts";
import type { Part } from "../parts.ts";

/** What the role is made of. */
export interface StackOptions {
  config: Config["stack"];
  hal: Pick<Hal, "machine" | "openGpio" | "openHeart">;
  publish: Publish;
  alarm: RaiseAlarm;
  tell: Tell;
  log: Log;
}

/** The role, running. */
export interface StackRole {
  part: Part;
  commands: Command[];
  /** Whether this node plays it: configured, or the HAT says that it is a Pi stack. */
  readonly isOn: boolean;
}

/** Makes the role; nothing is opened before its part runs. */
export function createStackRole(_options: StackOptions): StackRole {
  return { part: async () => undefined, commands: [], isOn: false };
}
