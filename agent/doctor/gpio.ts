import type { Hal, Machine } from "../../hal/ports.ts";
import type { Config } from "../config.ts";
import { type Claim, claimsOf, usesOf } from "../gpio/claims.ts";
import { hatOf, isPiStack } from "../stack/hat.ts";
import { textOf } from "../telemetry/cursor.ts";
import { counted } from "../terminal.ts";
import { type Check, fail, ok, warn } from "./check.ts";

const SYSFS = "/sys/class/gpio";
/** Whether outputs stay as they are when whoever drove them is gone (pinctrl-bcm2835 of Pi 1 to 4). */
const PERSIST = "/sys/module/pinctrl_bcm2835/parameters/persist_gpio_outputs";

/** What is to be said of the GPIO lines that a configuration asks for, and of a place in a Pi Stack; nothing where it asks for none. */
export async function checkGpio(
  config: Config,
  { machine, listGpio }: Pick<Hal, "machine"> & Partial<Pick<Hal, "listGpio">>,
): Promise<Check[]> {
  const hat = hatOf(machine);
  const { role } = config.stack;
  const hasRole = role === "on" || (role === "auto" && isPiStack(hat));
  const stack = { ...config.stack, role: hasRole ? role : ("off" as const) };
  const claims = claimsOf({ ...config, stack }, usesOf(machine));
  const wanted = claims.filter(({ path }) => path !== undefined);
  const given = new Map(claims.filter(({ path }) => path === undefined).map(({ gpio, by }) => [gpio, by]));
  return [
    ...stackChecks(config.stack, hat, hasRole),
    ...(wanted.length > 0 ? lineChecks(wanted, given, (await listGpio?.()) ?? []) : []),
    ...(hasOutputs(config) ? outputChecks(machine) : []),
  ];
}

function stackChecks(
  { role, heartbeat_gpio, shutdown_gpio }: Config["stack"],
  hat: string | undefined,
  hasRole: boolean,
): Check[] {
  if (hasRole)
    return [
      ok(
        "stack",
        `${hat ?? "no HAT"}: heartbeat on GPIO${heartbeat_gpio}, shutdown line GPIO${shutdown_gpio}`,
      ),
    ];
  if (!isPiStack(hat)) return [];
  return [
    warn(
      "stack",
      `the HAT says "${hat}", and stack.role is ${role}`,
      'say "auto"; until then the board sees no heartbeat',
    ),
  ];
}

function lineChecks(
  wanted: readonly Claim[],
  given: ReadonlyMap<number, string>,
  lines: Awaited<ReturnType<Hal["listGpio"]>>,
): Check[] {
  const name = "gpio";
  if (lines.length === 0)
    return [
      fail(
        name,
        "the kernel shows no GPIO lines of a Raspberry Pi",
        `look for ${SYSFS} and /dev/gpiochip0, and run as root or in their group`,
      ),
    ];
  const problems = wanted.flatMap(({ gpio, by }) => {
    const line = lines.find((one) => one.gpio === gpio);
    if (!line)
      return [
        fail(
          name,
          `GPIO${gpio} (${by}): there is no such line`,
          `there are GPIO0 to GPIO${lines.length - 1}`,
        ),
      ];
    // A running agent's own, or what it left exported.
    const held = ["fruit", "sysfs"].includes(line.consumer ?? "") ? undefined : line.consumer;
    const consumer = given.get(gpio) ?? held;
    if (consumer === undefined) return [];
    return [
      fail(
        name,
        `GPIO${gpio} (${by}): is taken by ${consumer}`,
        "remove its overlay from config.txt, or choose another line",
      ),
    ];
  });
  return problems.length > 0 ? problems : [ok(name, `${counted(wanted.length, "line")}, none of them taken`)];
}

function hasOutputs({ power, gpio }: Config): boolean {
  return (
    power.buses.some(({ driver }) => driver === "gpio") ||
    Object.values(gpio).some(({ direction }) => direction === "out")
  );
}

/** Where a relay goes when the agent ends. */
function outputChecks(machine: Machine): Check[] {
  const name = "gpio outputs";
  if (machine.list(SYSFS).some((file) => file.startsWith("gpiochip")))
    return [ok(name, `through ${SYSFS}: they keep their levels when the agent ends`)];
  const persists = Buffer.from(machine.read(PERSIST) ?? []).toString();
  if (persists.startsWith("Y")) return [ok(name, "the kernel keeps their levels when the agent ends")];
  return [
    warn(
      name,
      `no ${SYSFS}, and the kernel lets go of outputs when the agent ends: relays fall back`,
      `use a kernel with CONFIG_GPIO_SYSFS${isPi5(machine) ? " (a Pi 5's lines know no other way)" : ", or add pinctrl_bcm2835.persist_gpio_outputs=1 to cmdline.txt"}`,
    ),
  ];
}

/** Its lines are the RP1's: the driver of all others, and what can be asked of it, has no part in them. */
function isPi5(machine: Pick<Machine, "read">): boolean {
  return /^Raspberry Pi (5|500|Compute Module 5)\b/.test(
    textOf(machine.read("/proc/device-tree/model")) ?? "",
  );
}
