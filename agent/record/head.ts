/**
 * The newest line of a chained log, noted beside it: the chain guards each line by its successor, and the newest has none.
 * Noted only once the line is on the disk (disruptive commands, and the end of the agent), so that a power cut may leave
 * the note behind the log and never ahead of it.
 */
import { constants } from "node:fs";
import { open, readFile } from "node:fs/promises";
import { join } from "node:path";
import type { ChainHead } from "./chained.ts";

/** Always as long, and written over itself: a torn note is one of the two, or none. */
const LENGTH = 96;

/** Notes the head. */
export async function writeHead(dir: string, log: string, { seq, sha256 }: ChainHead): Promise<void> {
  const handle = await open(join(dir, `${log}.head`), constants.O_WRONLY | constants.O_CREAT, 0o600);
  try {
    await handle.write(`${seq}:${sha256}`.padEnd(LENGTH - 1).concat("\n"), 0);
    await handle.datasync();
  } finally {
    await handle.close();
  }
}

/** The head as noted; undefined where there is no note, or a torn one. */
export async function readHead(dir: string, log: string): Promise<ChainHead | undefined> {
  const text = await readFile(join(dir, `${log}.head`), "utf8").catch(() => "");
  const [, seq, sha256] = /^([1-9]\d{0,14}):([0-9a-f]{64}) *\n$/.exec(text) ?? [];
  return seq && sha256 ? { seq: Number(seq), sha256 } : undefined;
}
