import type { BoardReading } from "../../hal/ports.ts";
import type { Config } from "../config.ts";

/** A voltage that guards switching on, in words and volts. */
export interface Guarded {
  name: "input" | "5 V rail";
  volts: number;
  /** Below this nothing is switched on. */
  least: number;
}

type Limits = Pick<Config["power"], "input_volts_min" | "rail_volts_min">;

/** Whether any voltage is guarded at all. */
export function isGuarded({ input_volts_min, rail_volts_min }: Limits): boolean {
  return input_volts_min !== undefined || rail_volts_min !== undefined;
}

/** What a board measures of the voltages that the configuration guards (rule P10): its input, and the rail its outlets hang on. */
export function guarded(
  { inputVolts, railVolts }: { [V in "inputVolts" | "railVolts"]?: BoardReading[V] | undefined },
  { input_volts_min, rail_volts_min }: Limits,
): Guarded[] {
  return (
    [
      ["input", inputVolts, input_volts_min],
      ["5 V rail", railVolts, rail_volts_min],
    ] as const
  ).flatMap(([name, volts, least]) =>
    volts === undefined || least === undefined ? [] : [{ name, volts, least }],
  );
}

/** The first of them that is too low. */
export function tooLow(voltages: readonly Guarded[]): Guarded | undefined {
  return voltages.find(({ volts, least }) => volts < least);
}

/** Why nothing is switched on, and what to do. */
export function lowWords({ name, volts, least }: Guarded, verb: "is" | "stays"): string {
  return `the ${name} ${verb} at ${volts.toFixed(2)} V (P10: at least ${least} V to switch anything on); switch others off or look at the supply`;
}
