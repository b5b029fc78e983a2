/**
 * Pi Stack boards at the far end of a machine's lines: simulated boards that answer through a real kernel's drivers. They
 * note what they were told, and every breach of the protocol.
 */
import { crc8, opName } from "../../hal/pistack.ts";
import { HalError } from "../../hal/ports.ts";
import { answer } from "../../hal/sim/firmware.ts";
import { I2cBus } from "../../hal/sim/i2c.ts";
import type { SimStack } from "../../hal/sim/stack.ts";
import type { I2cWire } from "./i2c-adapter.ts";
import type { Line } from "./line.ts";

/** What boards on a serial line were told. */
export interface Heard {
  /** In order: `powered 0.1`, `bootCount 0`. */
  readonly said: string[];
  /** Frames that no master sends. A test ends with none. */
  readonly breaches: string[];
}

/**
 * Boards on an RS-485 bus; what was heard before is no part of it. `noise` is a byte that the emulated UART says by itself
 * between frames.
 */
export function serveSerial(line: Line, stack: SimStack, noise?: number): Heard {
  const heard: Heard = { said: [], breaches: [] };
  let pending = Buffer.alloc(0);
  line.forget();
  line.read((chunk) => {
    pending = Buffer.concat([pending, chunk]);
    while (pending.length > 0 && pending[0] === noise) pending = pending.subarray(1);
    if (pending.length < lengthOf(pending)) return;
    const frame = Uint8Array.from(pending);
    pending = Buffer.alloc(0);
    note(frame, heard);
    const board = stack.boards.find((number) => stack.address(number) === frame[1]);
    if (board !== undefined) line.write(answer(stack, board, frame));
  });
  return heard;
}

/** Op, board, length of all but the CRC, arguments, CRC. */
const lengthOf = (frame: Uint8Array) => Math.max(4, (frame[2] ?? 0) + 1);

function note(frame: Uint8Array, { said, breaches }: Heard): void {
  const [code = 0, board, , argument] = frame;
  const hasArgument = lengthOf(frame) > 4;
  said.push(`${opName(code)} ${board}${hasArgument ? `.${argument}` : ""}`);
  // More than one: a master that did not wait for the answer.
  const isOneFrame = frame.length === lengthOf(frame) && crc8(frame) === 0;
  if (!isOneFrame || !opName(code)) breaches.push(`no frame: ${Buffer.from(frame).toString("hex")}`);
}

/** Boards on an I²C bus; `kind` as the simulated bus of that name has them. */
export function boardsOnWire(stack: SimStack, kind: "pistack" | "clusterctrl" | "clusterhat"): I2cWire {
  const bus = new I2cBus(stack, kind);
  return async (address, write, read) => {
    try {
      return await bus.exchange(address, write, read);
    } catch (error) {
      if (error instanceof HalError && error.code === "absent") return undefined;
      throw error;
    }
  };
}

/** Every supply as it truly is, in rack order: `on off`. */
export function suppliesOf(stack: SimStack): string {
  return stack.outlets.map((id) => (stack.pi(id).supply ? "on" : "off")).join(" ");
}
