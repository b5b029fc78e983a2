/**
 * A program on a console's TCP port: what it sends goes to the line in its order, what the line says goes to it while it reads.
 *
 * Invariants
 * - What waits for the line is bounded: a program that sends faster, or asks and does not read the answers, is not read from.
 * - Nobody stays who has left: while a line takes nothing it cannot be seen whether somebody who waits is still there (Bun hides the end
 *   of a paused socket), so they are hung up on after a while; what somebody who left has sent still goes out as long as the line takes it.
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
/** Typed bytes go to the line in pieces of this many, so that it can be seen whether it takes any. */
const PIECE = 256;
/** How long a line may take nothing while somebody waits for it, and while somebody who has left does. */
const STUCK_MS = 10_000;
const LAST_MS = 1000;
/** A program that has said all it wants to (`nc -N`) still gets the answer: until the line is quiet for so long, and no longer than this. */
const ANSWER_MS = { quiet: 500, most: 5000 };
/**
 * A web page can make a browser send this to any port; typed into a root shell its lines would be commands. The first bytes tell
 * (RFC 9112 §3: method, space, path; RFC 8446 §5.1: handshake, version 3), as an address may be longer than what comes at once.
 */
const HTTP = /^[A-Z]{3,7} \//;
const TLS = "\x16\x03";
/** What may become that is held until it is clear what it is, or for a moment: a person types slowly, a browser does not. */
const MAYBE_HTTP = /^(?:[A-Z]{1,7}|[A-Z]{3,7} )$/;
const MEET_MS = 200;

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
  readonly #stuckMs: number;
  #attachment: Attachment | undefined;
  /** The last of the jobs that wait for the line, and the weight of all of them. */
  #last: Promise<unknown> = Promise.resolve();
  #waiting = 0;
  /** What came first, until it is clear who it is. */
  #greeting: Buffer | undefined = Buffer.alloc(0);
  #meeting: NodeJS.Timeout | undefined;
  /** Goes off when the line has taken nothing for too long. */
  #stuck: NodeJS.Timeout | undefined;
  /** Goes off when a program that says no more has had its answer. */
  #answered: NodeJS.Timeout | undefined;
  #isDropped = false;
  #refused: string | undefined;

  constructor(
    socket: Socket,
    console: Console,
    { who, log, stuckMs = STUCK_MS }: { who: string; log: Log; stuckMs?: number | undefined },
  ) {
    this.#socket = socket;
    this.#console = console;
    this.#who = who;
    this.#log = log;
    this.#stuckMs = stuckMs;
  }

  /** Attaches it and serves it until it leaves or is sent away. */
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
    const meet = () => this.#meet(speech);
    socket.on("data", (chunk: Buffer) => {
      if (socket.destroyed) return;
      if (this.#greeting === undefined) return speech.heard(chunk);
      this.#greeting = Buffer.concat([this.#greeting, chunk]);
      if (this.#isWelcome(this.#greeting.toString("latin1", 0, 16))) return meet();
      this.#meeting ??= setTimeout(meet, MEET_MS);
    });
    socket.once("end", () => {
      meet();
      if (socket.allowHalfOpen) void this.#answer();
    });
    socket.once("close", () => {
      clearTimeout(this.#meeting);
      speech.end?.();
      void this.#leave();
    });
    speech.begin?.();
  }

  /** False when there is no room for more until `drained`. */
  send(bytes: Uint8Array): boolean {
    this.#answered?.refresh();
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
    if (this.#waiting > WAITING_MAX && !socket.isPaused()) {
      socket.pause();
      this.#watch(this.#stuckMs, () => {
        this.#say(`nothing was taken for ${this.#stuckMs / 1000} s`);
        socket.destroy();
      });
    }
    this.#last = this.#last
      .then(() => (this.#isDropped ? undefined : job()))
      .finally(() => {
        this.#waiting -= weight;
        this.#stuck?.refresh();
        if (this.#waiting > WAITING_MAX || socket.destroyed || !socket.isPaused()) return;
        this.#unwatch();
        socket.resume();
      });
  }

  /** Types bytes in their turn. */
  type(bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length; at += PIECE) {
      const piece = bytes.subarray(at, at + PIECE);
      this.later(piece.length, () => this.try((attachment) => attachment.write(piece)));
    }
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

  /** Whether it is clear from its first bytes that it may stay. */
  #isWelcome(greeting: string): boolean {
    const isBrowser = HTTP.test(greeting) || greeting.startsWith(TLS);
    if (!isBrowser) return !MAYBE_HTTP.test(greeting) && !TLS.startsWith(greeting);
    this.#greeting = Buffer.alloc(0);
    this.#say("a web browser is no program for a console and was hung up on");
    this.#socket.destroy();
    return false;
  }

  /** Hears what was held, and from now on all at once. */
  #meet(speech: Speech): void {
    clearTimeout(this.#meeting);
    const said = this.#greeting ?? Buffer.alloc(0);
    this.#greeting = undefined;
    if (said.length > 0) speech.heard(said);
  }

  /** Ends the conversation with one who only listens now. */
  async #answer(): Promise<void> {
    const socket = this.#socket;
    const end = () => void socket.end();
    const most = setTimeout(end, ANSWER_MS.most);
    socket.once("close", () => {
      clearTimeout(most);
      clearTimeout(this.#answered);
    });
    await this.#last;
    if (!socket.destroyed) this.#answered = setTimeout(end, ANSWER_MS.quiet);
  }

  /** What was said before goodbye still goes out, while the line takes it. */
  async #leave(): Promise<void> {
    const isStuck = new Promise<void>((resolve) => this.#watch(LAST_MS, resolve));
    await Promise.race([this.#last, isStuck]);
    this.#unwatch();
    this.#isDropped = true;
    this.#attachment?.detach();
  }

  #watch(ms: number, stuck: () => void): void {
    clearTimeout(this.#stuck);
    this.#stuck = setTimeout(stuck, ms);
  }

  #unwatch(): void {
    clearTimeout(this.#stuck);
    this.#stuck = undefined;
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
