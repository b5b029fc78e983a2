/**
 * A channel on a Unix socket: the way of the local door, used by both of its ends.
 *
 * Each message heard is acknowledged (type 0, 4 bytes: its length, big-endian), and at most `WINDOW` bytes are under way
 * unacknowledged. The kernel's buffers are not trusted with this: Bun takes 230 KiB of a paused socket and then notices
 * neither its end nor a killed peer, and at 9600 baud that much is four minutes of typing.
 *
 * Invariants
 * - Memory: a window in each direction. Whoever sends more than that is cut off.
 * - Whatever ends it, `ended` resolves, at most `LAST_MS` after the other side has gone.
 */
import type { Socket } from "node:net";
import { type Channel, decode, encode, MESSAGE_MAX, type Message, MessageError, pieces } from "./channel.ts";

/** Bytes under way in one direction. A longer message travels alone. */
const WINDOW = 16_384;
const PIECE = 4096;
/** Last words, and what had come before the other side left, have this long. */
const LAST_MS = 1000;
const LOST = "the connection was lost";
const HEAD = 4;
/** What may wait for the other side to read it: our own window and its acknowledgements, with room to spare. */
const MOST_UNREAD = 2 * (WINDOW + MESSAGE_MAX);
const TAKEN = 0;

/** Makes a channel of a connected socket, which is its own from now on; `rest` is what was read of it already. */
export function streamChannel(socket: Socket, rest: Uint8Array = new Uint8Array()): Channel {
  return new StreamChannel(socket, rest);
}

type Heard = (message: Message) => void | Promise<void>;

class StreamChannel implements Channel {
  readonly ended: Promise<string>;
  readonly #socket: Socket;
  readonly #resolve: (why: string) => void;
  readonly #frames = new Frames();
  readonly #unheard: { message: Message; size: number }[] = [];
  #unheardBytes = 0;
  #heard: Heard | undefined;
  #isHearing = false;
  #underWay = 0;
  #onRoom: () => void = () => undefined;
  #sent: Promise<void> = Promise.resolve();
  /** Why it ends, from the first moment that it does. */
  #why: string | undefined;
  #isDeaf = false;

