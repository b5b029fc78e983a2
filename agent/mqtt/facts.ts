import type { Config } from "../config.ts";
import { BUILD } from "../version.ts";
import type { Facts } from "./entities.ts";

/** What discovery takes from the configuration; `machine` is what `info` says of the hardware. */
export function discoveryFacts(
  config: Config,
  node: string,
  machine: { model?: string; serial?: string },
  outlets: readonly string[],
): Omit<Facts, "telemetry" | "alarms"> {
  const { telemetry, power, commands } = config;
  const { model, serial } = machine;
  return {
    prefix: config.mqtt?.discovery_prefix ?? "homeassistant",
    site: config.site,
    node,
    version: BUILD.version,
    ...(config.name === undefined ? {} : { name: config.name }),
    ...(model === undefined ? {} : { model }),
    ...(serial === undefined ? {} : { serial }),
    intervalSeconds: (group) =>
      Object.entries(telemetry.groups).find(([name]) => name === group)?.[1] || telemetry.interval_seconds,
    outlets: outlets.map((id) => {
      const name = power.outlets[id]?.name;
      return { id, ...(name ? { name } : {}), isSwitchable: commands.unsigned_outlets.includes(id) };
    }),
  };
}
