/** Makes a release: payload, side file, update file without signatures. The same input makes the same bytes, whenever and wherever. */
import { createHash } from "node:crypto";
import { type FileHandle, mkdir, open, rename, rm } from "node:fs/promises";
import { dirname, join } from "node:path";
import {
  type BootArea,
  encodeArea,
  type FatFacts,
  type FileFacts,
  findArea,
  layOut,
  squashfsBytes,
} from "../../boot/area.ts";
import { CHUNKS_ALG } from "../../boot/chunks.ts";
import type { Release } from "../../boot/content.ts";
import { HASH_BYTES } from "../../boot/merkle.ts";
import { encodeSideHeader, SIDE_HEADER_BYTES } from "../../boot/side.ts";
import type { Statement } from "../../boot/statement.ts";
import { LOADS } from "../../boot/uboot/switch.ts";
import { encodeUpdate } from "../../boot/updatefile.ts";
import { openDisk } from "../../hal/disk.ts";
import { CliError, EXIT } from "../terminal.ts";
import { CHUNK_BYTES, chunksOf, digestPayload, factsOf, pieceLengthFor } from "./digest.ts";

/** The files that a release is, all in one folder. The payload has the name of the release, so that BitTorrent clients find it. */
export const releaseFiles = (folder: string, name: string) => ({
  payload: join(folder, name),
  side: join(folder, `${name}.side`),
  update: join(folder, `${name}.fruit`),
});

/** What goes into a payload. */
export interface Parts {
  /** A squashfs image. */
  root: string;
  kernel: string;
  initramfs: string;
  /** By the `compatible` string of the board. */
  deviceTrees: Readonly<Record<string, string>>;
  /** For tryboot: the boot set of slot a, and where in it kernel and initramfs stand. */
  fat?: { path: string } & Pick<FatFacts, "kernelAt" | "initramfsAt">;
}

/** What is stated of a release beyond its bytes. */
export type Claims = Pick<
  Statement,
  | "target"
  | "boards"
  | "channel"
  | "minFrom"
  | "floor"
  | "created"
  | "expires"
  | "health"
  | "prev"
  | "rollout"
  | "seeds"
  | "trackers"
>;

/** Lays out a payload. Throws `CliError` naming the file that does not fit. */
export async function writePayload(
  path: string,
  parts: Parts,
  release: { name: string; version: bigint },
  signal?: AbortSignal,
): Promise<void> {
  const rootBytes = (await superblockOf(parts.root)).bytes;
  const deviceTrees: Record<string, FileFacts> = {};
  for (const [board, file] of Object.entries(parts.deviceTrees))
    deviceTrees[board] = await fitting(file, LOADS.deviceTree);
  const { kernel: most, initramfs: mostToo } = parts.fat ? UNLIMITED : LOADS;
  const { headerAt, payloadBytes, boot } = layOut(rootBytes, {
    kernel: await fitting(parts.kernel, most),
    initramfs: await fitting(parts.initramfs, mostToo),
    deviceTrees,
    ...(parts.fat ? { fat: { ...parts.fat, ...(await factsOf(parts.fat.path)) } } : {}),
  });
  const header = encodeArea({ ...release, payloadBytes, boot });
  await replacing(path, async (file) => {
    await file.truncate(payloadBytes); // what nothing is written to is zeros
    await copy(parts.root, file, 0, rootBytes, signal);
    await writeAll(file, header, headerAt);
    if (parts.fat && boot.fat) return copy(parts.fat.path, file, boot.fat.offset, boot.fat.bytes, signal);
    await copy(parts.kernel, file, boot.kernel.offset, boot.kernel.bytes, signal);
    await copy(parts.initramfs, file, boot.initramfs.offset, boot.initramfs.bytes, signal);
    for (const [board, tree] of Object.entries(boot.deviceTrees))
      await copy(parts.deviceTrees[board] ?? "", file, tree.offset, tree.bytes, signal);
  });
}

