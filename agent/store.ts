import { mkdirSync, readFileSync, renameSync } from "node:fs";
import { open, rename } from "node:fs/promises";
import { join } from "node:path";
import * as v from "valibot";
import type { Log } from "./log.ts";
import { syncDirectory } from "./record/lines.ts";

/**
 * Small documents that outlive a restart, one JSON file each.
 * A document is replaced whole: temporary file, flush, rename; a power cut leaves the old or the new one.
 * One that cannot be read is moved aside as `<name>.bad` and the fallback is used, so that a torn file never stops a node.
 */
export class Store {
  readonly #dir: string;
  readonly #log: Log;
  /** Documents that could not be read and are left alone. */
  readonly #spared = new Set<string>();
  readonly #writing = new Map<string, Promise<void>>();

  constructor(dir: string, log: Log) {
    mkdirSync(dir, { recursive: true, mode: 0o700 });
    this.#dir = dir;
    this.#log = log;
  }

  load<Schema extends v.GenericSchema>(
    name: string,
    schema: Schema,
    fallback: v.InferOutput<Schema>,
  ): v.InferOutput<Schema> {
    const file = join(this.#dir, `${name}.json`);
    let text: string;
    try {
      text = readFileSync(file, "utf8");
    } catch (cause) {
      if ((cause as NodeJS.ErrnoException).code !== "ENOENT") {
        // It is there and may be good: this run does without it, and does not write over it.
        this.#spared.add(name);
        this.#log("error", "store.unreadable", { file, error: String(cause) });
      }
      return fallback;
    }
    try {
      return v.parse(schema, JSON.parse(text));
    } catch (cause) {
      renameSync(file, `${file}.bad`);
      this.#log("error", "store.unreadable", { file, moved: `${file}.bad`, error: String(cause) });
      return fallback;
    }
  }

  /** Resolves when the document is on the disk. Saves of one name happen in the order they were asked for. */
  async save(name: string, document: unknown): Promise<void> {
    if (this.#spared.has(name)) return;
    const text = `${JSON.stringify(document)}\n`;
    const before = this.#writing.get(name) ?? Promise.resolve();
    const writing = before.catch(() => undefined).then(() => this.#replace(name, text));
    this.#writing.set(name, writing);
    await writing;
  }

  async #replace(name: string, text: string): Promise<void> {
    const file = join(this.#dir, `${name}.json`);
    const temporary = `${file}.new`;
    const handle = await open(temporary, "w", 0o600);
    try {
      await handle.writeFile(text);
      await handle.sync();
    } finally {
      await handle.close();
    }
    await rename(temporary, file);
    await syncDirectory(this.#dir);
  }
}
