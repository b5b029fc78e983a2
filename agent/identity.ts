/**
 * Who this machine is: its node id, and what does not change until it boots again.
 * Facts: Raspberry Pi documentation, "Device Tree in /proc/device-tree/chosen" (bootloader, power);
 * bcm2835_wdt.c for PM_RSTS.
 */
import { createHmac } from "node:crypto";
import { machine as architecture } from "node:os";
import type { Machine } from "../hal/ports.ts";
import { cellOf, textOf } from "./telemetry/cursor.ts";

/** What `info` tells of the machine. A fact that the machine does not know is absent. */
export interface Facts {
  model?: string;
  revision?: string;
  serial?: string;
  kernel?: string;
  os?: string;
  arch?: string;
  /** Date and commit of the boot loader in EEPROM (Pi 4 and later). */
  firmware?: string;
  reset_reason?: string;
  hostname?: string;
  /** Where the throttle word is read: `mailbox`, `sysfs`, or `hwmon` for undervoltage alone. */
  throttle_source?: string;
}

/**
 * The node id: `pi` and the serial number without leading zeros, as FRUIT always had it. Off a Pi `node-` and twelve
 * hex digits that the machine id decides (hashed: machine-id(5) asks not to show it), else the host name.
 */
export function nodeIdOf(machine: Machine): string {
  const serial = machine.serial?.toLowerCase().replace(/^0+/, "");
  if (serial && /^[0-9a-f]{1,16}$/.test(serial)) return `pi${serial}`;
  const machineId = textOf(machine.read("/etc/machine-id"));
  if (machineId && /^[0-9a-f]{32}$/.test(machineId))
    return `node-${createHmac("sha256", machineId).update("fruit node id").digest("hex").slice(0, 12)}`;
  const hostname = textOf(machine.read("/proc/sys/kernel/hostname")) ?? "";
  const level = hostname
    .toLowerCase()
    .replace(/[^a-z0-9]+/g, "-")
    .replace(/^-|-$/g, "");
  return level.slice(0, 32) || "node-unnamed";
}

/** Reads the static facts, once at start. */
export function factsOf(machine: Machine): Facts {
  const text = (path: string) => textOf(machine.read(path));
  const facts: { [K in keyof Facts]: string | undefined } = {
    model: text("/proc/device-tree/model"),
    revision: revision(machine),
    serial: machine.serial,
    kernel: text("/proc/sys/kernel/osrelease"),
    os: /^PRETTY_NAME="?(.*?)"?$/m.exec(text("/etc/os-release") ?? "")?.[1],
    arch: text("/proc/sys/kernel/arch") ?? architecture(),
    firmware: firmware(machine),
    reset_reason: resetReason(machine),
    hostname: text("/proc/sys/kernel/hostname"),
    throttle_source: machine.throttled()?.source ?? (hasVoltageAlarm(machine) ? "hwmon" : undefined),
  };
  return Object.fromEntries(Object.entries(facts).filter(([, fact]) => fact !== undefined));
}

/** Board revision code, hex: raspberrypi.com "Raspberry Pi revision codes". */
function revision(machine: Machine): string | undefined {
  const cell = cellOf(machine.read("/proc/device-tree/system/linux,revision"));
  if (cell !== undefined) return cell.toString(16).padStart(4, "0");
  return /^Revision\s*:\s*([0-9a-f]+)$/m.exec(textOf(machine.read("/proc/cpuinfo")) ?? "")?.[1];
}

function firmware(machine: Machine): string | undefined {
  const built = cellOf(machine.read("/proc/device-tree/chosen/bootloader/build-timestamp"));
  const version = textOf(machine.read("/proc/device-tree/chosen/bootloader/version"));
  if (built === undefined || version === undefined) return undefined;
  return `${new Date(built * 1000).toISOString().slice(0, 10)} ${version.slice(0, 8)}`;
}

/** PM_RSTS as the firmware found it. A reboot is a watchdog reset on a Pi, so the two cannot be told apart. */
const RSTS: readonly [mask: number, reason: string][] = [
  [0x1000, "power-on"],
  [0x0070, "reboot-or-watchdog"],
  [0x0007, "debugger"],
];
/** Bits of the Pi 5's power_reset: why its power chip cut the supply before this boot. */
const POWER_RESET = ["over-voltage", "under-voltage", "over-temperature", "enable-signal", "watchdog"];

function resetReason(machine: Machine): string | undefined {
  const rsts = cellOf(machine.read("/proc/device-tree/chosen/bootloader/rsts"));
  const power = cellOf(machine.read("/proc/device-tree/chosen/power/power_reset")) ?? 0;
  const reasons = POWER_RESET.filter((_, bit) => (power >>> bit) & 1).map((reason) => `pmic ${reason}`);
  if (rsts !== undefined)
    reasons.unshift(RSTS.find(([mask]) => rsts & mask)?.[1] ?? `rsts 0x${rsts.toString(16)}`);
  return reasons.join(", ") || undefined;
}

function hasVoltageAlarm(machine: Machine): boolean {
  return machine
    .list("/sys/class/hwmon")
    .some((name) => textOf(machine.read(`/sys/class/hwmon/${name}/name`)) === "rpi_volt");
}
