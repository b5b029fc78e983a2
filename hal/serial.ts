/** Serial lines of Linux, on node-serialport's stream with our binding under it. */
import { HalError, type LineEvents, type LineSettings, type SerialLine, type SerialLink } from "./ports.ts";

/** Opens a half-duplex bus at 9600 baud 8N1. */
export async function openSerialLink(
  device: string,
  _options: { rts?: "high" | "low" | undefined } = {},
): Promise<SerialLink> {
  throw new HalError("absent", `${device}: no serial links yet`);
}

/** Opens a console's line. */
export async function openLine(
  device: string,
  _settings: LineSettings,
  _events: LineEvents,
): Promise<SerialLine> {
  throw new HalError("absent", `${device}: no serial lines yet`);
}
