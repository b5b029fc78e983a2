/**
 * An I²C adapter on USB (i2c-tiny-usb: drivers/i2c/busses/i2c-tiny-usb.c) with a bus of the test behind it: the machine's
 * kernel drives it as it does the bought one, so plain I²C transfers go through a real kernel.
 */
import type { ControlRequest, UsbDevice } from "./usb.ts";

/** The devices on the bus: one transfer, a write then a read without letting go. Undefined: nobody acknowledges the address. */
export type I2cWire = (address: number, write: Uint8Array, read: number) => Promise<Uint8Array | undefined>;

const COMMAND = { functions: 1, delay: 2, status: 3, io: 4 };
const IO_END = 2;
const ACKNOWLEDGED = 1;
const REFUSED = 2;
const READ_FLAG = 1;
/** I2C_FUNC_I2C and the SMBus transfers that a kernel makes of it (linux/i2c.h, I2C_FUNC_SMBUS_EMUL). */
const FUNCTIONS = 0x0efe8009;

/** The adapter as a USB device. */
export function i2cAdapter(wire: I2cWire): UsbDevice {
  let status = ACKNOWLEDGED;
  /** Written with more to follow in the same transfer. */
  let written: Uint8Array = new Uint8Array();
  const io = async ({ request, value, index, length, data }: ControlRequest) => {
    const isReading = (value & READ_FLAG) !== 0;
    if (!isReading && (request & IO_END) === 0) {
      // Whether anybody is there shows when the transfer is whole; the kernel says the same of it.
      written = data;
      status = ACKNOWLEDGED;
      return new Uint8Array();
    }
    const answer = await wire(index, isReading ? written : data, isReading ? length : 0);
    written = new Uint8Array();
    status = answer ? ACKNOWLEDGED : REFUSED;
    return answer ?? new Uint8Array(length);
  };
  return {
    vendor: 0x0403,
    product: 0xc631,
    control: async (asked) => {
      const { request } = asked;
      if (request >= COMMAND.io && request <= COMMAND.io + 3) return io(asked);
      if (request === COMMAND.functions) return new Uint8Array(new Uint32Array([FUNCTIONS]).buffer);
      if (request === COMMAND.status) return Uint8Array.of(status);
      return request === COMMAND.delay ? new Uint8Array() : undefined;
    },
  };
}
