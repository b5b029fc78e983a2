/** `boot.scr` as U-Boot reads it: the script in a legacy image (U-Boot's include/image.h), as `mkimage -T script` makes it. */
import { crc32 } from "node:zlib";

const HEADER_BYTES = 64;
const MAGIC = 0x2705_1956;
/** IH_OS_LINUX, IH_ARCH_ARM64, IH_TYPE_SCRIPT, IH_COMP_NONE. */
const KIND = [5, 22, 6, 0];

/** The image of a script. `time` is Unix seconds: 0 makes the same bytes of the same script every day. */
export function bootScript(script: string, time = 0): Uint8Array {
  const text = Buffer.from(script);
  // A script image is one of many parts: a list of lengths that ends with 0, then the parts
  const lengths = Buffer.alloc(8);
  lengths.writeUInt32BE(text.length);
  const body = Buffer.concat([lengths, text]);
  const header = Buffer.alloc(HEADER_BYTES);
  header.writeUInt32BE(MAGIC, 0);
  header.writeUInt32BE(time, 8);
  header.writeUInt32BE(body.length, 12);
  header.writeUInt32BE(crc32(body), 24);
  header.set(KIND, 28);
  // The header's own CRC-32 counts as 0 in itself
  header.writeUInt32BE(crc32(header), 4);
  return Buffer.concat([header, body]);
}
