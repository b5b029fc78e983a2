/** A tree written as tar (ustar, with pax for what has no room in it). Source: IEEE Std 1003.1. */
import { lengthOf, type Node, piecesOf, type Tree } from "./tree.ts";

const BLOCK = 512;

/** A tree as tar: sorted, all times 0, a hard link where two names are one node. */
export function* writeTar(tree: Tree): Generator<Uint8Array> {
  const names = new Map<Node, string>();
  for (const [path, node] of tree.entries()) {
    const first = node.type === "file" ? names.get(node) : undefined;
    if (first !== undefined) {
      yield* header(path, node, "1", 0, first);
      continue;
    }
    names.set(node, path);
    const size = node.type === "file" ? lengthOf(node.content) : 0;
    yield* header(
      path,
      node,
      TYPES[node.type === "device" ? node.kind : node.type],
      size,
      node.type === "symlink" ? node.target : "",
    );
    if (node.type !== "file") continue;
    yield* piecesOf(node.content);
    if (size % BLOCK !== 0) yield new Uint8Array(BLOCK - (size % BLOCK));
  }
  yield new Uint8Array(2 * BLOCK);
}

const TYPES = { file: "0", symlink: "2", character: "3", block: "4", directory: "5", fifo: "6" } as const;

function* header(
  path: string,
  node: Node,
  type: string,
  size: number,
  target: string,
): Generator<Uint8Array> {
  const long = {
    ...(Buffer.byteLength(path) > 99 ? { path } : {}),
    ...(Buffer.byteLength(target) > 99 ? { linkpath: target } : {}),
    ...(size >= 8 ** 11 ? { size: String(size) } : {}),
    ...(node.uid >= 8 ** 7 ? { uid: String(node.uid) } : {}),
    ...(node.gid >= 8 ** 7 ? { gid: String(node.gid) } : {}),
  };
  if (Object.keys(long).length > 0) {
    const bytes = Buffer.concat(Object.entries(long).map(([key, value]) => record(key, value)));
    yield block("pax", { mode: 0o644, uid: 0, gid: 0 }, "x", bytes.length, "");
    yield bytes;
    if (bytes.length % BLOCK !== 0) yield new Uint8Array(BLOCK - (bytes.length % BLOCK));
  }
  const bytes = block(path, node, type, size, target);
  if (node.type === "device") {
    octal(bytes, 329, 8, node.major);
    octal(bytes, 337, 8, node.minor);
    seal(bytes);
  }
  yield bytes;
}

function record(key: string, value: string): Buffer {
  const rest = Buffer.byteLength(` ${key}=${value}\n`);
  let length = rest + 1;
  while (String(length).length + rest !== length) length++;
  return Buffer.from(`${length} ${key}=${value}\n`);
}

function block(
  path: string,
  owner: { mode: number; uid: number; gid: number },
  type: string,
  size: number,
  target: string,
): Buffer {
  const bytes = Buffer.alloc(BLOCK);
  Buffer.from(path).copy(bytes, 0, 0, 100);
  octal(bytes, 100, 8, owner.mode);
  octal(bytes, 108, 8, owner.uid % 8 ** 7);
  octal(bytes, 116, 8, owner.gid % 8 ** 7);
  octal(bytes, 124, 12, size % 8 ** 11);
  octal(bytes, 136, 12, 0);
  bytes.write(type, 156);
  Buffer.from(target).copy(bytes, 157, 0, 100);
  bytes.write("ustar\x0000", 257, "latin1");
  seal(bytes);
  return bytes;
}

function octal(bytes: Buffer, at: number, length: number, value: number): void {
  bytes.write(`${value.toString(8).padStart(length - 1, "0")}\0`, at, "latin1");
}

function seal(bytes: Buffer): void {
  bytes.fill(0x20, 148, 156);
  const sum = bytes.reduce((total, byte) => total + byte, 0);
  bytes.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148, "latin1");
}
