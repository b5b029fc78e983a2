/** The HTTP door for labgrid's `rest` power port, on loopback. */
import type { Config } from "../config.ts";
import type { Dispatcher } from "../dispatch.ts";
import type { Log } from "../log.ts";
import type { Part } from "../parts.ts";

/** Listens when it is configured; the part serves until it is told to stop. */
export async function openRest(
  _config: Config["power"]["rest"],
  _dispatcher: Dispatcher,
  _log: Log,
): Promise<Part> {
  return async () => undefined;
}
