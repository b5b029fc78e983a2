/** Who has which GPIO line, as far as the configuration tells, and where it gives one away twice. */
import type { Machine } from "../../hal/ports.ts";
import type { Config } from "../config.ts";
import { kernelConsoles } from "../tty.ts";

/** A line that somebody has. */
export interface Claim {
  gpio: number;
  by: string;
  /** Where it is chosen; absent for lines that nobody can choose, such as those of a bus. */
  path?: string;
}

type Sections = Partial<Pick<Config, "power" | "consoles" | "stack" | "gpio">>;

/** GPIO14 and 15 of the header; the names of all models (raspberrypi.com, "configuration: UARTs"). */
const HEADER_UART = /^\/dev\/(serial0|ttyAMA0|ttyS0)$/;

/** What a machine itself uses of the header, as far as its kernel tells. */
export interface Uses {
  /** Devices of the kernel's consoles, as `kernelConsoles` gives them. */
  consoles: readonly string[];
  /** There is `/dev/i2c-1`, whoever speaks on it. */
  hasI2c: boolean;
}

/**
 * Every line that somebody has; those that nobody can choose come first. Which UART is on the header depends on the model
 * and its overlays (on a Pi 3 ttyAMA0 may be Bluetooth's): whoever is on a name that can be the header's has its lines.
 * Lines of SPI, PWM, PCM and of HATs that say nothing are not known here; the kernel names those its drivers hold.
 */
export function claimsOf({ power, consoles = {}, stack, gpio = {} }: Sections, uses?: Uses): Claim[] {
  const buses = power?.buses ?? [];
  return [
    ...claimed("HAT ID EEPROM", [0, 1]),
    ...(uses?.hasI2c ? claimed("I2C bus 1", [2, 3]) : []),
    ...(uses?.consoles.some((device) => HEADER_UART.test(device))
      ? claimed("the kernel's console", [14, 15])
      : []),
    ...Object.entries(consoles).flatMap(([name, { device }]) =>
      HEADER_UART.test(device) ? claimed(`console ${name}`, [14, 15]) : [],
    ),
    ...buses.flatMap(({ driver, device }) => {
      if (driver === "gpio" || driver === "sim") return [];
      if (HEADER_UART.test(device)) return claimed(`power bus ${device}`, [14, 15]);
      return device === "/dev/i2c-1" ? claimed("I2C bus 1", [2, 3]) : [];
    }),
    ...(stack && stack.role !== "off"
      ? [
          { gpio: stack.heartbeat_gpio, by: "Pi Stack heartbeat", path: "stack.heartbeat_gpio" },
          { gpio: stack.shutdown_gpio, by: "Pi Stack shutdown line", path: "stack.shutdown_gpio" },
        ]
      : []),
    ...buses.flatMap(({ driver, boards, lines = [] }, bus) =>
      driver === "gpio"
        ? lines.map((line, n) => ({
            gpio: line,
            by: `relay of outlet ${boards[0]}.${n}`,
            path: `power.buses.${bus}.lines.${n}`,
          }))
        : [],
    ),
    ...Object.entries(gpio).map(([name, line]) => ({
      gpio: line.gpio,
      by: `gpio ${name}`,
      path: `gpio.${name}.gpio`,
    })),
  ];
}

const claimed = (by: string, lines: number[]): Claim[] => lines.map((gpio) => ({ gpio, by }));

/** What this machine uses of its header. */
export function usesOf(machine: Pick<Machine, "read" | "list">): Uses {
  return {
    consoles: kernelConsoles(machine),
    hasI2c: machine.list("/sys/class/i2c-dev").includes("i2c-1"),
  };
}

/** Says which line is given away twice, and what a line cannot be. */
export function gpioContradictions(sections: Sections): string[] {
  const first = new Map<number, Claim>();
  const twice = claimsOf(sections).flatMap((claim) => {
    const other = first.get(claim.gpio);
    if (!other) first.set(claim.gpio, claim);
    if (!other || claim.path === undefined) return [];
    const isSupposed = other.path?.startsWith("stack.") && sections.stack?.role === "auto";
    const wayOut = isSupposed ? ' (say "stack": { "role": "off" } where this node is in no Pi Stack)' : "";
    return [`${claim.path}: GPIO${claim.gpio} is taken: ${other.by}${wayOut}`];
  });
  return [...twice, ...Object.entries(sections.gpio ?? {}).flatMap(lineContradictions)];
}

function lineContradictions([name, line]: [string, Config["gpio"][string]]): string[] {
  const { direction, bias, pulse_min_ms, pulse_max_ms } = line;
  return [
    ...(bias !== undefined && direction === "out" ? [`gpio.${name}.bias: only for a line that is read`] : []),
    ...(pulse_min_ms > pulse_max_ms
      ? [`gpio.${name}.pulse_min_ms: ${pulse_min_ms} is longer than pulse_max_ms ${pulse_max_ms}`]
      : []),
  ];
}
