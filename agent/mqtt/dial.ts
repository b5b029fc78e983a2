import { LinkError, type MqttConfig } from "./connect.ts";
import { type Link, openLink } from "./link.ts";
import type { Incoming } from "./message.ts";

/**
 * A connection for one errand of the command line: MQTT 5, or 3.1.1 where the broker knows no better; no will.
 * `role` keeps its client id apart from the agent's, which it would throw out. Throws `LinkError`.
 */
export async function dial(
  options: { config: MqttConfig; node: string; role: string; onMessage(incoming: Incoming): void },
  signal: AbortSignal,
): Promise<Link> {
  const { config, node, role, onMessage } = options;
  const open = (version: 5 | 4) =>
    openLink(
      { config, clientId: `fruit-${node}-${role}`, version, abilities: { qos: 1, retain: true }, onMessage },
      signal,
    );
  if (config.version === 3) return open(4);
  try {
    return await open(5);
  } catch (error) {
    if (!(error instanceof LinkError) || !isOldBroker(error)) throw error;
    return open(4);
  }
}

function isOldBroker({ kind, reason }: LinkError): boolean {
  return kind === "closed" || (kind === "refused" && (reason === 0x84 || reason === 1));
}
