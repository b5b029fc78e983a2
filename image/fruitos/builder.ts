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
import { FORMAT, type SlotRecord } from "../../boot/records.ts";
import { NO_HASH } from "../../boot/slots.ts";
import { build, provenance } from "../build.ts";
import { idOf, partitionsOf, type Sizes, writeCard } from "./card.ts";
import { boardOf } from "./devicetree.ts";
import { makeExt4, makeFat, makeSquashfs } from "./filesystems.ts";
import { bootFiles } from "./firmware.ts";
import { makeInitramfs } from "./initramfs.ts";
import { findKernel, type Kernel } from "./kernel.ts";
import { chooseStarters } from "./models.ts";
import { blockMap, compressCard, writeChecksum } from "./outputs.ts";
import { makePayload, type Payload } from "./payload.ts";
import { finishRoot, readRoot } from "./root.ts";
import { checkSecrets } from "./secrets.ts";
import { BuildError, missingPackages } from "./tools.ts";
import { bytesOf, type Content, fileContent, type Tree } from "./tree.ts";

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
  /** Slot b holds the same as slot a; otherwise it is empty. */
  both?: boolean;
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
    return await make(options, work, `fruitos-${options.version}-${arch}`);
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

async function make(options: ImageOptions, work: string, name: string): Promise<Image> {
  const { tell = () => {}, version, channel = "stable", level = { root: 15, card: 9 }, rootfs } = options;
  const time = options.time ?? Number(process.env.SOURCE_DATE_EPOCH ?? (await provenance()).time);
  const overlay = options.overlay ?? join(import.meta.dir, "../rootfs");
  const root = typeof rootfs === "string" ? await readRoot(rootfs, work) : await rootfs(work);
  const kernel = findKernel(root);
  const starters = chooseStarters(root);
  const { boards } = starters;
  for (const why of starters.without) tell(`left out: ${why}`);
  tell(`kernel ${kernel.version}, ${boards.length} boards`);

  const agent = options.agent ?? (await build("arm64-musl"));
  const system = finishRoot(root, {
    ...{ overlay, agent, files: options.files ?? {}, release: { name, version, boards, channel } },
  });
  checkSecrets(system);
  const { initramfs, rescue } = makeInitramfs(system, kernel, overlay);
  const squashfs = join(work, "root.squashfs");
  await makeSquashfs(squashfs, system, level.root);
  const payload = await makePayload(
    work,
    // Packed: U-Boot reads a third of it
    { root: squashfs, kernel: gzipSync(kernel.image), initramfs, deviceTrees: treesOf(kernel, boards) },
    { name, version, boards, channel, time },
  );
  rmSync(squashfs);
  tell(`payload of ${inMiB(payload.area.payloadBytes)} MiB, ${payload.hash}`);
  const { area, ...made } = { name, ...payload };
  if (options.payloadOnly) return handOut(made, options.out);

  const config = options.config === undefined ? {} : { config: readFileSync(options.config) };
  const script = readFileSync(join(import.meta.dir, "../../boot/uboot/boot.cmd"), "utf8");
  const files = bootFiles({ root, kernel, starters, rescue, script, time, ...config });
  const card = join(work, `${name}.img`);
  await makeCard(card, { name, payload, files, time, options });
  compressCard(card, `${card}.zst`, level.card);
  writeFileSync(`${card}.bmap`, blockMap(card));
  tell(`card of ${inMiB(statSync(card).size)} MiB, ${inMiB(statSync(`${card}.zst`).size)} MiB compressed`);
  if (options.raw === "power-of-two") truncateSync(card, 2 ** Math.ceil(Math.log2(statSync(card).size)));
  const raw = options.raw ? { raw: card } : {};
  const checksum = writeChecksum(`${card}.zst`);
  return handOut({ ...made, image: `${card}.zst`, checksum, blockMap: `${card}.bmap`, ...raw }, options.out);
}

/** Moves what was made to where it is wanted. */
function handOut({ name, hash, ...made }: Image, folder: string): Image {
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
    name: string;
    payload: Payload;
    files: ReadonlyMap<string, Content>;
    time: number;
    options: ImageOptions;
  },
): Promise<void> {
  const { name, payload, files, time, options } = made;
  const sizes = { ...SIZES, ...options.sizes };
  const partitions = partitionsOf(sizes);
  const seed = `${name} ${payload.hash}`;
  await makeFat(`${out}.fat`, { bytes: sizes.boot, label: "FRUIT", id: idOf(`${seed} boot`), time, files });
  const holds: [string, Content][] = (options.both ? ["a", "b"] : ["a"]).flatMap((slot) => [
    [`fruit/releases/${slot}.fruit`, fileContent(payload.update)] as [string, Content],
    [`fruit/releases/${slot}.side`, fileContent(payload.side)] as [string, Content],
  ]);
  await makeExt4(`${out}.data`, {
    ...{ bytes: sizes.data, label: "fruit-data", seed, time },
    ...{ folders: ["fruit/boot", "fruit/releases"], files: new Map(holds) },
  });
  const good = goodSlot(payload);
  writeCard(out, {
    partitions,
    id: idOf(seed),
    record: {
      ...{ format: FORMAT, sequence: 1, primary: "a", confirmed: 0, reason: "built", time, floor: 0n },
      slots: { a: good, b: options.both ? good : EMPTY },
    },
    contents: {
      1: `${out}.fat`,
      2: payload.payload,
      ...(options.both ? { 3: payload.payload } : {}),
      4: `${out}.data`,
    },
  });
}

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
