/**
 * The names in a folder of a FAT.
 * Source: Microsoft, "FAT: General Overview of On-Disk Format" 1.03, directory structure and long names.
 */

/** Bytes of one entry. */
export const ENTRY_BYTES = 32;

/** One name in a folder. */
export interface FatEntry {
  /** The long name, else the short one. */
  name: string;
  /** Eight and three characters, `AUTOBOOT.TXT`. */
  short: string;
  isFolder: boolean;
  /** First cluster; 0 where it has none. */
  cluster: number;
  bytes: number;
}

/** A foreign name in one line of a message. */
export const printable = (name: string) => name.replace(/\p{Cc}/gu, "?");

const [END, DELETED, LONG, VOLUME, FOLDER] = [0x00, 0xe5, 0x0f, 0x08, 0x10];

/** The names in a folder's bytes, and whether a place among them is free. What was deleted, volume labels and broken long names are left out. */
export function readFolder(bytes: Uint8Array, bits: 16 | 32): { entries: FatEntry[]; hasRoom: boolean } {
  const entries: FatEntry[] = [];
  let long: Uint8Array[] = [];
  let hasRoom = false;
  for (let at = 0; at + ENTRY_BYTES <= bytes.length; at += ENTRY_BYTES) {
    const entry = bytes.subarray(at, at + ENTRY_BYTES);
    const [first, attributes] = [entry[0], (entry[11] ?? 0) & 0x3f];
    if (first === END) return { entries, hasRoom: true };
    if (first === DELETED) hasRoom = true;
    else if (attributes === LONG) {
      long.push(entry);
      continue;
    } else if ((attributes & VOLUME) === 0) entries.push(readEntry(entry, long, bits));
    long = [];
  }
  return { entries, hasRoom };
}

function readEntry(entry: Uint8Array, long: readonly Uint8Array[], bits: 16 | 32): FatEntry {
  const view = new DataView(entry.buffer, entry.byteOffset, ENTRY_BYTES);
  const text = Buffer.from(entry.subarray(0, 11)).toString("latin1");
  const [base, extension] = [text.slice(0, 8).trimEnd(), text.slice(8).trimEnd()];
  const join = (one: string, other: string) => (other ? `${one}.${other}` : one);
  // Where a name of one case fits into the short one, these bits are all there is of the long one (Windows NT, Linux, mtools)
  const lower = view.getUint8(12);
  const shown = join(
    lower & 0x08 ? base.toLowerCase() : base,
    lower & 0x10 ? extension.toLowerCase() : extension,
  );
  return {
    short: join(base, extension),
    name: longName(long, entry) ?? shown,
    isFolder: (view.getUint8(11) & FOLDER) !== 0,
    cluster: view.getUint16(26, true) + (bits === 32 ? view.getUint16(20, true) * 0x1_0000 : 0),
    bytes: view.getUint32(28, true),
  };
}

/** The long name before a short one; undefined where its parts do not belong to it. */
function longName(parts: readonly Uint8Array[], entry: Uint8Array): string | undefined {
  let sum = 0;
  for (const byte of entry.subarray(0, 11)) sum = ((((sum & 1) << 7) | (sum >> 1)) + byte) & 0xff;
  const isOurs = parts.every((part, index) => {
    const order = parts.length - index;
    return part[0] === (index === 0 ? order | 0x40 : order) && part[13] === sum;
  });
  if (parts.length === 0 || !isOurs) return undefined;
  const text = parts
    .toReversed()
    .flatMap((part) => [part.subarray(1, 11), part.subarray(14, 26), part.subarray(28, 32)])
    .map((piece) => Buffer.from(piece).toString("utf16le"))
    .join("");
  return text.split("\0", 1)[0];
}
