import { libcProblem } from "../hal/native/libc.ts";
import { type Hal, HalError } from "../hal/ports.ts";
import { type Config, parseConfig } from "./config.ts";
import type { Log } from "./log.ts";
import type { RaiseAlarm } from "./messages.ts";
import { CliError, EXIT, type Io, UsageError } from "./terminal.ts";

/**
 * Opens the hardware that `--hal` names, else `FRUIT_HAL`: the machine this runs on, or the simulated one that `sim` in the
 * configuration describes.
 */
export async function openHardware(
  flag: string | undefined,
  env: Io["env"],
  config?: Pick<Config, "sim">,
): Promise<Hal> {
  const name = flag ?? env.FRUIT_HAL ?? "linux";
  if (name === "linux") return (await import("../hal/linux.ts")).openLinux();
  if (name !== "sim") throw new UsageError(`--hal: "${name}" is neither linux nor sim`);
  const { sim } = config ?? parseConfig("", { site: "none" });
  const { openSim } = await import("../hal/sim/hal.ts");
  try {
    return openSim({
      seed: sim.seed,
      boards: Array.from({ length: sim.boards }, (_, board) => board),
      wireTime: sim.wire_time,
      faults: sim.faults,
      clockSynced: sim.clock_synced,
      ...(sim.serial === undefined ? {} : { serial: sim.serial }),
      ...(sim.state === undefined ? {} : { statePath: sim.state }),
      ...(sim.root === undefined ? {} : { root: { bytes: 0, ...sim.root } }),
    });
  } catch (cause) {
    throw cause instanceof HalError ? new CliError(EXIT.config, `sim: ${cause.message}`, { cause }) : cause;
  }
}

/** Says it as an alarm where the runtime's settings keep the agent from all hardware: only a person can undo that. */
export function reportNative(hal: Pick<Hal, "kind">, alarm: RaiseAlarm, log: Log): void {
  if (hal.kind !== "linux") return;
  const problem = libcProblem();
  alarm("native", problem === undefined ? null : { severity: "critical", message: problem });
  if (problem !== undefined) log("error", "native.unusable", { error: problem });
}
