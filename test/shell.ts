/** The image's own scripts, run under BusyBox on this machine, with folders of a test in place of the node's. */
import { join } from "node:path";

/** The scripts as they go into the image. */
export const ROOTFS = join(import.meta.dir, "../image/rootfs");
export const BUSYBOX = Bun.which("busybox");
/** For a title. */
export const NEEDS_BUSYBOX = BUSYBOX ? "" : " [needs: apt-get install busybox]";

/** Longest for one test: programs by the hundred are started, perhaps on a busy machine. */
export const LIMIT_MS = 60_000;

/** Nothing started here can restart this machine, whatever a script does. */
const HARMLESS = process.getuid?.() === 0 ? ["setpriv", "--bounding-set=-sys_boot"] : [];

/** Starts a script. Its environment is what is given and nothing else. */
export function startScript(path: string, args: readonly string[], env: Record<string, string>) {
  return Bun.spawn([...HARMLESS, BUSYBOX ?? "busybox", "sh", path, ...args], {
    env: { PATH: process.env.PATH ?? "", ...env },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
}

/** Runs a script to its end. */
export async function runScript(path: string, args: readonly string[], env: Record<string, string>) {
  const child = startScript(path, args, env);
  const [out, err, exit] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ]);
  return { exit, out, err };
}
