import type { Supply } from "../../hal/ports.ts";
import type { HOSTS } from "../messages.ts";

/** What the Pi behind an outlet is doing, as far as anybody can tell. */
export type Host = (typeof HOSTS)[number];

/** What is known of the Pi behind an outlet. A fact that cannot be known is absent, never false. */
export interface HostInputs {
  supply: Supply;
  /** The board sees the heartbeat. */
  heartbeat?: boolean | undefined;
  /** It has seen one since the supply came on: that its absence means something is known from then on. */
  hadHeartbeat: boolean;
  amperes?: number | undefined;
  /** What the node said of itself on MQTT since the supply came on. */
  nodeStatus?: "online" | "offline" | undefined;
  /** Anything has shown it alive since the supply came on. */
  wasAlive: boolean;
  /** It was asked to shut down since the supply came on. */
  isStopAnnounced: boolean;
  /** Seconds since the supply came on, at least. */
  onSeconds?: number | undefined;
}

/**
 * Whether something shows the Pi alive; undefined where nothing could. A heartbeat that was there and went counts more than
 * a status of `online`, which a hung node keeps until the broker's keep-alive ends.
 */
export function isAlive({ heartbeat, hadHeartbeat, nodeStatus }: HostInputs): boolean | undefined {
  if (heartbeat) return true;
  if (heartbeat === false && hadHeartbeat) return false;
  if (nodeStatus !== undefined) return nodeStatus === "online";
  return heartbeat;
}

/** Infers what the Pi behind an outlet is doing. `unknown` where nothing tells. */
export function inferHost(inputs: HostInputs, limits: { bootSeconds: number; haltedAmperes: number }): Host {
  const { supply, amperes, wasAlive, isStopAnnounced, onSeconds = 0 } = inputs;
  if (supply !== "on") return supply;
  const alive = isAlive(inputs);
  if (isStopAnnounced) {
    const isQuiet =
      amperes === undefined ? alive === false : alive !== true && amperes < limits.haltedAmperes;
    return isQuiet ? "halted" : "stopping";
  }
  if (alive === undefined) return "unknown";
  if (alive) return "running";
  return wasAlive || onSeconds >= limits.bootSeconds ? "silent" : "starting";
}
