import { existsSync, readdirSync, readFileSync, readlinkSync, realpathSync, statSync } from "node:fs";
import { basename, join } from "node:path";
import { listPorts } from "../../hal/native/serial-list.ts";
import type { Machine } from "../../hal/ports.ts";
import type { Config } from "../config.ts";
import { kernelConsoles } from "../tty.ts";
import { type Check, fail, ok, trouble, warn } from "./check.ts";

/** Names that go to whichever adapter was found first. */
const NUMBERED = /^\/dev\/tty(USB|ACM)\d+$/;

/** A serial line that the configuration names. */
interface Line {
  name: string;
  device: string;
  /** What is to be said of it where all is well. */
  use: string;
}

/** What stands in the way of each console's and RS-485 bus's serial line. None of them is opened: that alone would move DTR. */
export async function checkSerial(
  { power, consoles }: Config,
  machine: Pick<Machine, "read">,
  root = "/",
): Promise<Check[]> {
  const lines: Line[] = [
    ...power.buses
      .filter(({ driver }) => driver === "pistack-rs485")
      .map(({ device, driver, boards }) => ({
        name: `bus ${device}`,
        device,
        use: `${driver}, ${boards.length === 1 ? "board" : "boards"} ${boards.join(", ")}`,
      })),
    ...Object.entries(consoles).map(([name, { device, baud }]) => ({
      name: `console ${name}`,
      device,
      use: `${device}, ${baud} baud`,
    })),
  ];
  if (lines.length === 0) return [];
  const ports = await portNames(root);
  return lines.flatMap((line) => checkLine(line, ports, kernelConsoles(machine)));
}

/** Ports with hardware behind them, by the names that stay where there are such. */
async function portNames(root: string): Promise<Map<string, string>> {
  return new Map(
    (await listPorts(root)).map(({ path, locationId = "" }) => {
      const lasting = `/dev/serial/by-path/${locationId}`;
      return [path, locationId && existsSync(join(root, lasting)) ? lasting : path];
    }),
  );
}

function checkLine({ name, device, use }: Line, ports: Map<string, string>, kernel: string[]): Check[] {
  const found = statSync(device, { throwIfNoEntry: false });
  if (!found) {
    const there = [...ports.values()];
    return [
      fail(
        name,
        `${device}: does not exist`,
        there.length > 0
          ? `there are ${there.join(", ")}`
          : "check the cable: the kernel shows no serial port",
      ),
    ];
  }
  if (!found.isCharacterDevice() || !isTty(found.rdev))
    return [fail(name, `${device}: is no serial line`, "name the adapter's device")];
  const problem = trouble(device, "both");
  if (problem) return [fail(name, problem, "run as root, or join the group of the device (dialout)")];
  const path = realpathSync(device);
  const holder = holderOf(path);
  if (holder) return [fail(name, `${device}: is held by ${holder}`, "end it, or name another device")];
  if (kernel.includes(path))
    return [
      fail(name, `${device}: the kernel talks on it`, `take console=${basename(path)} out of cmdline.txt`),
    ];
  if (!NUMBERED.test(device)) return [ok(name, use)];
  const lasting = ports.get(path);
  return [
    warn(
      name,
      `${device}: is another adapter's after another order of plugging`,
      `name it ${lasting === undefined || lasting === path ? "by its link in /dev/serial/by-path" : lasting}`,
    ),
  ];
}

/** By the kernel's class of the device; a pseudo-terminal has none and is one all the same. */
function isTty(rdev: number): boolean {
  const major = (rdev >> 8) & 0xfff;
  const minor = (rdev & 0xff) | ((rdev >> 12) & 0xfff00);
  try {
    return basename(readlinkSync(`/sys/dev/char/${major}:${minor}/subsystem`)) === "tty";
  } catch {
    return true;
  }
}

/** Who has a device open, as far as this user may see; an agent of this very program is no stranger. */
function holderOf(path: string): string | undefined {
  for (const pid of readdirSync("/proc").filter((name) => /^\d+$/.test(name))) {
    if (Number(pid) === process.pid || !hasOpen(pid, path)) continue;
    const args = orNothing(() => readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0")) ?? [];
    const program = orNothing(() => readlinkSync(`/proc/${pid}/exe`));
    if (program === realpathSync("/proc/self/exe") && args.includes("agent")) continue;
    return `${basename(program ?? args[0] ?? "a program")} (process ${pid})`;
  }
  return undefined;
}

function hasOpen(pid: string, path: string): boolean {
  const files = orNothing(() => readdirSync(`/proc/${pid}/fd`)) ?? [];
  return files.some((file) => orNothing(() => readlinkSync(`/proc/${pid}/fd/${file}`)) === path);
}

function orNothing<T>(ask: () => T): T | undefined {
  try {
    return ask();
  } catch {
    return undefined;
  }
}
