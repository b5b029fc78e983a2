/** The executables carry the swarm engine without its native parts, and nothing of the folder they were built in. */
import { expect, test } from "bun:test";
import { openSync, readSync, statSync } from "node:fs";
import { join } from "node:path";
import { build } from "../../image/build.ts";

const root = join(import.meta.dir, "../..");
const CHUNK = 16 * 1024 * 1024;

/** Is the text in the file? */
function holds(file: string, text: string): boolean {
  const [fd, size, wanted] = [openSync(file, "r"), statSync(file).size, Buffer.from(text)];
  const bytes = Buffer.alloc(CHUNK + wanted.length);
  for (let at = 0; at < size; at += CHUNK)
    if (bytes.subarray(0, readSync(fd, bytes, 0, bytes.length, at)).includes(wanted)) return true;
  return false;
}

test.each(["x64-musl", "arm64-musl"] as const)(
  "%s: no path of the build is in it, so nothing is loaded from there",
  async (target) => {
    const file = await build(target);
    // What is looked for can be found at all
    expect(holds(file, "BitTorrent protocol")).toBe(true);
    expect(holds(file, root)).toBe(false);
    for (const native of ["node_datachannel.node", "utp_native", "fs-native-extensions/prebuilds"])
      expect(holds(file, native)).toBe(false);
  },
  120_000,
);
