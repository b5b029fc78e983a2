/** The system's programs that build file systems, and what to install where one is missing. */
import { spawn } from "node:child_process";
import { pipeline } from "node:stream/promises";

/** Debian's packages (Alpine's have the same names) by program. */
const PACKAGES: Record<string, string> = {
  "mkfs.fat": "dosfstools",
  mcopy: "mtools",
  mmd: "mtools",
  mksquashfs: "squashfs-tools",
  "mkfs.ext4": "e2fsprogs",
  debugfs: "e2fsprogs",
};

/** Debian keeps programs that make file systems where only root looks. */
const PATH = `${process.env.PATH}:/usr/sbin:/sbin`;

/** What the image cannot be built with, or from. */
export class BuildError extends Error {
  override name = "BuildError";
}

/** The packages to install before an image can be built; empty where all is there. */
export function missingPackages(): string[] {
  const missing = Object.entries(PACKAGES).filter(([program]) => !Bun.which(program, { PATH }));
  return [...new Set(missing.map(([, name]) => name))];
}

/** Runs a program to its end, in UTC and in C; throws its own words where it fails. `input` is what it reads. */
export async function run(
  command: [string, ...string[]],
  options: { env?: Record<string, string>; input?: AsyncIterable<Uint8Array> | Iterable<Uint8Array> } = {},
): Promise<string> {
  const [program, ...args] = command;
  const { SOURCE_DATE_EPOCH, ...rest } = process.env;
  const child = spawn(program, args, {
    env: { ...rest, PATH, TZ: "UTC", LC_ALL: "C", ...options.env },
    stdio: ["pipe", "pipe", "pipe"],
  });
  const said: Buffer[] = [];
  const out: Buffer[] = [];
  child.stdout.on("data", (piece: Buffer) => out.push(piece));
  child.stderr.on("data", (piece: Buffer) => said.push(piece));
  const ended = new Promise<number | null>((resolve, reject) => {
    child.once("error", (cause: NodeJS.ErrnoException) =>
      reject(
        cause.code === "ENOENT"
          ? new BuildError(`${program} is missing: install ${PACKAGES[program] ?? program}`, { cause })
          : cause,
      ),
    );
    child.once("close", resolve);
  });
  // A program that gives up closes its input first; what it says counts, not the broken pipe.
  const fed = pipeline(options.input ?? [], child.stdin).catch((error: NodeJS.ErrnoException) => {
    if (error.code === "EPIPE" || error.code === "ERR_STREAM_PREMATURE_CLOSE") return;
    child.kill();
    throw error;
  });
  const [code] = await Promise.all([ended, fed]);
  if (code !== 0)
    throw new BuildError(
      `${command.join(" ").slice(0, 200)}: ${Buffer.concat([...said, ...out])
        .toString()
        .trim()}`,
    );
  return Buffer.concat(out).toString();
}
