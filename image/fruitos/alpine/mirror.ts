/** Files of an Alpine mirror, kept in a folder. Nothing that comes from either is believed here. */
import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { BuildError } from "../tools.ts";

/** Longest file that is fetched, bytes. */
const MOST_FETCHED = 512 << 20;
/** How long one file may take. */
const FETCH_TIMEOUT_MS = 600_000;

/** Where packages come from. */
export interface Mirror {
  /** Address of a branch, `…/alpine/v3.22`; repositories are folders in it. Absent: only what the cache has. */
  url?: string;
  /** Folder for what was fetched. */
  cache: string;
  arch: string;
}

/** A file of a repository, from the cache where it is there; `isFresh`: from the mirror, which may have changed it. */
export async function fetchFile(
  mirror: Mirror,
  repository: string,
  file: string,
  isFresh = false,
): Promise<Buffer> {
  const kept = join(mirror.cache, mirror.arch, repository, file);
  if (existsSync(kept) && !(isFresh && mirror.url !== undefined)) return readFileSync(kept);
  if (mirror.url === undefined)
    throw new BuildError(`${repository}/${file}: not in ${mirror.cache}, and --offline forbids to fetch it`);
  const address = `${mirror.url.replace(/\/+$/, "")}/${repository}/${mirror.arch}/${file}`;
  const bytes = await fetchBytes(address);
  mkdirSync(dirname(kept), { recursive: true });
  writeFileSync(`${kept}.new`, bytes);
  renameSync(`${kept}.new`, kept);
  return bytes;
}

async function fetchBytes(address: string): Promise<Buffer> {
  try {
    const response = await fetch(address, { signal: AbortSignal.timeout(FETCH_TIMEOUT_MS) });
    if (!response.ok || !response.body) throw new BuildError(`the mirror answers ${response.status}`);
    const pieces: Uint8Array[] = [];
    let length = 0;
    for await (const piece of response.body) {
      length += piece.length;
      if (length > MOST_FETCHED) throw new BuildError(`more than ${MOST_FETCHED} bytes`);
      pieces.push(piece);
    }
    return Buffer.concat(pieces);
  } catch (cause) {
    throw new BuildError(`${address}: ${(cause as Error).message}`, { cause });
  }
}
