/** What is handed out: the card compressed, its checksum, and its block map. Memory does not grow with the card. */
import { createHash } from "node:crypto";
import { closeSync, openSync, statSync, writeFileSync } from "node:fs";
import { basename } from "node:path";
import { constants, zstdCompressSync } from "node:zlib";
import { chunksOf, isZero, writeAt } from "./card.ts";

/** Bytes of a block in the block map. */
const BLOCK = 4096;

/**
 * Compresses a file with zstd, a frame for every 4 MiB: the same bytes every time, and a hole costs nothing.
 * Source: RFC 8878 §3: frames one after the other are one stream.
 */
export function compressCard(from: string, out: string, level: number): void {
  const params = { [constants.ZSTD_c_compressionLevel]: level, [constants.ZSTD_c_checksumFlag]: 1 };
  const holes = new Map<number, Buffer>();
  const fd = openSync(out, "w");
  let written = 0;
  try {
    for (const [, chunk] of chunksOf(from)) {
      const isHole = isZero(chunk);
      const frame = (isHole ? holes.get(chunk.length) : undefined) ?? zstdCompressSync(chunk, { params });
      if (isHole) holes.set(chunk.length, frame);
      writeAt(fd, frame, written);
      written += frame.length;
    }
  } finally {
    closeSync(fd);
  }
}

/** Writes the SHA-256 of a file beside it as `sha256sum -c` reads it. Returns the file's name. */
export function writeChecksum(file: string): string {
  const hash = createHash("sha256");
  for (const [, chunk] of chunksOf(file)) hash.update(chunk);
  writeFileSync(`${file}.sha256`, `${hash.digest("hex")}  ${basename(file)}\n`);
  return `${file}.sha256`;
}

/** A run of blocks that hold something, both ends included. */
interface Range {
  first: number;
  last: number;
  hash: string;
}

/**
 * The blocks of a card that hold anything, with their SHA-256, as `bmaptool copy` takes it.
 * Source: bmap-tools, bmaptools/BmapCreate.py, format 2.0: the file's own checksum is taken over it with zeros in its place.
 */
export function blockMap(file: string): string {
  const { ranges, mapped } = mappedRanges(file);
  const { size } = statSync(file);
  const none = "0".repeat(64);
  const map = `<?xml version="1.0" ?>
<bmap version="2.0">
    <ImageSize> ${size} </ImageSize>
    <BlockSize> ${BLOCK} </BlockSize>
    <BlocksCount> ${Math.ceil(size / BLOCK)} </BlocksCount>
    <MappedBlocksCount> ${mapped} </MappedBlocksCount>
    <ChecksumType> sha256 </ChecksumType>
    <BmapFileChecksum> ${none} </BmapFileChecksum>
    <BlockMap>
${ranges.map(({ first, last, hash }) => `        <Range chksum="${hash}"> ${first === last ? first : `${first}-${last}`} </Range>\n`).join("")}    </BlockMap>
</bmap>
`;
  return map.replace(none, createHash("sha256").update(map).digest("hex"));
}

function mappedRanges(file: string): { ranges: Range[]; mapped: number } {
  const ranges: Range[] = [];
  let mapped = 0;
  let open: { first: number; last: number; hash: ReturnType<typeof createHash> } | undefined;
  const close = () => {
    if (open) ranges.push({ first: open.first, last: open.last, hash: open.hash.digest("hex") });
    open = undefined;
  };
  for (const [at, chunk] of chunksOf(file)) {
    if (isZero(chunk)) {
      close();
      continue;
    }
    for (let from = 0; from < chunk.length; from += BLOCK) {
      const block = chunk.subarray(from, from + BLOCK);
      if (isZero(block)) {
        close();
        continue;
      }
      const number = (at + from) / BLOCK;
      open ??= { first: number, last: number, hash: createHash("sha256") };
      open.last = number;
      open.hash.update(block);
      mapped++;
    }
  }
  close();
  return { ranges, mapped };
}
