/**
 * The Raspberry Pis that an image starts, and what the firmware reads to start them.
 *
 * Sources: Raspberry Pi documentation, "config.txt" and its conditional filters; `compatible` strings from the kernel's
 * Documentation/devicetree/bindings/arm/bcm2835.yaml.
 */
import { BuildError } from "./tools.ts";
import { bytesOf, type Content, type Tree } from "./tree.ts";

/** A family of boards that the firmware tells apart. */
interface Model {
  /** The firmware's filter, `pi3` for `[pi3]`. */
  filter: string;
  /** U-Boot's builds that start it, the best first. */
  uboot: readonly string[];
  /** What U-Boot must have a driver for; every build has the others. */
  chip?: string;
  /** Whether the PL011 belongs to Bluetooth unless an overlay gives it back. */
  hasBluetooth: boolean;
  /**
   * Whether the console is on GPIO 14 and 15, where an open line can be held high; U-Boot wants it to be on (its
   * arch/arm/mach-bcm283x/Kconfig). Otherwise it is on a connector of its own and off: an open line there has stopped U-Boot (openSUSE
   * bug 1251192).
   */
  hasHeaderConsole: boolean;
  boards: readonly string[];
}

const MODELS: readonly Model[] = [
  {
    filter: "pi2",
    uboot: ["rpi_arm64", "rpi_3"],
    hasBluetooth: false,
    hasHeaderConsole: true,
    boards: ["raspberrypi,2-model-b-rev2"],
  },
  {
    filter: "pi02",
    uboot: ["rpi_arm64", "rpi_3"],
    hasBluetooth: true,
    hasHeaderConsole: true,
    boards: ["raspberrypi,model-zero-2-w"],
  },
  {
    filter: "pi3",
    uboot: ["rpi_3", "rpi_arm64"],
    hasBluetooth: true,
    hasHeaderConsole: true,
    boards: [
      "raspberrypi,3-model-b",
      "raspberrypi,3-model-b-plus",
      "raspberrypi,3-model-a-plus",
      "raspberrypi,3-compute-module",
      "raspberrypi,3-compute-module-lite",
    ],
  },
  {
    filter: "pi4",
    uboot: ["rpi_4", "rpi_arm64"],
    hasBluetooth: true,
    hasHeaderConsole: true,
    boards: ["raspberrypi,4-model-b", "raspberrypi,400", "raspberrypi,4-compute-module"],
  },
  {
    filter: "pi5",
    uboot: ["rpi_arm64"],
    chip: "bcm2712",
    hasBluetooth: false,
    hasHeaderConsole: false,
    boards: ["raspberrypi,5-model-b", "raspberrypi,5-compute-module"],
  },
];

/** What starts which boards. */
export interface Starters {
  /** U-Boot's builds in use, by name: what they are. */
  uboot: Map<string, Content>;
  /** By filter: the build that starts it. */
  models: { model: Model; uboot: string }[];
  /** `compatible` strings of all boards that start. */
  boards: string[];
  /** What is left out, and why. */
  without: string[];
}

/** Finds U-Boot in a root (`usr/share/u-boot` on Alpine, `usr/lib/u-boot` on Debian) and chooses a build for every model. */
export function chooseStarters(root: Tree): Starters {
  const builds = new Map<string, Content>();
  for (const [path, node] of root.entries()) {
    const [, name] = /^usr\/(?:share|lib)\/u-boot\/([^/]+)\/u-boot\.bin$/.exec(path) ?? [];
    if (name !== undefined && node.type === "file") builds.set(name, node.content);
  }
  const starters: Starters = { uboot: new Map(), models: [], boards: [], without: [] };
  for (const model of MODELS) {
    const { chip } = model;
    const there = model.uboot.filter((name) => builds.has(name));
    const fit = there.find((name) => chip === undefined || has(builds.get(name), chip));
    const content = fit === undefined ? undefined : builds.get(fit);
    if (fit === undefined || content === undefined) {
      const why =
        there.length > 0 ? `U-Boot's ${there[0]} has no driver for ${chip}` : `no U-Boot ${model.uboot[0]}`;
      starters.without.push(`${model.filter}: ${why}`);
      continue;
    }
    starters.uboot.set(fit, content);
    starters.models.push({ model, uboot: fit });
    starters.boards.push(...model.boards);
  }
  if (starters.models.length === 0)
    throw new BuildError(
      "the root has no U-Boot for any Pi: no usr/share/u-boot/*/u-boot.bin or usr/lib/u-boot/*/u-boot.bin",
    );
  return starters;
}

const has = (content: Content | undefined, text: string) =>
  content !== undefined && Buffer.from(bytesOf(content)).includes(text);

/** The firmware's settings. `overlays` are the names there are; `isUpstream`: the device trees have the kernel's own names. */
export function configTxt(starters: Starters, overlays: ReadonlySet<string>, isUpstream: boolean): string {
  const hasOverlay = overlays.has("disable-bt.dtbo");
  const sections = starters.models.map(({ model, uboot }) =>
    [
      `[${model.filter}]`,
      `kernel=${ubootName(uboot)}`,
      ...(model.hasHeaderConsole
        ? ["enable_uart=1", "# An open line is quiet: any byte stops U-Boot", "gpio=15=pu"]
        : ["# Nothing holds an open line quiet, and any byte stops U-Boot", "enable_uart=0"]),
      ...(model.hasBluetooth && hasOverlay ? ["# The good UART is the console's"] : []),
      ...(model.hasBluetooth && hasOverlay ? ["dtoverlay=disable-bt"] : []),
    ].join("\n"),
  );
  return `# Made by 'bun run image' and never changed by an update. What you want otherwise goes into usercfg.txt.
arm_64bit=1
disable_splash=1
dtparam=i2c_arm=on
dtparam=watchdog=on
${isUpstream ? "# The device trees here have the names of the mainline kernel\nupstream_kernel=1\n" : ""}
${sections.join("\n\n")}

[all]
include usercfg.txt
`;
}

/** What U-Boot's builds are called on the boot partition. */
export const ubootName = (build: string) => `u-boot-${build}.bin`;

/** The kernel's command line; U-Boot adds the slot. The last console is the one that init speaks on. */
export const CMDLINE = "console=tty1 console=serial0,115200 cgroup_enable=memory cgroup_memory=1\n";
