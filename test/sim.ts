/** Simulated stacks for tests. */
import { type OpName, requestFrame } from "../hal/pistack.ts";
import type { PowerBus, PowerController } from "../hal/ports.ts";
import { openPower } from "../hal/power.ts";
import { openSim } from "../hal/sim/hal.ts";
import { I2C_BASE } from "../hal/sim/i2c.ts";
import type { Rs485Link } from "../hal/sim/rs485.ts";
import { SimStack } from "../hal/sim/stack.ts";

/** How many mutations a fuzz test makes. */
export const FUZZ = Number(process.env.FRUIT_FUZZ ?? 5_000);

/** A stack of four boards whose clock moves only when told. */
export function makeStack(
  options: { boards?: readonly number[]; seed?: number; faults?: readonly string[]; statePath?: string } = {},
): { stack: SimStack; pass: (ms: number) => void } {
  let now = 1_700_000_000_000;
  const pass = (ms: number) => {
    now += ms;
  };
  return { stack: new SimStack({ boards: [0, 1, 2, 3], seed: 1, now: () => now, ...options }), pass };
}

/** The real driver over the simulated bus. */
export function drive(
  stack: SimStack,
  driver: PowerBus["driver"] = "pistack-rs485",
): Promise<PowerController> {
  const hal = openSim({ seed: 1, boards: [], wireTime: false, faults: [], clockSynced: true, stack });
  return openPower(hal, { driver, device: "bus", boards: stack.boards, hardware: 3, i2c_base: I2C_BASE });
}

/** Asks a board and takes everything that comes within the limit. */
export function ask(link: Rs485Link, op: OpName, board: number, ...args: number[]): Promise<Uint8Array> {
  return link.exchange(requestFrame(op, board, args), () => false, 300);
}

export const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString("hex");
