/**
 * Tar as others write it (ustar, pax, GNU's long names), read into a tree.
 *
 * Source: IEEE Std 1003.1 "pax interchange format" and "ustar interchange format"; GNU tar's manual for `L` and `K`.
 */
import { closeSync, fstatSync, openSync, readSync } from "node:fs";
import { BuildError } from "./tools.ts";
import { type Content, type Node, placeIn, type Tree } from "./tree.ts";

const BLOCK = 512;
const EMPTY = Buffer.alloc(BLOCK);
/** A header of headers is read into memory: more than this is no name of a file. */
const MOST_EXTENDED = 1 << 20;

/** One member: `link` names the member that it is another name of. */
export type Member = { path: string; size: number } & ({ node: Node } | { link: string });

/** What is read: bytes in memory, or a file that stays where it is. */
interface Source {
  name: string;
  end: number;
  read(offset: number, length: number): Buffer;
  content(offset: number, length: number): Content;
}

/** The members of a tar, a file's or one in memory. `whole`: it must say itself that it ends. `name` is for messages. */
export function* readTar(
  from: string | Buffer,
  options: { whole?: boolean; name: string },
): Generator<Member, void> {
  const { name, whole = false } = options;
  if (typeof from !== "string") {
    const read = (offset: number, length: number) => from.subarray(offset, offset + length);
    yield* members({ name, end: from.length, read, content: read }, whole);
    return;
  }
  const fd = openSync(from, "r");
  try {
    const read = (offset: number, length: number) => readAt(fd, offset, length);
    const content = (offset: number, length: number) => ({ file: from, offset, length });
    yield* members({ name, end: fstatSync(fd).size, read, content }, whole);
  } finally {
    closeSync(fd);
  }
}

/** Puts all of a tar into a tree. Returns the paths. */
export function unpackTar(
  tree: Tree,
  from: string | Buffer,
  options: { whole?: boolean; name: string },
): string[] {
  const { name } = options;
  const paths: string[] = [];
  for (const member of readTar(from, options)) {
    const path = placeIn(member.path, name);
    if ("node" in member) tree.put(path, member.node, name);
    else {
      const target = tree.at(placeIn(member.link, name));
      if (target?.type !== "file")
        throw new BuildError(
          `${name}: "${path}" is a hard link to "${member.link}", which is no file before it`,
        );
      tree.put(path, target, name);
    }
    paths.push(path);
  }
  return paths;
}

function* members(source: Source, isWhole: boolean): Generator<Member> {
  const { name, end } = source;
  let extended: Record<string, string> = {};
  let at = 0;
  while (at < end) {
    const header = headerAt(source, at);
    if (!header) return;
    const type = String.fromCharCode(header[156] || 0x30);
    const size = Number(extended.size ?? number(header, 124, 12, name, at));
    const offset = at + BLOCK;
    if (!Number.isSafeInteger(size) || size < 0 || size > end - offset)
      throw new BuildError(
        `${name}: the member at byte ${at} has ${size} bytes, ${end - offset} are left: cut off`,
      );
    at = offset + Math.ceil(size / BLOCK) * BLOCK;
    if (type === "g") continue;
    if ("xLK".includes(type)) extended = { ...extended, ...furtherHeader(source, type, offset, size) };
    else {
      yield memberOf(header, extended, type, source, offset, size);
      extended = {};
    }
  }
  if (isWhole) throw new BuildError(`${name}: it does not end with an empty block: cut off`);
}

/** The header at a place; undefined for the empty block that ends all. */
function headerAt({ name, end, read }: Source, at: number): Buffer | undefined {
  if (end - at < BLOCK) throw new BuildError(`${name}: cut off at byte ${end}, within a header`);
  const header = read(at, BLOCK);
  if (header.equals(EMPTY)) return undefined;
  checkHeader(header, name, at);
  return header;
}

/** What a header in front of the next one says of it. */
function furtherHeader(
  { name, read }: Source,
  type: string,
  offset: number,
  size: number,
): Record<string, string> {
  if (size > MOST_EXTENDED)
    throw new BuildError(`${name}: a header of ${size} bytes; ${MOST_EXTENDED} are allowed`);
  const bytes = read(offset, size);
  return type === "x" ? records(bytes, name) : { [type === "L" ? "path" : "linkpath"]: text(bytes, 0, size) };
}

