/** What an install remembers from one run to the next: which leaves of which release it believes to be in the slot. */
import { mkdir, open, readFile, rename, rm } from "node:fs/promises";
import { dirname, join } from "node:path";
import { SLOTS, type SlotName } from "./layout.ts";

/** An install that is not over. */
export interface Installing {
  slot: SlotName;
  /** Of the release; another one begins anew. */
  infohash: string;
  /** Its content hash, hex. */
  root: string;
  size: number;
  /** One bit a leaf, the first leaf in the lowest bit. A hint only: each is hashed again before it counts. */
  done: Uint8Array;
}

/** Where an install keeps its progress. `save` replaces what was there, whole or not at all. */
export interface ProgressStore {
  /** Undefined where there is none, or none that can be read. */
  load(): Promise<Installing | undefined>;
  save(installing: Installing): Promise<void>;
  clear(): Promise<void>;
}

const SCHEMA = "fruit.boot.writing/1";

/** Progress in `boot/writing.json` of a data folder. */
export function fileProgress(dataDir: string): ProgressStore {
  const file = join(dataDir, "boot/writing.json");
  return {
    load: async () => parse(await readFile(file, "utf8").catch(() => "")),
    save: async ({ done, ...rest }) => {
      await mkdir(dirname(file), { recursive: true, mode: 0o700 });
      const document = { schema: SCHEMA, ...rest, done: Buffer.from(done).toString("base64") };
      await replaceFile(file, `${JSON.stringify(document)}\n`);
    },
    clear: () => rm(file, { force: true }),
  };
}

/** Replaces a file whole: a power cut leaves the old or the new one. */
export async function replaceFile(path: string, content: string | Uint8Array): Promise<void> {
  const fresh = `${path}.new`;
  const handle = await open(fresh, "w", 0o600);
  try {
    await handle.writeFile(content);
    await handle.sync();
  } finally {
    await handle.close();
  }
  await rename(fresh, path);
  const folder = await open(dirname(path), "r");
  try {
    await folder.sync();
  } finally {
    await folder.close();
  }
}

function parse(text: string): Installing | undefined {
  try {
    const { schema, slot, infohash, root, size, done } = JSON.parse(text);
    const isSound =
      schema === SCHEMA &&
      SLOTS.includes(slot) &&
      Number.isSafeInteger(size) &&
      [infohash, root, done].every((word) => typeof word === "string");
    return isSound ? { slot, infohash, root, size, done: Buffer.from(done, "base64") } : undefined;
  } catch {
    return undefined;
  }
}

/** Which of a number of things are so, one bit each. */
export class Bits {
  readonly bytes: Uint8Array;
  readonly length: number;
  #count = 0;

  constructor(length: number) {
    this.length = length;
    this.bytes = new Uint8Array(Math.ceil(length / 8));
  }

  /** How many are. */
  get count(): number {
    return this.#count;
  }

  has(index: number): boolean {
    return ((this.bytes[index >> 3] ?? 0) & (1 << (index & 7))) !== 0;
  }

  add(index: number): void {
    if (this.has(index)) return;
    this.bytes[index >> 3] = (this.bytes[index >> 3] ?? 0) | (1 << (index & 7));
    this.#count++;
  }

  delete(index: number): void {
    if (!this.has(index)) return;
    this.bytes[index >> 3] = (this.bytes[index >> 3] ?? 0) & ~(1 << (index & 7));
    this.#count--;
  }
}
