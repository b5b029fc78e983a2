/** What stands on the boot partition: what the firmware reads, U-Boot and its script, the rescue, what the owner brings. */
import { AUTOBOOT, makeAutoboot } from "../../boot/tryboot/autoboot.ts";
import { bootScript } from "../bootscript.ts";
import type { Kernel } from "./kernel.ts";
import {
  CMDLINE,
  configTxt,
  firmwareIn,
  INITRAMFS,
  KERNEL,
  type Model,
  type Starters,
  trybootCmdline,
  trybootConfigTxt,
  ubootName,
} from "./models.ts";
import { BuildError } from "./tools.ts";
import type { Content, Tree } from "./tree.ts";

/** What all boot partitions of a build are made of. */
interface Common {
  root: Tree;
  kernel: Kernel;
  config?: Uint8Array;
}

/** The files by name of the boot partition of a card of U-Boot. */
export function bootFiles(
  options: Common & { starters: Starters; rescue: Uint8Array; script: string; time: number },
): Map<string, Content> {
  const { kernel, starters, rescue, script, config } = options;
  const files = systemFiles(options, () => true);
  for (const [build, content] of starters.uboot) files.set(ubootName(build), content);
  const texts: Record<string, string> = {
    "config.txt": configTxt(starters, new Set(kernel.overlays.keys()), isUpstream(kernel)),
    "usercfg.txt": "# Yours: read after config.txt\n",
    "cmdline.txt": CMDLINE,
  };
  for (const [name, text] of Object.entries(texts)) files.set(name, Buffer.from(text));
  files.set("boot.scr", bootScript(script, options.time));
  files.set("rescue/Image", kernel.image);
  files.set("rescue/initramfs", rescue);
  if (config) files.set("fruit.json", checkedJson(config));
  return files;
}

/** The files of a boot partition that the firmware starts from: a slot's, or that of the rescue, which also says what is started. */
export function trybootFiles(
  options: Common & {
    models: readonly Model[];
    image: Uint8Array;
    initramfs: Uint8Array;
    is: "slot" | "rescue";
  },
): Map<string, Content> {
  const { kernel, models, image, initramfs, is, config } = options;
  const files = systemFiles(options, (name) => models.some(({ tryboot }) => tryboot?.includes(name)));
  const settings = trybootConfigTxt(models, new Set(kernel.overlays.keys()), isUpstream(kernel));
  // Some firmware reads the second in spite of tryboot_a_b (raspberrypi/rpi-eeprom#504)
  for (const name of ["config.txt", "tryboot.txt"]) files.set(name, Buffer.from(settings));
  const what = is === "slot" ? "fruit.slot=a" : "fruit.rescue=firmware";
  files.set("cmdline.txt", Buffer.from(trybootCmdline(what)));
  files.set(KERNEL, image);
  files.set(INITRAMFS, initramfs);
  if (is === "rescue") files.set(AUTOBOOT, makeAutoboot("a"));
  if (config) files.set("fruit.json", checkedJson(config));
  return files;
}

/** Device trees, overlays, and of the firmware what is wanted. */
function systemFiles({ root, kernel }: Common, isWanted: (name: string) => boolean): Map<string, Content> {
  const files = new Map<string, Content>();
  for (const [name, content] of firmwareIn(root)) if (isWanted(name)) files.set(name, content);
  for (const [name, tree] of kernel.deviceTrees) files.set(name, tree);
  for (const [name, overlay] of kernel.overlays) files.set(`overlays/${name}`, overlay);
  // The firmware takes overlays from a folder that has it
  files.set("overlays/README", Buffer.from("Overlays of the kernel of this card\n"));
  return files;
}

const isUpstream = ({ deviceTrees }: Kernel) =>
  ![...deviceTrees.keys()].some((name) => name.startsWith("bcm2710-"));

function checkedJson(bytes: Uint8Array): Uint8Array {
  try {
    JSON.parse(Buffer.from(bytes).toString());
  } catch (cause) {
    throw new BuildError(`fruit.json: ${(cause as Error).message}`, { cause });
  }
  return bytes;
}