function memberOf(
  header: Buffer,
  extended: Record<string, string>,
  type: string,
  source: Source,
  offset: number,
  size: number,
): Member {
  const { name } = source;
  const prefix = text(header, 257, 5) === "ustar" && header[263] === 0x30 ? text(header, 345, 155) : "";
  const path = extended.path ?? (prefix === "" ? "" : `${prefix}/`) + text(header, 0, 100);
  const target = extended.linkpath ?? text(header, 157, 100);
  const field = (from: number, length: number) => number(header, from, length, name, offset - BLOCK);
  const owner = {
    mode: field(100, 8) & 0o7777,
    uid: Number(extended.uid ?? field(108, 8)),
    gid: Number(extended.gid ?? field(116, 8)),
  };
  const member = (node: Node): Member => ({ path, size, node });
  switch (type) {
    case "0":
    case "7":
      return member({ ...owner, type: "file", content: source.content(offset, size) });
    case "1":
      return { path, size, link: target };
    case "2":
      return member({ ...owner, type: "symlink", target });
    case "3":
    case "4": {
      const kind = type === "3" ? "character" : "block";
      return member({ ...owner, type: "device", kind, major: field(329, 8), minor: field(337, 8) });
    }
    case "5":
      return member({ ...owner, type: "directory" });
    case "6":
      return member({ ...owner, type: "fifo" });
    default:
      throw new BuildError(`${name}: "${path}" is a member of type "${type}", which nothing here can read`);
  }
}

function readAt(fd: number, offset: number, length: number): Buffer {
  const bytes = Buffer.alloc(length);
  for (let at = 0; at < length; ) {
    const got = readSync(fd, bytes, at, length - at, offset + at);
    if (got === 0) break;
    at += got;
  }
  return bytes;
}

function checkHeader(header: Buffer, name: string, at: number): void {
  let sum = 0;
  for (let index = 0; index < BLOCK; index++)
    sum += index >= 148 && index < 156 ? 0x20 : (header[index] ?? 0);
  if (number(header, 148, 8, name, at) !== sum)
    throw new BuildError(`${name}: no tar header at byte ${at}: its checksum is wrong`);
}

function text(bytes: Uint8Array, from: number, length: number): string {
  const field = bytes.subarray(from, from + length);
  const end = field.indexOf(0);
  return Buffer.from(end < 0 ? field : field.subarray(0, end)).toString();
}

/** Octal digits, or GNU's binary numbers, which begin with 0x80. */
function number(header: Buffer, from: number, length: number, name: string, at: number): number {
  if (header[from] === 0x80)
    return Number(
      header.subarray(from + 1, from + length).reduce((sum, byte) => sum * 256n + BigInt(byte), 0n),
    );
  const digits = text(header, from, length).trim();
  if (!/^[0-7]*$/.test(digits))
    throw new BuildError(`${name}: no tar header at byte ${at}: "${digits}" is no number`);
  return Number.parseInt(digits || "0", 8);
}

/** `LENGTH KEY=VALUE\n`, one after the other. */
function records(bytes: Buffer, name: string): Record<string, string> {
  const found: Record<string, string> = Object.create(null);
  for (let at = 0; at < bytes.length && bytes[at] !== 0; ) {
    const space = bytes.indexOf(0x20, at);
    const length = space < 0 ? Number.NaN : Number(bytes.subarray(at, space).toString());
    if (
      !Number.isInteger(length) ||
      length < 5 ||
      at + length > bytes.length ||
      bytes[at + length - 1] !== 0x0a
    )
      throw new BuildError(`${name}: a pax header is damaged`);
    const [, key = "", value = ""] =
      /^([^=]+)=(.*)$/s.exec(bytes.subarray(space + 1, at + length - 1).toString()) ?? [];
    if (key.startsWith("GNU.sparse"))
      throw new BuildError(`${name}: it has sparse members; make it without --sparse`);
    found[key] = value;
    at += length;
  }
  return found;
}
