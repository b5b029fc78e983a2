/**
 * node-serialport's binding for Linux under Bun: `@serialport/bindings-interface` on system calls, without a native addon.
 *
 * Invariants
 * - Nothing here blocks the event loop: opening and closing run in the pool of `node:fs`, what may talk to an adapter
 *   over USB runs in `ioctlAside`, and waiting for bytes is epoll's.
 * - Each wake-up reads once, so that of many busy lines none starves another.
 * - A port that is locked by somebody else is left as it is: the lock comes before any setting.
 */
import { close, constants, open } from "node:fs";
import { promisify } from "node:util";
import type { BindingInterface } from "@serialport/bindings-interface";
import { ioctl } from "./libc.ts";
import { listPorts } from "./serial-list.ts";
import { SerialPort } from "./serial-port.ts";
import { FLUSH, lock, REQUEST, type SerialOptions, setUp, unlock } from "./termios.ts";

const O_CLOEXEC = 0o2000000;

const openFile = promisify(open);
const closeFile = promisify(close);

/** Serial ports of Linux. */
export const serialBinding: BindingInterface<SerialPort, SerialOptions> = {
  list: () => listPorts(),
  async open(options) {
    if (!options || typeof options !== "object" || Array.isArray(options)) {
      throw new TypeError('"options" is not an object');
    }
    if (!options.path) throw new TypeError('"path" is not a valid port');
    if (!options.baudRate) throw new TypeError('"baudRate" is not a valid baudRate');
    const complete: Required<SerialOptions> = {
      vmin: 1,
      vtime: 0,
      dataBits: 8,
      lock: true,
      stopBits: 1,
      parity: "none",
      rtscts: false,
      xon: false,
      xoff: false,
      xany: false,
      hupcl: true,
      ...options,
    };
    const { O_RDWR, O_NOCTTY, O_NONBLOCK } = constants;
    const file = await openFile(complete.path, O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
    let isLocked = false;
    try {
      if (complete.lock) lock(file, complete.path);
      isLocked = complete.lock;
      await setUp(file, complete);
      ioctl(file, REQUEST.flush, FLUSH.input, complete.path);
      return new SerialPort(file, complete);
    } catch (error) {
      if (isLocked) unlock(file);
      await closeFile(file);
      throw error;
    }
  },
};
