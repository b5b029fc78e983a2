import { type FileHandle, open, readFile } from "node:fs/promises";
import { dirname } from "node:path";

/** Opens a file for appending; a test's may fail where a full disk does. */
export type OpenFile = (path: string, flags: "a", mode: number) => Promise<FileHandle>;

const NEWLINE = 0x0a;

/**
 * A file of lines that only grows. A line is there whole or not at all: what a full disk or a failed flush leaves of
 * one is cut off again, at the latest before the next. Callers append one after the other, and close it: a handle that
 * is merely forgotten ends the process when it is collected.
 */
export class LineFile {
  readonly #handle: FileHandle;
  #size: number;
  #isTorn = false;

  private constructor(handle: FileHandle, size: number) {
    this.#handle = handle;
    this.#size = size;
  }

  /** Opens or makes the file (0600); its name is on the disk when this resolves. */
  static async open(path: string, openFile: OpenFile = open): Promise<LineFile> {
    const handle = await openFile(path, "a", 0o600);
    try {
      const { size } = await handle.stat();
      if (size === 0) await syncDirectory(dirname(path));
      return new LineFile(handle, size);
    } catch (cause) {
      await handle.close();
      throw cause;
    }
  }

  /** Bytes in the file. */
  get size(): number {
    return this.#size;
  }

  /** Adds a line; when `durable` it is on the disk afterwards. Throws what the system says, and the file is as before. */
  async append(line: string, durable: boolean): Promise<void> {
    const bytes = Buffer.from(`${line}\n`);
    if (this.#isTorn) await this.#cut();
    this.#isTorn = true;
    try {
      // One write; a second one only where the first was cut short, to learn the reason.
      for (let at = 0; at < bytes.length; ) at += (await this.#handle.write(bytes.subarray(at))).bytesWritten;
      if (durable) await this.#handle.datasync();
    } catch (cause) {
      await this.#cut().catch(() => undefined); // still torn: the next append begins with it
      throw cause;
    }
    this.#isTorn = false;
    this.#size += bytes.length;
  }

  sync(): Promise<void> {
    return this.#handle.datasync();
  }

  close(): Promise<void> {
    return this.#handle.close();
  }

  async #cut(): Promise<void> {
    await this.#handle.truncate(this.#size);
    this.#isTorn = false;
  }
}

/** The whole lines of a file, and what stands after the last newline; nothing of a file that does not exist. */
export async function readLines(path: string): Promise<{ lines: Buffer[]; rest: Buffer }> {
  let bytes: Buffer;
  try {
    bytes = await readFile(path);
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code !== "ENOENT") throw cause;
    bytes = Buffer.alloc(0);
  }
  const lines: Buffer[] = [];
  let from = 0;
  for (let to = bytes.indexOf(NEWLINE); to >= 0; to = bytes.indexOf(NEWLINE, from)) {
    lines.push(bytes.subarray(from, to));
    from = to + 1;
  }
  return { lines, rest: bytes.subarray(from) };
}

/** Makes new and renamed names of a directory last through a power cut. */
export async function syncDirectory(path: string): Promise<void> {
  const directory = await open(path, "r");
  try {
    await directory.sync();
  } finally {
    await directory.close();
  }
}

/** Why the system refused, for a person: `ENOSPC: no space left on device, write`. */
export function reasonOf(cause: unknown): string {
  return cause instanceof Error ? cause.message : String(cause);
}
