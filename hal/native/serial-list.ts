/** Which serial ports there are, from the kernel's own tree: node-serialport asks `udevadm`, which Alpine has not got. */
import { existsSync, readdirSync, readFileSync, readlinkSync, realpathSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import type { PortInfo } from "@serialport/bindings-interface";

/** Folders from a port up to its USB device: the port, its driver's, the interface, the device, and a hub's or two to spare. */
const MOST_STEPS = 6;

/**
 * Ports with hardware behind them, by name. `pnpId` is udev's name in /dev/serial/by-id; `locationId` the one in by-path,
 * else the USB interface (`1-1.2:1.0`): it stays the same while the adapter stays in its socket.
 */
export async function listPorts(root = "/"): Promise<PortInfo[]> {
  const tree = join(root, "sys/class/tty");
  const byId = linksTo(join(root, "dev/serial/by-id"));
  const byPath = linksTo(join(root, "dev/serial/by-path"));
  return namesIn(tree)
    .filter((name) => isThere(join(tree, name)))
    .map((name) => {
      const usb = usbOf(join(tree, name, "device"));
      const fact = (file: string) => (usb ? text(join(usb.device, file)) : undefined);
      return {
        path: `/dev/${name}`,
        manufacturer: fact("manufacturer"),
        serialNumber: fact("serial"),
        pnpId: byId.get(name),
        locationId: byPath.get(name) ?? usb?.interface,
        productId: fact("idProduct"),
        vendorId: fact("idVendor"),
      };
    });
}

/** Virtual consoles have no device; the PC's four classic ports are listed without hardware, with type 0 (PORT_UNKNOWN). */
function isThere(port: string): boolean {
  return existsSync(join(port, "device")) && text(join(port, "type")) !== "0";
}

/** The USB device a port belongs to, and the interface of it; undefined for a port that is on no USB. */
function usbOf(device: string): { device: string; interface: string } | undefined {
  let folder = realpathSync(device);
  for (let step = 0; step < MOST_STEPS; step++) {
    const above = dirname(folder);
    if (existsSync(join(above, "idVendor"))) return { device: above, interface: basename(folder) };
    folder = above;
  }
  return undefined;
}

/** Names of links in a folder, by the name of what they point to. */
function linksTo(folder: string): Map<string, string> {
  return new Map(
    namesIn(folder).flatMap((name) => {
      try {
        return [[basename(readlinkSync(join(folder, name))), name] as const];
      } catch {
        return [];
      }
    }),
  );
}

function namesIn(folder: string): string[] {
  try {
    return readdirSync(folder).sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
  } catch {
    return [];
  }
}

/** What a kernel file says; undefined where it is missing, unreadable or empty. */
function text(file: string): string | undefined {
  try {
    return readFileSync(file, "utf8").trim() || undefined;
  } catch {
    return undefined;
  }
}
