/** File systems in files, made without privileges and the same every time: squashfs, FAT32, ext4. */
import { createHash } from "node:crypto";
import {
  closeSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  rmSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { SECTOR } from "../../boot/layout.ts";
import { writeAt } from "./card.ts";
import { writeTar } from "./tarwriter.ts";
import { run } from "./tools.ts";
import { type Content, lengthOf, piecesOf, type Tree } from "./tree.ts";

/** Writes a tree as a squashfs with its own owners and devices: all times 0, zstd at a level of 1 to 22. */
export async function makeSquashfs(out: string, tree: Tree, level: number): Promise<void> {
  rmSync(out, { force: true });
  const options = ["-comp", "zstd", "-Xcompression-level", String(level), "-b", "131072", "-no-xattrs"];
  const times = [
    "-mkfs-time",
    "0",
    "-all-time",
    "0",
    "-root-time",
    "0",
    "-root-mode",
    "755",
    "-root-uid",
    "0",
    "-root-gid",
    "0",
  ];
  await run(["mksquashfs", "-", out, "-tar", ...options, ...times, "-quiet", "-no-progress"], {
    input: writeTar(tree),
  });
}

/** A FAT32 file system of exactly these files; `time` (Unix seconds) is on all of them. */
export async function makeFat(
  out: string,
  options: { bytes: number; label: string; id: number; time: number; files: ReadonlyMap<string, Content> },
): Promise<void> {
  const { bytes, label, id, files } = options;
  // FAT counts from 1980, in steps of two seconds
  const time = Math.max(options.time - (options.time % 2), 315_532_800);
  empty(out, bytes);
  const volume = id.toString(16).padStart(8, "0");
  await run([
    "mkfs.fat",
    "--invariant",
    "-F",
    "32",
    "-s",
    bytes < 512 << 20 ? "1" : "8",
    "-i",
    volume,
    "-n",
    label,
    out,
  ]);
  const env = { SOURCE_DATE_EPOCH: String(time), MTOOLS_SKIP_CHECK: "1" };
  const folder = mkdtempSync(join(dirname(out), "fat-"));
  try {
    const names = [...files.keys()].sort();
    const folders = new Set(names.flatMap((name) => parents(name)));
    for (const path of [...folders].sort()) await run(["mmd", "-i", out, `::/${path}`], { env });
    for (const path of ["", ...[...folders].sort()]) {
      const here = names.filter((name) => parent(name) === path);
      const copies = here.map((name, index) => {
        const copy = join(
          folder,
          `${path.replaceAll("/", "-")}-${index}`,
          name.slice(name.lastIndexOf("/") + 1),
        );
        layOut(copy, files.get(name) ?? new Uint8Array(), time);
        return copy;
      });
      if (copies.length > 0) await run(["mcopy", "-m", "-i", out, ...copies, `::/${path}`], { env });
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Bytes of a FAT32 that surely has room for these files, with clusters of one sector. */
export function fatBytesOf(files: ReadonlyMap<string, Content>): number {
  const sectors = [...files.values()].reduce((sum, file) => sum + Math.ceil(lengthOf(file) / SECTOR), 0);
  // Every cluster has four bytes in each of two tables; folders and long names want some, too
  return Math.max(FAT32_LEAST, sectors * (SECTOR + 8) + (2 << 20));
}

/** Fewer clusters of a sector than 65,525 would make it a FAT16 by the specification ("FAT Type Determination"). */
const FAT32_LEAST = 36 << 20;

/** An ext4 file system with these files, all root's, at `time`; its ids come from `seed`. */
export async function makeExt4(
  out: string,
  options: {
    bytes: number;
    label: string;
    seed: string;
    time: number;
    folders: readonly string[];
    files: ReadonlyMap<string, Content>;
  },
): Promise<void> {
  const { bytes, label, seed, files } = options;
  const env = { E2FSPROGS_FAKE_TIME: String(Math.max(options.time, 1)) };
  empty(out, bytes);
  const features = [
    "-E",
    `hash_seed=${uuid(`${seed} hash`)},lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0,nodiscard`,
  ];
  await run(
    ["mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "1", "-L", label, "-U", uuid(seed), ...features, out],
    { env },
  );
  const folder = mkdtempSync(join(dirname(out), "ext4-"));
  try {
    const folders = new Set([
      ...options.folders,
      ...[...files.keys(), ...options.folders].flatMap((name) => parents(name)),
    ]);
    const commands = [...folders].sort().flatMap((path) => [`mkdir /${path}`, `sif /${path} mode 040755`]);
    for (const [index, [path, content]] of [...files].sort().entries()) {
      const copy = join(folder, String(index), "file");
      layOut(copy, content, options.time);
      commands.push(`write ${copy} /${path}`, `sif /${path} mode 0100644`);
    }
    const script = join(folder, "script");
    writeFileSync(script, `${commands.join("\n")}\n`);
    if (commands.length > 0) await run(["debugfs", "-w", "-f", script, out], { env });
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** A UUID out of a text, always the same one (RFC 9562, version 8). */
export function uuid(text: string): string {
  const hash = createHash("sha256").update(text).digest();
  hash[6] = ((hash[6] ?? 0) & 0x0f) | 0x80;
  hash[8] = ((hash[8] ?? 0) & 0x3f) | 0x80;
  const hex = hash.toString("hex");
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20, 32)].join(
    "-",
  );
}

function empty(path: string, bytes: number): void {
  writeFileSync(path, "");
  truncateSync(path, bytes);
}

function layOut(path: string, content: Content, time: number): void {
  mkdirSync(dirname(path), { recursive: true });
  const fd = openSync(path, "w", 0o644);
  let written = 0;
  for (const piece of piecesOf(content)) {
    writeAt(fd, piece, written);
    written += piece.length;
  }
  closeSync(fd);
  utimesSync(path, time, time);
}

const parent = (path: string) => path.slice(0, Math.max(path.lastIndexOf("/"), 0));
const parents = (path: string): string[] =>
  parent(path) === "" ? [] : [...parents(parent(path)), parent(path)];
