/**
 * A console session over MQTT that only its two ends can read: the protocol, and either end of it as a `Channel`.
 *
 * Opening. The person's tool subscribes to `fruit/v1/<site>/<node>/console/<id>/out`, then sends a signed `console.open`
 * whose id is the session's and whose args have `key`: an ephemeral X25519 public key (RFC 7748), base64. The node makes a
 * pair of its own and answers in the command's result with `key`, its public half, and `proof`: an SSHSIG by the node's
 * long-lived key, namespace `fruit-console@v1`, over the SSH strings (RFC 4251 §5)
 *     "fruit-console@v1", site, node, id, fingerprint of the key that signed the command, person's key, node's key.
 * The person's tool checks it against the key it knows the node by. So each side knows the other: the node by the
 * command's signature, the person by the proof; and what either was told is what the other said, or nothing opens.
 * Both compute, with HKDF-SHA-512 (RFC 5869) from the X25519 secret, SHA-512 of those strings as salt, and as info
 * `fruit-console@v1 to node` or `… to person`, one 32-byte key for each direction. An all-zero secret is refused.
 *
 * Frames. `console/<id>/in` leads to the node, `console/<id>/out` to the person; QoS 1, never retained, never kept for later:
 *     frame = number (8 bytes, big-endian, from 1 in each direction) || secretbox (XSalsa20-Poly1305) of the body,
 *             its nonce 16 zero bytes and the number
 *     body  = how much of the other direction was taken so far (6 bytes, big-endian) || a message of channel.ts, or nothing
 * A message counts its bytes and 128 more. Nobody sends a message while 64 KiB and more of theirs are not yet taken: so
 * no broker has to keep more for somebody slow than 64 KiB and one message, in at most 512 frames and one. A body without
 * a message tells of what was taken, or only that its sender is alive. The person speaks first; the node says nothing
 * into a session whose person it has not heard.
 *
 * The end. A side takes exactly the frame with the next number. What came again, is missing, was altered, was retained or
 * belongs nowhere ends the session on both sides, with words that name the frame. So does silence (60 s, 10 s before the
 * first frame; a sign of life every 20 s), and either side's losing its broker. The last message of whoever ends it is `end`.
 *
 * Invariants
 * - Nothing is heard that its sender did not say, and in no other order.
 * - What waits here is bounded, whatever the other side, the broker or the way between do.
 */
import { clip } from "../commands.ts";
import { type Channel, decode, MESSAGE_MAX, type Message, MessageError, pieces } from "./channel.ts";
import { FRAME_OVERHEAD, FrameError, Opener, Sealer } from "./frames.ts";
import { Pulse, type PulseLimits } from "./pulse.ts";
import { PIECE, Unheard, Unsaid } from "./waiting.ts";

const TAKEN_BYTES = 6;
/** What may be on its way and not yet taken, before another message goes. */
const WINDOW = 65_536;
/** What a message costs beside its bytes: brokers count messages, too. */
const MESSAGE_COST = 128;
/** What was taken is told when it is so much, or with whatever is said next. */
const TELL = WINDOW / 4;
/** An honest side never has more on its way: the window, one message, and its last words. */
const MOST_UNHEARD = 3 * WINDOW;
/** Only somebody who does not wait for `send` gets there. */
const MOST_UNSAID = 8 * WINDOW;
/** What had come before the end has this long to be heard, milliseconds. */
const LAST_MS = 1000;
/** Longest frame, bytes. */
export const FRAME_MAX = FRAME_OVERHEAD + TAKEN_BYTES + MESSAGE_MAX;

/** How frames get away: to the topic that leads to the other side. */
export interface Way {
  /** Whether a frame can go out now; `proceed` is called when it can again. */
  readonly hasRoom: boolean;
  /** Sends now; `done` says once that the broker took it, or why it did not. */
  send(frame: Uint8Array, done: (problem?: string) => void): void;
}

/** How long things may take, milliseconds. */
export interface Limits extends PulseLimits {
  /** What was said before the end has this long to get out. */
  closeMs: number;
  /** Bytes that follow others within this time wait for more; the first after a pause go at once. */
  batchMs: number;
}

const LIMITS: Limits = { idleMs: 60_000, openMs: 10_000, signMs: 20_000, closeMs: 2000, batchMs: 10 };

