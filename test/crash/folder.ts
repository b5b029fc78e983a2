/** A data folder as a value. */
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

/** What a data folder holds, by path. */
export type Folder = ReadonlyMap<string, Uint8Array>;

/** The files below a folder. */
export function readFolder(folder: string): Folder {
  const files = new Map<string, Uint8Array>();
  for (const entry of readdirSync(folder, { recursive: true, withFileTypes: true })) {
    if (!entry.isFile()) continue;
    const path = join(entry.parentPath, entry.name);
    files.set(path.slice(folder.length + 1), readFileSync(path));
  }
  return files;
}

/** The same for the same content. */
export const digestOf = (folder: Folder): bigint =>
  folder.entries().reduce((sum, [path, bytes]) => sum ^ Bun.hash(bytes, BigInt(Bun.hash(path))), 0n);
