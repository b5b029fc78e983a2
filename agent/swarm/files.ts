/**
 * `fruit_file`: the update file and the side file of a release from peer to peer, so that whoever knows an infohash gets all the
 * rest. An extension (BEP 10) modelled on BEP 9; each message is one canonical bencoded dictionary:
 *
 * | `t` | what | `k` | further keys |
 * |---|---|---|---|
 * | 0 | asks for a part | `update`, `side` | `p` its number |
 * | 1 | a part: 16 KiB, the last one shorter | | `d` bytes, `n` bytes of the file, `p` |
 * | 2 | has no such part | | `p` |
 * | 3 | has the file | | `n` its bytes |
 *
 * Invariants
 * - A file is fetched from one peer at a time, so a lie has one author and costs one file.
 * - Sizes are bounded before memory is taken; nobody is asked for more than was announced, or waited for below 6 kB/s.
 * - A peer is given one part at a time, so many a second, and only so many of its questions wait.
 */
import { setTimeout as sleep } from "node:timers/promises";
import { decodeBencode, encodeBencode } from "../../boot/bencode.ts";
import { Fields } from "../../boot/fields.ts";
import { UPDATE_MAX_BYTES } from "../../boot/updatefile.ts";
import type { Extension, ExtensionPeer, WireExtension } from "./engine.ts";
import { type FileKind, SIDE_MAX_BYTES } from "./frames.ts";

/** Bytes of one part. */
export const PART_BYTES = 16_384;
const MESSAGE_MAX_BYTES = PART_BYTES + 200;
const ASK = 0;
const PART = 1;
const NONE = 2;
const HAS = 3;
/** Longest file of each kind. */
const MOST_BYTES: Record<FileKind, number> = { update: UPDATE_MAX_BYTES, side: SIDE_MAX_BYTES };
/** Parts that are asked for ahead. */
const AHEAD = 8;
/** Questions of one peer that may wait. */
const MOST_WAITING = 16;
/** Parts that one peer is given at once, and every second from then on. */
const RATE = { burst: 256, aSecond: 64 };
/** Within this a peer must have brought at least so many parts, or the last one. */
const PATIENCE = { ms: 10_000, parts: 4 };
/** A peer that reads slowly waits so long for its next answer, and is let go after so many in a row. */
const FULL = { ms: 250, most: 40 };
/** Parts that nobody asked for (late ones are among them) until a peer is taken for one that floods. */
const MOST_UNASKED = 64;
/** Peers that were slow or had nothing are asked again after this. */
const AGAIN_MS = 30_000;

/** A file that may be handed out. */
export interface Offered {
  bytes: number;
  read(at: number, length: number): Promise<Uint8Array>;
}

/** What became of a file that was fetched. */
export type Verdict = "good" | "false" | "unwelcome";

/** A file that is wanted. `judge` hears what one peer sent, whole, until it is `good`. */
export interface Wanted {
  /** Where they are known. */
  bytes?: number;
  judge(bytes: Uint8Array, from: string): Promise<Verdict>;
}

/** The exchange of files with all peers, for all payloads. */
export class Files implements WireExtension {
  readonly name = "fruit_file";
  readonly #patience: typeof PATIENCE;
  readonly #ends = new Set<End>();
  readonly #offered = new Map<string, Offered>();
  /** Called when a peer announces a file. */
  readonly #waiting = new Map<string, () => void>();

  constructor(patience = PATIENCE) {
    this.#patience = patience;
  }

