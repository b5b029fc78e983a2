/**
 * The Raspberry Pis that an image starts, and what the firmware reads to start them.
 *
 * Sources: Raspberry Pi documentation, "config.txt" and its conditional filters; `compatible` strings from the kernel's
 * Documentation/devicetree/bindings/arm/bcm2835.yaml.
 */
import { boardOf } from "./devicetree.ts";
import { BuildError } from "./tools.ts";
import { bytesOf, type Content, type Tree } from "./tree.ts";

/** A family of boards that the firmware tells apart. */
export interface Model {
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
  /**
   * That its firmware may choose the slot (`boot/tryboot/`), and which of the firmware's files it then wants beside the kernel: a Pi 5
   * has all of it in its EEPROM. Before the Pi 4 the firmware's ways back are not documented.
   */
  tryboot?: readonly string[];
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
    tryboot: ["start4.elf", "fixup4.dat"],
  },
  {
    filter: "pi5",
    uboot: ["rpi_arm64"],
    chip: "bcm2712",
    hasBluetooth: false,
    hasHeaderConsole: false,
    boards: ["raspberrypi,5-model-b", "raspberrypi,5-compute-module"],
    tryboot: [],
  },
];

/** What starts which boards. */
export interface Starters {
  /** U-Boot's builds in use, by name: what they are. */
  uboot: Map<string, Content>;
  /** By filter: the build that starts it. */
  models: { model: Model; uboot: string }[];
  /** `compatible` strings of all boards that it starts. */
  boards: string[];
  /** What the firmware starts, on a card of its own, each with the boards that the kernel knows; and why so. */
  tryboot: { model: Model; why: string }[];
  /** What is left out, and why. */
  without: string[];
}

/**
 * Finds U-Boot in a root (`usr/share/u-boot` on Alpine, `usr/lib/u-boot` on Debian) and chooses a build for every model. One that none
 * of them starts is the firmware's, if that can choose the slot and all is there that it starts: the kernel's device trees are `trees`.
 * Models whose filter is among `asked` are the firmware's as well. Throws `BuildError` where that cannot be.
 */
export function chooseStarters(
  root: Tree,
  trees: ReadonlyMap<string, Content> = new Map(),
  asked: readonly string[] = [],
): Starters {
  refuseUnable(asked);
  const known = new Set([...trees].map(([name, tree]) => boardOf(bytesOf(tree), name)));
  const firmware = firmwareIn(root);
  const builds = filesIn(root, /^usr\/(?:share|lib)\/u-boot\/([^/]+)\/u-boot\.bin$/);
  const starters: Starters = { uboot: new Map(), models: [], boards: [], tryboot: [], without: [] };
  for (const model of MODELS) {
    const { chip } = model;
    const there = model.uboot.filter((name) => builds.has(name));
    const fit = there.find((name) => has(builds.get(name), chip));
    const content = builds.get(fit ?? "");
    if (fit !== undefined && content !== undefined) {
      starters.uboot.set(fit, content);
      starters.models.push({ model, uboot: fit });
      starters.boards.push(...model.boards);
      if (!asked.includes(model.filter)) continue;
    }
    const why = fit === undefined ? whyNot(model, there[0]) : "asked for";
    const lack = lackOf(model, known, firmware);
    if (lack === undefined) starters.tryboot.push({ model: knownOf(model, known), why });
    else starters.without.push(withoutOf(model, why, lack));
  }
  const lacking = starters.without.find((line) => asked.some((filter) => line.startsWith(`${filter}:`)));
  if (lacking !== undefined) throw new BuildError(`--tryboot ${lacking}`);
  return started(starters);
}

const withoutOf = ({ filter }: Model, why: string, lack: string) =>
  `${filter}: ${why}${lack && `, and for tryboot ${lack}`}`;

const whyNot = ({ chip, uboot }: Model, build: string | undefined) =>
  build === undefined ? `no U-Boot ${uboot[0]}` : `U-Boot's ${build} has no driver for ${chip}`;

const knownOf = (model: Model, known: ReadonlySet<string>): Model => ({
  ...model,
  boards: model.boards.filter((board) => known.has(board)),
});

function refuseUnable(asked: readonly string[]): void {
  const able = MODELS.filter(({ tryboot }) => tryboot).map(({ filter }) => filter);
  const unable = asked.find((filter) => !able.includes(filter));
  if (unable !== undefined)
    throw new BuildError(
      `--tryboot ${unable}: ${able.join(" and ")} are the models whose firmware may choose the slot`,
    );
}

function started(starters: Starters): Starters {
  if (starters.models.length === 0 && starters.tryboot.length === 0)
    throw new BuildError(
      "the root has no U-Boot for any Pi: no usr/share/u-boot/*/u-boot.bin or usr/lib/u-boot/*/u-boot.bin",
    );
  return starters;
}

