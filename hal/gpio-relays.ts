/** Relays on the node's own GPIO lines. */
import { type Hal, HalError, type PowerBus, type PowerController } from "./ports.ts";

/** Drives one relay a line. */
export function gpioRelays(_hal: Pick<Hal, "openGpio">, _bus: PowerBus): PowerController {
  throw new HalError("absent", "gpio: no relays yet");
}