  constructor(socket: Socket, rest: Uint8Array) {
    this.#socket = socket;
    const { promise, resolve } = Promise.withResolvers<string>();
    this.ended = promise;
    this.#resolve = resolve;
    // Whether it was reset, broke, or just ended depends on who was speaking when the other side went
    socket.on("error", () => this.#left(LOST));
    socket.once("close", () => this.#left(LOST));
    if (socket.destroyed) this.#left(LOST);
    this.#arrived(rest);
    socket.on("data", (chunk: Uint8Array) => this.#arrived(chunk));
    // It may have been paused while it changed hands
    socket.resume();
  }

  /** In the order of the calls, whether or not they are waited for. */
  send(message: Message): Promise<void> {
    const sent = this.#sent.then(() => this.#send(message));
    this.#sent = sent.catch(() => undefined);
    return sent;
  }

  receive(heard: Heard): void {
    this.#heard = heard;
    void this.#hear();
  }

  close(message?: string): void {
    if (this.#isDeaf) return;
    if (message !== undefined && this.#why === undefined) this.#write(encode({ kind: "end", message }));
    this.#finish(message ?? "it was left");
  }

  async #send(message: Message): Promise<void> {
    for (const piece of pieces(message, PIECE)) {
      const bytes = encode(piece);
      while (this.#why === undefined && this.#underWay > 0 && this.#underWay + bytes.length > WINDOW)
        await new Promise<void>((resolve) => {
          this.#onRoom = resolve;
        });
      if (this.#why !== undefined) throw new Error(this.#why);
      this.#underWay += bytes.length;
      this.#write(bytes);
    }
  }

  #write(bytes: Uint8Array): void {
    const frame = Buffer.allocUnsafe(HEAD + bytes.length);
    frame.writeUInt32BE(bytes.length);
    frame.set(bytes, HEAD);
    this.#socket.write(frame);
  }

  /** Throws `MessageError` where acknowledgements pile up because they are never read. */
  #acknowledge(size: number): void {
    if (this.#why !== undefined) return;
    const bytes = Buffer.alloc(5, TAKEN);
    bytes.writeUInt32BE(size, 1);
    this.#write(bytes);
    if (this.#socket.writableLength > MOST_UNREAD)
      throw new MessageError(`${this.#socket.writableLength} bytes are not read`);
  }

  #arrived(chunk: Uint8Array): void {
    try {
      for (const bytes of this.#frames.push(chunk)) {
        if (this.#why !== undefined) return;
        if (bytes[0] === TAKEN && bytes.length === 5) {
          this.#taken(bytes.readUInt32BE(1));
          continue;
        }
        const message = decode(bytes);
        if (message?.kind === "end") this.#left(message.message);
        else if (message) this.#keep(message, bytes.length);
        else this.#acknowledge(bytes.length);
      }
    } catch (error) {
      if (!(error instanceof MessageError)) throw error;
      this.close(`what came is no console: ${error.message}`);
    }
  }

  #taken(size: number): void {
    this.#underWay = Math.max(0, this.#underWay - size);
    this.#onRoom();
  }

  #keep(message: Message, size: number): void {
    this.#unheard.push({ message, size });
    this.#unheardBytes += size;
    if (this.#unheardBytes + this.#socket.writableLength > MOST_UNREAD)
      throw new MessageError(`more than the ${WINDOW} bytes that there was room for`);
    void this.#hear();
  }

  /** Hands over what has come, one by one. */
  async #hear(): Promise<void> {
    if (!this.#heard || this.#isHearing) return;
    this.#isHearing = true;
    try {
      for (let next = this.#unheard[0]; next && !this.#isDeaf; next = this.#unheard[0]) {
        await this.#heard(next.message);
        this.#unheard.shift();
        this.#unheardBytes -= next.size;
        this.#acknowledge(next.size);
      }
    } catch (error) {
      this.close(error instanceof Error ? error.message : String(error));
    }
    this.#isHearing = false;
    if (this.#why !== undefined) this.#finish(this.#why);
  }

  /** The other side is gone: what it said before is still heard. */
  #left(why: string): void {
    if (this.#why !== undefined) return;
    this.#why = why;
    this.#onRoom();
    if (this.#unheard.length === 0) this.#finish(why);
    else setTimeout(() => this.#finish(why), LAST_MS);
  }

  /** Nothing is heard any more; what was written before has a moment to get out. */
  #finish(why: string): void {
    if (this.#isDeaf) return;
    this.#isDeaf = true;
    this.#why ??= why;
    this.#onRoom();
    const { promise, resolve } = Promise.withResolvers<void>();
    if (this.#socket.destroyed) resolve();
    else this.#socket.once("close", resolve);
    const timer = setTimeout(() => this.#socket.destroy(), LAST_MS);
    void promise.then(() => {
      clearTimeout(timer);
      this.#resolve(why);
    });
    // Read and forgotten: what stays unread would reset the connection and throw the last words away
    this.#socket.resume();
    this.#socket.end();
  }
}

/** Cuts a stream into messages, however its bytes arrive. Each has memory of its own. */
export class Frames {
  #part = Buffer.alloc(HEAD);
  #filled = 0;
  #isBody = false;

  /** The messages that these bytes complete. Throws `MessageError` where no message can be so long. */
  *push(chunk: Uint8Array): Generator<Buffer> {
    for (let at = 0; at < chunk.length; ) {
      const taken = chunk.subarray(at, at + this.#part.length - this.#filled);
      this.#part.set(taken, this.#filled);
      this.#filled += taken.length;
      at += taken.length;
      if (this.#filled < this.#part.length) return;
      const whole = this.#part;
      this.#filled = 0;
      this.#part = Buffer.alloc(this.#isBody ? HEAD : lengthIn(whole));
      this.#isBody = !this.#isBody;
      if (!this.#isBody) yield whole;
    }
  }
}

function lengthIn(head: Buffer): number {
  const length = head.readUInt32BE();
  if (length > 0 && length <= MESSAGE_MAX) return length;
  throw new MessageError(`a message of ${length} bytes: there are 1 to ${MESSAGE_MAX}`);
}
