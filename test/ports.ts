/** Serial ports opened through our binding, for its tests. */
import { expect } from "bun:test";
import type { SetOptions } from "@serialport/bindings-interface";
import { serialBinding } from "../hal/native/serial.ts";
import type { SerialPort } from "../hal/native/serial-port.ts";
import type { SerialOptions } from "../hal/native/termios.ts";

/** The options of node-serialport's own tests. */
export const DEFAULTS: Omit<SerialOptions, "path"> = {
  baudRate: 115200,
  dataBits: 8,
  hupcl: false,
  lock: true,
  parity: "none",
  rtscts: false,
  stopBits: 1,
  xany: false,
  xoff: false,
  xon: false,
};
/** The control lines of node-serialport's own tests. */
export const FLAGS: SetOptions = { brk: false, cts: false, dtr: true, rts: true };

/** What a promise fails with; a promise that does not fail fails the test. */
export async function rejection(promise: Promise<unknown>): Promise<Error & Record<string, unknown>> {
  const outcome = await promise.then(
    () => "no failure",
    (error: unknown) => error,
  );
  expect(outcome).toBeInstanceOf(Error);
  return outcome as Error & Record<string, unknown>;
}

/** An open port for as long as it is used. */
export async function holding<T>(path: string, use: (port: SerialPort) => Promise<T>, more = {}): Promise<T> {
  const port = await serialBinding.open({ ...DEFAULTS, path, ...more });
  try {
    return await use(port);
  } finally {
    if (port.isOpen) await port.close();
  }
}
