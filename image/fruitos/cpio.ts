/** A tree as an initramfs: cpio "newc", sorted, without times. Source: Documentation/driver-api/early-userspace/buffer-format.rst. */
import { gzipSync } from "node:zlib";
import { bytesOf, type Node, type Tree } from "./tree.ts";

/** The archive, compressed with gzip, which every kernel for a Pi unpacks. */
export function initramfsOf(tree: Tree): Uint8Array {
  const packed = gzipSync(cpioOf(tree), { level: 9 });
  // The system it was made on is in byte 9 of the header: the same everywhere
  packed[9] = 3;
  return packed;
}

/** The archive. */
export function cpioOf(tree: Tree): Uint8Array {
  const pieces: Uint8Array[] = [];
  for (const [index, [path, node]] of tree.entries().entries()) member(pieces, index + 1, path, node);
  member(pieces, 0, "TRAILER!!!", undefined);
  return Buffer.concat(pieces);
}

const KINDS = {
  file: 0o100000,
  directory: 0o040000,
  symlink: 0o120000,
  character: 0o020000,
  block: 0o060000,
  fifo: 0o010000,
} as const;

function member(pieces: Uint8Array[], inode: number, path: string, node: Node | undefined): void {
  const content =
    node?.type === "file" ? bytesOf(node.content) : Buffer.from(node?.type === "symlink" ? node.target : "");
  const name = Buffer.from(`${path}\0`);
  const kind = node && KINDS[node.type === "device" ? node.kind : node.type];
  const [major, minor] = node?.type === "device" ? [node.major, node.minor] : [0, 0];
  const fields = [
    ...[inode, (kind ?? 0) | (node?.mode ?? 0), node?.uid ?? 0, node?.gid ?? 0, 1, 0, content.length],
    ...[0, 0, major, minor, name.length, 0],
  ];
  const head = Buffer.from(
    `070701${fields.map((field) => field.toString(16).toUpperCase().padStart(8, "0")).join("")}`,
  );
  pieces.push(head, name, padding(head.length + name.length), content, padding(content.length));
}

const padding = (length: number) => new Uint8Array((4 - (length % 4)) % 4);
