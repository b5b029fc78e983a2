/** This node's own place in a Pi Stack: it beats the heart and obeys the shutdown line. */
import * as v from "valibot";
import type { Hal } from "../../hal/ports.ts";
import { type Caller, type Command, command, type Outcome, Refusal } from "../commands.ts";
import type { Config } from "../config.ts";
import type { Log } from "../log.ts";
import type { Publish, RaiseAlarm, StackState, Tell } from "../messages.ts";
import type { Part } from "../parts.ts";
import { hatOf, isPiStack } from "./hat.ts";
import { Role } from "./role.ts";

/** What the role is made of. */
export interface StackOptions {
  config: Config["stack"];
  hal: Pick<Hal, "machine" | "openGpio" | "openHeart">;
  publish: Publish;
  alarm: RaiseAlarm;
  tell: Tell;
  log: Log;
  /** Milliseconds: how long `stack halt` waits for the shutdown command, and how long a node may take to go down. */
  limits?: { commandMs: number; downMs: number };
}

/** The role, running. */
export interface StackRole {
  part: Part;
  commands: Command[];
  /** Whether this node plays it: configured, or the HAT says that it is a Pi stack. */
  readonly isOn: boolean;
  /** Whether its heart beats now. */
  readonly isBeating: boolean;
}

/** Makes the role; nothing is opened before its part runs. */
export function createStackRole(options: StackOptions): StackRole {
  const { config, hal, publish, alarm } = options;
  const hat = hatOf(hal.machine);
  const isOn = config.role === "on" || (config.role === "auto" && isPiStack(hat));
  let said = "";
  const state = (): StackState => ({
    v: 1,
    ...(hat === undefined ? {} : { hat }),
    role: isOn,
    beating: role.isBeating,
    ...(role.goesDown === undefined ? {} : { goes_down: role.goesDown }),
    ...(role.error === undefined ? {} : { error: role.error }),
  });
  const publishChange = () => {
    const now = JSON.stringify(state());
    if (now !== said) publish("state/stack", "main", state());
    said = now;
    const { error } = role;
    alarm(
      "stack-role",
      error === undefined
        ? null
        : { severity: "critical", message: `this node's place in the Pi Stack: ${error}; tried again` },
    );
  };
  const role = new Role(options, publishChange);
  return {
    isOn,
    get isBeating() {
      return role.isBeating;
    },
    part: async (signal) => {
      publishChange();
      if (isOn) await role.run(signal);
    },
    commands: [
      command({
        verb: "stack.status",
        summary: "Says what this node's place in a Pi Stack is, and whether it beats",
        tier: 0,
        role: "read",
        args: v.strictObject({}),
        run: async () => ({ state: "done", result: { ...state(), ...linesOf(config, isOn) } }),
      }),
      command({
        verb: "stack.announce",
        summary: "Tells the board that this node shuts itself down; it will cut the supply",
        tier: 2,
        role: "power",
        args: v.strictObject({}),
        run: async ({ caller }) => {
          refuseElsewhere(caller, "announce");
          return announce(role, isOn);
        },
      }),
      command({
        verb: "stack.halt",
        summary: "Tells the board that this node shuts itself down, and does it",
        tier: 3,
        role: "power",
        args: v.strictObject({}),
        run: async ({ caller, reason, signal }) => {
          refuseElsewhere(caller, "halt");
          if (!isOn) return placeless("shut it down as any other machine");
          if (role.goesDown !== undefined)
            return { state: "unchanged", message: `it goes down already: ${role.goesDown}` };
          const { message } = await announce(role, isOn);
          await role.goDown(`${caller.who} asks for it${reason ? ` (${reason})` : ""}`, signal);
          return { state: "done", message: `${message}; ${config.shutdown_command.join(" ")} was run` };
        },
      }),
    ],
  };
}

/** Once: a board that was told, or has asked, is not told again. */
async function announce(role: Role, isOn: boolean): Promise<Outcome> {
  // A script that says so on every node is right on this one too.
  if (!isOn) return { state: "unchanged", message: "this node is in no Pi Stack; there is nobody to tell" };
  if (role.known !== undefined) return { state: "unchanged", message: role.known };
  await role.announce();
  return { state: "done", message: "the board was told" };
}

const placeless = (remedy: string): Outcome => ({
  state: "failed",
  code: "failed",
  message: `this node is in no Pi Stack (no HAT says so, and stack.role is not "on"); ${remedy}`,
});

const linesOf = (config: Config["stack"], isOn: boolean) =>
  isOn ? { heartbeat_gpio: config.heartbeat_gpio, shutdown_gpio: config.shutdown_gpio } : {};

/** Whoever ends a node cannot start it from there. */
function refuseElsewhere({ door }: Caller, what: string): void {
  if (door !== "socket")
    throw new Refusal(
      "unauthorised",
      `stack ${what}: only from this node's own terminal; from elsewhere 'fruit power shutdown OUTLET' at the node that feeds it`,
    );
}
