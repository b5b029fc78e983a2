/** One payload that the agent has this child fetch or serve. */
import { hash } from "node:crypto";
import { read } from "node:fs";
import { LEAF_BYTES } from "../../boot/content.ts";
import { leafCount } from "../../boot/merkle.ts";
import { Bits } from "../../boot/progress.ts";
import { parseUpdate } from "../../boot/updatefile.ts";
import type { Engine, Finder, Keep, Member } from "./engine.ts";
import type { Files, Verdict } from "./files.ts";
import { runFinders } from "./finders.ts";
import {
  type FileKind,
  KNOWN_MOST,
  type Orders,
  plain,
  type Report,
  type ReportHead,
  type SwarmStatus,
} from "./frames.ts";
import type { Questions } from "./questions.ts";
import { fetchFromWeb } from "./web.ts";

/** Bytes of a file that go to the agent in one frame. */
const SENT_BYTES = 1024 * 1024;
/** Addresses of which it is remembered that somebody may listen there. */
const MOST_MET = 512;
/** Peers that a status names. */
const NAMED = 64;

/** What it works with. */
export interface Around {
  engine: Engine;
  member: Member;
  files: Files;
  finders: Readonly<Record<string, Finder>>;
  /** Asks trackers. */
  trackers(urls: readonly string[], tell: (text: string) => void): Finder;
  /** Somebody may be a peer. */
  met(address: string): void;
  questions: Questions;
  report<K extends Report["name"]>(name: K, head: ReportHead<K>, body?: Uint8Array): Promise<void>;
  tell(kind: string, text: string, from?: string): void;
  anyWeb: boolean;
  signal: AbortSignal;
}

/** Joined once; left by `leave` or with the child. */
export class Joined {
  readonly #around: Around;
  readonly #infohash: string;
  readonly #left = new AbortController();
  readonly #signal: AbortSignal;
  #has: Bits | undefined;
  #webBytes = 0;
  readonly #trackers = new Set<string>();
  /** Where somebody may listen, the last found last. */
  readonly #met = new Set<string>();

  constructor(around: Around) {
    this.#around = around;
    this.#infohash = around.member.infohash;
    this.#signal = AbortSignal.any([around.signal, this.#left.signal]);
    void this.#find(around.finders);
  }