  open(peer: ExtensionPeer): Extension {
    const end: End = new End(peer, this.#patience, {
      offered: (what) => this.#offered.get(`${peer.infohash} ${what}`),
      announced: (what) => this.#waiting.get(`${peer.infohash} ${what}`)?.(),
      closed: () => this.#ends.delete(end),
    });
    this.#ends.add(end);
    return end;
  }

  /** From now on peers are told of it and given it. */
  offer(infohash: string, what: FileKind, file: Offered): void {
    this.#offered.set(`${infohash} ${what}`, file);
    for (const end of this.#ends) if (end.peer.infohash === infohash) end.announce(what, file.bytes);
  }

  /** Nobody is given its files any more. */
  forget(infohash: string): void {
    for (const what of ["update", "side"]) this.#offered.delete(`${infohash} ${what}`);
  }

  /** Fetches a file from one peer after the other until one is good. */
  async fetch(infohash: string, what: FileKind, wanted: Wanted, signal: AbortSignal): Promise<void> {
    const key = `${infohash} ${what}`;
    const blamed = new Set<string>();
    /** Those that were slow, and when that was. */
    const slow = new Map<string, number>();
    while (!signal.aborted) {
      let wake = () => {};
      const news = new Promise<void>((resolve) => {
        wake = resolve;
      });
      this.#waiting.set(key, wake);
      const end = this.#ends.values().find((one) => {
        const { address } = one.peer;
        const isRested = performance.now() - (slow.get(address) ?? Number.NEGATIVE_INFINITY) > AGAIN_MS;
        return (
          one.peer.infohash === infohash && one.has(what, wanted.bytes) && !blamed.has(address) && isRested
        );
      });
      if (!end) {
        await Promise.race([news, sleep(1000, undefined, { signal }).catch(() => undefined)]);
        continue;
      }
      const { address } = end.peer;
      const bytes = await end.fetch(what, signal);
      if (!bytes) {
        slow.set(address, performance.now());
        continue;
      }
      const verdict = await wanted.judge(bytes, address);
      if (verdict === "good") break;
      blamed.add(address);
      if (verdict === "false") end.peer.drop(`its ${what} file is not that of ${infohash}`, true);
    }
    this.#waiting.delete(key);
  }
}

/** What one end knows of all. */
interface Around {
  offered(what: FileKind): Offered | undefined;
  announced(what: FileKind): void;
  closed(): void;
}

/** One peer. */
class End implements Extension {
  readonly peer: ExtensionPeer;
  readonly #patience: typeof PATIENCE;
  readonly #of: Around;
  /** Bytes of what it has. */
  readonly #has = new Map<FileKind, number>();
  readonly #closed = new AbortController();
  #isReady = false;
  readonly #asked: { what: FileKind; part: number }[] = [];
  #isServing = false;
  #tokens = RATE.burst;
  #tokensMs = performance.now();
  #unasked = 0;
  /** Answers in a row that found the last ones unread. */
  #full = 0;
  readonly #fetching = new Map<FileKind, Fetching>();

  constructor(peer: ExtensionPeer, patience: typeof PATIENCE, of: Around) {
    this.peer = peer;
    this.#patience = patience;
    this.#of = of;
  }

  ready(): void {
    this.#isReady = true;
    for (const what of ["update", "side"] as const) {
      const file = this.#of.offered(what);
      if (file) this.announce(what, file.bytes);
    }
  }

  closed(): void {
    this.#closed.abort();
    this.#of.closed();
  }

  message(bytes: Uint8Array): void {
    const fields = new Fields(decodeBencode(bytes, MESSAGE_MAX_BYTES), "fruit_file");
    const what = fields.text("k", /^(update|side)$/) as FileKind;
    const kind = fields.count("t", ASK, HAS);
    if (kind === HAS) {
      fields.only("k", "n", "t");
      this.#has.set(what, fields.count("n", 1, MOST_BYTES[what]));
      this.#of.announced(what);
      return;
    }
    const part = fields.count("p", 0, Math.ceil(MOST_BYTES[what] / PART_BYTES) - 1);
    if (kind === ASK) this.#wasAsked(what, part);
    else if (kind === NONE) this.#fetching.get(what)?.none();
    else this.#came(what, part, fields.count("n", 1, MOST_BYTES[what]), fields.bytes("d"));
  }

  /** Whether it has announced such a file. */
  has(what: FileKind, bytes: number | undefined): boolean {
    const found = this.#has.get(what);
    return found !== undefined && (bytes === undefined || bytes === found);
  }

