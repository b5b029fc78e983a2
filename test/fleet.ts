/** Nodes of a fleet on this machine, each a real swarm child: they hear heads, hand them on, and fetch what those name. */
import { mkdirSync } from "node:fs";
import { dirname } from "node:path";
import type { Settings } from "../agent/swarm/frames.ts";
import type { Group } from "../agent/swarm/multicast.ts";
import { Known } from "../agent/update/known.ts";
import type { Holding, Share } from "../agent/update/share.ts";
import { Swarm, type SwarmOptions } from "../agent/update/swarm.ts";
import { LEAF_BYTES } from "../boot/content.ts";
import { compareHeads, type Head, verifyHead } from "../boot/head.ts";
import { Judge } from "../boot/leaf.ts";
import { verifyRelease } from "../boot/release.ts";
import { openSide } from "../boot/side.ts";
import { freePort, idOf } from "./dhts.ts";
import { SOURCES } from "./node.ts";
import { inMemory, makePayload, makeRelease, NODE } from "./releases.ts";
import { FOLLOWING, headOf, keyHex, trustOf } from "./trusts.ts";

/** Who may say what is newest, and who releases. */
export const TRUST = trustOf(1, { anna: ["release", "trust"], bell: ["head"] });
/** Whose heads are looked for. */
export const FOLLOWED = { target: FOLLOWING.target, keys: [keyHex("bell")] };

/** A release of a few pieces, and the head that names it. */
export function announced(stated: Parameters<typeof makeRelease>[0] = {}) {
  const made = makeRelease({ payload: makePayload({ rootBytes: 480_000 }), ...stated });
  const release = verifyRelease(made.update, TRUST, NODE);
  return { ...made, release, head: headOf("bell", { infohash: release.infohash }) };
}
export type Announced = ReturnType<typeof announced>;

/** Groups of one test alone, on the loopback interface. */
export async function ownGroups(): Promise<NonNullable<Settings["groups"]>> {
  const group = async (v4: string): Promise<Group> => ({ v4, port: await freePort() });
  return {
    peers: await group("239.192.70.98"),
    heads: await group("239.192.70.97"),
    interfaces: ["lo"],
  };
}

/** What a person can hand a node. */
export interface InHand {
  update?: Uint8Array;
  side?: Uint8Array;
  webSeeds?: readonly string[];
}

/** What a node of a fleet is made of; nothing finds anything unless it is said. */
export interface NodeOptions {
  name: string;
  settings?: Partial<Settings>;
  /** File of who answered before. */
  remembers?: string;
  /** What it has before it begins. */
  inHand?: InHand;
  swarm?: Partial<SwarmOptions>;
}

/** One node: believes heads of `TRUST`, hands them on, and fetches what the newest names. */
export class FleetNode implements AsyncDisposable {
  readonly swarm: Swarm;
  readonly log: string[] = [];
  /** Heads as the child told them. */
  readonly told: { head: Buffer; from: string }[] = [];
  readonly has = new Set<number>();
  readonly #inHand: InHand;
  readonly #stop = new AbortController();
  readonly #running: Promise<void>;
  #newest: Head | undefined;
  #share: Share | undefined;
  #failed: unknown;

  constructor({ name, settings, remembers, inHand = {}, swarm = {} }: NodeOptions) {
    this.#inHand = inHand;
    if (remembers !== undefined) mkdirSync(dirname(remembers), { recursive: true });
    this.swarm = new Swarm({
      ...{ user: 65_534, memoryMib: 512, files: [] },
      command: [...SOURCES.command, "swarm"],
      settings: {
        ...{ port: 0, lan: false, dht: false, bootstrap: [], everyMs: 2000, anyWeb: true },
        id: idOf(name).toString("hex"),
        ...settings,
      },
      log: (_, what, fields) => this.log.push(`${what} ${JSON.stringify(fields)}`),
      heard: (head, from) => {
        this.told.push({ head: Buffer.from(head), from });
        this.hear(head);
      },
      ...(remembers === undefined ? {} : { known: new Known(remembers, () => performance.now() * 1000) }),
      ...swarm,
    });
    this.#running = this.swarm.run(this.#stop.signal);
  }

