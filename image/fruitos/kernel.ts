/** The kernel that a root brings along: its Image, its modules, its device trees. */
import { gunzipSync, zstdDecompressSync } from "node:zlib";
import { KERNEL_ROOM, LOADS } from "../../boot/uboot/switch.ts";
import { BuildError } from "./tools.ts";
import { bytesOf, type Content, file, type Tree } from "./tree.ts";

/** A kernel and what belongs to it. */
export interface Kernel {
  /** As `uname -r` says it. */
  version: string;
  /** Uncompressed, as U-Boot's `booti` wants it. */
  image: Uint8Array;
  /** Path of its modules in the tree, `lib/modules/6.12.1-rpi`. */
  modules: string;
  /** By name, `bcm2710-rpi-3-b.dtb`. */
  deviceTrees: Map<string, Content>;
  /** By name, `disable-bt.dtbo`. */
  overlays: Map<string, Content>;
}

/** Finds the one kernel of a root; throws where there is none, or more than one. */
export function findKernel(tree: Tree): Kernel {
  const kernels = tree
    .entries()
    .filter(([path, node]) => /^boot\/(vmlinu[xz]|Image)[^/]*$/.test(path) && node.type === "file");
  const [[path, node] = [], ...more] = kernels;
  if (node?.type !== "file")
    throw new BuildError("the root has no kernel: there is no file boot/vmlinuz* or boot/Image*");
  if (more.length > 0)
    throw new BuildError(
      `the root has ${kernels.length} kernels, one is wanted: ${kernels.map(([name]) => name).join(", ")}`,
    );
  const base = tree.resolve("lib/modules") ?? "lib/modules";
  const versions = new Set(
    tree
      .entries()
      .flatMap(([name]) =>
        name.startsWith(`${base}/`) ? [name.slice(base.length + 1).split("/")[0] ?? ""] : [],
      ),
  );
  const [version, ...others] = versions;
  if (version === undefined || others.length > 0)
    throw new BuildError(
      `the root has modules of ${versions.size} kernels in ${base}, one is wanted: ${[...versions].join(", ")}`,
    );
  return {
    version,
    image: unpackKernel(bytesOf(node.content), `${path}`),
    modules: `${base}/${version}`,
    deviceTrees: named(tree, /^(boot|usr\/lib\/linux-image[^/]*)\/(.+\/)?bcm2[^/]*\.dtb$/),
    overlays: named(tree, /^(boot|usr\/lib\/linux-image[^/]*)\/(.+\/)?overlays\/[^/]+\.dtbo$/),
  };
}

/**
 * The kernel as it runs, out of gzip or the kernel's own EFI wrapping.
 * Sources: Documentation/arch/arm64/booting.rst (magic at byte 56), drivers/firmware/efi/libstub/zboot-header.S.
 */
export function unpackKernel(bytes: Uint8Array, name: string): Uint8Array {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const word = (at: number) => (at + 4 <= bytes.length ? view.getUint32(at, true) : 0);
  if (word(56) === 0x644d_5241) return fitting(bytes, word(16), name);
  if ((word(0) & 0xffff) === 0x8b1f)
    return unpackKernel(
      unpacked(() => gunzipSync(bytes, { maxOutputLength: LOADS.kernel }), name),
      `${name}, unpacked`,
    );
  if (word(4) === 0x676d_697a) {
    const packed = bytes.subarray(word(8), word(8) + word(12));
    const [method = ""] = Buffer.from(bytes.subarray(24, 56)).toString("latin1").split("\0");
    if (method !== "gzip" && method !== "zstd")
      throw new BuildError(`${name}: it is compressed with ${method}, only gzip and zstd can be unpacked`);
    const unpack = method === "gzip" ? gunzipSync : zstdDecompressSync;
    return unpackKernel(
      unpacked(() => unpack(packed, { maxOutputLength: LOADS.kernel }), name),
      `${name}, unpacked`,
    );
  }
  throw new BuildError(`${name}: no 64-bit ARM kernel: "ARMd" is not at byte 56`);
}

