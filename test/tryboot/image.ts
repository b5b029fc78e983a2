/** A card for boards that U-Boot does not start, as the builder makes it of a small root: a Pi 5 whose U-Boot has no driver for it. */
import { closeSync, mkdirSync, openSync, readSync, statSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { buildImage, type Image, type ImageOptions } from "../../image/fruitos/builder.ts";
import { file, Tree } from "../../image/fruitos/tree.ts";

const MiB = 1 << 20;
export const SIZES = { boot: 40 * MiB, slot: 48 * MiB, data: 8 * MiB };
export const PI5 = "raspberrypi,5-model-b";

/** A device tree that says which board it is for, and no more. */
export function deviceTree(board: string): Buffer {
  const value = Buffer.from(`${board}\0`.padEnd(Math.ceil((board.length + 1) / 4) * 4, "\0"));
  const words = (...numbers: number[]) =>
    Buffer.concat(numbers.map((one) => Buffer.from(Uint32Array.of(one).buffer).swap32()));
  const structure = Buffer.concat([words(1, 0, 3, board.length + 1, 0), value, words(2, 9)]);
  const head = words(0xd00d_feed, 0, 40, 40 + structure.length, 0, 17, 16, 0, 0, structure.length);
  return Buffer.concat([head, structure, Buffer.from("compatible\0")]);
}

/** A root with U-Boot for a Pi 3, and a kernel that knows the boards of these device trees. */
export function rootOf(trees: Record<string, string> = { "bcm2712-rpi-5-b.dtb": PI5 }): Tree {
  const kernel = Buffer.alloc(70_000, "kernel ");
  kernel.writeBigUInt64LE(100_000n, 16);
  kernel.write("ARMd", 56, "latin1");
  const files: Record<string, string | Uint8Array> = {
    "bin/busybox": "busybox",
    "usr/share/u-boot/rpi_3/u-boot.bin": "U-Boot 3",
    "boot/vmlinuz-rpi": kernel,
    "boot/start4.elf": "firmware",
    "boot/fixup4.dat": "firmware",
    "boot/start.elf": "firmware",
    "boot/overlays/disable-bt.dtbo": "overlay",
    "lib/modules/6.1-test/modules.dep": "",
    ...Object.fromEntries(Object.entries(trees).map(([name, board]) => [`boot/${name}`, deviceTree(board)])),
  };
  const tree = new Tree();
  for (const [path, content] of Object.entries(files)) tree.put(path, file(content));
  return tree;
}

/** Builds both cards into a folder of `at`. */
export function buildBoth(at: string, version: bigint, more: Partial<ImageOptions> = {}): Promise<Image> {
  const overlay = join(at, "overlay");
  for (const [path, text] of Object.entries({
    "root/etc/init.d/fruit": "#!/sbin/openrc-run\n",
    "initramfs/init": "#!/bin/busybox sh\n",
    modules: "",
  })) {
    mkdirSync(dirname(join(overlay, path)), { recursive: true });
    writeFileSync(join(overlay, path), text, { mode: 0o755 });
  }
  writeFileSync(join(at, "agent"), `the agent of ${version}`);
  return buildImage({
    ...{
      out: join(at, `v${version}`),
      version,
      rootfs: async () => rootOf(),
      overlay,
      agent: join(at, "agent"),
    },
    ...{ raw: "exact", time: 1_780_000_000, sizes: SIZES, level: { root: 1, card: 1 } },
    ...more,
  });
}

/** A card in a file, as the model of the firmware reads it. */
export const cardIn = (path: string) => ({
  bytes: statSync(path).size,
  read(offset: number, length: number) {
    const bytes = Buffer.alloc(length);
    const fd = openSync(path, "r");
    readSync(fd, bytes, 0, length, offset);
    closeSync(fd);
    return bytes;
  },
});
