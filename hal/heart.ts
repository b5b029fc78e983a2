/** The Pi Stack's heartbeat, beaten by a thread that the event loop cannot delay. */
import { HalError, type Heart } from "./ports.ts";

/** Beats on a line until closed. */
export async function openHeart(
  gpio: number,
  _times: { everyMs: number; highMs: number; deadMs: number },
): Promise<Heart> {
  throw new HalError("absent", `GPIO${gpio}: no heart yet`);
}
