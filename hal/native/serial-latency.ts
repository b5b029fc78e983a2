/** How long a USB serial adapter waits for more before it hands on what came. */
import { readFile, realpath, writeFile } from "node:fs/promises";
import { basename, join } from "node:path";

/** The least there is, milliseconds; FTDI's adapters begin with 16, which every answer then takes (Linux: drivers/usb/serial/ftdi_sio.c). */
const LEAST = "1";

/**
 * Makes an adapter hand on at once what came, for a bus that waits for each answer; others than FTDI's cannot be told to, and need not
 * be. Where it is refused the bus is as slow as it was. The kernel's files are under `root`.
 */
export async function shortenLatency(device: string, root = "/"): Promise<void> {
  // A name in /dev/serial/by-path is a link
  const name = basename(await realpath(join(root, device)).catch(() => device));
  const timer = join(root, "sys/bus/usb-serial/devices", name, "latency_timer");
  const set = async () => {
    if ((await readFile(timer, "utf8")).trim() !== LEAST) await writeFile(timer, LEAST);
  };
  await set().catch(() => undefined);
}
