import { lstatSync, readlinkSync } from "node:fs";
import { join } from "node:path";

/** More links than any sane path has. */
const LINKS_MOST = 16;

/**
 * Where `path` of the system under `root` is on this machine; undefined when there is nothing. Links are followed
 * inside `root`: an absolute one must not lead to the build host's own files.
 */
export function inRoot(root: string, path: string): string | undefined {
  let left = path.split("/").filter(Boolean);
  let at = "/";
  for (let links = 0; left.length > 0; ) {
    const [part = "", ...rest] = left;
    left = rest;
    // join("/", "..") stays "/": nothing leads out of the root.
    const next = join(at, part);
    const found = lstatSync(join(root, next), { throwIfNoEntry: false });
    if (!found) return undefined;
    if (!found.isSymbolicLink()) {
      at = next;
      continue;
    }
    if (++links > LINKS_MOST) return undefined;
    const target = readlinkSync(join(root, next));
    if (target.startsWith("/")) at = "/";
    left = [...target.split("/").filter(Boolean), ...left];
  }
  return join(root, at);
}
