/** A Unix socket that the emulator connects to when it starts: one of the machine's lines, seen from outside. */
import { createServer, type Server, type Socket } from "node:net";
import { until } from "../node.ts";
import { LIMITS } from "./limits.ts";

/** The most of what a line said that is kept, bytes. */
const KEPT_BYTES = 1024 * 1024;

/** One line with everything that was said on it. */
export class Line implements Disposable {
  readonly path: string;
  readonly #server: Server;
  #socket: Socket | undefined;
  #heard = Buffer.alloc(0);
  #reader: ((chunk: Buffer) => void) | undefined;

  private constructor(path: string) {
    this.path = path;
    this.#server = createServer((socket) => {
      this.#socket = socket;
      socket.on("data", (chunk: Buffer) => {
        this.#heard = Buffer.concat([this.#heard, chunk]).subarray(-KEPT_BYTES);
        this.#reader?.(chunk);
      });
      socket.on("error", () => socket.destroy());
    });
  }

  /** Listens on `path`; resolves when something may connect. */
  static async on(path: string): Promise<Line> {
    const line = new Line(path);
    await new Promise<void>((resolve, reject) => {
      line.#server.once("error", reject);
      line.#server.listen(path, resolve);
    });
    return line;
  }

  /** All that was heard, as text. */
  get text(): string {
    return this.#heard.toString();
  }

  get heard(): Buffer {
    return this.#heard;
  }

  /** What was heard is forgotten. */
  forget(): void {
    this.#heard = Buffer.alloc(0);
  }

  /** Hands what was heard and every further chunk to `reader` too; undefined ends that. */
  read(reader: ((chunk: Buffer) => void) | undefined): void {
    this.#reader = reader;
    if (this.#heard.length > 0) reader?.(this.#heard);
  }

  write(bytes: string | Uint8Array): void {
    if (!this.#socket?.writable) throw new Error(`${this.path}: nobody is connected`);
    this.#socket.write(bytes);
  }

  /** Waits until what was heard matches; returns the match. */
  waitFor(what: RegExp, limitMs = LIMITS.event): Promise<RegExpExecArray> {
    return until(`${what} on ${this.path}`, () => what.exec(this.text) ?? undefined, limitMs);
  }

  [Symbol.dispose](): void {
    this.#socket?.destroy();
    this.#server.close();
  }
}
