/** What stands on the boot partition: what the firmware reads, U-Boot and its script, the rescue, what the owner brings. */
import { bootScript } from "../bootscript.ts";
import type { Kernel } from "./kernel.ts";
import { CMDLINE, configTxt, type Starters, ubootName } from "./models.ts";
import { BuildError } from "./tools.ts";
import type { Content, Tree } from "./tree.ts";

/** The firmware's files, where Alpine (`boot/`) and Debian (`usr/lib/raspi-firmware/`) have them. */
const FIRMWARE =
  /^(?:boot|boot\/firmware|usr\/lib\/raspi-firmware)\/(bootcode\.bin|(?:start|fixup)[^/]*\.(?:elf|dat)|LICENCE\.broadcom)$/;

/** The files by name. */
export function bootFiles(options: {
  root: Tree;
  kernel: Kernel;
  starters: Starters;
  rescue: Uint8Array;
  script: string;
  config?: Uint8Array;
  time: number;
}): Map<string, Content> {
  const { root, kernel, starters, rescue, script, config } = options;
  const files = new Map<string, Content>();
  for (const [path, node] of root.entries()) {
    const [, name] = FIRMWARE.exec(path) ?? [];
    if (name !== undefined && node.type === "file") files.set(name, node.content);
  }
  for (const [name, tree] of kernel.deviceTrees) files.set(name, tree);
  for (const [name, overlay] of kernel.overlays) files.set(`overlays/${name}`, overlay);
  for (const [build, content] of starters.uboot) files.set(ubootName(build), content);
  const isUpstream = ![...kernel.deviceTrees.keys()].some((name) => name.startsWith("bcm2710-"));
  const texts: Record<string, string> = {
    "config.txt": configTxt(starters, new Set(kernel.overlays.keys()), isUpstream),
    "usercfg.txt": "# Yours: read after config.txt\n",
    "cmdline.txt": CMDLINE,
    // The firmware takes overlays from a folder that has it
    "overlays/README": "Overlays of the kernel in rescue/\n",
  };
  for (const [name, text] of Object.entries(texts)) files.set(name, Buffer.from(text));
  files.set("boot.scr", bootScript(script, options.time));
  files.set("rescue/Image", kernel.image);
  files.set("rescue/initramfs", rescue);
  if (config) files.set("fruit.json", checkedJson(config));
  return files;
}

function checkedJson(bytes: Uint8Array): Uint8Array {
  try {
    JSON.parse(Buffer.from(bytes).toString());
  } catch (cause) {
    throw new BuildError(`fruit.json: ${(cause as Error).message}`, { cause });
  }
  return bytes;
}