/** What one end is made of. */
export interface SealedOptions {
  keys: { send: Uint8Array; receive: Uint8Array };
  way: Way;
  /** The other side, for people: `node pi1`, `key:alice@desk`. */
  peer: string;
  /** The person's end speaks first; the node's waits for that. */
  isPerson: boolean;
  limits?: Partial<Limits>;
}

/** One end of a sealed session. */
export class SealedChannel implements Channel {
  readonly ended: Promise<string>;
  readonly #resolve: (why: string) => void;
  readonly #options: SealedOptions;
  readonly #limits: Limits;
  readonly #sealer: Sealer;
  readonly #opener: Opener;
  readonly #pulse: Pulse;
  readonly #unsaid = new Unsaid();
  readonly #unheard: Unheard;
  /** What was said so far, and what of it the other side took. */
  #said = 0;
  #saidTaken = 0;
  /** What was taken so far, and what of it the other side knows. */
  #taken = 0;
  #takenTold = 0;
  #mayTalk: boolean;
  #hasTalked = false;
  #batchAt = Number.NEGATIVE_INFINITY;
  #batching: NodeJS.Timeout | undefined;
  #closing: NodeJS.Timeout | undefined;
  #wanted: (() => void)[] = [];
  /** Why it ends, from the first moment that it does: nothing more is said from then on but what waits, and `end`. */
  #why: string | undefined;
  /** We left: nothing more is shown, though still taken. */
  #isDeaf = false;
  /** Nothing more comes: what did come is still heard. */
  #isCut = false;
  #isOver = false;

