/** The Pi Stack's heartbeat, beaten by a thread that the event loop cannot delay. */
import { type GpioKernel, openLine } from "./gpio.ts";
import { beatOn } from "./native/threads.ts";
import { HalError, type Heart } from "./ports.ts";

/** Beats on a line until closed. */
export async function openHeart(
  gpio: number,
  times: { everyMs: number; highMs: number; deadMs: number },
  kernel?: GpioKernel,
): Promise<Heart> {
  const line = await openLine(gpio, { direction: "out", initial: 0 }, kernel);
  const beat = beatOn(line.drive, times);
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
