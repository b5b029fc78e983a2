import { Cursor } from "./cursor.ts";

/** What the kernel says of one mounted file system. */
export interface Mount {
  path: string;
  /** `major:minor`: the name in the table may be `/dev/root`, which is no device. */
  device: string;
  type: string;
  isReadonly: boolean;
}

/**
 * The configured mount points that are mounted, by instance name. A path on which nothing is mounted is left out:
 * its numbers would be another file system's.
 * Format of /proc/self/mountinfo: proc_pid_mountinfo(5).
 */
export function mountsOf(
  bytes: Uint8Array | undefined,
  filesystems: Record<string, string>,
): Map<string, Mount> {
  const names = new Map(Object.entries(filesystems).map(([name, path]) => [escaped(path), { name, path }]));
  const mounts = new Map<string, Mount>();
  const cursor = new Cursor(bytes ?? new Uint8Array());
  while (cursor.line()) {
    const device = cursor.pass(2).word();
    const wanted = names.get(cursor.pass(1).word() ?? "");
    const options = cursor.word();
    if (!wanted || device === undefined || options === undefined) continue;
    // Optional fields, any number of them, end with a single hyphen.
    for (let field = cursor.word(); field !== undefined && field !== "-"; ) field = cursor.word();
    const type = cursor.word() ?? "";
    const superOptions = cursor.pass(1).word() ?? "";
    // A later line covers an earlier one on the same path.
    mounts.set(wanted.name, {
      path: wanted.path,
      device,
      type,
      isReadonly: isReadonly(options) || isReadonly(superOptions),
    });
  }
  return mounts;
}

function isReadonly(options: string): boolean {
  return options === "ro" || options.startsWith("ro,");
}

/** As the kernel prints a path: blanks, newlines and backslashes in octal. */
function escaped(path: string): string {
  return path.replace(/[ \t\n\\]/g, (char) => `\\${char.charCodeAt(0).toString(8).padStart(3, "0")}`);
}
