/** What is put onto and into the emulated fruitos: its card, its releases, and releases that are no good. */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { crc32 } from "node:zlib";
import { $ } from "bun";
import { encodeArea, findArea } from "../../boot/area.ts";
import { FIRST_PARTITION, PARTITIONS, readPartitions } from "../../boot/layout.ts";
import { changeRecord } from "../../boot/records.ts";
import { begin, type SlotContent, stage } from "../../boot/slots.ts";
import { openDisk } from "../../hal/disk.ts";
import { buildImage } from "../../image/fruitos/builder.ts";
import { fruit, SOURCES } from "../node.ts";
import { inMemory } from "../releases.ts";
import { hashOf } from "./fruitos.ts";
import { shipped } from "./program.ts";

const MiB = 1 << 20;
/** Debian keeps programs that make file systems where only root looks. */
const ENV = { ...process.env, PATH: `${process.env.PATH}:/usr/sbin:/sbin` };
/** How the files of a release end beside each other, as `fruit update install` looks for them. */
const ENDS = { file: "", update: ".fruit", side: ".side" };

/** The watchdog of this machine, and a feeder that loses its patience early. */
const FEEDER = `FRUIT_WATCHDOG=/dev/watchdog1
FRUIT_GRACE=60
FRUIT_STALE=40
FRUIT_SPARE=10
`;

/** Size of the data partition as it is built. Together with the rest it is a little less than the power of two that QEMU wants. */
export const DATA_MIB = 208;

/** A payload for a slot. */
export interface Payload {
  file: string;
  content: SlotContent;
}

/** A release as a node installs it: its update file is signed. */
export interface Release extends Payload {
  update: string;
  side: string;
}

/** Makes cards and releases from one root, with one signer that its nodes believe. */
export class Workshop {
  readonly folder: string;
  readonly #root: string;
  readonly #key: string;
  /** The nodes' `trust.json`. */
  readonly trust: string;

  private constructor(folder: string, trust: string) {
    this.folder = folder;
    this.#root = join(folder, "root.tar");
    this.#key = join(folder, "anna");
    this.trust = trust;
  }

