/** QEMU's monitor (QMP): devices plugged in and pulled out, the tree of what the machine is made of. */

import { within } from "./limits.ts";
import type { Line } from "./line.ts";

interface Word {
  QMP?: unknown;
  id?: number;
  return?: unknown;
  error?: { desc: string };
  event?: string;
  data?: { device?: string };
}

/** One question at a time or many: answers are told by their number. */
export class Monitor {
  readonly line: Line;
  /** Devices that have left the machine. */
  readonly deleted = new Set<string>();
  /** Questions that have no answer yet. */
  readonly #asked = new Map<number, (word: Word) => void>();
  readonly #greeting = Promise.withResolvers<void>();
  #questions = 0;
  #rest = "";

  constructor(line: Line) {
    this.line = line;
    line.read((chunk) => {
      const lines = (this.#rest + chunk.toString()).split("\n");
      this.#rest = lines.pop() ?? "";
      for (const text of lines) this.#hear(JSON.parse(text));
    });
  }

  /** Asks for something; throws with QEMU's words when it refuses. */
  async ask(execute: string, args: Record<string, unknown> = {}): Promise<unknown> {
    await within("the monitor's greeting", this.#greeting.promise);
    const id = ++this.#questions;
    const { promise, resolve } = Promise.withResolvers<Word>();
    this.#asked.set(id, resolve);
    this.line.write(`${JSON.stringify({ execute, arguments: args, id })}\n`);
    const { error, return: answer } = await within(execute, promise);
    if (error) throw new Error(`${execute} ${JSON.stringify(args)}: ${error.desc}`);
    return answer;
  }

  /** A register or a word of memory, by its physical address: what the hardware was told, whatever a driver says. */
  async word(address: number): Promise<number> {
    const words = { "command-line": `xp /1wx 0x${address.toString(16)}` };
    const [, value] = /: (0x[0-9a-f]+)/.exec(String(await this.ask("human-monitor-command", words))) ?? [];
    if (value === undefined) throw new Error(`nothing to read at 0x${address.toString(16)}`);
    return Number(value);
  }

  /** Every device of the machine: its place in QEMU's tree and its type. */
  async devices(): Promise<{ path: string; type: string }[]> {
    const found: { path: string; type: string }[] = [];
    const walk = async (path: string) => {
      const parts = (await this.ask("qom-list", { path })) as { name: string; type: string }[];
      for (const { name, type } of parts) {
        const [, child] = /^child<(.*)>$/.exec(type) ?? [];
        if (child === undefined || child.includes("memory-region")) continue;
        found.push({ path: `${path}/${name}`, type: child });
        await walk(`${path}/${name}`);
      }
    };
    await walk("/machine");
    return found;
  }

  #hear(word: Word): void {
    if (word.QMP) {
      // Nothing may be asked before this.
      this.line.write(`{"execute": "qmp_capabilities"}\n`);
      this.#greeting.resolve();
    }
    if (word.event === "DEVICE_DELETED" && word.data?.device) this.deleted.add(word.data.device);
    if (word.id === undefined) return;
    this.#asked.get(word.id)?.(word);
    this.#asked.delete(word.id);
  }
}
