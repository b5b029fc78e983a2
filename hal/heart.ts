/** The Pi Stack's heartbeat, beaten by a thread that the event loop cannot delay. */
import { type GpioKernel, type OpenLine, openLine } from "./gpio.ts";
import { beatOn } from "./native/threads.ts";
import { HalError, type Heart } from "./ports.ts";

/** Beats on a line until closed. */
export async function openHeart(
  gpio: number,
  times: { everyMs: number; highMs: number; deadMs: number },
  kernel?: GpioKernel,
): Promise<Heart> {
  const line = await openLine(gpio, { direction: "out", initial: 0 }, kernel);
  const beat = await beating(line, times);
  return {
    alive: () => {
      const failed = beat.alive();
      if (failed !== undefined)
        throw new HalError("io", `GPIO${gpio}: the heart has stopped: ${failed.message}`, { cause: failed });
    },
    close: async () => {
      await beat.stop();
      try {
        await line.write(0);
      } finally {
        await line.close();
      }
    },
  };
}

/** A thread that does not start leaves no line open. */
async function beating(line: OpenLine, times: Parameters<typeof beatOn>[1]) {
  try {
    return beatOn(line.drive, times);
  } catch (error) {
    await line.close();
    throw error;
  }
}