  static async open(folder: string): Promise<Workshop> {
    const trust = join(folder, "trust.json");
    const workshop = new Workshop(folder, trust);
    await $`${join(import.meta.dir, "../rootfs.sh")} ${workshop.#root}`.quiet();
    const { out, err } = await fruit(
      ["release", "keygen", "--out", workshop.#key, "--id", "anna", "--json"],
      {
        executable: SOURCES,
      },
    );
    if (out === "") throw new Error(err);
    const trusted = {
      schema: "fruit.trust/1",
      version: 1,
      threshold: { release: 1 },
      signers: [JSON.parse(out)],
    };
    writeFileSync(trust, JSON.stringify(trusted));
    return workshop;
  }

  /** A card with this version in slot a, a boot partition that brings these files, and releases in `/data/incoming`. */
  async card(
    version: bigint,
    files: Readonly<Record<string, string>>,
    incoming: readonly Release[],
  ): Promise<string> {
    const { raw } = await buildImage({ ...this.#common(version), raw: "power-of-two" });
    if (raw === undefined) throw new Error("the builder made no card");
    for (const [name, text] of Object.entries(files)) {
      const file = join(this.folder, name);
      writeFileSync(file, text);
      await $`mcopy -o -i ${raw}@@${FIRST_PARTITION} ${file} ::/`.quiet();
    }
    const sector = await Bun.file(raw).slice(0, 512).bytes();
    const data = readPartitions(sector)?.find(({ number }) => number === PARTITIONS.data)?.offset;
    const lines = incoming.flatMap(({ content, ...file }) =>
      (["file", "update", "side"] as const).map(
        (what) => `write ${file[what]} ${content.version}${ENDS[what]}`,
      ),
    );
    const commands = ["mkdir incoming", "cd incoming", ...lines, ""].join("\n");
    await $`debugfs -w -f - ${`${raw}?offset=${data}`} < ${Buffer.from(commands)}`.env(ENV).quiet();
    return raw;
  }

  /** A signed release. `changes` to the root: a program that cannot run, for one. */
  async release(
    version: bigint,
    changes: { agent?: string; files?: Record<string, { text: string; mode: number }> } = {},
  ): Promise<Release> {
    const common = this.#common(version);
    const { payload, side, update } = await buildImage({
      ...common,
      ...(changes.agent === undefined ? {} : { agent: changes.agent }),
      files: { ...common.files, ...changes.files },
      payloadOnly: true,
    });
    const { exit, err } = await fruit(["release", "sign", update, "--key", this.#key, "--id", "anna"], {
      executable: SOURCES,
    });
    if (exit !== 0) throw new Error(err);
    return { ...(await payloadIn(payload)), side, update };
  }

  /** The same release with another kernel, which its own area says is whole. */
  async withKernel({ file }: Payload, kernel: Uint8Array): Promise<Payload> {
    const bytes = readFileSync(file);
    const { offset, ...area } = await findArea(inMemory(bytes, file));
    const { offset: at, bytes: length } = area.boot.kernel;
    bytes.fill(0, at, at + length);
    bytes.set(kernel, at);
    const boot = { ...area.boot, kernel: { offset: at, bytes: kernel.length, crc32: crc32(kernel) } };
    bytes.set(encodeArea({ ...area, boot }), offset);
    const out = `${file}-broken-kernel`;
    writeFileSync(out, bytes);
    return payloadIn(out);
  }

  #common(version: bigint) {
    return {
      ...{ out: this.folder, version, rootfs: this.#root, agent: shipped("arm64"), channel: "proof" },
      sizes: { boot: 64 * MiB, slot: 96 * MiB, data: DATA_MIB * MiB },
      level: { root: 3, card: 1 },
      time: 1_790_000_000,
      files: { "etc/fruit/watchdog": { text: FEEDER } },
    };
  }
}

/** A payload as the record of a slot tells of it. */
async function payloadIn(file: string): Promise<Payload> {
  const bytes = readFileSync(file);
  const { version, boot } = await findArea(inMemory(bytes, file));
  const { kernel, initramfs } = boot;
  const hash = hashOf(async (from, length) => bytes.subarray(from, from + length), bytes.length);
  return { file, content: { version, kernel, initramfs, payloadBytes: bytes.length, hash: await hash } };
}

/** Does to the card of a Pi that is off what `fruit update install` does: slot b is staged with this payload. */
export async function stageInto(card: string, { file, content }: Payload): Promise<string> {
  const disk = await openDisk(card, "write");
  try {
    const partition = readPartitions(await disk.read(0, 512))?.find(({ number }) => number === PARTITIONS.b);
    if (!partition) throw new Error(`${card} has no slot b`);
    await changeRecord(disk, (record) => begin(record, "b", content.hash));
    await disk.write(partition.offset, readFileSync(file));
    await disk.flush();
    await changeRecord(disk, (record) => stage(record, "b", content));
    return card;
  } finally {
    await disk.close();
  }
}

/**
 * A kernel that U-Boot takes for one and that starts the machine again at once, as the panic of a real one would without its
 * console: it sets the watchdog of the BCM2837 to its shortest time. Sources: Documentation/arm64/booting.rst (the header);
 * drivers/watchdog/bcm2835_wdt.c (PM_WDOG, PM_RSTC); Arm Architecture Reference Manual (the instructions).
 */
export function kernelThatResets(): Uint8Array {
  const image = Buffer.alloc(4096);
  image.writeUInt32LE(0x1400_0010, 0); // b 0x40
  image.writeBigUInt64LE(0x1_0000n, 16); // image_size
  image.writeBigUInt64LE(0xan, 24); // flags: little-endian, 4 KiB pages, anywhere
  image.write("ARM\x64", 56, "latin1");
  const code = [
    0xd2a7_e201, // movz x1, #0x3f10, lsl #16
    0x52ab_4000, // movz w0, #0x5a00, lsl #16   the password
    0x7280_0020, // movk w0, #1
    0xb900_2420, // str w0, [x1, #0x24]         PM_WDOG
    0x7280_0400, // movk w0, #0x20              full reset
    0xb900_1c20, // str w0, [x1, #0x1c]         PM_RSTC
    0x1400_0000, // b .
  ];
  for (const [index, word] of code.entries()) image.writeUInt32LE(word, 64 + index * 4);
  return image;
}