/** Length of a squashfs, and when it was made (Unix seconds), as its superblock says. Throws `CliError`. */
export async function superblockOf(path: string): Promise<{ bytes: number; made: number }> {
  let start = Buffer.alloc(0);
  for await (const chunk of chunksOf(path, 0, 96)) start = Buffer.concat([start, chunk]);
  const bytes = squashfsBytes(start);
  if (bytes === undefined) throw new CliError(EXIT.usage, `${path}: it is no squashfs (version 4)`);
  return { bytes, made: start.readUInt32LE(8) };
}

/** Reads the boot area of a payload and makes sure that it tells the truth. Throws `CliError`. */
export async function areaOf(payload: string): Promise<BootArea> {
  const disk = await openDisk(payload, "read").catch((cause: Error) => {
    throw new CliError(EXIT.usage, cause.message, { cause });
  });
  try {
    if (disk.bytes === 0) throw new Error(`${payload}: it is empty`);
    const area = await findArea(disk);
    if (area.payloadBytes !== disk.bytes)
      throw new Error(`${payload}: ${disk.bytes} bytes; its boot area says ${area.payloadBytes}`);
    await checkBootFiles(payload, area.boot);
    return area;
  } catch (cause) {
    if (cause instanceof CliError) throw cause;
    throw new CliError(EXIT.usage, cause instanceof Error ? cause.message : String(cause), { cause });
  } finally {
    await disk.close();
  }
}

/** Throws `CliError` unless every boot file in a payload has the CRC-32 that is said of it, and is no longer than U-Boot takes where that loads it. */
export async function checkBootFiles(payload: string, boot: Release["boot"]): Promise<void> {
  const most = boot.fat ? UNLIMITED : LOADS;
  const files = [
    ["kernel", most.kernel, boot.kernel] as const,
    ["initramfs", most.initramfs, boot.initramfs] as const,
    ...Object.entries(boot.deviceTrees).map(
      ([board, tree]) => [`device tree of ${board}`, most.deviceTree, tree] as const,
    ),
    ...(boot.fat ? [["boot set", most.kernel, boot.fat] as const] : []),
  ];
  for (const [what, most, { offset, bytes, crc32 }] of files) {
    const where = `${payload}: the ${what} at byte ${offset}`;
    if (bytes > most) throw new CliError(EXIT.refused, `${where}: ${tooLong(bytes, most)}`);
    const found = await factsOf(payload, offset, bytes);
    if (found.bytes !== bytes || found.crc32 !== crc32)
      throw new CliError(
        EXIT.refused,
        `${where} has CRC-32 ${found.crc32.toString(16)}, not ${crc32.toString(16)}`,
      );
  }
}

/** Writes side file and update file beside a payload that is there. Returns what the update file states. */
export async function describe(
  files: { payload: string; side: string; update: string },
  options: { name: string; area: BootArea; claims: Claims; signal?: AbortSignal },
): Promise<Statement> {
  const { name, area, claims } = options;
  const pieceLength = pieceLengthFor(area.payloadBytes);
  let statement: Statement | undefined;
  await replacing(files.side, async (side) => {
    const writer = new SideWriter(side);
    const onLeaf = (hash: Uint8Array) => writer.add(hash);
    const digest = await digestPayload(files.payload, pieceLength, onLeaf, options.signal);
    if (digest.size !== area.payloadBytes)
      throw new CliError(EXIT.failed, `${files.payload}: it changed while it was read`);
    const { size, sha256, sha512, piecesRoot, pieces, chunks } = digest;
    const stated = {
      ...claims,
      version: area.version,
      size,
      sha256,
      sha512,
      boot: area.boot,
      side: await writer.end(size, chunks),
      chunks: { alg: CHUNKS_ALG, bytes: chunks.length },
    };
    const update = encodeUpdate({ name, length: size, pieceLength, pieces, piecesRoot }, stated);
    await replacing(files.update, (file) => file.writeFile(update));
    statement = stated;
  });
  if (!statement) throw new Error(`${files.side}: not written`);
  return statement;
}

