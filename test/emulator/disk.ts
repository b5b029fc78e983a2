/** Disks for emulated machines: an initramfs, a read-only root, an SD card with a boot partition. */
import {
  cpSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { $ } from "bun";

/** Files by their place in the machine: a file of this one, or text. What stands in a `bin` folder can be run. */
export type Files = Record<string, string | { text: string }>;

/** Debian keeps programs that make file systems where only root looks. */
const ENV = { ...process.env, PATH: `${process.env.PATH}:/usr/sbin:/sbin` };
const MiB = 1024 * 1024;

/** An initramfs of these files. */
export async function makeInitramfs(out: string, files: Files): Promise<string> {
  using tree = layOut(dirname(out), files);
  await $`cd ${tree.path} && find . | cpio -o -H newc -R 0:0 --quiet > ${out}`.quiet();
  return out;
}

/** A read-only root of these files. Not compressed: what the emulated processor need not unpack is sooner there. */
export async function makeRoot(out: string, files: Files): Promise<string> {
  using tree = layOut(dirname(out), files);
  await $`mksquashfs ${tree.path} ${out} -comp zstd -Xcompression-level 3 -all-root -no-progress -quiet`
    .env(ENV)
    .quiet();
  return out;
}

/** An SD card: p1 is FAT with the `boot` files, p2 starts with the content of `root`. */
export async function makeSdCard(out: string, boot: Files, root: string): Promise<string> {
  const bootBytes = 64 * MiB;
  const start = { boot: 4 * MiB, root: 4 * MiB + bootBytes };
  const rootBytes = Math.ceil(statSync(root).size / MiB) * MiB;
  // QEMU takes only powers of two.
  const size = 2 ** Math.ceil(Math.log2(start.root + rootBytes));
  writeFileSync(out, "");
  truncateSync(out, size);
  const table = `label: dos
start=${start.boot / 512}, size=${bootBytes / 512}, type=c, bootable
start=${start.root / 512}, size=${rootBytes / 512}, type=83
`;
  await $`sfdisk --quiet ${out} < ${Buffer.from(table)}`.env(ENV).quiet();
  const fat = `${out}.fat`;
  using tree = layOut(dirname(out), boot);
  writeFileSync(fat, "");
  truncateSync(fat, bootBytes);
  await $`mkfs.fat -F 32 ${fat}`.env(ENV).quiet();
  const names = readdirSync(tree.path).map((name) => join(tree.path, name));
  if (names.length > 0) await $`mcopy -s -i ${fat} ${names} ::/`.quiet();
  await $`dd if=${fat} of=${out} bs=1M seek=${start.boot / MiB} conv=notrunc,sparse status=none`;
  await $`dd if=${root} of=${out} bs=1M seek=${start.root / MiB} conv=notrunc status=none`;
  rmSync(fat);
  return out;
}

/** A boot script for U-Boot, compiled. */
export async function makeBootScript(out: string, script: string): Promise<string> {
  writeFileSync(`${out}.txt`, script);
  await $`mkimage -A arm64 -T script -C none -d ${out}.txt ${out}`.quiet();
  return out;
}

function layOut(parent: string, files: Files): Disposable & { path: string } {
  const path = mkdtempSync(join(parent, "tree-"));
  for (const [place, content] of Object.entries(files)) {
    const file = join(path, place);
    mkdirSync(dirname(file), { recursive: true });
    if (typeof content === "string") cpSync(content, file, { dereference: true });
    else writeFileSync(file, content.text, { mode: /\/s?bin\/|^\/init$/.test(place) ? 0o755 : 0o644 });
  }
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true, force: true }) };
}
