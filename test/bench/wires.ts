/** How many exchanges a second the buses carry, beside what their wires could. */
import { closeSync } from "node:fs";
import { i2cLink } from "../../hal/i2c.ts";
import { checked, libc } from "../../hal/native/libc.ts";
import { ioctlAside } from "../../hal/native/threads.ts";
import { replyFrame, requestFrame } from "../../hal/pistack.ts";
import { openPower } from "../../hal/power.ts";
import { openSerialLink } from "../../hal/serial.ts";
import { openSim } from "../../hal/sim/hal.ts";
import { BYTE_MS, Rs485Link, TURNAROUND_MS } from "../../hal/sim/rs485.ts";
import { SimStack } from "../../hal/sim/stack.ts";
import { packageOn, SimKernel } from "../i2c-kernel.ts";
import { Pty } from "../pty.ts";
import { digits, type Table } from "./table.ts";

const EXCHANGES = 300;
/** Reading a start policy and its answer at 9600 baud, and the board's own time. */
const RS485_MS =
  (requestFrame("onAtStart", 0, [0]).length + replyFrame([1]).length) * BYTE_MS + TURNAROUND_MS;
/** Address, register, address and two bytes, 9 bits each, with start and stop, at 100 kHz (UM10204 §3.1). */
const I2C_MS = (5 * 9 + 3) / 100;
const FIONBIO = 0x5421;

/** RS-485 on a PTY with a far side that takes its time on the wire, and I²C up to the kernel's boundary. */
export async function wires(): Promise<Table> {
  const rows = [
    row("RS-485 on a PTY, true wire time", await rs485(true), RS485_MS),
    row("RS-485 on a PTY, a wire that takes no time", await rs485(false), 0),
    row("I²C register read, simulated kernel, no wire", await i2c(), 0),
    row("one ioctl in the thread that makes calls", await aside(), 0),
    ["I²C at 100 kHz, the wire alone", digits(1000 / I2C_MS, 0), "", digits(I2C_MS, 2)],
  ];
  return {
    title: `Exchanges on the buses, ${EXCHANGES} each, one at a time`,
    head: ["", "per second", "wire's limit", "ms each"],
    rows,
    notes: [
      `RS-485: ${digits(RS485_MS, 2)} ms on the wire = a request and its reply at 9600 baud 8N1 and ${TURNAROUND_MS} ms turnaround; the far side waits whole milliseconds`,
      "I²C: no bus is on this machine, so what the agent adds to the wire's time is the row of the simulated kernel and one call in the thread",
    ],
  };
}

function row(name: string, ms: number, wireMs: number): string[] {
  return [name, digits(1000 / ms, 0), wireMs > 0 ? digits(1000 / wireMs, 0) : "", digits(ms, 2)];
}

/** Milliseconds of one, over many. */
async function each(exchange: () => Promise<unknown>): Promise<number> {
  await exchange();
  const startedAt = performance.now();
  for (let i = 0; i < EXCHANGES; i++) await exchange();
  return (performance.now() - startedAt) / EXCHANGES;
}

async function rs485(hasWireTime: boolean): Promise<number> {
  using pty = new Pty();
  const stack = new SimStack({ boards: [0], seed: 1, faults: [] });
  const far = new Rs485Link(stack, "far", hasWireTime);
  pty.onBytes = async (request) => {
    await pty.write(await far.exchange(request, (bytes) => bytes.length > (bytes[2] ?? 255), 300));
  };
  const hal = {
    ...openSim({ seed: 1, boards: [0], wireTime: false, faults: [], clockSynced: true }),
    openSerial: openSerialLink,
  };
  const bus = {
    driver: "pistack-rs485",
    device: pty.device,
    boards: [0],
    hardware: 3,
    i2c_base: 16,
  } as const;
  const controller = await openPower(hal, bus);
  try {
    return await each(() => controller.startPolicy("0.0"));
  } finally {
    await controller.close();
  }
}

async function i2c(): Promise<number> {
  const kernel = new SimKernel(1);
  kernel.device(0x20);
  const link = i2cLink("/dev/i2c-1", () => packageOn(kernel).openPromisified(1));
  try {
    return await each(() => link.exchange(0x20, Uint8Array.of(0x10), 2));
  } finally {
    await link.close();
  }
}

async function aside(): Promise<number> {
  const file = checked("eventfd", libc().eventfd(0, 0));
  try {
    return await each(() => ioctlAside("serial", file, FIONBIO, new Int32Array([0])));
  } finally {
    closeSync(file);
  }
}
