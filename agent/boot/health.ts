import type { Health } from "../../boot/content.ts";
import type { SlotName } from "../../boot/layout.ts";
import type { Config } from "../config.ts";
import { keptRelease } from "../release/kept.ts";

/**
 * How a slot is tried: as the node is configured, and as its release asks besides, which was believed when it was installed and is kept as
 * `DATA/releases/SLOT.fruit`. It asks for nothing where that file is missing or is about other content.
 */
export async function asAsked(
  config: Config["boot"],
  dataDir: string,
  slot: SlotName,
  hash: string,
): Promise<Config["boot"]> {
  const kept = await keptRelease(dataDir, slot);
  const said = kept?.hash === hash ? kept.stated(({ health }) => JSON.stringify(health ?? null)) : undefined;
  const health: Health | null = JSON.parse(said ?? "null");
  if (!health) return config;
  return {
    ...config,
    services: [...new Set([...config.services, ...health.services])],
    deadline_seconds: health.deadlineSeconds ?? config.deadline_seconds,
  };
}
