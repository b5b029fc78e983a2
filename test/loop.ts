/** Disks of the kernel for tests: loop devices over files. */
import { closeSync, ftruncateSync, openSync } from "node:fs";
import { join } from "node:path";

/** Whether this machine can make loop devices and mount them, and what is missing where it cannot. */
export const loops: { isSkipped: boolean; need: string } = (() => {
  if (!Bun.which("losetup")) return { isSkipped: true, need: " [needs: apt-get install mount]" };
  if (process.getuid?.() !== 0 || run("losetup", "-f").exit !== 0)
    return { isSkipped: true, need: " [needs: root and loop devices]" };
  return { isSkipped: false, need: "" };
})();

/** A loop device that goes with the test. */
export interface Loop extends Disposable {
  /** `/dev/loop0`. */
  device: string;
  /** The file behind it. */
  file: string;
}

/** A file of zeros that takes no room. */
export function sparse(file: string, bytes: number): string {
  const handle = openSync(file, "w");
  ftruncateSync(handle, bytes);
  closeSync(handle);
  return file;
}

/** A loop device over a new file in that folder; options are losetup's. */
export function loop(folder: string, name: string, bytes: number, ...options: string[]): Loop {
  const file = sparse(join(folder, name), bytes);
  const { out, err, exit } = run("losetup", "--show", ...options, "-f", file);
  if (exit !== 0) throw new Error(`losetup: ${err}`);
  const device = out.trim();
  return { device, file, [Symbol.dispose]: () => void run("losetup", "-d", device) };
}

/** Runs a program of the system to its end. */
export function run(...command: string[]): { exit: number; out: string; err: string } {
  const { exitCode, stdout, stderr } = Bun.spawnSync(command, { stdout: "pipe", stderr: "pipe" });
  return { exit: exitCode, out: stdout.toString(), err: stderr.toString() };
}

/** Mounts for as long as the test runs. Throws where that cannot be. */
export function mount(...words: string[]): Disposable {
  const { exit, err } = run("mount", ...words);
  if (exit !== 0) throw new Error(`mount ${words.join(" ")}: ${err}`);
  return { [Symbol.dispose]: () => void run("umount", words.at(-1) ?? "") };
}
