/**
 * The files of a system that is being put together: names in memory, contents where they lie.
 *
 * Invariants
 * - A path has no leading slash, no empty part, no `.` and no `..`.
 * - What stands above an entry is a directory: nothing is ever written through a symbolic link.
 */
import { closeSync, openSync, readdirSync, readFileSync, readlinkSync, readSync, statSync } from "node:fs";
import { join } from "node:path";
import { BuildError } from "./tools.ts";

/** Bytes in memory, or a part of a file that stays as it is until the image is built. */
export type Content = Uint8Array | { file: string; offset: number; length: number };

/** One thing in the system. Two names for the same `Node` are a hard link. */
export type Node = { mode: number; uid: number; gid: number } & (
  | { type: "file"; content: Content }
  | { type: "directory" }
  | { type: "symlink"; target: string }
  | { type: "device"; kind: "character" | "block"; major: number; minor: number }
  | { type: "fifo" }
);

/** Bytes of a content. */
export const lengthOf = (content: Content): number => content.length;

/** All of a content. */
export function bytesOf(content: Content): Uint8Array {
  return content instanceof Uint8Array ? content : Buffer.concat([...piecesOf(content)]);
}

/** A content in pieces of a mebibyte at most. */
export function* piecesOf(content: Content): Generator<Uint8Array> {
  if (content instanceof Uint8Array) {
    yield content;
    return;
  }
  const { file, offset, length } = content;
  const fd = openSync(file, "r");
  try {
    for (let at = 0; at < length; ) {
      const piece = Buffer.alloc(Math.min(1 << 20, length - at));
      const got = readSync(fd, piece, 0, piece.length, offset + at);
      if (got === 0) throw new BuildError(`${file}: it ends at byte ${offset + at} while it is read`);
      yield piece.subarray(0, got);
      at += got;
    }
  } finally {
    closeSync(fd);
  }
}

/** A whole file of this machine as a content. */
export function fileContent(file: string): Content {
  return { file, offset: 0, length: statSync(file).size };
}

/** A regular file of root's. */
export function file(content: Content | string, mode = 0o644): Node {
  return {
    type: "file",
    mode,
    uid: 0,
    gid: 0,
    content: typeof content === "string" ? Buffer.from(content) : content,
  };
}

/** A directory of root's. */
export const directory = (mode = 0o755): Node => ({ type: "directory", mode, uid: 0, gid: 0 });

/** A symbolic link. */
export const symlink = (target: string): Node => ({ type: "symlink", mode: 0o777, uid: 0, gid: 0, target });

/** A path as the tree wants it. Throws `BuildError` for one that leads elsewhere. */
export function placeIn(path: string, from: string): string {
  if (path.startsWith("/")) throw new BuildError(`${from}: "${path}" is absolute`);
  if (path.includes("\0")) throw new BuildError(`${from}: a path has a NUL`);
  const parts = path.split("/").filter((part) => part !== "" && part !== ".");
  if (parts.includes("..")) throw new BuildError(`${from}: "${path}" leads out of the root`);
  return parts.join("/");
}

/** A system's files by path. */
export class Tree {
  readonly #nodes = new Map<string, Node>();

  /** Puts a node at a path, over what is there; a directory keeps what is in it. `from` is for messages. */
  put(path: string, node: Node, from = "the builder"): void {
    const place = placeIn(path, from);
    if (place === "") return;
    for (let slash = place.indexOf("/"); slash >= 0; slash = place.indexOf("/", slash + 1)) {
      const above = place.slice(0, slash);
      const there = this.#nodes.get(above);
      if (!there) this.#nodes.set(above, directory());
      else if (there.type !== "directory")
        throw new BuildError(`${from}: "${place}" would go through "${above}", which is a ${there.type}`);
    }
    const old = this.#nodes.get(place);
    if (old?.type === "directory" && node.type !== "directory")
      throw new BuildError(`${from}: "${place}" is a directory already, not a ${node.type}`);
    this.#nodes.set(place, node);
  }

  /** What is at a path itself. */
  at(path: string): Node | undefined {
    return this.#nodes.get(path);
  }

  /** The path that a path means, symbolic links followed within the tree; undefined where they lead nowhere. */
  resolve(path: string, links = 0): string | undefined {
    if (links > 40) return undefined;
    const done: string[] = [];
    const parts = path.split("/").filter((part) => part !== "" && part !== ".");
    for (const [index, part] of parts.entries()) {
      if (part === "..") {
        done.pop();
        continue;
      }
      done.push(part);
      const there = this.#nodes.get(done.join("/"));
      if (there?.type !== "symlink") continue;
      const base = there.target.startsWith("/") ? [] : done.slice(0, -1);
      return this.resolve([...base, there.target, ...parts.slice(index + 1)].join("/"), links + 1);
    }
    return done.join("/");
  }

  /** The regular file that a path means, links followed. */
  content(path: string): Content | undefined {
    const node = this.#nodes.get(this.resolve(path) ?? "");
    return node?.type === "file" ? node.content : undefined;
  }

  /** Puts a node where a path means, links of the directories above followed, as a copy onto a running system would. */
  place(path: string, node: Node, from = "the builder"): void {
    const at = path.lastIndexOf("/");
    const above = at < 0 ? "" : (this.resolve(path.slice(0, at)) ?? path.slice(0, at));
    const place = `${above}${above === "" ? "" : "/"}${path.slice(at + 1)}`;
    const there = this.#nodes.get(place);
    // A directory of the overlay on a link to one (`/lib` → `usr/lib`) is that one
    if (node.type === "directory" && there && there.type !== "file") return;
    this.put(place, node, from);
  }

  /** The same files in a tree of its own. */
  copy(): Tree {
    const tree = new Tree();
    for (const [path, node] of this.#nodes) tree.#nodes.set(path, node);
    return tree;
  }

  /** Takes a path and everything under it away. */
  remove(path: string): void {
    for (const place of [...this.#nodes.keys()])
      if (place === path || place.startsWith(`${path}/`)) this.#nodes.delete(place);
  }

  /** Everything, directories before what is in them, in the order of the bytes of the paths. */
  entries(): [string, Node][] {
    return [...this.#nodes].sort(([one], [other]) => Buffer.compare(Buffer.from(one), Buffer.from(other)));
  }

  /** Lays a folder of this machine over the tree, owned by root; a file that its owner may run, all may run. */
  overlay(folder: string, below = ""): void {
    for (const found of readdirSync(folder, { withFileTypes: true })) {
      const [path, place] = [join(folder, found.name), join(below, found.name)];
      if (found.isSymbolicLink()) this.place(place, symlink(readlinkSync(path)), path);
      else if (found.isDirectory()) {
        this.place(place, directory(), path);
        this.overlay(path, place);
      } else
        this.place(
          place,
          file(readFileSync(path), (statSync(path).mode & 0o100) === 0 ? 0o644 : 0o755),
          path,
        );
    }
  }
}
