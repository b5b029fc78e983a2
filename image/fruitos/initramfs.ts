/**
 * The small system that runs from memory: it mounts a slot, or it is the rescue. Each slot has one, and the boot partition has one
 * for when U-Boot finds no slot to start. All of them are the same, since a slot that does not mount needs the rescue too.
 *
 * What is in it stands in `image/rootfs/`:
 * - `initramfs/**`: files of both, as they are (`init`); `rescue/**`: the rescue's;
 * - `modules`: kernel modules of both, in the order they are loaded in, one a line, parameters behind the name, `?` behind the name of
 *   one that a kernel may lack; `rescue.modules`: further ones that only the rescue loads. What the kernel has goes into
 *   `/etc/modules` and `/etc/rescue.modules`;
 * - `programs`: further programs taken from the root, by path, with the libraries they name (one a line), `?` behind one that the
 *   root may lack; `rescue.programs`: further ones of the rescue.
 *
 * BusyBox is always in it, from the root's `/bin/busybox.static` or `/bin/busybox`.
 */
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { LOADS } from "../../boot/uboot/switch.ts";
import { initramfsOf } from "./cpio.ts";
import { librariesOf } from "./elf.ts";
import { addModules, type Kernel } from "./kernel.ts";
import { BuildError } from "./tools.ts";
import { bytesOf, directory, file, type Node, symlink, Tree } from "./tree.ts";

/** Makes the slot's and the boot partition's of what a root has, neither of more than `most` bytes. */
export function makeInitramfs(
  root: Tree,
  kernel: Kernel,
  rootfs: string,
  most: number = LOADS.initramfs,
): { initramfs: Uint8Array; rescue: Uint8Array } {
  const list = (...names: string[]) => names.flatMap((name) => lines(join(rootfs, name)));
  const tree = skeleton(root);
  for (const program of list("programs", "rescue.programs"))
    if (!program.endsWith("?")) addProgram(tree, root, program);
    else if (root.content(program.slice(0, -1))) addProgram(tree, root, program.slice(0, -1));
  const nameOf = (line: string) => line.split(/\s+/)[0] ?? "";
  const found = addModules(tree, root, kernel, list("modules", "rescue.modules").map(nameOf));
  for (const name of ["modules", "rescue.modules"]) {
    const loaded = list(name).filter((line) => found.has(nameOf(line)));
    tree.put(`etc/${name}`, file(loaded.map((line) => `${line.replace("?", "")}\n`).join("")));
  }
  for (const folder of ["initramfs", "rescue"])
    if (existsSync(join(rootfs, folder))) tree.overlay(join(rootfs, folder));
  if (!tree.at("init"))
    throw new BuildError(`${join(rootfs, "initramfs/init")} is missing: nothing would run`);
  const initramfs = initramfsOf(tree);
  if (initramfs.length > most)
    throw new BuildError(
      `the initramfs has ${initramfs.length} bytes, U-Boot is made to load ${most} at most`,
    );
  return { initramfs, rescue: initramfs };
}

function lines(path: string): string[] {
  if (!existsSync(path)) return [];
  const text = readFileSync(path, "utf8").replaceAll(/#.*$/gm, "");
  return text
    .split("\n")
    .map((line) => line.trim())
    .filter(Boolean);
}

function skeleton(root: Tree): Tree {
  const tree = new Tree();
  for (const path of ["bin", "dev", "etc", "lib", "mnt", "proc", "run", "sbin", "sys", "tmp", "usr"])
    tree.put(path, directory());
  const device = (minor: number, major: number): Node => ({
    ...{ type: "device", kind: "character", mode: 0o600, uid: 0, gid: 0, major, minor },
  });
  tree.put("dev/console", device(1, 5));
  tree.put("dev/null", device(3, 1));
  const path = ["bin/busybox.static", "bin/busybox"].find((name) => root.content(name) !== undefined);
  if (path === undefined)
    throw new BuildError("the root has no BusyBox: neither bin/busybox.static nor bin/busybox");
  addProgram(tree, root, path, "bin/busybox");
  tree.put("bin/sh", symlink("busybox"));
  return tree;
}

function addProgram(tree: Tree, root: Tree, path: string, as = path.replace(/^\//, "")): void {
  const content = root.content(path);
  if (!content) throw new BuildError(`the initramfs wants ${path}, which the root does not have`);
  tree.put(as, file(content, 0o755));
  for (const name of librariesOf(bytesOf(content), path)) {
    const library = name.startsWith("/")
      ? name.slice(1)
      : ["lib", "usr/lib", "lib/aarch64-linux-gnu", "usr/lib/aarch64-linux-gnu"]
          .map((folder) => `${folder}/${name}`)
          .find((at) => root.content(at) !== undefined);
    if (library === undefined || root.content(library) === undefined)
      throw new BuildError(`${path} needs ${name}, which the root does not have`);
    if (!tree.at(library)) addProgram(tree, root, library);
  }
}
