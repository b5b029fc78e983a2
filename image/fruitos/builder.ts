/**
 * Builds fruitos: the card as it is flashed, and the release that an installed node takes. The same input gives the same bytes;
 * nothing is mounted and no privilege is needed.
 */
import {
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { basename, join } from "node:path";
import { gzipSync } from "node:zlib";
import { PARTITIONS, SLOTS } from "../../boot/layout.ts";
import { FORMAT, type SlotRecord } from "../../boot/record.ts";
import { NO_HASH } from "../../boot/slots.ts";
import type { SwitchKind } from "../../boot/switch.ts";
import { TRYBOOT_PARTITIONS } from "../../boot/tryboot/layout.ts";
import { build, provenance } from "../build.ts";
import { ALIGNMENT, idOf, partitionsOf, type Sizes, trybootPartitionsOf, writeCard } from "./card.ts";
import { boardOf } from "./devicetree.ts";
import { fatBytesOf, makeExt4, makeFat, makeSquashfs } from "./filesystems.ts";
import { bootFiles, trybootFiles } from "./firmware.ts";
import { makeInitramfs } from "./initramfs.ts";
import { findKernel, type Kernel } from "./kernel.ts";
import { chooseStarters, type Starters } from "./models.ts";
import { blockMap, compressCard, writeChecksum } from "./outputs.ts";
import { makePayload, type Payload } from "./payload.ts";
import { finishRoot, readRoot } from "./root.ts";
import { checkSecrets } from "./secrets.ts";
import { BuildError, missingPackages } from "./tools.ts";
import { bytesOf, type Content, fileContent, type Tree } from "./tree.ts";
import { finishTrybootCard, makeBootSet, setApart } from "./tryboot.ts";

const MiB = 1 << 20;

/** What an image is made of. Sizes are bytes, multiples of 4 MiB. */
export interface ImageOptions {
  /** Folder of what is made. */
  out: string;
  version: bigint;
  /** The system: kernel, modules, firmware, U-Boot, BusyBox, everything; a tar file, which may be compressed with gzip or zstd. */
  rootfs: string | ((work: string) => Promise<Tree>);
  /** A `fruit.json` for the boot partition. */
  config?: string;
  /** Only this, so far: 32-bit boards follow. */
  arch?: "aarch64";
  sizes?: Partial<Sizes>;
  /** What of `image/rootfs` is laid over it; that folder itself unless another is named. */
  overlay?: string;
  /** Further files of the root, over all others: a file of this machine, or text, by path. */
  files?: Readonly<Record<string, string | { text: string; mode?: number }>>;
  /** The agent's executable; built where none is named. */
  agent?: string;
  /** The release's channel. */
  channel?: string;
  /** Once this release is good nothing lower is installed; 0 unless given. */
  floor?: bigint;
  /** Slot b holds the same as slot a; otherwise it is empty. */
  both?: boolean;
  /** Models by their filter that get a card and a release for tryboot in any case. */
  tryboot?: readonly string[];
  /** The release only, no card. */
  payloadOnly?: boolean;
  /** The card uncompressed as well: as it is, or filled up to a power of two as QEMU wants it. */
  raw?: "exact" | "power-of-two";
  /** How hard zstd works: root and card. */
  level?: { root: number; card: number };
  /** Unix seconds, on what must have a time. */
  time?: number;
  /** Told what is done, a line each. */
  tell?: (line: string) => void;
}

/** What was made, by path. */
export interface Image {
  name: string;
  payload: string;
  side: string;
  /** Not signed yet. */
  update: string;
  image?: string;
  checksum?: string;
  blockMap?: string;
  raw?: string;
  /** The content hash, hex. */
  hash: string;
  /** The same for the boards that U-Boot does not start, beside that for those that it does. */
  tryboot?: Image;
}

const SIZES: Sizes = { boot: 256 * MiB, slot: 1024 * MiB, data: 256 * MiB };

/** Builds all of it into `out`; nothing is left there of a build that fails. Throws `BuildError`. */
export async function buildImage(options: ImageOptions): Promise<Image> {
  const missing = missingPackages();
  if (missing.length > 0) throw new BuildError(`to build an image, install ${missing.join(" ")}`);
  const { arch = "aarch64" } = options;
  if (arch !== "aarch64") throw new BuildError(`no images for ${arch} yet: aarch64 is what there is`);
  mkdirSync(options.out, { recursive: true });
  const work = mkdtempSync(join(options.out, ".building-"));
  try {
    return await make(options, work);
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

async function make(options: ImageOptions, work: string): Promise<Image> {
  const { tell = () => {}, rootfs } = options;
  const time = options.time ?? Number(process.env.SOURCE_DATE_EPOCH ?? (await provenance()).time);
  const root = typeof rootfs === "string" ? await readRoot(rootfs, work) : await rootfs(work);
  const kernel = findKernel(root);
  const starters = chooseStarters(root, kernel.deviceTrees, options.tryboot);
  for (const why of starters.without) tell(`left out: ${why}`);
  for (const { model, why } of starters.tryboot)
    tell(`${model.filter}: on a card of its own, where the firmware chooses the slot (tryboot): ${why}`);
  const agent = options.agent ?? (await build("arm64-musl"));
  const parts = { options, work, root, kernel, starters, agent, time };
  const made: Image[] = [];
  if (starters.models.length > 0) made.push(await makeKind("uboot", parts));
  if (starters.tryboot.length > 0) made.push(await makeKind("tryboot", parts));
  // Nothing before all of it is there
  const [first, second] = made.map((one) => handOut(one, options.out));
  if (!first) throw new BuildError("no board starts from this root");
  return second ? { ...first, tryboot: second } : first;
}

/** What the images of a build have in common. */
interface Build {
  options: ImageOptions;
  work: string;
  root: Tree;
  kernel: Kernel;
  starters: Starters;
  agent: string;
  time: number;
}

/** The release, and the card, for the boards that one kind of switch is for. */
async function makeKind(kind: SwitchKind, parts: Build): Promise<Image> {
  const { options, work, root, kernel, starters, agent, time } = parts;
  const { tell = () => {}, version, channel = "stable", floor = 0n, level = { root: 15, card: 9 } } = options;
  const overlay = options.overlay ?? join(import.meta.dir, "../rootfs");
  const models = starters.tryboot.map(({ model }) => model);
  const boards = kind === "uboot" ? starters.boards : models.flatMap((model) => model.boards);
  const name = `fruitos-${version}-aarch64${kind === "uboot" ? "" : "-tryboot"}`;
  tell(`${name}: kernel ${kernel.version}, ${boards.length} boards`);
  const release = { name, version, boards, channel, floor };
  const system = finishRoot(root, { overlay, agent, files: options.files ?? {}, release });
  checkSecrets(system);
  const { initramfs, rescue } = makeInitramfs(system, kernel, overlay);
  const squashfs = join(work, "root.squashfs");
  await makeSquashfs(squashfs, system, level.root);
  // Packed: a third of it is read
  const image = gzipSync(kernel.image);
  const trybootSet = { root, kernel, models, image };
  const bootSet = kind === "tryboot" && {
    deviceTrees: new Map(),
    fat: await makeBootSet(join(work, "bootset.fat"), {
      ...{ id: idOf(`${name} boot set`), time },
      files: trybootFiles({ ...trybootSet, initramfs, is: "slot" }),
    }),
  };
  const files = {
    root: squashfs,
    kernel: image,
    initramfs,
    deviceTrees: treesOf(kernel, boards),
    ...bootSet,
  };
  const payload = await makePayload(work, files, { ...release, time });
  rmSync(squashfs);
  tell(`payload of ${inMiB(payload.area.payloadBytes)} MiB, ${payload.hash}`);
  const { area, ...made } = { name, ...payload };
  if (options.payloadOnly) return made;

  const config = options.config === undefined ? {} : { config: readFileSync(options.config) };
  const script = readFileSync(join(import.meta.dir, "../../boot/uboot/boot.cmd"), "utf8");
  const first =
    kind === "uboot"
      ? bootFiles({ root, kernel, starters, rescue, script, time, ...config })
      : trybootFiles({ ...trybootSet, initramfs: rescue, is: "rescue", ...config });
  const card = join(work, `${name}.img`);
  await makeCard(card, { kind, name, payload, files: first, time, options });
  compressCard(card, `${card}.zst`, level.card);
  writeFileSync(`${card}.bmap`, blockMap(card));
  tell(`card of ${inMiB(statSync(card).size)} MiB, ${inMiB(statSync(`${card}.zst`).size)} MiB compressed`);
  if (options.raw === "power-of-two") truncateSync(card, 2 ** Math.ceil(Math.log2(statSync(card).size)));
  const raw = options.raw ? { raw: card } : {};
  const checksum = writeChecksum(`${card}.zst`);
  return { ...made, image: `${card}.zst`, checksum, blockMap: `${card}.bmap`, ...raw };
}

/** Moves what was made to where it is wanted. */
function handOut({ name, hash, tryboot, ...made }: Image, folder: string): Image {
  const there = Object.entries(made).map(([what, path]) => {
    const to = join(folder, basename(path));
    renameSync(path, to);
    return [what, to];
  });
  return { name, hash, ...(Object.fromEntries(there) as typeof made) };
}

const inMiB = (bytes: number) => Math.ceil(bytes / MiB);

/** The device trees of boards that start, by board; of several for one board the one whose name comes first. */
function treesOf(kernel: Kernel, boards: readonly string[]): Map<string, Content> {
  const trees = new Map<string, Content>();
  for (const [name, content] of [...kernel.deviceTrees].sort(([one], [other]) => (one < other ? -1 : 1))) {
    const board = boardOf(bytesOf(content), name);
    if (boards.includes(board) && !trees.has(board)) trees.set(board, content);
  }
  return trees;
}

async function makeCard(
  out: string,
  made: {
    kind: SwitchKind;
    name: string;
    payload: Payload;
    files: ReadonlyMap<string, Content>;
    time: number;
    options: ImageOptions;
  },
): Promise<void> {
  const { kind, name, payload, files, time, options } = made;
  const sizes = { ...SIZES, ...options.sizes };
  const { partitionsOf, a, b, data } = LAYOUTS[kind];
  const slots = options.both ? SLOTS : (["a"] as const);
  const seed = `${name} ${payload.hash}`;
  // Of the selector's FAT the last 4 MiB are the sector's
  const apart = kind === "tryboot" ? ALIGNMENT : 0;
  const needed = Math.max(fatBytesOf(files) + apart, payload.area.boot.fat?.bytes ?? 0);
  if (needed > sizes.boot)
    throw new BuildError(
      `--boot-size: ${name} needs a boot partition of ${Math.ceil(needed / ALIGNMENT) * 4} MiB, it has ${inMiB(sizes.boot)}`,
    );
  await makeFat(`${out}.fat`, { bytes: sizes.boot, label: "FRUIT", id: idOf(`${seed} boot`), time, files });
  if (kind === "tryboot") await setApart(`${out}.fat`);
  const holds: [string, Content][] = slots.flatMap((slot) => [
    [`fruit/releases/${slot}.fruit`, fileContent(payload.update)] as [string, Content],
    [`fruit/releases/${slot}.side`, fileContent(payload.side)] as [string, Content],
  ]);
  await makeExt4(`${out}.data`, {
    ...{ bytes: sizes.data, label: "fruit-data", seed, time },
    ...{ folders: ["fruit/boot", "fruit/releases"], files: new Map(holds) },
  });
  const good = goodSlot(payload);
  writeCard(out, {
    partitions: partitionsOf(sizes),
    id: idOf(seed),
    record: {
      ...{
        format: FORMAT,
        sequence: 1,
        primary: "a",
        confirmed: 0,
        reason: "built",
        time,
        floor: options.floor ?? 0n,
      },
      slots: { a: good, b: options.both ? good : EMPTY },
    },
    contents: {
      1: `${out}.fat`,
      [a]: payload.payload,
      ...(options.both ? { [b]: payload.payload } : {}),
      [data]: `${out}.data`,
    },
  });
  if (kind === "tryboot") await finishTrybootCard(out, slots);
}

const LAYOUTS = {
  uboot: { partitionsOf, ...PARTITIONS },
  tryboot: { partitionsOf: trybootPartitionsOf, ...TRYBOOT_PARTITIONS.root, data: TRYBOOT_PARTITIONS.data },
};

const EMPTY: SlotRecord = { state: "empty", reason: "none", version: 0n, hash: NO_HASH, payloadBytes: 0 };

/** The device tree is the firmware's: which board the card goes into is not known yet. */
function goodSlot({ area, hash }: Payload): SlotRecord {
  const { kernel, initramfs } = area.boot;
  return {
    ...{
      state: "good",
      reason: "built",
      version: area.version,
      payloadBytes: area.payloadBytes,
      kernel,
      initramfs,
    },
    hash: hash.slice(0, 32),
  };
}