  get address(): Promise<string> {
    return this.swarm.port.then((port) => `127.0.0.1:${port}`);
  }

  /** What the newest head names that it believes. */
  get wants(): string | undefined {
    return this.#newest?.infohash;
  }

  /** Looks for heads from now on. */
  follow(): void {
    this.swarm.follow(FOLLOWED);
  }

  /** A head came, by whatever way. */
  hear(bytes: Uint8Array): void {
    const head = verifyHead(bytes, TRUST, FOLLOWING, NODE);
    if (this.#newest && compareHeads(head, this.#newest) <= 0) return;
    this.#newest = head;
    this.swarm.announce(bytes);
    this.fetch(head.infohash);
  }

  /** Fetches all there is under an infohash, from whoever has it. */
  fetch(infohash: string): Share {
    if (this.#share) return this.#share;
    const share = this.swarm.share(infohash);
    this.#share = share;
    this.#fetch(share).catch((cause) => {
      this.#failed = cause;
    });
    return share;
  }

  /** Gives a release. */
  seed({ release, update, side, payload }: Announced): void {
    const share = this.swarm.share(release.infohash, { isFirstSeed: true });
    this.#share = share;
    const read = async (at: number, length: number) => payload.subarray(at, at + length);
    const unneeded = async () => undefined;
    const holding = { size: payload.length, has: () => true, put: unneeded, read };
    share.begin(update, holding, () => undefined, { trackers: release.trackers ?? [] });
    share.offer({ bytes: side.length, read: async (at, length) => side.subarray(at, at + length) });
  }

  /** Whether all of it has come. */
  isWhole(of: Announced): boolean {
    if (this.#failed) throw this.#failed;
    return this.has.size === Math.ceil(of.payload.length / LEAF_BYTES);
  }

  get share(): Share | undefined {
    return this.#share;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    await this.#running;
  }

  async #fetch(share: Share): Promise<void> {
    const { signal } = this.#stop;
    const isGood = async (bytes: Uint8Array) => {
      verifyRelease(bytes, TRUST, NODE);
      return "good" as const;
    };
    const { update = await share.fetch("update", {}, isGood, signal), webSeeds = [] } = this.#inHand;
    const release = verifyRelease(update, TRUST, NODE);
    const { trackers = [] } = release;
    share.track(trackers);
    const { side = await share.fetch("side", release.side, async () => "good", signal) } = this.#inHand;
    const judge = new Judge(release.size, await openSide(inMemory(Buffer.from(side)), release));
    const bytes = Buffer.alloc(release.size);
    const holding: Holding = {
      size: release.size,
      has: (leaf) => this.has.has(leaf),
      put: async (leaf, part) => {
        await judge.check(leaf, part);
        bytes.set(part, leaf * LEAF_BYTES);
        this.has.add(leaf);
      },
      read: async (at, length) => bytes.subarray(at, at + length),
    };
    const failed = (cause: Error) => {
      this.#failed = cause;
    };
    share.begin(update, holding, failed, { webSeeds, trackers });
    share.offer({ bytes: side.length, read: async (at, length) => side.subarray(at, at + length) });
  }
}

/** A node that only listens. */
export function listener(options: NodeOptions) {
  const told: { head: string; from: string }[] = [];
  const announced: { dht: number; lan: boolean }[] = [];
  const node = new FleetNode({
    ...options,
    swarm: {
      heard: (head, from) => void told.push({ head: Buffer.from(head).toString("hex"), from }),
      announced: (facts) => void announced.push(facts),
      ...options.swarm,
    },
  });
  node.follow();
  return Object.assign(node, { told: told as never, heads: told, announced });
}