  announce(what: FileKind, bytes: number): void {
    if (this.#isReady) this.peer.send(encodeBencode({ k: what, n: bytes, t: HAS }));
  }

  /** All of a file it has announced; undefined where it does not come, or not fast enough. */
  async fetch(what: FileKind, signal: AbortSignal): Promise<Uint8Array | undefined> {
    const bytes = this.#has.get(what);
    if (bytes === undefined) return undefined;
    const fetching = new Fetching(bytes, (part) =>
      this.peer.send(encodeBencode({ k: what, p: part, t: ASK })),
    );
    this.#fetching.set(what, fetching);
    try {
      return await fetching.all(this.#patience, AbortSignal.any([signal, this.#closed.signal]));
    } finally {
      this.#fetching.delete(what);
    }
  }

  #came(what: FileKind, part: number, of: number, bytes: Uint8Array): void {
    const taken = this.#fetching.get(what)?.take(part, of, bytes) ?? "unasked";
    if (taken === "wrong") this.peer.drop(`part ${part} of its ${what} file has ${bytes.length} bytes`, true);
    if (taken === "unasked" && ++this.#unasked > MOST_UNASKED)
      this.peer.drop("it sends parts of files that nobody asked for", true);
  }

  #wasAsked(what: FileKind, part: number): void {
    if (this.#asked.length >= MOST_WAITING) {
      this.peer.drop(`more than ${MOST_WAITING} of its questions wait`);
      return;
    }
    this.#asked.push({ what, part });
    if (!this.#isServing) void this.#serve();
  }

  async #serve(): Promise<void> {
    this.#isServing = true;
    try {
      while (!this.#closed.signal.aborted) {
        const next = this.#asked[0];
        if (!next) break;
        await this.#turn();
        const answer = await this.#answer(next.what, next.part);
        this.#asked.shift();
        await this.#give(answer);
      }
    } finally {
      this.#isServing = false;
    }
  }

  /** Waits until it may be given another part. */
  async #turn(): Promise<void> {
    const nowMs = performance.now();
    const earned = ((nowMs - this.#tokensMs) / 1000) * RATE.aSecond;
    this.#tokens = Math.min(RATE.burst, this.#tokens + earned) - 1;
    this.#tokensMs = nowMs;
    if (this.#tokens < 0) await this.#rest((-this.#tokens / RATE.aSecond) * 1000);
  }

  async #answer(what: FileKind, part: number): Promise<Uint8Array> {
    const file = this.#of.offered(what);
    const at = part * PART_BYTES;
    if (file && at < file.bytes)
      try {
        const d = await file.read(at, Math.min(PART_BYTES, file.bytes - at));
        return encodeBencode({ d, k: what, n: file.bytes, p: part, t: PART });
      } catch {
        // it cannot be read at the moment: the peer asks somebody else
      }
    return encodeBencode({ k: what, p: part, t: NONE });
  }

  /** Sends, and waits where the peer reads too slowly; one that reads nothing is let go. */
  async #give(answer: Uint8Array): Promise<void> {
    this.#full = this.peer.send(answer) ? 0 : this.#full + 1;
    if (this.#full >= FULL.most) this.peer.drop("it does not read what it asks for");
    else if (this.#full > 0) await this.#rest(FULL.ms);
  }

  #rest(ms: number): Promise<void> {
    return sleep(ms, undefined, { signal: this.#closed.signal, ref: false }).catch(() => undefined);
  }
}

/** One file on its way from one peer. */
class Fetching {
  readonly #bytes: Buffer;
  readonly #ask: (part: number) => void;
  readonly #asked = new Set<number>();
  readonly #parts: number;
  #next = 0;
  #came = 0;
  readonly #over = Promise.withResolvers<Uint8Array | undefined>();

  constructor(bytes: number, ask: (part: number) => void) {
    this.#bytes = Buffer.alloc(bytes);
    this.#parts = Math.ceil(bytes / PART_BYTES);
    this.#ask = ask;
  }

  async all(patience: typeof PATIENCE, signal: AbortSignal): Promise<Uint8Array | undefined> {
    const end = new AbortController();
    const stop = () => this.#over.resolve(undefined);
    signal.addEventListener("abort", stop, { once: true });
    if (signal.aborted) stop();
    this.#askOn();
    void this.#watch(patience, end.signal);
    try {
      return await this.#over.promise;
    } finally {
      end.abort();
      signal.removeEventListener("abort", stop);
    }
  }

  /** The peer has no such part. */
  none(): void {
    this.#over.resolve(undefined);
  }

  take(part: number, of: number, bytes: Uint8Array): "taken" | "unasked" | "wrong" {
    if (!this.#asked.delete(part)) return "unasked";
    const at = part * PART_BYTES;
    if (of !== this.#bytes.length || bytes.length !== Math.min(PART_BYTES, of - at)) {
      this.#over.resolve(undefined);
      return "wrong";
    }
    this.#bytes.set(bytes, at);
    if (++this.#came === this.#parts) this.#over.resolve(this.#bytes);
    else this.#askOn();
    return "taken";
  }

  #askOn(): void {
    while (this.#asked.size < AHEAD && this.#next < this.#parts) {
      this.#asked.add(this.#next);
      this.#ask(this.#next++);
    }
  }

  /** Ends it where the peer brings too little. */
  async #watch({ ms, parts }: typeof PATIENCE, signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      const before = this.#came;
      await sleep(ms, undefined, { signal, ref: false }).catch(() => undefined);
      if (this.#came - before < parts) this.#over.resolve(undefined);
    }
  }
}