  constructor(options: SealedOptions) {
    this.#options = options;
    this.#limits = { ...LIMITS, ...options.limits };
    this.#sealer = new Sealer(options.keys.send);
    this.#opener = new Opener(options.keys.receive);
    this.#mayTalk = options.isPerson;
    const { promise, resolve } = Promise.withResolvers<string>();
    this.ended = promise;
    this.#resolve = resolve;
    this.#unheard = new Unheard(
      (cost) => {
        this.#taken += cost;
        this.proceed();
      },
      (error) => this.close(error instanceof Error ? error.message : String(error)),
    );
    const sign = () => {
      if (this.#mayTalk && options.way.hasRoom) this.#say();
    };
    this.#pulse = new Pulse(this.#limits, sign, (seconds) =>
      this.#break(`nothing heard from ${options.peer} for ${seconds} s`),
    );
    this.proceed();
  }

  async send(message: Message): Promise<void> {
    for (const piece of pieces(message, PIECE)) {
      if (this.#why !== undefined) throw new Error(this.#why);
      this.#unsaid.push(piece);
      if (this.#unsaid.bytes > MOST_UNSAID) this.#break(`more than ${MOST_UNSAID} bytes wait to be sent`);
      this.proceed();
      while (!this.#hasRoom && this.#why === undefined)
        await new Promise<void>((resolve) => this.#wanted.push(resolve));
    }
    if (this.#why !== undefined) throw new Error(this.#why);
  }

  receive(heard: (message: Message) => void | Promise<void>): void {
    this.#unheard.receive((message) => {
      if (message.kind === "end") this.lose(message.message);
      else if (!this.#isDeaf) return heard(message);
      return undefined;
    });
  }

  close(message = "the session was left"): void {
    if (this.#why !== undefined) return;
    this.#isDeaf = true;
    // A person who has not spoken yet, and may be about to, is told no more than that.
    if (!this.#mayTalk) this.#unsaid.clear();
    this.#end(message);
  }

  /** Takes a frame that came on the session's topic. */
  hear(frame: Uint8Array): void {
    if (this.#isCut || this.#isOver) return;
    try {
      if (frame.length > FRAME_MAX) throw new FrameError(`what has ${frame.length} bytes is no frame`);
      this.#understand(this.#opener.open(frame));
    } catch (error) {
      if (error instanceof FrameError) this.refuse(error.message);
      else if (error instanceof MessageError)
        this.#break(`${this.#options.peer} speaks no console: ${error.message}`);
      else throw error;
    }
  }

  /** Ends it for a frame that should not have come; `what` names it. */
  refuse(what: string): void {
    const { peer } = this.#options;
    this.#break(
      `${what} (from ${peer}): something on the way loses or forges what travels, so the session is over`,
    );
  }

  /** Ends it where nothing more can be said; what did come is still heard. */
  lose(why: string): void {
    this.#why ??= why;
    this.#isCut = true;
    this.#unsaid.clear();
    this.#wake();
    const timer = setTimeout(() => this.#finish(), LAST_MS);
    void this.#unheard.quiet().then(() => {
      clearTimeout(timer);
      this.#finish();
    });
  }

  /** Says all that can be said now; to be called when there is room on the way again. */
  proceed(): void {
    if (this.#isOver || !this.#mayTalk) return;
    const { way } = this.#options;
    // Last words need no room at the other side
    while (way.hasRoom && (this.#isCut || this.#onItsWay < WINDOW) && !this.#isGathering()) {
      const next = this.#unsaid.shift();
      if (!next) break;
      this.#say(next.encoded, this.#why !== undefined && this.#unsaid.isEmpty);
      if (next.isBytes) this.#batchAt = performance.now();
    }
    const isNews = !this.#hasTalked || this.#taken - this.#takenTold >= TELL;
    if (isNews && way.hasRoom) this.#say();
    if (this.#hasRoom) this.#wake();
  }

  get #onItsWay(): number {
    return this.#said - this.#saidTaken;
  }

  get #hasRoom(): boolean {
    return this.#unsaid.bytes + this.#onItsWay < WINDOW;
  }

  /** Whether a few bytes that follow others closely wait for more to go with them. */
  #isGathering(): boolean {
    if (!this.#unsaid.isThin) return false;
    const leftMs = this.#batchAt + this.#limits.batchMs - performance.now();
    if (leftMs <= 0) return false;
    this.#batching ??= setTimeout(() => {
      this.#batching = undefined;
      this.proceed();
    }, leftMs);
    return true;
  }

  #say(message: Uint8Array = new Uint8Array(), isLast = false): void {
    const body = Buffer.alloc(TAKEN_BYTES + message.length);
    body.writeUIntBE(this.#taken, 0, TAKEN_BYTES);
    body.set(message, TAKEN_BYTES);
    this.#takenTold = this.#taken;
    this.#hasTalked = true;
    this.#pulse.said();
    if (message.length > 0) this.#said += message.length + MESSAGE_COST;
    this.#options.way.send(this.#sealer.seal(body), (problem) => {
      if (isLast || problem !== undefined) this.lose(problem ?? "the session ended");
    });
  }

  #understand(body: Uint8Array): void {
    if (body.length < TAKEN_BYTES) throw new MessageError(`a body of ${body.length} bytes`);
    const taken = Buffer.from(body.buffer, body.byteOffset, TAKEN_BYTES).readUIntBE(0, TAKEN_BYTES);
    if (taken < this.#saidTaken || taken > this.#said)
      throw new MessageError(`it took ${taken} of ${this.#said}, after ${this.#saidTaken}`);
    this.#saidTaken = taken;
    this.#pulse.heard();
    this.#mayTalk = true;
    if (body.length > TAKEN_BYTES) {
      const message = body.subarray(TAKEN_BYTES);
      this.#unheard.push(decode(message), message.length + MESSAGE_COST);
      if (this.#unheard.cost > MOST_UNHEARD)
        throw new MessageError(`${this.#unheard.cost} bytes are on their way, of at most ${WINDOW}`);
    }
    this.proceed();
  }

  /** Says the last words after what waits; they have a moment to get out. */
  #end(why: string): void {
    this.#why ??= why;
    this.#unsaid.push({ kind: "end", message: clip(this.#why, 500) });
    this.#closing ??= setTimeout(() => {
      this.#break(why);
      this.#finish();
    }, this.#limits.closeMs);
    this.proceed();
    this.#wake();
  }

  /** Hears nothing more, and says nothing but the last words. */
  #break(why: string): void {
    if (this.#isCut) return;
    this.#isCut = true;
    this.#mayTalk = true;
    this.#unsaid.clear();
    this.#end(why);
  }

  #finish(): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#pulse.stop();
    clearTimeout(this.#closing);
    clearTimeout(this.#batching);
    this.#unsaid.clear();
    this.#unheard.clear();
    this.#wake();
    this.#resolve(this.#why ?? "the session ended");
  }

  #wake(): void {
    for (const resolve of this.#wanted.splice(0)) resolve();
  }
}