  meet(address: string): void {
    this.#met.delete(address);
    this.#met.add(address);
    const [oldest] = this.#met;
    if (this.#met.size > MOST_MET && oldest !== undefined) this.#met.delete(oldest);
    this.#around.member.meet(address);
    this.#around.met(address);
  }

  /** Where peers listen that are connected and have sent nothing wrong. */
  good(): string[] {
    const { peers } = this.#around.member.status();
    const good = peers.filter(({ address, wrong }) => wrong === 0 && this.#met.has(address));
    return good.slice(0, KNOWN_MOST.peers).map(({ address }) => address);
  }

  /** Asks these trackers too. */
  track(urls: readonly string[]): void {
    const { tell, trackers } = this.#around;
    const others = urls.filter((url) => !this.#trackers.has(url));
    for (const url of others) this.#trackers.add(url);
    if (others.length > 0) void this.#find({ trackers: trackers(others, (text) => tell("tracker", text)) });
  }

  begin({ updateBytes, size, file, webSeeds }: Orders["begin"], body: Uint8Array): void {
    const { member, files } = this.#around;
    const update = Uint8Array.from(body.subarray(0, updateBytes));
    const has = new Bits(leafCount(size));
    const given = body.subarray(updateBytes);
    for (let leaf = 0; leaf < has.length; leaf++)
      if (file || ((given[leaf >> 3] ?? 0) & (1 << (leaf & 7))) !== 0) has.add(leaf);
    this.#has = has;
    const leavesAPiece = parseUpdate(update).info.pieceLength / LEAF_BYTES;
    files.offer(this.#infohash, "update", {
      bytes: update.length,
      read: async (at, length) => update.subarray(at, at + length),
    });
    const keep: Keep = {
      has: (leaf) => has.has(leaf),
      put: (piece, bytes) => this.#put(has, piece, leavesAPiece, bytes, "peers"),
      get: (at, length) =>
        file
          ? readFile(file.number, file.at + at, length)
          : this.#around.questions.read(this.#infohash, "payload", at, length),
    };
    member.begin(update, keep);
    if (has.count < has.length) void this.#fromWeb(has, leavesAPiece, size, webSeeds);
  }

  gained(body: Uint8Array): void {
    const view = new DataView(body.buffer, body.byteOffset, body.byteLength);
    const leaves = Array.from({ length: body.length / 4 }, (_, index) => view.getUint32(index * 4));
    for (const leaf of leaves) this.#has?.add(leaf);
    this.#around.member.gained(leaves);
  }

  want({ what, bytes, sha256 }: Orders["want"]): void {
    const { files } = this.#around;
    const judge = async (found: Uint8Array, from: string): Promise<Verdict> => {
      if (!this.#fitsName(what, found, sha256)) return "false";
      const verdict = this.#around.questions.verdictOn(this.#infohash, what);
      for (let at = 0; at < found.length; at += SENT_BYTES)
        await this.#around.report(
          "part",
          { infohash: this.#infohash, what, at, of: found.length, from },
          found.subarray(at, at + SENT_BYTES),
        );
      return verdict;
    };
    const wanted = { judge, ...(bytes === undefined ? {} : { bytes }) };
    void files
      .fetch(this.#infohash, what, wanted, this.#signal)
      .catch((cause) => this.#around.tell("trouble", plain(cause)));
  }

  verdict(head: Orders["verdict"]): void {
    this.#around.questions.verdict(head);
  }

  offer({ bytes, number }: Orders["offer"]): void {
    this.#around.files.offer(this.#infohash, "side", {
      bytes,
      read: (at, length) =>
        number === undefined
          ? this.#around.questions.read(this.#infohash, "side", at, length)
          : readFile(number, at, length),
    });
  }

  status(): SwarmStatus {
    const { phase, down, up, wasted, downRate, upRate, peers, trouble } = this.#around.member.status();
    return {
      infohash: this.#infohash,
      ...{ phase, down, up, wasted, downRate, upRate },
      connected: peers.length,
      peers: peers.slice(0, NAMED),
      web: this.#webBytes,
      ...(trouble === undefined ? {} : { trouble: plain(trouble) }),
    };
  }

  async leave(): Promise<void> {
    this.#left.abort();
    this.#around.files.forget(this.#infohash);
    await this.#around.member.leave();
  }

  #find(finders: Around["finders"]): Promise<void> {
    const { engine, tell } = this.#around;
    const wanted = {
      infohash: this.#infohash,
      port: engine.port,
      meet: (address: string) => this.meet(address),
    };
    return runFinders(finders, wanted, this.#signal, {
      tell: (finder, text) => tell("finder", `${finder}: ${text}`),
    });
  }

  async #put(
    has: Bits,
    piece: number,
    leavesAPiece: number,
    bytes: Uint8Array,
    from: "peers" | "web",
  ): Promise<readonly number[]> {
    const wrong = await this.#around.questions.judge(this.#infohash, piece, bytes, from);
    const first = piece * leavesAPiece;
    for (let leaf = first; leaf < first + leafCount(bytes.length); leaf++)
      if (!wrong.includes(leaf)) has.add(leaf);
    return wrong;
  }

  async #fromWeb(has: Bits, leavesAPiece: number, size: number, urls: readonly string[]): Promise<void> {
    const { member, anyWeb, tell } = this.#around;
    if (urls.length === 0) return;
    await fetchFromWeb({
      urls,
      anyWeb,
      size,
      pieceBytes: leavesAPiece * LEAF_BYTES,
      has,
      isSlow: (bytesASecond) => member.status().downRate < bytesASecond,
      put: async (piece, bytes) => {
        this.#webBytes += bytes.length;
        const wrong = await this.#put(has, piece, leavesAPiece, bytes, "web");
        const first = piece * leavesAPiece;
        const all = Array.from({ length: leafCount(bytes.length) }, (_, index) => first + index);
        member.gained(all.filter((leaf) => !wrong.includes(leaf)));
        return wrong;
      },
      tell: (text, url) => tell("web", text, url),
      signal: this.#signal,
    }).catch((cause) => {
      if (!this.#signal.aborted) tell("trouble", plain(cause));
    });
  }

  /** Whether what a peer sent can be the file at all; whom to believe is for the agent. */
  #fitsName(what: FileKind, bytes: Uint8Array, sha256: string | undefined): boolean {
    if (what === "side") return sha256 === undefined || hash("sha256", bytes) === sha256;
    try {
      return parseUpdate(bytes).infohash === this.#infohash;
    } catch {
      return false;
    }
  }
}

/** Exactly so many bytes of an open file. */
async function readFile(file: number, at: number, length: number): Promise<Uint8Array> {
  const bytes = Buffer.alloc(length);
  for (let filled = 0; filled < length; ) {
    const taken = await readSome(file, bytes, filled, at + filled);
    if (taken === 0) throw new Error(`file ${file} ends at byte ${at + filled}`);
    filled += taken;
  }
  return bytes;
}

function readSome(file: number, bytes: Buffer, filled: number, at: number): Promise<number> {
  return new Promise((resolve, reject) => {
    read(file, bytes, filled, bytes.length - filled, at, (error, taken) =>
      error ? reject(error) : resolve(taken),
    );
  });
}