/** Source: booting.rst, `image_size`: what the kernel needs from where it was loaded, its own variables included. */
function fitting(image: Uint8Array, running: number, name: string): Uint8Array {
  if (image.length > LOADS.kernel || running > KERNEL_ROOM)
    throw new BuildError(
      `${name}: ${image.length} bytes, ${running} once it runs; U-Boot has room for ${LOADS.kernel} and ${KERNEL_ROOM}`,
    );
  return image;
}

function unpacked(unpack: () => Uint8Array, name: string): Uint8Array {
  try {
    return unpack();
  } catch (cause) {
    throw new BuildError(`${name}: it does not unpack: ${(cause as Error).message}`, { cause });
  }
}

function named(tree: Tree, pattern: RegExp): Map<string, Content> {
  const found = new Map<string, Content>();
  for (const [path, node] of tree.entries())
    if (node.type === "file" && pattern.test(path))
      found.set(path.slice(path.lastIndexOf("/") + 1), node.content);
  return found;
}

/**
 * Lays modules and all that they need into an initramfs, uncompressed, with an index of their own. `names` are as `modprobe`
 * takes them; one that ends in `?` may be missing. What the kernel has built in is left out. Returns the names that are files.
 */
export function addModules(
  initramfs: Tree,
  root: Tree,
  kernel: Kernel,
  names: readonly string[],
): Set<string> {
  const index = readIndex(root, kernel);
  const pathOf = (asked: string) => index.byName.get(moduleName(asked.replace(/\?$/, "")));
  const found = new Set(names.filter((asked) => pathOf(asked) !== undefined));
  const missing = names.find(
    (asked) => !found.has(asked) && !asked.endsWith("?") && !index.builtIn.has(moduleName(asked)),
  );
  if (missing !== undefined)
    throw new BuildError(`kernel ${kernel.version} has no module ${missing}, neither as a file nor built in`);
  const files = new Set(
    [...found].flatMap((asked) => {
      const path = pathOf(asked) ?? "";
      return [path, ...(index.needed.get(path) ?? [])];
    }),
  );
  const to = `lib/modules/${kernel.version}`;
  const lines: string[] = [];
  for (const path of [...files].sort()) {
    const content = root.content(`${kernel.modules}/${path}`);
    if (!content) throw new BuildError(`${kernel.modules}/${path} stands in modules.dep and is missing`);
    initramfs.put(`${to}/${plain(path)}`, file(unpackModule(bytesOf(content), path)));
    const others = index.needed.get(path) ?? [];
    lines.push(`${plain(path)}:${others.map((other) => ` ${plain(other)}`).join("")}\n`);
  }
  initramfs.put(`${to}/modules.dep`, file(lines.join("")));
  for (const name of ["modules.alias", "modules.builtin", "modules.softdep"]) {
    const content = root.content(`${kernel.modules}/${name}`);
    if (content) initramfs.put(`${to}/${name}`, file(content));
  }
  return found;
}

/** What `depmod` wrote: which module needs which, and what is no module. */
function readIndex(root: Tree, kernel: Kernel) {
  const text = (name: string) => {
    const content = root.content(`${kernel.modules}/${name}`);
    return content && Buffer.from(bytesOf(content)).toString();
  };
  const index = text("modules.dep");
  if (index === undefined)
    throw new BuildError(`${kernel.modules}/modules.dep is missing: run 'depmod' where the root is made`);
  const needed = new Map(
    index.split("\n").flatMap((line) => {
      const [path, others = ""] = line.split(":");
      return path ? [[path, others.split(" ").filter(Boolean)] as const] : [];
    }),
  );
  return {
    needed,
    byName: new Map([...needed.keys()].map((path) => [moduleName(path), path])),
    builtIn: new Set((text("modules.builtin") ?? "").split("\n").map(moduleName)),
  };
}

const plain = (path: string) => path.replace(/\.ko\.(gz|zst|xz)$/, ".ko");
const moduleName = (path: string) =>
  plain(path).replace(/^.*\//, "").replace(/\.ko$/, "").replaceAll("-", "_");

function unpackModule(bytes: Uint8Array, path: string): Uint8Array {
  if (path.endsWith(".xz")) throw new BuildError(`${path}: xz cannot be unpacked here; gzip and zstd can`);
  if (path.endsWith(".gz")) return unpacked(() => gunzipSync(bytes), path);
  return path.endsWith(".zst") ? unpacked(() => zstdDecompressSync(bytes), path) : bytes;
}