/** Writes a file under another name and gives it its own only when it is whole and on the disk. */
export async function replacing(path: string, fill: (file: FileHandle) => Promise<unknown>): Promise<void> {
  const temporary = `${path}.part`;
  try {
    await mkdir(dirname(path), { recursive: true });
    const file = await open(temporary, "w+");
    try {
      await fill(file);
      await file.datasync();
    } finally {
      await file.close();
    }
    await rename(temporary, path);
  } catch (cause) {
    await rm(temporary, { force: true }).catch(() => undefined);
    if (cause instanceof Error && "code" in cause && "syscall" in cause)
      throw new CliError(EXIT.failed, `${path}: ${cause.message}`, { cause });
    throw cause;
  }
}

/** Hashes of leaves on their way into a side file, a portion at a time. */
class SideWriter {
  readonly #file: FileHandle;
  #pending: Uint8Array[] = [];
  #bytes = SIDE_HEADER_BYTES;
  #written: Promise<unknown> = Promise.resolve();

  constructor(file: FileHandle) {
    this.#file = file;
  }

  add(leafHash: Uint8Array): void {
    this.#pending.push(leafHash);
    if (this.#pending.length >= PORTION) this.#flush();
  }

  /** What the payload is known to be only when all of it was read. */
  async end(payloadBytes: number, chunks: Uint8Array): Promise<{ bytes: number; sha256: string }> {
    this.#pending.push(chunks);
    this.#flush();
    await this.#written;
    await writeAll(this.#file, encodeSideHeader(payloadBytes, chunks.length), 0);
    return { bytes: this.#bytes, sha256: await this.#sha256() };
  }

  #flush(): void {
    const portion = Buffer.concat(this.#pending);
    const at = this.#bytes;
    this.#pending = [];
    this.#bytes += portion.length;
    const before = this.#written;
    this.#written = before.then(() => writeAll(this.#file, portion, at));
    this.#written.catch(() => undefined); // `end` throws it
  }

  /** The header came last: read anew, it is a 500th of the payload. */
  async #sha256(): Promise<string> {
    const whole = createHash("sha256");
    const buffer = Buffer.alloc(PORTION * HASH_BYTES);
    for (let at = 0; at < this.#bytes; ) {
      const { bytesRead } = await this.#file.read(buffer, 0, buffer.length, at);
      if (bytesRead === 0) throw new Error(`a side file of ${this.#bytes} bytes ends at ${at}`);
      whole.update(buffer.subarray(0, bytesRead));
      at += bytesRead;
    }
    return whole.digest("hex");
  }
}

/** Hashes written at once: 64 KiB, which is half a second of reading the payload. */
const PORTION = 2048;

/** Nobody knows what the firmware takes at most. */
const UNLIMITED: typeof LOADS = {
  kernel: Number.POSITIVE_INFINITY,
  initramfs: Number.POSITIVE_INFINITY,
  deviceTree: Number.POSITIVE_INFINITY,
};

/** A boot file that has something in it and is no longer than what loads it takes. */
async function fitting(path: string, most: number): Promise<FileFacts> {
  const facts = await factsOf(path);
  if (facts.bytes === 0) throw new CliError(EXIT.usage, `${path}: it is empty`);
  if (facts.bytes > most) throw new CliError(EXIT.usage, `${path}: ${tooLong(facts.bytes, most)}`);
  return facts;
}

const tooLong = (bytes: number, most: number) => `${bytes} bytes; U-Boot is made to load ${most} at most`;

/** Copies `length` bytes to where nothing has been written: zeros are left to be a hole. */
async function copy(
  from: string,
  to: FileHandle,
  offset: number,
  length: number,
  signal?: AbortSignal,
): Promise<void> {
  const zeros = Buffer.alloc(CHUNK_BYTES);
  let done = 0;
  for await (const chunk of chunksOf(from, 0, length)) {
    signal?.throwIfAborted();
    if (!chunk.equals(zeros.subarray(0, chunk.length))) await writeAll(to, chunk, offset + done);
    done += chunk.length;
  }
  if (done !== length) throw new CliError(EXIT.usage, `${from}: ${done} bytes; ${length} are expected`);
}

async function writeAll(file: FileHandle, bytes: Uint8Array, offset: number): Promise<void> {
  for (let at = 0; at < bytes.length; )
    at += (await file.write(bytes, at, bytes.length - at, offset + at)).bytesWritten;
}
