/** What waits at the two ends of a sealed session: messages to be said, and messages to be heard. */
import { encode, type Message } from "./channel.ts";

/** Bytes of one message: more of them wait for the next. */
export const PIECE = 4096;
/** Bytes that came from the line at most this much later, milliseconds, travel under one date. */
const SAME_MOMENT_MS = 100;

type Bytes = Extract<Message, { kind: "bytes" }>;

/** Messages to be said; bytes that follow bytes become one message with them. */
export class Unsaid {
  readonly #waiting: (Bytes | Uint8Array)[] = [];
  #bytes = 0;

  /** What it holds, bytes. */
  get bytes(): number {
    return this.#bytes;
  }

  get isEmpty(): boolean {
    return this.#waiting.length === 0;
  }

  /** Nothing but a few bytes waits, which more might join. */
  get isThin(): boolean {
    const [only, ...more] = this.#waiting;
    return more.length === 0 && only !== undefined && "kind" in only && only.bytes.length < PIECE;
  }

  /** Throws `MessageError` when it is longer than a message may be. */
  push(message: Message): void {
    const last = this.#waiting.at(-1);
    if (message.kind !== "bytes") this.#waiting.push(encode(message));
    else if (last && "kind" in last && isOne(last, message))
      this.#waiting.splice(-1, 1, { ...last, bytes: Buffer.concat([last.bytes, message.bytes]) });
    else this.#waiting.push(message);
    this.#bytes +=
      message.kind === "bytes" ? message.bytes.length : (this.#waiting.at(-1) as Uint8Array).length;
  }

  /** The next one as it goes, and whether it is bytes. */
  shift(): { encoded: Uint8Array; isBytes: boolean } | undefined {
    const next = this.#waiting.shift();
    if (!next) return undefined;
    const isBytes = "kind" in next;
    this.#bytes -= isBytes ? next.bytes.length : next.length;
    return { encoded: isBytes ? encode(next) : next, isBytes };
  }

  clear(): void {
    this.#waiting.length = 0;
    this.#bytes = 0;
  }
}

/** Whether two runs of bytes fit in one message, and came at about the same time. */
function isOne(first: Bytes, second: Bytes): boolean {
  if (first.bytes.length + second.bytes.length > PIECE) return false;
  if ((first.at === undefined) !== (second.at === undefined)) return false;
  return Math.abs((second.at ?? 0) - (first.at ?? 0)) <= SAME_MOMENT_MS;
}

/** Messages to be heard, handed over one by one. */
export class Unheard {
  readonly #waiting: { message: Message | undefined; cost: number }[] = [];
  readonly #taken: (cost: number) => void;
  readonly #failed: (error: unknown) => void;
  #heard: ((message: Message) => void | Promise<void>) | undefined;
  #hearing: Promise<void> | undefined;
  #cost = 0;

  /** `taken` is told the cost of each that was heard, `failed` what a handler threw. */
  constructor(taken: (cost: number) => void, failed: (error: unknown) => void) {
    this.#taken = taken;
    this.#failed = failed;
  }

  /** What waits costs, with what is being heard. */
  get cost(): number {
    return this.#cost;
  }

  /** Says who hears. */
  receive(heard: (message: Message) => void | Promise<void>): void {
    this.#heard = heard;
    this.#handOver();
  }

  /** Adds one; undefined is something that only a newer side understands, heard in its turn all the same. */
  push(message: Message | undefined, cost: number): void {
    this.#waiting.push({ message, cost });
    this.#cost += cost;
    this.#handOver();
  }

  /** Resolves when nothing is being heard. */
  async quiet(): Promise<void> {
    while (this.#hearing !== undefined) await this.#hearing;
  }

  clear(): void {
    this.#waiting.length = 0;
  }

  #handOver(): void {
    if (!this.#heard || this.#hearing || this.#waiting.length === 0) return;
    this.#hearing = this.#hand(this.#heard)
      .catch((error) => this.#failed(error))
      .finally(() => {
        this.#hearing = undefined;
        this.#handOver();
      });
  }

  async #hand(heard: (message: Message) => void | Promise<void>): Promise<void> {
    for (let next = this.#waiting.shift(); next; next = this.#waiting.shift()) {
      if (next.message) await heard(next.message);
      this.#cost -= next.cost;
      this.#taken(next.cost);
    }
  }
}
