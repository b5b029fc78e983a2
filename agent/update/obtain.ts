/** What an install has not in hand, from the swarm: the update file, the side file, the payload. */
import { hash } from "node:crypto";
import { mkdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { Readable } from "../../boot/area.ts";
import type { Release } from "../../boot/content.ts";
import { SLOTS } from "../../boot/layout.ts";
import type { Leaves } from "../../boot/leaf.ts";
import { replaceFile } from "../../boot/progress.ts";
import { type Situation, verifyRelease } from "../../boot/release.ts";
import { openSide } from "../../boot/side.ts";
import type { Source } from "../../boot/source.ts";
import type { Trust } from "../../boot/trust.ts";
import { parseUpdate, ReleaseError } from "../../boot/updatefile.ts";
import type { Hal } from "../../hal/ports.ts";
import { readUpdate } from "../release/files.ts";
import { releasesIn } from "../release/kept.ts";
import { swarmSource } from "./download.ts";
import type { Link } from "./magnet.ts";
import type { Running } from "./running.ts";
import type { FileVerdict, Share } from "./share.ts";
import { Swarm, type SwarmOptions } from "./swarm.ts";

const LOOK_MS = 500;

/** Any node at any time: what it accepts is signed, whatever this node thinks of it. */
export const ANYWHERE: Situation = {
  now: undefined,
  atLeast: 0,
  boards: "any",
  floor: 0n,
  running: undefined,
};

/** How it is obtained. */
export interface ObtainOptions extends Omit<SwarmOptions, "log" | "files"> {
  link: Link;
  dataDir: string;
  hal: Pick<Hal, "openDisk">;
  running: Pick<Running, "turn" | "around">;
  /** One that runs already, and goes on afterwards; one of its own otherwise. */
  swarm?: Swarm;
  warn(text: string): void;
  signal: AbortSignal;
}

/** One release from the swarm, from its infohash to the last leaf. */
export class Obtaining implements AsyncDisposable {
  readonly #options: ObtainOptions;
  readonly #share: Share;
  readonly #stop = new AbortController();
  readonly #signal: AbortSignal;
  readonly #ended: Promise<unknown>;
  /** Bytes that were missing, by who brought them. */
  readonly #came = { peers: 0, web: 0 };
  #fetched: string | undefined;

  constructor(options: ObtainOptions) {
    const { link, signal, warn } = options;
    this.#options = options;
    this.#signal = AbortSignal.any([signal, this.#stop.signal]);
    const swarm = options.swarm ?? this.#own(warn);
    this.#share = swarm.share(link.infohash);
    for (const peer of link.peers) this.#share.meet(peer);
    const running = options.swarm ? undefined : swarm.run(this.#signal);
    this.#ended = Promise.all([running, this.#look()]);
  }

  #own(warn: ObtainOptions["warn"]): Swarm {
    return new Swarm({
      ...this.#options,
      files: [],
      log: (level, what, fields) => {
        if (level === "warn") warn(`${what}: ${fields?.why ?? ""}`);
      },
    });
  }

  /** How it stands, as the child last said. */
  get status(): Share["status"] {
    return this.#share.status;
  }

  /** Bytes that were missing, by who brought them. */
  get came(): Readonly<{ peers: number; web: number }> {
    return this.#came;
  }

  /** The update file: one that an earlier run has kept, or the first from a peer that this node believes. Throws why it would not take the release. */
  async updateFile(trust: Trust, accept: (bytes: Uint8Array) => Promise<unknown>): Promise<Uint8Array> {
    const { dataDir, link, running, warn } = this.#options;
    const kept = await keptUpdate(dataDir, link.infohash);
    if (kept) return kept;
    running.turn("finding");
    const judge = async (bytes: Uint8Array): Promise<FileVerdict> => {
      try {
        verifyRelease(bytes, trust, ANYWHERE);
      } catch (cause) {
        if (!(cause instanceof ReleaseError)) throw cause;
        warn(`a peer's update file is passed over: ${cause.message}`);
        return isLie(cause) ? "false" : "unwelcome";
      }
      await accept(bytes);
      return "good";
    };
    return this.#share.fetch("update", {}, judge, this.#signal);
  }

  /** Where the side file is: one that an earlier run has kept, or a peer's. */
  async sideFile(release: Release): Promise<string> {
    const { dataDir, running } = this.#options;
    const folder = releasesIn(dataDir);
    for (const name of [...SLOTS, "fetched"])
      if (await this.#isSide(join(folder, `${name}.side`), release)) return join(folder, `${name}.side`);
    running.turn("metadata");
    this.#share.track(release.trackers ?? []);
    const { bytes, sha256 } = release.side;
    const judge = async (found: Uint8Array): Promise<FileVerdict> =>
      hash("sha256", found) === sha256 ? "good" : "false";
    const side = await this.#share.fetch("side", { bytes, sha256 }, judge, this.#signal);
    const path = join(folder, "fetched.side");
    await mkdir(folder, { recursive: true, mode: 0o700 });
    await replaceFile(path, side);
    this.#fetched = path;
    return path;
  }

  /** The payload; what is there already is given to others meanwhile. */
  source(
    update: Uint8Array,
    { size, seeds = [], trackers = [] }: Release,
    leaves: Leaves,
    side: Readable,
  ): Source {
    this.#share.offer({ bytes: side.bytes, read: (at, length) => side.read(at, length) });
    return swarmSource({
      ...{ share: this.#share, update, leaves, size, webSeeds: seeds, trackers, signal: this.#signal },
      came: (from, bytes) => {
        this.#came[from] += bytes;
      },
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort(new Error("it is over"));
    this.#options.swarm?.leave(this.#share);
    await this.#ended;
    if (this.#fetched) await rm(this.#fetched, { force: true });
  }

  /** Tells how it goes, steps of the writer or none. */
  async #look(): Promise<void> {
    while (!this.#signal.aborted) {
      const { connected = 0 } = this.#share.status ?? {};
      this.#options.running.around({
        peers: connected,
        bytes_from_peers: this.#came.peers,
        bytes_from_web: this.#came.web,
      });
      await sleep(LOOK_MS, undefined, { signal: this.#signal }).catch(() => undefined);
    }
  }

  async #isSide(path: string, release: Release): Promise<boolean> {
    try {
      const file = await this.#options.hal.openDisk(path, "read");
      try {
        await openSide(file, release);
        return true;
      } finally {
        await file.close();
      }
    } catch {
      return false;
    }
  }
}

/** What can only be somebody's doing. What others have signed is true, but of no use here. */
function isLie({ code }: ReleaseError): boolean {
  return !["unsigned", "unknown-signer", "not-enough-signers", "signers-disagree"].includes(code);
}

/** What a node has learnt of and not installed yet, in the folder of the releases. */
export const ANNOUNCED = "announced";

/** The update file of an infohash that an install, or who looked for it before, has kept. */
export async function keptUpdate(dataDir: string, infohash: string): Promise<Uint8Array | undefined> {
  for (const name of [ANNOUNCED, ...SLOTS])
    try {
      const bytes = await readUpdate(join(releasesIn(dataDir), `${name}.fruit`));
      if (parseUpdate(bytes).infohash === infohash) return bytes;
    } catch {
      // none, or not whole
    }
  return undefined;
}
