/**
 * What this node has heard of releases: takes heads from wherever they come, remembers what is new, and says what is newest.
 *
 * Invariants
 * - Whoever floods one way uses up that way alone, and never more than a few signatures' worth of time a second.
 * - What is remembered was signed by somebody whom `trust.json` lists at that moment.
 */
import { statSync } from "node:fs";
import {
  compareHeads,
  type Following,
  HEAD_MAX_BYTES,
  type Head,
  HeadError,
  headId,
  type Newest,
  newestOf,
  parseHead,
} from "../../boot/head.ts";
import { Heads } from "../../boot/heads.ts";
import type { Trust } from "../../boot/trust.ts";
import type { Log } from "../log.ts";
import { reasonOf } from "../record/lines.ts";
import { readTrust } from "../release/files.ts";
import { FailureLimit } from "../sign/limit.ts";
import { trustPaths } from "./trust.ts";

/** Heads that wait to be looked at. */
const MOST_WAITING = 32;
/** Heads of one way that are looked at: so many at once, and then one each so many seconds. */
const LOOKED_AT = { burst: 50, secondsEach: 0.5 };

/** By which way a head came. */
export type Way = "mqtt" | "swarm" | "person";

/** What is needed to listen. */
export interface AnnouncementsOptions {
  dataDir: string;
  /** `trust.json`, where it is not in the data folder. */
  trustPath: string | undefined;
  following: Following;
  /** Unix seconds; undefined while the clock is not set. */
  now(): number | undefined;
  /** Told of each head that says something new. */
  taken(head: Head, way: Way): void;
  log: Log;
}

/** The heads of one node. */
export class Announcements {
  readonly #options: AnnouncementsOptions;
  readonly #trustPath: string;
  readonly #limit = new FailureLimit(LOOKED_AT);
  readonly #paths: ReturnType<typeof trustPaths>;
  #heads: Promise<Heads> | undefined;
  #trust: { trust: Trust; stamp: string } | undefined;
  #waiting = 0;
  #last: Promise<unknown> = Promise.resolve();

  constructor(options: AnnouncementsOptions) {
    this.#options = options;
    this.#paths = trustPaths(options.dataDir);
    this.#trustPath = options.trustPath ?? this.#paths.trust;
  }

  /** Whom this node trusts now. Throws `CliError` where nobody can know. */
  async trust(): Promise<Trust> {
    const { mtimeMs, ino, size } = statSync(this.#trustPath, { throwIfNoEntry: false }) ?? {};
    const stamp = `${ino} ${size} ${mtimeMs}`;
    if (this.#trust?.stamp === stamp) return this.#trust.trust;
    const trust = await readTrust(this.#trustPath);
    // Another process may have followed a chain: what gone keys had said is not written down again
    await (await this.#opened()).forget(trust);
    this.#trust = { trust, stamp };
    return trust;
  }

  /** The heads that count now. */
  async all(): Promise<Head[]> {
    return (await this.#opened()).of(this.#options.following, await this.trust());
  }

  /** What enough signers say last; undefined where they say nothing. */
  async newest(): Promise<Newest | undefined> {
    return newestOf(await this.all(), await this.trust())[0];
  }

  /** Takes a head from others: what is too much, false or old is passed over. Resolves to what was proven of it, if anything was. */
  async heard(bytes: Uint8Array, way: Way): Promise<Head | undefined> {
    if (bytes.length === 0 || bytes.length > HEAD_MAX_BYTES || this.#waiting >= MOST_WAITING)
      return undefined;
    this.#waiting++;
    const work = this.#last.then(() => this.#hear(bytes, way));
    this.#last = work.finally(() => this.#waiting--);
    return work;
  }

  /** Takes a head from a person. True where it says something new. Throws `HeadError`, `CliError`. */
  announce(bytes: Uint8Array): Promise<boolean> {
    const work = this.#last.then(() => this.#take(bytes, "person"));
    this.#last = work.catch(() => undefined);
    return work;
  }

  async #hear(bytes: Uint8Array, way: Way): Promise<Head | undefined> {
    try {
      const known = (await this.all()).find((head) => Buffer.compare(head.bytes, bytes) === 0);
      if (known) return known;
      // After what costs nothing, and before what does
      if (!this.#limit.take(way)) return undefined;
      await this.#take(bytes, way);
      return parseHead(bytes);
    } catch (cause) {
      const code = cause instanceof HeadError ? cause.code : "failed";
      this.#options.log("debug", "update.not-heard", { way, code, why: reasonOf(cause) });
      return code === "older" ? parseHead(bytes) : undefined;
    }
  }

  async #take(bytes: Uint8Array, way: Way): Promise<boolean> {
    const { following, now, taken } = this.#options;
    const isNew = await (await this.#opened()).take(bytes, await this.trust(), following, { now: now() });
    if (isNew) taken(parseHead(bytes), way);
    return isNew;
  }

  #opened(): Promise<Heads> {
    this.#heads ??= Heads.open(this.#paths.heads);
    return this.#heads;
  }
}

/** The name of a head's topic: where the DHT would keep it, too. */
export const idOf = ({ key, target }: Pick<Head, "key" | "target">): string =>
  headId(Buffer.from(key, "hex"), target);

/** Whether the one says more than the other, or there is no other. */
export const isBetter = (head: Head, than: Head | undefined): boolean =>
  than === undefined || compareHeads(head, than) > 0;
