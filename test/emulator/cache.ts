/** Kernels, modules and programs for the emulated machines, as `fetch.sh` put them into the cache. */
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";

const root = join(process.env.XDG_CACHE_HOME ?? join(homedir(), ".cache"), "fruit");

/** Debian's names of what can be emulated. */
export type Arch = "amd64" | "arm64";

/** A file of the cache: `kernel("arm64", "vmlinuz")`. */
export function cached(arch: Arch, name: string): string {
  return join(root, "emulator", arch, name);
}

/** The three shared libraries that the musl executables need, by their place in the machine. */
export function muslFiles(arch: Arch): Record<string, string> {
  const machine = arch === "amd64" ? "x86_64" : "aarch64";
  const names = [`ld-musl-${machine}.so.1`, "libstdc++.so.6", "libgcc_s.so.1"];
  return Object.fromEntries(names.map((name) => [`/lib/${name}`, join(root, `musl-${machine}/lib`, name)]));
}

/** What to install to run these machines; undefined when all of it is there. */
export function missingForEmulator(): string | undefined {
  const programs = {
    "qemu-system-aarch64": "qemu-system-arm",
    "qemu-system-x86_64": "qemu-system-x86",
    mkimage: "u-boot-tools",
    sfdisk: "fdisk",
    "mkfs.fat": "dosfstools",
    mcopy: "mtools",
    cpio: "cpio",
    mksquashfs: "squashfs-tools",
    setpriv: "util-linux",
    debugfs: "e2fsprogs",
    "qemu-aarch64-static": "qemu-user-static",
    socat: "socat",
  };
  const PATH = `${process.env.PATH}:/usr/sbin:/sbin`;
  const packages = Object.entries(programs)
    .filter(([program]) => !Bun.which(program, { PATH }))
    .map(([, name]) => name);
  const scripts = [
    ...(existsSync(join(root, "emulator/ready")) ? [] : ["test/emulator/fetch.sh"]),
    ...(existsSync(muslFiles("amd64")["/lib/libgcc_s.so.1"] ?? "") ? [] : ["test/musl.sh x86_64"]),
    ...(existsSync(muslFiles("arm64")["/lib/libgcc_s.so.1"] ?? "") ? [] : ["test/musl.sh aarch64"]),
  ].map((script) => `sudo --preserve-env=HOME ${script}`);
  const steps = [...(packages.length > 0 ? [`apt-get install ${packages.join(" ")}`] : []), ...scripts];
  return steps.length > 0 ? steps.join(" && ") : undefined;
}

/** A kernel's modules by name (what follows it are parameters) with all that they need, by their place in the machine, and the index that `modprobe` reads. */
export function moduleFiles(arch: Arch, names: readonly string[]): Record<string, string> {
  const [version = ""] = readdirSync(cached(arch, "modules"));
  const folder = cached(arch, `modules/${version}`);
  const needed = new Map<string, string[]>();
  for (const line of readFileSync(join(folder, "modules.dep"), "utf8").split("\n")) {
    const [path = "", others = ""] = line.split(":");
    needed.set(path, others.split(" ").filter(Boolean));
  }
  const files = new Set(["modules.dep", "modules.alias", "modules.builtin"]);
  for (const [name] of names.map((line) => line.split(" "))) {
    const path = [...needed.keys()].find((file) => file.endsWith(`/${name}.ko`));
    if (!path) throw new Error(`${arch}: kernel ${version} has no module ${name}`);
    for (const file of [path, ...(needed.get(path) ?? [])]) files.add(file);
  }
  return Object.fromEntries(
    [...files].map((file) => [`/lib/modules/${version}/${file}`, join(folder, file)]),
  );
}
