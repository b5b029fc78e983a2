/** One pass over a payload: everything that an update file says of its bytes, in bounded memory whatever its size. */
import { createHash, type Hash } from "node:crypto";
import { open } from "node:fs/promises";
import { crc32 } from "node:zlib";
import type { FileFacts } from "../../boot/area.ts";
import { Chunker } from "../../boot/chunks.ts";
import { LeafHasher, MerkleTree } from "../../boot/merkle.ts";
import { CliError, EXIT } from "../terminal.ts";

/** Bytes read at once. */
export const CHUNK_BYTES = 1_048_576;

/** What a payload's bytes are. */
export interface Digest {
  size: number;
  /** Hex. */
  sha256: string;
  sha512: string;
  piecesRoot: Uint8Array;
  /** SHA-1 of each piece, one after the other. */
  pieces: Buffer;
  /** The index of its chunks. */
  chunks: Buffer;
}

/** Reads a payload from end to end; `onLeaf` gets the hash of each leaf in turn. Throws `CliError` where it cannot be read. */
export async function digestPayload(
  path: string,
  pieceLength: number,
  onLeaf: (leafHash: Uint8Array) => void = () => undefined,
  signal?: AbortSignal,
): Promise<Digest> {
  const whole = { sha256: createHash("sha256"), sha512: createHash("sha512") };
  const tree = new MerkleTree();
  const leaves = new LeafHasher((leafHash) => {
    tree.add(leafHash);
    onLeaf(leafHash);
  });
  const pieces = new Pieces(pieceLength);
  const chunker = new Chunker();
  let size = 0;
  for await (const chunk of chunksOf(path)) {
    signal?.throwIfAborted();
    whole.sha256.update(chunk);
    whole.sha512.update(chunk);
    leaves.update(chunk);
    pieces.update(chunk);
    chunker.update(chunk);
    size += chunk.length;
  }
  leaves.end();
  if (size === 0) throw new CliError(EXIT.usage, `${path}: it is empty`);
  return {
    size,
    sha256: whole.sha256.digest("hex"),
    sha512: whole.sha512.digest("hex"),
    piecesRoot: tree.root(),
    pieces: pieces.end(),
    chunks: chunker.end(),
  };
}

/** A file, or `length` bytes of it from `from` on, piece by piece; each piece is overwritten by the next. Throws `CliError` naming it. */
export async function* chunksOf(
  path: string,
  from = 0,
  length = Number.POSITIVE_INFINITY,
): AsyncGenerator<Buffer> {
  const file = await open(path, "r").catch((cause: Error) => {
    throw new CliError(EXIT.usage, `${path}: ${cause.message}`, { cause });
  });
  try {
    const buffer = Buffer.allocUnsafe(CHUNK_BYTES);
    for (let done = 0; done < length; ) {
      const { bytesRead } = await file
        .read(buffer, 0, Math.min(CHUNK_BYTES, length - done), from + done)
        .catch((cause: Error) => {
          throw new CliError(EXIT.failed, `${path}: byte ${from + done}: ${cause.message}`, { cause });
        });
      if (bytesRead === 0) return;
      yield buffer.subarray(0, bytesRead);
      done += bytesRead;
    }
  } finally {
    await file.close();
  }
}

/** Size and CRC-32 of a file, or of a part of it. */
export async function factsOf(path: string, from = 0, length = Number.POSITIVE_INFINITY): Promise<FileFacts> {
  let [bytes, sum] = [0, 0];
  for await (const chunk of chunksOf(path, from, length)) {
    sum = crc32(chunk, sum);
    bytes += chunk.length;
  }
  return { bytes, crc32: sum };
}

/** Bytes of a piece, by the size of the payload: 256 KiB up to 256 MiB, doubled with it, 4 MiB at most. */
export function pieceLengthFor(payloadBytes: number): number {
  let length = 262_144;
  while (payloadBytes > length * 1024 && length < 4_194_304) length *= 2;
  return length;
}

/** SHA-1 of pieces, of bytes that come in other portions. */
class Pieces {
  readonly #length: number;
  readonly #done: Buffer[] = [];
  #current: Hash = createHash("sha1");
  #filled = 0;

  constructor(length: number) {
    this.#length = length;
  }

  update(bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length; ) {
      const part = bytes.subarray(at, at + this.#length - this.#filled);
      this.#current.update(part);
      this.#filled += part.length;
      at += part.length;
      if (this.#filled === this.#length) this.#next();
    }
  }

  end(): Buffer {
    if (this.#filled > 0) this.#next();
    return Buffer.concat(this.#done);
  }

  #next(): void {
    this.#done.push(this.#current.digest());
    this.#current = createHash("sha1");
    this.#filled = 0;
  }
}
