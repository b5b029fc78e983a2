/**
 * A program on a console's TCP port: what it sends goes to the line in its order, what the line says goes to it while it reads.
 *
 * Invariants
 * - What waits for the line is bounded: a program that sends faster, or asks and does not read the answers, is not read from.
 * - What may not be written is read and forgotten, and said once.
 */
import type { Socket } from "node:net";
import type { Log } from "../log.ts";
import { reasonOf } from "../record/lines.ts";
import type { Attachment, Console, Item } from "./port.ts";

/** What may wait for the line, bytes, before a program has to. */
export const WAITING_MAX = 65_536;
const KEEPALIVE_MS = 15_000;
/** Whoever was let go has this long to read the rest. */
const LINGER_MS = 1000;
/** A web page can make a browser send this to any port; typed into a root shell its lines would be commands. */
const BROWSER = /^[A-Z]{3,7} \S* HTTP\/1\.[01]\r\n/;

/** What is spoken on a port, beside the bytes of the line. */
export interface Speech {
  /** Somebody is there. */
  begin?(): void;
  heard(chunk: Uint8Array): void;
  take(item: Item): Promise<void>;
  /** Nobody is there any more. */
  end?(): void;
}

/** One program. */
export class Client {
  readonly #socket: Socket;
  readonly #console: Console;
  readonly #who: string;
  readonly #log: Log;
  #attachment: Attachment | undefined;
  /** The last of the jobs that wait for the line, and the weight of all of them. */
  #last: Promise<unknown> = Promise.resolve();
  #waiting = 0;
  #isMet = false;
  #refused: string | undefined;

  constructor(socket: Socket, console: Console, who: string, log: Log) {
    this.#socket = socket;
    this.#console = console;
    this.#who = who;
    this.#log = log;
  }

  /** Attaches it, to write if nobody does, and serves it until it leaves or is sent away. */
  serve(door: "raw" | "rfc2217", speech: Speech): void {
    const socket = this.#socket;
    socket.setNoDelay(true);
    socket.setKeepAlive(true, KEEPALIVE_MS);
    try {
      this.#attachment = this.#console.attach({
        who: this.#who,
        door,
        wants: "write",
        replayLines: 0,
        take: (item) => speech.take(item),
        ended: (why) => this.#hangUp(why),
      });
    } catch (error) {
      this.#say(reasonOf(error));
      socket.destroy();
      return;
    }
    socket.on("data", (chunk: Buffer) => {
      if (this.#isWelcome(chunk)) speech.heard(chunk);
    });
    socket.once("close", () => {
      speech.end?.();
      // What was said before goodbye still goes out.
      void this.#last.then(() => this.#attachment?.detach());
    });
    speech.begin?.();
  }

  /** False when there is no room for more until `drained`. */
  send(bytes: Uint8Array): boolean {
    return this.#socket.destroyed || this.#socket.write(bytes);
  }

  /** Resolves when there is room again, or nobody to need it. */
  drained(): Promise<void> {
    const socket = this.#socket;
    return new Promise((resolve) => {
      const done = () => {
        socket.off("drain", done);
        socket.off("close", done);
        resolve();
      };
      socket.once("drain", done);
      socket.once("close", done);
      if (socket.destroyed) done();
    });
  }

  /** Does something, which must not reject, after all that waits already; while too much does, nothing more is read. */
  later(weight: number, job: () => unknown): void {
    const socket = this.#socket;
    this.#waiting += weight;
    if (this.#waiting > WAITING_MAX) socket.pause();
    this.#last = this.#last.then(job).finally(() => {
      this.#waiting -= weight;
      if (this.#waiting <= WAITING_MAX && socket.isPaused()) socket.resume();
    });
  }

  /** Types bytes in their turn. */
  type(bytes: Uint8Array): void {
    this.later(bytes.length, () => this.try((attachment) => attachment.write(bytes)));
  }

  /** Does what only the writer may. False where that was refused or the line is gone. */
  async try(act: (attachment: Attachment) => Promise<void>): Promise<boolean> {
    if (!this.#attachment) return false;
    try {
      await act(this.#attachment);
      this.#refused = undefined;
      return true;
    } catch (error) {
      this.#say(reasonOf(error));
      return false;
    }
  }

  #isWelcome(chunk: Buffer): boolean {
    if (!this.#isMet && BROWSER.test(chunk.toString("latin1", 0, 1024))) {
      this.#say("a web browser is no program for a console and was hung up on");
      this.#socket.destroy();
      return false;
    }
    this.#isMet = true;
    return true;
  }

  #say(message: string): void {
    if (message === this.#refused) return;
    this.#refused = message;
    this.#log("info", "console.refused", { console: this.#console.name, who: this.#who, message });
  }

  #hangUp(why: string): void {
    this.#log("info", "console.let-go", { console: this.#console.name, who: this.#who, why });
    const socket = this.#socket;
    socket.end();
    const timer = setTimeout(() => socket.destroy(), LINGER_MS);
    socket.once("close", () => clearTimeout(timer));
  }
}
