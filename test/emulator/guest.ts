/** What every emulated machine has inside: an initramfs that finds its disk, a root with busybox, musl and what the test brings. */
import { join } from "node:path";
import { type Arch, cached, moduleFiles, muslFiles } from "./cache.ts";
import { type Files, makeInitramfs, makeRoot } from "./disk.ts";

/** How a machine's inside is made. */
export interface GuestOptions {
  arch: Arch;
  /** The disk's name in the machine. */
  root: string;
  /** The control line's name in the machine. */
  control: string;
  /** Modules without which the disk is not found. */
  diskModules: readonly string[];
  /** Modules loaded later, each with its parameters. */
  modules: readonly string[];
  /** What the test brings. */
  rootFiles: Files;
}

/** Makes both images in `folder`. */
export async function makeGuest(
  folder: string,
  { arch, control, diskModules, modules, rootFiles }: GuestOptions,
): Promise<{ initramfs: string; root: string }> {
  const first = [...diskModules, "squashfs", "overlay"];
  const initramfs = await makeInitramfs(join(folder, "initramfs"), {
    "/init": { text: await source("init.sh") },
    "/bin/busybox": cached(arch, "busybox"),
    "/modules": { text: first.join("\n") },
    ...moduleFiles(arch, first),
  });
  const root = await makeRoot(join(folder, "root.squashfs"), {
    "/sbin/init": { text: await source("steps.sh") },
    "/bin/busybox": cached(arch, "busybox"),
    "/etc/modules": { text: modules.map((module) => `${module}\n`).join("") },
    "/etc/control": { text: control },
    ...muslFiles(arch),
    ...moduleFiles(arch, [...first, ...modules]),
    ...rootFiles,
  });
  return { initramfs, root };
}

const source = (name: string) => Bun.file(join(import.meta.dir, name)).text();
