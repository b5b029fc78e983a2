/** What the swarm has to know of an update file, which is a torrent file (BEP 3) of one file. */
import { createHash } from "node:crypto";
import { decodeBencode, type Received } from "../../boot/bencode.ts";
import { LEAF_BYTES } from "../../boot/content.ts";
import type { Shape } from "./stock.ts";

const MAX_UPDATE_BYTES = 4 * 1024 * 1024;
/** Largest piece: one is put together in memory. */
const MAX_PIECE_BYTES = 4 * 1024 * 1024;

/** The sizes it names, and its `info` as received. Throws where it is not the update file of `infohash`. */
export function readMetainfo(update: Uint8Array, infohash: string): { shape: Shape; info: Uint8Array } {
  const { value } = decodeBencode(update, MAX_UPDATE_BYTES);
  const info = value instanceof Map ? value.get("info") : undefined;
  if (!(info?.value instanceof Map)) throw new RangeError("an update file without info");
  const found = createHash("sha1").update(info.bytes).digest("hex");
  if (found !== infohash) throw new RangeError(`an update file of ${found}, not of ${infohash}`);
  const size = number(info.value.get("length"), "length");
  const pieceBytes = number(info.value.get("piece length"), "piece length");
  const pieces = Math.ceil(size / pieceBytes);
  const hashes = info.value.get("pieces")?.value;
  if (pieceBytes % LEAF_BYTES !== 0 || pieceBytes > MAX_PIECE_BYTES)
    throw new RangeError(`pieces of ${pieceBytes} bytes`);
  if (!(hashes instanceof Uint8Array) || hashes.length !== pieces * 20)
    throw new RangeError(`no hashes of ${pieces} pieces`);
  return { shape: { size, pieceBytes, pieces }, info: info.bytes };
}

function number(received: Received | undefined, name: string): number {
  const value = Number(typeof received?.value === "bigint" ? received.value : 0n);
  if (!Number.isSafeInteger(value) || value < 1) throw new RangeError(`an update file without ${name}`);
  return value;
}