/** What keeps the firmware from starting a model by itself: empty where it cannot choose a slot, undefined where nothing does. */
function lackOf(
  { tryboot, boards }: Model,
  known: ReadonlySet<string>,
  firmware: ReadonlyMap<string, Content>,
): string | undefined {
  if (!tryboot) return "";
  const missing = tryboot.find((name) => !firmware.has(name));
  if (missing !== undefined) return `no ${missing}`;
  return boards.some((board) => known.has(board)) ? undefined : "no device tree of such a board";
}

/** The firmware's files by name, where Alpine (`boot/`) and Debian (`usr/lib/raspi-firmware/`) have them. */
export const firmwareIn = (root: Tree): Map<string, Content> =>
  filesIn(
    root,
    /^(?:boot|boot\/firmware|usr\/lib\/raspi-firmware)\/(bootcode\.bin|(?:start|fixup)[^/]*\.(?:elf|dat)|LICENCE\.broadcom)$/,
  );

/** The files whose path matches, by what the pattern takes out of it. */
function filesIn(root: Tree, pattern: RegExp): Map<string, Content> {
  const files = new Map<string, Content>();
  for (const [path, node] of root.entries()) {
    const [, name] = pattern.exec(path) ?? [];
    if (name !== undefined && node.type === "file") files.set(name, node.content);
  }
  return files;
}

const has = (content: Content | undefined, text: string | undefined) =>
  content !== undefined && (text === undefined || Buffer.from(bytesOf(content)).includes(text));

/** The firmware's settings. `overlays` are the names there are; `isUpstream`: the device trees have the kernel's own names. */
export function configTxt(starters: Starters, overlays: ReadonlySet<string>, isUpstream: boolean): string {
  const sections = starters.models.map(({ model, uboot }) => ({
    model,
    lines: [
      `kernel=${ubootName(uboot)}`,
      ...(model.hasHeaderConsole
        ? ["enable_uart=1", "# An open line is quiet: any byte stops U-Boot", "gpio=15=pu"]
        : ["# Nothing holds an open line quiet, and any byte stops U-Boot", "enable_uart=0"]),
    ],
  }));
  return `# Made by 'bun run image' and never changed by an update. What you want otherwise goes into usercfg.txt.
${settings(sections, overlays, isUpstream)}
[all]
include usercfg.txt
`;
}

/** The same where the firmware starts the kernel itself: in both slots, and in the first partition, whose kernel is the rescue's. */
export function trybootConfigTxt(
  models: readonly Model[],
  overlays: ReadonlySet<string>,
  isUpstream: boolean,
): string {
  const lines = [`kernel=${KERNEL}`, `initramfs ${INITRAMFS} followkernel`, "enable_uart=1"];
  const sections = models.map((model) => ({ model, lines }));
  return `# Made by 'bun run image'; a slot's is part of its release, and each update brings its own.
${settings(sections, overlays, isUpstream)}`;
}

function settings(
  sections: readonly { model: Model; lines: readonly string[] }[],
  overlays: ReadonlySet<string>,
  isUpstream: boolean,
): string {
  const hasOverlay = overlays.has("disable-bt.dtbo");
  const texts = sections.map(({ model, lines }) =>
    [
      `[${model.filter}]`,
      ...lines,
      ...(model.hasBluetooth && hasOverlay ? ["# The good UART is the console's"] : []),
      ...(model.hasBluetooth && hasOverlay ? ["dtoverlay=disable-bt"] : []),
    ].join("\n"),
  );
  return `arm_64bit=1
disable_splash=1
dtparam=i2c_arm=on
dtparam=watchdog=on
${isUpstream ? "# The device trees here have the names of the mainline kernel\nupstream_kernel=1\n" : ""}
${texts.join("\n\n")}
`;
}

/** What kernel and initramfs are called where the firmware starts them. */
export const KERNEL = "Image";
export const INITRAMFS = "initrd.img";

/** What U-Boot's builds are called on the boot partition. */
export const ubootName = (build: string) => `u-boot-${build}.bin`;

/** The kernel's command line; U-Boot adds the slot. The last console is the one that init speaks on. */
export const CMDLINE = "console=tty1 console=serial0,115200 cgroup_enable=memory cgroup_memory=1\n";

/** The same where no U-Boot adds anything: what this start is, for image/rootfs/initramfs/init. */
export const trybootCmdline = (what: "fruit.slot=a" | "fruit.rescue=firmware") =>
  `${CMDLINE.trim()} fruit.switch=tryboot ${what} panic=10\n`;
