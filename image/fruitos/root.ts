/** The root of a slot: what others made (a tar, Alpine's packages), and ours over it. */
import { closeSync, createReadStream, createWriteStream, openSync, readSync } from "node:fs";
import { join } from "node:path";
import { pipeline } from "node:stream/promises";
import { createGunzip, createZstdDecompress } from "node:zlib";
import { unpackTar } from "./tar.ts";
import { BuildError } from "./tools.ts";
import { directory, file, fileContent, Tree } from "./tree.ts";

/** Reads a root from a tar file, unpacked into the folder `work` where it is compressed. */
export async function readRoot(tar: string, work: string): Promise<Tree> {
  const unpacked = join(work, "rootfs.tar");
  const magic = firstWord(tar);
  const unpack =
    (magic & 0xffff) === 0x8b1f ? createGunzip() : magic === 0xfd2f_b528 ? createZstdDecompress() : undefined;
  if (unpack)
    await pipeline(createReadStream(tar), unpack, createWriteStream(unpacked)).catch((cause: Error) => {
      throw new BuildError(`${tar}: it does not unpack: ${cause.message}`, { cause });
    });
  const tree = new Tree();
  unpackTar(tree, unpack ? unpacked : tar, { whole: true, name: tar });
  return tree;
}

function firstWord(path: string): number {
  const bytes = Buffer.alloc(4);
  const fd = openSync(path, "r");
  readSync(fd, bytes, 0, 4, 0);
  closeSync(fd);
  return bytes.readUInt32LE();
}

/** What of a root stands elsewhere on the card, in the boot area and on the boot partition. */
const ELSEWHERE = /^(boot\/.+|usr\/(share|lib)\/u-boot|usr\/lib\/raspi-firmware|usr\/lib\/linux-image[^/]*)$/;
/** Where something is mounted. */
const MOUNTED = ["boot", "data", "dev", "proc", "run", "sys", "tmp"];

/** Makes of somebody's root a slot's: without what stands elsewhere, with the files of `image/rootfs/root`, the agent and the release's facts. */
export function finishRoot(
  root: Tree,
  options: {
    /** The folder `image/rootfs`. */
    overlay: string;
    /** The agent's executable. */
    agent: string;
    release: { name: string; version: bigint; boards: readonly string[]; channel: string; floor: bigint };
    files: Readonly<Record<string, string | { text: string; mode?: number }>>;
  },
): Tree {
  const { release } = options;
  const system = root.copy();
  for (const [path] of root.entries()) if (ELSEWHERE.test(path)) system.remove(path);
  for (const path of MOUNTED)
    if (!system.at(path)) system.put(path, directory(path === "tmp" ? 0o1777 : 0o755));
  system.overlay(join(options.overlay, "root"));
  system.place("usr/bin/fruit", file(fileContent(options.agent), 0o755));
  // A version has 64 bits, a number of JSON 53
  const facts = { ...release, version: String(release.version), floor: String(release.floor) };
  system.place("etc/fruit/release.json", file(`${JSON.stringify(facts, undefined, 2)}\n`));
  addFiles(system, options.files);
  return system;
}

/** Files by path: one of this machine (what stands in a `bin` folder can be run), or text. */
function addFiles(
  system: Tree,
  files: Readonly<Record<string, string | { text: string; mode?: number }>>,
): void {
  for (const [path, what] of Object.entries(files)) {
    const content = typeof what === "string" ? fileContent(what) : what.text;
    const usual = /\/s?bin\//.test(path) ? 0o755 : 0o644;
    const mode = typeof what === "string" ? usual : (what.mode ?? usual);
    system.place(path.replace(/^\/+/, ""), file(content, mode));
  }
}
